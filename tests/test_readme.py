"""README and docs: their commands, run in a copy of the repository on small data; their tables, links and anchors."""

import os
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
from mmengine.config import Config

from tests.helpers.fork_server import ForkServer
from tests.helpers.paths import REPO

SMALL = (
    ' --cfg-options model.backbone.init_cfg=None model.encoder.num_layers=1 model.decoder.num_layers=1'
    ' train_cfg.max_epochs=1 train_dataloader.num_workers=0 train_dataloader.persistent_workers=False'
    ' "train_dataloader.dataset.pipeline.3.transforms.0.0.scales=[(96,128)]"'
    ' "train_dataloader.dataset.pipeline.3.transforms.1.2.scales=[(96,128)]"'
    ' val_dataloader.num_workers=0 val_dataloader.persistent_workers=False'
    ' "val_dataloader.dataset.pipeline.1.scale=(128,96)"'
)
#: How a command is made small enough for a test: its beginning -> what is appended.
ADAPTED = {
    'bash tools/quickstart.sh': ' --train 4 --val 2 --size 160x120',
    'bash tools/run_tests.sh': ' --collect-only --quiet --numprocesses 0 tests/test_scripts.py',
    'unzip': '',
    'python tools/dataset_converters/scannet2coco.py': '',
    'bash tools/dist_train.sh': SMALL,
    'bash tools/dist_test.sh': ' --cfg-options model.encoder.num_layers=1 model.decoder.num_layers=1'
    ' test_dataloader.num_workers=0 test_dataloader.persistent_workers=False',
    'mim train mmdet': SMALL,
}
READMES = [REPO / 'README.md', REPO / 'README_zh-CN.md']
MARKDOWN = sorted(
    path for folder in ('', 'data', 'docs', 'findings', 'projects/deit_detr', 'projects/mmcv_ops')
    for path in (REPO / folder).glob('*.md'))


def tracked_files() -> list[str]:
    """What git tracks or would track, as names relative to the repository."""
    names = subprocess.run(
        ['git', 'ls-files', '--cached', '--others', '--exclude-standard'], cwd=REPO, check=True, capture_output=True,
        text=True).stdout.splitlines()
    return sorted({name for name in names if (REPO / name).is_file()})


def commands(path: Path) -> list[str]:
    """The commands of a Markdown file's bash blocks, continued lines joined."""
    blocks = re.findall(r'^```bash\n(.*?)^```', path.read_text(), flags=re.M | re.S)
    return [line.strip() for block in blocks for line in block.replace('\\\n', ' ').splitlines() if line.strip()]


def prose(path: Path) -> str:
    """The text of a Markdown file without its code blocks."""
    return re.sub(r'^ *```.*?^ *```', '', path.read_text(), flags=re.M | re.S)


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a Markdown file."""
    headings = re.findall(r'^#+ (.+)$', prose(path), flags=re.M)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


def test_both_readmes_have_the_same_code():
    first, second = (re.findall(r'^```\w+\n.*?^```', path.read_text(), flags=re.M | re.S) for path in READMES)
    assert first == second


@pytest.mark.parametrize('path', READMES, ids=lambda path: path.name)
def test_readme_fits_on_two_screens(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= 110
    assert not [line for line in lines if len(line) > (200 if line.startswith('|') else 120)]


@pytest.mark.parametrize('path', MARKDOWN, ids=lambda path: str(path.relative_to(REPO)))
def test_links_anchors_and_table_heads(path):
    for target in re.findall(r'\]\(([^)\s]+)\)', prose(path)):
        if not target.startswith('http'):
            name, _, anchor = target.partition('#')
            file = path.parent / name if name else path
            assert file.exists(), target
            assert not anchor or anchor in anchors(file), target
    heads = re.findall(r'^(\|.*)\n\|[-:| ]+\|$', prose(path), flags=re.M)
    assert not [head for head in heads if not head.strip('| ')]


def test_files_name_pages_that_exist():
    for name in tracked_files():
        for page, anchor in re.findall(
                r'\b((?:docs|data)/\w+\.md)(?:#([\w-]+))?', (REPO / name).read_text(errors='replace')):
            assert (REPO / page).exists(), f'{name} names {page}'
            assert not anchor or anchor in anchors(REPO / page), f'{name} names {page}#{anchor}'


def test_your_own_data_in_five_lines(tmp_path):
    """The README's config is the one of docs/data.md, which tests/datasets/test_your_own_data.py trains."""
    configs = []
    for name in ('README.md', 'docs/data.md'):
        *_, text = re.findall(r"^```python\n(_base_ = .*?)^```", (REPO / name).read_text(), flags=re.M | re.S)
        path = tmp_path / f'{len(configs)}.py'
        path.write_text(text.replace("'../projects", f"'{REPO}/projects"))
        configs.append(Config.fromfile(path))
    for key in ('model', 'train_dataloader', 'val_dataloader', 'test_dataloader', 'val_evaluator', 'test_evaluator'):
        assert configs[0][key] == configs[1][key]


