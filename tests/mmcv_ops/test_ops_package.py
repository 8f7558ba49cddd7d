"""The distribution: what it installs, what it answers to mmcv, and what it leaves to a compiled mmcv."""

import importlib.machinery
import importlib.metadata
import inspect
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import mmcv.ops
import pytest
import torch
from mmcv_ops import OPERATORS, complete, operator

from tests.helpers.operators import COMPILED, needs_compiled
from tests.helpers.paths import REPO

PROJECT = REPO / 'projects/mmcv_ops'


def test_every_name_that_mmcv_asks_for_is_answered():
    folder = Path(mmcv.ops.__file__).parent
    lists = [match for path in folder.glob('*.py') for match in re.findall(r"load_ext\(\s*'_ext',\s*\[(.*?)\]",
                                                                         path.read_text(), re.DOTALL)]
    names = {name for text in lists for name in re.findall(r"'(\w+)'", text)}
    assert len(names) > 100 and set(OPERATORS) < names
    assert all(callable(operator(name)) for name in names)


def test_what_is_missing_says_what_to_do():
    with pytest.raises(NotImplementedError) as info:
        operator('ball_query_forward')(torch.zeros(1), radius=2)
    assert str(info.value) == (
        "mmcv.ops needs the compiled operator 'ball_query_forward', which mmcv_ops does not have: install a compiled "
        'mmcv 2.1 for your torch and CUDA (pip install mmcv==2.1.0 builds it; it replaces mmcv-lite)')
    for name in ('__path__', '__wrapped__', '_private'):
        with pytest.raises(AttributeError, match=name):
            operator(name)


@pytest.mark.skipif(bool(COMPILED), reason='mmcv is compiled')
def test_it_stands_in_for_the_compiled_module():
    assert mmcv._ext.nms is OPERATORS['nms']
    assert mmcv.ops.get_compiling_cuda_version() == 'not available'
    assert mmcv.ops.get_compiler_version() == f'none (mmcv_ops {importlib.metadata.version("mmcv-ops")}, PyTorch)'
    assert not hasattr(mmcv._ext, '__path__')


@needs_compiled
def test_signatures_are_those_of_the_compiled_ones():
    """mmcv passes tensors by position, the rest by name."""
    for name, compiled in COMPILED.items():
        theirs = re.findall(r'(\w+): ([\w.]+)', compiled.__doc__.splitlines()[0])
        ours = inspect.signature(OPERATORS[name]).parameters
        assert len(ours) == len(theirs), name
        for parameter, (their_name, their_type) in zip(ours, theirs, strict=True):
            assert their_type == 'torch.Tensor' or parameter == their_name, name


def found(folder: Path) -> str:
    importlib.invalidate_caches()
    return Path(importlib.machinery.PathFinder.find_spec('_ext', [str(folder)]).origin).relative_to(folder).as_posix()


def test_a_compiled_module_comes_first(tmp_path):
    compiled = '_ext' + importlib.machinery.EXTENSION_SUFFIXES[0]
    shutil.copy(PROJECT / 'mmcv/_ext.py', tmp_path)
    assert found(tmp_path) == '_ext.py'
    (tmp_path / compiled).touch()
    assert found(tmp_path) == compiled
    (tmp_path / '_ext').mkdir()
    (tmp_path / '_ext/__init__.py').touch()
    assert found(tmp_path) == '_ext/__init__.py'  # which is why ours is a file


def test_the_wheel_has_one_file_of_mmcv_and_building_leaves_nothing(tmp_path):
    def content():
        return {path for path in PROJECT.rglob('*') if '__pycache__' not in path.parts}

    before = content()
    subprocess.run(
        [sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-build-isolation', '--no-deps', '--no-index',
         '--wheel-dir', str(tmp_path), str(PROJECT)], check=True)
    assert content() == before
    wheel, = tmp_path.glob('mmcv_ops-*-py3-none-any.whl')
    names = {name for name in zipfile.ZipFile(wheel).namelist() if '.dist-info/' not in name}
    modules = {f'mmcv_ops/{path.name}' for path in (PROJECT / 'mmcv_ops').glob('*.py')}
    assert names == modules | {'mmcv/_ext.py'}


def compiled_module(cuda: str) -> ModuleType:
    ext = ModuleType('compiled')
    ext.get_compiling_cuda_version = lambda: cuda
    ext.nms = lambda *args, **kwargs: 'compiled nms'
    ext.nms_match = lambda *args, **kwargs: 'compiled nms_match'
    ext.ball_query_forward = lambda: 'compiled ball_query_forward'
    return ext


def test_complete_gives_a_cpu_build_operators_on_other_devices():
    ext = compiled_module('not available')
    before = vars(ext).copy()
    assert complete(ext, devices=('cpu',)) == ['nms', 'nms_match']
    boxes = torch.tensor([[0.0, 0, 1, 1], [0, 0, 1, 1]])
    assert ext.nms(boxes, torch.tensor([0.1, 0.2]), iou_threshold=0.5, offset=0).tolist() == [1]
    assert ext.nms(boxes=boxes.to('meta'), scores=None) == 'compiled nms'
    assert ext.ball_query_forward is before['ball_query_forward'] and not hasattr(ext, 'softnms')
    replaced = ext.nms
    assert complete(ext, devices=('cpu',)) == [] and ext.nms is replaced


def test_complete_leaves_other_modules_alone():
    ext = compiled_module('12.8')
    before = vars(ext).copy()
    assert complete(ext) == [] and vars(ext) == before
    ours = ModuleType('ours')
    ours.__getattr__ = operator
    assert complete(ours) == [] and 'nms' not in vars(ours)


@pytest.mark.skipif(bool(COMPILED), reason='mmcv is compiled')
def test_complete_looks_at_mmcvs_own():
    assert complete() == [] and mmcv._ext.nms is OPERATORS['nms']
