"""A race between recipes: the same data, training time and machine; AP against time and epochs.

Each run is ``tools/train.py`` in its own process, one after the other, on a config made from the recipe: its train loop
is replaced by :class:`~deit_detr.measuring.budget.BudgetTrainLoop`, which defines what the clock counts and how the
recipe's schedule is fitted to it.

The config of a run is ``DIR/runs/RECIPE/seedN.py``. The folder ``seedN/`` holds mmengine's files and ``log.txt``,
``clock.json`` (written by the loop) and ``cost.json`` (see :func:`deit_detr.measuring.costs.recipe_cost`).
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config
from mmengine.logging import MMLogger
from tqdm import tqdm

from deit_detr.config_file import read_config
from deit_detr.datasets.wrappers import unwrap
from deit_detr.errors import UserError
from deit_detr.files import write_json
from deit_detr.machine import describe
from deit_detr.measuring.costs import data_size, recipe_cost
from deit_detr.measuring.race_report import write_results


@dataclass(frozen=True)
class RaceRun:
    """One run of a race: a recipe trained with one seed.

    Attributes:
        config: Path of the recipe.
        seed: Seed of weights, order and augmentation.
        minutes: Budget of training time; ``None`` trains for all epochs of the recipe.
        evals: Number of evaluations, at equal shares of the run.
        folder: Work folder of the run.
        cpu_clock: Whether minutes are CPU time of the training process, which then loads its data itself.
    """

    config: str
    seed: int
    minutes: float | None
    evals: int
    folder: Path
    cpu_clock: bool = False

    @property
    def name(self) -> str:
        """Name of the table row, shared by all seeds of the recipe."""
        return Path(self.config).stem + ('' if self.minutes else ' (full)')

    @property
    def config_file(self) -> Path:
        """Path of the config; it is not in the work folder, where mmengine writes another file of the same name."""
        return self.folder.with_suffix('.py')

    def clock(self) -> dict:
        """Return what the loop has written to ``clock.json`` so far."""
        path = self.folder / 'clock.json'
        return json.loads(path.read_text()) if path.exists() else dict(finished=False, evaluations=[])

    def cost(self) -> dict:
        """Return the model's parameters, GFLOPs, latency and memory; they are measured once.

        Raises:
            UserError: If they cannot be measured, for any reason, so that the other runs go on.
        """
        path = self.folder / 'cost.json'
        if not path.exists():
            try:
                write_json(path, recipe_cost(str(self.config_file), data_size(str(self.config_file))))
            except Exception as error:
                raise UserError(f'{self.config_file}: the model cannot be measured: {error}') from error
        return json.loads(path.read_text())


def plan(
    configs: list[str], full: list[str], minutes: float, evals: int, seeds: list[int], out_dir: str | Path,
    cpu_clock: bool = False,
) -> list[RaceRun]:
    """Return all runs in the order in which they are trained.

    Args:
        configs: Recipes that train for ``minutes``; the first is the reference.
        full: Recipes that train for all of their epochs, with the first seed.
        minutes: Training time of a run.
        evals: Evaluations of a run.
        seeds: Each of ``configs`` is trained once with each seed.
        out_dir: Folder of the race.
        cpu_clock: See :class:`RaceRun`.

    Returns:
        list[RaceRun]: All recipes with the first seed, then with the next; the runs of ``full`` come last.

    Raises:
        UserError: If two recipes have the same name.
    """
    for paths in (configs, full):
        names = [Path(config).stem for config in paths]
        for name in names:
            if names.count(name) > 1:
                raise UserError(f'{name}: more than one CONFIG has this name')
    folder = Path(out_dir, 'runs')
    runs = [
        RaceRun(config, seed, minutes, evals, folder / Path(config).stem / f'seed{seed}', cpu_clock)
        for seed in dict.fromkeys(seeds) for config in configs]
    return runs + [
        RaceRun(config, seeds[0], None, evals, folder / f'{Path(config).stem}_full' / f'seed{seeds[0]}', cpu_clock)
        for config in full]


def race_config(run: RaceRun, options: dict) -> Config:
    """Return the config that a run trains with.

    Args:
        run: The run.
        options: Settings to override in every recipe.

    Raises:
        UserError: If the recipe does not exist or does not train by epochs.
    """
    cfg = read_config(run.config, options)
    if cfg.train_cfg.get('type') not in ('EpochBasedTrainLoop', 'ResumableTrainLoop'):
        raise UserError(f'{run.config}: train_cfg.type: only text configs with a loop of epochs can race')
    cfg.custom_imports.imports = [*cfg.custom_imports.imports, 'deit_detr.measuring.budget']
    cfg.train_cfg = dict(
        type='BudgetTrainLoop', max_epochs=cfg.train_cfg.max_epochs, minutes=run.minutes, evals=run.evals,
        cpu_clock=run.cpu_clock)
    if run.cpu_clock:
        cfg.train_dataloader.update(num_workers=0, persistent_workers=False)
    schedulers = cfg.get('param_scheduler') or []
    for scheduler in schedulers if isinstance(schedulers, list) else [schedulers]:
        if scheduler.get('by_epoch', True):
            scheduler.convert_to_iter_based = True
    cfg.default_hooks.param_scheduler = None  # the loop steps them
    cfg.default_hooks.checkpoint = dict(
        type='CheckpointHook', interval=1, max_keep_ckpts=1, save_optimizer=False, save_param_scheduler=False)
    cfg.randomness = dict(seed=run.seed)
    cfg.work_dir = None
    return cfg


def files_of(cfg: Config) -> dict[str, str]:
    """Return the annotation files of a recipe for training and validation."""
    return {
        name: os.path.join(dataset.get('data_root', ''), dataset.ann_file)
        for split in ('train', 'val') for name, dataset in unwrap(cfg[f'{split}_dataloader'].dataset, split)}


def train(run: RaceRun, config: str, train_script: str | Path, on_evaluation: Callable[[dict], None]) -> None:
    """Train a run to its end, unless it has finished before.

    Args:
        run: The run.
        config: Text of its config.
        train_script: Path of ``tools/train.py``.
        on_evaluation: Called with the result of each evaluation.

    Raises:
        UserError: If the training fails, or the folder holds a finished run with other settings.
    """
    log = run.folder / 'log.txt'
    if run.clock()['finished']:
        if run.config_file.read_text() != config:
            raise UserError(
                f'{run.folder}: finished with other settings: remove the folder or choose another --out')
        for evaluation in run.clock()['evaluations']:
            on_evaluation(evaluation)
        return
    shutil.rmtree(run.folder, ignore_errors=True)
    run.folder.mkdir(parents=True)
    run.config_file.write_text(config)
    run.cost()  # a model that cannot be measured should fail before it trains
    with open(log, 'w') as log_file:
        process = subprocess.Popen(
            [sys.executable, train_script, run.config_file, '--work-dir', run.folder],
            stdout=log_file, stderr=subprocess.STDOUT)
        try:
            seen, ended = 0, False
            while not ended:
                ended = process.poll() is not None
                evaluations = run.clock()['evaluations']
                for evaluation in evaluations[seen:]:
                    on_evaluation(evaluation)
                seen = len(evaluations)
                if not ended:
                    time.sleep(0.5)
        finally:
            process.terminate()
            process.wait()
    if process.returncode or not run.clock()['finished']:
        raise UserError(f'{run.name}, seed {run.seed}: status {process.returncode}: see {log}')


def race(runs: list[RaceRun], options: dict, train_script: str | Path, out_dir: str | Path, command: str) -> dict:
    """Train all runs, one after the other, and write the results after each.

    Args:
        runs: From :func:`plan`.
        options: Settings to override in every recipe.
        train_script: Path of ``tools/train.py``.
        out_dir: Folder for the files of :func:`~deit_detr.measuring.race_report.write_results`.
        command: Command line of the race, which the results name.

    Returns:
        dict: See :func:`summarize`.

    Raises:
        UserError: Before any training if a recipe cannot race or has other data than the first; at the end if a run
            failed.
    """
    MMLogger.get_current_instance().setLevel('WARNING')
    configs = [race_config(run, options) for run in runs]
    for run, cfg in zip(runs, configs, strict=True):
        if files_of(cfg) != files_of(configs[0]):
            raise UserError(f'{run.config}: other data than {runs[0].config}: {files_of(cfg)}, {files_of(configs[0])}')
    failed = []
    with tqdm(total=sum(run.evals for run in runs), unit='eval', smoothing=0.1) as bar:

        def show(evaluation: dict) -> None:
            bar.set_postfix_str(f'AP {evaluation["AP"]:.3f} at {evaluation["seconds"] / 60:.1f} min', refresh=False)
            bar.update()

        for run, cfg in zip(runs, configs, strict=True):
            bar.set_description(f'{run.name}, seed {run.seed}')
            try:
                train(run, cfg.pretty_text, train_script, show)
            except UserError as error:
                failed.append(str(error))
                tqdm.write(f'failed: {error}', file=sys.stderr)
            else:
                results = summarize(runs, command)
                write_results(results, out_dir)
    if failed:
        raise UserError(f'{len(failed)} of {len(runs)} runs failed:\n' + '\n'.join(failed))
    return results


def summarize(runs: list[RaceRun], command: str) -> dict:
    """Return the results of all finished runs.

    Args:
        runs: From :func:`plan`; unfinished ones are left out.
        command: Command line of the race.

    Returns:
        dict: ``command``, ``machine``, ``minutes``, ``reference`` (a name) and ``contestants``: a dict for each recipe
        with ``name``, ``config``, ``full`` and ``runs`` (the seed and the content of ``clock.json`` and ``cost.json``).
    """
    entries = {}
    for run in runs:
        clock = run.clock()
        if clock['finished']:
            entry = entries.setdefault(
                run.name, dict(name=run.name, config=run.config, full=run.minutes is None, runs=[]))
            entry['runs'].append(dict(seed=run.seed, **clock, cost=run.cost()))
    return dict(
        command=command, machine=describe(), minutes=runs[0].minutes, reference=runs[0].name,
        contestants=list(entries.values()))
