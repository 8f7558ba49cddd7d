"""A race between recipes: the same data, the same training time on the same machine; AP against time and epochs.

Every run is a process of its own, ``tools/train.py`` on a config written for it, one after the other. The config is
the recipe with its train loop replaced by :class:`~deit_detr.measuring.budget.BudgetTrainLoop`, which says what the
clock counts and how the recipe's schedule is fitted to it.

The config of a run is ``DIR/runs/RECIPE/seedN.py``. Beside what mmengine writes, the folder ``seedN/`` has ``log.txt``,
``clock.json`` (from the loop) and ``cost.json`` (from :func:`deit_detr.measuring.benchmark.recipe_cost`).
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config
from mmengine.logging import MMLogger
from tqdm import tqdm

from deit_detr.errors import UserError
from deit_detr.files import replacing, write_json, write_text
from deit_detr.machine import describe
from deit_detr.measuring.benchmark import data_size, recipe_cost

#: Okabe and Ito's colours, which colour-blind people can tell apart; the markers differ as well.
COLOURS = ['#000000', '#D55E00', '#0072B2', '#009E73', '#CC79A7', '#E69F00', '#56B4E9']
MARKERS = 'osD^vPX*'


@dataclass(frozen=True)
class Run:
    """One training run of the race.

    Attributes:
        config: Path of the recipe.
        seed: Seed of weights, order and augmentation.
        minutes: Budget of training time; ``None`` trains the recipe's own epochs.
        evals: Evaluations, at equal shares of the run.
        folder: Its work folder.
    """

    config: str
    seed: int
    minutes: float | None
    evals: int
    folder: Path

    @property
    def contestant(self) -> str:
        """The name that its seeds share, a row of the table."""
        return Path(self.config).stem + ('' if self.minutes else ' (full)')

    @property
    def config_file(self) -> Path:
        """What it trains: beside its work folder, into which mmengine writes a file of that name, and not the same."""
        return self.folder.with_suffix('.py')

    def clock(self) -> dict:
        """What the loop has written so far."""
        path = self.folder / 'clock.json'
        return json.loads(path.read_text()) if path.exists() else dict(finished=False, evaluations=[])

    def cost(self) -> dict:
        """Parameters, GFLOPs, latency and memory of the model, measured once.

        Raises:
            UserError: If it cannot be measured, whatever the reason: the others go on.
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
) -> list[Run]:
    """All runs in the order in which they are trained.

    Args:
        configs: Recipes that train for ``minutes``; the first is the reference.
        full: Recipes that train all of their own epochs, with the first seed.
        minutes: Training time of a run.
        evals: Evaluations of a run.
        seeds: A run of each of ``configs`` for each of them.
        out_dir: Folder of the race.

    Returns:
        list[Run]: Every recipe before the next seed, the long runs last.

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
        Run(config, seed, minutes, evals, folder / Path(config).stem / f'seed{seed}')
        for seed in dict.fromkeys(seeds) for config in configs]
    return runs + [
        Run(config, seeds[0], None, evals, folder / f'{Path(config).stem}_full' / f'seed{seeds[0]}')
        for config in full]


def contestant(run: Run, options: dict) -> Config:
    """The config of a run.

    Args:
        run: The run.
        options: Settings to override in every recipe.

    Raises:
        UserError: If the recipe does not exist or has no schedule of epochs.
    """
    if not Path(run.config).is_file():
        raise UserError(f'{run.config}: no such config file')
    cfg = Config.fromfile(run.config)
    cfg.merge_from_dict(options)
    if cfg.train_cfg.get('type') not in ('EpochBasedTrainLoop', 'ResumableTrainLoop'):
        raise UserError(f'{run.config}: train_cfg.type: only text configs with a loop of epochs can race')
    cfg.custom_imports.imports = [*cfg.custom_imports.imports, 'deit_detr.measuring.budget']
    cfg.train_cfg = dict(
        type='BudgetTrainLoop', max_epochs=cfg.train_cfg.max_epochs, minutes=run.minutes, evals=run.evals)
    schedulers = cfg.get('param_scheduler') or []
    for scheduler in schedulers if isinstance(schedulers, list) else [schedulers]:
        if scheduler.get('by_epoch', True):
            scheduler.convert_to_iter_based = True
    cfg.default_hooks.param_scheduler = None  # the loop does it
    cfg.default_hooks.checkpoint = dict(
        type='CheckpointHook', interval=1, max_keep_ckpts=1, save_optimizer=False, save_param_scheduler=False)
    cfg.randomness = dict(seed=run.seed)
    cfg.work_dir = None
    return cfg


def files_of(cfg: Config) -> dict[str, str]:
    """The annotation files that a recipe trains and is evaluated with."""
    files = {}
    for split in ('train', 'val'):
        dataset = cfg[f'{split}_dataloader'].dataset
        while 'dataset' in dataset:  # a wrapper, of mosaics for example
            dataset = dataset.dataset
        files[split] = os.path.join(dataset.get('data_root', ''), dataset.ann_file)
    return files


def train(run: Run, config: str, train_script: str | Path, on_evaluation: Callable[[dict], None]) -> None:
    """Train a run to its end, unless it has come there before.

    Args:
        run: The run.
        config: Text of its config.
        train_script: Path of ``tools/train.py``.
        on_evaluation: Called with each evaluation.

    Raises:
        UserError: If the training fails, or the folder holds a finished run of other settings.
    """
    log = run.folder / 'log.txt'
    if run.clock()['finished']:
        if run.config_file.read_text() != config:
            raise UserError(
                f'{run.folder}: finished with other settings than these: remove that folder, or choose another --out')
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
        raise UserError(f'{run.contestant}, seed {run.seed}: status {process.returncode}: see {log}')


def race(
    runs: list[Run], options: dict, train_script: str | Path, out_dir: str | Path, command: str,
) -> dict:
    """Train all runs, one after the other, and write the results anew after each.

    Args:
        runs: From :func:`plan`.
        options: Settings to override in every recipe.
        train_script: Path of ``tools/train.py``.
        out_dir: Where :func:`write` puts its files.
        command: The command line, for the record.

    Returns:
        dict: See :func:`summarize`.

    Raises:
        UserError: At once if a recipe cannot take part or has other data than the first; at the end if runs failed.
    """
    MMLogger.get_current_instance().setLevel('WARNING')
    configs = [contestant(run, options) for run in runs]
    for run, cfg in zip(runs, configs, strict=True):
        if files_of(cfg) != files_of(configs[0]):
            raise UserError(f'{run.config}: other data than {runs[0].config}: {files_of(cfg)}, {files_of(configs[0])}')
    failed = []
    with tqdm(total=sum(run.evals for run in runs), unit='eval', smoothing=0.1) as bar:

        def show(evaluation: dict) -> None:
            bar.set_postfix_str(f'AP {evaluation["AP"]:.3f} at {evaluation["seconds"] / 60:.1f} min', refresh=False)
            bar.update()

        for run, cfg in zip(runs, configs, strict=True):
            bar.set_description(f'{run.contestant}, seed {run.seed}')
            try:
                train(run, cfg.pretty_text, train_script, show)
            except UserError as error:
                failed.append(str(error))
                tqdm.write(f'failed: {error}', file=sys.stderr)
            else:
                results = summarize(runs, command)
                write(results, out_dir)
    if failed:
        raise UserError(f'{len(failed)} of {len(runs)} runs failed:\n' + '\n'.join(failed))
    return results


def summarize(runs: list[Run], command: str) -> dict:
    """All that the finished runs say.

    Args:
        runs: From :func:`plan`; unfinished ones are left out.
        command: The command line, for the record.

    Returns:
        dict: ``command``, ``machine``, ``minutes``, ``reference`` (a name) and ``contestants``, each with ``name``,
        ``config``, ``full`` and ``runs``: the seed and what ``clock.json`` and ``cost.json`` say.
    """
    contestants = {}
    for run in runs:
        clock = run.clock()
        if clock['finished']:
            entry = contestants.setdefault(
                run.contestant, dict(name=run.contestant, config=run.config, full=run.minutes is None, runs=[]))
            entry['runs'].append(dict(seed=run.seed, **clock, cost=run.cost()))
    return dict(
        command=command, machine=describe(), minutes=runs[0].minutes, reference=runs[0].contestant,
        contestants=list(contestants.values()))


def final(entry: dict, key: str = 'AP') -> list[float]:
    """The last evaluation's AP or AP50 of each seed of a contestant."""
    return [run['evaluations'][-1][key] for run in entry['runs']]


