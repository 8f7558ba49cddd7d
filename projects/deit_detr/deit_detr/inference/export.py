"""Export of a trained detector to an ONNX file, which is checked against PyTorch before it is written."""

import copy
import json
import types
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from mmdet.models import DetDataPreprocessor, DetectionTransformer
from mmdet.visualization import get_palette
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmpretrain.models import VisionTransformer
from torch import Tensor, nn

from deit_detr.config_file import read_config
from deit_detr.errors import UserError
from deit_detr.files import replacing
from deit_detr.inference.detector import Detector, load, quiet
from deit_detr.inference.onnx_operators import GraphOperators, Selection, use_sdpa
from deit_detr.inference.quantize import calibration_images, quantize_dynamic_file, quantize_static_file
from deit_detr.inference.runtimes import NAMES, need, run_file
from deit_detr.models.attention import replace_attention
from deit_detr.models.fast_detr_head import best_detections
from deit_detr.models.preprocessor import FastDataPreprocessor

#: Largest allowed differences between a runtime and PyTorch: of boxes in pixels of the input image, and of scores.
BOX_TOLERANCE, SCORE_TOLERANCE = 0.5, 1e-3
OPSET = 17  # the first with LayerNormalization; 16 brought GridSample
#: (width, height) of the seeded images of the check; the first size is traced, and checked with a batch of two.
CHECKED_SIZES = (320, 240), (201, 303)

_TENSORS = ('images', 'boxes', 'scores', 'labels')


@dataclass
class Exported:
    """The result of :func:`export_onnx`.

    For an int8 or float16 file the differences are those of the float32 file: measure the AP of the one written.

    Attributes:
        megabytes: Size of the file.
        box_difference: Largest difference of a box coordinate from PyTorch in the check, in pixels of the image.
        score_difference: Largest difference of a score, in 0..1.
    """

    megabytes: float
    box_difference: float
    score_difference: float


