"""Every recipe on disk builds, learns from a batch with boxes and from one without, and predicts."""

import copy
from pathlib import Path

import pytest
import torch
from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS, MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmengine.structures import InstanceData

from deit_detr.measuring.variants import plain_class
from deit_detr.scannet.classes import scannet_metainfo
from tests.helpers.paths import REPO

RECIPES = sorted((REPO / 'projects').glob('*/configs/**/*.py'))
#: Those on rendered rooms are the small ones.
EACH = [
    pytest.param(path, id=path.stem, marks=[] if path.stem.endswith('mini-scannet') else pytest.mark.slow)
    for path in RECIPES]
SEED = REPO / 'projects/deit_detr/configs/detr_deit-tiny_8xb1-150e_scannet.py'
PURE = REPO / 'projects/deit_detr/configs/pure_python/detr_deit_tiny_8xb1_150e_scannet.py'
#: Detectors whose queries do not come from tokens, so that small images have enough of those.
WITHOUT_SELECTION = ('DETR', 'FastDETR', 'FastConditionalDETR', 'FastDABDETR')
#: The end of a recipe's name says what it is trained on -> its classes.
CLASSES = {
    'scannet': scannet_metainfo(20)['classes'],
    'mini-scannet': scannet_metainfo(20)['classes'],
    'scannet18': scannet_metainfo(18)['classes'],
    'coco': CocoDataset.METAINFO['classes'],
}


def classes_of(path: Path) -> tuple[str, ...]:
    return CLASSES[path.stem.rsplit('_', 1)[1]]


def load(path: Path) -> Config:
    cfg = Config.fromfile(path)
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.init_cfg = None  # weights have their own tests
    return cfg


def build_model(cfg: Config) -> torch.nn.Module:
    torch.manual_seed(0)
    model = MODELS.build(copy.deepcopy(cfg.model))
    model.init_weights()
    return model


def batch(num_boxes: list[int], cfg: Config) -> dict:
    """Images of seeded noise with boxes inside, as a data loader gives them."""
    # the least that has as many tokens as a two-stage model of these recipes has queries, or 0.6 of that
    height, width = (224, 320) if cfg.model.data_preprocessor.get('batch_augments') else (128, 192)
    if getattr(cfg.model.type, '__name__', cfg.model.type) in WITHOUT_SELECTION:
        height, width = 64, 128
    generator = torch.Generator().manual_seed(0)
    items = []
    for number in num_boxes:
        corners = torch.rand(number, 2, 2, generator=generator).sort(dim=1).values
        boxes = (corners * torch.tensor([width - 9, height - 9])).flatten(1) + torch.tensor([0.0, 0, 8, 8])
        labels = torch.randint(0, cfg.model.bbox_head.num_classes, (number,), generator=generator)
        sample = DetDataSample(
            metainfo=dict(img_shape=(height, width), ori_shape=(height, width), scale_factor=(1.0, 1.0), img_id=0),
            gt_instances=InstanceData(bboxes=boxes, labels=labels))
        image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
        items.append(dict(inputs=image, data_samples=sample))
    return pseudo_collate(items)


#: Models with their optimizers that have taken their steps in this process.
STEPPED = set()


@pytest.mark.parametrize('path', EACH)
def test_recipe_steps_and_predicts(path, device, request):
    """On a CPU with the operators that mmdet calls on a GPU; its own way there is tested everywhere else.

    Recipes that have model and optimizer in common, and differ in their schedule, would take the same steps.
    """
    if device.type == 'cpu':
        request.getfixturevalue('operators_as_on_gpu')
    cfg = load(path)
    same = repr((cfg.model, cfg.optim_wrapper, device))
    if same in STEPPED:
        return
    model = build_model(cfg).to(device)
    optim_wrapper = build_optim_wrapper(model, copy.deepcopy(cfg.optim_wrapper))

    with_gradient = set()
    for name, param in model.named_parameters():
        param.register_post_accumulate_grad_hook(lambda _, name=name: with_gradient.add(name))
    for num_boxes in ([0, 0], [3, 1]):
        before = {name: param.detach().clone() for name, param in model.named_parameters()}
        with_gradient.clear()
        total = model.train().train_step(batch(num_boxes, cfg), optim_wrapper)['loss']
        assert torch.isfinite(total), num_boxes
        without = sorted(before.keys() - with_gradient)
        assert not without, f'{num_boxes} boxes: no gradient, so DDP would hang: {without}'
        moved = sum(not torch.equal(before[name], param) for name, param in model.named_parameters())
        assert moved > 0.9 * len(before)

    model.eval()
    with torch.no_grad():
        prediction = model.test_step(batch([2], cfg))[0].pred_instances
    assert 0 < len(prediction) <= model.test_cfg['max_per_img']
    assert prediction.labels.min() >= 0 and prediction.labels.max() < len(classes_of(path))
    assert (prediction.scores[:-1] >= prediction.scores[1:]).all() or len(prediction) == 100
    assert prediction.bboxes.isfinite().all() and prediction.bboxes.min() >= 0
    STEPPED.add(same)


