"""2.x configs from anybody: they are read without running them, and the new config contains no code."""

import ast
import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from mmengine.config import Config

from deit_detr.config_values import ConfigValues
from deit_detr.errors import UserError
from deit_detr.migration.config_2x import convert_config_2x
from deit_detr.migration.config_text import config_text
from deit_detr.migration.read_2x import read_config_2x
from tests.helpers.fuzzing import ODD_VALUES, cases, changed, contained, damaged, peak_memory, places
from tests.helpers.paths import REPO

DATA_2X = REPO / 'tests/data/legacy_2x'
R50 = DATA_2X / 'detr_r50_8x2_150e_coco.py'
RECIPE = DATA_2X / 'detr_deit_tiny_8x1_150e_scannet.py'
SETTINGS = read_config_2x(RECIPE).settings
PLACES = list(places(SETTINGS))


def convert(folder: Path, text: str | bytes, name: str = 'old.py') -> list[UserError]:
    """Convert a config, check that the result consists of assignments of values, and return the errors."""
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode('utf-8', 'surrogatepass'))
    with contained(folder) as refused:
        converted = convert_config_2x(path)
        # the only braces and the only call are those of data_root, which mmengine fills in
        variable = "'{{$DEIT_DATASETS:<old>}}'.replace('<old>', '{{$MMDET_DATASETS:"
        plain = re.sub(re.escape(variable) + r"([^'{}\s]+)\}\}'\)", r"'\1'", converted.text)
        values = ConfigValues().read(ast.parse(plain), {})
        assert 'model' in values and not {'_base_', 'import'} & values.keys()
    return refused


@pytest.mark.parametrize('code', [
    '__import__("os").mkdir("made")', 'import os', 'from os import *', 'x = open("made", "w")', 'x = print', 'del x',
    'x = (lambda: 1)()', 'x = [y for y in ().__class__.__base__.__subclasses__()]', 'x = dict.fromkeys("ab")',
    'x = "".join(["a"])', 'x = f"{model:>1000000000}"', 'x = f"{model!r}"', 'x = "%1000000000d" % 1', 'x = model.x',
    'if True:\n    x = 1', 'for x in range(10 ** 9): pass', 'while True: pass', 'def f(): pass', 'class A: pass',
    'x: int = 1', 'x += 1', 'x.y = 1', 'x["a"] = 1', 'a, b = 1, 2', 'x = (y := 5)', 'x = yield', 'x = b"b"', 'x = 1j',
    'x = ...', 'x = {1, 2}', 'x = eval("1")', 'x = exec("1")', 'x = getattr(model, "x")', 'x = _base_.nothing',
    'x = _base_.__class__', 'x = undefined', 'x = 1 if True else 2', 'x = not_there()', 'raise SystemExit', 'assert 0',
    'x = dict(a=1)(2)', '@x\ndef f(): pass', 'async def f(): pass', 'with x: pass', 'global x', 'x = int("9" * 5000)',
    'x = "{{ fileDirname }}"', 'x = "{{$HOME:a}}"',
    'x = {[]: 1}', 'x = [1][5]', 'x = dict(**5)', 'x = [*5]', 'x = 1 // 0', 'x = 1e999', 'x = -1e999 + 1e999'])
def test_code_is_refused_by_its_line(tmp_path, code):
    refused = convert(tmp_path, f'_base_ = {str(R50)!r}\n{code}\n')
    assert refused and str(tmp_path / 'old.py') in str(refused[0])


@pytest.mark.parametrize('base', [
    '["a.py"] + ["b.py"]', '[1]', '"old.py"', '"/etc/passwd"', '"\\0"', '"."', '["old.py"] * 30', 'None', '{}', '[[]]'])
def test_bases_that_are_none(tmp_path, base):
    assert convert(tmp_path, f'_base_ = {base}\n')


