"""Write a config as a person would: short dicts on one line, repeated values as variables."""

import textwrap
from keyword import iskeyword

from deit_detr.errors import printable

_WIDTH = 110


def config_text(header: list[str], variables: dict, settings: dict) -> str:
    """Format a config.

    Args:
        header: Lines of the comment at the top, without ``# ``.
        variables: Values that get a name. The name replaces the value wherever it is repeated, and a string also at the
            beginning of another string.
        settings: The settings of the config.

    Returns:
        str: Python source; running it gives ``variables`` and ``settings``.
    """
    names, blocks = [], ['\n'.join(f'# {printable(line)}'.rstrip() for line in header)]
    for name, value in variables.items():
        blocks.append(f'{name} = {_format(value, 0, len(name) + 3, names)}')
        names.append((name, value))
    for name, value in settings.items():
        blocks.append(f'{name} = {_format(value, 0, len(name) + 3, names)}')
        if isinstance(value, (dict, list)) and value:  # `test_dataloader = val_dataloader`
            names.append((name, value))
    return '\n'.join(blocks) + '\n'


def _format(value, indent: int, used: int, names: list) -> str:
    """Return the source of a value that starts at column ``used`` of a line in a block indented by ``indent``."""
    for name, named in names:
        if type(value) is type(named) and value == named:
            return name
        if isinstance(value, str) and isinstance(named, str) and named and value.startswith(named):
            return f'{name} + {value.removeprefix(named)!r}'
    if isinstance(value, dict) and all(
            isinstance(key, str) and key.isidentifier() and not iskeyword(key) for key in value):
        opening, closing, parts = 'dict(', ')', [(f'{key}=', item) for key, item in value.items()]
    elif isinstance(value, dict):
        opening, closing, parts = '{', '}', [(f'{key!r}: ', item) for key, item in value.items()]
    elif isinstance(value, list):
        opening, closing, parts = '[', ']', [('', item) for item in value]
    elif isinstance(value, tuple):
        opening, closing, parts = '(', ',)' if len(value) == 1 else ')', [('', item) for item in value]
    else:
        return repr(value)
    one_line = opening + ', '.join(key + _format(item, 0, 0, names) for key, item in parts) + closing
    if '\n' not in one_line and used + len(one_line) <= _WIDTH:
        return one_line
    if used == 0:  # the caller only asks whether it fits on one line
        return '\n'
    inner = ' ' * (indent + 4)
    if not any(key for key, _ in parts) and all(_is_short(item) for _, item in parts):
        items = textwrap.fill(
            ', '.join(repr(item).replace(' ', '\0') for _, item in parts), _WIDTH, initial_indent=inner,
            subsequent_indent=inner, break_long_words=False, break_on_hyphens=False)
        return opening + '\n' + items.replace('\0', ' ') + closing
    lines = [inner + key + _format(item, indent + 4, indent + 4 + len(key), names) for key, item in parts]
    return opening + '\n' + ',\n'.join(lines) + closing


def _is_short(value) -> bool:
    return not isinstance(value, (dict, list)) and len(repr(value)) <= 30
