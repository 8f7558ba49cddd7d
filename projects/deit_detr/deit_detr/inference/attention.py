"""Where a detector looks: its attention over an image, as in the figures of DETR (arXiv 2005.12872).

Nothing of the attention is kept while the model runs. The inputs of the one layer asked for are caught by hooks, and
the weights of the few queries asked for are computed from them afterwards. So it makes no difference whether the model
itself uses a fused kernel, and the whole matrix is never there.
"""

import copy
import inspect
import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from mmcv.cnn.bricks.transformer import MultiheadAttention
from mmcv.ops import MultiScaleDeformableAttention
from mmdet.models.layers.transformer.utils import ConditionalAttention
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from mmpretrain.models.utils import MultiheadAttention as ViTAttention
from PIL import Image
from torch import Tensor, nn

from deit_detr.errors import UserError
from deit_detr.inference.detector import Detector, ImageInput
from deit_detr.models.attention import FusedAttention
from deit_detr.models.windowed_vit import WindowedViT, Windows


@dataclass(frozen=True)
class Attention:
    """What one query attends to, its heads averaged.

    Attributes:
        title (str): The query: class and score of a detection, or the point.
        weights (np.ndarray, optional): float32, ``(rows, columns)``: the weight of each token of the image, together 1
            but for tokens that are not part of the image. None for deformable attention.
        heat (np.ndarray, optional): float32, ``(height, width)`` of the image: the weight of the token at each pixel,
            bilinear between tokens. None for deformable attention.
        samples (np.ndarray, optional): float32, ``(samples, 3)``: x, y in pixels and the weight of each sampling point
            of deformable attention; all weights together are 1. None for others.
        box (np.ndarray, optional): The detection, x1, y1, x2, y2 in pixels.
        point (tuple[float, float], optional): The point, x, y in pixels.
        colour (tuple[float, float, float]): RGB in 0..1, of the detection's class.
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
    """The decoder's attention over the image, for each confident detection.

    Args:
        detector: From :func:`deit_detr.load`.
        image: See :class:`~deit_detr.inference.detector.Detector`.
        score_thr: Least score of a detection, in 0..1.
        layer: Decoder layer; -1 is the last.
        max_detections: So many of the best.

    Returns:
        list[Attention]: Best detection first; empty when nothing is that confident.

    Raises:
        UserError: If the image cannot be read, or the model has no such layer or an unknown kind of attention.
    """
    module = _layer(detector, 'decoder', layer).cross_attn
    run = _Run(detector, image, module, score_thr)
    found = run.sample.pred_instances[:max_detections]
    if not len(found):
        return []
    queries = run.queries_of(found)
    palette = detector.visualizer.dataset_meta['palette']
    palette = palette if isinstance(palette, list) else [(255, 255, 255)] * len(detector.classes)
    return [
        Attention(
            title=f'{found.label_names[i]} {found.scores[i]:.2f}', box=found.bboxes[i].numpy(),
            colour=tuple(value / 255 for value in palette[found.labels[i]]), **shown)
        for i, shown in enumerate(run.attention(queries))
    ]


def self_attention(
    detector: Detector, image: ImageInput, points: Sequence[tuple[float, float]], part: str = 'encoder',
    layer: int = -1,
) -> list[Attention]:
    """What points of the image attend to, in the encoder or in the backbone.

    Args:
        detector: From :func:`deit_detr.load`.
        image: See :class:`~deit_detr.inference.detector.Detector`.
        points: x, y of each point, in pixels of the image.
        part: ``'encoder'``, or ``'backbone'`` for a vision transformer.
        layer: The part's layer; -1 is the last.

    Returns:
        list[Attention]: One for each point.

    Raises:
        UserError: If the image cannot be read, a point lies outside, or the model has no such layer or an unknown kind
            of attention.
    """
    owner = _layer(detector, part, layer)
    module = owner.self_attn if part == 'encoder' else owner.attn
    run = _Run(detector, image, module)
    tokens = [run.token_at(point) for point in points]
    return [
        Attention(title=f'({x:g}, {y:g})', point=(x, y), **shown)
        for (x, y), shown in zip(points, run.attention(tokens), strict=True)
    ]


def draw_attention(detector: Detector, image: ImageInput, attentions: Sequence[Attention]) -> Image.Image:
    """One picture of the image and, beside it, what was attended to.

    Args:
        detector: The detector that ``attentions`` are of.
        image: The image that they are of.
        attentions: From :func:`cross_attention` or :func:`self_attention`.

    Returns:
        Image.Image: RGB, a panel of about 480 pixels for the image and for each query.
    """
    picture = detector.read(image)[..., ::-1]
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
        raise UserError(f"part {part!r}: it is 'encoder' or 'backbone'")
    layers = getattr(getattr(detector.model, part, None), 'layers', None)
    if not layers or not hasattr(layers[0], attention):
        raise UserError(f'{type(detector.model).__name__}: its {part} has no layers with attention to be shown')
    if not -len(layers) <= layer < len(layers):
        raise UserError(f'layer {layer}: the {part} has {len(layers)} layers, 0 to {len(layers) - 1}')
    return layers[layer]


class _Run:
    """One forward pass, and what is needed of it.

    Args:
        detector: The detector.
        image: The image.
        module: The attention module whose inputs are caught.
        score_thr: Least score of the detections in ``sample``.
    """

    def __init__(self, detector: Detector, image: ImageInput, module: nn.Module, score_thr: float = 0.0) -> None:
        self.model, self.module = detector.model, module
        caught: dict[str, Any] = {}

        def keep_inputs(_, args, kwargs):
            arguments = inspect.signature(module.forward).bind(*args, **kwargs)
            arguments.apply_defaults()
            caught['inputs'] = arguments.arguments

        def keep_output(name):
            return lambda _module, _inputs, output: caught.update({name: output})

        with ExitStack() as stack:
            def watch(handle):
                stack.callback(handle.remove)

            # a compiled model would not see the hooks
            stack.enter_context(torch.compiler.set_stance('force_eager'))
            watch(module.register_forward_pre_hook(keep_inputs, with_kwargs=True))
            if type(module) is ViTAttention:  # WindowedViT calls its layers alone, not the module
                watch(module.qkv.register_forward_hook(keep_output('qkv')))
            watch(self.model.backbone.register_forward_hook(keep_output('backbone')))
            watch(self.model.bbox_head.register_forward_hook(keep_output('head')))
            if self.model.with_neck:
                watch(self.model.neck.register_forward_hook(keep_output('neck')))
            self.sample: DetDataSample = detector(image, score_thr=score_thr)
        self.caught = caught
        if 'inputs' not in caught and 'qkv' not in caught:
            raise UserError(f'{type(module).__name__}: the model does not call it')
        if isinstance(module, MultiScaleDeformableAttention):
            self.grid = tuple(caught['inputs']['spatial_shapes'][0].tolist())
        else:
            features = caught['backbone' if 'qkv' in caught else 'neck' if 'neck' in caught else 'backbone'][-1]
            self.grid = tuple(features.shape[-2:])

    def attention(self, queries: list[int]) -> list[dict[str, np.ndarray]]:
        """``weights`` and ``heat``, or ``samples``, of each query, see :class:`Attention`."""
        queries = torch.tensor(queries, device=next(self.model.parameters()).device)
        with torch.no_grad():
            if isinstance(self.module, MultiScaleDeformableAttention):
                return [dict(samples=samples) for samples in self._samples(queries)]
            weights = self._weights(queries).unflatten(1, self.grid).float().cpu()
            return [dict(weights=one.numpy(), heat=self._heat(one)) for one in weights]

    def queries_of(self, found: Any) -> list[int]:
        """The decoder query behind each detection: the one with its box and its score."""
        scores, boxes = (output[-1][0].float().cpu() for output in self.caught['head'][:2])
        height, width = self.sample.img_shape[:2]
        boxes = bbox_cxcywh_to_xyxy(boxes) * boxes.new_tensor([width, height] * 2)
        boxes[:, 0::2].clamp_(0, width)
        boxes[:, 1::2].clamp_(0, height)
        boxes /= boxes.new_tensor(self.sample.get('scale_factor', (1.0, 1.0))).repeat(2)
        sigmoid = getattr(self.model.bbox_head.loss_cls, 'use_sigmoid', True)
        scores = scores.sigmoid() if sigmoid else scores.softmax(-1)
        distance = torch.cdist(found.bboxes, boxes, p=1) + (found.scores[:, None] - scores[:, found.labels].T).abs()
        nearest, queries = distance.min(1)
        if nearest.max() > 0.1:
            raise UserError(
                f'{type(self.model.bbox_head).__name__}: its detections cannot be traced to the decoder queries')
        return queries.tolist()

    def token_at(self, point: tuple[float, float]) -> int:
        """The token, row by row in the finest map, that has a point of the image in it."""
        height, width = self.sample.ori_shape[:2]
        x, y = point
        if not (0 <= x < width and 0 <= y < height):
            raise UserError(f'point ({x:g}, {y:g}): outside the image, which is {width}x{height}')
        cell = self._cell(self.grid)
        scale_x, scale_y = self.sample.get('scale_factor', (1.0, 1.0))
        row, column = int(y * scale_y / cell), int(x * scale_x / cell)
        return min(row, self.grid[0] - 1) * self.grid[1] + min(column, self.grid[1] - 1)

    def _cell(self, grid: tuple[int, int]) -> float:
        """Side of a token of a map, in pixels of the model's input. The last row and column may reach beyond it."""
        patches = getattr(self.model.backbone, 'patch_embed', None)
        cell = float(patches.projection.stride[0] if patches is not None else 1)
        needed = max(size / number for size, number in zip(self.sample.batch_input_shape, grid, strict=True))
        while cell < needed:
            cell *= 2
        while cell / 2 >= needed:
            cell /= 2
        return cell

    def _heat(self, weights: Tensor) -> np.ndarray:
        """From one weight a token, ``(rows, columns)``, to one a pixel of the image."""
        size = [round(number * self._cell(self.grid)) for number in self.grid]
        heat = F.interpolate(weights[None, None], size=size, mode='bilinear')[0, 0]
        height, width = self.sample.img_shape[:2]  # the rest is padding
        heat = heat[:height, :width].numpy()
        height, width = self.sample.ori_shape[:2]
        return cv2.resize(heat, (width, height), interpolation=cv2.INTER_LINEAR)

    def _weights(self, queries: Tensor) -> Tensor:
        """Weights of all tokens for some queries, ``(queries, tokens)``, heads averaged."""
        if type(self.module) is ViTAttention:
            weights = self._weights_of_vit(queries)
        elif isinstance(self.module, (MultiheadAttention, FusedAttention)):
            weights = _weights_of_multihead(self.module, self.caught['inputs'], queries)
        elif isinstance(self.module, ConditionalAttention):
            weights = _weights_of_conditional(self.module, self.caught['inputs'])[queries]
        else:
            raise UserError(f'{type(self.module).__name__}: a kind of attention that is not known here')
        if weights.shape[1] != math.prod(self.grid):
            raise UserError(
                f'{type(self.module).__name__}: attends to {weights.shape[1]} tokens, which are not the '
                f'{self.grid[0]}x{self.grid[1]} of one map of the image')
        return weights

    def _weights_of_vit(self, queries: Tensor) -> Tensor:
        """Of mmpretrain's attention, among whose tokens may be extra ones, or which may lie in windows."""
        num_tokens = math.prod(self.grid)
        q, k, _ = self.caught['qkv'].unflatten(-1, (3, self.module.num_heads, -1)).unbind(2)
        if isinstance(self.model.backbone, WindowedViT):
            windows = Windows(self.grid, self.model.backbone.window_size, q.device)
            ids = windows.split(torch.arange(1, num_tokens + 1, device=q.device).view(1, *self.grid, 1)) - 1
            ids = ids.view(q.shape[:2])
        elif len(q) == 1 and q.shape[1] - num_tokens in (0, getattr(self.model.backbone, 'num_extra_tokens', 0)):
            ids = torch.arange(num_tokens - q.shape[1], num_tokens, device=q.device)[None]  # negative: no place
        else:
            raise UserError(
                f'{type(self.model.backbone).__name__}: this layer attends inside groups of tokens whose places are '
                'not known here')
        shown = []
        for token in queries:
            group, index = (ids == token).nonzero()[0]
            scores = torch.einsum('hc,nhc->hn', q[group, index], k[group]) * q.shape[-1] ** -0.5
            if isinstance(self.model.backbone, WindowedViT):
                scores = scores.masked_fill(ids[group] < 0, -torch.inf)
            weights = scores.softmax(-1).mean(0)
            here = ids[group] >= 0
            shown.append(weights.new_zeros(num_tokens).index_put((ids[group][here],), weights[here]))
        return torch.stack(shown)

    def _samples(self, queries: Tensor) -> list[np.ndarray]:
        """Sampling points of deformable attention: x, y in pixels of the image, weight."""
        inputs, module = self.caught['inputs'], self.module
        shapes = inputs['spatial_shapes']
        locations, weights = _sampling_points(module, inputs, queries)
        cells = torch.tensor([self._cell(tuple(shape)) for shape in shapes.tolist()], device=shapes.device)
        sizes = shapes.flip(1) * cells[:, None]  # width and height of the maps, in pixels of the model's input
        scale = locations.new_tensor(self.sample.get('scale_factor', (1.0, 1.0)))
        pixels = locations * sizes[:, None] / scale
        samples = torch.cat([pixels, weights[..., None] / module.num_heads], -1).flatten(1, -2)
        return list(samples.float().cpu().numpy())