class OnnxGraph(nn.Module):
    """The module that is exported: it takes pixels and returns detections.

    Args:
        model (DetectionTransformer): The detector; it is copied.
        fused (bool): Whether attention is one operator.
        float16 (bool): Whether the backbone and the transformer compute in float16, where PyTorch's autocast would.
    """

    def __init__(self, model: DetectionTransformer, fused: bool = True, float16: bool = False) -> None:
        super().__init__()
        self.fused, self.float16 = fused, float16
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        replace_attention(self.model)  # in evaluation nn.MultiheadAttention uses an operator that ONNX does not have
        use_sdpa(self.model)
        # this padding uses math.ceil, which tracing would turn into a constant; ECViT's stem has none
        patches = self.model.backbone.patch_embed
        self.patch_size = patches.projection.kernel_size if getattr(patches, 'adaptive_padding', None) else (1, 1)
        patches.adaptive_padding = None
        head = self.model.bbox_head
        self.max_per_img = head.test_cfg.get('max_per_img', model.num_queries)
        # predict() of each head selects the last layer and ends with this call, which would need sizes as numbers
        head.predict_by_feat = lambda logits, boxes, *args, **kwargs: (logits[-1], boxes[-1])

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Detect the objects in a batch of images.

        Args:
            images (Tensor): BGR, resized as in the test pipeline, uint8 ``(batch, height, width, 3)``.

        Returns:
            tuple[Tensor, ...]: Boxes (x1, y1, x2, y2) in pixels of ``images``, ``(batch, detections, 4)``; scores in
            0..1, highest first, and labels, int64, ``(batch, detections)`` each. For a two-stage model also the
            indices of the selected tokens, for the check; its scores are NaN if there are fewer tokens than queries.
        """
        height, width = images.shape[1], images.shape[2]
        preprocessor = self.model.data_preprocessor
        x = images.permute(0, 3, 1, 2)
        if preprocessor._channel_conversion or getattr(preprocessor, 'reverse_channels', False):
            x = x[:, [2, 1, 0]]
        x = (x.float() - preprocessor.mean) / preprocessor.std
        rows, columns = self.patch_size
        missing = ((height + rows - 1) // rows * rows - height, (width + columns - 1) // columns * columns - width)
        x = F.pad(x, (0, missing[1], 0, missing[0]))

        # not a DetDataSample, which copies its values; one is enough for a batch without padding
        samples = [types.SimpleNamespace(
            img_shape=(height, width), batch_input_shape=(height, width), metainfo=dict())]
        # a cache of autocast would make some weights inputs of several Cast nodes
        half = torch.autocast('cpu', torch.float16, enabled=self.float16, cache_enabled=False)
        with GraphOperators(self.fused), Selection() as selection, half:
            head_inputs = self.model.forward_transformer(self.model.extract_feat(x), samples)
        logits, boxes = self.model.bbox_head.predict(**head_inputs, batch_data_samples=samples, rescale=False)
        scores, labels, index = best_detections(self.model.bbox_head, logits, self.max_per_img)
        if selection.short is not None:
            scores = scores.masked_fill(selection.short, torch.nan)
        centres, sides = boxes.gather(1, index[..., None].expand(-1, -1, 4)).split(2, -1)
        # corners first, then the size, as in mmdet
        size = torch.stack([torch.as_tensor(width), torch.as_tensor(height)]).float()
        corners = [((centres + sign * 0.5 * sides) * size).clamp(min=0).minimum(size) for sign in (-1, 1)]
        return torch.cat(corners, -1), scores, labels, *selection.noted


def export_onnx(
    config: str | Path, checkpoint: str | Path, out: str | Path, int8: bool = False, attention: str = 'fused',
    calibrate_with: Iterable[str | Path] = (), check_with: Sequence[str] = ('onnxruntime',),
    progress: Callable[[str], None] = lambda text: None, float16: bool = False,
) -> Exported:
    """Export a trained detector to an ONNX file with dynamic batch, height and width.

    Each runtime is compared with PyTorch on seeded images of two sizes, one of them in a batch of two; the file is
    written only if they agree. Its metadata holds the classes, their colours and the image size.

    Args:
        config: Config file.
        checkpoint: Its checkpoint.
        out: File to write, ``*.onnx``. An existing file is replaced; missing folders are made.
        int8: Whether to store the weights of the linear layers in 8 bits. Their inputs are quantized while the model
            runs (``quantize_dynamic``), or with ranges that are fixed by ``calibrate_with`` (``quantize_static``).
        attention: ``fused``, one operator, or ``plain``, operators of the ONNX standard.
        calibrate_with: For int8, images and folders of images like those of training.
        check_with: Runtimes to compare with PyTorch: some of ``onnxruntime`` and ``openvino``.
        progress: Receives a line before each step that takes long.
        float16: Whether the backbone and the transformer compute in float16 as under PyTorch's autocast, and store
            their weights so; boxes and scores stay float32.

    Returns:
        Exported: Size and differences.

    Raises:
        UserError: If onnx or a runtime is not installed, the model or its test pipeline cannot be exported, the
            result differs from PyTorch in float32, is not finite in another precision, or the file cannot be written.
    """
    out = Path(out)
    need('onnx', *check_with, *(['onnxruntime'] if int8 else []))
    images = calibration_images(calibrate_with) if calibrate_with else []
    if images and not int8:
        raise UserError('--calibrate-with is for --int8')
    if int8 and float16:
        raise UserError('a file is int8 or float16')
    precision = 'int8, calibrated' if images else 'int8' if int8 else 'float16' if float16 else 'float32'
    if out.suffix != '.onnx':
        raise UserError(f'{out}: the name has to end in .onnx')
    cfg = read_config(config)
    if 'model' in cfg:
        cfg.model.pop('compile', None)  # tracing does not support compiled modules
    detector = load(copy.deepcopy(cfg), checkpoint, 'cpu')
    metadata = _metadata(detector, cfg, checkpoint, precision)
    with replacing(out) as part:
        traced = part.with_suffix('.float32.onnx')
        progress('tracing')
        _trace(detector, traced, config, attention == 'fused')
        boxes, scores = _check(detector, traced, out, check_with, progress)
        if precision == 'float32':
            traced.replace(part)
        else:
            progress(f'writing {precision}{f", {len(images)} images" if images else ""}')
            if images:
                quantize_static_file(traced, part, (_pixels(detector, detector.read(image))[None] for image in images))
            elif int8:
                quantize_dynamic_file(traced, part)
            else:
                _trace(detector, part, config, attention == 'fused', float16=True)
            _try(detector, part, out, check_with, float16)
        _finish(part, metadata)
    return Exported(out.stat().st_size / 1e6, boxes, scores)


def _metadata(detector: Detector, cfg: Config, checkpoint: str | Path, precision: str) -> dict[str, str]:
    """Return the metadata of the file; raise UserError for a model or preprocessor that the graph does not support."""
    model = detector.model
    if not isinstance(model, DetectionTransformer) or not isinstance(model.backbone, VisionTransformer):
        raise UserError(
            f'{cfg.filename}: {type(model).__name__} on {type(model.backbone).__name__} cannot be exported: only DETR '
            'and its relatives on a plain vision transformer can')
    preprocessor = model.data_preprocessor
    if type(preprocessor) not in (DetDataPreprocessor, FastDataPreprocessor) or \
            preprocessor.pad_size_divisor != 1 or not preprocessor._enable_normalize:
        raise UserError(
            f'{cfg.filename}: model.data_preprocessor has to be a DetDataPreprocessor or FastDataPreprocessor with '
            'mean, std and pad_size_divisor=1: the graph supports no other')
    palette = detector.visualizer.dataset_meta['palette']
    scale, keep_ratio = _resize(cfg)
    return dict(
        classes=json.dumps(detector.classes),
        palette=json.dumps(np.array(get_palette(palette, len(detector.classes))).tolist()),  # the demo's, if random
        resize_scale=json.dumps(scale),
        keep_ratio=json.dumps(keep_ratio),
        precision=precision,
        config=Path(cfg.filename).name,
        checkpoint=Path(checkpoint).name)


def _resize(cfg: Config) -> tuple[tuple[int, int], bool]:
    """Return scale and keep_ratio of the test pipeline's resize; raise UserError if other steps change pixels."""
    steps = [dict(step) for step in cfg.test_dataloader.dataset.pipeline]
    types = [step.pop('type') for step in steps]
    names = [(kind if isinstance(kind, str) else kind.__name__).rsplit('.', 1)[-1] for kind in types]
    resize = steps[names.index('Resize')] if names.count('Resize') == 1 else {}
    loading = steps[names.index('LoadImageFromFile')] if 'LoadImageFromFile' in names else {}
    if set(names) - {'LoadImageFromFile', 'Resize', 'LoadAnnotations', 'PackDetInputs'} or \
            set(loading) - {'backend_args'} or set(resize) != {'scale', 'keep_ratio'}:
        raise UserError(
            f'{cfg.filename}: the pipeline of test_dataloader.dataset is {" - ".join(names)}: run_onnx.py repeats '
            'LoadImageFromFile and one Resize(scale=(W, H), keep_ratio=...), and nothing else')
    scale = resize['scale']
    return (scale, scale) if isinstance(scale, int) else tuple(scale), bool(resize['keep_ratio'])