@pytest.mark.parametrize('path', EACH)
def test_recipe_data_hooks_and_schedule_build(path, data_roots, monkeypatch, tmp_path):
    monkeypatch.setattr(Runner, 'build_model', lambda *_: torch.nn.Identity())  # the test above builds it
    cfg = load(path)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        dataset = DATASETS.build(copy.deepcopy(loader.dataset))
        sample = dataset[0]
        assert sample['inputs'].dtype == torch.uint8
        assert len(sample['data_samples'].gt_instances) > 0
        assert dataset.metainfo['classes'] == classes_of(path)
    assert cfg.model.bbox_head.num_classes == len(classes_of(path))
    assert cfg.val_dataloader.batch_size == cfg.test_dataloader.batch_size == 1
    assert cfg.auto_scale_lr.enable is False and cfg.auto_scale_lr.base_batch_size > 0
    cfg.work_dir, cfg.launcher = str(tmp_path), 'none'
    hooks = {type(hook).__name__ for hook in Runner.from_cfg(cfg).hooks}
    assert {
        'SafeCheckpointHook', 'PreemptionHook', 'RunRecordHook', 'SceneVisualizationHook', 'PretrainedCheckHook',
    } <= hooks


FAMILIES = ['detr', 'conditional-detr', 'dab-detr', 'deformable-detr', 'dino', 'lw-detr', 'ec-detr']


@pytest.mark.parametrize('family', FAMILIES)
def test_operators_of_a_gpu_change_no_loss(family, request):
    (path,) = (REPO / 'projects/deit_detr/configs').glob(f'{family}_deit-tiny_*_mini-scannet.py')
    cfg = load(path)
    focal = cfg.model.bbox_head.loss_cls.type == 'FocalLoss'
    if focal:
        cfg.model.bbox_head.type = plain_class(cfg.model.bbox_head.type)  # the fast heads call no such operator
    model = build_model(cfg).train()
    found = []
    for calls in (None, 'operators_as_on_gpu'):
        calls = request.getfixturevalue(calls) if calls else None
        torch.manual_seed(1)
        losses = model(**model.data_preprocessor(batch([3, 1], cfg), training=True), mode='loss')
        found.append({name: value.item() for name, value in losses.items()})
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    assert (calls['sigmoid_focal_loss_forward'] > 0) == focal


def test_pure_python_face_builds_the_same_system(data_roots):
    text, pure = load(SEED), load(PURE)

    model_a, model_b = build_model(text), build_model(pure)
    assert repr(model_a) == repr(model_b)
    state_a, state_b = model_a.state_dict(), model_b.state_dict()
    assert list(state_a) == list(state_b)
    assert all(torch.equal(state_a[key], state_b[key]) for key in state_a)
    costs_a, costs_b = (
        [(type(cost), vars(cost)) for cost in model.bbox_head.assigner.match_costs] for model in (model_a, model_b))
    assert costs_a == costs_b

    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        set_a, set_b = (DATASETS.build(copy.deepcopy(cfg[loader].dataset)) for cfg in (text, pure))
        assert repr(set_a.pipeline) == repr(set_b.pipeline)
        assert (type(set_a), set_a.ann_file, set_a.filter_cfg) == (type(set_b), set_b.ann_file, set_b.filter_cfg)
        rest_a, rest_b = (
            {key: value for key, value in cfg[loader].items() if key not in ('dataset', 'sampler', 'batch_sampler')}
            for cfg in (text, pure))
        assert rest_a == rest_b

    groups_a, groups_b = (
        build_optim_wrapper(model, copy.deepcopy(cfg.optim_wrapper)).optimizer.state_dict()['param_groups']
        for model, cfg in ((model_a, text), (model_b, pure)))
    assert groups_a == groups_b
    for field in ('train_cfg.max_epochs', 'auto_scale_lr', 'log_processor.window_size', 'optim_wrapper.clip_grad'):
        value_a, value_b = text, pure
        for part in field.split('.'):
            value_a, value_b = value_a[part], value_b[part]
        assert value_a == value_b, field
    scheduler_a, scheduler_b = (dict(cfg.param_scheduler[0], type=None) for cfg in (text, pure))
    assert scheduler_a == scheduler_b


def test_seed_recipe_is_the_2x_recipe():
    """The numbers of the 2.x config, one by one."""
    cfg = load(SEED)
    model = build_model(cfg)
    assert sum(param.numel() for param in model.parameters()) == 17_803_225
    assert cfg.train_dataloader.batch_size == 1 and cfg.train_dataloader.num_workers == 2
    assert cfg.train_cfg.max_epochs == 150 and cfg.train_cfg.val_interval == 1
    assert cfg.param_scheduler[0].milestones == [100]
    assert cfg.optim_wrapper.clip_grad == dict(max_norm=0.1, norm_type=2)
    assert cfg.auto_scale_lr.base_batch_size == 8
    assert cfg.val_evaluator.metric == 'bbox' and cfg.val_evaluator.classwise
    assert cfg.default_hooks.checkpoint.save_best == 'coco/bbox_mAP'

    optimizer = build_optim_wrapper(model, copy.deepcopy(cfg.optim_wrapper)).optimizer
    backbone = {id(param) for param in model.backbone.parameters()}
    for group in optimizer.param_groups:
        in_backbone = {id(param) in backbone for param in group['params']}
        assert in_backbone == {group['lr'] == pytest.approx(1e-5)}
        assert group['lr'] == pytest.approx(1e-5 if in_backbone == {True} else 1e-4)
        assert group['weight_decay'] == pytest.approx(1e-4)
