"""Translate the data of a 2.x config: loaders, data sets and evaluators."""

import re

from deit_detr.errors import UserError
from deit_detr.migration.pipeline_2x import translate_transforms
from deit_detr.migration.untranslated import take, take_if

_TEST_META_KEYS = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')


def translate_data(old: dict, preprocessor: dict, by_hand: list[str]) -> dict:
    """Translate data loaders and evaluators.

    Raises:
        UserError: If a data set has no annotation file.
    """
    data, evaluation = old['data'], old.get('evaluation', {})
    data_root = old['data_root'] if isinstance(old.get('data_root'), str) else None
    batch_size, workers = data.pop('samples_per_gpu', 1), data.pop('workers_per_gpu', 2)
    metric = dict(type='CocoMetric', metric=evaluation.pop('metric', 'bbox')) | take(
        evaluation, 'classwise', 'proposal_nums', 'metric_items')
    new = {}
    for split in ('train', 'val', 'test'):
        training = split == 'train'
        own = data.get(f'{split}_dataloader', {})
        dataset = data[split]
        new[f'{split}_dataloader'] = dict(
            batch_size=own.pop('samples_per_gpu', dataset.pop('samples_per_gpu', batch_size if training else 1)),
            num_workers=(num_workers := own.pop('workers_per_gpu', workers)),
            persistent_workers=own.pop('persistent_workers', num_workers > 0),
            **({} if training else dict(drop_last=False)),
            sampler=dict(type='DefaultSampler', shuffle=own.pop('shuffle', training)),
            **(dict(batch_sampler=dict(type='AspectRatioBatchSampler')) if training else {}),
            dataset=_dataset(dataset, split, data_root, preprocessor, by_hand))
        if not training:
            dataset = new[f'{split}_dataloader']['dataset']
            new[f'{split}_evaluator'] = metric | dict(
                ann_file=_joined(dataset.get('data_root', ''), dataset['ann_file']))
    return {name: new[name] for name in (
        'train_dataloader', 'val_dataloader', 'test_dataloader', 'val_evaluator', 'test_evaluator')}


def _dataset(old: dict, split: str, data_root: str | None, preprocessor: dict, by_hand: list[str]) -> dict:
    training = split == 'train'
    if not isinstance(old, dict) or 'ann_file' not in old:
        raise UserError(f'field data.{split}: has no ann_file; wrappers such as RepeatDataset cannot be translated')
    if old.get('type') != 'CocoDataset':
        by_hand.append(f'data.{split}.type: {old.get("type")} is kept unchanged; check its arguments')
    new = dict(type=old.pop('type'))
    root, ann_file, prefix = old.pop('data_root', None), old.pop('ann_file'), old.pop('img_prefix', '')
    if root is None and data_root and ann_file.startswith(data_root) and prefix.startswith(data_root):
        root, ann_file, prefix = data_root, ann_file.removeprefix(data_root), prefix.removeprefix(data_root)
    if root is not None:
        new['data_root'] = root_from_environment(root) if root == data_root else root
    new |= dict(ann_file=ann_file, data_prefix=dict(img=prefix))
    classes = old.pop('classes', None)
    if classes is not None:
        new['metainfo'] = dict(classes=classes)
    if training:
        # CocoDataset of 2.x leaves out images without boxes and images with a side under 32 pixels
        new['filter_cfg'] = dict(filter_empty_gt=old.pop('filter_empty_gt', True), min_size=32)
    else:
        new['test_mode'] = True
        take_if(old, 'test_mode', True)
    take_if(old, 'file_client_args', dict(backend='disk'))
    transforms = translate_transforms(old['pipeline'], preprocessor)
    if not training and not any(transform['type'] == 'LoadAnnotations' for transform in transforms):
        transforms.append(dict(type='LoadAnnotations', with_bbox=True))  # for pictures of predictions
    pack = dict(type='PackDetInputs')
    new['pipeline'] = [*transforms, pack if training else pack | dict(meta_keys=_TEST_META_KEYS)]
    return new


def _joined(root: str, path: str) -> str:
    # with a slash also after a root from the environment, which may end without one
    return path if path.startswith('/') else root + ('' if not root or root.endswith('/') else '/') + path


class _Source(str):
    """The source of an expression in a config."""

    __repr__ = str.__str__


def root_from_environment(root: str) -> str:
    """Return a data root that the environment replaces, as MMDET_DATASETS does in train.py of 2.x.

    In 3.x the config has to ask for that. mmengine replaces variables in the text of the config, and takes
    their default for a regular expression.

    Returns:
        str: Its ``repr`` is the source: ``DEIT_DATASETS``, else its old name ``MMDET_DATASETS``, else ``root``. A root
            with other characters than a plain path is returned unchanged.
    """
    if not re.fullmatch(r'[\w./:@%,~=-]+', root):
        return root
    return _Source("'{{$DEIT_DATASETS:<old>}}'.replace('<old>', '{{$MMDET_DATASETS:" + root + "}}')")
