"""The rows that are measured on a GPU before and after each change: training, inference, the head, one operator."""

import json
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from deit_detr.errors import UserError
from deit_detr.measuring.benchmark import measure_here
from deit_detr.measuring.sampling import Sampling
from deit_detr.measuring.variants import Variant

RECIPES = {
    'detr-fast': 'detr-fast_deit-tiny_8xb1-150e_scannet.py',
    'lw-detr': 'lw-detr_deit-tiny_8xb4-12e_scannet.py',
    'lw-detr_deit-base': 'lw-detr_deit-base_8xb4-12e_scannet.py',
    'ec-detr': 'ec-detr_deit-tiny_8xb4-12e_scannet.py',
    'dino': 'dino_deit-tiny_8xb2-12e_scannet.py',
    'deformable-detr': 'deformable-detr_deit-tiny_8xb2-12e_scannet.py',
    'conditional-detr': 'conditional-detr_deit-tiny_8xb2-12e_scannet.py',
    'dab-detr': 'dab-detr_deit-tiny_8xb2-12e_scannet.py',
}
#: The models whose operators are counted.
FAMILIES = [name for name in RECIPES if name != 'lw-detr_deit-base']

FULL, SQUARE, TINY = (800, 1072), (640, 640), (160, 224)
FLOAT32, BFLOAT16 = False, True
FAST, PAIR, COMPILED = ('',), ('', 'plain '), ('compiled ', 'graphed ', 'eager ')
MODES = {'compiled ': True, 'graphed ': 'reduce-overhead'}
#: Task, recipe, precision, batch, size, and which take turns: '' is the recipe, 'plain ' its twin of mmdet's classes.
MODELS = [
    ('train', 'detr-fast', FLOAT32, 1, FULL, PAIR),
    ('train', 'detr-fast', FLOAT32, 4, FULL, PAIR),
    ('train', 'detr-fast', BFLOAT16, 1, FULL, PAIR),
    ('train', 'detr-fast', BFLOAT16, 4, FULL, PAIR),
    ('train', 'detr-fast', BFLOAT16, 16, FULL, PAIR),
    ('train', 'detr-fast', BFLOAT16, 32, FULL, FAST),
    ('train', 'lw-detr', BFLOAT16, 4, FULL, FAST),
    ('train', 'lw-detr', BFLOAT16, 16, FULL, FAST),
    ('train', 'lw-detr', BFLOAT16, 32, FULL, FAST),
    ('train', 'lw-detr_deit-base', BFLOAT16, 8, FULL, FAST),
    ('train', 'ec-detr', BFLOAT16, 16, FULL, FAST),
    ('train', 'dino', BFLOAT16, 2, FULL, PAIR),
    ('train', 'dino', BFLOAT16, 8, FULL, PAIR),
    ('train', 'deformable-detr', BFLOAT16, 8, FULL, PAIR),
    ('train', 'conditional-detr', BFLOAT16, 4, FULL, PAIR),
    ('train', 'dab-detr', BFLOAT16, 4, FULL, PAIR),
    ('infer', 'detr-fast', FLOAT32, 1, FULL, PAIR),
    ('infer', 'detr-fast', BFLOAT16, 1, FULL, PAIR),
    ('infer', 'detr-fast', BFLOAT16, 16, FULL, FAST),
    ('infer', 'detr-fast', FLOAT32, 1, SQUARE, PAIR),
    ('infer', 'detr-fast', BFLOAT16, 1, SQUARE, PAIR),
    ('infer', 'detr-fast', BFLOAT16, 32, SQUARE, FAST),
    ('infer', 'lw-detr', BFLOAT16, 1, FULL, FAST),
    ('infer', 'lw-detr', BFLOAT16, 16, FULL, FAST),
    ('infer', 'lw-detr', BFLOAT16, 1, SQUARE, FAST),
    ('infer', 'ec-detr', BFLOAT16, 1, FULL, FAST),
    ('infer', 'dino', BFLOAT16, 1, FULL, PAIR),
    ('infer', 'deformable-detr', BFLOAT16, 1, FULL, PAIR),
    ('head', 'detr-fast', FLOAT32, 16, FULL, PAIR),
]
#: Compiling takes a minute or more: last, if there is time left. 'graphed ' also runs CUDA graphs.
COMPILED_MODELS = [
    ('infer', 'lw-detr', BFLOAT16, 1, FULL, COMPILED),
    ('infer', 'detr-fast', BFLOAT16, 1, FULL, COMPILED),
    ('train', 'lw-detr', BFLOAT16, 16, FULL, COMPILED),
    ('train', 'detr-fast', BFLOAT16, 16, FULL, COMPILED),
    ('train', 'dino', BFLOAT16, 8, FULL, COMPILED),
]
#: Batch, size of the images and what is sampled: DINO's encoder, LW-DETR's decoder in training, and 300 queries of it.
SAMPLINGS = [
    *((batch, FULL, Sampling()) for batch in (8, 2, 1)),
    (32, FULL, Sampling(queries=1300, heads=6, strides=(16,))),
    (16, FULL, Sampling(queries=300, heads=6, strides=(16,))),
]
KERNELS = [('chosen', False), ('chosen', True), ('pytorch', False), ('compiled', True), ('compiled', False)]


