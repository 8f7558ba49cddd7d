"""Reading a config of mmdet 2.x, also when the files it inherits from are not where it says."""

import ast
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from mmengine.config import Config

from deit_detr.errors import UserError

#: What mmdet 2.28's `configs/_base_/default_runtime.py` sets, for configs that come without their mmdet checkout.
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


@dataclass
class LegacyConfig:
    """A 2.x config with everything it inherits.

    Attributes:
        settings (dict): The merged config as plain dicts, lists and tuples, variables of the files among them.
        variables (set[str]): The names that the files read again, such as ``img_norm_cfg``.
        notes (list[str]): A sentence for each base file that was not where the config says.
    """

    settings: dict = field(default_factory=dict)
    variables: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)


def read_config_2x(path: str | Path) -> LegacyConfig:
    """Read a 2.x config. A config is Python code, and reading it runs it.

    A file of ``_base_`` that is missing is looked for by its name beside the config that names it; for mmdet's
    ``default_runtime.py`` the values of mmdet 2.28 stand in.

    Args:
        path: The config.

    Returns:
        LegacyConfig: Settings, variables and notes.

    Raises:
        UserError: If a file is missing, is not a config, or is one of mmdet 3.x.
    """
    path, config = Path(path), LegacyConfig()
    if path.suffix != '.py':
        raise UserError(f'{path}: a Python config (.py) is expected')
    with tempfile.TemporaryDirectory() as folder:
        staged = _stage(path, Path(folder), config)
        try:
            config.settings = Config.fromfile(staged, import_custom_modules=False)._cfg_dict.to_dict()
        except Exception as error:  # the config is code: it can raise anything
            message = str(error).replace(str(folder), '').strip()
            raise UserError(f'{path}: cannot be read as a config: {type(error).__name__}: {message}') from None
    newer = sorted(_ONLY_3X & config.settings.keys())
    if newer:
        raise UserError(
            f'{path}: it, or a file that it inherits from, is a config of mmdet 3.x already: it sets '
            f'{", ".join(newer)}. If `_base_` points into an mmdet checkout, check out v2.28.2 there')
    return config


def _stage(path: Path, folder: Path, config: LegacyConfig) -> Path:
    """Copy a config into ``folder``, after the files it inherits from, with ``_base_`` naming the copies."""
    if not path.is_file():
        raise UserError(f'{path}: no such config file')
    text = path.read_text(encoding='utf-8')
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise UserError(f'{path}, line {error.lineno}: not valid Python: {error.msg}') from None
    config.variables |= {
        node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    config.variables |= set(re.findall(r'_base_\.(\w+)', text))
    lines = text.splitlines()
    for node in tree.body:
        if not (isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', None) == '_base_'):
            continue
        try:
            bases = ast.literal_eval(node.value)
        except ValueError:
            raise UserError(f'{path}, line {node.lineno}: `_base_` is not a plain string or list') from None
        staged = []
        for base in [bases] if isinstance(bases, str) else bases:
            found = _find_base(path, base, folder, config.notes)
            staged.append(str(_stage(found, folder, config)))
        lines[node.lineno - 1:node.end_lineno] = [f'_base_ = {staged}']
        break
    copy = folder / f'{len(list(folder.iterdir()))}_{path.name}'
    copy.write_text('\n'.join(lines) + '\n', encoding='utf-8')
    return copy


def _find_base(path: Path, base: str, folder: Path, notes: list[str]) -> Path:
    named, beside = path.parent / base, path.parent / Path(base).name
    if named.is_file():
        return named
    if beside.is_file():
        notes.append(f'{base}: not there; the one beside {path.name} was taken')
        return beside
    if named.name == 'default_runtime.py':
        notes.append(f'{base}: not there; the values of mmdet 2.28 were taken')
        builtin = folder / 'default_runtime.py'
        builtin.write_text(_DEFAULT_RUNTIME, encoding='utf-8')
        return builtin
    raise UserError(f'{path}: field `_base_`: {base} is neither at {named} nor beside the config. Put it there')
