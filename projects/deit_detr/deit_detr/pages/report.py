"""A page about a training run, or about two side by side: curves, AP, errors and pictures."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from deit_detr.checkpoints.safe_loading import find_state_dict, load_checkpoint_file
from deit_detr.errors import UserError
from deit_detr.evaluation.detections import Data, Evaluation, evaluate, predict, read_data
from deit_detr.evaluation.error_breakdown import (
    CORRECT,
    KINDS,
    MISSED,
    Matches,
    best_f1_threshold,
    confusion_matrix,
    count_errors,
    oracle_gains,
)
from deit_detr.pages.attention_page import attention_pictures
from deit_detr.pages.html import class_colour, gallery_image, line_chart, number, percent, write_page
from deit_detr.pages.work_dir import Run, find_checkpoint, read_run

#: Logged scalars with a chart of their own: key, title, and which value to name beside the last.
CURVES = (
    ('loss', 'Training loss', min),
    ('loss_cls', 'Classification loss, last layer', min),
    ('loss_bbox', 'L1 loss of boxes, last layer', min),
    ('loss_iou', 'IoU loss, last layer', min),
    ('lr', 'Learning rate', max),
    ('grad_norm', 'Gradient norm', statistics.median),
    ('time', 'Seconds an iteration', statistics.median),
    ('data_time', 'of these, waiting for data', statistics.median),
    ('memory', 'GPU memory, MB', max),
)
#: mmdet's names of COCO's AP values.
METRICS = {
    'coco/bbox_mAP': 'AP', 'coco/bbox_mAP_50': 'AP50', 'coco/bbox_mAP_75': 'AP75', 'coco/bbox_mAP_s': 'AP small',
    'coco/bbox_mAP_m': 'AP medium', 'coco/bbox_mAP_l': 'AP large'}
WORDS = {min: 'lowest', max: 'highest', statistics.median: 'median'}

#: What the types of errors mean, in the order of KINDS[1:] and 'missed'.
EXPLANATIONS = {
    'classification': 'lies on a box (IoU 0.5 or more) of another class',
    'localisation': 'right class, but IoU only 0.1 to 0.5',
    'both': 'overlaps boxes (IoU above 0.1), but fits none of the other sorts: wrong class and badly placed',
    'duplicate': 'the box was found already, by a detection of higher score',
    'background': 'touches no box (IoU 0.1 or less)',
    'missed': 'a box that no detection found, and none of wrong class or localisation lies at',
}

#: Predictions below this score are not drawn: DETR has one for every query.
LOWEST_SCORE = 0.05


@dataclass
class Subject:
    """One run of a report, with whatever could be found about it.

    Attributes:
        run: Its logs; ``run.missing`` collects what is not in the page.
        checkpoint: The one that is evaluated.
        num_parameters: In its state dict, buffers included.
        train_data, val_data: As its config finds them now.
        evaluation: Of its detections.
        score: The score threshold for everything that is counted or drawn, in 0..1.
        attention: Pictures of where the detector looks, each with what it found there.
    """

    run: Run
    checkpoint: Path | None = None
    num_parameters: int | None = None
    train_data: Data | None = None
    val_data: Data | None = None
    evaluation: Evaluation | None = None
    score: float | None = None
    attention: list[tuple[str, str]] = field(default_factory=list)


def make_report(
    work_dirs: Sequence[Path],
    out: Path,
    checkpoint: Path | None = None,
    predictions: Sequence[Path] = (),
    max_images: int = 100,
    max_attention: int = 4,
    cfg_options: dict | None = None,
) -> list[str]:
    """Write the report.

    Without ``predictions``, the best checkpoint of each work folder (or its last) runs on the validation data of its
    config, and its detections are kept beside the page: ``report.bbox.json``, ``report.compared.bbox.json``.

    Args:
        work_dirs: One work folder, or two to compare.
        out: The HTML file.
        checkpoint: Of the first work folder, in place of its best.
        predictions: COCO results files of the work folders, in their order.
        max_images: Pictures in the page; of more images, a third each of the worst, the best and of others.
        max_attention: Images of which the page shows where the detector looks, those with the most boxes found.
        cfg_options: Overrides for the configs, for instance where the data lies now.

    Returns:
        list[str]: What is missing from the page, and why.

    Raises:
        UserError: If a work folder is none, or a file that was asked for cannot be used.
    """
    if len(predictions) > len(work_dirs):
        raise UserError(f'--predictions: {len(predictions)} files for {len(work_dirs)} work folders')
    subjects = [Subject(read_run(folder)) for folder in work_dirs]
    for index, subject in enumerate(subjects):
        if subject.run.config is not None:
            subject.run.config.merge_from_dict(cfg_options or {})
            _examine(
                subject, checkpoint if index == 0 else None, predictions[index] if index < len(predictions) else None,
                out.with_suffix('.compared.bbox.json' if index else '.bbox.json'))
            if subject.evaluation and subject.num_parameters is not None and max_attention:
                _look(subject, max_attention)

    names = [subject.run.folder.resolve().name for subject in subjects]
    if len(set(names)) < len(names):
        names = ['first', 'second']
    write_page(
        out, 'report.html', title=subjects[0].run.name, names=names, subjects=subjects, facts=_facts(subjects),
        environment=_rows([subject.run.environment for subject in subjects]), curves=_curves(subjects),
        tiles=_tiles(subjects), classes=_classes(subjects), precision=_precision(subjects),
        errors=_errors(subjects), matrices=[_matrix(subject) for subject in subjects],
        gallery=_gallery(subjects, names, max_images), kinds=KINDS, missed=MISSED, explanations=EXPLANATIONS)
    return [f'{name}: {text}' if len(names) > 1 else text
            for name, subject in zip(names, subjects, strict=True) for text in subject.run.missing]


def _examine(subject: Subject, checkpoint: Path | None, predictions: Path | None, kept: Path) -> None:
    """Find the data and the detections of a run; what cannot be found is noted."""
    run = subject.run
    for split in ('train', 'val'):
        try:
            setattr(subject, f'{split}_data', read_data(run.config, split))
        except UserError as error:
            run.missing.append(f'{split} data: {error}.')
    subject.checkpoint = checkpoint or find_checkpoint(run.folder)
    if subject.checkpoint is None:
        run.missing.append('No checkpoint in the work folder.')
    else:
        try:
            state_dict = find_state_dict(load_checkpoint_file(subject.checkpoint), subject.checkpoint)
            subject.num_parameters = sum(tensor.numel() for tensor in state_dict.values())
        except UserError as error:
            if checkpoint:
                raise
            run.missing.append(f'The checkpoint cannot be used: {error}.')
    if subject.val_data is None or subject.val_data.ann_file is None or not subject.val_data.num_boxes:
        run.missing.append('Nothing is evaluated: that needs validation data with boxes, in COCO format.')
    elif predictions:
        subject.evaluation = evaluate(subject.val_data, predictions)
    elif subject.num_parameters is None:
        run.missing.append('Nothing is evaluated: that needs a checkpoint, or --predictions.')
    else:
        predict(run.config, subject.checkpoint, subject.val_data.ann_file, kept)
        subject.evaluation = evaluate(subject.val_data, kept)
    if subject.evaluation:
        # rounded down, as the page's slider has steps of 0.01
        subject.score = max(0.01, math.floor(100 * best_f1_threshold(subject.evaluation.matches)) / 100)


def _look(subject: Subject, max_images: int) -> None:
    """Draw where the detector looks, in the images with the most boxes found."""
    params, matches = subject.evaluation.coco_eval.params, subject.evaluation.matches
    correct = (matches.det_score >= subject.score) & (matches.det_kind == CORRECT)
    found = np.bincount(matches.det_image[correct], minlength=len(params.imgIds))
    best = [index for index in np.argsort(-found, kind='stable')[:max_images] if found[index]]
    paths = [subject.evaluation.paths[params.imgIds[index]] for index in best]
    try:
        subject.attention = attention_pictures(subject.run.config, subject.checkpoint, paths, subject.score)
    except UserError as error:
        subject.run.missing.append(f'Where it looks: {error}.')


def _facts(subjects: list[Subject]) -> list[tuple[str, list[str]]]:
    """Rows of the first table: a name, and a value for each run."""
    columns = []
    for subject in subjects:
        run, config = subject.run, subject.run.config or {}
        model, optim = config.get('model') or {}, config.get('optim_wrapper') or {}
        optimizer = optim.get('optimizer') or {}
        last = run.train[-1] if run.train else None
        memory = [row['memory'] for row in run.train if 'memory' in row]
        trained = f'iteration {last["iter"]} of {run.planned_iters or "?"}' if last else '–'
        columns.append({
            'Config': run.name,
            'Model': ', '.join(str(part.get('type')) for part in (model, model.get('backbone') or {}) if part) or '–',
            'Trained': trained + (f', epoch {last["epoch"]}' if last and 'epoch' in last else ''),
            'Starts': '; '.join(f'{start.name} (logged {start.first} to {start.last})' for start in run.starts) or '–',
            'Wall time': str(run.duration or '–'),
            'Peak GPU memory': f'{max(memory)} MB' if memory else 'not logged',
            'Optimizer': f'{optimizer.get("type", "–")}, lr {optimizer.get("lr", "–")}, {optim.get("type", "")}',
            'Batch': f'{(config.get("train_dataloader") or {}).get("batch_size", "–")} images a process',
            'Training data': _describe(subject.train_data),
            'Validation data': _describe(subject.val_data),
            'Checkpoint': '–' if subject.checkpoint is None else subject.checkpoint.name + (
                f', {number(subject.num_parameters)} numbers' if subject.num_parameters else ''),
            **_recorded(run.record),
        })
    return _rows(columns)


def _recorded(record: dict) -> dict[str, str]:
    """What is needed to do a run again, from its ``run.json``."""
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


def _describe(data: Data | None) -> str:
    return f'{data.num_images} images, {data.num_boxes} boxes' if data else '–'


def _curves(subjects: list[Subject]) -> list[tuple]:
    """Charts with title and the values to name: AP after each evaluation, then what was logged in training."""
    metrics = dict.fromkeys(
        key for subject in subjects for row in subject.run.val for key in row
        if '/' in key and not key.endswith('_precision'))
    found = [(key, METRICS.get(key, key), max, [subject.run.val for subject in subjects])
             for key in metrics]
    found += [(*curve, [subject.run.train for subject in subjects]) for curve in CURVES]
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


def _tiles(subjects: list[Subject]) -> list[tuple[str, list[str]]]:
    summaries = [subject.evaluation.summary() if subject.evaluation else {} for subject in subjects]
    names = next((list(summary) for summary in summaries if summary), [])
    return [(name, [percent(summary.get(name)) for summary in summaries]) for name in names]


def _class_names(subjects: list[Subject]) -> list[str]:
    evaluated = [subject.evaluation for subject in subjects if subject.evaluation]
    return list(dict.fromkeys(name for evaluation in evaluated for name in evaluation.classes))


def _classes(subjects: list[Subject]) -> list[dict]:
    """Rows of the table of classes: boxes in the data, and AP, AP50, AP75, recall and counted errors for each run."""
    rows = []
    for name in _class_names(subjects):
        cells = []
        for subject in subjects:
            if subject.evaluation is None or name not in subject.evaluation.classes:
                cells.append(None)
                continue
            label = subject.evaluation.classes.index(name)
            cells.append(dict(
                boxes=subject.val_data.boxes[name], ap=subject.evaluation.class_ap()[label].tolist(),
                trained=subject.train_data.boxes[name] if subject.train_data else None,
                errors=count_errors(subject.evaluation.matches, subject.score)[label].tolist()))
        rows.append(dict(name=name, cells=cells))
    return rows


def _precision(subjects: list[Subject]) -> dict:
    """Precision-recall charts: the mean over classes for each run, and one at IoU 0.5 for each class."""
    evaluations = [subject.evaluation for subject in subjects if subject.evaluation]

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
        for name in _class_names(subjects)]
    return dict(means=means, classes=classes)


def _errors(subjects: list[Subject]) -> list[tuple]:
    """Rows of the chart of errors: name, AP points that each costs, and what it is called in the gallery's filter."""
    gains = [oracle_gains(subject.evaluation.matches, subject.evaluation.coco_eval.params.recThrs)
             for subject in subjects if subject.evaluation]
    filters = {name: kind for kind, name in enumerate((*KINDS, 'missed'))}
    return [(name, [gain[name] for gain in gains], [percent(gain[name]) for gain in gains],
             dict(kind=filters[name]) if name in filters else None) for name in (gains[0] if gains else ())]


