#!/usr/bin/env python
"""Detect objects with an exported model; this file needs only NumPy, OpenCV, and onnxruntime or openvino.

Everything about the model is read from the model file. Images are resized by OpenCV, as in training and evaluation:
bilinear filters of other libraries give different pixels, and thus different boxes.

Examples:
    pip install onnxruntime numpy opencv-python-headless
    python tools/deployment/run_onnx.py model.onnx room.jpg other.jpg --out-dir found
    pip install openvino  # in place of onnxruntime: faster on most CPUs, see docs/deploy.md
    python tools/deployment/run_onnx.py model.onnx room.jpg --runtime openvino --precision bfloat16
    # to measure AP: an annotation file in COCO format, and the folder that its file names are relative to
    python tools/deployment/run_onnx.py model.onnx data/val --ann-file data/val.json --coco-json results.bbox.json

From Python, with this file on the path:

    from run_onnx import OnnxDetector
    boxes, scores, labels = OnnxDetector('model.onnx')(cv2.imread('room.jpg'))
"""

import argparse
import functools
import json
import os
import re
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np

#: What can run the file, the execution providers of ONNX Runtime, and OpenVINO's names of precisions.
RUNTIMES = 'onnxruntime', 'openvino'
PROVIDERS = dict(cpu='CPUExecutionProvider', cuda='CUDAExecutionProvider', tensorrt='TensorrtExecutionProvider')
PRECISIONS = dict(float32='f32', bfloat16='bf16')
#: Default folder of compiled models, of OpenVINO and TensorRT.
CACHE_DIR = Path('~/.cache/run_onnx')
#: Largest ratio of the sides of an image, as in ``demo.py``.
MAX_ASPECT = 20


class InputError(ValueError):
    """Bad input; the message names the file and what is wrong with it."""


def onnxruntime_session(path: str, threads: int, provider: str, cache_dir: Path | None):
    """Open a file in ONNX Runtime; see :class:`OnnxDetector`."""
    import onnxruntime

    available = onnxruntime.get_available_providers()
    if PROVIDERS[provider] not in available:
        raise InputError(f'--provider {provider}: this onnxruntime only has {", ".join(available)}; others are in '
                         'onnxruntime-gpu, installed without onnxruntime beside it')
    names = list(PROVIDERS)[: list(PROVIDERS).index(provider) + 1][::-1]  # what one cannot run, the next one runs
    options = dict(cpu={}, cuda=dict(use_tf32='0'), tensorrt={} if cache_dir is None else dict(
        trt_engine_cache_enable='True', trt_engine_cache_path=str(cache_dir)))
    if provider != 'cpu' and hasattr(onnxruntime, 'preload_dlls'):
        onnxruntime.preload_dlls()  # of CUDA, from NVIDIA's packages in this environment
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.log_severity_level = 4  # errors are raised as exceptions
    session = onnxruntime.InferenceSession(
        path, settings, providers=[(PROVIDERS[name], options[name]) for name in names])
    if session.get_providers()[0] != PROVIDERS[provider]:  # it goes on without a word
        raise InputError(f'--provider {provider}: ONNX Runtime cannot load it: CUDA, cuDNN or TensorRT is missing')
    return session


@functools.cache
def openvino_core():
    """Return OpenVINO's ``Core``, one for the process: after several were released, a signal (Ctrl-C) may crash it."""
    sys.modules.setdefault('openvino_telemetry', None)  # or this import sends usage data to its makers
    import openvino

    return openvino.Core()


