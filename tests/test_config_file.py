"""What is wrong in a config is said in one sentence that names file, line and fix."""

import os
import sys
from pathlib import Path

import pytest
from mmengine.config import Config

from deit_detr.config_file import read_config
from deit_detr.errors import UserError
from tests.helpers.paths import REPO

BASES = {
    'base.py': "a = dict(x=1, y=[1, 2])\nb = 3\nmodel = dict(type='DETR', num_queries=5)\n",
    'other.py': 'b = 4\n',
    'imports.py': 'import os\nb = 4\n',
    'text.py': "_base_ = 'base.py'\n",
    'pure.py': 'from mmengine.config import read_base\nwith read_base():\n    from .base import *\n',
    'broken.py': 'b = 4\nc = (\n',
    'one.py': "_base_ = 'two.py'\n",
    'two.py': "_base_ = 'one.py'\n",
    'fails.py': 'import not_there_at_all\n',
    'settings.txt': 'a = 1\n',
}
PURE = 'from mmengine.config import read_base\nwith read_base():\n    '
#: Name -> the config, the part of it that is in the named line (None: no line is named), what the sentence says.
MISTAKES = {
    'import above': ("import os\n_base_ = 'base.py'\n", 'import os', '"import os" above _base_ .* move it below'),
    'package above': ('x = 1\nfrom torch import nn\n_base_ = []\n', 'from torch', 'move it below _base_'),
    'with above': ("with open('f') as f:\n    x = 1\n_base_ = 'base.py'\n", 'with open', 'move it below _base_'),
    'with': ("x = 1\nwith open('f') as f:\n    y = 1\n", 'with open', r'write _base_ = \[\] above it'),
    'base that imports': ("_base_ = 'imports.py'\n", 'import os', r'imports\.py, line 1: .*write _base_ = \[\] above'),
    'pure base': ("_base_ = 'pure.py'\n", '_base_', 'a config with _base_ cannot inherit from .*pure.py'),
    'base of a pure one': (PURE + 'from .text import *\n', 'text', 'cannot inherit from .*text.py, which uses _base_'),
    'no base': (
        "x = 1\n_base_ = [\n    'base.py',\n    'gone.py']\n", 'gone', 'the base config .*gone.py does not exist'),
    'no pure base': (PURE + 'from .gone import *\n', 'gone', 'the base config .*gone.py does not exist'),
    'base without': (PURE + 'from .base import nothing\n', 'nothing', 'the base config does not set nothing'),
    'folder': ("_base_ = '.'\n", None, 'the base config .* does not exist'),
    'text file': ("_base_ = 'settings.txt'\n", None, r'settings\.txt: .*py/yml/yaml/json'),
    'number': ('x = 1\n_base_ = 3\n', '_base_', '_base_ cannot be read .* write the path of a config'),
    'variable': ("root = '.'\n_base_ = root + '/base.py'\n", '_base_', "name 'root' is not defined.*write the path"),
    'no package': ("_base_ = 'mmfoo::detr/a.py'\n", '_base_', 'does not support to load mmfoo'),
    'circle': ("_base_ = 'one.py'\n", None, r'two\.py, line 1: the base configs form a circle: .*one\.py -> .*two\.py'),
    'syntax': ('x = 1\ny = (\n', 'y = (', "not valid Python: .*was never closed"),
    'syntax of a base': ("_base_ = 'broken.py'\n", None, 'broken.py, line 2: not valid Python'),
    'byte-order mark': ('\ufeffx = 1\n', 'x = 1', 'UTF-8 without byte-order mark'),
    'twice': ("x = 1\n_base_ = ['base.py', 'other.py']\n", '_base_ =', "two base configs set 'b'"),
    'undefined': ("_base_ = 'base.py'\nx = dict(\n    y={{_base_.a.z}})\n", '_base_.a.z', 'no base config sets z'),
    'undefined value': ("_base_ = 'base.py'\nx = {{_base_.b.z}}\n", '_base_.b.z', 'no base config sets z'),
    'undefined name': ("_base_ = 'base.py'\nx = _base_.nothing\n", '_base_.nothing', 'no base config sets nothing'),
    'dict for a list': ("_base_ = 'base.py'\na = dict(\n    y=dict(z=1))\n", 'y=', 'y is a dict here.*_delete_=True'),
    'dict for a number': ("_base_ = 'base.py'\nb = dict(z=1)\n", 'b =', 'b is a dict here.* add _delete_=True'),
    'delete nothing': ("new = [dict(type='A', _delete_=True)]\n", None, r'new\[0\]\._delete_: .* remove this _delete_'),
    'no value': ("_base_ = []\nf = open('/dev/null')\n", 'open', 'cannot hold f .*del f'),
    'reserved': ('x = 1\nfilename = 3\n', 'filename', 'mmengine reserves the name filename: choose another'),
    'error': ('x = 1\ny = 1 / 0\n', '1 / 0', 'ZeroDivisionError: division by zero'),
    'error of a pure one': ('from mmengine.hooks import EMAHook\nx = yy\n', 'yy', "name 'yy' is not defined"),
    'star': ('x = 1\nfrom mmengine.hooks import *\n', 'import *', 'is not allowed'),
    'module': ("custom_imports = dict(imports=['gone_xyz.b'])\n", None, 'no module gone_xyz: install it.* PYTHONPATH'),
    'no variable': ("x = 1\ny = '{{$UNSET_XYZ:}}'\n", 'UNSET', 'UNSET_XYZ is not set and has no default: export it'),
    'odd variable': ("y = {{'$ODD_XYZ:80'}}\n", 'ODD', 'not valid Python after its variables were replaced'),
    'backslash': ("y = '{{$BACK_XYZ:80}}'\n", 'BACK', 'cannot insert the variable BACK_XYZ .* backslash'),
}


