"""Batches of noise, to try or time a model without data."""

import torch
from mmdet.structures import DetDataSample
from mmengine.dataset import pseudo_collate
from mmengine.structures import InstanceData


def make_batch(batch: int, size: tuple[int, int], boxes: int, padded: bool = False, num_classes: int = 20) -> dict:
    """Return a batch of noise images with random boxes, as a data loader does; it is the same in each call.

    Args:
        batch: Number of images.
        size: Height and width of the images, in pixels.
        boxes: Number of boxes in an image.
        padded: Whether every second image is 64 pixels shorter and 32 narrower, so that it will be padded.
        num_classes: Number of classes.

    Returns:
        dict: ``inputs``, uint8 images ``(3, height, width)``, and ``data_samples``.
    """
    generator = torch.Generator().manual_seed(0)
    items = []
    for index in range(batch):
        height, width = (size[0] - 64, size[1] - 32) if padded and index % 2 else size
        corners = torch.rand(boxes, 2, 2, generator=generator).sort(dim=1).values.flatten(1)
        sample = DetDataSample(
            metainfo=dict(
                img_shape=(height, width), ori_shape=(height, width), scale_factor=(1.0, 1.0), img_id=0),
            gt_instances=InstanceData(
                bboxes=corners * torch.tensor([width, height, width, height]),
                labels=torch.randint(0, num_classes, (boxes,), generator=generator)))
        image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
        items.append(dict(inputs=image, data_samples=sample))
    return pseudo_collate(items)
