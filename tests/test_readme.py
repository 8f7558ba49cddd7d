"""The README's commands, taken from the README and run in a copy of the repository, on small data."""

import os
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

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
#: Commands that are run elsewhere, with where.
ELSEWHERE = {
    'python tools/analysis_tools/race.py': 'tests/test_race.py races small recipes; here only: every CONFIG exists',
}


def commands(path: Path) -> list[str]:
    """The commands of a Markdown file's bash blocks, continued lines joined."""
    blocks = re.findall(r'^```bash\n(.*?)^```', path.read_text(), flags=re.M | re.S)
    return [line.strip() for block in blocks for line in block.replace('\\\n', ' ').splitlines() if line.strip()]


def test_both_readmes_have_the_same_commands():
    assert commands(REPO / 'README.md') == commands(REPO / 'README_zh-CN.md')


def test_race_names_six_recipes():
    (command,) = [command for command in commands(REPO / 'README.md') if 'race.py' in command]
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
    files = subprocess.run(
        ['git', 'ls-files', '--cached', '--others', '--exclude-standard'], cwd=REPO, check=True, capture_output=True,
        text=True).stdout.split('\n')
    for name in filter(None, files):
        if (REPO / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPO / name, folder / name)
    with zipfile.ZipFile(folder / 'scannet_frames_25k.zip', 'w') as archive:
        for path in sorted(mini_frames.rglob('*')):
            if path.is_file():
                archive.write(path, Path('scannet_frames_25k') / path.relative_to(mini_frames))
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_readme_commands_run(checkout, run):
    # the copy's package goes before the installed one
    env = dict(PYTHONPATH=checkout / 'projects/deit_detr', CUDA_VISIBLE_DEVICES='', OMP_NUM_THREADS=1)
    ran = 0
    for command in commands(REPO / 'README.md'):
        if any(command.startswith(start) for start in ELSEWHERE):
            continue
        (start,) = [start for start in ADAPTED if command.startswith(start)] or pytest.fail(
            f'README command without an entry in ADAPTED or ELSEWHERE: {command}')
        if start == 'unzip' and not shutil.which('unzip'):
            command = 'python -m zipfile -e scannet_frames_25k.zip .'
        if start in ('bash tools/dist_train.sh', 'bash tools/dist_test.sh'):
            command = re.sub(r' 8\b', ' 1', command)  # each takes seconds to start; test_distributed.py has several
        if start == 'bash tools/dist_train.sh':
            env.pop('OMP_NUM_THREADS', None)
        if start == 'bash tools/dist_test.sh':
            command = command.replace('epoch_150.pth', 'epoch_1.pth')
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
    assert os.path.exists(checkout / 'work_dirs/detr_deit-tiny_8xb1-150e_scannet/epoch_1.pth')