def _weights_of_multihead(
    module: MultiheadAttention | FusedAttention, inputs: dict[str, Any], queries: Tensor) -> Tensor:
    """Of mmcv's attention, plain or fused: positions are added as there, and the wrapped module does the rest."""
    query, query_pos, key_pos = inputs['query'], inputs['query_pos'], inputs['key_pos']
    key = query if inputs['key'] is None else inputs['key']
    if key_pos is None and query_pos is not None and query_pos.shape == key.shape:
        key_pos = query_pos
    query = (query if query_pos is None else query + query_pos)[:, queries]
    key = key if key_pos is None else key + key_pos
    mask = inputs['attn_mask']
    if not module.attn.batch_first:
        query, key = query.transpose(0, 1), key.transpose(0, 1)
    return module.attn(
        query, key, key, key_padding_mask=inputs['key_padding_mask'],
        attn_mask=None if mask is None else mask[..., queries, :])[1][0]


def _weights_of_conditional(module: ConditionalAttention, inputs: dict[str, Any]) -> Tensor:
    """Of Conditional and DAB-DETR's attention, which computes the weights and drops them."""
    caught = []

    def keep_weights(**kwargs):
        out, weights = module.forward_attn(**kwargs)
        caught.append(weights)
        return out, weights

    probe = copy.copy(module)
    probe.forward_attn = keep_weights
    probe.forward(**inputs)
    return caught[0][0]


