"""ONNX files in each of the runtimes that are installed, as ``tools/deployment/run_onnx.py`` runs them."""

import functools
import importlib.util
import sys
from pathlib import Path

import numpy as np

from deit_detr.errors import UserError

#: Packages, and how their makers write them.
NAMES = dict(onnxruntime='ONNX Runtime', openvino='OpenVINO')


def installed() -> list[str]:
    """Return the runtimes that are installed, some of :data:`NAMES`."""
    return [package for package in NAMES if importlib.util.find_spec(package)]


def need(*packages: str) -> None:
    """Raise UserError for a package that is not installed."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise UserError(f'the export needs {package}: pip install -r requirements/optional.txt')


def run_file(path: Path, batches: list[np.ndarray], runtime: str) -> list[list[np.ndarray]]:
    """Run a file on the CPU, in float32 unless it is quantized.

    Args:
        path: The file.
        batches: Images, uint8 ``(batch, height, width, 3)``; their shapes may differ.
        runtime: One of :data:`NAMES`.

    Returns:
        list[list[np.ndarray]]: All outputs for each batch.

    Raises:
        UserError: If the runtime cannot run the file.
    """
    try:
        return _RUN[runtime](str(path), batches)
    except Exception as error:  # their exceptions have no common base class
        raise UserError(
            f'{NAMES[runtime]} cannot run the exported model, which is not written: '
            f'{" ".join(str(error).split())}') from error


def _run_onnxruntime(path: str, batches: list[np.ndarray]) -> list[list[np.ndarray]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    return [session.run(None, dict(images=images)) for images in batches]


def _run_openvino(path: str, batches: list[np.ndarray]) -> list[list[np.ndarray]]:
    """Run the first batch with a model of its shape, the others with one of any shape."""
    core, outputs = _openvino_core(), []
    for index, images in enumerate(batches):
        if index < 2:
            model = core.read_model(path)
            if not index:
                model.reshape(list(images.shape))
            compiled = core.compile_model(model, 'CPU', dict(INFERENCE_PRECISION_HINT='f32'))
        results = compiled(images)
        outputs.append([results[number].copy() for number in range(len(results))])
    return outputs


@functools.cache
def _openvino_core():
    """Return OpenVINO's ``Core``, one for the process: after several were released, a signal (Ctrl-C) may crash it."""
    sys.modules.setdefault('openvino_telemetry', None)  # or this import sends usage data to its makers
    import openvino

    return openvino.Core()


_RUN = dict(onnxruntime=_run_onnxruntime, openvino=_run_openvino)
