"""Installed versions: what does not go together is named with the fix, and mmcv is found under each of its names."""

import sys
import types

import pytest

from deit_detr import versions
from deit_detr.engine.start import preflight
from deit_detr.engine.start.findings import FAIL, OK, WARN


@pytest.mark.parametrize('changed, text', [
    (dict(mmcv='2.2.0'), 'mmdet 3.3.0 refuses mmcv 2.2.0'),
    (dict(torchvision='0.25.1'), 'torchvision 0.25.1 does not match torch 2.11.0+cu130: install torchvision 0.26'),
    (dict(mmpretrain=None), 'mmpretrain not installed'),
    (dict(torch='2.4.1', torchvision='0.19.1'), 'torch 2.4.1 is too old'),
])
def test_versions_that_do_not_go_together(changed, text):
    installed = dict(
        torch='2.11.0+cu130', torchvision='0.26.0', mmengine='0.10.7', mmcv='2.1.0', mmdet='3.3.0', mmpretrain='1.2.0')
    assert versions.incompatibilities(installed) == []
    assert text in ' '.join(versions.incompatibilities(installed | changed))
    assert preflight._check_versions()[0] in (OK, WARN)


@pytest.mark.parametrize('names, kind, status, text', [
    (dict(mmcv='2.1.0'), 'compiled without CUDA', OK, 'mmcv 2.1.0 (operators: compiled without CUDA)'),
    ({'mmcv-lite': '2.1.0'}, 'mmcv_ops 0.1.0', OK, 'mmcv-lite 2.1.0 (operators: mmcv_ops 0.1.0)'),
    ({'onedl-mmcv': '2.1.5'}, 'compiled for CUDA 13.0', OK, 'onedl-mmcv 2.1.5 (operators: compiled for CUDA 13.0)'),
    ({'mmcv-lite': '2.1.0'}, None, FAIL, 'mmcv-lite comes without operators: pip install projects/mmcv_ops'),
    ({'mmcv': '2.1.0', 'mmcv-lite': '2.2.0'}, 'compiled', FAIL,
     'mmcv and mmcv-lite share the folder mmcv and differ: pip uninstall -y mmcv mmcv-lite'),
    ({}, None, FAIL, 'mmcv not installed'),
])
def test_mmcv_has_several_names(names, kind, status, text, monkeypatch):
    others = dict(torch='2.11.0', torchvision='0.26.0', mmengine='0.10.7', mmdet='3.3.0', mmpretrain='1.2.0')

    def version(name: str) -> str:
        if name not in others | names:
            raise versions.PackageNotFoundError(name)
        return (others | names)[name]

    monkeypatch.setattr(versions, 'version', version)
    monkeypatch.setattr(versions, 'operators', lambda: kind)
    found, message = preflight._check_versions()
    assert found == status and text in message


@pytest.mark.parametrize('file, code, kind', [
    ('_ext.py', '', 'mmcv_ops'), ('_ext.so', 'not available', 'compiled without CUDA'),
    ('_ext.so', '12.8', 'compiled for CUDA 12.8'), (None, None, None)])
def test_operators_are_looked_for_beside_mmcv(file, code, kind, monkeypatch, tmp_path):
    def find_spec(name, path=None):
        spec = types.SimpleNamespace(submodule_search_locations=[str(tmp_path)], origin=str(file))
        return None if name == 'mmcv._ext' and file is None else spec

    monkeypatch.setattr(versions.PathFinder, 'find_spec', find_spec)
    monkeypatch.setitem(sys.modules, 'mmcv._ext', types.SimpleNamespace(get_compiling_cuda_version=lambda: code))
    monkeypatch.setattr(versions, 'distributions', lambda name: {})
    assert versions.operators() == kind