def _matrix(subject: Subject) -> list[list[tuple[int, float]]] | None:
    """The confusion matrix with each count's share of its row."""
    if subject.evaluation is None:
        return None
    matrix = confusion_matrix(subject.evaluation.matches, subject.score)
    return [[(count, count / max(1, sum(row))) for count in row] for row in matrix.tolist()]


def image_f1(matches: Matches, num_images: int, score: float) -> np.ndarray:
    """F1 of each image (num_images,) at a score threshold; 1 where nothing is to be found and nothing was drawn."""
    drawn = matches.det_score >= score
    found = np.bincount(matches.det_image[drawn & (matches.det_kind == CORRECT)], minlength=num_images)
    total = np.bincount(matches.det_image[drawn], minlength=num_images)
    total += np.bincount(matches.gt_image, minlength=num_images)
    return np.where(total > 0, 2 * found / np.maximum(total, 1), 1.0)


def choose_images(f1: np.ndarray, num_boxes: np.ndarray, max_images: int) -> np.ndarray:
    """Indices of the images to show, in order: all of them, or a third each of the worst, the best and others.

    Args:
        f1: (N,) how well each image went.
        num_boxes: (N,) boxes on each; of images that went equally, those with more are preferred.
        max_images: How many to choose.
    """
    if len(f1) <= max_images:
        return np.arange(len(f1))
    worst = np.lexsort((-num_boxes, f1))[:math.ceil(max_images / 3)]
    best = np.setdiff1d(np.lexsort((-num_boxes, -f1)), worst, assume_unique=True)[:max_images // 3]
    others = np.setdiff1d(np.arange(len(f1)), np.concatenate([worst, best]))
    rest = max_images - len(worst) - len(best)
    return np.sort(np.concatenate([worst, best, others[np.linspace(0, len(others) - 1, rest).astype(int)]]))


def _gallery(subjects: list[Subject], names: list[str], max_images: int) -> dict | None:
    """The pictures with their boxes, as ``page.js`` reads them; boxes in percent of the image."""
    shown = [(subject, name) for subject, name in zip(subjects, names, strict=True) if subject.evaluation]
    if not shown:
        return None
    first = shown[0][0].evaluation
    for subject, _ in shown[1:]:
        if not _same_data(first, subject.evaluation):
            subject.run.missing.append('Other validation data than that of the first run: not among the pictures.')
            shown = shown[:1]
    params, matches = first.coco_eval.params, first.matches
    f1 = image_f1(matches, len(params.imgIds), shown[0][0].score)
    num_boxes = np.bincount(matches.gt_image, minlength=len(params.imgIds))
    lowest = min(LOWEST_SCORE, *(subject.score for subject, _ in shown))
    images = []
    for index in choose_images(f1, num_boxes, max_images):
        info = first.coco_eval.cocoGt.imgs[params.imgIds[index]]
        boxes = [
            dict(label=int(matches.gt_label[box]), box=matches.gt_box[box], kinds=[],
                 seen=[[_cut(subject.evaluation.matches.gt_found[box]), _cut(subject.evaluation.matches.gt_near[box])]
                       for subject, _ in shown])
            for box in np.flatnonzero(matches.gt_image == index)]
        runs = []
        for subject, _ in shown:
            own = subject.evaluation.matches
            chosen = np.flatnonzero((own.det_image == index) & (own.det_score >= lowest))[:100]
            runs.append([dict(label=int(own.det_label[det]), box=own.det_box[det], kind=int(own.det_kind[det]),
                              score=_cut(own.det_score[det])) for det in chosen])
        images.append(gallery_image(info, first.paths[info['id']], boxes, runs))
    unreadable = sum(image['src'] is None for image in images)
    if unreadable:
        shown[0][0].run.missing.append(
            f'{unreadable} of {len(images)} pictures cannot be read: only their boxes are shown.')
    return dict(
        classes=[dict(name=name, colour=class_colour(name, index)) for index, name in enumerate(first.classes)],
        kinds=['', *KINDS[1:], 'missed'], missed=MISSED, runs=[name for _, name in shown],
        panes=['ground truth', *(name if len(shown) > 1 else 'prediction' for _, name in shown)],
        scores=[subject.score for subject, _ in shown], lowest=lowest, images=images, total=len(params.imgIds))


def _same_data(first: Evaluation, second: Evaluation) -> bool:
    return first.paths == second.paths and first.classes == second.classes and all(
        np.array_equal(getattr(first.matches, name), getattr(second.matches, name))
        for name in ('gt_image', 'gt_label', 'gt_box'))


def _cut(score: float) -> float:
    """Fewer digits, rounded down: what is below a threshold stays below it."""
    return math.floor(1e4 * score) / 1e4