@pytest.fixture
def folder(tmp_path) -> Path:
    for name, text in BASES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize('name', MISTAKES)
def test_mistakes_are_named(name, folder, monkeypatch):
    monkeypatch.setenv('ODD_XYZ', 'a b')
    monkeypatch.setenv('BACK_XYZ', r'C:\data')
    text, place, words = MISTAKES[name]
    config = folder / 'config.py'
    config.write_text(text, encoding='utf-8')
    with pytest.raises(UserError, match=words) as caught:
        read_config(config)
    message = str(caught.value)
    assert '\n' not in message and len(message) < 500
    if place and 'imports.py' not in message:
        (line,) = [number for number, row in enumerate(text.splitlines(), 1) if place in row][:1]
        assert message.startswith(f'{config}, line {line}: ')


@pytest.mark.parametrize('name, text', {
    'a.json': '{"a": 1,}', 'list.json': '[1]', 'a.yaml': 'a: [1', 'list.yml': '- 1', 'latin.py': b'# caf\xe9\na = 1\n',
    'null.py': 'a = 1\0\n', 'if.py': "if True:\n    _base_ = 'a.py'\n"}.items())
def test_every_other_error_names_the_file(name, text, tmp_path):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=name) as caught:
        read_config(tmp_path / name)
    assert '\n' not in str(caught.value)


