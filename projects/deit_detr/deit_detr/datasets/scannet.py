"""ScanNet-frames-25k as mmdet data sets."""

from mmdet.registry import DATASETS

from deit_detr.datasets.checked_coco import CheckedCocoDataset
from deit_detr.errors import UserError
from deit_detr.scannet.classes import SCANNET_CLASSES, scannet_metainfo

CONVERT = (
    'convert with tools/dataset_converters/scannet2coco.py --classes {}, or point the data root of the config at the '
    'converted data (data/README.md)')


@DATASETS.register_module()
class ScanNetDataset(CheckedCocoDataset):
    """ScanNet frames with COCO-style boxes whose category ids are NYU40 ids.

    Args:
        metainfo (dict, optional): ``classes`` has the names of ScanNet classes, which determine ids and colours.
            Default: all 20.

    Raises:
        UserError: As for ``CheckedCocoDataset``, and if category ids differ.
    """

    METAINFO = scannet_metainfo(20)
    HINT = CONVERT.format(20)

    @classmethod
    def _load_metainfo(cls, metainfo: dict | None = None) -> dict:
        metainfo = super()._load_metainfo(metainfo)
        table = {name: (category_id, colour) for name, category_id, colour in SCANNET_CLASSES}
        unknown = [name for name in metainfo['classes'] if name not in table]
        if unknown:
            raise UserError(f'metainfo.classes has {unknown}, which are not ScanNet classes; those are {list(table)}')
        metainfo['category_ids'] = tuple(table[name][0] for name in metainfo['classes'])
        metainfo['palette'] = [table[name][1] for name in metainfo['classes']]
        return metainfo

    def check_categories(self, categories: list[dict]) -> None:
        """Raise UserError if names, ids or order of the file's categories differ from the class table."""
        self._check_same(
            [(category['id'], category['name']) for category in categories],
            list(zip(self.metainfo['category_ids'], self.metainfo['classes'], strict=True)))


@DATASETS.register_module()
class ScanNet18Dataset(ScanNetDataset):
    """ScanNet frames in Pri3D's protocol (arXiv 2104.11225): 18 classes, without wall and floor."""

    METAINFO = scannet_metainfo(18)
    HINT = CONVERT.format(18)
