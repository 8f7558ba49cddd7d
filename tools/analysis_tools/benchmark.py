#!/usr/bin/env python
r"""Measure time and memory; with --baseline, compare them with the plain mmdet classes.

Examples:
    python tools/analysis_tools/benchmark.py train --baseline
    python tools/analysis_tools/benchmark.py train --batch 16 --amp --compile --baseline --json train.json
    python tools/analysis_tools/benchmark.py train --amp --find-batch 8 12 16 24 40 80
    python tools/analysis_tools/benchmark.py infer --size 640 640 --batch 4 --baseline
    python tools/analysis_tools/benchmark.py infer --amp --compile reduce-overhead
    python tools/analysis_tools/benchmark.py head --batch 8 --baseline
    python tools/analysis_tools/benchmark.py deformable --baseline
    python tools/analysis_tools/benchmark.py gpu --dry-run
    python tools/analysis_tools/benchmark.py gpu --json after.json --against docs/gpu_60cee77.json
    python tools/analysis_tools/benchmark.py operators --json operators.json
    python tools/analysis_tools/benchmark.py recipes
    python tools/analysis_tools/benchmark.py recipes --configs A.py B.py --size 240 320
    python tools/analysis_tools/benchmark.py data --workers 0 1 2
    python tools/analysis_tools/benchmark.py convert --root scannet_frames_25k --workers 1 2
    python tools/analysis_tools/benchmark.py deploy CONFIG CHECKPOINT --calibrate-with data/train
    python tools/analysis_tools/benchmark.py deploy model.onnx int8.onnx --ann-file data/val.json --image-root data/val
"""

import argparse
import re
import tempfile
import time
from pathlib import Path

from deit_detr.command_line import run_cli
from deit_detr.datasets.coco_file import read_annotations
from deit_detr.errors import UserError
from deit_detr.files import write_json
from deit_detr.machine import GB, describe
from deit_detr.measuring.benchmark import measure
from deit_detr.measuring.costs import count_parameters, forward_flops, largest_batch, matmul_rate, recipe_cost
from deit_detr.measuring.data_speed import loader_rate, pipeline_times
from deit_detr.measuring.deploy import deployed_rows, measure_deployed
from deit_detr.measuring.gpu import (
    FAMILIES,
    RECIPES,
    compare_with,
    gpu_rows,
    measure_groups,
    milliseconds,
    read_results,
    select,
)
from deit_detr.measuring.operators import count_operators
from deit_detr.measuring.variants import Variant, make_step

