#!/usr/bin/env python
r"""Draw the attention of a detector over an image, as in the figures of DETR.

Examples:
    # the decoder's attention for each confident detection
    python tools/analysis_tools/attention.py CONFIG.py CHECKPOINT.pth room.jpg --out attention.jpg
    # what two points of the image attend to, in the encoder, or in the sixth layer of the backbone
    python tools/analysis_tools/attention.py CONFIG.py CHECKPOINT.pth room.jpg --point 120 80 --point 300 200
    python tools/analysis_tools/attention.py CONFIG.py CHECKPOINT.pth room.jpg --point 120 80 --part backbone --layer 5

Deformable attention samples a few points only. They are drawn as dots, brighter for a higher weight.
"""

import argparse
from pathlib import Path

import deit_detr
from deit_detr.command_line import run_cli
from deit_detr.errors import UserError
from deit_detr.inference.attention import cross_attention, draw_attention, self_attention
from deit_detr.inference.video import write_picture


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='its checkpoint')
    parser.add_argument('image', help='image file')
    parser.add_argument(
        '--out', type=Path, default=Path('attention.jpg'), help='picture to write (default: attention.jpg)')
    parser.add_argument('--score-thr', type=float, default=0.3, help='minimum score of a detection (default: 0.3)')
    parser.add_argument('--max', type=int, default=8, help='maximum number of detections (default: 8)')
    parser.add_argument(
        '--point', type=float, nargs=2, action='append', metavar=('X', 'Y'),
        help='draw the self-attention of this point, in pixels, instead; can be given several times')
    parser.add_argument(
        '--part', choices=['encoder', 'backbone'], default='encoder', help='part of the model (default: encoder)')
    parser.add_argument('--layer', type=int, default=-1, help='layer, from 0; -1 is the last (default: -1)')
    parser.add_argument('--device', help='e.g. cpu or cuda:1 (default: the GPU if there is one)')
    return parser.parse_args()


def main() -> None:
    """Compute the attention and draw it."""
    args = parse_args()
    detector = deit_detr.load(args.config, args.checkpoint, args.device)
    if args.point:
        attentions = self_attention(detector, args.image, args.point, args.part, args.layer)
    else:
        attentions = cross_attention(detector, args.image, args.score_thr, args.layer, args.max)
    if not attentions:
        raise UserError(f'{args.image}: no detection with a score of {args.score_thr} or more. Lower --score-thr')
    if args.out.resolve() == Path(args.image).resolve():
        raise UserError(f'{args.out}: is the image itself. Choose another --out')
    write_picture(args.out, draw_attention(detector, args.image, attentions))
    print(f'{args.out}: {", ".join(attention.title for attention in attentions)}')


if __name__ == '__main__':
    run_cli(main)
