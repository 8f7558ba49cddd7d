"""Images and boxes from the data loader to the device, without a wait for each."""

from collections.abc import Mapping, Sequence

import torch
from mmdet.models import DetDataPreprocessor
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import BaseBoxes
from torch import Tensor

from deit_detr.models.box_ops import to_device


@MODELS.register_module()
class FastDataPreprocessor(DetDataPreprocessor):
    """mmdet's ``DetDataPreprocessor`` with the same results, for a batch of equal sizes as one tensor.

    mmdet normalizes one image after another, and reorders the channels of each with an index that it copies to the
    device and waits for, and copies the boxes of one image after another. Here those of all images are one copy. With
    ``non_blocking=True`` and ``pin_memory=True`` in the data loader, the host waits for none.

    Args:
        *args: As for ``DetDataPreprocessor``.
        **kwargs: As for ``DetDataPreprocessor``.

    Attributes:
        reverse_channels (bool): Whether images change between RGB and BGR here.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.reverse_channels, self._channel_conversion = self._channel_conversion, False

    def cast_data(self, data: dict) -> dict:
        """Copy a batch to the device, reverse its channels, and stack images of equal size.

        Args:
            data (dict): ``inputs``, tensors ``(channels, height, width)`` or one with a batch dimension, and other
                fields.

        Returns:
            dict: The same fields on the device.
        """
        if _are_samples_with_boxes(data):
            return _copy_boxes(data, self.device)
        data = super().cast_data(data)
        if not isinstance(data, Mapping) or 'inputs' not in data:
            return data  # mmengine calls this for each part of a batch
        images = data['inputs']
        if isinstance(images, Sequence) and len({image.shape for image in images}) == 1 and len(images[0]) == 3:
            images = torch.stack(images)  # other channels stay a list, in which mmengine checks them
        if self.reverse_channels:
            images = images.flip(-3) if isinstance(images, Tensor) else [image.flip(-3) for image in images]
        return dict(data, inputs=images)


def _are_samples_with_boxes(data: object) -> bool:
    """Return whether these are samples with boxes and labels, and without masks or other fields."""
    return isinstance(data, list) and bool(data) and all(
        isinstance(sample, DetDataSample) and {'gt_instances'} <= set(sample.keys()) <= {
            'gt_instances', 'ignored_instances'} and all(
                set(instances.keys()) == {'bboxes', 'labels'} for instances in sample.values())
        for sample in data)


def _copy_boxes(samples: list[DetDataSample], device: torch.device) -> list[DetDataSample]:
    """Return the samples with boxes and labels on a device, in one copy of all boxes and one of all labels."""
    samples = [sample.new() for sample in samples]
    places = [(sample, name) for sample in samples for name in sample.keys()]  # noqa: SIM118 - a sample has no __iter__
    instances = [getattr(sample, name).new() for sample, name in places]
    sizes = [len(one.labels) for one in instances]
    boxes = [one.bboxes.tensor if isinstance(one.bboxes, BaseBoxes) else one.bboxes for one in instances]
    boxes, labels = (
        to_device(torch.cat(parts), device).split(sizes) for parts in (boxes, [one.labels for one in instances]))
    for (sample, name), one, its_boxes, its_labels in zip(places, instances, boxes, labels, strict=True):
        one.bboxes = type(one.bboxes)(its_boxes, clone=False) if isinstance(one.bboxes, BaseBoxes) else its_boxes
        one.labels = its_labels
        setattr(sample, name, one)
    return samples
