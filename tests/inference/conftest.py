"""What the tests of exported detectors share."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from deit_detr.inference.export import export_onnx
from tests.helpers.paths import REPO
from tests.helpers.tiny_detector import save_tiny


@pytest.fixture(scope='session')
def run_onnx() -> ModuleType:
    """The script tools/deployment/run_onnx.py, as a module."""
    spec = importlib.util.spec_from_file_location('run_onnx', REPO / 'tools/deployment/run_onnx.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='session')
def small_onnx(tmp_path_factory) -> Path:
    """An ONNX file whose boxes and scores depend on the image."""
    folder = tmp_path_factory.mktemp('small_onnx')
    recipe = REPO / 'projects/deit_detr/configs/detr-fast_deit-tiny_1xb8-50e_mini-scannet.py'
    files = save_tiny(folder, recipe, 'num_queries=20, test_cfg=dict(max_per_img=20)', zeros=False)
    export_onnx(*files, folder / 'model.onnx')
    return folder / 'model.onnx'
