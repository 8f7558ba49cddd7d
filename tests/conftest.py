"""Fixtures of all tests: rendered rooms, real inputs if they are beside the repository, devices and processes."""

import gc
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.helpers.drawn_coco import draw_coco
from tests.helpers.fork_server import speed_up_mmengine, start
from tests.helpers.paths import REPO, from_shared

gc.disable()  # until all test files are imported
#: These begin: a test of minutes that starts last keeps everybody waiting.
FIRST = (
    'test_readme.py', 'test_distributed.py', 'test_import_errors.py', 'test_race.py', 'test_scripts.py',
    'test_tools.py', 'test_recipe_variables.py', 'test_threads.py')


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: FIRST.index(item.path.name) if item.path.name in FIRST else len(FIRST))


def pytest_collection_finish():
    speed_up_mmengine()
    gc.enable()


@pytest.fixture(autouse=True)
def own_logger():
    """Forget mmengine's loggers after each test.

    A web server (uvicorn) closes their files. Runs of the same second have the same logger, and that of a test before
    prints to what was standard output then.
    """
    yield
    if 'mmengine.logging' in sys.modules:
        sys.modules['mmengine.logging'].MMLogger._instance_dict.clear()


@pytest.fixture(autouse=True)
def own_visualizers():
    """Forget mmengine's visualizers after each test: the next run would write into the folder of the first one."""
    yield
    if 'mmengine.visualization' in sys.modules:
        kind = sys.modules['mmengine.visualization'].Visualizer
        for one in (kind, *kind.__subclasses__()):
            one._instance_dict.clear()


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
    """Rendered rooms in the layout of scannet_frames_25k: 16 training and 8 validation frames, 160x120, 4 per scene."""
    from deit_detr.scannet.mini_scannet import make_mini_scannet

    out_dir = tmp_path_factory.mktemp('rooms') / 'frames'
    make_mini_scannet(out_dir, REPO / 'data/splits', num_train=16, num_val=8, size=(160, 120), seed=0, workers=2)
    return out_dir


@pytest.fixture(scope='session')
def mini_scannet(mini_frames) -> Path:
    """The converted rooms: a data root as the recipes expect it."""
    from deit_detr.scannet.converter import convert

    convert(mini_frames, mini_frames.parent, REPO / 'data/splits', workers=2)
    return mini_frames.parent


@pytest.fixture(scope='session')
def mini_scannet18(mini_frames) -> Path:
    """The rooms converted in the 18-class protocol."""
    from deit_detr.scannet.converter import convert

    out_dir = mini_frames.parent / 'classes18'
    convert(mini_frames, out_dir, REPO / 'data/splits', num_classes=18, workers=2)
    return out_dir


@pytest.fixture(scope='session')
def drawn_coco(tmp_path_factory) -> Path:
    """Drawn images in the layout and with the names and ids of COCO 2017."""
    from mmdet.datasets import CocoDataset

    root = tmp_path_factory.mktemp('coco')
    ids = sorted(set(range(1, 91)) - {12, 26, 29, 30, 45, 66, 68, 69, 71, 83})  # 80 of 90 ids are used
    categories = [dict(id=i, name=name) for i, name in zip(ids, CocoDataset.METAINFO['classes'], strict=True)]
    for split in ('train2017', 'val2017'):
        draw_coco(root / f'annotations/instances_{split}.json', root / split, categories)
    return root


@pytest.fixture(scope='session')
def detector_files(tmp_path_factory) -> tuple[Path, Path]:
    """Config and checkpoint of a small detector."""
    from tests.helpers.tiny_detector import save_tiny

    return save_tiny(tmp_path_factory.mktemp('detector'))


@pytest.fixture(scope='session')
def detector(detector_files):
    """The loaded small detector; a test must not change it."""
    import deit_detr

    return deit_detr.load(*detector_files, device='cpu')


@pytest.fixture
def data_roots(monkeypatch, mini_scannet, mini_scannet18, drawn_coco):
    """Point the data root of every recipe to small data."""
    for name in ('DEIT_DATASETS', 'MINI_SCANNET_ROOT'):
        monkeypatch.setenv(name, f'{mini_scannet}/')
    monkeypatch.setenv('SCANNET18_ROOT', f'{mini_scannet18}/')
    monkeypatch.setenv('COCO_ROOT', f'{drawn_coco}/')


@pytest.fixture
def run(tmp_path):
    """Run a command as a user does, in another folder; fail with its output unless the status is as expected."""

    def run(*command, status=0, cwd=tmp_path, timeout=600, own_start=False, **env) -> str:
        result = start(*command, cwd=cwd, env=env, timeout=timeout, own_start=own_start)
        assert result.returncode == status, f'{command} ended with {result.returncode}:\n{result.stdout[-6000:]}'
        return result.stdout

    return run


def has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def pytest_generate_tests(metafunc):
    """Run a test with an argument ``device`` on the CPU and on a GPU, if there is one."""
    if 'device' in metafunc.fixturenames:
        metafunc.parametrize('device', ['cpu', 'cuda'] if has_cuda() else ['cpu'], indirect=True)


@pytest.fixture
def device(request):
    """A ``torch.device``."""
    import torch

    return torch.device(request.param)


@pytest.fixture
def our_operators(monkeypatch) -> Counter:
    """Let mmcv run the operators of mmcv_ops, also beside a compiled ``_ext``, and count the calls of each."""
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
    """Let mmdet and mmcv choose operators as on a GPU, and count the calls: tensors claim to be there."""
    import mmcv.ops.multi_scale_deform_attn
    import mmdet.models.losses.focal_loss
    import torch

    class OnGPU:
        """``torch`` for the one module that asks for a GPU; elsewhere the answer would have effects."""

        cuda = SimpleNamespace(is_available=lambda: True)

        def __getattr__(self, name):
            return getattr(torch, name)

    monkeypatch.setattr(torch.Tensor, 'is_cuda', True)
    monkeypatch.setattr(mmdet.models.losses.focal_loss, 'torch', OnGPU())
    monkeypatch.setattr(mmcv.ops.multi_scale_deform_attn, 'IS_CUDA_AVAILABLE', True)
    return our_operators
