"""The record of a run: what is needed to do it again."""

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

import deit_detr
from deit_detr import machine, threads
from deit_detr.files import write_json

#: The packages whose versions change numbers.
PACKAGES = (
    'torch', 'torchvision', 'mmengine', 'mmcv', 'mmcv-lite', 'mmcv-ops', 'mmdet', 'mmpretrain', 'numpy', 'scipy',
    'opencv-python', 'opencv-python-headless', 'pillow', 'pycocotools', 'triton')
MAX_DIFF = 200_000
MAX_IMAGES = 2000


@HOOKS.register_module()
class RunRecordHook(Hook):
    """Write ``run.json`` into the folder of a training's start, beside mmengine's log and the resolved config.

    It holds the command, seed, versions, state of the code, fingerprints of the data, and the checkpoint that was
    resumed. Neither the name of the machine nor the environment variables are in it.
    """

    priority = 'VERY_LOW'

    @master_only
    def before_train(self, runner: Runner) -> None:
        """Write it, when weights and seed are known."""
        record = dict(
            command=sys.argv, config=runner.cfg.filename, seed=runner.seed,
            deterministic=torch.are_deterministic_algorithms_enabled(), processes=get_world_size(),
            threads=torch.get_num_threads(), resumed=str(runner._load_from) if runner._resume else None,
            machine=machine.describe(), versions=versions(), code=code_state(Path(deit_detr.__file__).parent),
            data={name: fingerprint(dataset) for name, dataset in _datasets(runner)})
        write_json(Path(runner.log_dir, 'run.json'), record)
        runner.logger.info(
            f'seed {runner.seed}, commit {record["code"]["commit"]}, {threads.words()}; all else is in run.json')


def versions() -> dict[str, str]:
    """Python's version, and those of the packages that are installed."""
    found = dict(python=platform.python_version(), deit_detr=deit_detr.__version__)
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def code_state(folder: Path) -> dict:
    """The commit that the code is from, and what was changed since.

    Args:
        folder: Of the code.

    Returns:
        dict: ``commit``, ``None`` outside of a git checkout; ``changed``, whether anything differs from it; ``diff``,
        at most 200,000 characters, and ``diff_cut``, whether that is not all of it; ``untracked``, names of files.
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
    """What tells one data set from another.

    Args:
        dataset: mmdet's.

    Returns:
        dict: ``ann_file`` and its ``sha256``; the number of ``images``; ``files_sha256``, over name and size in bytes
        of ``files`` of the images: all, or 2000 at equal distances. A hash is ``None`` where a file is not local.
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
    """The data sets of a training run that are made of images; a wrapper's are those that it wraps."""
    for name, loop in (('train', runner._train_loop), ('val', runner._val_loop)):
        if isinstance(loop, BaseLoop):
            yield from _unwrap(name, loop.dataloader.dataset)


def _unwrap(name: str, dataset: Dataset) -> Iterator[tuple[str, Dataset]]:
    if hasattr(dataset, 'datasets'):
        for index, part in enumerate(dataset.datasets):
            yield from _unwrap(f'{name}.{index}', part)
    elif hasattr(dataset, 'dataset') and not hasattr(dataset, 'ann_file'):
        yield from _unwrap(name, dataset.dataset)
    elif hasattr(dataset, 'get_data_info'):
        yield name, dataset