def reached(entry: dict, target: float) -> dict | None:
    """The first evaluation of a contestant with a given AP, 0..1: the slowest seed's; ``None`` if one has it never."""
    first = [next((item for item in run['evaluations'] if item['AP'] >= target), None) for run in entry['runs']]
    return None if None in first else max(first, key=lambda item: item['seconds'])


def mean_and_range(values: list[float], form: str) -> str:
    """Text: the mean, and the lowest and highest value where they read differently."""
    low, mean, high = (f'{value:{form}}' for value in (min(values), statistics.mean(values), max(values)))
    return mean if low == high else f'{mean} ({low} .. {high})'


def markdown(rows: list[list[str]]) -> str:
    """A table whose first row is the head."""
    rows = [rows[0], ['---'] * len(rows[0]), *rows[1:]]
    return '\n'.join(f'| {" | ".join(row)} |' for row in rows) + '\n'


def learning_table(results: dict) -> str:
    """How far each contestant came, and when it was where the reference and the full runs ended; Markdown."""
    contestants = results['contestants']
    targets = [entry for entry in contestants if entry['full'] or entry['name'] == results['reference']]
    reference = next((final(entry) for entry in contestants if entry['name'] == results['reference']), [0])
    rows = [['recipe', 'AP', 'AP50', 'AP / reference', 'minutes', 'epochs', 'steps',
             *(f'reaches {statistics.mean(final(target)):.3f} of {target["name"]}' for target in targets)]]
    for entry in contestants:
        row = [entry['name'], mean_and_range(final(entry), '.3f'), mean_and_range(final(entry, 'AP50'), '.3f')]
        worth = statistics.mean(reference)
        row.append(f'{statistics.mean(final(entry)) / worth:.2f}' if worth > 0 else '-')
        for key, unit, form in (('seconds', 60, '.1f'), ('epochs', 1, '.1f'), ('steps', 1, '.0f')):
            row.append(mean_and_range([run[key] / unit for run in entry['runs']], form))
        for target in targets:
            ap = statistics.mean(final(target))
            at = reached(entry, ap) if ap > 0 else None
            if at is None:
                row.append('-')
            else:
                share = at['epoch'] / statistics.mean(run['epochs'] for run in target['runs'])
                row.append(f'{at["seconds"] / 60:.1f} min, {at["epoch"]:.1f} epochs ({share:.0%})')
        rows.append(row)
    return markdown(rows)


