"""Read a work folder of mmengine: config, logged numbers, environment, checkpoints.

``TrainingRun.missing`` lists what cannot be found, so that crashed and unfinished runs can also be read.
"""

import json
import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from mmengine.config import Config

from deit_detr.config_values import ConfigValues, parse_config
from deit_detr.datasets.coco_file import is_number
from deit_detr.errors import UserError

#: Lines of the log's header that describe the machine, beside those that begin with GPU; paths and compiler flags are
#: left out.
ENVIRONMENT = (
    'sys.platform', 'Python', 'PyTorch', 'TorchVision', 'OpenCV', 'MMEngine', 'CUDA available', 'Distributed launcher',
    'seed')
_START = re.compile(r'\d{8}_\d{6}')
_TIME = re.compile(r'^(\d{4}/\d\d/\d\d \d\d:\d\d:\d\d) - ', re.M)
_EPOCH_LENGTH = re.compile(r'Epoch\(train\) +\[ *\d+\]\[ *\d+/(\d{1,9})\]')


@dataclass
class Start:
    """One start of a training, fresh or resumed: a folder that mmengine names after the time.

    Attributes:
        name: Name of the folder: the time of the start.
        first, last: First and last logged iteration, counted from 1.
        duration: Time from the first to the last line of the log; ``None`` without a log.
    """

    name: str
    first: int
    last: int
    duration: timedelta | None


@dataclass
class TrainingRun:
    """A training run, with its starts joined.

    Attributes:
        folder: The work folder.
        name: Name of the config, or of the folder.
        config: Config of the last start; ``None`` if it cannot be read.
        starts: Starts in order of time.
        train: Scalars of each logged training iteration, ``iter`` among them. Of iterations that a later start
            repeated, only the later ones are kept.
        val: Metrics of each evaluation, with the last logged ``iter`` before it.
        epoch_length: Iterations per epoch, if the log tells.
        environment: What the last start logged about its machine.
        record: ``run.json`` of the last start, written by ``RunRecordHook``; empty without one.
        missing: Sentences about what could not be found or read.
    """

    folder: Path
    name: str
    config: Config | None = None
    starts: list[Start] = field(default_factory=list)
    train: list[dict] = field(default_factory=list)
    val: list[dict] = field(default_factory=list)
    epoch_length: int | None = None
    environment: dict[str, str] = field(default_factory=dict)
    record: dict = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    @property
    def duration(self) -> timedelta | None:
        """Wall time of all starts together, evaluations included."""
        known = [start.duration for start in self.starts if start.duration is not None]
        return sum(known, timedelta()) if known else None

    @property
    def planned_iters(self) -> int | None:
        """Number of iterations that the config asks for, if known."""
        loop = (self.config or {}).get('train_cfg')
        max_iters, max_epochs = (
            loop.get(name) if isinstance(loop, dict) and isinstance(loop.get(name), int) else None
            for name in ('max_iters', 'max_epochs'))
        return max_iters or (max_epochs * self.epoch_length if max_epochs and self.epoch_length else None)


def read_run(work_dir: str | Path) -> TrainingRun:
    """Read the config and the logs of a work folder.

    Args:
        work_dir: The ``--work-dir`` of train.py. Where several starts overlap, resumed or not, the last one counts.

    Returns:
        TrainingRun: Everything that was found.

    Raises:
        UserError: If the folder does not exist or holds no mmengine output.
    """
    folder = Path(work_dir)
    if not folder.is_dir():
        raise UserError(f'{folder}: no such work folder')
    configs = sorted(folder.glob('*.py'), key=lambda path: path.stat().st_mtime)
    start_dirs = sorted(path for path in folder.iterdir() if path.is_dir() and _START.fullmatch(path.name))
    if not configs and not start_dirs and not list(folder.glob('*.pth')):
        raise UserError(
            f'{folder}: no config, no log and no checkpoint in it; name the folder that train.py wrote to, '
            'e.g. work_dirs/CONFIG_NAME')
    run = TrainingRun(folder, configs[-1].stem if configs else folder.resolve().name)
    for start_dir in start_dirs:
        _read_start(start_dir, run)
    if not run.train:
        run.missing.append('No training step was logged (no vis_data/scalars.json): no curves.')
    elif not run.val:
        run.missing.append('No evaluation was logged during training: no AP curve.')
    trained = [folder / start.name / 'vis_data/config.py' for start in reversed(run.starts)]
    run.config = _read_config([path for path in [*trained, *reversed(configs)] if path.is_file()], run)
    if run.planned_iters and run.train:
        hook = run.config.get('default_hooks')
        hook = hook.get('logger') if isinstance(hook, dict) else None
        interval = hook.get('interval') if isinstance(hook, dict) else None
        interval = interval if isinstance(interval, int) else 10
        if run.train[-1]['iter'] + interval <= run.planned_iters:
            run.missing.append(f'Not finished: the last logged iteration is {run.train[-1]["iter"]} of '
                               f'{run.planned_iters}.')
    return run


