#!/usr/bin/env python
r"""Detect objects in pictures, videos, ScanNet scenes and what a camera sees, or in the browser.

Examples:
    python tools/demo.py CONFIG.py CHECKPOINT.pth room.jpg
    python tools/demo.py CONFIG.py CHECKPOINT.pth folder_of_pictures --out-dir found
    python tools/demo.py CONFIG.py CHECKPOINT.pth video.mp4 --score-thr 0.5
    python tools/demo.py CONFIG.py CHECKPOINT.pth data/scannet-frames/val/scene0011_00
    python tools/demo.py CONFIG.py CHECKPOINT.pth video.mp4 --track --results jsonl
    python tools/demo.py CONFIG.py CHECKPOINT.pth 0 --show
    python tools/demo.py CONFIG.py CHECKPOINT.pth rtsp://192.168.1.20/stream --results -
    python tools/demo.py CONFIG.py CHECKPOINT.pth hall.jpg --tile 800
    python tools/demo.py CONFIG.py CHECKPOINT.pth --web
    python tools/demo.py ecdet-s-coco room.jpg

A scene is a folder with images in color/; its frames become a video. The colours of the classes are always the same.
With --track, and always from a camera, each object has a number and a colour that stay. Ctrl-C ends a camera.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from pathlib import Path

from deit_detr.command_line import run_cli  # first: it says in a sentence which package cannot be imported
from deit_detr.errors import UserError

# isort: split
import numpy as np
from mmdet.apis.det_inferencer import IMG_EXTENSIONS
from tqdm import tqdm

import deit_detr
from deit_detr.images import picture_names
from deit_detr.inference.camera import CameraFrames, camera_source
from deit_detr.inference.demo_tracks import RESULTS, track_camera, track_video
from deit_detr.inference.tiles import detect_in_tiles
from deit_detr.inference.video import VideoFrames, scene_frames, write_picture, write_video
from deit_detr.migration.published import PUBLISHED


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'config', help=f'config file; or, without a checkpoint, {" or ".join(PUBLISHED)}, which is downloaded once')
    parser.add_argument('checkpoint', nargs='?', help='its checkpoint')
    parser.add_argument(
        'input', nargs='?', help='picture, folder of pictures, video, scene folder, number of a webcam or address of a '
        'stream (rtsp://, http:// ...)')
    parser.add_argument('--out-dir', type=Path, default=Path('demo'), help='folder for the results (default: demo)')
    parser.add_argument('--score-thr', type=float, default=0.3, help='minimum score, 0 to 1 (default: 0.3)')
    parser.add_argument(
        '--fps', type=float, help="frames per second (default: the input's; 2 for a scene, 10 for a camera)")
    parser.add_argument('--track', action='store_true', help='number the objects of a video or scene')
    parser.add_argument(
        '--results', choices=RESULTS, help='with tracking, also write the objects of each frame: as JSON lines, in '
        "MOTChallenge's format, or (-) as JSON lines to standard output")
    parser.add_argument('--show', action='store_true', help='with tracking, also show the video in a window; q ends it')
    parser.add_argument('--frames', type=int, metavar='N', help='end a video or camera after N frames')
    parser.add_argument(
        '--tile', type=int, metavar='PIXELS', help='for small things in large pictures: also detect in tiles of this '
        'side')
    parser.add_argument('--device', help='e.g. cpu or cuda:1 (default: the GPU if there is one)')
    parser.add_argument('--web', action='store_true', help='serve a page for the browser instead of reading an input')
    parser.add_argument('--port', type=int, default=7860, help='port of the page (default: 7860)')
    args = parser.parse_args()
    if (args.config in PUBLISHED or args.config.endswith('.pth')) and args.input is None:  # without a config
        args.input, args.checkpoint = args.checkpoint, None
    if args.web == (args.input is not None):
        parser.error('give either an input or --web')
    if args.fps is not None and args.fps <= 0:
        parser.error(f'--fps {args.fps:g}: has to be more than 0')
    if args.frames is not None and args.frames <= 0:
        parser.error(f'--frames {args.frames}: has to be more than 0')
    args.camera = None if args.input is None else camera_source(args.input)
    args.input = None if args.input is None else Path(args.input)
    if (args.results or args.show) and not args.track and args.camera is None:
        parser.error('--results and --show need --track')
    return args


def find_pictures(folder: Path, out_dir: Path) -> list[Path]:
    """Return the pictures in a folder and in the folders below it, except in ``out_dir``; of a scene, its frames."""
    if frames := scene_frames(folder):
        return frames
    inside = sorted(folder.iterdir())
    pictures = [path for path in inside if path.suffix.lower() in IMG_EXTENSIONS and not path.is_dir()]
    for part in inside:
        # a link may lead back up
        if part.is_dir() and part.resolve() != out_dir.resolve() and part.resolve() not in [
                folder.resolve(), *folder.resolve().parents]:
            pictures += find_pictures(part, out_dir)
    return pictures


def draw_pictures(
    detector, detect: Callable, paths: list[Path], folder: Path, out_dir: Path, score_thr: float,
) -> None:
    """Draw the detections of each picture in ``folder`` into a file of the same name in ``out_dir``."""
    for path, name in picture_names(paths, folder).items():
        out = place_for(path, out_dir / name)
        start = time.perf_counter()
        sample = detect(path, score_thr)
        milliseconds = 1000 * (time.perf_counter() - start)
        write_picture(out, detector.draw(path, sample))
        found = sample.pred_instances
        names = ', '.join(
            f'{name} {score:.2f}' for name, score in zip(found.label_names, found.scores, strict=True))
        print(f'{out}: {names or "nothing"} ({milliseconds:.0f} ms)', flush=True)


def draw_video(
    detector, detect: Callable, frames: Iterable[np.ndarray | Path], out: Path, fps: float, args: argparse.Namespace,
) -> None:
    """Write a video of the frames with their detections, or with their tracks."""
    number = len(frames) or None
    if args.frames:
        number = min(args.frames, number or args.frames)
    progress = tqdm(islice(frames, args.frames), total=number, unit='frame', desc=out.name)
    if args.track:
        return report(track_video(detector, detect, progress, out, fps, args.score_thr, args.results, args.show), args)
    drawn = (np.asarray(detector.draw(frame, detect(frame, args.score_thr)))[..., ::-1] for frame in progress)
    number = write_video(out, drawn, fps)
    print(f'{out}: {number} frames, {fps:g} per second')


def report(lines: list[str], args: argparse.Namespace) -> None:
    """Print what was written, apart from the results where those go to standard output."""
    print(*lines, sep='\n', file=sys.stderr if args.results == '-' else sys.stdout)


def place_for(path: Path, out: Path) -> Path:
    """Return ``out``; raise UserError if it is the input."""
    if out.resolve() == path.resolve():
        raise UserError(f'{path}: would be overwritten. Choose another --out-dir')
    return out


def main() -> None:
    """Detect and draw according to the kind of input."""
    args = parse_args()
    if args.input is not None and args.camera is None and not args.input.exists():
        raise UserError(f'{args.input}: no such file or folder')
    detector = deit_detr.load(args.config, args.checkpoint, args.device)
    detect = detector
    if args.tile is not None:
        detect = partial(detect_in_tiles, detector, args.tile)
    if args.web:
        from deit_detr.inference.web import launch

        title = ', '.join(filter(None, [Path(args.config).stem, args.checkpoint and Path(args.checkpoint).name]))
        app = launch(detector, title, args.port)
        print(f'{app.local_url} (Ctrl-C ends it)', flush=True)
        app.block_thread()
    elif args.camera is not None:
        camera = CameraFrames(args.camera)
        out = args.out_dir / f'{camera.name}.mp4'
        fps = args.fps or 10.0
        report(track_camera(
            detector, detect, camera, out, fps, args.score_thr, args.results, args.show, args.frames), args)
        if camera.problem:
            raise UserError(camera.problem)
    elif args.input.is_dir() and scene_frames(args.input):
        out = args.out_dir / f'{args.input.resolve().name}.mp4'
        draw_video(detector, detect, scene_frames(args.input), out, args.fps or 2.0, args)
    elif args.input.is_dir():
        paths = find_pictures(args.input, args.out_dir)
        if not paths:
            raise UserError(f'{args.input}: has no pictures, and none in color/')
        draw_pictures(detector, detect, paths, args.input, args.out_dir, args.score_thr)
    elif args.input.suffix.lower() in IMG_EXTENSIONS:
        draw_pictures(detector, detect, [args.input], args.input.parent, args.out_dir, args.score_thr)
    else:
        out = place_for(args.input, args.out_dir / f'{args.input.stem}.mp4')
        frames = VideoFrames(args.input)
        draw_video(detector, detect, frames, out, args.fps or frames.fps, args)


if __name__ == '__main__':
    run_cli(main)
