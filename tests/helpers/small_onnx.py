"""A small exported detector, and tools/deployment/run_onnx.py as a module."""

import importlib.util
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from tests.helpers.paths import REPO
from tests.helpers.tiny_detector import save_tiny

RECIPE = REPO / 'projects/deit_detr/configs/detr-fast_deit-tiny_1xb8-50e_mini-scannet.py'


@pytest.fixture(scope='module')
def run_onnx():
    spec = importlib.util.spec_from_file_location('run_onnx', REPO / 'tools/deployment/run_onnx.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def small_onnx(tmp_path_factory) -> Path:
    """An ONNX file whose boxes and scores depend on the image."""
    from deit_detr.inference.export import export_onnx

    folder = tmp_path_factory.mktemp('small_onnx')
    config, path = save_tiny(folder, RECIPE, 'num_queries=20, test_cfg=dict(max_per_img=20)')
    checkpoint = torch.load(path, weights_only=True)
    generator = torch.Generator().manual_seed(0)
    for tensor in checkpoint['state_dict'].values():
        if tensor.is_floating_point() and not tensor.any():
            tensor.normal_(std=0.05, generator=generator)
    torch.save(checkpoint, path)
    export_onnx(config, path, folder / 'model.onnx')
    return folder / 'model.onnx'


def picture(path: Path, width: int, height: int, seed: int = 0) -> Path:
    """Write a picture with areas and grain."""
    generator = np.random.default_rng(seed)
    areas = cv2.resize(generator.integers(0, 256, (5, 7, 3), np.uint8), (width, height))
    grain = generator.integers(-20, 21, areas.shape)
    cv2.imwrite(str(path), (areas + grain).clip(0, 255).astype(np.uint8))
    return path
