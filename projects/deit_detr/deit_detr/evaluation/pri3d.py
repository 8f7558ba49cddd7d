"""Evaluation by Pri3D's rules for ScanNet."""

from collections.abc import Sequence

import numpy as np
from mmdet.registry import METRICS

from deit_detr.errors import UserError
from deit_detr.evaluation.coco_metric import CocoMetric


@METRICS.register_module()
class Pri3DMetric(CocoMetric):
    """Box AP as Pri3D (arXiv 2104.11225) computes it on ScanNet.

    Its Mask R-CNN returns only boxes with scores above 0.5, and its annotation file lists no frame without a box. Both
    change AP: without low scores the precision-recall curve ends early, and boxes on empty frames do not count as
    false positives. The other rules, 18 classes and masks of at least 1000 pixels, are in the annotation file.

    Classes are matched by name: boxes of classes that are not in the file do not count, such as two of a model with 20
    classes in the protocol of 18.

    Args:
        ann_file (str): The annotation file. The data set has to have all its classes.
        score_thr (float): Only boxes with a higher score count, in 0..1.
        **kwargs: As for ``CocoMetric``.

    Raises:
        UserError: If the data set does not have a class of the file.
    """

    default_prefix = 'pri3d'

    def __init__(self, ann_file: str, score_thr: float = 0.5, **kwargs) -> None:
        super().__init__(ann_file=ann_file, **kwargs)
        self.score_thr = score_thr

    def images_of_file(self) -> list[int]:
        """Return the ids of the images with a box."""
        return [image for image in super().images_of_file() if self._coco_api.imgToAnns.get(image)]

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Keep the boxes that count, and map their labels to the classes of the file.

        Args:
            data_batch: Not used.
            data_samples: Predictions and metadata of each image.
        """
        names = [category['name'] for category in self._coco_api.dataset['categories']]
        classes = self.dataset_meta['classes']
        unknown = [name for name in names if name not in classes]
        if unknown:
            raise UserError(f'{self.ann_file}: has the classes {unknown}, which the data set does not have')
        label_of = np.array([names.index(name) if name in names else -1 for name in classes])
        kept = []
        for sample in data_samples:
            boxes = sample['pred_instances']
            labels = boxes['labels'].new_tensor(label_of)[boxes['labels']]
            counts = (boxes['scores'] > self.score_thr) & (labels >= 0)
            boxes = dict(
                bboxes=boxes['bboxes'][counts], scores=boxes['scores'][counts], labels=labels[counts])
            kept.append(dict(sample, pred_instances=boxes))
        super().process(data_batch, kept)