def cost_table(results: dict) -> str:
    """Size, speed and memory of each recipe, Markdown."""
    rows = [['recipe', 'parameters', 'GFLOP', 'latency, ms', 'inference, GB', 'training, s/step', 'training, GB']]
    for entry in results['contestants']:
        if entry['full'] and any(entry['config'] == other['config'] for other in results['contestants']
                                 if not other['full']):
            continue  # the same model
        runs, costs = entry['runs'], [run['cost'] for run in entry['runs']]
        rows.append([
            entry['name'], f'{costs[0]["parameters"]:,}', f'{costs[0]["gflops"]:.2f}',
            mean_and_range([cost['latency_ms'] for cost in costs], '.0f'),
            f'{max(cost["infer_gb"] for cost in costs):.2f}',
            mean_and_range([run['seconds'] / run['steps'] for run in runs], '.2f'),
            f'{max(run["peak_gb"] for run in runs):.2f}'])
    return markdown(rows)


def report(results: dict) -> str:
    """The race as Markdown: both tables, and what their numbers are."""
    runs = [run for entry in results['contestants'] for run in entry['runs']]
    sizes = sorted({'x'.join(map(str, run['cost']['size'])) for run in runs})
    where = sorted({
        f'{run["machine"]["device"]}, {run["threads"]} thread(s), torch {run["machine"]["torch"]}, '
        f'commit {run["machine"]["commit"]}, {run["machine"]["date"]}' for run in runs})
    busy = [run['cpu_seconds'] / run['seconds'] for run in runs]
    return f"""{learning_table(results)}
{cost_table(results)}
Each run trains for {results['minutes']:g} minutes; evaluation, checkpoints and start-up are not counted. Runs marked
(full) train all of their recipe's epochs. Numbers are the mean over seeds (lowest .. highest). AP and AP50 are COCO's,
0..1, on the validation split after the last step. An AP is reached at the first evaluation that has it, by the slowest
seed; in brackets the share of the epochs that the other recipe took for it.

GFLOP, latency and inference memory: one image of {', '.join(sizes)} pixels; a multiply-add is 2 operations. Memory is
the peak of the process, in 1e9 bytes. Training has the recipe's own batch size.

{'; '.join(where)}. CPU time in a second of training: {min(busy):.2f} .. {max(busy):.2f}.

    {results['command']}
"""


