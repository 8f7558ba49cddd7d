"""Evaluate the values in a Python config without running it.

Configs of mmdet 2.x, and those that mmengine writes into work folders, are data in Python syntax: they assign literals,
``dict(...)``, parts of base configs, simple arithmetic and comprehensions of these to names. Anything else is refused,
as are values that are larger than any config.
"""

import ast
import math
import operator
from collections.abc import Callable
from pathlib import Path

from deit_detr.errors import UserError

#: Limit of the numbers, characters and containers in all files of a config together, repetitions included. The recipe
#: has 1500.
MAX_VALUES = 500_000
#: Limit of nested containers.
MAX_DEPTH = 40
#: A larger file is not a config.
MAX_BYTES = 1_000_000

_OPERATORS = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.UAdd: operator.pos, ast.USub: operator.neg, ast.Not: operator.not_}
_FUNCTIONS = dict(dict=dict, list=list, tuple=tuple, len=len, int=int, float=float)


def parse_config(path: Path) -> ast.Module:
    """Parse a config file.

    Raises:
        UserError: If it is larger than any config, is not UTF-8 text, or is not valid Python.
    """
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f'{path}: larger than {MAX_BYTES} bytes: this is not a config')
    try:
        return ast.parse(path.read_text(encoding='utf-8-sig'))
    except SyntaxError as error:
        raise UserError(f'{path}, line {error.lineno}: not valid Python: {error.msg}') from None
    except (ValueError, MemoryError, RecursionError) as error:  # not UTF-8, null bytes, deeply nested brackets
        raise UserError(f'{path}: not valid Python: {error or "too many nested brackets"}') from None


