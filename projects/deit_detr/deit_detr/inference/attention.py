"""Attention maps of a detector over an image, as in the figures of DETR (arXiv 2005.12872)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from torch import nn

from deit_detr.errors import UserError
from deit_detr.fonts import class_names_drawn
from deit_detr.inference.attention_probe import AttentionProbe
from deit_detr.inference.detector import Detector, ImageInput


@dataclass(frozen=True)
class Attention:
    """The attention of one query, averaged over the heads.

    Attributes:
        title (str): The query: class and score of a detection, or the point.
        weights (np.ndarray, optional): Weight of each token of the image, float32 ``(rows, columns)``. They sum to 1
            unless the query also attends to extra tokens. None for deformable attention.
        heat (np.ndarray, optional): The weights interpolated to each pixel of the image, float32 ``(height, width)``.
            None for deformable attention.
        samples (np.ndarray, optional): x, y in pixels and weight of each sampling point of deformable attention,
            float32 ``(samples, 3)``; the weights sum to 1. None for other attention.
        box (np.ndarray, optional): The detection, (x1, y1, x2, y2) in pixels.
        point (tuple[float, float], optional): The point, (x, y) in pixels.
        colour (tuple[float, float, float]): Colour of the detection's class, RGB in 0..1.
    """

    title: str
    weights: np.ndarray | None = None
    heat: np.ndarray | None = None
    samples: np.ndarray | None = None
    box: np.ndarray | None = None
    point: tuple[float, float] | None = None
    colour: tuple[float, float, float] = (1.0, 1.0, 1.0)


def cross_attention(
    detector: Detector, image: ImageInput, score_thr: float = 0.3, layer: int = -1, max_detections: int = 8,
) -> list[Attention]:
    """Return the decoder's attention over the image for each confident detection.

    Args:
        detector: From :func:`deit_detr.load`.
        image: See :class:`~deit_detr.inference.detector.Detector`.
        score_thr: Minimum score of a detection, in 0..1.
        layer: Decoder layer; -1 is the last.
        max_detections: Maximum number of detections.

    Returns:
        list[Attention]: Highest score first; empty if no detection reaches ``score_thr``.

    Raises:
        UserError: If the image cannot be read, or the model has no such layer or an unknown kind of attention.
    """
    module = _layer(detector, 'decoder', layer).cross_attn
    probe = AttentionProbe(detector, image, module, score_thr)
    found = probe.sample.pred_instances[:max_detections]
    if not len(found):
        return []
    queries = probe.queries_of(found)
    palette = detector.visualizer.dataset_meta['palette']
    palette = palette if isinstance(palette, list) else [(255, 255, 255)] * len(detector.classes)
    return [
        Attention(
            title=f'{found.label_names[i]} {found.scores[i]:.2f}', box=found.bboxes[i].numpy(),
            colour=tuple(value / 255 for value in palette[found.labels[i]]), **shown)
        for i, shown in enumerate(probe.attention(queries))
    ]


def self_attention(
    detector: Detector, image: ImageInput, points: Sequence[tuple[float, float]], part: str = 'encoder',
    layer: int = -1,
) -> list[Attention]:
    """Return what points of the image attend to, in the encoder or in the backbone.

    Args:
        detector: From :func:`deit_detr.load`.
        image: See :class:`~deit_detr.inference.detector.Detector`.
        points: (x, y) of each point, in pixels of the image.
        part: ``'encoder'``, also if it is the neck, or ``'backbone'`` for a vision transformer.
        layer: Layer of the part; -1 is the last.

    Returns:
        list[Attention]: One for each point.

    Raises:
        UserError: If the image cannot be read, a point lies outside, or the model has no such layer or an unknown kind
            of attention.
    """
    owner = _layer(detector, part, layer)
    module = owner.self_attn if part == 'encoder' else owner.attn
    probe = AttentionProbe(detector, image, module)
    tokens = [probe.token_at(point) for point in points]
    return [
        Attention(title=f'({x:g}, {y:g})', point=(x, y), **shown)
        for (x, y), shown in zip(points, probe.attention(tokens), strict=True)
    ]


def draw_attention(detector: Detector, image: ImageInput, attentions: Sequence[Attention]) -> Image.Image:
    """Draw the image and, beside it, a panel for each query.

    Args:
        detector: The detector that computed ``attentions``.
        image: The image that it was called on.
        attentions: From :func:`cross_attention` or :func:`self_attention`.

    Returns:
        Image.Image: RGB; each panel is about 480 pixels wide.
    """
    with class_names_drawn(detector.classes):
        return _draw(detector.read(image)[..., ::-1], attentions)


def _draw(picture: np.ndarray, attentions: Sequence[Attention]) -> Image.Image:
    height, width = picture.shape[:2]
    number = len(attentions) + 1
    columns = number if number <= 4 else math.ceil(math.sqrt(number))
    rows = math.ceil(number / columns)
    side = 4.8 / max(height, width)  # of a pixel, in inches
    # rounded: Matplotlib 3.10, the last for Python 3.10, cuts 1439.9999 pixels down to 1439
    size = round(columns * max(width * side, 2), 6), round(rows * (height * side + 0.35), 6)
    figure = Figure(figsize=size, dpi=100)
    axes = figure.subplots(rows, columns, squeeze=False, gridspec_kw=dict(
        left=0.005, right=0.995, bottom=0.005, top=1 - 0.3 / figure.get_figheight(), wspace=0.02,
        hspace=0.32 / (height * side))).flat
    for axis in axes:
        axis.axis('off')
    axes[0].imshow(picture)
    axes[0].set_title('image', fontsize=12)
    grey = cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2GRAY)
    for axis, attention in zip(axes[1:], attentions, strict=False):
        axis.set_title(attention.title, fontsize=12)
        axis.imshow(grey, cmap='gray', vmin=0, vmax=510)  # half as bright: the colours are the attention
        if attention.heat is not None:
            share = attention.heat / (attention.heat.max() or 1)
            axis.imshow(share, cmap='inferno', vmin=0, vmax=1, alpha=np.sqrt(share))
        if attention.samples is not None:
            x, y, weight = attention.samples[attention.samples[:, 2].argsort()].T  # the heaviest on top
            share = weight / (weight.max() or 1)
            axis.scatter(x, y, s=5 + 45 * share, c=share, cmap='inferno', vmin=-0.4, vmax=1, linewidths=0)
        for target in (axes[0], axis):
            if attention.box is not None:
                x1, y1, x2, y2 = attention.box
                target.add_patch(Rectangle(
                    (x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=attention.colour, linewidth=1.5))
            if attention.point is not None:
                target.plot(*attention.point, 'o', fillstyle='none', color='white', markersize=11, markeredgewidth=4)
                target.plot(*attention.point, 'o', fillstyle='none', color='red', markersize=11, markeredgewidth=2)
    for axis in axes:
        axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])


def _layer(detector: Detector, part: str, layer: int) -> nn.Module:
    attention = dict(decoder='cross_attn', encoder='self_attn', backbone='attn').get(part)
    if attention is None:
        raise UserError(f"part {part!r}: has to be 'encoder' or 'backbone'")
    owner = getattr(detector.model, part, None)
    if owner is None and part == 'encoder':
        owner = getattr(detector.model, 'neck', None)  # HybridEncoder
    layers = getattr(owner, 'layers', None)
    if not layers or not hasattr(layers[0], attention):
        raise UserError(f'{type(detector.model).__name__}: its {part} has no layers whose attention can be shown')
    if not -len(layers) <= layer < len(layers):
        raise UserError(f'layer {layer}: the {part} has {len(layers)} layers, 0 to {len(layers) - 1}')
    return layers[layer]