def _sampling_points(
    module: MultiScaleDeformableAttention, inputs: dict[str, Any], queries: Tensor) -> tuple[Tensor, Tensor]:
    """Where and how much deformable attention samples, as mmcv's ``MultiScaleDeformableAttention`` computes it.

    Args:
        module: The attention.
        inputs: What it was called with, batch first.
        queries: Which of its queries.

    Returns:
        tuple[Tensor, Tensor]: Locations (x, y) as shares of each map, ``(queries, heads, levels, points, 2)``, and
        weights, ``(queries, heads, levels, points)``, whose sum is 1 for each head.
    """
    query = inputs['query'] if inputs['query_pos'] is None else inputs['query'] + inputs['query_pos']
    query, reference = query[0, queries], inputs['reference_points'][0, queries]
    shape = (len(queries), module.num_heads, module.num_levels, module.num_points)
    weights = module.attention_weights(query).unflatten(-1, (module.num_heads, -1)).softmax(-1).view(shape)
    offsets = module.sampling_offsets(query).view(*shape, 2)
    centre, sides = reference[:, None, :, None, :2], reference[:, None, :, None, 2:]
    if sides.shape[-1]:
        return centre + offsets / module.num_points * sides * 0.5, weights
    return centre + offsets / inputs['spatial_shapes'].flip(1)[:, None], weights
