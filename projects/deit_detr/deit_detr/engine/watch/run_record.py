"""The record of a run: everything that is needed to repeat it."""

import hashlib
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from mmdet.registry import HOOKS
from mmengine.dist import get_world_size, master_only
from mmengine.hooks import Hook
from mmengine.runner import BaseLoop, Runner
from torch.utils.data import Dataset

from deit_detr import machine, threads
from deit_detr.datasets.wrappers import unwrap
from deit_detr.files import write_json
from deit_detr.versions import VERSION

#: The packages whose versions change numbers.
PACKAGES = (
    'torch', 'torchvision', 'mmengine', 'mmcv', 'mmcv-lite', 'mmcv-ops', 'mmdet', 'mmpretrain', 'numpy', 'scipy',
    'opencv-python', 'opencv-python-headless', 'pillow', 'pycocotools', 'triton')
MAX_DIFF = 200_000
MAX_IMAGES = 2000


@HOOKS.register_module()
class RunRecordHook(Hook):
    """Write ``run.json`` beside mmengine's log and the resolved config at the start of a training.

    It holds the command, seed, versions, state of the code, fingerprints of the data, and the checkpoint that was
    resumed, but neither the name of the machine nor environment variables.
    """

    priority = 'VERY_LOW'

    @master_only
    def before_train(self, runner: Runner) -> None:
        """Write the record; weights and seed are known now."""
        record = dict(
            command=sys.argv, config=runner.cfg.filename, seed=runner.seed,
            deterministic=torch.are_deterministic_algorithms_enabled(), processes=get_world_size(),
            threads=torch.get_num_threads(), resumed=str(runner._load_from) if runner._resume else None,
            machine=machine.describe(), versions=versions(), code=code_state(Path(__file__).parent),
            data={name: fingerprint(dataset) for name, dataset in _datasets(runner)})
        write_json(Path(runner.log_dir, 'run.json'), record)
        runner.logger.info(
            f'seed {runner.seed}, commit {record["code"]["commit"]}, {threads.describe()}; more is in run.json')


def versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that change numbers."""
    found = dict(python=platform.python_version(), deit_detr=VERSION)
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def code_state(folder: Path) -> dict:
    """Return the commit of the code, and what has changed since.

    Args:
        folder: The folder of the code.

    Returns:
        dict: ``commit``, ``None`` outside a git checkout; ``changed``, whether anything differs from it; ``diff``, at
        most 200,000 characters; ``diff_cut``, whether it was longer; ``untracked``, names of files.
    """
    def git(*arguments: str) -> str | None:
        try:
            result = subprocess.run(
                ['git', *arguments], cwd=folder, capture_output=True, text=True, errors='replace', check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return result.stdout

    commit = git('rev-parse', 'HEAD')
    if commit is None:
        return dict(commit=None, changed=None, diff='', diff_cut=False, untracked=[])
    top = git('rev-parse', '--show-toplevel').strip()
    diff = git('-C', top, 'diff', 'HEAD')
    untracked = git('-C', top, 'ls-files', '--others', '--exclude-standard').splitlines()
    return dict(
        commit=commit.strip(), changed=bool(diff or untracked), diff=diff[:MAX_DIFF], diff_cut=len(diff) > MAX_DIFF,
        untracked=untracked[:100])


def fingerprint(dataset: Dataset) -> dict:
    """Return values that identify the content of a data set.

    Args:
        dataset: A data set of mmdet.

    Returns:
        dict: ``ann_file`` and its ``sha256``; the number of ``images``; ``files_sha256``, a hash of names and sizes in
        bytes of ``files`` images: all, or 2000 at equal distances. A hash is ``None`` if a file is not local.
    """
    ann_file = getattr(dataset, 'ann_file', '')
    sha256 = None
    if ann_file and Path(ann_file).is_file():
        digest = hashlib.sha256()
        with open(ann_file, 'rb') as file:
            while block := file.read(1 << 20):
                digest.update(block)
        sha256 = digest.hexdigest()
    step = max(1, -(-len(dataset) // MAX_IMAGES))
    paths = [dataset.get_data_info(index).get('img_path', '') for index in range(0, len(dataset), step)]
    return dict(
        ann_file=ann_file, sha256=sha256, images=len(dataset), files=len(paths), files_sha256=_hash_sizes(paths))


def _hash_sizes(paths: Iterable[str]) -> str | None:
    digest = hashlib.sha256()
    for path in paths:
        try:
            digest.update(f'{Path(path).name} {Path(path).stat().st_size}\n'.encode())
        except OSError:
            return None
    return digest.hexdigest()


def _datasets(runner: Runner) -> Iterator[tuple[str, Dataset]]:
    """Yield name and data set of training and validation, without wrappers."""
    for name, loop in (('train', runner._train_loop), ('val', runner._val_loop)):
        if isinstance(loop, BaseLoop):
            for part, dataset in unwrap(loop.dataloader.dataset, name):
                if hasattr(dataset, 'get_data_info'):
                    yield part, dataset