def gpu_rows(configs: Path, dry_run: bool = False) -> list[list[Variant]]:
    """Return what to measure, in groups that take turns; the last of a group is what the others are compared with.

    Args:
        configs: Folder of the recipes.
        dry_run: Whether to shrink everything to at most 2 images of 160x224 pixels and 50 queries, not compiled.
    """
    models, samplings, compiled = MODELS, SAMPLINGS, COMPILED_MODELS
    if dry_run:
        models = [(task, recipe, amp, min(batch, 2), TINY, which) for task, recipe, amp, batch, _, which in MODELS]
        samplings = [(min(batch, 2), TINY, replace(sampling, queries=sampling.queries and 50))
                     for batch, _, sampling in SAMPLINGS]
        compiled = []
    groups = [_of_models(configs, *row) for row in models]
    groups += [[_of_kernel(batch, size, replace(sampling, kernel=kernel, graph=graph)) for kernel, graph in KERNELS]
               for batch, size, sampling in samplings]
    groups += [_of_models(configs, *row) for row in compiled]
    unique = {group[0].name: group for group in reversed(groups)}  # shrunk rows can be equal
    return list(unique.values())[::-1]


def _of_models(
    configs: Path, task: str, recipe: str, amp: bool, batch: int, size: tuple[int, int], kinds: tuple[str, ...],
) -> list[Variant]:
    return [
        Variant(f'{task} {kind}{recipe}, {_format(amp, batch, size)}', task, str(configs / RECIPES[recipe]),
                plain=kind == 'plain ', batch=batch, size=size, amp=amp, compile=MODES.get(kind, False), dropout=True)
        for kind in kinds]


def _of_kernel(batch: int, size: tuple[int, int], sampling: Sampling) -> Variant:
    name = f'deformable attention, {sampling.kernel}{" in a graph" if sampling.graph else ""}, ' \
           f'{_format(True, batch, size)}, {sampling.queries or "all"} queries, ' \
           f'{len(sampling.strides)} levels, {sampling.heads} heads'
    return Variant(name, 'deformable', '', batch=batch, size=size, amp=True, sampling=sampling)


def _format(amp: bool, batch: int, size: tuple[int, int]) -> str:
    return f'{"bfloat16" if amp else "float32"}, {batch} x {size[0]}x{size[1]}'


def select(groups: list[list[Variant]], patterns: list[str]) -> list[list[Variant]]:
    """Return the rows in whose names one of some regular expressions is found, in their groups."""
    kept = [[row for row in group if any(re.search(pattern, row.name) for pattern in patterns)] for group in groups]
    return [group for group in kept if group]


def measure_groups(groups: list[list[Variant]], steps: int, warmup: int, minutes: float) -> Iterator[list[dict]]:
    """Measure one group after the other, and print progress.

    Args:
        groups: As of :func:`gpu_rows`.
        steps: Measured steps of each row.
        warmup: Steps before them.
        minutes: No group begins after this time; its rows have the error 'no time left'.

    Yields:
        list[dict]: All results so far, as of :func:`~deit_detr.measuring.benchmark.measure_here`.
    """
    start, results, total = time.monotonic(), [], sum(map(len, groups))
    for group in groups:
        if time.monotonic() - start > 60 * minutes:
            results += [dict(name=row.name, error='no time left') for row in group]
        else:
            results += measure_here(group, steps, warmup)
        elapsed = time.monotonic() - start
        left = elapsed / len(results) * (total - len(results))
        for result in results[-len(group):]:
            print(f'[{len(results)}/{total}, {elapsed:.0f} s, about {left:.0f} s left] {result["name"]}: '
                  f'{result.get("error") or milliseconds(result)}', flush=True)
        yield results


def milliseconds(result: dict) -> str:
    """Return the median of a result in ms, with three digits."""
    return f'{1000 * result["median"]:.3g} ms'


def read_results(path: str | Path) -> list[dict]:
    """Return the results in a JSON file of an earlier run.

    Raises:
        UserError: If the file cannot be read or holds no results.
    """
    try:
        return json.loads(Path(path).read_text())['results']
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f'{path}: not the --json file of an earlier run ({error})') from None


def compare_with(results: list[dict], before: list[dict]) -> None:
    """Add ``times_before`` and ``memory_before`` to the results that have a namesake in an earlier run.

    They are the earlier median divided by the new one, and the new peak divided by the earlier one.
    """
    earlier = {result['name']: result for result in before if 'error' not in result}
    for result in results:
        old = earlier.get(result['name'])
        if old and 'error' not in result:
            result['times_before'] = old['median'] / result['median']
            if old.get('peak_gb'):
                result['memory_before'] = result['peak_gb'] / old['peak_gb']
