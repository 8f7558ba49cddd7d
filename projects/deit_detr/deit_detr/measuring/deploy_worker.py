"""The process of one row of ``benchmark.py deploy``; it imports nothing that a target machine would not.

It is run as a script, with one JSON object as its argument: ``run_onnx`` (path of ``run_onnx.py``), ``model`` (an ONNX
file, or a config and a checkpoint for PyTorch), ``options`` of ``OnnxDetector``, ``threads``, ``image`` and ``warmup``.
It answers each line of its standard input with one line of JSON.
"""

import importlib.util
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace


def main() -> None:
    """Load the model, then answer ``step``, ``peak`` and ``coco`` until the input ends."""
    task = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # what libraries print is no answer

    def answer(**values) -> None:
        answers.write(json.dumps(values) + '\n')
        answers.flush()

    try:
        spec = importlib.util.spec_from_file_location('run_onnx', task['run_onnx'])
        run_onnx = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(run_onnx)
        image, start = run_onnx.read_image(Path(task['image'])), time.process_time()
        detector = pytorch(*task['model'], task['threads']) if len(task['model']) > 1 else \
            run_onnx.OnnxDetector(*task['model'], threads=task['threads'], **task['options'])
        detector(image)
        answer(start=time.process_time() - start)
        for _ in range(task['warmup']):
            detector(image)
        for line in sys.stdin:
            command, *arguments = json.loads(line)
            if command == 'step':
                cpu, wall = time.process_time(), time.perf_counter()
                detector(image)
                answer(cpu=time.process_time() - cpu, wall=time.perf_counter() - wall)
            elif command == 'peak':
                answer(peak=peak_memory())
            else:
                run_onnx.write_coco_results(detector, *map(Path, arguments))
                answer()
    except Exception as error:  # any: the row shows it
        answer(error=f'{type(error).__name__}: {" ".join(str(error).split())}')


def pytorch(config: str, checkpoint: str, threads: int) -> Callable:
    """Return a detector in PyTorch that is called as an ``OnnxDetector`` is."""
    import torch

    import deit_detr

    torch.set_num_threads(threads or torch.get_num_threads())
    model = deit_detr.load(config, checkpoint, 'cpu')

    class Detector(SimpleNamespace):
        def __call__(self, image):
            found = model(image, score_thr=0).pred_instances
            return tuple(found[name].numpy() for name in ('bboxes', 'scores', 'labels'))

    return Detector(classes=model.classes)


def peak_memory() -> int:
    """Return the most memory that this process has held, in bytes; ``deit_detr.machine`` would import PyTorch."""
    status = Path('/proc/self/status')
    if status.exists():
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if 'VmHWM' in line)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)


if __name__ == '__main__':
    main()
