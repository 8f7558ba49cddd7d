"""DINO's denoising queries (arXiv 2203.03605) for all images and groups at once."""

import numpy as np
import torch
from mmdet.models.layers import CdnQueryGenerator, inverse_sigmoid
from mmdet.structures import SampleList
from torch import Tensor

from deit_detr.models.box_ops import to_centres, to_device
from deit_detr.models.matching import BatchMatches


class BatchedCdnQueryGenerator(CdnQueryGenerator):
    """mmdet's ``CdnQueryGenerator`` without loops and without reads of the device: same parameters, same queries.

    The noise is drawn in the order of the plain class, with one difference: a random label is drawn for each query,
    not only for those that get one.
    """

    def __call__(self, batch_data_samples: SampleList) -> tuple[Tensor, Tensor, Tensor, dict[str, int]]:
        """Make the denoising queries of a batch.

        Args:
            batch_data_samples (list[DetDataSample]): With ``gt_instances`` and ``img_shape``.

        Returns:
            tuple: Contents ``(images, queries, channels)``; boxes (cx, cy, w, h) before the sigmoid ``(images, queries,
            4)``; the mask of self-attention, bool, ``(all queries, all queries)``, True where a query must not see
            another; and ``num_denoising_queries`` and ``num_denoising_groups``.
        """
        gts = [sample.gt_instances for sample in batch_data_samples]
        num_gts = [len(gt) for gt in gts]
        most = max(num_gts)
        groups = self.get_num_groups(most)
        num_queries = 2 * groups * most
        device = self.label_embedding.weight.device
        image, gt = image_and_number(num_gts)
        index = to_device(np.stack(np.broadcast_arrays(
            image, gt + most * np.arange(2 * groups)[:, None])).reshape(2, -1), device)
        sides = np.array([sample.img_shape[::-1] * 2 for sample in batch_data_samples], np.float32)[image]

        labels = to_device(torch.cat([gt.labels for gt in gts]), device).repeat(2 * groups)
        is_random = torch.rand_like(labels, dtype=torch.float32) < 0.5 * self.label_noise_scale
        labels = torch.where(is_random, torch.randint_like(labels, self.num_classes), labels)
        boxes = to_device(torch.cat([gt.bboxes for gt in gts]), device) / to_device(sides, device)
        boxes = boxes.repeat(2 * groups, 1)
        sign = 2 * torch.randint_like(boxes, 2) - 1
        noise = torch.rand_like(boxes)
        noise.view(groups, 2, -1, 4)[:, 1] += 1  # every second copy of the boxes is too far away to be right
        noise = sign * noise * (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2) * (self.box_noise_scale / 2)
        boxes = inverse_sigmoid(to_centres((boxes + noise).clamp(min=0, max=1)), eps=1e-3)

        shape = len(gts), num_queries
        contents = boxes.new_zeros(*shape, self.embed_dims).index_put(tuple(index), self.label_embedding(labels))
        boxes = boxes.new_zeros(*shape, 4).index_put(tuple(index), boxes)

        group = torch.arange(num_queries + self.num_matching_queries, device=device)
        is_denoising = group < num_queries
        group = group.div(2 * max(most, 1), rounding_mode='floor').clamp(max=groups)  # the last are matched queries
        mask = (group[:, None] != group) & is_denoising
        return contents, boxes, mask, dict(num_denoising_queries=num_queries, num_denoising_groups=groups)


def denoising_matches(
    matches: BatchMatches, num_gts: list[int], num_layers: int, dn_meta: dict[str, int]) -> BatchMatches:
    """Return which denoising queries have which boxes: the first half of each group, in order.

    Args:
        matches (BatchMatches): Those of the other queries, for their ground truth.
        num_gts (list[int]): Number of boxes of each image.
        num_layers (int): Number of decoder layers.
        dn_meta (dict[str, int]): As :class:`BatchedCdnQueryGenerator` returns it.
    """
    groups = dn_meta['num_denoising_groups']
    image, gt = image_and_number(num_gts)
    query = gt + dn_meta['num_denoising_queries'] // groups * np.arange(groups)[:, None]
    layer = np.arange(num_layers)[:, None, None]
    index = np.stack(np.broadcast_arrays(layer, image, query, gt)).reshape(4, -1)
    *index, gt = to_device(index, matches.gt.device)
    return matches._replace(index=tuple(index), gt=gt, num_per_layer=groups * sum(num_gts))


def image_and_number(num_gts: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the image and the number inside it of each box of a batch, int64 ``(boxes,)`` each."""
    image = np.repeat(np.arange(len(num_gts)), num_gts)
    return image, np.arange(len(image)) - np.repeat(np.cumsum(num_gts) - num_gts, num_gts)
