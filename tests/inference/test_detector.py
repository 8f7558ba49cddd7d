"""``deit_detr.load``: the boxes of the evaluation from every kind of image, and clear errors."""

import os
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmdet.registry import DATASETS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.structures import InstanceData
from PIL import Image

import deit_detr
from deit_detr.errors import UserError
from tests.helpers.paths import REPO


@pytest.fixture(scope='module')
def frames(mini_scannet) -> list[Path]:
    return sorted(mini_scannet.glob('val/*/color/*.jpg'))[:3]


def assert_same(a: DetDataSample, b: DetDataSample) -> None:
    for field in ('bboxes', 'scores', 'labels'):
        assert torch.equal(a.pred_instances[field], b.pred_instances[field]), field
    assert a.pred_instances.label_names == b.pred_instances.label_names


def test_gives_what_evaluation_gives(detector_files, detector, mini_scannet):
    cfg = Config.fromfile(detector_files[0])
    dataset = DATASETS.build(dict(cfg.test_dataloader.dataset, data_root=f'{mini_scannet}/'))
    for index in (0, 5):
        data = dataset[index]
        with torch.no_grad():
            expected = detector.model.test_step(pseudo_collate([data]))[0].pred_instances
        found = detector(data['data_samples'].img_path, score_thr=0).pred_instances
        assert len(found) == len(expected) == 100
        for field in ('bboxes', 'scores', 'labels'):
            assert torch.equal(found[field], expected[field])


def test_every_form_of_an_image_gives_the_same(detector, frames, tmp_path):
    path = tmp_path / 'room.png'  # decodes alike in OpenCV and Pillow
    bgr = cv2.imread(str(frames[0]))
    cv2.imwrite(str(path), bgr)
    from_file = detector(str(path))
    assert 0 < len(from_file.pred_instances) < 100
    assert from_file.img_path == str(path) and from_file.ori_shape == bgr.shape[:2]
    bgra = cv2.cvtColor(bgr, cv2.COLOR_BGR2BGRA)
    for image in (path, bgr, bgra, np.asfortranarray(bgr), Image.open(path), Image.open(path).convert('RGBA')):
        assert_same(detector(image), from_file)
    assert detector.draw(bgr, from_file) == detector.draw(path, from_file) == detector.draw(Image.open(path), from_file)
    different = detector(bgr[..., ::-1])
    assert not torch.equal(different.pred_instances.bboxes, from_file.pred_instances.bboxes), 'colours do not matter?'


def test_lists_give_lists_in_order(detector, frames):
    single = [detector(path) for path in frames]
    for images in (frames, tuple(frames), [str(frames[0]), detector.read(frames[1]), frames[2]]):
        for a, b in zip(detector(images), single, strict=True):
            assert_same(a, b)
    batched = detector(frames, score_thr=0, batch_size=2)
    for sample, path in zip(batched, frames, strict=True):
        expected = detector(path, score_thr=0).pred_instances
        torch.testing.assert_close(sample.pred_instances.scores, expected.scores, rtol=0, atol=1e-4)
    assert detector([]) == []


def test_threshold_names_and_order(detector, frames):
    everything = detector(frames[0], score_thr=0).pred_instances
    found = detector(frames[0]).pred_instances
    assert 0 < len(found) == (everything.scores >= 0.3).sum() < 100
    assert found.label_names == [detector.classes[label] for label in found.labels]
    assert (found.scores[:-1] >= found.scores[1:]).all()
    assert detector.classes == DATASETS.get('ScanNetDataset').METAINFO['classes']
    assert len(detector(frames[0], score_thr=1.1).pred_instances.label_names) == 0


@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'RGBA', 'CMYK', 'YCbCr'])
def test_pil_modes(detector, mode):
    image = Image.new('RGB', (40, 30), (250, 20, 10)).convert(mode)
    array = detector.read(image)
    assert array.shape == (30, 40, 3) and array.dtype == np.uint8
    if mode in ('RGBA', 'P', 'YCbCr'):
        assert np.abs(array[5, 5].astype(int) - [10, 20, 250]).max() < 50, 'BGR'
    grey = np.asarray(image.convert('L'))
    assert np.array_equal(detector.read(grey), detector.read(grey[..., None]))
    assert np.array_equal(detector.read(grey), np.repeat(grey[..., None], 3, 2))


@pytest.mark.parametrize('kind, mode', [
    *((kind, mode) for kind in ('PNG', 'TIFF', 'WEBP', 'GIF') for mode in ('RGBA', 'LA')), ('TIFF', 'PA')])
