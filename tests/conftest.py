"""Data and weights that the tests share: rooms rendered here, and real inputs when they lie beside the repository."""

import json
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from fork_server import speed_up_mmengine, start

REPO = Path(__file__).resolve().parents[1]
SHARED = REPO.parent / 'shared'  # photographs and pretrained weights; not part of the repository

#: Options that turn the MiniScanNet recipe into a run of seconds.
TINY_RUN = [
    '--cfg-options', 'model.backbone.init_cfg=None', 'model.encoder.num_layers=1', 'model.decoder.num_layers=1',
    'train_dataloader.batch_size=4', 'train_dataloader.num_workers=0', 'train_dataloader.persistent_workers=False',
    'val_dataloader.num_workers=0', 'val_dataloader.persistent_workers=False', 'test_dataloader.num_workers=0',
    'test_dataloader.persistent_workers=False', 'train_cfg.val_interval=1', 'default_hooks.logger.interval=1',
]  # fmt: skip


def from_shared(name: str) -> Path:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f'needs {name} in a folder "shared" beside the repository')
    return path


#: The files that take longest, longest first. Each is run by one worker, and they should end at the same time.
LONGEST = (
    'test_distributed.py', 'test_readme.py', 'test_configs.py', 'test_other_packages.py', 'test_benchmark.py',
    'test_race.py', 'test_scripts.py', 'test_resume.py', 'test_preflight.py', 'test_onnx.py', 'test_gpu_check.py')


def pytest_collection_modifyitems(items):
    place = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


def pytest_collection_finish():
    speed_up_mmengine()


@pytest.fixture(scope='module', autouse=True)
def own_logger():
    """No test file inherits mmengine's logger: a web server (uvicorn) in an earlier one closes the logger's file."""
    yield
    if 'mmengine.logging' in sys.modules:
        sys.modules['mmengine.logging'].MMLogger._instance_dict.clear()


@pytest.fixture(scope='session')
def indoor_photos() -> Path:
    """52 photographs in the layout of scannet_frames_25k."""
    return from_shared('data/indoor_photos')


@pytest.fixture(scope='session')
def deit_checkpoint() -> Path:
    """DeiT-tiny, pretrained, in mmpretrain layout."""
    return from_shared('weights/deit-tiny_in1k.pth')


@pytest.fixture(scope='session')
def mini_frames(tmp_path_factory) -> Path:
    """Rendered rooms in the layout of scannet_frames_25k: 16 training and 8 validation frames of 160x120, 4 a scene."""
    from deit_detr.datasets.mini_scannet import make_mini_scannet

    out_dir = tmp_path_factory.mktemp('rooms') / 'frames'
    make_mini_scannet(out_dir, REPO / 'data/splits', num_train=16, num_val=8, size=(160, 120), seed=0, workers=2)
    return out_dir


@pytest.fixture(scope='session')
def mini_scannet(mini_frames) -> Path:
    """The rooms converted: a data root as the recipes expect it."""
    from deit_detr.datasets.scannet2coco import convert

    convert(mini_frames, mini_frames.parent, REPO / 'data/splits', workers=2)
    return mini_frames.parent


@pytest.fixture(scope='session')
def mini_scannet18(mini_frames) -> Path:
    """The rooms converted in the 18-class protocol."""
    from deit_detr.datasets.scannet2coco import convert

    out_dir = mini_frames.parent / 'classes18'
    convert(mini_frames, out_dir, REPO / 'data/splits', num_classes=18, workers=2)
    return out_dir


