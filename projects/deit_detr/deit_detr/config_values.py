"""The values that a Python config sets, worked out without running it.

Configs of mmdet 2.x, and those that mmengine writes into work folders, are data in Python's notation: names are
assigned literals, ``dict(...)``, parts of base configs, simple arithmetic and comprehensions of these. Anything else is
refused, and so is what would grow beyond all configs.
"""

import ast
import math
import operator
from collections.abc import Callable
from pathlib import Path

from deit_detr.errors import UserError

#: Numbers, characters and containers that all files of a config together may evaluate to, repetitions included. The
#: recipe has 1500.
MAX_VALUES = 500_000
#: Containers in each other.
MAX_DEPTH = 40

#: A larger file is no config.
MAX_BYTES = 1_000_000

_OPERATORS = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.UAdd: operator.pos, ast.USub: operator.neg, ast.Not: operator.not_}
_FUNCTIONS = dict(dict=dict, list=list, tuple=tuple, len=len, int=int, float=float)


def parse_config(path: Path) -> ast.Module:
    """Parse a config file.

    Raises:
        UserError: If it is larger than all configs, no text in UTF-8, or not valid Python.
    """
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f'{path}: larger than {MAX_BYTES} bytes: this is no config')
    try:
        return ast.parse(path.read_text(encoding='utf-8-sig'))
    except SyntaxError as error:
        raise UserError(f'{path}, line {error.lineno}: not valid Python: {error.msg}') from None
    except (ValueError, MemoryError, RecursionError) as error:  # no UTF-8, null bytes, brackets in each other
        raise UserError(f'{path}: not valid Python: {error or "too many brackets in each other"}') from None


class ConfigValues:
    """Evaluates configs, and keeps count of how much they evaluate to.

    Attributes:
        left (int): How many values there still may be.
    """

    def __init__(self) -> None:
        self.left = MAX_VALUES

    def read(self, tree: ast.Module, base: dict) -> dict:
        """Evaluate the assignments of a file.

        Args:
            tree: The parsed file.
            base: What ``_base_.NAME`` refers to.

        Returns:
            dict: Name to value: dicts, lists, tuples, text, numbers, booleans and ``None``.

        Raises:
            UserError: If a statement is no assignment of such values, or cannot be evaluated; the message begins with
                its line.
        """
        self._names, self._base = {}, base
        for node in tree.body:
            try:
                if isinstance(node, ast.Assign) and all(isinstance(target, ast.Name) for target in node.targets):
                    value = self._value(node.value)
                    _size(value)  # of literals, too, the depth has to be bounded
                    self._names.update(dict.fromkeys((target.id for target in node.targets), value))
                elif not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
                    raise _NoData(ast.unparse(node))
            except _NoData as error:
                raise UserError(
                    f'line {node.lineno}: this is code, and configs are read without running it: '
                    f'{str(error)[:80]!r}. Write the value there that it has') from None
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
                return dict(**self._dict([(keyword.arg, keyword.value) for keyword in node.keywords]))  # names are text
            case ast.Call(func=ast.Name(id='range'), keywords=[]):
                numbers = range(*self._items(node.args))
                self._spend(len(numbers))
                return list(numbers)
            case ast.Call(func=ast.Name(id=name), keywords=[]) if name in _FUNCTIONS:
                return self._counted(_FUNCTIONS[name](*self._items(node.args)))
        raise _NoData(ast.unparse(node))

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
        """What ``make`` gives for each step of the loops of a comprehension."""
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
                    raise _NoData(ast.unparse(loop.target))
                self._names[target.id] = value
            if all(self._value(test) for test in loop.ifs):
                values += self._looped(inner, make)
        self._names = names
        return values

    def _part(self, node: ast.expr) -> object:
        """A part of an f-string: text, or a value that is written as it is."""
        if not isinstance(node, ast.FormattedValue):
            return self._value(node)
        if node.format_spec is None and node.conversion == -1:
            value = self._value(node.value)
            if isinstance(value, (str, int, float)):
                return value
        raise _NoData(ast.unparse(node.value))

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
            raise ValueError('templates in braces are not filled in; write the text')
        self._spend(_size(value))
        return value

    def _spend(self, number: int) -> None:
        self.left -= number
        if self.left < 0:
            raise ValueError(f'all together is larger than any config: more than {MAX_VALUES} values')


class _NoData(Exception):
    """An expression that is none of those that configs are written in."""


def _size(value: object, depth: int = 0) -> int:
    """How many values something consists of; each character counts.

    Raises:
        ValueError: If there is something else in it than configs hold.
    """
    if depth > MAX_DEPTH:
        raise ValueError(f'more than {MAX_DEPTH} containers in each other')
    if isinstance(value, str):
        return 1 + len(value)
    if isinstance(value, dict):
        return 1 + sum(_size(key, depth + 1) + _size(item, depth + 1) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return 1 + sum(_size(item, depth + 1) for item in value)
    if isinstance(value, (int, float)) and not (math.isfinite(value) and abs(value) < 1e300):
        raise ValueError('a number that is not finite')
    if not isinstance(value, (int, float, type(None))):
        raise ValueError(f'a {type(value).__name__}, which configs do not hold')
    return 1
