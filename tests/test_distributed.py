"""Several processes compute what one does on the same images, and survive the end of one of them."""

import json
import sys
from pathlib import Path

import pytest
import torch

from conftest import REPO

CONFIGS = REPO / 'projects/deit_detr/configs'
#: Nothing random in the model, but for its weights: dropout draws other numbers in every process.
WITHOUT_DROPOUT = [
    'model.encoder.layer_cfg.self_attn_cfg.dropout=0', 'model.encoder.layer_cfg.ffn_cfg.ffn_drop=0',
    'model.decoder.layer_cfg.self_attn_cfg.dropout=0', 'model.decoder.layer_cfg.cross_attn_cfg.dropout=0',
    'model.decoder.layer_cfg.ffn_cfg.ffn_drop=0',
]  # fmt: skip
MODELS = {
    'detr_deit-tiny_1xb8-50e_mini-scannet.py': [
        'model.encoder.num_layers=1', 'model.decoder.num_layers=2', *WITHOUT_DROPOUT,
        # the recipe, as in 2.x, normalises the class loss in each process by itself
        'model.bbox_head.sync_cls_avg_factor=True',
    ],
    'lw-detr_deit-tiny_1xb4-16e_mini-scannet.py': ['model.decoder.num_layers=2'],
}  # fmt: skip


def data_root(folder: Path, mini_scannet: Path, images: int, empty: int | None = None) -> Path:
    """The first training images, for training and for validation; one of them without a box if asked for."""
    content = json.loads((mini_scannet / 'scannet_objdet_train.json').read_text())
    content['images'] = content['images'][:images]
    kept = [image['id'] for index, image in enumerate(content['images']) if index != empty]
    content['annotations'] = [box for box in content['annotations'] if box['image_id'] in kept]
    folder.mkdir()
    for split in ('train', 'val'):
        (folder / f'scannet_objdet_{split}.json').write_text(json.dumps(content))
        (folder / split).symlink_to(mini_scannet / 'train')
    return folder


@pytest.mark.parametrize('recipe', MODELS)
def test_gradients_equal_those_of_one_process(recipe, run, tmp_path, mini_scannet):
    """Of 8 images the fourth has no box: of 8 processes the fourth has none."""
    root = data_root(tmp_path / 'data', mini_scannet, images=8, empty=3)
    run(sys.executable, REPO / 'tests/first_step.py', CONFIGS / recipe, tmp_path, '--processes', 1, 2, 4, 8,
        '--cfg-options', 'model.backbone.init_cfg=None', 'train_dataloader.dataset.filter_cfg=None',
        'train_dataloader.dataset.pipeline.3.prob=0.0', *MODELS[recipe],
        MINI_SCANNET_ROOT=f'{root}/', CUDA_VISIBLE_DEVICES='', OMP_NUM_THREADS=1)
    single = torch.load(tmp_path / '1.pth', weights_only=True)
    largest = max(gradient.abs().max() for gradient in single['gradients'])
    for processes in (2, 4, 8):
        several = torch.load(tmp_path / f'{processes}.pth', weights_only=True)
        assert several['loss'] == pytest.approx(single['loss'], rel=1e-6)
        for gradient, expected in zip(several['gradients'], single['gradients'], strict=True):
            assert (gradient - expected).abs().max() <= 1e-6 * largest
            assert (gradient - expected).norm() <= 2e-5 * expected.norm()  # small ones, too