@pytest.mark.parametrize('text', [
    "x = 'a' * 10 ** 9", "x = 10 ** 9 * 'a'", 'x = [0] * 10 ** 9', 'x = range(10 ** 12)',
    'x = 9 ** 9 ** 9', 'x = 1 << 10 ** 9', 'x = list(range(10 ** 9))', 'x = [[]] * 999999 * 999999',
    'x = [a for a in range(9999) for b in range(9999)]',
    'a = "lol"\n' + 'a = a * 9\n' * 12, 'a = [1]\n' + 'a = [a] * 9\n' * 12, 'a = {}\n' + 'a = dict(x=a, y=a)\n' * 30,
    'a = []\n' + 'a = [a]\n' * 5000, 'a = 7\n' + 'a = a * a\n' * 60, 'a = 1\n' + 'a = a + a\n' * 5000,
    'x = ' + '[' * 5000, 'x = ' + '[' * 90 + ']' * 90, 'x = ' + '-' * 50_000 + '1', 'x = ' + '1+' * 50_000 + '1',
    'x = ' + 'a.' * 50_000 + 'b', 'x = _base_' + '.a' * 5000, 'x' * 900_000,
    'x = 0x' + 'f' * 500_000, 'x = "' + 'y' * 2_000_000 + '"', '#' * 2_000_000, 'x = ' + 'not ' * 50_000 + '1',
], ids=lambda text: text[:20].replace('\n', ' '))
def test_small_texts_do_not_become_large(tmp_path, text):
    refused = []
    assert peak_memory(lambda: refused.extend(convert(tmp_path, f'_base_ = {str(R50)!r}\n{text}\n'))) < 200
    assert refused


def test_files_that_inherit_in_a_circle_or_without_end(tmp_path):
    names = [f'c{index}.py' for index in range(12)]
    for index, name in enumerate(names):
        (tmp_path / name).write_text(f'_base_ = {names[index + 1:index + 3] or [names[0]]}\n')
    assert convert(tmp_path, '_base_ = ["c0.py", "c1.py"]')
    for index in range(40):
        (tmp_path / f'd{index}.py').write_text(f'_base_ = "d{index + 1}.py"\n')
    assert convert(tmp_path, '_base_ = "d0.py"')


NAMES = st.sampled_from(['model', 'data', 'x', '_base_', 'optimizer', 'runner', 'dict', 'len', '__builtins__'])
LITERALS = st.sampled_from([
    '1', '-1', '0.5', 'True', 'None', '"a"', '"{{"', '[]', '{}', '()', 'dict(type="DETR")', '9' * 30, '1e308', '_base_',
    '_base_.model'])
EXPRESSIONS = st.recursive(NAMES | LITERALS, lambda inner: st.one_of(
    st.tuples(inner, st.sampled_from('+-*/%|&@'), inner).map(lambda parts: f'({"".join(parts)})'),
    st.lists(inner, max_size=3).map(lambda items: f'[{", ".join(items)}]'),
    st.tuples(inner, inner).map(lambda parts: f'{{{parts[0]}: {parts[1]}}}'),
    st.tuples(inner, inner).map(lambda parts: f'{parts[0]}[{parts[1]}]'),
    st.tuples(NAMES, inner).map(lambda parts: f'dict({parts[0]}={parts[1]})'),
    st.tuples(NAMES, inner).map(lambda parts: f'{parts[0]}({parts[1]})'),
    st.tuples(inner, inner).map(lambda parts: f'[{parts[0]} for x in {parts[1]}]'),
    inner.map(lambda part: f'dict(**{part})'), inner.map(lambda part: f'[*{part}]'),
    inner.map(lambda part: f'f"{{{part}}}"'), inner.map(lambda part: f'range({part})'),
    inner.map(lambda part: f'list({part})'),
    st.tuples(inner, NAMES).map('.'.join)), max_leaves=8)


