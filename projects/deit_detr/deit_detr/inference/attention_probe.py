"""Attention weights of one layer for a few queries, computed from the inputs that hooks catch in a forward pass.

The model may use fused kernels, which never hold the attention matrix.
"""

import copy
import inspect
import math
from contextlib import ExitStack
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from mmcv.cnn.bricks.transformer import MultiheadAttention
from mmcv.ops import MultiScaleDeformableAttention
from mmcv_ops.deformable_attention import as_tensor
from mmdet.models.layers.transformer.utils import ConditionalAttention
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from mmengine.structures import InstanceData
from mmpretrain.models.utils import MultiheadAttention as ViTAttention
from torch import Tensor, nn

from deit_detr.errors import UserError
from deit_detr.inference.detector import Detector, ImageInput
from deit_detr.models.attention import FusedAttention
from deit_detr.models.ec_vit import ECViT, rotate
from deit_detr.models.windowed_vit import WindowedViT


class AttentionProbe:
    """Run a detector on an image, catch the inputs of one attention module, and compute its weights.

    Args:
        detector: The detector.
        image: See :class:`~deit_detr.inference.detector.Detector`.
        module: The attention module of ``detector.model``.
        score_thr: Minimum score of the detections in ``sample``, in 0..1.

    Attributes:
        sample (DetDataSample): The detections.
        grid (tuple[int, int]): Rows and columns of tokens in the (finest) map that the module attends to.
        caught (dict): ``inputs`` of the module by argument name, and outputs of the other hooked modules.

    Raises:
        UserError: If the image cannot be read, or the model does not call the module.
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
            if type(module) is ViTAttention:  # WindowedViT calls the module's layers, not the module
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
            inputs = caught['inputs']
            inputs['spatial_shapes'] = as_tensor(inputs['spatial_shapes'], inputs['query'].device)
            self.grid = tuple(inputs['spatial_shapes'][0].tolist())
        else:
            features = caught['backbone' if 'qkv' in caught else 'neck' if 'neck' in caught else 'backbone'][-1]
            self.grid = tuple(features.shape[-2:])

    def attention(self, queries: list[int]) -> list[dict[str, np.ndarray]]:
        """Return the fields ``weights`` and ``heat``, or ``samples``, of ``Attention`` for each query or token.

        Raises:
            UserError: If the kind of attention is not supported.
        """
        queries = torch.tensor(queries, device=next(self.model.parameters()).device)
        with torch.no_grad():
            if isinstance(self.module, MultiScaleDeformableAttention):
                return [dict(samples=samples) for samples in self._samples(queries)]
            weights = self._weights(queries).unflatten(1, self.grid).float().cpu()
            return [dict(weights=one.numpy(), heat=self.heat(one)) for one in weights]

    def queries_of(self, found: InstanceData) -> list[int]:
        """Return the index of the decoder query behind each detection of ``sample``, found by box and score.

        Raises:
            UserError: If a detection has no such query.
        """
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
        """Return the index of the token that contains a point (x, y), in pixels of the image.

        Raises:
            UserError: If the point lies outside the image.
        """
        height, width = self.sample.ori_shape[:2]
        x, y = point
        if not (0 <= x < width and 0 <= y < height):
            raise UserError(f'point ({x:g}, {y:g}): outside the image, which is {width}x{height}')
        cell = self._cell(self.grid)
        scale_x, scale_y = self.sample.get('scale_factor', (1.0, 1.0))
        row, column = int(y * scale_y / cell), int(x * scale_x / cell)
        return min(row, self.grid[0] - 1) * self.grid[1] + min(column, self.grid[1] - 1)

    def _cell(self, grid: tuple[int, int]) -> float:
        """Return the side of a map's tokens in pixels of the model's input, which the last ones may exceed."""
        patches = getattr(self.model.backbone, 'patch_embed', None)
        cell = float(patches.projection.stride[0] if patches is not None else 1)
        needed = max(size / number for size, number in zip(self.sample.batch_input_shape, grid, strict=True))
        while cell < needed:
            cell *= 2
        while cell / 2 >= needed:
            cell /= 2
        return cell

    def heat(self, weights: Tensor) -> np.ndarray:
        """Interpolate weights of tokens, ``(rows, columns)``, to the pixels of the image, ``(height, width)``."""
        size = [round(number * self._cell(self.grid)) for number in self.grid]
        heat = F.interpolate(weights[None, None], size=size, mode='bilinear')[0, 0]
        height, width = self.sample.img_shape[:2]  # the rest is padding
        heat = heat[:height, :width].numpy()
        height, width = self.sample.ori_shape[:2]
        return cv2.resize(heat, (width, height), interpolation=cv2.INTER_LINEAR)

    def _weights(self, queries: Tensor) -> Tensor:
        """Return the weights of all tokens for some queries, averaged over the heads, ``(queries, tokens)``."""
        if type(self.module) is ViTAttention:
            weights = self._weights_of_vit(queries)
        elif isinstance(self.module, (MultiheadAttention, FusedAttention)):
            weights = _weights_of_multihead(self.module, self.caught['inputs'], queries)
        elif isinstance(self.module, ConditionalAttention):
            weights = weights_of_conditional(self.module, self.caught['inputs'])[queries]
        else:
            raise UserError(f'{type(self.module).__name__}: this kind of attention is not supported')
        if weights.shape[1] != math.prod(self.grid):
            raise UserError(
                f'{type(self.module).__name__}: attends to {weights.shape[1]} tokens, but a map of the image has '
                f'{self.grid[0]}x{self.grid[1]}')
        return weights

    def _weights_of_vit(self, queries: Tensor) -> Tensor:
        """Return the weights of mmpretrain's attention, which may have extra tokens or work in windows."""
        num_tokens = math.prod(self.grid)
        q, k, _ = self.caught['qkv'].unflatten(-1, (3, self.module.num_heads, -1)).unbind(2)
        if isinstance(self.model.backbone, ECViT):
            rotation = self.model.backbone.rotation(self.grid)[:, :, None]
            q, k = rotate(q, rotation), rotate(k, rotation)
        backbone = self.model.backbone
        windows = backbone.windows(self.grid, q.device) if isinstance(backbone, WindowedViT) else None
        if windows and not any(backbone.layers[index].attn is self.module for index in backbone.global_layers):
            q, k = (windows.split(x.flatten(2)).unflatten(-1, x.shape[2:]) for x in (q, k))
            ids = windows.token.view(q.shape[:2])
        elif len(q) == 1 and q.shape[1] - num_tokens in (0, getattr(backbone, 'num_extra_tokens', 0)):
            ids = torch.arange(num_tokens - q.shape[1], num_tokens, device=q.device)[None]  # negative: extra tokens
        else:
            raise UserError(
                f'{type(backbone).__name__}: this layer attends inside groups of tokens, which is not '
                'supported')
        shown = []
        for token in queries:
            group, index = (ids == token).nonzero()[0]
            scores = torch.einsum('hc,nhc->hn', q[group, index], k[group]) * q.shape[-1] ** -0.5
            if windows:
                scores = scores.masked_fill(ids[group] < 0, -torch.inf)
            weights = scores.softmax(-1).mean(0)
            here = ids[group] >= 0
            shown.append(weights.new_zeros(num_tokens).index_put((ids[group][here],), weights[here]))
        return torch.stack(shown)

    def _samples(self, queries: Tensor) -> list[np.ndarray]:
        """Return the sampling points of deformable attention: x, y in pixels of the image, and weight."""
        inputs, module = self.caught['inputs'], self.module
        shapes = inputs['spatial_shapes']
        locations, weights = sampling_points(module, inputs, queries)
        cells = torch.tensor([self._cell(tuple(shape)) for shape in shapes.tolist()], device=shapes.device)
        sizes = shapes.flip(1) * cells[:, None]  # width and height of the maps, in pixels of the model's input
        scale = locations.new_tensor(self.sample.get('scale_factor', (1.0, 1.0)))
        pixels = locations * sizes[:, None] / scale
        samples = torch.cat([pixels, weights[..., None] / module.num_heads], -1).flatten(1, -2)
        return list(samples.float().cpu().numpy())


