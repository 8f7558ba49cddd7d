"""COCO-format data sets that check their annotation files."""

import logging
from collections import Counter
from pathlib import Path

import numpy as np
from mmdet.datasets import CocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmdet.registry import DATASETS
from mmdet.visualization.palette import get_palette
from mmengine.fileio import exists
from mmengine.logging import print_log
from pycocotools.coco import COCO as PlainCOCO  # noqa: N811

from deit_detr.datasets.augmentation import Augmentation
from deit_detr.datasets.coco_file import BOX_FORMAT, FIXES, NO_AREA, reaches_beyond, read_annotations, why_unused
from deit_detr.errors import UserError


class IndexedCoco(COCO):
    """mmdet's ``COCO`` of annotations that have been read.

    Args:
        content: The content of a COCO file.
    """

    def __init__(self, content: dict) -> None:
        super().__init__()
        self.dataset = content
        self.createIndex()
        self.img_ann_map, self.cat_img_map = self.imgToAnns, self.catToImgs  # as COCO(ann_file) sets them

    def loadRes(self, resFile: str | list | np.ndarray) -> PlainCOCO:  # noqa: N802, N803 - as pycocotools
        """Return an index of detections; pycocotools fails if there is none."""
        if isinstance(resFile, list) and not resFile:
            return IndexedCoco(dict(self.dataset, annotations=[]))
        return super().loadRes(resFile)


@DATASETS.register_module()
class CheckedCocoDataset(CocoDataset):
    """mmdet's ``CocoDataset`` that raises an error for annotation files which mmdet would silently misread.

    ``CocoDataset`` drops classes that are not in the annotation file and numbers the others in the file's order: a
    misspelt name or another order shifts the labels. It drops boxes of unknown categories and images, and pycocotools
    interprets the annotation id 0 as "no match".

    Args:
        metainfo (dict, optional): ``classes`` has the names of all categories of the file, in the file's order.
            Default: COCO's 80.
        augment (dict, optional): Arguments of :class:`~deit_detr.datasets.augmentation.Augmentation`, for training.

    Raises:
        UserError: If the annotation file or its first image is missing, the file would be misread, or none of its
            boxes can be used.
    """

    #: The fix for a missing file or other categories, for error messages.
    HINT = 'set data_root, ann_file and metainfo.classes of the train, val and test data to match your files'

    def __init__(self, *args, augment: dict | None = None, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if augment:
            Augmentation(self, **augment)

    @classmethod
    def _load_metainfo(cls, metainfo: dict | None = None) -> dict:
        metainfo = super()._load_metainfo(metainfo)
        classes = metainfo['classes']
        if isinstance(classes, str):
            raise UserError(f"metainfo.classes is the text '{classes}'; one class needs a comma: ('{classes}',)")
        if len(metainfo['palette']) < len(classes):
            metainfo['palette'] = [tuple(map(int, colour)) for colour in get_palette('random', len(classes))]
        return metainfo

    def COCOAPI(self, ann_file: str) -> COCO:  # noqa: N802 - CocoDataset opens its annotation file by this name
        """Open an annotation file and check it."""
        content = read_annotations(Path(ann_file), self.ann_file)
        self.check_categories(content['categories'])
        self._check_boxes(content)
        return IndexedCoco(content)

    def check_categories(self, categories: list[dict]) -> None:
        """Raise UserError if the file's categories and the classes of the config differ in names or order."""
        self._check_same([category['name'] for category in categories], list(self.metainfo['classes']))

    def _check_same(self, found: list, expected: list) -> None:
        if found != expected:
            missing = [item for item in expected if item not in found]
            extra = [item for item in found if item not in expected]
            what = f'missing {missing}, unexpected {extra}' if missing or extra else f'other order: {found}'
            raise UserError(
                f'{self.ann_file}: field "categories" differs from the {len(expected)} classes of the config '
                f'({what}); {self.HINT}')

    def load_data_list(self) -> list[dict]:
        """Load the annotation file.

        Returns:
            list[dict]: One entry for each image, as ``CocoDataset`` returns it.
        """
        if not exists(self.ann_file, backend_args=self.backend_args):
            raise UserError(f'{self.ann_file}: no such annotation file; {self.HINT}')
        data_list = super().load_data_list()
        if data_list and not exists(data_list[0]['img_path'], backend_args=self.backend_args):
            raise UserError(
                f'{data_list[0]["img_path"]}: no such image. Its path is made of data_root and data_prefix.img of the '
                f'config and the field "file_name" of {self.ann_file}')
        return data_list

    def _check_boxes(self, content: dict) -> None:
        images = {image['id']: image for image in content['images']}
        rows = [(row, images[row['image_id']]) for row in content.get('annotations', [])]
        reasons = Counter(why_unused(*row) for row in rows)
        usable = reasons.pop('', 0)
        shown = ', '.join(f'{count} {reason}' for reason, count in reasons.most_common())
        fixes = '; '.join(dict.fromkeys(FIXES[reason] for reason in reasons))
        if rows and not usable:
            raise UserError(f'{self.ann_file}: none of {len(rows)} boxes can be used: {shown}; {fixes}')
        if reasons:
            print_log(f'{self.ann_file}: {len(rows) - usable} of {len(rows)} boxes left out: {shown}',
                      logger='current', level=logging.WARNING if NO_AREA in reasons else logging.INFO)
        beyond = sum(reaches_beyond(*row) and not why_unused(*row) for row in rows)
        if beyond:
            print_log(f'{self.ann_file}: {beyond} of {len(rows)} boxes reach beyond their image; {BOX_FORMAT}',
                      logger='current', level=logging.WARNING)

    def filter_data(self) -> list[dict]:
        """Filter the training images by ``filter_cfg``, and log how many are left out."""
        kept = super().filter_data()
        if not kept:
            raise UserError(
                f'{self.ann_file}: none of its {len(self.data_list)} images can be used: they have no box or are '
                'smaller than filter_cfg.min_size')
        dropped = len(self.data_list) - len(kept)
        if dropped:
            print_log(
                f'{self.ann_file}: {dropped} of {len(self.data_list)} images left out of training '
                f'(no box, or smaller than {self.filter_cfg.get("min_size", 0)} px)',
                logger='current')
        return kept
