"""The results of a race as tables and plots."""

import statistics
from pathlib import Path

from deit_detr.files import replacing, write_json, write_text

#: Okabe and Ito's colours, which colour-blind people can tell apart; the markers differ as well.
COLOURS = ['#000000', '#D55E00', '#0072B2', '#009E73', '#CC79A7', '#E69F00', '#56B4E9']
MARKERS = 'osD^vPX*'


def _final(entry: dict, key: str = 'AP') -> list[float]:
    """Return the AP or AP50 of the last evaluation of each seed of a recipe."""
    return [run['evaluations'][-1][key] for run in entry['runs']]


def _reached(entry: dict, target: float) -> dict | None:
    """Return the slowest seed's first evaluation with a given AP, 0..1; ``None`` if a seed never reaches it."""
    first = [next((item for item in run['evaluations'] if item['AP'] >= target), None) for run in entry['runs']]
    return None if None in first else max(first, key=lambda item: item['seconds'])


def _mean_and_range(values: list[float], form: str) -> str:
    """Format the mean, and the lowest and highest value if they differ as text."""
    low, mean, high = (f'{value:{form}}' for value in (min(values), statistics.mean(values), max(values)))
    return mean if low == high else f'{mean} ({low} .. {high})'


def _table(rows: list[list[str]]) -> str:
    """Return a Markdown table; the first row is its head."""
    rows = [rows[0], ['---'] * len(rows[0]), *rows[1:]]
    return '\n'.join(f'| {" | ".join(row)} |' for row in rows) + '\n'


def learning_table(results: dict) -> str:
    """Return a Markdown table of each recipe's AP, and when it reached the AP of the reference and of the full runs."""
    entries = results['contestants']
    targets = [entry for entry in entries if entry['full'] or entry['name'] == results['reference']]
    reference = next((_final(entry) for entry in entries if entry['name'] == results['reference']), [0])
    rows = [['recipe', 'AP', 'AP50', 'AP / reference', 'minutes', 'epochs', 'steps',
             *(f'reaches {statistics.mean(_final(target)):.3f} of {target["name"]}' for target in targets)]]
    for entry in entries:
        row = [entry['name'], _mean_and_range(_final(entry), '.3f'), _mean_and_range(_final(entry, 'AP50'), '.3f')]
        worth = statistics.mean(reference)
        row.append(f'{statistics.mean(_final(entry)) / worth:.2f}' if worth > 0 else '-')
        for key, unit, form in (('seconds', 60, '.1f'), ('epochs', 1, '.1f'), ('steps', 1, '.0f')):
            row.append(_mean_and_range([run[key] / unit for run in entry['runs']], form))
        for target in targets:
            ap = statistics.mean(_final(target))
            at = _reached(entry, ap) if ap > 0 else None
            if at is None:
                row.append('-')
            else:
                share = at['epoch'] / statistics.mean(run['epochs'] for run in target['runs'])
                row.append(f'{at["seconds"] / 60:.1f} min, {at["epoch"]:.1f} epochs ({share:.0%})')
        rows.append(row)
    return _table(rows)


def cost_table(results: dict) -> str:
    """Return a Markdown table of the size, speed and memory of each recipe."""
    rows = [['recipe', 'parameters', 'GFLOP', 'latency, ms', 'inference, GB', 'training, s/step', 'training, GB']]
    for entry in results['contestants']:
        if entry['full'] and any(entry['config'] == other['config'] for other in results['contestants']
                                 if not other['full']):
            continue  # the same model
        runs, costs = entry['runs'], [run['cost'] for run in entry['runs']]
        rows.append([
            entry['name'], f'{costs[0]["parameters"]:,}', f'{costs[0]["gflops"]:.2f}',
            _mean_and_range([cost['latency_ms'] for cost in costs], '.0f'),
            f'{max(cost["infer_gb"] for cost in costs):.2f}',
            _mean_and_range([run['seconds'] / run['steps'] for run in runs], '.2f'),
            f'{max(run["peak_gb"] for run in runs):.2f}'])
    return _table(rows)


def to_markdown(results: dict) -> str:
    """Return both tables as Markdown, with an explanation of their numbers."""
    runs = [run for entry in results['contestants'] for run in entry['runs']]
    sizes = sorted({'x'.join(map(str, run['cost']['size'])) for run in runs})
    where = sorted({
        f'{run["machine"]["device"]}, {run["threads"]} thread(s), torch {run["machine"]["torch"]}, '
        f'commit {run["machine"]["commit"]}, {run["machine"]["date"]}' for run in runs})
    busy = [run['cpu_seconds'] / run['seconds'] for run in runs]
    return f"""{learning_table(results)}
{cost_table(results)}
Each run trains for {results['minutes']:g} minutes; evaluation, checkpoints and start-up are not counted. Runs marked
(full) train for all epochs of their recipe. Numbers are the mean over seeds (lowest .. highest). AP and AP50 are those
of COCO, 0..1, on the validation split after the last step. "reaches" is the slowest seed's first evaluation with that
AP; in brackets, its epochs as a share of those that the other recipe took.

GFLOP, latency and inference memory: one image of {', '.join(sizes)} pixels; a multiply-add is 2 operations. Memory is
the peak of the process, in 1e9 bytes. Training uses the batch size of the recipe.

{'; '.join(where)}. CPU time in a second of training: {min(busy):.2f} .. {max(busy):.2f}.

    {results['command']}
"""


def plot(results: dict, out_dir: str | Path) -> None:
    """Draw AP against minutes and against epochs: the mean over seeds, with the range shaded.

    Args:
        results: From :func:`deit_detr.measuring.race.summarize`.
        out_dir: Folder for ``race.png`` and ``race.svg``.
    """
    from matplotlib.figure import Figure  # needs no window system, unlike pyplot
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = Figure(figsize=(10, 5.2), layout='constrained')
    by_time, by_epoch = figure.subplots(1, 2, sharey=True)
    recipes = list(dict.fromkeys(entry['config'] for entry in results['contestants']))
    for entry in results['contestants']:
        index = recipes.index(entry['config'])  # a full run has the colour of its recipe, but is dashed
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


def write_results(results: dict, out_dir: str | Path) -> None:
    """Write ``race.json``, ``race.md``, ``race.png`` and ``race.svg``."""
    write_json(Path(out_dir, 'race.json'), results)
    write_text(Path(out_dir, 'race.md'), to_markdown(results))
    plot(results, out_dir)
