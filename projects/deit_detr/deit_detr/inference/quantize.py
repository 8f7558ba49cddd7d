"""Linear layers of an ONNX file in 8 bits, by ONNX Runtime's tools."""

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from mmdet.apis.det_inferencer import IMG_EXTENSIONS

from deit_detr.errors import UserError

#: Most images of a calibration, spread evenly over those that are given.
CALIBRATION_IMAGES = 64
LINEAR = ['MatMul', 'Gemm']
#: Names of layers that a calibrated file keeps in float32: the first three of the backbone move boxes most, see
#: docs/deploy.md.
SENSITIVE = re.compile(r'^/backbone/layers\.[0-2]/')


def quantize_dynamic_file(source: Path, destination: Path) -> None:
    """Store the weights of linear layers in 8 bits; their inputs are quantized while the model runs.

    Args:
        source: A float32 file.
        destination: File to write.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # Nearly all weights are in MatMul; in 8 bits the patch convolution is slower on a CPU and less accurate
    model = _load(source)
    with _without_advice():
        quantize_dynamic(
            model, destination, op_types_to_quantize=LINEAR, per_channel=True,
            weight_type=QuantType.QInt8, nodes_to_quantize=[node.name for node in _linear_layers(model)])


def quantize_static_file(source: Path, destination: Path, batches: Iterable[np.ndarray]) -> None:
    """Store the weights of linear layers in 8 bits, and the ranges of their inputs, taken from images.

    Layers named in :data:`SENSITIVE` stay in float32, and so does everything between linear layers.

    Args:
        source: A float32 file.
        destination: File to write.
        batches: Images as the graph takes them, uint8 ``(1, height, width, 3)`` each.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        feeds = (dict(images=batch) for batch in batches)

        def get_next(self) -> dict | None:
            return next(self.feeds, None)

    model = _load(source)
    # OpenVINO 2026.4 does not compile a model of a fixed shape in which such a layer reads joined maps
    joined = {output for node in model.graph.node if node.op_type == 'Concat' for output in node.output}
    layers = [node.name for node in _linear_layers(model)
              if not SENSITIVE.search(node.name) and node.input[0] not in joined]
    with _without_advice():
        quantize_static(
            model, destination, Reader(), quant_format=QuantFormat.QDQ, op_types_to_quantize=LINEAR,
            per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, nodes_to_quantize=layers,
            extra_options=dict(MatMulConstBOnly=True, OpTypesToExcludeOutputQuantization=LINEAR))


def calibration_images(paths: Iterable[str | Path]) -> list[Path]:
    """Return at most :data:`CALIBRATION_IMAGES` of the images that are named or are in named folders.

    Of ScanNet's folders, which also hold depth and labels as pictures, only those named ``color`` count.

    Raises:
        UserError: If a path does not exist, or there is no image.
    """
    found = []
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f'{path}: no such image or folder of images')
        found += [path] if path.is_file() else sorted(
            Path(folder, name) for folder, _, names in os.walk(path, followlinks=True) for name in names
            if Path(name).suffix.lower() in IMG_EXTENSIONS)
    found = [path for path in found if path.parent.name == 'color'] or found
    if not found:
        raise UserError(f'{", ".join(map(str, paths))}: no images to calibrate with')
    chosen = np.linspace(0, len(found) - 1, min(CALIBRATION_IMAGES, len(found))).round().astype(int)
    return [found[index] for index in chosen]


def _load(path: Path):
    """Read a file for the quantizers, which need the types of all tensors and infer only those of ONNX's operators."""
    import onnx

    model = onnx.load(path)
    del model.graph.value_info[:]
    model.graph.value_info.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for node in model.graph.node if node.domain for name in node.output)
    return model


def _linear_layers(model) -> list:
    """Return the nodes that multiply by a matrix of weights.

    ONNX Runtime writes LW-DETR's three-dimensional weights of groups in int8, but cannot run them. A weight that
    several Gemm nodes share would become a wrong one in 1.23, see findings/.
    """
    ranks = {weight.name: len(weight.dims) for weight in model.graph.initializer}
    layers = [node for node in model.graph.node if node.op_type in LINEAR and ranks.get(node.input[1]) == 2]
    readers = Counter(node.input[1] for node in layers if node.op_type == 'Gemm')
    return [node for node in layers if readers[node.input[1]] < 2]


@contextmanager
def _without_advice() -> Iterator[None]:
    """Keep the quantizers from logging advice to optimize the graph first."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