class ConfigValues:
    """Evaluates configs and limits the number of their values.

    Attributes:
        left (int): Number of values that are still allowed.
    """

    def __init__(self) -> None:
        self.left = MAX_VALUES

    def read(self, tree: ast.Module, base: dict) -> dict:
        """Evaluate the assignments of a file.

        Args:
            tree: The parsed file.
            base: Values of the base config, for ``_base_.NAME``.

        Returns:
            dict: Name to value: dicts, lists, tuples, text, numbers, booleans and ``None``.

        Raises:
            UserError: If a statement does not assign such values, or cannot be evaluated. The message begins with its
                line.
        """
        self._names, self._base = {}, base
        for node in tree.body:
            try:
                if isinstance(node, ast.Assign) and all(isinstance(target, ast.Name) for target in node.targets):
                    value = self._value(node.value)
                    _size(value)  # checks the depth of literals
                    self._names.update(dict.fromkeys((target.id for target in node.targets), value))
                elif not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
                    raise _NotAllowed(ast.unparse(node))
            except _NotAllowed as error:
                raise UserError(
                    f'line {node.lineno}: this is code, and configs are read without running it: '
                    f'{str(error)[:80]!r}. Replace it by its value') from None
            except (ArithmeticError, LookupError, TypeError, ValueError) as error:
                raise UserError(f'line {node.lineno}: {type(error).__name__}: {error}') from None
        return self._names

    def _value(self, node: ast.expr) -> object:
        match node:
            case ast.Constant(value=str() | int() | float() | None as value):
                return self._counted(value)
            case ast.List():
                return self._items(node.elts)
            case ast.Tuple():
                return tuple(self._items(node.elts))
            case ast.Dict():
                return self._dict([(key and self._value(key), value) for key, value in
                                   zip(node.keys, node.values, strict=True)])
            case ast.Set(elts=[ast.Set(elts=[ast.Attribute() as item])]):  # {{_base_.NAME}}
                return self._value(item)
            case ast.Name(id='_base_'):
                return self._base
            case ast.Name(id=name):
                return self._counted(self._names[name])
            case ast.Attribute(value=ast.Name(id='_base_') | ast.Attribute() as owner, attr=name):
                return self._counted(self._value(owner)[name])
            case ast.Subscript():
                return self._counted(self._value(node.value)[self._value(node.slice)])
            case ast.UnaryOp() if type(node.op) in _OPERATORS:
                return self._counted(_OPERATORS[type(node.op)](self._value(node.operand)))
            case ast.BinOp() if type(node.op) in _OPERATORS:
                return self._operation(_OPERATORS[type(node.op)], self._value(node.left), self._value(node.right))
            case ast.JoinedStr():
                return self._counted(''.join(str(self._part(part)) for part in node.values))
            case ast.ListComp():
                return list(self._looped(node.generators, lambda: self._value(node.elt)))
            case ast.DictComp():
                return dict(self._looped(node.generators, lambda: (self._value(node.key), self._value(node.value))))
            case ast.Call(func=ast.Name(id='dict'), args=[]):
                return dict(**self._dict([(keyword.arg, keyword.value) for keyword in node.keywords]))  # keys are text
            case ast.Call(func=ast.Name(id='range'), keywords=[]):
                numbers = range(*self._items(node.args))
                self._spend(len(numbers))
                return list(numbers)
            case ast.Call(func=ast.Name(id=name), keywords=[]) if name in _FUNCTIONS:
                return self._counted(_FUNCTIONS[name](*self._items(node.args)))
        raise _NotAllowed(ast.unparse(node))

    def _items(self, nodes: list[ast.expr]) -> list:
        values = []
        for node in nodes:
            values += self._value(node.value) if isinstance(node, ast.Starred) else [self._value(node)]
        return values

    def _dict(self, items: list[tuple]) -> dict:
        values = {}
        for key, node in items:
            value = self._value(node)
            if key is not None:
                values[key] = value
            elif isinstance(value, dict):
                values |= value
            else:
                raise TypeError(f'** before a {type(value).__name__}')
        return values

    def _looped(self, generators: list[ast.comprehension], make: Callable[[], object]) -> list:
        """Call ``make`` for each iteration of a comprehension's loops, and return the results."""
        if not generators:
            return [make()]
        loop, *inner = generators
        names, values = self._names, []
        self._names = dict(names)
        for item in self._value(loop.iter):
            self._spend(1)
            targets, items = ([loop.target], [item]) if isinstance(loop.target, ast.Name) else (loop.target.elts, item)
            for target, value in zip(targets, items, strict=True):
                if not isinstance(target, ast.Name):
                    raise _NotAllowed(ast.unparse(loop.target))
                self._names[target.id] = value
            if all(self._value(test) for test in loop.ifs):
                values += self._looped(inner, make)
        self._names = names
        return values

    def _part(self, node: ast.expr) -> object:
        """Evaluate a part of an f-string: text, or a value without format."""
        if not isinstance(node, ast.FormattedValue):
            return self._value(node)
        if node.format_spec is None and node.conversion == -1:
            value = self._value(node.value)
            if isinstance(value, (str, int, float)):
                return value
        raise _NotAllowed(ast.unparse(node.value))

    def _operation(self, function, left: object, right: object) -> object:
        if function is operator.mul and not all(isinstance(value, (int, float)) for value in (left, right)):
            values, times = (right, left) if isinstance(left, int) else (left, right)
            if not isinstance(values, (str, list, tuple)) or not isinstance(times, int):
                raise TypeError(f'cannot multiply {type(left).__name__} and {type(right).__name__}')
            self._spend(max(times, 0) * _size(values))
            return function(left, right)
        return self._counted(function(left, right))

    def _counted(self, value: object) -> object:
        if isinstance(value, str) and ('{{' in value or '}}' in value):
            raise ValueError('templates in braces are not replaced; write the text')
        self._spend(_size(value))
        return value

    def _spend(self, number: int) -> None:
        self.left -= number
        if self.left < 0:
            raise ValueError(f'larger than any config: more than {MAX_VALUES} values')


class _NotAllowed(Exception):
    """An expression that is not allowed in a config."""


def _size(value: object, depth: int = 0) -> int:
    """Count the values in an object; each character counts.

    Raises:
        ValueError: If it holds other types than configs do, is nested too deeply, or has a number that is not finite.
    """
    if depth > MAX_DEPTH:
        raise ValueError(f'more than {MAX_DEPTH} nested containers')
    if isinstance(value, str):
        return 1 + len(value)
    if isinstance(value, dict):
        return 1 + sum(_size(key, depth + 1) + _size(item, depth + 1) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return 1 + sum(_size(item, depth + 1) for item in value)
    if isinstance(value, (int, float)) and not (math.isfinite(value) and abs(value) < 1e300):
        raise ValueError('a number that is not finite')
    if not isinstance(value, (int, float, type(None))):
        raise ValueError(f'a {type(value).__name__}, which configs cannot hold')
    return 1
