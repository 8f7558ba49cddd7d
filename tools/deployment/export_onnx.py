#!/usr/bin/env python
"""Write a trained detector as an ONNX file that tools/deployment/run_onnx.py runs without PyTorch.

Batch, height and width are dynamic. The file is written only if its results agree with PyTorch.

Examples:
    python tools/deployment/export_onnx.py CONFIG.py CHECKPOINT.pth --out model.onnx
    python tools/deployment/export_onnx.py CONFIG.py CHECKPOINT.pth --out model-int8.onnx --int8
    python tools/deployment/export_onnx.py CONFIG.py CHECKPOINT.pth --out model-int8.onnx --int8 \
        --calibrate-with data/train --check-with onnxruntime openvino
"""

import argparse
import time

from deit_detr.command_line import run_cli
from deit_detr.inference.export import export_onnx
from deit_detr.inference.quantize import CALIBRATION_IMAGES
from deit_detr.inference.runtimes import NAMES


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='its checkpoint')
    parser.add_argument('--out', default='model.onnx', help='file to write (default: model.onnx)')
    precision = parser.add_mutually_exclusive_group()
    precision.add_argument(
        '--int8', action='store_true', help='store linear layers in 8 bits: a smaller file, a lower AP')
    precision.add_argument(
        '--float16', action='store_true',
        help='compute in float16 but for boxes and scores: half the file, for GPUs and browsers with WebGPU')
    parser.add_argument(
        '--attention', choices=('fused', 'plain'), default='fused',
        help='one operator of ONNX Runtime, OpenVINO and onnxruntime-web (default), or operators of the standard, for '
             'other runtimes: more memory')
    parser.add_argument(
        '--calibrate-with', nargs='+', default=[], metavar='IMAGES',
        help='for --int8, images or folders of images: fix the ranges of activations with at most '
             f'{CALIBRATION_IMAGES} of them, which makes it faster, above all in OpenVINO')
    parser.add_argument(
        '--check-with', nargs='+', choices=NAMES, default=['onnxruntime'],
        help='runtimes to compare with PyTorch (default: onnxruntime)')
    return parser.parse_args()


def main() -> None:
    """Export the detector and print the differences from PyTorch."""
    args = parse_args()
    start = time.perf_counter()
    exported = export_onnx(
        args.config, args.checkpoint, args.out, args.int8, args.attention, args.calibrate_with, args.check_with,
        lambda step: print(f'{time.perf_counter() - start:5.0f} s  {step}', flush=True), args.float16)
    precision = 'int8' if args.int8 else 'float16' if args.float16 else 'float32'
    print(f'{args.out}: {exported.megabytes:.1f} MB, {precision}; batch, height and width are dynamic')
    runtimes = ' and '.join(NAMES[name] for name in args.check_with)
    print(f'{"" if precision == "float32" else "in float32, "}{runtimes} and PyTorch differ by '
          f'{exported.box_difference:.2g} pixels and scores by {exported.score_difference:.2g}')


if __name__ == '__main__':
    run_cli(main)