REPO = Path(__file__).resolve().parents[2]
CONFIGS = REPO / 'projects/deit_detr/configs'
FAST = CONFIGS / RECIPES['detr-fast']
MEMORIES = [8, 12, 16, 24, 40, 80]


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'task', help='what to measure', choices=[
            'train', 'infer', 'head', 'deformable', 'gpu', 'operators', 'recipes', 'data', 'convert', 'deploy'])
    parser.add_argument(
        'files', nargs='*', metavar='FILE',
        help='of deploy: ONNX files, or config and checkpoint, which are exported, or both')
    parser.add_argument('--config', default=str(FAST), help='the recipe (default: the fast twin of the seed recipe)')
    parser.add_argument(
        '--configs', nargs='+', metavar='CONFIG',
        help="recipes, of --find-batch (default: that of --config), operators (one of each family) and recipes (all of "
             "this project's for ScanNet)")
    parser.add_argument(
        '--json', '--out', metavar='FILE', help='write all numbers, those of each step included, to a file')

    steps = parser.add_argument_group('train, infer, head, deformable')
    steps.add_argument('--baseline', action='store_true', help="also measure mmdet's classes: float32, not compiled")
    steps.add_argument('--batch', type=int, default=1, help='images per step (default: 1)')
    steps.add_argument(
        '--size', type=int, nargs=2, default=[800, 1072], metavar=('HEIGHT', 'WIDTH'),
        help='of the images, in pixels (default: 800 1072)')
    steps.add_argument(
        '--padded', action='store_true', help='every second image 64 pixels shorter and 32 narrower (with --batch 2)')
    steps.add_argument('--boxes', type=int, default=10, help='boxes per image (default: 10)')
    steps.add_argument('--amp', action='store_true', help='use bfloat16')
    steps.add_argument(
        '--compile', nargs='?', const=True, default=False, metavar='MODE',
        help='use torch.compile; with MODE reduce-overhead also CUDA graphs')
    steps.add_argument('--checkpointing', action='store_true', help='recompute activations')
    steps.add_argument('--dropout', action='store_true', help='keep dropout on')
    steps.add_argument('--steps', type=int, help='measured steps (default: 5; gpu: 10)')
    steps.add_argument('--warmup', type=int, help='steps before them (default: 1; gpu: 3)')
    steps.add_argument(
        '--find-batch', type=float, nargs='*', metavar='GB',
        help='find the largest batch that fits into this much memory instead (default: 8 12 16 24 40 80)')

    gpu = parser.add_argument_group('gpu', 'a fixed list of rows; --steps and --warmup also apply')
    gpu.add_argument(
        '--rows', nargs='+', metavar='REGEX', default=[''],
        help="only rows with this in their names: 'train lw-detr,'; also of deploy")
    gpu.add_argument('--minutes', type=float, default=4.5, help='begin no row after this time (default: 4.5)')
    gpu.add_argument(
        '--against', metavar='FILE', help='JSON file of an earlier run on the same GPU model: also print the ratios')
    gpu.add_argument('--dry-run', action='store_true', help='all rows with tiny images, one step each; no GPU needed')

    data = parser.add_argument_group('data, convert')
    data.add_argument('--workers', type=int, nargs='+', default=[0, 1, 2], help='numbers of processes (default: 0 1 2)')
    data.add_argument('--images', type=int, default=200, help='images to load (default: 200)')
    data.add_argument('--root', metavar='SCANNET_ROOT', help='folder to convert: scannet_frames_25k')

    deployed = parser.add_argument_group(
        'deploy', 'each runtime that is installed, in turns; --size, --steps and --warmup also apply')
    deployed.add_argument('--threads', type=int, default=1, help='CPU threads (default: 1)')
    deployed.add_argument('--ann-file', help='annotations in COCO format: also measure AP')
    deployed.add_argument('--image-root', help='folder that the file names in --ann-file are relative to')
    deployed.add_argument(
        '--calibrate-with', nargs='+', default=[], metavar='IMAGES',
        help='images or folders of images: also export a calibrated int8 file')
    args = parser.parse_args()
    if args.files and args.task != 'deploy':
        parser.error(f'{args.task} takes no files: see --config and --configs')
    if (args.ann_file is None) != (args.image_root is None):
        parser.error('--ann-file and --image-root need each other')
    try:
        re.compile('|'.join(args.rows))
    except re.error as error:
        parser.error(f'--rows: {error}')
    if args.size and min(args.size) < 1:
        parser.error(f'--size {" ".join(map(str, args.size))}: at least 1 1')
    if args.threads < 0:
        parser.error(f'--threads {args.threads}: 0 or more')
    several = args.task == 'gpu' and not args.dry_run
    args.steps = args.steps or (10 if several else 1 if args.task == 'gpu' else 5)
    args.warmup = (3 if several else 1) if args.warmup is None else args.warmup
    return args


def variants_of(args: argparse.Namespace) -> list[Variant]:
    """Return the variant that the command line describes, and with --baseline the plain one after it."""
    common = dict(
        task=args.task, config=args.config, batch=args.batch, size=tuple(args.size), boxes=args.boxes,
        padded=args.padded, dropout=args.dropout)
    name = ' '.join(['fast', *(key for key in ('amp', 'compile', 'checkpointing') if getattr(args, key))])
    fast = Variant(name=name, amp=args.amp, compile=args.compile, checkpointing=args.checkpointing, **common)
    return [fast, Variant(name='plain', plain=True, **common)] if args.baseline else [fast]


def compare(args: argparse.Namespace) -> dict:
    """Measure steps of train, infer, head or deformable."""
    import torch

    results = measure(variants_of(args), args.steps, args.warmup)
    print('| | s/step, median (min .. max) | images/s | peak GB | speed-up | memory |')
    print('|---|---|---|---|---|---|')
    for row in results:
        spread = f'{row["median"]:.4g} ({min(row["seconds"]):.4g} .. {max(row["seconds"]):.4g})'
        print(f'| {row["name"]} | {spread} | {row["images_per_second"]:.3g} | {row["peak_gb"]:.2f} '
              f'| {row["speedup"]:.2f} | {row["memory_ratio"]:.2f} |')
    if args.task in ('head', 'deformable'):
        return dict(results=results)
    variant = variants_of(args)[0]
    flops = forward_flops(variant) * (3 if args.task == 'train' else 1)
    rate = matmul_rate(torch.bfloat16 if args.amp else torch.float32)
    share = results[0]['images_per_second'] * flops / rate
    params = count_parameters(variant)
    print(f'\n{params:,} parameters, {flops / 1e9:.0f} GFLOP per image, '
          f"{share:.0%} of this device's speed in matrix products ({rate / 1e9:.0f} GFLOP/s)")
    return dict(results=results, parameters=params, flops_per_image=flops, matmul_flops_per_second=rate)


