"""Evaluation by the rules of published numbers, where they are not COCO's."""

from collections.abc import Sequence

import numpy as np
from mmdet.evaluation import CocoMetric
from mmdet.registry import METRICS

from deit_detr.errors import UserError


@METRICS.register_module()
class Pri3DMetric(CocoMetric):
    """Box AP as Pri3D (arXiv 2104.11225) computes it on ScanNet.

    Its Mask R-CNN gives only boxes with scores above 0.5, and its annotation file lists no frame without a box. Both
    change AP: missing low scores end the precision-recall curve early, and boxes on empty frames are not counted as
    false. The other rules, 18 classes and masks of 1000 pixels, are in the annotation file.

    Classes go by name: a model may predict more classes than the file has, as one of 20 does in the protocol of 18,
    and its boxes of the others do not count.

    Args:
        ann_file (str): The annotation file; its classes are among those of the data set.
        score_thr (float): Boxes with this score, in 0..1, or a lower one do not count.
        **kwargs: As for ``CocoMetric``.

    Raises:
        UserError: If the file has a class that the data set has not.
    """

    default_prefix = 'pri3d'

    def __init__(self, ann_file: str, score_thr: float = 0.5, **kwargs) -> None:
        super().__init__(ann_file=ann_file, **kwargs)
        self.ann_file = ann_file
        self.score_thr = score_thr
        self.img_ids = [img_id for img_id in self._coco_api.get_img_ids() if self._coco_api.imgToAnns.get(img_id)]

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Keep the boxes that count, with labels in the order of the file.

        Args:
            data_batch: Not looked at.
            data_samples: Predictions and meta information of each image.
        """
        names = [category['name'] for category in self._coco_api.dataset['categories']]
        classes = self.dataset_meta['classes']
        unknown = [name for name in names if name not in classes]
        if unknown:
            raise UserError(f'{self.ann_file}: has the classes {unknown}, which the data set has not')
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