def _trace(
    detector: Detector, path: Path, config: str | Path, fused: bool = True, float16: bool = False,
) -> None:
    """Write the traced graph to a file."""
    pixels = _pixels(detector, _scene(*CHECKED_SIZES[0]))
    dynamic = {name: {0: 'batch'} for name in _TENSORS}
    dynamic['images'] = {0: 'batch', 1: 'height', 2: 'width'}
    with quiet(), warnings.catch_warnings(), torch.no_grad():
        # about shapes that may become constants: _check compares two sizes and a batch
        warnings.simplefilter('ignore')
        try:
            # dynamo=True, the newer exporter, also works, but took 25 s instead of 1 s (docs/deploy.md)
            torch.onnx.export(
                OnnxGraph(detector.model, fused, float16), (torch.from_numpy(pixels[None]),), str(path), dynamo=False,
                opset_version=OPSET, input_names=_TENSORS[:1], output_names=_TENSORS[1:], dynamic_axes=dynamic)
        except (torch.onnx.errors.OnnxExporterError, RuntimeError, NotImplementedError) as error:
            raise UserError(
                f'{config}: {type(detector.model).__name__} cannot be exported: '
                f'{str(error).strip().splitlines()[0]}') from error


def _check(
    detector: Detector, path: Path, out: Path, runtimes: Sequence[str], progress: Callable[[str], None],
) -> tuple[float, float]:
    """Return the largest differences of boxes and scores between any runtime and PyTorch."""
    batches = [[_scene(*CHECKED_SIZES[0], seed) for seed in (0, 1)], [_scene(*CHECKED_SIZES[1], 2)]]
    images = [np.stack([_pixels(detector, scene) for scene in scenes]) for scenes in batches]
    largest = np.zeros(2)
    for runtime in runtimes:
        progress(f'running {NAMES[runtime]}')
        found = run_file(path, images, runtime)
        progress(f'comparing {NAMES[runtime]} with PyTorch')
        worst = np.zeros(2)
        for scenes, resized, results in zip(batches, images, found, strict=True):
            factor = [scenes[0].shape[axis] / resized.shape[1 + axis] for axis in (1, 0)] * 2
            for index, (scene, boxes, scores, labels) in enumerate(zip(scenes, *results[:3], strict=True)):
                with Selection(*(torch.from_numpy(tokens[..., index, None, :]) for tokens in results[3:])):
                    apart = compare(detector, scene, boxes * np.float32(factor), scores, labels)
                worst = np.maximum(worst, apart)
        boxes, scores = worst.tolist()
        if not (boxes <= BOX_TOLERANCE and scores <= SCORE_TOLERANCE):
            raise UserError(
                f'{out}: not written: {NAMES[runtime]} and PyTorch disagree on a seeded image, by {boxes:.3g} pixels '
                f'and scores by {scores:.3g} ({BOX_TOLERANCE} and {SCORE_TOLERANCE} are allowed)')
        largest = np.maximum(largest, worst)
    boxes, scores = largest.tolist()
    return boxes, scores