def plot(results: dict, out_dir: str | Path) -> None:
    """Draw AP against minutes and against epochs: the mean over seeds, with the range shaded.

    Args:
        results: From :func:`summarize`.
        out_dir: Where ``race.png`` and ``race.svg`` go.
    """
    from matplotlib.figure import Figure  # needs no window system, unlike pyplot
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = Figure(figsize=(10, 5.2), layout='constrained')
    by_time, by_epoch = figure.subplots(1, 2, sharey=True)
    recipes = list(dict.fromkeys(entry['config'] for entry in results['contestants']))
    for entry in results['contestants']:
        index = recipes.index(entry['config'])  # a full run looks like its recipe's others, but dashed
        by_number = [{item['number']: item for item in run['evaluations']} for run in entry['runs']]
        points = [[items[number] for items in by_number] for number in sorted(set.intersection(*map(set, by_number)))]
        ap = [[item['AP'] for item in point] for point in points]
        colour = COLOURS[index % len(COLOURS)]
        for axes, key, unit in ((by_time, 'seconds', 60), (by_epoch, 'epoch', 1)):
            x = [statistics.mean(item[key] for item in point) / unit for point in points]
            axes.plot(
                x, list(map(statistics.mean, ap)), label=entry['name'], color=colour, linewidth=1.6, markersize=5,
                marker=MARKERS[index % len(MARKERS)], linestyle='--' if entry['full'] else '-')
            axes.fill_between(x, list(map(min, ap)), list(map(max, ap)), color=colour, alpha=0.15, linewidth=0)
    by_time.set(xlabel='training time, minutes', ylabel='AP, validation', ylim=(0, None))
    by_epoch.set(xlabel='epochs')
    log_axes = [by_time, by_epoch] if any(entry['full'] for entry in results['contestants']) else [by_epoch]
    for axes in log_axes:
        axes.set_xscale('log')
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    for axes in (by_time, by_epoch):
        axes.xaxis.set_major_formatter('{x:g}')
        axes.grid(alpha=0.3)
    figure.legend(*by_time.get_legend_handles_labels(), loc='outside lower center', ncols=2)
    for suffix in ('png', 'svg'):
        with replacing(Path(out_dir, f'race.{suffix}')) as part:
            figure.savefig(part, dpi=150)


def write(results: dict, out_dir: str | Path) -> None:
    """Write ``race.json``, ``race.md``, ``race.png`` and ``race.svg``."""
    write_json(Path(out_dir, 'race.json'), results)
    write_text(Path(out_dir, 'race.md'), report(results))
    plot(results, out_dir)