def _weights_of_multihead(
    module: MultiheadAttention | FusedAttention, inputs: dict[str, Any], queries: Tensor) -> Tensor:
    """Return the weights of mmcv's attention, plain or fused, from the wrapped ``nn.MultiheadAttention``."""
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


def weights_of_conditional(module: ConditionalAttention, inputs: dict[str, Any]) -> Tensor:
    """Return the weights ``(queries, tokens)`` of Conditional and DAB-DETR's attention, whose forward discards them."""
    caught = []

    def keep_weights(**kwargs):
        out, weights = module.forward_attn(**kwargs)
        caught.append(weights)
        return out, weights

    probe = copy.copy(module)
    probe.forward_attn = keep_weights
    probe.forward(**inputs)
    return caught[0][0]


def sampling_points(
    module: MultiScaleDeformableAttention, inputs: dict[str, Any], queries: Tensor) -> tuple[Tensor, Tensor]:
    """Return where deformable attention samples and with which weights, as mmcv's class computes them.

    Args:
        module: The attention.
        inputs: Arguments of its ``forward``, batch first.
        queries: Indices of the queries.

    Returns:
        tuple[Tensor, Tensor]: Locations (x, y) normalized to each map, ``(queries, heads, levels, points, 2)``, and
        weights, ``(queries, heads, levels, points)``, which sum to 1 for each head.
    """
    query = inputs['query'] if inputs['query_pos'] is None else inputs['query'] + inputs['query_pos']
    query, reference = query[0, queries], inputs['reference_points'][0, queries]
    shape = (len(queries), module.num_heads, module.num_levels, module.num_points)
    weights = module.attention_weights(query).unflatten(-1, (module.num_heads, -1)).softmax(-1).view(shape)
    offsets = module.sampling_offsets(query).view(*shape, 2)
    centre, sides = reference[:, None, :, None, :2], reference[:, None, :, None, 2:]
    if sides.shape[-1]:
        return centre + offsets / getattr(module, 'points_of_level', module.num_points) * sides * 0.5, weights
    return centre + offsets / inputs['spatial_shapes'].flip(1)[:, None], weights