def find_batch(args: argparse.Namespace) -> dict:
    """Find the largest batch for each amount of memory that the device has."""
    import torch

    has = torch.cuda.get_device_properties(0).total_memory / GB if torch.cuda.is_available() else float('inf')
    found = {}
    for config in args.configs or [args.config]:
        args.config = config
        for variant in variants_of(args):
            batch = 0
            for gigabytes in sorted(limit for limit in args.find_batch or MEMORIES if limit <= has):
                name = f'{Path(config).stem + " " if args.configs else ""}{variant.name} {gigabytes:g} GB'
                print(name, flush=True)
                found[name] = batch = largest_batch(variant, gigabytes, batch)
    print('\n| | largest batch |\n|---|---|')
    for name, batch in found.items():
        print(f'| {name} | {batch} |')
    return dict(largest_batch=found)


def gpu(args: argparse.Namespace) -> dict:
    """Measure the fixed list of rows on the GPU."""
    import torch

    if not torch.cuda.is_available() and not args.dry_run:
        raise UserError('gpu needs a GPU, and PyTorch finds none; --dry-run tries the same rows with tiny images')
    groups = select(gpu_rows(CONFIGS, args.dry_run), args.rows)
    if not groups:
        raise UserError(f'--rows {" ".join(args.rows)}: no row has such a name')
    before = read_results(args.against) if args.against else []
    machine, results = describe(), []
    for results in measure_groups(groups, args.steps, args.warmup, float('inf') if args.dry_run else args.minutes):
        compare_with(results, before)
        if args.json:  # what is measured stays if the time on a rented GPU ends
            write_json(args.json, dict(command=vars(args), machine=machine, results=results))
    print('\n| | ms | images/s | GB | GPU busy | launches | waits | pageable copies | speed-up | memory '
          '| speed-up against before | memory |\n' + '|---' * 12 + '|')
    for row in results:
        if 'error' in row:
            print(f'| {row["name"]} | {row["error"]} |' + ' |' * 10)
            continue
        ratios = [f'{row[key]:.2f}' if key in row else '' for key in (
            'speedup', 'memory_ratio', 'times_before', 'memory_before')]
        print(f'| {row["name"]} | {milliseconds(row)[:-3]} | {row["images_per_second"]:.3g} | {row["peak_gb"]:.2f} '
              f'| {row["busy"]:.0%} | {row["launches"]} | {row["waits"]} | {row["pageable_copies"]} '
              f'| {" | ".join(ratios)} |')
    return dict(results=results)


def operators(args: argparse.Namespace) -> dict:
    """Count the operators of a training step at batch 2 and 8."""
    rows = []
    print('| | batch 2: operators / casts / reads | batch 8 |\n|---|---|---|')
    for config in args.configs or [str(CONFIGS / RECIPES[family]) for family in FAMILIES]:
        counts = {batch: count_operators(make_step(Variant(
            Path(config).stem, 'train', config, batch=batch, size=(320, 320), amp=True)))._asdict() for batch in (2, 8)}
        rows.append(dict(name=Path(config).stem, **{f'batch_{batch}': count for batch, count in counts.items()}))
        cells = (' / '.join(f'{number:,}' for number in count.values()) for count in counts.values())
        print(f'| {Path(config).stem} | {" | ".join(cells)} |', flush=True)
    return dict(operators=rows)


def recipes(args: argparse.Namespace) -> dict:
    """Measure inference of one image and a training step with the model of each recipe."""
    rows = []
    print('| | parameters | GFLOP | latency, ms | inference, GB | training, s/step | training, GB |')
    print('|---|---|---|---|---|---|---|')
    for config in args.configs or sorted(map(str, CONFIGS.glob('*_scannet.py'))):
        size = tuple(args.size)
        cost = recipe_cost(config, size, args.steps)
        variant = Variant(
            Path(config).stem, 'train', config, batch=args.batch, size=size, boxes=args.boxes, dropout=True)
        train = measure([variant], args.steps, args.warmup)[0]
        rows.append(dict(name=variant.name, **cost, train_seconds=train['median'], train_gb=train['peak_gb']))
        print(f'| {variant.name} | {cost["parameters"]:,} | {cost["gflops"]:.4g} | {cost["latency_ms"]:.0f} '
              f'| {cost["infer_gb"]:.2f} | {train["median"]:.3g} | {train["peak_gb"]:.2f} |', flush=True)
    return dict(recipes=rows)


def data(args: argparse.Namespace) -> dict:
    """Measure the steps of the training pipeline and the data loader."""
    steps = pipeline_times(args.config, args.images)
    print('| step | ms per image |\n|---|---|')
    for step in steps:
        print(f'| {step["name"]} | {step["milliseconds"]:.1f} |')
    rates = {workers: loader_rate(args.config, workers, args.images) for workers in args.workers}
    print('\n| workers | images/s |\n|---|---|')
    for workers, rate in rates.items():
        print(f'| {workers} | {rate:.1f} |')
    return dict(pipeline=steps, images_per_second=rates)


