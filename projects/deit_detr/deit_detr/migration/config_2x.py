"""Translate a DETR config of mmdet 2.x to mmdet 3.x.

Every ``translate_*`` function takes what it translates out of ``old``, moves settings of the data preprocessor, which
2.x has in its pipelines, into ``preprocessor``, and adds to ``by_hand`` what a person has to check. Whatever is left in
the end is listed as not translated, so nothing is dropped silently.
"""

from dataclasses import dataclass
from pathlib import Path

from deit_detr.errors import UserError
from deit_detr.migration.config_text import config_text
from deit_detr.migration.data_2x import root_from_environment, translate_data
from deit_detr.migration.model_2x import translate_model
from deit_detr.migration.read_2x import Config2x, read_config_2x
from deit_detr.migration.training_2x import translate_runtime, translate_schedule
from deit_detr.migration.untranslated import holds, leaves, shortened, unshared

#: Top-level settings of 2.x; any other name that the config reads again is a variable of its author.
_SETTINGS = {
    'model', 'data', 'evaluation', 'optimizer', 'optimizer_config', 'fp16', 'lr_config', 'momentum_config', 'runner',
    'total_epochs', 'checkpoint_config', 'log_config', 'custom_hooks', 'custom_imports', 'dist_params', 'log_level',
    'load_from', 'resume_from', 'workflow', 'opencv_num_threads', 'mp_start_method', 'cudnn_benchmark',
    'find_unused_parameters', 'auto_scale_lr', 'work_dir', 'seed', 'deterministic', 'gpu_ids', 'device',
}


@dataclass
class ConvertedConfig:
    """A translated config.

    Attributes:
        text (str): The 3.x config as Python source; a comment at its top holds the notes.
        by_hand (list[str]): Paths in the 2.x config that were not translated, each with its value or a reason.
        notes (list[str]): Where base files come from that are not where the config says.
    """

    text: str
    by_hand: list[str]
    notes: list[str]


def convert_config_2x(path: str | Path) -> ConvertedConfig:
    """Translate a 2.x DETR config.

    Args:
        path: The config.

    Returns:
        ConvertedConfig: The 3.x config and what is left to do by hand.

    Raises:
        UserError: If the config cannot be read, or is not the config of a DETR of mmdet 2.x.
    """
    config = read_config_2x(path)
    original = config.settings
    missing = [name for name in ('model', 'data', 'optimizer') if name not in original]
    if missing:
        raise UserError(f'{path}: not a complete config of mmdet 2.x: {", ".join(missing)} missing')
    kind = original['model'].get('type') if isinstance(original['model'], dict) else original['model']
    if kind != 'DETR':
        raise UserError(f'{path}: field model.type: {shortened(kind)}; only DETR can be translated')

    old, by_hand, preprocessor = unshared(original), [], {}
    try:
        loaders = translate_data(old, preprocessor, by_hand)
        settings = dict(
            default_scope='mmdet',
            custom_imports=_custom_imports(old, by_hand),
            model=translate_model(old['model'], preprocessor, by_hand),
            **loaders,
            **translate_schedule(old),
            **translate_runtime(old),
        )
    except KeyError as error:
        raise UserError(f'{path}: not a 2.x DETR config: field {error} is missing') from None
    except UserError as error:
        raise UserError(f'{path}: {error}') from None
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise UserError(f'{path}: not a 2.x DETR config: a field is of another type ({error})') from None
    _take_variables(old, config)
    by_hand += [f'{name} = {shortened(value)}' for name, value in leaves(old, '')]

    header = [f'Made by tools/misc/convert_config_2x.py from {Path(path).name} (mmdet 2.x).', *config.notes]
    if by_hand:
        header += ['', 'NOT TRANSLATED, to be done by hand:', *(f'- {item}' for item in by_hand)]
    variables = {}
    if isinstance(original.get('data_root'), str):
        variables['data_root'] = root_from_environment(original['data_root'])
    train_set, val_set = (settings[f'{split}_dataloader']['dataset'] for split in ('train', 'val'))
    variables |= dict(train_pipeline=train_set['pipeline'], test_pipeline=val_set['pipeline'])
    if train_set.get('metainfo'):
        variables['metainfo'] = train_set['metainfo']
    return ConvertedConfig(config_text(header, variables, settings), by_hand, config.notes)


def _take_variables(old: dict, config: Config2x) -> None:
    """Remove the author's own variables, whose values are translated where the config reads them.

    A config that 2.x wrote into a work folder reads no variables; there, dicts and lists are recognized by their value.
    """
    used = {name: value for name, value in config.settings.items() if name in _SETTINGS}
    for name in old.keys() - _SETTINGS:
        value = config.settings[name]
        if (
                name in config.variables or name in ('dataset_type', 'data_root')
                or isinstance(value, (dict, list, tuple)) and holds(used, value)):
            del old[name]


def _custom_imports(old: dict, by_hand: list[str]) -> dict:
    custom = old.get('custom_imports', {})
    new = ['deit_detr']  # imports mmpretrain's models itself, before all others
    imports = custom.pop('imports', [])
    for name in [imports] if isinstance(imports, str) else imports:
        if not name.startswith('mmcls'):
            new.append(name)
            by_hand.append(f'custom_imports.imports: {name} is kept unchanged; it has to register with mmdet 3.x')
    return dict(imports=new, allow_failed_imports=custom.pop('allow_failed_imports', False))
