"""ScanNet-frames-25k as an mmdet data set."""

from mmdet.datasets import CocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmdet.registry import DATASETS
from mmengine.fileio import exists
from mmengine.logging import print_log

from deit_detr.datasets.scannet_classes import SCANNET_CLASSES, scannet_metainfo
from deit_detr.errors import UserError


@DATASETS.register_module()
class ScanNetDataset(CocoDataset):
    """ScanNet frames with COCO-style boxes, category ids being NYU40 ids.

    mmdet's ``CocoDataset`` drops classes that it does not find in the annotation file and numbers the rest in
    the file's order, so that one misspelt name shifts every later label without a word. This class compares
    names, order and ids with its meta information first.

    Args:
        metainfo (dict, optional): ``classes`` selects a protocol other than the 20 classes, by names of the
            ScanNet table; ids and colours follow from the names.

    Raises:
        UserError: If the annotation file is missing, or if its categories differ from the meta information.
    """

    METAINFO = scannet_metainfo(20)

    @classmethod
    def _load_metainfo(cls, metainfo: dict | None = None) -> dict:
        metainfo = super()._load_metainfo(metainfo)
        table = {name: (category_id, colour) for name, category_id, colour in SCANNET_CLASSES}
        unknown = [name for name in metainfo['classes'] if name not in table]
        if unknown:
            raise UserError(f'metainfo.classes has {unknown}, which ScanNet has not; its classes: {list(table)}')
        metainfo['category_ids'] = tuple(table[name][0] for name in metainfo['classes'])
        metainfo['palette'] = [table[name][1] for name in metainfo['classes']]
        return metainfo

    def COCOAPI(self, ann_file: str) -> COCO:  # noqa: N802 - CocoDataset opens its annotation file by this name
        """Open an annotation file and check its categories before anything is numbered by them."""
        coco = COCO(ann_file)
        found = [(category['id'], category['name']) for category in coco.dataset.get('categories', [])]
        expected = list(zip(self.metainfo['category_ids'], self.metainfo['classes'], strict=True))
        if found != expected:
            missing = [row for row in expected if row not in found]
            extra = [row for row in found if row not in expected]
            what = f'missing {missing}, unexpected {extra}' if missing or extra else f'other order: {found}'
            raise UserError(
                f'{self.ann_file}: field "categories" differs from the {len(expected)} classes of the config '
                f'({what}). Convert with tools/dataset_converters/scannet2coco.py --classes {len(expected)}, or set '
                'metainfo.classes of train, val and test to what the file holds')
        return coco

    def load_data_list(self) -> list[dict]:
        """Load the annotation file.

        Returns:
            list[dict]: One entry a frame, as ``CocoDataset`` gives it.
        """
        if not exists(self.ann_file, backend_args=self.backend_args):
            raise UserError(
                f'{self.ann_file}: no such annotation file. Make it with tools/dataset_converters/scannet2coco.py, '
                'or point the data root of the config (MMDET_DATASETS) at the converted data')
        return super().load_data_list()

    def filter_data(self) -> list[dict]:
        """Leave out what ``filter_cfg`` asks for in training, and say how many frames that is."""
        kept = super().filter_data()
        dropped = len(self.data_list) - len(kept)
        if dropped:
            print_log(
                f'{self.ann_file}: {dropped} of {len(self.data_list)} frames left out of training '
                f'(no box, or smaller than {self.filter_cfg.get("min_size", 0)} px)',
                logger='current')
        return kept