def test_race_names_six_recipes():
    (command,) = [command for command in commands(REPO / 'docs/benchmarks.md') if 'race.py' in command]
    configs = subprocess.run(
        ['bash', '-c', f'shopt -s failglob; echo {command.split("race.py")[1].split("--")[0]}'], cwd=REPO, check=True,
        capture_output=True, text=True).stdout.split()
    assert len(configs) == 6 and 'detr-fast' in configs[0]  # the reference


def test_manual_installation_is_what_the_script_does():
    """It installs the same; the script runs wherever this suite runs in a clean environment."""
    script = (REPO / 'tools/setup_env.sh').read_text()
    installed = re.findall(r'(?:requirements|projects)/\S+', ' '.join(commands(REPO / 'docs/install.md')))
    assert sorted(installed) == sorted(re.findall(r'"\$root/((?:requirements|projects)/[^"]+)"', script))


@pytest.fixture(scope='module')
def checkout(tmp_path_factory, mini_frames) -> Path:
    """A copy of what git tracks, with an archive of rendered frames where the README expects ScanNet's."""
    folder = tmp_path_factory.mktemp('readme') / 'deit-detr'
    for name in tracked_files():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPO / name, folder / name)
    for name in re.findall(r'name=(\w\S+)', (folder / 'tools/quickstart.sh').read_text()):  # with and without download
        path = folder / f'projects/deit_detr/configs/{name}.py'
        path.write_text(f'{path.read_text()}train_cfg = dict(max_epochs=2, val_interval=1)\n')
    with zipfile.ZipFile(folder / 'scannet_frames_25k.zip', 'w') as archive:
        for path in sorted(mini_frames.rglob('*')):
            if path.is_file():
                archive.write(path, Path('scannet_frames_25k') / path.relative_to(mini_frames))
    return folder


@pytest.fixture
def forked(checkout):
    """Variables of a shell whose ``python`` has imported the copy's package, which goes before the installed one."""
    server = ForkServer(PYTHONPATH=checkout / 'projects/deit_detr', CUDA_VISIBLE_DEVICES='', OMP_NUM_THREADS=1)
    yield server.shell()
    server.end()


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_readme_commands_run(checkout, forked, run):
    """Those of dist_*.sh and mim start new processes; the others share their imports."""
    ran = 0
    mim = [command for command in commands(REPO / 'docs/train.md') if command.startswith('mim')]
    for command in commands(REPO / 'README.md') + mim:
        (start,) = [start for start in ADAPTED if command.startswith(start)] or pytest.fail(
            f'README command without an entry in ADAPTED: {command}')
        if start == 'unzip' and not shutil.which('unzip'):
            command = 'python -m zipfile -e scannet_frames_25k.zip .'
        env = forked
        if start in ('bash tools/dist_train.sh', 'bash tools/dist_test.sh'):
            command = re.sub(r' 8\b', ' 1', command)  # each takes seconds to start; test_distributed.py has several
            env = dict(PYTHONPATH=forked['PYTHONPATH'], CUDA_VISIBLE_DEVICES='')
        if start == 'bash tools/dist_test.sh':
            command = command.replace('epoch_150.pth', 'epoch_1.pth')
            assert os.path.exists(checkout / 'work_dirs/detr_deit-tiny_8xb1-150e_scannet/epoch_1.pth')
        if start == 'mim train mmdet':
            pytest.importorskip('mim')
            command = command.replace('--gpus 8 --launcher pytorch', '--gpus 0')  # mmdet's own script wants GPUs
        output = run('bash', '-c', command + ADAPTED[start], cwd=checkout, timeout=900, **env)
        ran += 1
        if start == 'bash tools/quickstart.sh':
            (pictures,) = re.findall(r'Pictures +(\S+)', output)
            assert len(list((checkout / pictures).glob('scene*/*.jpg'))) == 2
            (report,) = re.findall(r'Report +(\S+)', output)
            assert '<section id="pictures">' in (checkout / report).read_text()
            assert 'training from scratch' in output or 'downloaded' in output
    assert ran == len(ADAPTED)
