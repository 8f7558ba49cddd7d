"""Checks, records and reports see the data sets inside of every wrapper."""

from types import SimpleNamespace

import pytest
from mmdet.datasets import MultiImageMixDataset
from mmengine.config import Config, ConfigDict
from mmengine.dataset import ClassBalancedDataset, ConcatDataset, DefaultSampler, RepeatDataset
from mmengine.runner import BaseLoop
from torch.utils.data import BatchSampler, DataLoader

from deit_detr.datasets.scannet import ScanNetDataset
from deit_detr.datasets.wrappers import unwrap
from deit_detr.engine.resume.train_loop import seeded_loader
from deit_detr.engine.start.classes import check_classes
from deit_detr.engine.start.data import check_data
from deit_detr.engine.start.findings import FAIL, OK
from deit_detr.engine.watch.run_record import _datasets
from deit_detr.evaluation.detections import read_data
from deit_detr.measuring.race import files_of


@pytest.fixture
def rooms(mini_scannet):
    return ScanNetDataset(
        data_root=str(mini_scannet), ann_file='scannet_objdet_val.json', data_prefix=dict(img='val/'))


def seeded(dataset):
    batches = BatchSampler(DefaultSampler(dataset), 1, drop_last=False)
    return seeded_loader(DataLoader(dataset, batch_sampler=batches)).dataset


WRAPPERS = {
    'none': (lambda dataset: dataset, ['']),
    'concatenated': (lambda dataset: ConcatDataset([dataset, dataset]), ['.0', '.1']),
    'repeated': (lambda dataset: RepeatDataset(dataset, 3), ['']),
    'balanced': (lambda dataset: ClassBalancedDataset(dataset, 0.1), ['']),
    'mixed': (lambda dataset: MultiImageMixDataset(dataset, []), ['']),
    'seeded': (seeded, ['']),
    'seeded, repeated, concatenated': (
        lambda dataset: seeded(RepeatDataset(dict(type='ConcatDataset', datasets=[dataset, dataset]), 2)),
        ['.0', '.1'])}


@pytest.mark.parametrize('name', WRAPPERS)
def test_all_parts_are_found(name, rooms):
    wrap, names = WRAPPERS[name]
    dataset = wrap(rooms)
    found = list(unwrap(dataset, 'val'))
    assert [part for part, _ in found] == [f'val{part}' for part in names]
    assert all(part is rooms for _, part in found)

    loop = object.__new__(type('Loop', (BaseLoop,), dict(run=None)))
    loop.dataloader = SimpleNamespace(dataset=dataset)
    runner = SimpleNamespace(_train_loop=None, _val_loop=loop)
    assert list(_datasets(runner)) == found, 'run.json'
    status, message = check_classes(dict(val=dataset), {}, ConfigDict(bbox_head=dict(num_classes=3)))
    assert status == FAIL and 'model.bbox_head.num_classes is 3' in message
    findings = {finding.check: finding for finding in check_data(dict(val=dataset))}
    assert findings['val annotations'].status == OK
    assert findings['val annotations'].message.startswith(f'{8 * len(names)} images')


def test_configs_are_unwrapped_as_well(mini_scannet):
    inner = dict(
        type='ScanNetDataset', data_root=f'{mini_scannet}/', ann_file='scannet_objdet_val.json',
        data_prefix=dict(img='val/'))
    cfg = Config(dict(
        train_dataloader=dict(dataset=dict(type='RepeatDataset', times=3, dataset=inner)),
        val_dataloader=dict(dataset=dict(type='ConcatDataset', datasets=[inner, inner]))))
    file = f'{mini_scannet}/scannet_objdet_val.json'
    assert files_of(cfg) == {'train': file, 'val.0': file, 'val.1': file}
    train, val = read_data(cfg, 'train'), read_data(cfg, 'val')
    assert (train.num_images, train.ann_file) == (8, file), 'repeated images count once'
    assert (val.num_images, val.num_boxes, val.ann_file) == (16, 2 * train.num_boxes, None)