def test_transparency_is_dropped(detector, tmp_path, kind, mode):
    """Colours are those of the file whatever the alpha, from a path as from a PIL image."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 4), dtype=np.uint8)
    if kind == 'GIF':  # has 256 colours
        pixels = pixels // 128 * 255
    image, path = Image.fromarray(pixels), tmp_path / 'a.picture'
    image.convert('RGBA' if mode == 'RGBA' else 'LA').convert(mode).save(path, kind, **(
        dict(lossless=True, exact=True) if kind == 'WEBP' else {}))
    with Image.open(path) as opened:
        assert np.array_equal(detector.read(path), detector.read(opened))
        if kind in ('PNG', 'TIFF') and mode == 'RGBA':
            assert np.array_equal(detector.read(path), pixels[..., 2::-1])


def test_truncated_pil_image(detector, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / 'a.png')
    (tmp_path / 'b.png').write_bytes((tmp_path / 'a.png').read_bytes()[:2000])
    with pytest.raises(UserError, match='a PIL image cannot be decoded'):
        detector(Image.open(tmp_path / 'b.png'))


@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_orientation(detector, tmp_path, orientation):
    """Files and PIL images are upright, as viewers show them."""
    upright = np.zeros((48, 64, 3), np.uint8)
    upright[:24, :32] = (0, 0, 255)  # top left is red
    stored = {1: lambda x: x, 2: lambda x: x[:, ::-1], 3: lambda x: x[::-1, ::-1], 4: lambda x: x[::-1],
              5: lambda x: x.transpose(1, 0, 2), 6: np.rot90, 7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
              8: lambda x: np.rot90(x, -1)}[orientation](upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / 'photo.jpg'
    Image.fromarray(np.ascontiguousarray(stored[..., ::-1])).save(path, exif=exif, quality=95)
    for image in (path, Image.open(path)):
        array = detector.read(image)
        assert array.shape == upright.shape
        assert np.abs(array.astype(int) - upright).mean() < 3
    assert detector(path, score_thr=0).ori_shape == (48, 64)


def test_draws_each_class_in_its_colour(detector, frames):
    image = np.full((700, 900, 3), 128, np.uint8)
    for label, colour in ((3, (255, 187, 120)), (7, (214, 39, 40))):
        box = InstanceData(bboxes=torch.tensor([[100.0, 100, 700, 500]]), scores=torch.tensor([0.9]),
                           labels=torch.tensor([label]), label_names=[detector.classes[label]])
        picture = np.asarray(detector.draw(image, DetDataSample(pred_instances=box))).astype(int)
        assert picture.shape == image.shape
        edge = picture[300, 690:711]
        assert np.abs(edge - (0.8 * np.array(colour) + 0.2 * 128)).max(1).min() < 4
        assert (picture[300, 300:600] == 128).all()
    small = detector.draw(frames[0], detector(frames[0]))
    assert small.size == (960, 720), 'enlarged six times, for legible labels'


@pytest.mark.parametrize('image, message', [
    ('missing.jpg', 'missing.jpg: no such image file'),
    ('.', 'is a folder'),
    ('text.jpg', 'text.jpg: cannot be read as an image'),
    ('empty.png', 'empty.png: cannot be read as an image'),
    (np.zeros((4, 4, 3)), 'an array of float64'),
    (np.zeros((4, 4, 2), np.uint8), 'not an image'),
    (np.zeros((0, 4, 3), np.uint8), 'not an image'),
    (np.zeros((1, 4, 4, 3), np.uint8), 'not an image'),
    (np.zeros(4, np.uint8), 'not an image'),
    (Image.new('I', (4, 4)), 'mode I: convert it'),
    (Image.new('I;16', (4, 4)), 'mode I;16: convert it'),
    (Image.new('F', (4, 4)), 'mode F: convert it'),
    (torch.zeros(3, 4, 4), 'not a Tensor'),
    (None, 'not a NoneType'),
])
def test_what_is_not_an_image(detector, tmp_path, monkeypatch, image, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'text.jpg').write_text('no picture')
    (tmp_path / 'empty.png').touch()
    for images in (image, [image]):
        with pytest.raises(UserError, match=message):
            detector(images)


def change_last_linear(state_dict):
    key = next(key for key in state_dict if key.endswith('cls_branches.0.weight'))
    state_dict[key] = state_dict[key][:18]


@pytest.mark.parametrize('change, message', [
    (lambda state: state.pop('neck.convs.0.conv.weight'), r'1 tensors are missing \(neck.convs.0.conv.weight\)'),
    (lambda state: state.update(extra=torch.zeros(1)), r'1 tensors are not in the model \(extra\)'),
    (change_last_linear, r'of another shape \(bbox_head.cls_branches.0.weight \(18, 256\) instead of \(20, 256\)'),
    (lambda state: state.update({'bbox_head.transformer.x': torch.zeros(1)}), 'mmdet2x_to_3x.py'),
])
def test_checkpoint_has_to_fit(detector_files, tmp_path, change, message):
    config, checkpoint = detector_files
    content = torch.load(checkpoint)
    change(content['state_dict'])
    torch.save(content, tmp_path / 'other.pth')
    with pytest.raises(UserError, match=f'other.pth: does not fit the model: .*{message}'):
        deit_detr.load(config, tmp_path / 'other.pth')


def test_classes_have_to_agree(detector_files, tmp_path):
    config, checkpoint = detector_files
    content = torch.load(checkpoint)
    content['meta']['dataset_meta']['classes'] = ('person', *content['meta']['dataset_meta']['classes'][1:])
    torch.save(content, tmp_path / 'other.pth')
    with pytest.raises(
            UserError, match=r'other.pth: was trained on 20 \(person, floor, .*dataset.metainfo.classes has 20 \(wall'):
        deit_detr.load(config, tmp_path / 'other.pth')
    del content['meta']  # tensors alone: the classes come from the config
    torch.save(content, tmp_path / 'tensors.pth')
    assert deit_detr.load(config, tmp_path / 'tensors.pth').classes[0] == 'wall'
    (tmp_path / 'config.py').write_text(f"_base_ = '{config}'\ntest_dataloader = dict(dataset=dict(metainfo=dict("
                                        "classes=('wall', 'floor'))))\n")
    with pytest.raises(UserError, match='2 classes, while model.bbox_head.num_classes is 20'):
        deit_detr.load(tmp_path / 'config.py', tmp_path / 'tensors.pth')


def test_files_that_are_none(detector_files, tmp_path):
    config, checkpoint = detector_files
    with pytest.raises(UserError, match='nowhere.py: no such config file'):
        deit_detr.load(tmp_path / 'nowhere.py', checkpoint)
    with pytest.raises(UserError, match='nowhere.pth: no such checkpoint file'):
        deit_detr.load(config, tmp_path / 'nowhere.pth')
    with pytest.raises(UserError, match='has no test_dataloader: it is only a part of a config'):
        deit_detr.load(REPO / 'configs/_base_/backbones/deit-tiny.py', checkpoint)
    with pytest.raises(UserError, match='device meta-morph'):
        deit_detr.load(config, checkpoint, device='meta-morph')

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / 'made_by_the_checkpoint'),)

    torch.save(dict(state_dict={}, meta=Evil()), tmp_path / 'evil.pth')
    with pytest.raises(UserError, match='evil.pth: refused, because loading it would run code'):
        deit_detr.load(config, tmp_path / 'evil.pth')
    assert not (tmp_path / 'made_by_the_checkpoint').exists()


def test_pure_python_config_loads():
    pure = REPO / 'projects/deit_detr/configs/pure_python/detr_deit_tiny_8xb1_150e_scannet.py'
    with pytest.raises(UserError, match='no such checkpoint'):  # everything before the checkpoint has been read
        deit_detr.load(pure, 'nowhere.pth')


@pytest.mark.slow
def test_compiled_finds_the_same(detector_files, detector, frames):
    torch.compiler.reset()
    compiled = deit_detr.load(*detector_files, device='cpu', compile=dict(backend='aot_eager', fullgraph=True))
    assert all(layer._compiled_call_impl for layer in compiled.model.decoder.layers)
    for images, batch_size in ((frames[:1], 1), (frames[:2], 2)):
        for a, b in zip(detector(images, 0, batch_size), compiled(images, 0, batch_size), strict=True):
            torch.testing.assert_close(b.pred_instances.scores, a.pred_instances.scores, rtol=0, atol=1e-5)
            best = a.pred_instances.scores > a.pred_instances.scores.median()  # near it, two may change places
            torch.testing.assert_close(
                b.pred_instances.bboxes[best], a.pred_instances.bboxes[best], rtol=0, atol=1e-2)
            assert torch.equal(b.pred_instances.labels[best], a.pred_instances.labels[best])
    torch.compiler.reset()


def test_compiling_without_a_compiler(detector_files, monkeypatch):
    monkeypatch.setattr('torch._inductor.config.cpp.cxx', ('no-such-compiler',))
    with pytest.raises(UserError, match='compile=True needs a C\\+\\+ compiler on a CPU'):
        deit_detr.load(*detector_files, device='cpu', compile=True)


@pytest.mark.slow
def test_five_lines_print_nothing_and_write_nothing(detector_files, frames, run, tmp_path):
    output = run(sys.executable, '-W', 'error::UserWarning:__main__', '-c', f'''
import deit_detr
detector = deit_detr.load('{detector_files[0]}', '{detector_files[1]}')
found = detector('{frames[0]}').pred_instances
detector.draw('{frames[0]}', detector('{frames[0]}'))
print(len(found.label_names), tuple(found.bboxes.shape))
''')
    number = output.split()[0]
    assert output == f'{number} ({number}, 4)\n' and int(number) > 0
    assert not list(tmp_path.iterdir())