def draw_coco(ann_file: Path, images: Path, categories: list[dict], number: int = 4) -> None:
    """Draw a COCO-format data set: 96x64 images of noise with three rectangles each, a colour for each category.

    The categories take turns, so that they all occur if there are enough images. Another file has other images.
    """
    generator = np.random.default_rng(list(ann_file.name.encode()))
    colours = np.random.default_rng(1).integers(0, 256, (len(categories), 3))
    content = dict(images=[], annotations=[], categories=categories)
    images.mkdir(parents=True)
    for index in range(number):
        pixels = generator.integers(96, 160, (64, 96, 3), dtype=np.uint8)
        name = f'{index:012d}.jpg'
        content['images'].append(dict(id=10 * index, file_name=name, width=96, height=64))
        for place in range(3):
            left, top = 32 * place + generator.integers(8), generator.integers(24)
            width, height = generator.integers(12, 24), generator.integers(16, 40)
            label = (3 * index + place) % len(categories)
            pixels[top : top + height, left : left + width] = colours[label]
            content['annotations'].append(dict(
                id=len(content['annotations']) + 1, image_id=10 * index, category_id=categories[label]['id'],
                bbox=[int(left), int(top), int(width), int(height)], area=int(width * height), iscrowd=0))
        Image.fromarray(pixels).save(images / name)
    ann_file.parent.mkdir(parents=True, exist_ok=True)
    ann_file.write_text(json.dumps(content))


@pytest.fixture(scope='session')
def drawn_coco(tmp_path_factory) -> Path:
    """The layout, names and ids of COCO 2017, with drawn images."""
    from mmdet.datasets import CocoDataset

    root = tmp_path_factory.mktemp('coco')
    ids = sorted(set(range(1, 91)) - {12, 26, 29, 30, 45, 66, 68, 69, 71, 83})  # 80 of 90 ids are used
    categories = [dict(id=i, name=name) for i, name in zip(ids, CocoDataset.METAINFO['classes'], strict=True)]
    for split in ('train2017', 'val2017'):
        draw_coco(root / f'annotations/instances_{split}.json', root / split, categories)
    return root


@pytest.fixture
def data_roots(monkeypatch, mini_scannet, mini_scannet18, drawn_coco):
    """Every recipe finds small data where it looks for its own."""
    for name in ('MMDET_DATASETS', 'MINI_SCANNET_ROOT'):
        monkeypatch.setenv(name, f'{mini_scannet}/')
    monkeypatch.setenv('SCANNET18_ROOT', f'{mini_scannet18}/')
    monkeypatch.setenv('COCO_ROOT', f'{drawn_coco}/')


@pytest.fixture
def run(tmp_path):
    """Run a command as a user does, in another folder; fails with its output unless the status is as expected."""

    def run(*command, status=0, cwd=tmp_path, timeout=600, own_start=False, **env) -> str:
        result = start(*command, cwd=cwd, env=env, timeout=timeout, own_start=own_start)
        assert result.returncode == status, f'{command} ended with {result.returncode}:\n{result.stdout[-6000:]}'
        return result.stdout

    return run


def has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def pytest_generate_tests(metafunc):
    """A test with an argument ``device`` runs on each type of device that there is."""
    if 'device' in metafunc.fixturenames:
        metafunc.parametrize('device', ['cpu', 'cuda'] if has_cuda() else ['cpu'], indirect=True)


@pytest.fixture
def device(request):
    """A ``torch.device``."""
    import torch

    return torch.device(request.param)


@pytest.fixture
def our_operators(monkeypatch) -> Counter:
    """mmcv runs the operators of mmcv_ops, also beside a compiled ``_ext``. Counts the calls of each."""
    import mmcv._ext
    from mmcv_ops import OPERATORS

    calls = Counter()

    def counting(name):
        def run(*args, **kwargs):
            calls[name] += 1
            return OPERATORS[name](*args, **kwargs)

        return run

    for name in OPERATORS:
        monkeypatch.setattr(mmcv._ext, name, counting(name), raising=False)
    return calls


@pytest.fixture
def operators_as_on_gpu(monkeypatch, our_operators) -> Counter:
    """mmdet and mmcv take the operators that they take on a GPU: tensors say that they are there. Counts the calls."""
    import mmcv.ops.multi_scale_deform_attn
    import mmdet.models.losses.focal_loss
    import torch

    class OnGPU:
        """``torch`` for the one module that asks it for a GPU; elsewhere the answer would be acted upon."""

        cuda = SimpleNamespace(is_available=lambda: True)

        def __getattr__(self, name):
            return getattr(torch, name)

    monkeypatch.setattr(torch.Tensor, 'is_cuda', True)
    monkeypatch.setattr(mmdet.models.losses.focal_loss, 'torch', OnGPU())
    monkeypatch.setattr(mmcv.ops.multi_scale_deform_attn, 'IS_CUDA_AVAILABLE', True)
    return our_operators