def convert(args: argparse.Namespace) -> dict:
    """Measure the conversion of ScanNet frames to COCO files."""
    from deit_detr.scannet.converter import convert as scannet2coco

    if not args.root:
        raise UserError('convert needs --root: the folder scannet_frames_25k')
    seconds = {}
    for workers in args.workers:
        if workers:
            with tempfile.TemporaryDirectory() as out_dir:
                start = time.perf_counter()
                scannet2coco(args.root, out_dir, REPO / 'data/splits', workers=workers)
                seconds[workers] = time.perf_counter() - start
    print('\n| workers | seconds |\n|---|---|')
    for workers, value in seconds.items():
        print(f'| {workers} | {value:.1f} |')
    return dict(seconds=seconds)


def deploy(args: argparse.Namespace) -> dict:
    """Measure a deployed model in every runtime and precision that is installed."""
    import cv2
    import numpy as np

    given = list(map(Path, args.files))
    files = [file for file in given if file.suffix == '.onnx']
    trained = tuple(file for file in given if file.suffix != '.onnx')
    if len(trained) not in (0, 2) or not given:
        raise UserError('deploy needs ONNX files, or a config and a checkpoint, or both')
    for file in given:
        if not file.is_file():
            raise UserError(f'{file}: no such file')
    if files and args.calibrate_with:
        raise UserError('--calibrate-with is for a config and a checkpoint, which are exported')
    if args.ann_file:  # before anything that takes long
        images = read_annotations(Path(args.ann_file), args.ann_file)['images']
        missing = sum(not Path(args.image_root, image['file_name']).is_file() for image in images)
        if missing or not images:
            raise UserError(
                f'{args.ann_file}: {missing} of its {len(images)} images are not in {args.image_root} (--image-root)')
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        if not files:
            files = export_all(*trained, folder, args.calibrate_with)
        rows = deployed_rows(files, trained or None)
        chosen = [row for row in rows if re.search('|'.join(args.rows), row.name)]
        if not chosen:
            raise UserError(f'--rows: there are only {", ".join(row.name for row in rows)}')
        image = folder / 'image.png'
        areas = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        cv2.imwrite(str(image), cv2.resize(areas, args.size[::-1]))
        results = measure_deployed(
            chosen, REPO / 'tools/deployment/run_onnx.py', image, args.steps, args.warmup, args.threads,
            args.ann_file and (Path(args.image_root), Path(args.ann_file), folder))
    print('\n| | MB | first result, s | CPU ms | wall ms | peak GB | AP | AP50 | boxes within, px | scores within |\n'
          + '|---' * 10 + '|')
    columns = dict(
        megabytes='.1f', start_seconds='.1f', cpu_ms='.3g', wall_ms='.3g', peak_gb='.2f', ap='.4f', ap50='.4f',
        box_difference='.2g', score_difference='.2g')
    for row in results:
        cells = [format(row[key], style) if key in row else '' for key, style in columns.items()]
        print(f'| {row["name"]} | {" | ".join(cells) if "cpu_ms" in row else row["error"]} |')
    for row in results:
        if 'cpu_ms' in row and 'error' in row:  # only AP is missing
            print(f'{row["name"]}: {row["error"]}')
    if all('error' in row for row in results):
        raise UserError('nothing could be measured, see the table')
    return dict(deployed=results)


def export_all(config: Path, checkpoint: Path, folder: Path, calibrate_with: list[str]) -> list[Path]:
    """Export a model in float32, float16 and int8, and with images also in calibrated int8; return the files."""
    from deit_detr.inference.export import export_onnx

    kinds = dict(float32={}, float16=dict(float16=True), int8=dict(int8=True))
    if calibrate_with:
        kinds['calibrated'] = dict(int8=True, calibrate_with=calibrate_with)
    for name, options in kinds.items():
        print(f'exporting {name}', flush=True)
        export_onnx(config, checkpoint, folder / f'{name}.onnx', **options)
    return [folder / f'{name}.onnx' for name in kinds]


def main() -> None:
    """Measure, print a table and write the JSON file."""
    args = parse_args()
    for config in [args.config, *(args.configs or ())]:
        if not Path(config).is_file():
            raise UserError(f'{config}: no such config file')
    machine = describe()
    print(f'{machine["device"]}; torch {machine["torch"]}; commit {machine["commit"]}\n', flush=True)
    tasks = dict(gpu=gpu, operators=operators, recipes=recipes, data=data, convert=convert,
                 deploy=deploy)
    numbers = tasks.get(args.task, compare if args.find_batch is None else find_batch)(args)
    if args.json:
        write_json(args.json, dict(command=vars(args), machine=machine, **numbers))


if __name__ == '__main__':
    run_cli(main)