@cases(400)
@given(st.lists(st.tuples(NAMES, EXPRESSIONS), min_size=1, max_size=5), st.booleans())
@example([('x', 'dict(**{1: 1})')], False)
def test_expressions(tmp_path, lines, with_base):
    """The values are those that Python gives, unless the expression is refused."""
    text = '\n'.join(f'{name} = {value}' for name, value in lines)
    convert(tmp_path, (f'_base_ = {str(R50)!r}\n' if with_base else '') + text)
    try:
        tree = ast.parse(text)
        values = ConfigValues().read(tree, dict(model=dict(type='DETR')))
    except (SyntaxError, UserError):
        return
    if '_base_' not in text and '__builtins__' not in text:
        expected = {}
        exec(text, {'__builtins__': dict(dict=dict, len=len, list=list, range=lambda *n: list(range(*n)))}, expected)
        assert values == {name: value for name, value in expected.items() if name != '__builtins__'}


@cases(250)
@given(st.lists(
    st.tuples(st.sampled_from(PLACES), ODD_VALUES | st.text(max_size=8) | st.just(...)), min_size=1, max_size=3))
@example([(('model',), 5)])
@example([(('data', 'train', 'pipeline'), [{}])])
@example([(('data', 'train', 'ann_file'), 5)])
@example([(('optimizer_config',), None)])
@example([(('data_root',), "b\"'")])
@example([(('data_root',), 'a b')])
@example([(('data_root',), 'c++/')])
def test_any_value_anywhere(tmp_path, changes):
    """A flat config, as 2.x wrote it into work folders, with other values in some places."""
    settings = SETTINGS
    for path, value in changes:
        if path in set(places(settings)):
            settings = changed(settings, path, value)
    convert(tmp_path, '\n'.join(f'{name} = {value!r}' for name, value in settings.items()))


@cases(120)
@given(damaged(RECIPE.read_bytes()))
@example(b'\xff\xfe\0')
@example(b'\0')
@example(b'# -*- coding: utf-7 -*-\n+AGkAbQBwAG8AcgB0- os')
@example('\ufeff_base_ = "old.py"'.encode())
def test_damaged_texts(tmp_path, data):
    (tmp_path / 'scannet_detection.py').write_bytes((DATA_2X / 'scannet_detection.py').read_bytes())
    convert(tmp_path, data)


INJECTED = '\nimport os; os.mkdir("made")\n#'


@cases(100)
@given(st.lists(
    st.text(max_size=5) | st.sampled_from([INJECTED, '\r', "'", '"""', '\\', '{{', '}}', '{{$A:']), max_size=4,
).map(''.join))
@example(INJECTED)
def test_texts_of_the_old_config_stay_texts(tmp_path, text):
    """No key, value, type or file name ends the comment or string into which it is written."""
    convert(
        tmp_path, f'_base_ = {str(R50)!r}\nunknown = {{{text!r}: {{{text!r}: {text!r}}}}}\n'
        f'custom_imports = dict(imports=[{text!r}])\nmodel = dict(backbone=dict(type={text!r}))\n'
        f'data_root = {text!r}\nwork_dir = {text!r}\n')


def test_names_of_base_files_stay_in_the_comment(tmp_path):
    text = f"_base_ = [{str(RECIPE.with_name('scannet_detection.py'))!r}, {INJECTED + '/default_runtime.py'!r}]\n"
    flat = '\n'.join(f'{name} = {SETTINGS[name]!r}' for name in ('model', 'optimizer', 'runner'))
    assert convert(tmp_path, text + flat) == []
    converted = convert_config_2x(tmp_path / 'old.py')
    assert r'\nimport os' in converted.text and '\nimport os' not in converted.text
    Config.fromstring(converted.text, '.py')
    assert not Path('made').exists()


def test_header_and_keywords():
    text = config_text(['a\nb = 1', 'c\rd = 1', '\x1b[2J'], {}, dict(x={'class': 1, 'None': 2}))
    assert ConfigValues().read(ast.parse(text), {}) == dict(x={'class': 1, 'None': 2})
    assert text.count('\n') == 4 and '\r' not in text and '\x1b' not in text
