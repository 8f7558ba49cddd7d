"""EC-DETR's head: boxes as distributions, and the losses of D-FINE and DEIM."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from mmdet.models.layers import inverse_sigmoid
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmdet.utils import InstanceList, reduce_mean
from mmengine.model import bias_init_with_prob
from torch import Tensor, nn

from deit_detr.models.box_ops import ious, to_centres, to_corners
from deit_detr.models.denoising import denoising_matches
from deit_detr.models.distributions import bin_values, mean_distances, move_sides, side_targets
from deit_detr.models.fast_detr_head import FastDETRHead, name_layers
from deit_detr.models.matching import BatchMatches, match_batch

#: Temperature of the distillation between layers (DDF, D-FINE).
TEMPERATURE = 5.0
#: The first layer's boxes are sigmoids of sums of inverse sigmoids of at least this.
EPS = 1e-5
#: Smallest area of a union or hull of normalized boxes.
AREA = 1e-9


@MODELS.register_module()
class MatchabilityAwareLoss(nn.Module):
    """Binary cross entropy whose positive target is a power of the box's IoU (MAL, DEIM, arXiv 2412.04234).

    The target of a matched query and its class is ``iou ** gamma``, with weight 1. All other logits have target 0 and
    weight ``score ** gamma``.

    Args:
        gamma (float): Exponent of the IoU and of the focus on hard negatives.
        loss_weight (float): Factor on the loss.
    """

    use_sigmoid = True

    def __init__(self, gamma: float = 1.5, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.gamma, self.loss_weight = gamma, loss_weight

    def forward(self, logits: Tensor, positives: tuple[Tensor, ...], ious: Tensor) -> Tensor:
        """Compute the loss of each logit, see :class:`~deit_detr.models.lw_detr_head.IoUAwareBCELoss`."""
        negative = logits.detach().sigmoid() ** self.gamma * F.softplus(logits)
        matched = logits[positives]
        return self.loss_weight * negative.index_put(positives, F.softplus(matched) - ious ** self.gamma * matched)


class Targets(NamedTuple):
    """The boxes that the queries learn, ``(images, queries, ...)``.

    Attributes:
        positive (Tensor): bool, whether the query has a box.
        corners (Tensor): The box (x1, y1, x2, y2), normalized, ``(..., 4)``; arbitrary for queries without.
        number (Tensor): Number of boxes by which sums are divided, ``(1,)``.
    """

    positive: Tensor
    corners: Tensor
    number: Tensor


@MODELS.register_module()
class ECDETRHead(FastDETRHead):
    """Head of :class:`~deit_detr.models.ec_detr.ECDETR`: each layer refines distributions of the sides (D-FINE).

    Args:
        *args: As for ``FastDETRHead``; ``loss_cls`` is a ``MatchabilityAwareLoss``.
        num_layers (int): Number of decoder layers.
        bins (int): Intervals of a distribution.
        loss_fgl_weight (float): Factor on the fine-grained localization loss (FGL).
        loss_ddf_weight (float): Factor on the distillation of the last layer into the others (DDF).
        **kwargs: As for ``FastDETRHead``.
    """

    cls_losses = (MatchabilityAwareLoss,)

    def __init__(
        self, *args, num_layers: int = 4, bins: int = 32, loss_fgl_weight: float = 0.15, loss_ddf_weight: float = 1.5,
        **kwargs,
    ) -> None:
        self.num_layers, self.bins = num_layers, bins
        self.loss_fgl_weight, self.loss_ddf_weight = loss_fgl_weight, loss_ddf_weight
        super().__init__(*args, **kwargs)

    def _init_layers(self) -> None:
        self.sync_cls_avg_factor = True
        width, layers = self.embed_dims, range(self.num_layers)
        self.cls_branches = nn.ModuleList(nn.Linear(width, self.cls_out_channels) for _ in layers)
        self.first_branch = mlp(width, width, width, 4)
        self.reg_branches = nn.ModuleList(mlp(width, width, width, 4 * (self.bins + 1)) for _ in layers)
        self.quality_branches = nn.ModuleList(mlp(20, 64, 1) for _ in layers)
        self.register_buffer('values', bin_values(self.bins), persistent=False)

    def init_weights(self) -> None:
        """Initialize so that boxes start at the proposals and scores at 0.01."""
        super().init_weights()
        for branch in self.cls_branches:
            nn.init.constant_(branch.bias, bias_init_with_prob(0.01))
        for branch in (self.first_branch, *self.reg_branches, *self.quality_branches):
            nn.init.zeros_(branch[-1].weight)
            nn.init.zeros_(branch[-1].bias)

    def first_boxes(self, hidden_states: Tensor, boxes: Tensor) -> Tensor:
        """Return the boxes of the first layer ``(..., 4)`` from its states and its input boxes (cx, cy, w, h)."""
        with torch.autocast(boxes.device.type, enabled=False):
            return (self.first_branch(self._cast(hidden_states)) + inverse_sigmoid(boxes, eps=EPS)).sigmoid()

    def sides(
        self, layer: int, hidden_states: Tensor, last_states: Tensor | None = None, last_sides: Tensor | None = None,
    ) -> Tensor:
        """Return the logits of the distances of a layer, ``(..., 4 * (bins + 1))``.

        Args:
            layer (int): Index of the layer.
            hidden_states (Tensor): Its states, ``(..., channels)``.
            last_states (Tensor, optional): Those of the layer before.
            last_sides (Tensor, optional): The result of the layer before.
        """
        with torch.autocast(hidden_states.device.type, enabled=False):
            hidden_states = self._cast(hidden_states)
            if last_states is None:
                return self.reg_branches[layer](hidden_states)
            return self.reg_branches[layer](hidden_states + self._cast(last_states.detach())) + last_sides

    def boxes(self, sides: Tensor, references: Tensor) -> Tensor:
        """Return the boxes (cx, cy, w, h) ``(..., 4)`` of distributions ``(..., 4 * (bins + 1))``."""
        with torch.autocast(sides.device.type, enabled=False):
            return move_sides(references, mean_distances(sides, self.values))

    def _cast(self, x: Tensor) -> Tensor:
        return x.to(self.cls_branches[0].weight.dtype)

    def forward(
        self, hidden_states: Tensor, sides: Tensor, references: Tensor, layers: slice = slice(None), **kwargs,
    ) -> tuple[Tensor, Tensor]:
        """Compute logits and boxes.

        Args:
            hidden_states (Tensor): ``(layers, images, queries, channels)``.
            sides (Tensor): Logits of the distances, ``(layers, images, queries, 4 * (bins + 1))``.
            references (Tensor): The boxes from which they count, ``(images, queries, 4)``.
            layers (slice): Which layers.
            **kwargs: What only :meth:`loss` uses.

        Returns:
            tuple[Tensor, Tensor]: Logits ``(layers, images, queries, classes)`` and normalized boxes (cx, cy, w, h)
            ``(layers, images, queries, 4)``.
        """
        with torch.autocast(hidden_states.device.type, enabled=False):
            # sharp distributions are good boxes
            likely = sides[layers].unflatten(-1, (4, -1)).softmax(-1).topk(4).values
            likely = torch.cat([likely, likely.mean(-1, keepdim=True)], -1).flatten(-2)
            scores = torch.stack([
                branch(x) + quality(y) for branch, quality, x, y in zip(
                    self.cls_branches[layers], self.quality_branches[layers], self._cast(hidden_states[layers]),
                    likely, strict=True)])
        return scores, self.boxes(sides[layers], references)

    def predict(self, batch_data_samples: SampleList, rescale: bool = True, **inputs) -> InstanceList:
        """Return the detections of the last layer, see ``FastDETRHead.predict_by_feat``."""
        scores, boxes = self(**inputs, layers=slice(-1, None))
        return self.predict_by_feat(
            scores, boxes, [sample.metainfo for sample in batch_data_samples], rescale=rescale)

    def loss(
        self, hidden_states: Tensor, sides: Tensor, references: Tensor, first_boxes: Tensor, proposal_scores: Tensor,
        proposal_boxes: Tensor, dn_meta: dict[str, int], batch_data_samples: SampleList,
    ) -> dict[str, Tensor]:
        """Compute the losses of the proposals, the first layer's boxes and all layers, also for denoising queries.

        Classes are learned from each layer's own matches. Boxes are learned from the union of all matches: a query that
        was matched in some layers has, in all layers, the box that it had most often (D-FINE).

        Args:
            hidden_states (Tensor): ``(layers, images, denoising and other queries, channels)``.
            sides (Tensor): As for :meth:`forward`.
            references (Tensor): As for :meth:`forward`.
            first_boxes (Tensor): Boxes of the first layer before refinement, ``(images, queries, 4)``.
            proposal_scores (Tensor): Logits of the selected tokens, ``(images, other queries, classes)``.
            proposal_boxes (Tensor): Their boxes, ``(images, other queries, 4)``.
            dn_meta (dict[str, int]): ``num_denoising_queries`` and ``num_denoising_groups``.
            batch_data_samples (list[DetDataSample]): With ``gt_instances`` and ``img_shape``.

        Returns:
            dict[str, Tensor]: ``loss_cls``, ``loss_bbox``, ``loss_iou`` and ``loss_fgl`` of the last layer. Names of
            the other layers start with ``d0.``, ``d1.`` ...; they have ``loss_ddf`` also. Names of the proposals start
            with ``enc_``, those of the first layer's boxes with ``pre_``, those of denoising queries with ``dn_``.
        """
        scores, boxes = self(hidden_states, sides, references)
        with torch.autocast(boxes.device.type, enabled=False):
            first_scores = self.cls_branches[0](self._cast(hidden_states[0]))
        return self.loss_by_feat(
            torch.cat([first_scores[None], scores]), torch.cat([first_boxes[None], boxes]), sides, references,
            proposal_scores, proposal_boxes, dn_meta, [sample.gt_instances for sample in batch_data_samples],
            [sample.metainfo for sample in batch_data_samples])

    def loss_by_feat(
        self, scores: Tensor, boxes: Tensor, sides: Tensor, references: Tensor, proposal_scores: Tensor,
        proposal_boxes: Tensor, dn_meta: dict[str, int], batch_gt_instances: InstanceList, batch_img_metas: list[dict],
    ) -> dict[str, Tensor]:
        """Compute the losses of :meth:`loss`.

        Args:
            scores (Tensor): Logits of the first layer's boxes and of all layers, ``(1 + layers, images, denoising and
                other queries, classes)``.
            boxes (Tensor): The boxes, ``(1 + layers, images, queries, 4)``.
            sides (Tensor): As for :meth:`loss`, like the following.
            references (Tensor): As for :meth:`loss`.
            proposal_scores (Tensor): As for :meth:`loss`.
            proposal_boxes (Tensor): As for :meth:`loss`.
            dn_meta (dict[str, int]): As for :meth:`loss`.
            batch_gt_instances (list[InstanceData]): As for :func:`~deit_detr.models.matching.match_batch`.
            batch_img_metas (list[dict]): As for ``match_batch``.
        """
        number, groups = dn_meta['num_denoising_queries'], max(1, dn_meta['num_denoising_groups'])
        num_gts = [len(gt) for gt in batch_gt_instances]
        with torch.autocast(boxes.device.type, enabled=False):
            dn_scores, dn_boxes = scores[:, :, :number].float(), boxes[:, :, :number].float()
            scores = torch.cat([proposal_scores[None].float(), scores[:, :, number:].float()])
            boxes = torch.cat([proposal_boxes[None].float(), boxes[:, :, number:].float()])
            matches = match_batch(self.assigner.match_costs, scores, boxes, batch_gt_instances, batch_img_metas)
            average = reduce_mean(boxes.new_full((1,), sum(num_gts))).clamp(min=1)
            targets = union_targets(matches, boxes.shape[1:3])
            balance = torch.stack([targets.positive.sum(), (~targets.positive).sum()]).sqrt()
            losses = self._losses(
                scores, boxes, sides[:, :, number:], references[:, number:], matches, average, targets, balance)
            result = _name(losses, ('enc_', 'pre_'))

            matches = denoising_matches(matches, num_gts, len(dn_scores), dn_meta)
            targets = denoising_targets(matches, dn_boxes.shape[1:3], average * groups)
            losses = self._losses(
                dn_scores, dn_boxes, sides[:, :, :number], references[:, :number], matches, average * groups, targets,
                balance)
            return result | _name(losses, ('dn_pre_',), 'dn_')

    def _losses(
        self, scores: Tensor, boxes: Tensor, sides: Tensor, references: Tensor, matches: BatchMatches, average: Tensor,
        targets: Targets, balance: Tensor,
    ) -> dict[str, Tensor]:
        """Return the losses of each layer; FGL and DDF of those with distributions, which are the last."""
        layer, image, query = matches.index
        expected = matches.gt_boxes[image, matches.gt] / matches.sides[image]
        iou = ious(to_corners(boxes[matches.index]), expected, AREA)[0].detach()
        loss_cls = self.loss_cls(scores, (*matches.index, matches.gt_labels[image, matches.gt]), iou)

        positive, number = targets.positive, targets.number
        loss_bbox = ((boxes - to_centres(targets.corners)).abs() * positive[..., None]).flatten(1).sum(1)
        iou, giou = ious(to_corners(boxes), targets.corners, AREA)
        loss_iou = ((1 - giou) * positive).flatten(1).sum(1)

        iou = iou[-len(sides):].detach()
        logits = sides.unflatten(-1, (4, -1))
        below, above = side_targets(references, targets.corners, self.values)
        index = torch.stack([below, below + 1], -1).expand(*logits.shape[:-1], -1)
        surprise = -logits.log_softmax(-1).gather(-1, index)
        loss_fgl = (surprise * torch.stack([1 - above, above], -1)).sum((-2, -1))
        loss_fgl = (loss_fgl * iou * positive).flatten(1).sum(1)

        teacher = (logits[-1].detach() / TEMPERATURE).softmax(-1)
        student = (logits[:-1] / TEMPERATURE).log_softmax(-1)
        divergence = F.kl_div(student, teacher.expand_as(student), reduction='none').sum((-2, -1))
        trust = torch.where(positive, iou[:-1], scores[-1].detach().sigmoid().amax(-1))
        divergence = divergence * trust * (TEMPERATURE ** 2 / 4)
        means = [
            (divergence * of_kind).flatten(1).sum(1) / of_kind.sum().clamp(min=1) for of_kind in (positive, ~positive)]
        loss_ddf = (torch.stack(means, 1) * balance).sum(1) / balance.sum()
        return {
            'loss_cls': loss_cls.flatten(1).sum(1) / average,
            'loss_bbox': loss_bbox * (self.loss_bbox.loss_weight / number),
            'loss_iou': loss_iou * (self.loss_iou.loss_weight / number),
            'loss_fgl': loss_fgl * (self.loss_fgl_weight / number),
            'loss_ddf': loss_ddf * self.loss_ddf_weight,
        }


def union_targets(matches: BatchMatches, shape: tuple[int, int]) -> Targets:
    """Return the box that most layers assign to each query, for queries that are matched in any layer.

    Args:
        matches (BatchMatches): The matches of all layers.
        shape (tuple[int, int]): Number of images and queries.
    """
    _, image, query = matches.index
    votes = matches.gt.new_zeros(*shape, matches.gt_boxes.shape[1] + 1)
    votes.index_put_((image, query, matches.gt), torch.ones_like(matches.gt), accumulate=True)
    most, gt = votes.max(-1)
    positive = most > 0
    return _targets(matches, gt, positive, reduce_mean(positive.sum()[None].float()).clamp(min=1))


def denoising_targets(matches: BatchMatches, shape: tuple[int, int], number: Tensor) -> Targets:
    """Return the targets of denoising queries.

    Args:
        matches (BatchMatches): As :func:`~deit_detr.models.denoising.denoising_matches` returns them.
        shape (tuple[int, int]): Number of images and queries.
        number (Tensor): Number of boxes by which sums are divided, ``(1,)``.
    """
    _, image, query = matches.index
    gt = matches.gt.new_zeros(shape).index_put((image, query), matches.gt)
    positive = torch.zeros_like(gt, dtype=torch.bool).index_put((image, query), gt.new_ones((), dtype=torch.bool))
    return _targets(matches, gt, positive, number)


def _targets(matches: BatchMatches, gt: Tensor, positive: Tensor, number: Tensor) -> Targets:
    corners = F.pad(matches.gt_boxes / matches.sides[:, None], (0, 0, 0, 1))  # also without a box in the batch
    return Targets(positive, corners.gather(1, gt[..., None].expand(-1, -1, 4)), number)


def _name(losses: dict[str, Tensor], extra: tuple[str, ...], prefix: str = '') -> dict[str, Tensor]:
    """Name the losses of all layers; ``extra`` has the prefixes of the first losses, which belong to no layer."""
    result = {}
    of_layers = {name: loss[len(extra):] if name in ('loss_cls', 'loss_bbox', 'loss_iou') else loss
                 for name, loss in losses.items()}
    distilled = of_layers.pop('loss_ddf').unbind()
    result.update(name_layers(of_layers, prefix))
    result.update({f'd{index}.{prefix}loss_ddf': loss for index, loss in enumerate(distilled)})
    for index, first in enumerate(extra):
        result.update({f'{first}{name}': losses[name][index] for name in ('loss_cls', 'loss_bbox', 'loss_iou')})
    return result


def mlp(*widths: int) -> nn.Sequential:
    """Return linear layers with SiLU between them, from the first of the widths to the last."""
    layers = []
    for before, after in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(before, after), nn.SiLU()]
    return nn.Sequential(*layers[:-1])
