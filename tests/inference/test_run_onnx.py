"""What run_onnx.py reads and writes: the pixels of the demo, a picture for each image."""

import cv2
import numpy as np
import pytest
from PIL import Image

from deit_detr.images import picture_names
from tests.helpers.odd_depths import DEEP, FLAT
from tests.helpers.pictures import image_of

KINDS = {'PNG': ('RGB', 'RGBA', 'LA', 'L', 'P', '1'), 'TIFF': ('RGB', 'LA', 'L', 'P', 'PA', 'CMYK', '1'),
         'JPEG': ('RGB', 'L', 'CMYK'), 'WEBP': ('RGB', 'RGBA'), 'GIF': ('RGBA', 'P'), 'BMP': ('RGB', 'P'),
         'PPM': ('RGB', 'L', '1')}


@pytest.mark.parametrize('orientation', [None, 6])
@pytest.mark.parametrize('kind', KINDS)
def test_reads_images_as_the_demo_does(kind, orientation, detector, run_onnx, tmp_path):
    """Modes, transparency and EXIF orientation, also of TIFFs, which Pillow maps into memory in the wrong size."""
    pixels = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 4), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x112] = orientation
    turned = orientation and kind in ('JPEG', 'PNG', 'TIFF', 'WEBP')
    for mode in KINDS[kind]:
        path = tmp_path / mode
        image = pixels.convert('LA').convert('PA') if mode == 'PA' else pixels.convert(mode)
        image.save(path, kind, **(dict(exif=exif) if turned else {}), **(dict(lossless=True) if kind == 'WEBP' else {}))
        found = run_onnx.read_image(path)
        assert np.array_equal(found, detector.read(path)), mode
        assert found.shape == ((60, 40, 3) if turned else (40, 60, 3))
        assert kind == 'JPEG' or mode in ('CMYK', 'PA') or np.array_equal(found, detector.read(Image.open(path))), mode


def test_transparent_tiffs_are_refused(run_onnx, detector, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 4), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x112] = 8
    Image.fromarray(pixels).save(tmp_path / 'a.tiff', exif=exif)
    with pytest.raises(run_onnx.InputError, match='a.tiff: a TIFF with transparency, by which OpenCV multiplies'):
        run_onnx.read_image(tmp_path / 'a.tiff')
    assert np.array_equal(detector.read(tmp_path / 'a.tiff'), np.rot90(pixels[..., 2::-1]))
    pixels[..., 3] = 255
    Image.fromarray(pixels).save(tmp_path / 'b.tiff')
    assert np.array_equal(run_onnx.read_image(tmp_path / 'b.tiff'), pixels[..., 2::-1])


@pytest.mark.parametrize('name, deep', [*((name, True) for name in DEEP), *((name, False) for name in FLAT)])
def test_names_images_that_do_not_have_8_bits(name, deep, detector, run_onnx, tmp_path):
    path = tmp_path / name
    path.write_bytes((DEEP if deep else FLAT)[name])
    if not deep:
        assert np.array_equal(run_onnx.read_image(path), detector.read(path))
    else:
        with pytest.raises(run_onnx.InputError, match=rf'{name}: its pixels are .*not 0 to 255 .*cv2\.imwrite\('):
            run_onnx.read_image(path)


class FindsNothing:
    draw = staticmethod(lambda image, *found: image)

    def __call__(self, image):
        return np.zeros((0, 4)), np.zeros(0), np.zeros(0, int)


@pytest.mark.parametrize('layout', [
    ['a.jpg'], ['x/a.jpg'], ['x/a.jpg', 'y/a.jpg'], ['x/a.jpg', 'x/y/a.jpg', 'a.png', 'a.jpg'],
    ['s1/color/0.jpg', 's2/color/0.jpg'],
    ['s1/color/0.jpg', 's1/color/1.jpg'], ['s1/color/0.jpg', 's1/0.jpg'], ['x/a.jpg', 'x/../x/a.jpg']])
def test_one_picture_an_image(layout, run_onnx, tmp_path):
    paths = [tmp_path / name for name in layout]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), image_of(64, 48))
    names = run_onnx.picture_names(paths)
    assert names == picture_names(paths)

    run_onnx.show(FindsNothing(), paths, 0.3, tmp_path / 'out')
    made = {path.relative_to(tmp_path / 'out') for path in (tmp_path / 'out').rglob('*.*')}
    assert made == set(names.values()) and len(made) == len({path.resolve() for path in paths})


def test_pictures_that_cannot_be_written(run_onnx, tmp_path):
    for name in ('x/a.png', 'y/a.png'):
        (tmp_path / name).parent.mkdir()
        cv2.imwrite(str(tmp_path / name), image_of(64, 48))
    with pytest.raises(run_onnx.InputError, match=r'x/a\.png: would be overwritten. Choose another --out-dir'):
        run_onnx.show(FindsNothing(), sorted(tmp_path.glob('*/a.png')), 0.3, tmp_path)
    (tmp_path / 'x/a.png').rename(tmp_path / 'picture')
    with pytest.raises(run_onnx.InputError, match='out/picture: cannot be written'):
        run_onnx.show(FindsNothing(), [tmp_path / 'picture'], 0.3, tmp_path / 'out')