def test_a_module_that_fails_keeps_its_traceback(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    for name, code in {'user_one': 'import not_there_xyz', 'user_two': 'x = 1 / 0'}.items():
        (tmp_path / f'{name}.py').write_text(code)
        (tmp_path / 'config.py').write_text(f'custom_imports = dict(imports=[{name!r}])\n')
        with pytest.raises((ImportError, ZeroDivisionError)):
            read_config(tmp_path / 'config.py')


def test_modules_that_options_name_are_imported(folder, monkeypatch):
    monkeypatch.syspath_prepend(folder)
    (folder / 'user_three.py').write_text('')
    assert read_config(folder / 'base.py', {'custom_imports.imports': ['user_three']}).custom_imports
    assert 'user_three' in sys.modules
    with pytest.raises(UserError, match='base.py: custom_imports: no module gone_xyz: install it'):
        read_config(folder / 'base.py', {'custom_imports.imports': ['gone_xyz.b']})


def test_what_mmengine_reads_is_read_alike(folder):
    texts = [
        "_base_ = 'base.py'\nimport torch\nx = torch.pi\n",
        "_base_ = []\nimport os\nwith open(os.devnull) as f:\n    y = 1\ndel f\n",
        "_base_ = 'base.py'\na = dict(_delete_=True, y=2)\nx = {{_base_.b}}\n", 'plain = dict(_delete_=True, x=1)\n',
        'from mmengine.hooks import NoSuchHook\nx = dict(type=NoSuchHook)\n', PURE + 'from .base import *\nc = b\n']
    for text in texts:
        (folder / 'config.py').write_text(text)
        ours, plain = read_config(folder / 'config.py'), Config.fromfile(folder / 'config.py')
        assert str(ours._to_lazy_dict()) == str(plain._to_lazy_dict()), text


def test_empty_variables_of_any_config_are_unset(tmp_path, monkeypatch):
    monkeypatch.setenv('MY_ROOT', '')
    monkeypatch.setenv('MY_SPLIT', '')
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    (tmp_path / 'base.py').write_text("root = '{{$MY_ROOT:data/}}'\n")
    (tmp_path / 'config.py').write_text("_base_ = 'base.py'\nsplit = '{{$MY_SPLIT:train}}'\n")
    cfg = read_config(tmp_path / 'config.py')
    assert (cfg.root, cfg.split) == ('data/', 'train')
    assert os.environ['CUDA_VISIBLE_DEVICES'] == ''


def test_options(folder, run):
    assert read_config(folder / 'base.py', {'a.x': 2, 'a.y': [5, 2]}).a == dict(x=2, y=[5, 2])
    for option in ('b.x=1', 'a.y.7.x=1', 'a.y.0.x=1', 'a.y.x=1'):
        output = run(
            sys.executable, REPO / 'tools/preflight.py', 'base.py', '--cfg-options', option, cwd=folder, status=2)
        assert output.startswith(f'error: base.py: --cfg-options {option[:-2]} do not fit the config: ')
        assert output.count('\n') == 1
    output = run(sys.executable, REPO / 'tools/preflight.py', 'base.py', '--cfg-options', 'b', cwd=folder, status=2)
    assert output.endswith("error: argument --cfg-options: 'b' is not KEY=VALUE\n")


@pytest.mark.parametrize('tool, rest', [
    ('preflight.py', []), ('train.py', []), ('test.py', ['base.py']), ('analysis_tools/benchmark.py', ['recipes']),
    ('analysis_tools/race.py', [])])
def test_every_tool_says_so(tool, rest, folder, run):
    (folder / 'config.py').write_text(MISTAKES['import above'][0])
    command = [*rest, '--configs', 'config.py'] if rest == ['recipes'] else ['config.py', *rest]
    output = run(sys.executable, REPO / 'tools' / tool, *command, cwd=folder, status=2)
    assert output.splitlines()[-1].startswith('error: config.py, line 1: "import os" above _base_')
    assert 'Traceback' not in output


def test_a_class_that_a_pure_config_cannot_import(folder, run):
    recipe = REPO / 'projects/deit_detr/configs/pure_python/detr_deit_tiny_8xb1_150e_scannet.py'
    ours = f'from {"." * len(folder.parts)}{".".join(REPO.parts[1:])}.configs'
    (folder / 'config.py').write_text(
        recipe.read_text().replace('from .....configs', ours)
        + 'from mmengine.hooks import NoSuchHook\ncustom_hooks = [dict(type=NoSuchHook)]\n')
    output = run(sys.executable, REPO / 'tools/preflight.py', 'config.py', cwd=folder, status=2)
    (line,) = [line for line in output.splitlines() if line.startswith('error: ')]
    assert 'Failed to import NoSuchHook from mmengine.hooks in ' in line and 'config.py, line 9' in line
    assert 'Traceback' not in output


def test_a_part_of_a_config(folder, run):
    output = run(sys.executable, REPO / 'tools/train.py', 'other.py', cwd=folder, status=2)
    assert output == 'error: other.py: has no model: it is only a part of a config. Use a recipe\n'