class OpenVinoSession:
    """A file in OpenVINO on the CPU, with the methods of ONNX Runtime's session; see :class:`OnnxDetector`.

    The first shape that is run gets a model of its own, which takes about 3/4 of the time of one of any shape. All
    other shapes share one of the latter kind.
    """

    def __init__(self, path: str, threads: int, precision: str, cache_dir: Path | None) -> None:
        self.core, self.path, self.models = openvino_core(), path, {}
        if precision == 'bfloat16' and 'BF16' not in self.core.get_property('CPU', 'OPTIMIZATION_CAPABILITIES'):
            raise InputError('--precision bfloat16: this CPU cannot compute in it')
        # unless told otherwise, OpenVINO computes in bfloat16 where the CPU can
        self.options = dict(INFERENCE_PRECISION_HINT=PRECISIONS[precision], PERFORMANCE_HINT='LATENCY')
        self.options |= dict(INFERENCE_NUM_THREADS=threads) if threads else {}
        self.options |= {} if cache_dir is None else dict(CACHE_DIR=str(cache_dir))
        information = self.core.read_model(path).rt_info
        self.metadata = {key: value.astype(str) for key, value in information['framework'].items()} \
            if 'framework' in information else {}

    def get_modelmeta(self) -> SimpleNamespace:
        """Return the metadata of the file."""
        return SimpleNamespace(custom_metadata_map=self.metadata)

    def run(self, _, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Return all outputs for ``images``, uint8 ``(batch, height, width, 3)``."""
        images = inputs['images']
        shape = images.shape if not self.models or images.shape in self.models else None
        if shape not in self.models:
            model = self.core.read_model(self.path)
            if shape is not None:
                model.reshape(list(shape))
            self.models[shape] = self.core.compile_model(model, 'CPU', self.options)
        results = self.models[shape](images)
        return [results[index].copy() for index in range(len(results))]


class OnnxDetector:
    """A detector from an ONNX file written by ``export_onnx.py``.

    Args:
        path: The file.
        threads: CPU threads; 0 lets the runtime choose.
        runtime: ``onnxruntime`` or ``openvino``.
        precision: ``float32``, or ``bfloat16`` for OpenVINO on a CPU that has it: faster, and other boxes.
        provider: ``cpu``, or for ONNX Runtime ``cuda`` or ``tensorrt``.
        cache_dir: Folder for the compiled models of OpenVINO and TensorRT, which later starts load; it is made.

    Attributes:
        classes: Class names in label order.
        colours: (red, green, blue) of each class, in 0..255.

    Raises:
        InputError: If the file cannot be used, or the runtime, provider or precision is not there.
    """

    def __init__(
        self, path: str | Path, threads: int = 0, runtime: str = RUNTIMES[0], precision: str = 'float32',
        provider: str = 'cpu', cache_dir: str | Path | None = None,
    ) -> None:
        if not Path(path).is_file():
            raise InputError(f'{path}: no such model file')
        if threads < 0:
            raise InputError(f'threads must be 0 or more, not {threads}')
        if runtime == 'openvino' and provider != 'cpu':
            raise InputError(f'--provider {provider} is for --runtime onnxruntime')
        if runtime == 'onnxruntime' and precision != 'float32':
            raise InputError(f'--precision {precision} is for --runtime openvino alone')
        if cache_dir is not None:
            cache_dir = Path(cache_dir).expanduser()
            try:
                cache_dir.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(f'{cache_dir}: cannot be written ({error.strerror}): see --cache-dir') from error
        try:
            self.session = onnxruntime_session(str(path), threads, provider, cache_dir) if runtime == 'onnxruntime' \
                else OpenVinoSession(str(path), threads, precision, cache_dir)
            metadata = self.session.get_modelmeta().custom_metadata_map
            self.classes = json.loads(metadata['classes'])
            palette = json.loads(metadata['palette'])
            self.resize_scale = json.loads(metadata['resize_scale'])
            self.keep_ratio = json.loads(metadata.get('keep_ratio', 'true'))  # older files always keep it
            random = np.random.default_rng(0).integers(0, 256, (len(self.classes), 3))
            self.colours = [tuple(map(int, colour)) for colour in (random if palette is None else palette)]
        except InputError:
            raise
        except ImportError as error:
            raise InputError(f'{error}: pip install {runtime}') from error
        except KeyError as error:
            raise InputError(f'{path}: has no {error} in its metadata: it was not written by export_onnx.py') from error
        except Exception as error:  # the runtimes' exceptions have no common base class
            raise InputError(f'{path}: cannot be loaded ({" ".join(str(error).split())})') from error

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Detect objects.

        Args:
            image: BGR, uint8 ``(height, width, 3)``.

        Returns:
            tuple: ``boxes`` (x1, y1, x2, y2) in pixels of the image, float32 ``(detections, 4)``; ``scores`` in 0..1,
            highest first, and ``labels``, ``(detections,)`` each.

        Raises:
            InputError: If the model cannot run on an image of this shape.
        """
        height, width = image.shape[:2]
        if max(height, width) > MAX_ASPECT * min(height, width):
            raise InputError(f'{width}x{height} pixels: one side is more than {MAX_ASPECT} times the other, which is '
                             'too narrow after resizing. Cut the image into pieces')
        resized = self.resize(image)
        shapes = f'{width}x{height} pixels become {resized.shape[1]}x{resized.shape[0]}'
        try:
            boxes, scores, labels = (result[0] for result in self.session.run(None, {'images': resized[None]}))
        except Exception as error:  # as above
            raise InputError(
                f'{shapes}, on which the model does not run: {" ".join(str(error).split())}') from error
        if np.isnan(scores).any():
            raise InputError(f'{shapes}: fewer patches than the model has queries. Cut the image into pieces')
        factor = np.array([resized.shape[1] / width, resized.shape[0] / height] * 2, np.float32)
        return boxes / factor, scores, labels

    def resize(self, image: np.ndarray) -> np.ndarray:
        """Resize as in the test pipeline: to ``resize_scale``, or to the largest size inside of the image's ratio."""
        height, width = image.shape[:2]
        size = tuple(self.resize_scale)
        if self.keep_ratio:
            scale = min(max(size) / max(height, width), min(size) / min(height, width))
            size = int(width * scale + 0.5), int(height * scale + 0.5)
        return cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)

    def draw(self, image: np.ndarray, boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Return a copy of the image with boxes, names and scores."""
        image = image.copy()
        thickness = max(1, round(max(image.shape) / 500))
        size = max(0.4, max(image.shape) / 1600)
        for box, score, label in list(zip(boxes, scores, labels, strict=True))[::-1]:  # the highest score on top
            left, top, right, bottom = (int(round(float(value))) for value in box)
            colour = self.colours[label][::-1]
            cv2.rectangle(image, (left, top), (right, bottom), colour, thickness)
            text = f'{self.classes[label]} {score:.2f}'
            (width, height), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, 1)
            base = max(top, height + below)
            cv2.rectangle(image, (left, base - height - below), (left + width, base), colour, -1)
            dark = sum(colour) < 384
            cv2.putText(image, text, (left, base - below // 2), cv2.FONT_HERSHEY_SIMPLEX, size,
                        (255, 255, 255) if dark else (0, 0, 0), 1, cv2.LINE_AA)
        return image


def read_image(path: Path) -> np.ndarray:
    """Read an image file, see :func:`decode_image`.

    Raises:
        InputError: If it cannot be read.
    """
    if not path.is_file():
        raise InputError(f'{path}: {"is not an image file" if path.exists() else "no such image file"}')
    return decode_image(np.fromfile(path, np.uint8), str(path))


def decode_image(data: np.ndarray, name: str) -> np.ndarray:
    """Decode the bytes of an image file to BGR, uint8, as evaluation and ``demo.py`` do.

    It is rotated by its EXIF orientation and loses its transparency.

    Args:
        data: The bytes, uint8.
        name: Name for messages.

    Raises:
        InputError: If it cannot be read, its pixels do not fit into 8 bits a channel, or it is a transparent TIFF.
    """
    head = data[:200].tobytes()
    is_tiff = head.startswith((b'II', b'MM'))

    def decode(flags: int) -> np.ndarray:
        try:
            image = cv2.imdecode(data, flags)
        except cv2.error:  # for an empty file
            image = None
        if image is None:
            raise InputError(f'{name}: cannot be read as an image')
        return image

    # of TIFFs, OpenCV turns neither floating-point numbers nor 32-bit integers into colours
    image = decode(cv2.IMREAD_UNCHANGED if is_tiff else cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    brightest = re.match(rb'P[2356](?:\s+(?:#[^\n]*\n\s*)*(\d+)){3}\s', head)  # of PPM and PGM
    if image.dtype != np.uint8 or brightest and brightest[1] not in (b'1', b'255'):
        raise InputError(
            f'{name}: its pixels are {image.dtype}{f" up to {int(brightest[1])}" if brightest else ""}, not 0 to '
            "255 in each channel. Convert all images alike, e.g. for 12 bits cv2.imwrite('new.png', (cv2.imread("
            "'old.png', cv2.IMREAD_UNCHANGED) / 4095 * 255).astype('uint8'))")
    if is_tiff:
        if image.ndim == 3 and image.shape[2] == 4 and image[..., 3].min() < 255:
            raise InputError(f'{name}: a TIFF with transparency, by which OpenCV multiplies its colours: save it '
                             'without, or as PNG')
        image = decode(cv2.IMREAD_COLOR)
    return image


def picture_names(paths: Iterable[Path]) -> dict[Path, Path]:
    """Return a name for the picture of each image: its path below the innermost folder that all are in.

    ``color`` is left out of ScanNet's ``SCENE/color/NAME.jpg``.
    """
    files = {path: Path(os.path.abspath(path)) for path in paths}
    folder = Path(os.path.commonpath([file.parent for file in files.values()]))
    folder = folder.parent.parent if folder.name == 'color' else folder  # there is one scene
    names = {path: file.relative_to(folder) for path, file in files.items()}
    short = {path: name.parent.parent / name.name if name.parent.name == 'color' else name
             for path, name in names.items()}
    return short if len(set(short.values())) == len(set(names.values())) else names


def detect(detector: OnnxDetector, path: Path) -> tuple:
    """Return the image of a file, its boxes, scores and labels."""
    image = read_image(path)
    try:
        return (image, *detector(image))
    except InputError as error:
        raise InputError(f'{path}: {error}') from error


def show(detector: OnnxDetector, paths: list, score_thr: float, out_dir: Path | None) -> None:
    """Print the detections of each image, and draw them into ``out_dir``, in the folders of the images."""
    inputs = {path.resolve() for path in paths}
    for path, name in picture_names(paths).items():
        start = time.perf_counter()
        image, *found = detect(detector, path)
        milliseconds = 1000 * (time.perf_counter() - start)
        boxes, scores, labels = (values[found[1] >= score_thr] for values in found)
        print(f'{path}: {len(boxes)} objects, {milliseconds:.0f} ms')
        for box, score, label in zip(boxes, scores, labels, strict=True):
            print(f'  {detector.classes[label]} {score:.3f} at {", ".join(f"{value:.1f}" for value in box)}')
        if out_dir is not None:
            out = out_dir / name
            if out.resolve() in inputs:
                raise InputError(f'{out}: would be overwritten. Choose another --out-dir')
            try:
                out.parent.mkdir(parents=True, exist_ok=True)
                written = cv2.imwrite(str(out), detector.draw(image, boxes, scores, labels))
            except (OSError, cv2.error):  # OpenCV's if the suffix is not that of a picture
                written = False
            if not written:
                raise InputError(f'{out}: cannot be written')


def write_coco_results(detector: OnnxDetector, root: Path, ann_file: Path, out: Path) -> None:
    """Detect objects in each image of an annotation file, and write a COCO results file."""
    try:
        annotations = json.loads(ann_file.read_text(encoding='utf-8-sig'))
        ids = {category['name']: category['id'] for category in annotations['categories']}
        images = [(image['id'], root / image['file_name']) for image in annotations['images']]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f'{ann_file}: cannot be read as annotations in COCO format ({error})') from error
    missing = [name for name in detector.classes if name not in ids]
    if missing:
        raise InputError(f'{ann_file}: has no categories for the classes {missing} of the model')
    if out.is_dir():
        raise InputError(f'{out}: is a folder')
    results, seconds = [], 0.0
    for number, (image_id, path) in enumerate(images, 1):
        start = time.perf_counter()
        try:
            _, boxes, scores, labels = detect(detector, path)
        except InputError:
            print()  # below the progress
            raise
        seconds += time.perf_counter() - start
        for (left, top, right, bottom), score, label in zip(boxes.tolist(), scores.tolist(), labels, strict=True):
            results.append(dict(image_id=image_id, category_id=ids[detector.classes[label]], score=score,
                                bbox=[left, top, right - left, bottom - top]))
        print(f'\r{number} of {len(images)} images, {1000 * seconds / number:.0f} ms each', end='', flush=True)
    temporary = out.with_name(f'.{out.name}.{os.getpid()}.tmp')
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(results), encoding='utf-8')
        temporary.replace(out)
    except OSError as error:
        raise InputError(f'{out}: cannot be written ({error.strerror})') from error
    finally:
        temporary.unlink(missing_ok=True)
    print(f'\n{out}: {len(results)} boxes')


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('model', type=Path, help='file written by export_onnx.py')
    parser.add_argument('images', nargs='+', type=Path, help='image files, or the folder of the images of --ann-file')
    parser.add_argument('--out-dir', type=Path, help='folder for pictures of the detections, one per image')
    parser.add_argument('--score-thr', type=float, default=0.3, help='minimum score, 0 to 1 (default: 0.3)')
    parser.add_argument('--threads', type=int, default=0, help="CPU threads (default: the runtime's choice)")
    parser.add_argument('--runtime', choices=RUNTIMES, default=RUNTIMES[0], help=f'(default: {RUNTIMES[0]})')
    parser.add_argument(
        '--precision', choices=PRECISIONS, default='float32',
        help='of --runtime openvino (default: float32); bfloat16 is faster where the CPU has it, and moves boxes')
    parser.add_argument(
        '--provider', choices=PROVIDERS, default='cpu',
        help='of --runtime onnxruntime (default: cpu); the others need onnxruntime-gpu')
    parser.add_argument(
        '--cache-dir', default=str(CACHE_DIR),
        help=f"folder for the compiled models of OpenVINO and TensorRT (default: {CACHE_DIR}; '' keeps none)")
    parser.add_argument('--ann-file', type=Path, help='annotations in COCO format; detect objects in their images')
    parser.add_argument('--coco-json', type=Path, help='COCO results file to write, with all scores')
    args = parser.parse_args()
    if (args.ann_file is None) != (args.coco_json is None):
        parser.error('--ann-file and --coco-json need each other')
    if args.ann_file is not None and len(args.images) != 1:
        parser.error('with --ann-file, give the one folder that its file names are relative to')
    return args


def main() -> None:
    """Load the model and detect objects."""
    args = parse_args()
    compiles = args.runtime == 'openvino' or args.provider == 'tensorrt'
    detector = OnnxDetector(
        args.model, args.threads, args.runtime, args.precision, args.provider,
        (args.cache_dir or None) if compiles else None)
    if args.ann_file is not None:
        write_coco_results(detector, args.images[0], args.ann_file, args.coco_json)
    else:
        show(detector, args.images, args.score_thr, args.out_dir)


if __name__ == '__main__':
    try:
        main()
    except InputError as error:
        print(f'error: {error}', file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print('\ninterrupted', file=sys.stderr)
        sys.exit(130)