def _try(detector: Detector, path: Path, out: Path, runtimes: Sequence[str], float16: bool) -> None:
    """Raise UserError if a runtime does not run a file of another precision, or a result is not a finite number."""
    pixels = _pixels(detector, _scene(*CHECKED_SIZES[0]))[None]
    found = {NAMES[runtime]: run_file(path, [pixels], runtime)[0][:2] for runtime in runtimes}
    if float16:  # on a CPU, runtimes leave out pairs of conversions, and with them what is too large
        with torch.no_grad():
            found['PyTorch'] = OnnxGraph(detector.model, float16=True)(torch.from_numpy(pixels))[:2]
    for name, tensors in found.items():
        if not all(np.isfinite(np.asarray(tensor)).all() for tensor in tensors):
            raise UserError(
                f'{out}: not written: in {name} its boxes or scores are not finite numbers, though those of the '
                'float32 file are: a value is too large for the precision')


def compare(
    detector: Detector, image: np.ndarray, boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray,
    score_thr: float = 0.3, at_least: int = 10,
) -> tuple[float, float]:
    """Return how much the detections of an exported model differ from PyTorch's.

    Each confident detection of one is compared with the nearest of the same class of the other, in both directions:
    the order of equal scores is arbitrary, and detections at the end of the ranking depend on the last bit.

    Args:
        detector: The detector in PyTorch.
        image: The image, see ``Detector.__call__``.
        boxes: Boxes (x1, y1, x2, y2) of the exported model in pixels of the image, ``(detections, 4)``.
        scores: Their scores in 0..1, ``(detections,)``.
        labels: Their labels, ``(detections,)``.
        score_thr: Minimum score of the detections to compare.
        at_least: Minimum number of detections to compare, even with lower scores.

    Returns:
        tuple[float, float]: The largest difference of a coordinate in pixels, and of a score; infinite if only one of
        the two has detections of a class.
    """
    expected = detector(image, score_thr=0).pred_instances
    a = tuple(expected[name].numpy() for name in ('bboxes', 'scores', 'labels'))
    return difference(a, (boxes, scores, labels), score_thr, at_least)


def difference(
    a: tuple[np.ndarray, ...], b: tuple[np.ndarray, ...], score_thr: float = 0.3, at_least: int = 10,
) -> tuple[float, float]:
    """Return how much two sets of detections (boxes, scores, labels) differ from each other: see :func:`compare`."""
    least = min(score_thr, np.sort(a[1])[-min(at_least, len(a[1]))])
    boxes, scores = np.maximum(_nearest(a, b, least), _nearest(b, a, least)).tolist()
    return boxes, scores


def _nearest(a: tuple[np.ndarray, ...], b: tuple[np.ndarray, ...], least: float) -> np.ndarray:
    worst = np.zeros(2)
    for box, score, label in zip(*a, strict=True):
        if score < least:
            continue
        same = b[2] == label
        if not same.any():
            return np.full(2, np.inf)
        apart = np.stack([np.abs(b[0][same] - box).max(1), np.abs(b[1][same] - score)])
        nearest = (apart.T / (BOX_TOLERANCE, SCORE_TOLERANCE)).max(1).argmin()
        worst = np.maximum(worst, apart[:, nearest])  # keeps NaN, unlike max()
    return worst


def _pixels(detector: Detector, image: np.ndarray) -> np.ndarray:
    """Return the image after the test pipeline, BGR, uint8 ``(height, width, 3)``."""
    inputs = pseudo_collate([detector.pipeline(image)])['inputs'][0]
    return np.ascontiguousarray(inputs.numpy().transpose(1, 2, 0))


def _scene(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Return a seeded image with areas, edges and grain, uint8 ``(height, width, 3)``."""
    generator = np.random.default_rng(seed)
    areas = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    smooth = cv2.resize(areas, (width, height), interpolation=cv2.INTER_CUBIC)
    edges = cv2.resize(areas, (width, height), interpolation=cv2.INTER_NEAREST)
    grain = generator.integers(-12, 13, smooth.shape)
    return (0.5 * smooth + 0.5 * edges + grain).clip(0, 255).astype(np.uint8)


def _finish(path: Path, metadata: dict[str, str]) -> None:
    """Add the metadata, and remove the output that only the check needs."""
    import onnx

    model = onnx.load(path)
    del model.graph.output[len(_TENSORS) - 1:]
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, path)
