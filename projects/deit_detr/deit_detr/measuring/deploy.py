"""Every runtime and precision for a deployed model: latency in turns, memory, size and AP."""

import io
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from deit_detr.errors import UserError
from deit_detr.inference.export import difference
from deit_detr.inference.runtimes import NAMES, installed
from deit_detr.machine import GB


@dataclass(frozen=True)
class Deployed:
    """A row: a model in a runtime.

    Attributes:
        name: Name of the row.
        model: An ONNX file, or a config and a checkpoint for PyTorch.
        options: Keyword arguments of ``OnnxDetector`` in ``run_onnx.py``.
    """

    name: str
    model: tuple[Path, ...]
    options: dict = field(default_factory=dict)


def deployed_rows(files: list[Path], pytorch: tuple[Path, Path] | None = None) -> list[Deployed]:
    """Return a row for each file in each runtime, provider and precision that is installed; PyTorch's comes first."""
    settings = {}
    for runtime in installed():
        if runtime == 'onnxruntime':
            settings |= {f'{NAMES[runtime]}{"" if name == "cpu" else f", {name}"}': dict(provider=name)
                         for name in onnx_providers()}
        else:
            settings |= {f'{NAMES[runtime]} {name}': dict(runtime=runtime, precision=name)
                         for name in ('float32', 'bfloat16')}
    alike = len({file.name for file in files}) < len(files)
    return ([Deployed('PyTorch', pytorch)] if pytorch else []) + [
        Deployed(f'{file if alike else file.name}, {name}', (file,), options)
        for file in files for name, options in settings.items()]


def measure_deployed(
    rows: list[Deployed], run_onnx: Path, image: Path, steps: int, warmup: int, threads: int = 1,
    coco: tuple[Path, Path, Path] | None = None,
) -> list[dict]:
    """Measure models in turns, each in a process of its own.

    Args:
        rows: What to measure.
        run_onnx: The script ``run_onnx.py``.
        image: Image file whose detection is timed, from its pixels to boxes.
        steps: Measured detections of each row.
        warmup: Detections before them.
        threads: CPU threads of each runtime.
        coco: Folder of images, their annotation file in COCO format, and a folder for results, to measure AP.

    Returns:
        list[dict]: For each row ``name``, ``megabytes``, ``start_seconds`` (CPU time until the first detections),
        ``cpu_seconds`` and ``wall_seconds`` of each step, their medians ``cpu_ms`` and ``wall_ms``, ``peak_gb`` (of the
        process); with ``coco`` also ``ap`` and ``ap50``, and from the second row on, if the first one has an AP,
        ``box_difference`` and ``score_difference`` from that, see :func:`~deit_detr.inference.export.compare`. A row
        that fails has ``name`` and ``error``.
    """
    results = [dict(name=row.name, megabytes=row.model[-1].stat().st_size / 1e6) for row in rows]
    task = dict(run_onnx=str(run_onnx), image=str(image), warmup=warmup, threads=threads)
    with ExitStack() as stack:
        asked = [stack.enter_context(_started(row, task)) for row in rows]

        def for_each(action: Callable[[int, dict, Callable], None]) -> None:
            for index, (result, ask) in enumerate(zip(results, asked, strict=True)):
                if 'error' not in result:
                    try:
                        action(index, result, ask)
                    except UserError as error:
                        result['error'] = str(error)

        def step(index: int, result: dict, ask: Callable) -> None:
            times = ask('step')
            for name in ('cpu', 'wall'):
                result.setdefault(f'{name}_seconds', []).append(times[name])
                result[f'{name}_ms'] = 1000 * statistics.median(result[f'{name}_seconds'])

        def average_precision(index: int, result: dict, ask: Callable) -> None:
            file = coco[2] / f'{index}.bbox.json'
            ask('coco', *map(str, coco[:2]), str(file))
            result.update(_score(coco[1], file))
            if index and 'ap' in results[0]:
                worst = np.max(result_differences(coco[2] / '0.bbox.json', file), 0).tolist()
                result.update(box_difference=worst[0], score_difference=worst[1])

        for_each(lambda index, result, ask: result.update(start_seconds=ask()['start']))
        for _ in range(steps):
            for_each(step)
        for_each(lambda index, result, ask: result.update(peak_gb=ask('peak')['peak'] / GB))
        if coco:
            for_each(average_precision)
    return results


@contextmanager
def _started(row: Deployed, task: dict) -> Iterator[Callable]:
    """Start the process of a row and yield ``ask(*command)``, which sends a command, if any, and returns the answer."""
    task = task | dict(model=[str(path) for path in row.model], options=row.options)
    with subprocess.Popen(
        [sys.executable, '-W', 'ignore', Path(__file__).with_name('deploy_worker.py'), json.dumps(task)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:

        def ask(*command: str) -> dict:
            try:
                if command:
                    process.stdin.write(json.dumps(command) + '\n')
                    process.stdin.flush()
                answer = json.loads(process.stdout.readline())
            except (OSError, ValueError):
                raise UserError(f'its process ended with status {process.wait()}; out of memory?') from None
            if 'error' in answer:
                raise UserError(answer['error'])
            return answer

        try:
            yield ask
        finally:
            process.kill()


def onnx_providers() -> list[str]:
    """Return the execution providers of the installed onnxruntime, as ``run_onnx.py --provider`` names them."""
    import onnxruntime

    known = dict(CPUExecutionProvider='cpu', CUDAExecutionProvider='cuda', TensorrtExecutionProvider='tensorrt')
    return [name for provider, name in known.items() if provider in onnxruntime.get_available_providers()]


def _score(ann_file: Path, results: Path) -> dict[str, float]:
    with redirect_stdout(io.StringIO()):
        truth = COCO(str(ann_file))
        evaluation = COCOeval(truth, truth.loadRes(str(results)), 'bbox')
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(ap=float(evaluation.stats[0]), ap50=float(evaluation.stats[1]))


def result_differences(first: Path, second: Path) -> list[tuple[float, float]]:
    """Return how much the confident detections in two COCO results files differ.

    Returns:
        list[tuple[float, float]]: For each image, as :func:`~deit_detr.inference.export.compare` returns it.
    """
    a, b = (_by_image(json.loads(file.read_text())) for file in (first, second))
    return [difference(a[image], b[image]) for image in a]


def _by_image(results: list[dict]) -> dict[int, tuple[np.ndarray, ...]]:
    """Return boxes (x1, y1, x2, y2), scores and labels of each image."""
    rows = {}
    for result in results:
        left, top, width, height = result['bbox']
        rows.setdefault(result['image_id'], []).append(
            ((left, top, left + width, top + height), result['score'], result['category_id']))
    return {image: tuple(map(np.array, zip(*found, strict=True))) for image, found in rows.items()}