def _read_start(folder: Path, run: TrainingRun) -> None:
    """Add the logs of one start; folders of tests, which have no training scalars, are skipped."""
    log_path = folder / f'{folder.name}.log'
    log = log_path.read_text(errors='replace') if log_path.is_file() else ''
    train, val, damaged = [], [], 0
    scalars = folder / 'vis_data/scalars.json'
    for line in scalars.read_text(errors='replace').splitlines() if scalars.is_file() else ():
        try:
            row = {key: value for key, value in json.loads(line).items() if is_number(value) or value != value}
            if 'iter' in row and not isinstance(row['iter'], int):
                raise ValueError(row['iter'])
        except (ValueError, AttributeError, RecursionError):
            damaged += 1
            continue
        if 'lr' in row and 'iter' in row:
            train.append(row)
        elif any('/' in key for key in row):
            val.append(row | dict(iter=train[-1]['iter'] if train else 0))  # "step" is an epoch or an iteration
    if damaged:
        run.missing.append(f'{folder.name}: {damaged} damaged lines in vis_data/scalars.json left out.')
    if not train:
        if not (folder / f'{folder.name}.json').is_file() and 'Epoch(test)' not in log:
            run.missing.append(f'{folder.name}: ended before its first training step was logged.')
        return
    run.train = [row for row in run.train if row['iter'] < train[0]['iter']] + train
    run.val = [row for row in run.val if row['iter'] < train[0]['iter']] + val
    run.record = _read_record(folder / 'run.json', run)
    try:
        times = [datetime.strptime(time, '%Y/%m/%d %H:%M:%S') for time in _TIME.findall(log)]
    except ValueError:  # not a date
        times = []
    run.starts.append(Start(
        folder.name, train[0]['iter'], train[-1]['iter'], times[-1] - times[0] if times else None))
    if not log:
        run.missing.append(f'{folder.name}: no log file: its duration and its environment are not known.')
        return
    lengths = _EPOCH_LENGTH.findall(log)
    run.epoch_length = int(lengths[-1]) if lengths else None
    header = log.split('Config:\n')[0]
    run.environment = {key: value for key, value in re.findall(r'^    ([^:\n]+): (.+)$', header, re.M)
                       if key in ENVIRONMENT or key.startswith('GPU ')}


def _read_record(path: Path, run: TrainingRun) -> dict:
    try:
        return dict(json.loads(path.read_text())) if path.is_file() else {}
    except (ValueError, TypeError):
        run.missing.append(f'{path.relative_to(run.folder)}: cannot be read: commit, seed and data are not known.')
        return {}


def _read_config(paths: list[Path], run: TrainingRun) -> Config | None:
    """Return the first config that can be read without running it; mmengine writes only values there."""
    for path in paths:
        try:
            return Config(ConfigValues().read(parse_config(path), {}))
        except (UserError, KeyError, TypeError) as error:
            run.missing.append(f'{path.relative_to(run.folder)}: cannot be read ({error}).')
    run.missing.append('No readable config: model and data are not known, and nothing is evaluated.')
    return None


def find_checkpoint(folder: Path) -> Path | None:
    """Return the best checkpoint of a work folder, or else the last one; ``None`` if there is none."""
    def number(path: Path) -> int:
        return int((re.findall(r'\d+', path.stem) or ['0'])[-1])

    for pattern in ('best_*.pth', 'epoch_*.pth', 'iter_*.pth'):
        found = sorted(folder.glob(pattern), key=number)
        if found:
            return found[-1]
    return None
