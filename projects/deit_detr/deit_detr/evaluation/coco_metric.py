"""COCO's AP over the images that are evaluated."""

import logging
from collections.abc import Iterable, Sequence

import numpy as np
from mmdet.evaluation import CocoMetric as MMDetCocoMetric
from mmdet.registry import METRICS
from mmengine.fileio import get
from mmengine.logging import print_log

from deit_detr.datasets.checked_coco import IndexedCoco
from deit_detr.datasets.coco_file import parse_annotations

#: pycocotools' AP is that of the best 100 detections of each class in an image, for any ``proposal_nums``.
AP_DETECTIONS = 100
#: mmdet's default of ``proposal_nums``. AP50, AP75, the AP of sizes and of classes count as many as its last number.
PROPOSAL_NUMS = (100, 300, 1000)


def gives_ap(metric: MMDetCocoMetric) -> bool:
    """Return whether ``mAP`` is among the results of a metric and can be computed.

    pycocotools gives an AP of -1 if 100 is not in ``proposal_nums``, and an IndexError for fewer than three numbers.
    """
    asked = {'bbox', 'segm'} & set(metric.metrics) and 'mAP' in (metric.metric_items or ['mAP'])
    return not asked or AP_DETECTIONS in metric.proposal_nums and len(metric.proposal_nums) >= 3


def limits_note(counts: Iterable[int], proposal_nums: Sequence[int]) -> str:
    """Return which AP counts how many detections; '' if that makes no difference.

    Args:
        counts: Number of detections of each class in each image.
        proposal_nums: Those of the metric, at least three.
    """
    more, last = sum(count > AP_DETECTIONS for count in counts), sorted(proposal_nums)[-1]
    return '' if not more or last == AP_DETECTIONS else (
        f'AP counts the best {AP_DETECTIONS} detections of a class in an image; AP50, AP75, AP by size and AP by class '
        f'count {last}: {more} times there are more than {AP_DETECTIONS}')


@METRICS.register_module(force=True)
class CocoMetric(MMDetCocoMetric):
    """mmdet's ``CocoMetric``, over the images that it was given. Configs get this one by the same name.

    mmdet's evaluates all images of the file and counts the boxes of those that were not predicted (``indices`` or
    ``filter_cfg`` of the data set) as missed. It gives no number without any detection, where this one gives 0, and
    cannot read UTF-8 with a byte-order mark. With ``iou_thrs=[0.5]``, pycocotools ends with an IndexError.

    Args:
        ann_file (str, optional): The annotation file. Default: the annotations of the data set.
        sort_categories (bool): Whether to sort the categories of the file by id.
        **kwargs: As for mmdet's.

    Raises:
        UserError: If the annotation file is not a JSON file.
    """

    def __init__(self, ann_file: str | None = None, sort_categories: bool = False, **kwargs) -> None:
        super().__init__(**kwargs)
        self.ann_file = ann_file
        self.iou_thrs = np.atleast_1d(self.iou_thrs)
        if ann_file is not None:
            content = parse_annotations(get(ann_file, backend_args=self.backend_args), ann_file)
            if sort_categories:
                content['categories'].sort(key=lambda category: category['id'])
            self._coco_api = IndexedCoco(content)
        if not gives_ap(self):
            print_log(f'{type(self).__name__}: there is no mAP with proposal_nums {self.proposal_nums}, only with '
                      f'three numbers, {AP_DETECTIONS} among them', logger='current', level=logging.WARNING)

    def images_of_file(self) -> list[int]:
        """Return the ids of the images of the annotation file that count if they were given."""
        return self._coco_api.get_img_ids()

    def compute_metrics(self, results: list[tuple[dict, dict]]) -> dict[str, float]:
        """Compute the metrics.

        Args:
            results: Ground truth and predictions of each image, from ``process``.

        Returns:
            dict: As mmdet's.
        """
        if self._coco_api is not None:
            of_file = set(self.images_of_file())
            self.img_ids = [image for truth, _ in results if (image := truth['img_id']) in of_file]
            different = len(set(self.img_ids))
            if different < len(of_file):
                print_log(f'{self.ann_file}: evaluating {different} of its {len(of_file)} images', logger='current')
            if different < len(self.img_ids):
                print_log(f'{self.ann_file}: {len(self.img_ids) - different} results are of an image that has others; '
                          'the detections of an image count together, and AP is too low', logger='current',
                          level=logging.WARNING)
        if 'bbox' in self.metrics and len(self.proposal_nums) >= 3 and not self.format_only:
            counts = (count for _, found in results for count in np.bincount(found['labels']))
            if note := limits_note(counts, self.proposal_nums):
                print_log(note, logger='current')
        return super().compute_metrics(results)
