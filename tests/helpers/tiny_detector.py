"""A small detector with seeded weights on disk: a config and a checkpoint, as training writes them."""

import copy
from pathlib import Path

import torch
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from tests.helpers.paths import REPO

DINO = REPO / 'projects/deit_detr/configs/dino_deit-tiny_1xb4-8e_mini-scannet.py'


def save_tiny(folder: Path, recipe: Path = DINO, model: str = '', zeros: bool = True) -> tuple[Path, Path]:
    """Write ``config.py`` and ``epoch_1.pth``, whose weights make a few scores high; which ones depends on the image.

    Args:
        folder: Folder for the files.
        recipe: Config to inherit from.
        model: More fields of ``model``, as the text of a dict.
        zeros: Whether branches and offsets are zero, as initially, and have no effect.
    """
    config, checkpoint = folder / 'config.py', folder / 'epoch_1.pth'
    folder.mkdir(parents=True, exist_ok=True)
    config.write_text(
        f"_base_ = '{recipe}'\n"
        'arch = dict(_delete_=True, embed_dims=192, num_layers=3, num_heads=3, feedforward_channels=384)\n'
        'model = dict(backbone=dict(arch=arch, init_cfg=None), encoder=dict(num_layers=1), '
        f'decoder=dict(num_layers=2){model and ", "}{model})\n'
        'test_dataloader = dict(dataset=dict(pipeline=[\n'
        "    dict(type='LoadImageFromFile'), dict(type='Resize', scale=(320, 240), keep_ratio=True),\n"
        "    dict(type='LoadAnnotations', with_bbox=True),\n"
        "    dict(type='PackDetInputs',\n"
        "         meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))]))\n")
    cfg = Config.fromfile(config)
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    detector = MODELS.build(copy.deepcopy(cfg.model))
    detector.init_weights()
    for name, param in detector.named_parameters():
        if name.endswith('weight') and ('cls_branches' in name or 'fc_cls' in name):
            torch.nn.init.normal_(param, std=0.1 if 'branches' in name else 0.2)
    if not zeros:
        generator = torch.Generator().manual_seed(0)
        for tensor in detector.state_dict().values():
            if tensor.is_floating_point() and not tensor.any():
                tensor.normal_(std=0.05, generator=generator)
    classes = DATASETS.get(cfg.test_dataloader.dataset.type).METAINFO['classes']
    torch.save(dict(state_dict=detector.state_dict(), meta=dict(dataset_meta=dict(classes=classes))), checkpoint)
    return config, checkpoint
