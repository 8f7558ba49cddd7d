"""Beside other packages, the project runs or names the package that is in the way."""

import gc
import os
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from deit_detr.models.vision_transformers import TOO_NEW
from tests.helpers.fork_server import ForkServer
from tests.helpers.paths import REPO, TINY_RUN

pytestmark = pytest.mark.slow
try:
    NEW_TRANSFORMERS = tuple(map(int, version('transformers').split('.')[:2])) >= TOO_NEW
except PackageNotFoundError:
    NEW_TRANSFORMERS = False
TOOLS = REPO / 'tools'
CONFIG = REPO / 'projects/deit_detr/configs/detr_deit-tiny_1xb8-50e_mini-scannet.py'
TWO_STEPS = [
    *TINY_RUN, 'train_dataloader.dataset.indices=8', 'train_cfg.max_epochs=1', 'val_cfg=None', 'val_dataloader=None',
    'val_evaluator=None']
#: Without these names mmpretrain catches the ImportError and later inherits from None.
DROPPED = ('apply_chunking_to_forward', 'find_pruneable_heads_and_indices', 'prune_linear_layer')
FAKE_TRANSFORMERS = f"""
import sys, types

class Base:
    from_pretrained = from_config = None

class Fake(types.ModuleType):
    __path__ = []
    def __getattr__(self, name):
        if name.startswith('__') or name in {DROPPED}:
            raise AttributeError(name)
        return Base if name in ('_BaseAutoModelClass', 'PreTrainedModel') else type(name, (Base,), {{}})

for name in ('', '.activations', '.modeling_outputs', '.modeling_utils', '.utils', '.models', '.models.bert',
             '.models.bert.configuration_bert', '.models.bert.modeling_bert', '.models.auto',
             '.models.auto.auto_factory'):
    sys.modules['transformers' + name] = Fake('transformers' + name)
"""
#: Two ways in which newer versions break the import of mmpretrain.models, each with its error.
TRANSFORMERS = {'5.24.0': (FAKE_TRANSFORMERS, 'TypeError: NoneType takes no arguments'),
                '4.53.0': ('', "ImportError: cannot import name 'AutoConfig'")}


