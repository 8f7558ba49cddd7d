"""Read a config with mmengine, and say in one sentence what is wrong in it."""

import argparse
import ast
import os
import re
import traceback
from pathlib import Path

from mmengine.config import Config, DictAction
from mmengine.utils import import_modules_from_strings

from deit_detr.errors import UserError


class Options(DictAction):
    """mmengine's action for ``KEY=VALUE`` arguments; an argument without ``=`` is a mistake in usage."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: list, *rest) -> None:
        """Parse the arguments.

        Raises:
            argparse.ArgumentError: If one has no ``=``.
        """
        for value in values:
            if '=' not in value:
                raise argparse.ArgumentError(self, f'{value!r} is not KEY=VALUE')
        super().__call__(parser, namespace, values, *rest)


def read_config(path: str | Path, options: dict | None = None) -> Config:
    """Read a config. A variable in it that is set to nothing, as docker-compose does, counts as unset.

    Args:
        path: The config.
        options: Settings that override those of the config, as :class:`Options` parses them.

    Returns:
        Config: As ``Config.fromfile`` returns it.

    Raises:
        UserError: If a file is missing or mmengine cannot read it. The message names the file, the line where it is
            known, and the fix. Errors inside modules of ``custom_imports`` are not changed.
    """
    if not Path(path).is_file():
        raise UserError(f'{path}: no such config file')
    while True:
        try:
            cfg = Config.fromfile(path)
            break
        except Exception as error:
            if (name := _missing_variable(error)) and os.environ.pop(name, None) == '':
                continue
            sentence = _Failure(error, path).explain()
            if sentence is None:
                raise
            raise UserError(sentence) from error
    for field in _unused_deletes(cfg._cfg_dict):
        raise UserError(f'{path}: {field}._delete_: no base config sets this field, or a field around it is deleted '
                        'already: remove this _delete_')
    if options:
        try:
            cfg.merge_from_dict(options)
        except (AttributeError, KeyError, TypeError) as error:
            raise UserError(
                f'{path}: --cfg-options {" ".join(options)} do not fit the config: {_words(error)}') from error
        if any(key.split('.')[0] == 'custom_imports' for key in options):
            _import_modules(cfg._cfg_dict, path)  # mmengine imports only those that the file names
    return cfg


def _import_modules(cfg_dict: dict, path: str | Path) -> None:
    try:
        import_modules_from_strings(**cfg_dict['custom_imports'])
    except ImportError as error:
        if (sentence := _Failure(error, path).explain()) is None:
            raise
        raise UserError(sentence) from error


def recipe_path(name: str) -> Path:
    """Return the path of a recipe of this project, by its file name.

    Raises:
        UserError: If the package was installed without the recipes.
    """
    path = Path(__file__).resolve().parents[1] / 'configs' / name
    if not path.is_file():
        raise UserError(f'{path}: no such recipe. Install this project from its checkout: bash tools/setup_env.sh')
    return path


def _missing_variable(error: Exception) -> str | None:
    found = re.match(r'`(\w+)` cannot be found in `os.environ`', _words(error))
    return found and found[1]


def _words(error: BaseException) -> str:
    """Return the message of an error, in one line."""
    return ' '.join(str(error.args[0] if isinstance(error, KeyError) and error.args else error).split())


def _unused_deletes(value: object, field: str = '') -> list[str]:
    """Return the objects to build in which ``_delete_`` is left: their classes would get it as an argument."""
    if isinstance(value, dict):
        here = [field] if {'type', '_delete_'} <= value.keys() else []
        # dict's own method: that of ConfigDict imports the classes of pure-Python configs
        return here + [found for key, item in dict.items(value) for found in _unused_deletes(
            item, f'{field}.{key}' if field else str(key))]
    if isinstance(value, (list, tuple)):
        return [found for index, item in enumerate(value) for found in _unused_deletes(item, f'{field}[{index}]')]
    return []


def _name_of(path: str) -> str:
    """Return a pattern for the lines that name a config."""
    return rf'\b{re.escape(Path(path).stem)}\b'


class _Failure:
    """An error while a config is read, with the file that was being read and the calls that led to it."""

    def __init__(self, error: Exception, path: str | Path) -> None:
        self.error, self.path, self.words = error, os.path.abspath(path), _words(error)
        self.shown = {self.path: path}
        self.calls = dict(traceback.walk_tb(error.__traceback__))  # frame -> line; mmengine raises in each frame again
        self.names = {frame.f_code.co_name for frame in self.calls}
        #: The config and the base configs that led to the file that failed.
        self.chain = [
            os.path.abspath(frame.f_locals['filename']) for frame in self.calls
            if frame.f_code.co_name in ('_file2dict', '_parse_lazy_import')] or [self.path]
        self.file, self.child = self.chain[-1], self.chain[-2:][0]

    def explain(self) -> str | None:
        """Return one sentence with file, line and fix; None for an error in a module that the config imports."""
        if 'import_modules_from_strings' in self.names or self.words.startswith('Failed to import custom modules'):
            return self._missing_module()
        file, line, words = self._find_base_problem() or self._find_problem()
        if isinstance(line, str):
            lines = Path(file).read_text(encoding='utf-8', errors='replace').splitlines()
            line = next((number for number, text in enumerate(lines, 1) if re.search(line, text)), None)
        return f'{self.shown.get(file, file)}{f", line {line}" if line else ""}: {words}'

    def _find_base_problem(self) -> tuple[str, int | str | None, str] | None:
        """Return file, line (or a pattern for it) and words for a base config that is missing or does not fit."""
        words = self.words
        if len(set(self.chain)) < len(self.chain):
            again = next(index for index, file in enumerate(self.chain) if file in self.chain[:index])
            circle = self.chain[self.chain.index(self.chain[again]):again + 1]
            return circle[-2], _name_of(circle[-1]), f'the base configs form a circle: {" -> ".join(circle)}'
        if not os.path.isfile(self.file):
            return self.child, _name_of(self.file), f'the base config {self.file} does not exist'
        if ' not found! It means' in words:
            gone = words.split(' not found!')[0]
            return self.file, _name_of(gone), f'the base config {gone} does not exist'
        if 'inheritance chain' in words or 'context manager' in words:
            return self._find_mixed_styles()
        if key := '_substitute_base_vars' in self.names and self._local('new_k'):
            return self.file, rf'_base_\.[\w.]*\b{key}\b', f'no base config sets {key}'
        if 'Duplicate key' in words:
            keys = words.rpartition(': ')[2].strip('{}')
            return self.file, '^_base_', f'two base configs set {keys}: keep one, or let one inherit from the other'
        if 'cannot inherit from base' in words:
            key = words.partition('=')[0]
            return (self.file, rf"""\b{key}['"]?\s*[=:]\s*(dict\(|{{)|\b{key}\b""",
                    f'{key} is a dict here, but not in the base config: add _delete_=True to the dict to replace it')
        in_base = self.names & {'_get_base_files', '_get_cfg_path'} and self.file.endswith('.py')
        if in_base and not isinstance(self.error, SyntaxError):
            return (self.file, '^_base_', f'_base_ cannot be read ({type(self.error).__name__}: {words}): write the '
                                          'path of a config, or a list of paths')
        if 'visit_ImportFrom' in self.names and isinstance(self.error, KeyError):
            return self.file, self._local('node').lineno, f'the base config does not set {words}'
        return None

    def _find_problem(self) -> tuple[str, int | str | None, str]:
        """Return file, line (or a pattern for it) and words for a mistake in the file itself."""
        error, words = self.error, self.words
        if isinstance(error, SyntaxError):
            # mmengine has checked the file itself before, and says no line
            substituted = error.lineno is None and isinstance(error.__context__, SyntaxError)
            cause = error.__context__ if substituted else error
            after = ' after its variables were replaced by their values' if substituted else ''
            fix = ': save it as UTF-8 without byte-order mark' if 'U+FEFF' in cause.msg else ''
            return self.file, cause.lineno, f'not valid Python{after}: {cause.msg}{fix}'
        if isinstance(error, UnicodeDecodeError):
            return self.file, None, 'not UTF-8 text: save it as UTF-8'
        if '_substitute_env_variables' in self.names:
            name = self._local('var_name')
            return self.file, rf'\${name}\b', (
                f'the variable {name} is not set and has no default: export it, or write {{{{${name}:DEFAULT}}}}'
                if _missing_variable(error) else
                f'mmengine cannot insert the variable {name} ({words}): its value and its default must not contain a '
                'backslash or other characters with a meaning in regular expressions')
        if '_deepcopy_dict' in self.names:
            key = self._local('key')
            return self.file, rf'\b{key}\b', f'a config cannot hold {key} ({words}): write "del {key}" at the end'
        if 'is reserved for config file' in words:
            key = words.split()[0]
            return self.file, rf'^{key}\b', f'mmengine reserves the name {key}: choose another'
        ran = [line for frame, line in self.calls.items() if os.path.abspath(frame.f_code.co_filename) == self.file]
        line = ran[-1] if ran else getattr(self._local('node'), 'lineno', None)
        if ran and (attribute := re.match(r"'ConfigDict' object has no attribute '(\w+)'", words)):
            return self.file, line, f'no base config sets {attribute[1]}'
        return self.file, line, f'{type(error).__name__}: {words}'

    def _find_mixed_styles(self) -> tuple[str, int | str | None, str]:
        """Explain why mmengine takes the file for the other one of its two styles of configs."""
        source = Path(self.file).read_text(encoding='utf-8')
        if 'read_base' in source and self.child != self.file:
            return (self.child, _name_of(self.file), f'a config with _base_ cannot inherit from {self.file}, a pure-'
                                                     'Python config (with read_base): use one style for both')
        nodes = ast.parse(source).body
        base = next((node for node in nodes if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
                     and node.targets[0].id == '_base_'), None)
        above = nodes[:nodes.index(base)] if base else nodes
        culprit = next((node for node in above if isinstance(node, (ast.Import, ast.ImportFrom, ast.With))), None)
        if culprit is None:
            return (self.child, _name_of(self.file), f'a pure-Python config (with read_base) cannot inherit from '
                                                     f'{self.file}, which uses _base_: use one style for both')
        words = ast.get_source_segment(source, culprit).splitlines()[0]
        where, fix = ('above', 'move it below _base_') if base else ('without', 'write _base_ = [] above it')
        return (self.file, culprit.lineno, f'"{words}" {where} _base_ makes mmengine take this for a pure-Python '
                                           f'config (with read_base): {fix}')

    def _missing_module(self) -> str | None:
        cause = self.error
        while cause and not isinstance(cause, ModuleNotFoundError):
            cause = cause.__cause__ or cause.__context__
        imports = self._local('cfg_dict')['custom_imports'].get('imports') if cause else []
        for name in [imports] if isinstance(imports, str) else imports:
            if f'{name}.'.startswith(f'{cause.name}.'):
                return (f'{self.shown[self.path]}: custom_imports: no module {cause.name}: install it, or add its '
                        'folder to PYTHONPATH')
        return None  # the module is there and fails: its traceback says where

    def _local(self, name: str) -> object:
        """Return a variable of the innermost call that has one of this name."""
        return next((frame.f_locals[name] for frame in reversed(self.calls) if name in frame.f_locals), None)
