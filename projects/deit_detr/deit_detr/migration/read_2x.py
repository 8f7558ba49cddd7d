"""Read a config of mmdet 2.x, even if the files that it inherits from are not where it says."""

import ast
from dataclasses import dataclass, field
from pathlib import Path

from mmengine.config import Config

from deit_detr.config_values import ConfigValues, parse_config
from deit_detr.errors import UserError

#: Settings of `configs/_base_/default_runtime.py` of mmdet 2.28, for configs that come without their mmdet checkout.
_DEFAULT_RUNTIME = """
checkpoint_config = dict(interval=1)
log_config = dict(interval=50, hooks=[dict(type='TextLoggerHook')])
custom_hooks = [dict(type='NumClassCheckHook')]
dist_params = dict(backend='nccl')
log_level = 'INFO'
load_from = None
resume_from = None
workflow = [('train', 1)]
opencv_num_threads = 0
mp_start_method = 'fork'
auto_scale_lr = dict(enable=False, base_batch_size=16)
"""

#: Settings that only mmdet 3.x configs have.
_ONLY_3X = {'train_dataloader', 'val_evaluator', 'optim_wrapper', 'default_hooks', 'default_scope', 'train_cfg'}
#: More files than any config inherits from.
_MAX_BASES = 20


@dataclass
class Config2x:
    """A 2.x config with everything that it inherits.

    Attributes:
        settings (dict): The merged config as plain dicts, lists and tuples, including variables of the files.
        variables (set[str]): Names that the files read again, such as ``img_norm_cfg``.
        notes (list[str]): A sentence for each base file that is not where the config says.
    """

    settings: dict = field(default_factory=dict)
    variables: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)


def read_config_2x(path: str | Path) -> Config2x:
    """Read a 2.x config without running it.

    If a file of ``_base_`` is missing, a file of the same name beside the config is taken; for ``default_runtime.py``,
    the values of mmdet 2.28.

    Args:
        path: The config.

    Returns:
        Config2x: Settings, variables and notes.

    Raises:
        UserError: If a file is missing, is not a config, contains code, or is a config of mmdet 3.x.
    """
    path, config = Path(path), Config2x()
    if path.suffix != '.py':
        raise UserError(f'{path}: not a Python config (.py)')
    config.settings = _read_file(path, config, ConfigValues(), [])
    newer = sorted(_ONLY_3X & config.settings.keys())
    if newer:
        raise UserError(
            f'{path}: this config, or a file that it inherits from, is for mmdet 3.x already: it sets '
            f'{", ".join(newer)}. If `_base_` points into an mmdet checkout, check out v2.28.2 there')
    return config


def _read_file(path: Path, config: Config2x, values: ConfigValues, seen: list[Path]) -> dict:
    """Return the settings of a file, merged into those that it inherits; ``seen`` holds the files read so far."""
    if not path.is_file():
        raise UserError(f'{path}: no such config file')
    if path.resolve() in seen or len(seen) > _MAX_BASES:
        raise UserError(f'{path}: field `_base_`: inherited twice or by itself, or more than {_MAX_BASES} files')
    seen.append(path.resolve())
    tree = parse_config(path)
    config.variables |= {
        node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    config.variables |= {
        node.attr for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == '_base_'}
    base = {}
    for name in _base_names(path, tree):
        found = _find_base(path, name, config.notes)
        if found is None:
            settings = values.read(ast.parse(_DEFAULT_RUNTIME), {})
        else:
            settings = _read_file(found, config, values, seen)
        if twice := base.keys() & settings.keys():
            raise UserError(f'{path}: field `_base_`: two of the files set {", ".join(sorted(twice))}')
        base |= settings
    try:
        own = values.read(tree, base)
        own.pop('_base_', None)
        merged = Config(base)
        merged.merge_from_dict(own, allow_list_keys=False)
    except UserError as error:
        raise UserError(f'{path}, {error}') from None
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f'{path}: cannot be read as a config: {type(error).__name__}: {error}') from None
    return merged._cfg_dict.to_dict()


def _base_names(path: Path, tree: ast.Module) -> list[str]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', None) == '_base_':
            try:
                names = ast.literal_eval(node.value)
            except (ValueError, TypeError, RecursionError):
                names = None
            names = [names] if isinstance(names, str) else names
            if not isinstance(names, list) or len(names) > _MAX_BASES or not all(
                    isinstance(name, str) for name in names):
                raise UserError(f'{path}, line {node.lineno}: `_base_` is not a string or a list of strings')
            return names
    return []


def _find_base(path: Path, base: str, notes: list[str]) -> Path | None:
    """Return the path of a base file; ``None`` stands for mmdet's default runtime."""
    named, beside = path.parent / base, path.parent / Path(base).name
    if named.is_file():
        return named
    if beside.is_file():
        notes.append(f'{base}: does not exist; the file beside {path.name} is used')
        return beside
    if named.name == 'default_runtime.py':
        notes.append(f'{base}: does not exist; the values of mmdet 2.28 are used')
        return None
    raise UserError(f'{path}: field `_base_`: {base} is neither at {named} nor beside the config. Copy it there')