def install(folder: Path, name: str, code: str, version: str | None = None) -> dict[str, str]:
    """Write a package that hides the installed one; return the environment variables to run with."""
    (folder / name).mkdir(parents=True)
    (folder / name / '__init__.py').write_text(code)
    if version:
        info = folder / f'{name}-{version}.dist-info'
        info.mkdir()
        (info / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n')
        (info / 'top_level.txt').write_text(name)
    return dict(PYTHONPATH=os.pathsep.join([str(folder), os.environ.get('PYTHONPATH', '')]).strip(os.pathsep))


@pytest.fixture(scope='module', params=TRANSFORMERS)
def transformers(request, tmp_path_factory) -> Iterator[tuple[str, str, ForkServer]]:
    """Version, error of mmpretrain.models, and a server that imports this project beside that version."""
    code, error = TRANSFORMERS[request.param]
    packages = tmp_path_factory.mktemp('packages')
    server = ForkServer(OMP_NUM_THREADS=1, **install(packages, 'transformers', code, request.param))
    yield request.param, error, server
    server.end()


@pytest.mark.parametrize('transformers', ['5.24.0'], indirect=True)  # the other version is imported in the next tests
def test_transformers_that_break_mmpretrain(transformers, mini_scannet, run, tmp_path):
    version, error, server = transformers
    assert error in run(sys.executable, '-c', 'import mmpretrain.models', status=1, **server.own), 'a test of nothing'
    env = server.shell() | dict(MINI_SCANNET_ROOT=f'{mini_scannet}/')
    output = run('python', TOOLS / 'preflight.py', CONFIG, *TINY_RUN, **env)
    assert 'FAIL' not in output

    config = tmp_path / 'old.py'  # as in configs of version 0.1
    config.write_text(f"_base_ = '{CONFIG}'\ncustom_imports = dict(imports=['mmpretrain.models', 'deit_detr'])\n")
    run('python', TOOLS / 'train.py', config, '--work-dir', tmp_path / 'work', *TWO_STEPS, **env)
    output = run(
        'python', TOOLS / 'test.py', CONFIG, tmp_path / 'work/epoch_1.pth', '--work-dir', tmp_path / 'work', *TINY_RUN,
        **env)
    assert 'coco/bbox_mAP' in output


def test_models_that_were_left_out_say_why(transformers, run):
    version, _, server = transformers
    build = (
        'import deit_detr\nfrom mmdet.registry import MODELS\n'
        'from mmengine.registry import init_default_scope\ninit_default_scope("mmdet")\n'
        'for name in ("BlipCaption", "RAM"):\n'
        '    try:\n        MODELS.build(dict(type=f"mmpretrain.{name}"))\n'
        '    except Exception as error:\n        print("CAUGHT", error)')
    _, *messages = run('python', '-c', build, **server.shell()).split('CAUGHT ')
    for name, message in zip(('BlipCaption', 'RAM'), messages, strict=True):
        assert f'mmpretrain.{name} was left out' in message
        assert f'transformers {version} is too new' in message and '4.28 to 4.51' in message


def test_mmdet_may_be_imported_first(run, tmp_path):
    """It ignores an ImportError of mmpretrain, whose models are then half imported."""
    env = install(tmp_path, 'transformers', FAKE_TRANSFORMERS.replace(str(DROPPED), '()'), '4.53.0')
    run(sys.executable, '-c', (
        'import mmdet.models\nfrom mmpretrain.registry import MODELS\nassert "BlipCaption" in MODELS.module_dict\n'
        'import deit_detr\nfrom mmpretrain.models import VisionTransformer'), **env)


@pytest.mark.skipif(NEW_TRANSFORMERS, reason='mmpretrain cannot be imported beside the transformers that is here')
def test_models_of_others_are_not_taken_away(run):
    """A program that imports mmpretrain's models first keeps them, placeholders included."""
    run(sys.executable, '-c', (
        'import mmpretrain.models\nfrom mmpretrain.registry import MODELS\nbefore = dict(MODELS.module_dict)\n'
        'import deit_detr\nassert before.items() <= MODELS.module_dict.items()'))


# ---- packages that cannot be imported

def entry_points() -> list[str]:
    """List the tools that need the package, and with it torch: those of a target machine do not."""
    return sorted(
        str(path.relative_to(TOOLS)) for path in TOOLS.glob('**/*.py') if 'from deit_detr' in path.read_text())


@pytest.mark.parametrize('tool', entry_points())
def test_every_tool_names_the_package(tool, run, tmp_path):
    env = install(tmp_path, 'torch', 'raise OSError("libcudart.so.12: no such file")')
    output = run(sys.executable, TOOLS / tool, status=2, **env)
    (line,) = output.splitlines()
    assert line.startswith('error: ') and 'torch' in line and 'OSError: libcudart.so.12: no such file' in line


BROKEN = {
    'no libGL': (
        'cv2', 'raise ImportError("libGL.so.1: cannot open shared object file", name="cv2")',
        ['opencv-python', 'libGL.so.1', 'install that library of the system, or opencv-python-headless']),
    'left behind by an uninstalled twin': ('cv2', '', ["module 'cv2' has no attribute", 'opencv-python']),
    'numpy of another Python': (
        'numpy', 'try:\n    import numpy._core.nothing\nexcept ImportError as error:\n'
        '    raise ImportError("PLEASE READ THIS\\nand this") from error',
        ["No module named 'numpy._core'", 'pip install --force-reinstall --no-deps numpy==']),
    'two kinds of numpy': (
        'numpy', 'raise ValueError("numpy.dtype size changed, may indicate binary incompatibility")',
        ['numpy', 'size changed', 'pip install --force-reinstall --no-deps numpy==']),
    'missing': ('mmpretrain', 'import a_package_of_nobody', [
        'mmpretrain', 'needs a_package_of_nobody, which is not installed: pip install a_package_of_nobody']),
    'a file of the user': ('terminaltables', 'raise NameError("mine")', ['terminaltables', 'NameError: mine']),
}


@pytest.mark.parametrize('tool, kind', [
    *(('train.py', kind) for kind in BROKEN), ('test.py', 'no libGL'), ('preflight.py', 'two kinds of numpy')])
def test_broken_package_is_named_in_one_line(tool, kind, run, tmp_path):
    name, code, expected = BROKEN[kind]
    output = run(sys.executable, TOOLS / tool, CONFIG, 'none.pth', status=2, **install(tmp_path, name, code))
    (line,) = output.splitlines()
    assert line.startswith('error: ') and all(text in line for text in expected), output


def test_a_script_ends_in_the_sentence_and_can_catch_it(run, tmp_path):
    env = install(tmp_path, 'cv2', 'raise ImportError("broken", name="cv2")')
    assert run(sys.executable, '-c', 'import deit_detr', status=2, **env).startswith('error: ')
    catch = (
        'try:\n    import deit_detr\nexcept ImportError as error:\n    print("caught", error, flush=True)\n'
        'raise ValueError("my own")')
    output = run(sys.executable, '-c', catch, status=1, **env)
    assert output.startswith('caught ') and 'Traceback' in output and 'ValueError: my own' in output


def test_mistakes_of_this_project_keep_their_traceback():
    from deit_detr.import_errors import BrokenEnvironment, named_packages

    for mistake in ('nothing + 1', 'import deit_detr.nothing', '1 / 0'):
        with pytest.raises((NameError, ImportError, ZeroDivisionError)) as caught, named_packages():
            exec(mistake, dict(__name__='deit_detr.models.new'))
        assert not isinstance(caught.value, BrokenEnvironment) and gc.isenabled()
