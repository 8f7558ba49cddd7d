"""The report of a training run, or of two side by side: curves, AP, errors and pictures."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deit_detr.checkpoints.safe_loading import forget_checkpoint
from deit_detr.errors import UserError
from deit_detr.evaluation.detections import DatasetSummary
from deit_detr.evaluation.error_breakdown import KINDS, MISSED, confusion_matrix, count_errors, oracle_gains
from deit_detr.pages.evaluated_run import EvaluatedRun, add_attention, evaluate_run
from deit_detr.pages.html import line_chart, number, percent, write_page
from deit_detr.pages.report_gallery import make_gallery
from deit_detr.pages.work_dir import read_run

#: Logged scalars that get a chart: key, title, and which value to name beside the last.
CURVES = (
    ('loss', 'Training loss', min),
    ('loss_cls', 'Classification loss, last layer', min),
    ('loss_bbox', 'L1 loss of boxes, last layer', min),
    ('loss_iou', 'IoU loss, last layer', min),
    ('lr', 'Learning rate', max),
    ('grad_norm', 'Gradient norm', statistics.median),
    ('time', 'Seconds per iteration', statistics.median),
    ('data_time', 'of which waiting for data', statistics.median),
    ('memory', 'GPU memory, MB', max),
)
#: mmdet's names of COCO's AP values.
METRICS = {
    'coco/bbox_mAP': 'AP', 'coco/bbox_mAP_50': 'AP50', 'coco/bbox_mAP_75': 'AP75', 'coco/bbox_mAP_s': 'AP small',
    'coco/bbox_mAP_m': 'AP medium', 'coco/bbox_mAP_l': 'AP large'}
WORDS = {min: 'lowest', max: 'highest', statistics.median: 'median'}

#: Explanations of the types of errors, in the order of KINDS[1:] and 'missed'.
EXPLANATIONS = {
    'classification': 'lies on a box (IoU 0.5 or more) of another class',
    'localisation': 'right class, but IoU only 0.1 to 0.5',
    'both': 'wrong class and badly placed: overlaps a box (IoU above 0.1), but is of no other type',
    'duplicate': 'a detection with a higher score has found the box already',
    'background': 'touches no box (IoU 0.1 or less)',
    'missed': 'a box without a detection, not even one with a classification or localisation error',
}

def make_report(
    work_dirs: Sequence[Path], out: Path, checkpoint: Path | None = None, predictions: Sequence[Path] = (),
    max_images: int = 100, max_attention: int = 4, cfg_options: dict | None = None,
) -> list[str]:
    """Write the report of a training run, or of two side by side.

    Without ``predictions``, the best checkpoint of each work folder (or its last) runs on the validation data of its
    config, and the detections are kept beside the page: ``report.bbox.json``, ``report.compared.bbox.json``.

    Args:
        work_dirs: One work folder, or two to compare.
        out: The HTML file.
        checkpoint: Checkpoint of the first work folder to use in place of its best.
        predictions: COCO results files, one for each work folder.
        max_images: Pictures in the page; of more images, a third each of the worst, the best and others.
        max_attention: Images whose attention the page shows: those with the most boxes found.
        cfg_options: Overrides for the configs, for instance the present place of the data.

    Returns:
        list[str]: What is missing from the page, and why.

    Raises:
        UserError: If a work folder is not one, or a file that was asked for cannot be used.
    """
    if len(predictions) > len(work_dirs):
        raise UserError(f'--predictions: {len(predictions)} files for {len(work_dirs)} work folders')
    runs = [EvaluatedRun(read_run(folder)) for folder in work_dirs]
    for index, run in enumerate(runs):
        if run.training.config is not None:
            run.training.config.merge_from_dict(cfg_options or {})
            evaluate_run(
                run, checkpoint if index == 0 else None, predictions[index] if index < len(predictions) else None,
                out.with_suffix('.compared.bbox.json' if index else '.bbox.json'))
            if run.evaluation and run.num_parameters is not None and max_attention:
                add_attention(run, max_attention)
            forget_checkpoint()

    names = [run.training.folder.resolve().name for run in runs]
    if len(set(names)) < len(names):
        names = ['first', 'second']
    write_page(
        out, 'report.html', title=runs[0].training.name, names=names, runs=runs, facts=_facts(runs),
        environment=_rows([run.training.environment for run in runs]), curves=_curves(runs),
        tiles=_tiles(runs), classes=_classes(runs), precision=_precision(runs),
        errors=_errors(runs), matrices=[_matrix(run) for run in runs],
        gallery=make_gallery(runs, names, max_images), kinds=KINDS, missed=MISSED, explanations=EXPLANATIONS)
    return [f'{name}: {text}' if len(names) > 1 else text
            for name, run in zip(names, runs, strict=True) for text in run.training.missing]


def _facts(runs: list[EvaluatedRun]) -> list[tuple[str, list[str]]]:
    """Return the rows of the first table: a name, and a value for each run."""
    columns = []
    for run in runs:
        training, config = run.training, run.training.config or {}
        model, optim = config.get('model') or {}, config.get('optim_wrapper') or {}
        optimizer = optim.get('optimizer') or {}
        last = training.train[-1] if training.train else None
        memory = [row['memory'] for row in training.train if 'memory' in row]
        trained = f'iteration {last["iter"]} of {training.planned_iters or "?"}' if last else '–'
        columns.append({
            'Config': training.name,
            'Model': ', '.join(str(part.get('type')) for part in (model, model.get('backbone') or {}) if part) or '–',
            'Trained': trained + (f', epoch {last["epoch"]}' if last and 'epoch' in last else ''),
            'Starts': '; '.join(
                f'{start.name} (logged {start.first} to {start.last})' for start in training.starts) or '–',
            'Wall time': str(training.duration or '–'),
            'Peak GPU memory': f'{max(memory)} MB' if memory else 'not logged',
            'Optimizer': f'{optimizer.get("type", "–")}, lr {optimizer.get("lr", "–")}, {optim.get("type", "")}',
            'Batch': f'{(config.get("train_dataloader") or {}).get("batch_size", "–")} images per process',
            'Training data': _describe(run.train_data),
            'Validation data': _describe(run.val_data),
            'Checkpoint': '–' if run.checkpoint is None else run.checkpoint.name + (
                f', {number(run.num_parameters)} numbers' if run.num_parameters else ''),
            **_recorded(training.record),
        })
    return _rows(columns)


def _recorded(record: dict) -> dict[str, str]:
    """Return what is needed to repeat a run, from its ``run.json``."""
    code, data = record.get('code') or {}, record.get('data') or {}
    changed = {True: ', with uncommitted changes', None: ', not from a git checkout'}.get(code.get('changed'), '')
    return {
        'Commit': f'{code.get("commit") or "unknown"}{changed}' if record else 'not recorded by the run',
        'Seed': f'{record["seed"]}{", deterministic" if record.get("deterministic") else ""}'
        if 'seed' in record else 'not recorded by the run',
        'Data files': '; '.join(
            f'{name}: sha256 {str(part.get("sha256"))[:16]}, images {str(part.get("files_sha256"))[:16]}'
            for name, part in data.items()) or 'not recorded by the run',
    }


def _rows(columns: list[dict[str, str]]) -> list[tuple[str, list[str]]]:
    names = dict.fromkeys(name for column in columns for name in column)
    return [(name, [column.get(name, '–') for column in columns]) for name in names]


def _describe(data: DatasetSummary | None) -> str:
    return f'{data.num_images} images, {data.num_boxes} boxes' if data else '–'


def _curves(runs: list[EvaluatedRun]) -> list[tuple]:
    """Return charts with a title and values: AP after each evaluation, then the numbers logged in training."""
    metrics = dict.fromkeys(
        key for run in runs for row in run.training.val for key in row
        if '/' in key and not key.endswith('_precision'))
    found = [(key, METRICS.get(key, key), max, [run.training.val for run in runs])
             for key in metrics]
    found += [(*curve, [run.training.train for run in runs]) for curve in CURVES]
    charts = []
    for key, title, best, logs in found:
        scale = 100 if key in metrics else 1
        lines = []
        for log in logs:
            rows = [row for row in log if isinstance(row.get(key), int | float)]
            values = [scale * row[key] if key not in metrics or row[key] >= 0 else math.nan for row in rows]
            lines.append(([row['iter'] for row in rows], values))
        if any(values for _, values in lines):
            charts.append((title, line_chart(lines, title), [_name_values(values, best) for _, values in lines]))
    return charts


def _name_values(values: list[float], best) -> str:
    finite = [value for value in values if math.isfinite(value)]
    text = f'last {number(values[-1])}, {WORDS[best]} {number(best(finite))}' if finite else '–'
    lost = len(values) - len(finite)
    return text + (f', {lost} not finite' if lost and finite else '')


def _tiles(runs: list[EvaluatedRun]) -> list[tuple[str, list[str]]]:
    summaries = [run.evaluation.summary() if run.evaluation else {} for run in runs]
    names = next((list(summary) for summary in summaries if summary), [])
    return [(name, [percent(summary.get(name)) for summary in summaries]) for name in names]


def _class_names(runs: list[EvaluatedRun]) -> list[str]:
    evaluated = [run.evaluation for run in runs if run.evaluation]
    return list(dict.fromkeys(name for evaluation in evaluated for name in evaluation.classes))


def _classes(runs: list[EvaluatedRun]) -> list[dict]:
    """Return the rows of the table of classes: boxes, and AP, AP50, AP75, recall and counted errors for each run."""
    rows = []
    for name in _class_names(runs):
        cells = []
        for run in runs:
            if run.evaluation is None or name not in run.evaluation.classes:
                cells.append(None)
                continue
            label = run.evaluation.classes.index(name)
            cells.append(dict(
                boxes=run.val_data.boxes[name], ap=run.evaluation.class_ap()[label].tolist(),
                trained=run.train_data.boxes[name] if run.train_data else None,
                errors=count_errors(run.evaluation.matches, run.score)[label].tolist()))
        rows.append(dict(name=name, cells=cells))
    return rows


def _precision(runs: list[EvaluatedRun]) -> dict:
    """Return precision-recall charts: the mean over classes at three IoUs, and one at IoU 0.5 for each class."""
    evaluations = [run.evaluation for run in runs if run.evaluation]

    def chart(label: str, curves: list[np.ndarray], size: tuple[int, int] = (360, 180)) -> tuple:
        lines = [(evaluation.coco_eval.params.recThrs, curve)
                 for evaluation, curve in zip(evaluations, curves, strict=True)]
        image = line_chart(lines, f'Precision over recall, {label}', (0, 1), (0, 1), size)
        return label, image, [percent(curve.mean()) for curve in curves]

    means = [chart(f'IoU {iou}', [np.nanmean(evaluation.precision(iou), 1) for evaluation in evaluations])
             for iou in (0.5, 0.75, 0.9) if evaluations]
    classes = [
        chart(name, [evaluation.precision(0.5)[:, evaluation.classes.index(name)] if name in evaluation.classes
                     else np.full(101, math.nan) for evaluation in evaluations], (170, 110))
        for name in _class_names(runs)]
    return dict(means=means, classes=classes)


def _errors(runs: list[EvaluatedRun]) -> list[tuple]:
    """Return the rows of the chart of errors: name, the AP that each costs, as text, and the link to the gallery."""
    gains = [oracle_gains(run.evaluation.matches, run.evaluation.coco_eval.params.recThrs)
             for run in runs if run.evaluation]
    filters = {name: kind for kind, name in enumerate((*KINDS, 'missed'))}
    return [(name, [gain[name] for gain in gains], [percent(gain[name]) for gain in gains],
             dict(kind=filters[name]) if name in filters else None) for name in (gains[0] if gains else ())]


def _matrix(run: EvaluatedRun) -> list[list[tuple[int, float]]] | None:
    """Return the confusion matrix with each count's share of its row; ``None`` without an evaluation."""
    if run.evaluation is None:
        return None
    matrix = confusion_matrix(run.evaluation.matches, run.score)
    return [[(count, count / max(1, sum(row))) for count in row] for row in matrix.tolist()]
