"""Images of more than 8 bits a channel: each tool that loads images names them, and none makes them dark."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import CocoDataset
from mmengine.runner import BaseLoop
from PIL import Image

from deit_detr.engine.start import class_check
from deit_detr.engine.start.data import check_data
from deit_detr.engine.start.depth import find_deep_images
from deit_detr.engine.start.findings import FAIL, OK
from deit_detr.errors import UserError
from deit_detr.images import ImageFileError, open_image
from deit_detr.pages.data_page import make_data_page
from deit_detr.pages.html import picture
from deit_detr.scannet.frames import read_png
from tests.helpers.drawn_coco import draw_coco
from tests.helpers.odd_depths import DEEP, EIGHT, FLAT, NOISE, encode


@pytest.fixture
def data(tmp_path):
    """A data set whose first image can be replaced, and the function that builds it with a loading step."""
    draw_coco(tmp_path / 'val.json', tmp_path / 'val', [dict(id=1, name='cup')])

    def data(content: bytes, **loading) -> CocoDataset:
        (tmp_path / 'val/000000000000.jpg').write_bytes(content)
        return CocoDataset(
            ann_file=str(tmp_path / 'val.json'), data_prefix=dict(img=str(tmp_path / 'val')),
            metainfo=dict(classes=('cup',)), pipeline=[dict(type='LoadImageFromFile', **loading)])

    return data


@pytest.mark.parametrize('name, deep', [*((name, True) for name in DEEP), *((name, False) for name in FLAT)])
def test_every_tool_names_them(detector, data, tmp_path, name, deep):
    content = (DEEP if deep else FLAT)[name]
    path = tmp_path / name
    path.write_bytes(content)
    if deep:
        with pytest.raises(UserError, match=f'{name}: .*(8 bits a channel|floating-point|8-bit PNG)'):
            detector.read(path)
        with Image.open(path) as image, pytest.raises(UserError, match='convert it to 8 bits'):
            detector.read(image)
    else:
        assert detector.read(path).shape == detector.read(Image.open(path)).shape == (64, 96, 3)
    assert (picture(path) is None) == deep
    status, message = {row.check: (row.status, row.message) for row in check_data(dict(val=data(content)))}[
        'val images']
    assert (status == FAIL and '1 of a sample of 4' in message and '000000000000.jpg: its' in message) == deep
    assert (status == OK) != deep
    assert ('depth: 1' in make_data_page([tmp_path / 'val.json'], tmp_path / 'page.html')) == deep


def test_a_loading_step_that_keeps_all_bits_is_left_alone(data):
    deep = DEEP['grey.png']
    assert 'e.g. ' in find_deep_images(data(deep)) and 'e.g. ' in find_deep_images(data(deep, to_float32=True))
    assert 'e.g. ' in find_deep_images(data(deep, color_type='grayscale'))
    assert find_deep_images(data(deep, color_type='unchanged')) is None
    dataset = data(deep)
    dataset.pipeline.transforms = [type('OwnLoading', (LoadImageFromFile,), {})()]
    assert find_deep_images(dataset) is None


@pytest.mark.parametrize('suffix, pixels, deep', [
    ('.jp2', NOISE[..., 0], True), ('.jp2', EIGHT[..., :3], False), ('.hdr', NOISE[..., :3].astype(np.float32), True),
    ('.avif', EIGHT[..., :3], False)])
def test_formats_that_only_training_reads(detector, data, tmp_path, suffix, pixels, deep):
    """OpenCV decodes JPEG 2000, AVIF and HDR; the demo opens fewer formats and lists them."""
    content = encode(suffix, pixels)
    assert data(content)[0]['img'].dtype == np.uint8
    assert ('more than 8 bits a channel' in (find_deep_images(data(content)) or '')) == deep
    (tmp_path / 'a.picture').write_bytes(content)
    with pytest.raises(UserError, match=r'a\.picture: cannot be read .*in none of the formats BMP, .*, TIFF, WEBP'):
        detector.read(tmp_path / 'a.picture')


def test_testing_warns(data, monkeypatch):
    lines = []
    loop = type('Loop', (BaseLoop,), dict(run=None, __init__=lambda self: None))()
    loop.dataloader = SimpleNamespace(dataset=data(DEEP['grey.png']))
    monkeypatch.setattr(class_check, 'check_classes', lambda *_: (OK, ''))
    class_check.ClassCheckHook().before_run(SimpleNamespace(
        _train_loop=None, _val_loop=None, _test_loop=loop, hooks=[], cfg={}, logger=SimpleNamespace(
            warning=lines.append)))
    assert len(lines) == 1 and lines[0].startswith('test images: 1 of a sample of 4, e.g. ')


def test_instance_maps_have_16_bits(tmp_path):
    (tmp_path / 'map.png').write_bytes(DEEP['grey.png'])
    assert np.array_equal(read_png(tmp_path / 'map.png', (96, 64), need_16_bit=True)[0], NOISE[..., 0])
    with pytest.raises(ImageFileError, match='more than 8 bits'):
        open_image(Path(tmp_path / 'map.png'))
