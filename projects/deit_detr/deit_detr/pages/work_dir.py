"""Reading what mmengine left in a work folder: config, logged numbers, environment, checkpoints.

Whatever is not there is listed under ``Run.missing``: a crashed or unfinished run is still worth a look.
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

#: The lines of the log's header that tell one machine from another, and those that begin with GPU; paths and compiler
#: flags are left out.
ENVIRONMENT = (
    'sys.platform', 'Python', 'PyTorch', 'TorchVision', 'OpenCV', 'MMEngine', 'CUDA available', 'Distributed launcher',
    'seed')
_START = re.compile(r'\d{8}_\d{6}')
_TIME = re.compile(r'^(\d{4}/\d\d/\d\d \d\d:\d\d:\d\d) - ', re.M)
_EPOCH_LENGTH = re.compile(r'Epoch\(train\) +\[ *\d+\]\[ *\d+/(\d{1,9})\]')


@dataclass
class Start:
    """One start of a training, fresh or resumed: a folder that mmengine named after its time.

    Attributes:
        name: The time, as in the folder's name.
        first, last: First and last logged iteration, counting from 1.
        duration: From the first to the last line of its log; ``None`` without a log.
    """

    name: str
    first: int
    last: int
    duration: timedelta | None


@dataclass
class Run:
    """A training run, its starts joined.

    Attributes:
        folder: The work folder.
        name: The config's name, or the folder's.
        config: As the last start had it; ``None`` if there is none.
        starts: In order of time.
        train: Scalars of each logged training iteration, ``iter`` among them. Those of iterations that a later start
            did again are gone.
        val: Metrics of each evaluation, with the last logged ``iter`` before it.
        epoch_length: Iterations an epoch, if the log tells.
        environment: What the last start logged about its machine, in the log's words.
        record: ``run.json`` of the last start, as ``RunRecordHook`` writes it; empty if there is none.
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
        """How many iterations the config asks for, as far as that is known."""
        loop = (self.config or {}).get('train_cfg')
        max_iters, max_epochs = (
            loop.get(name) if isinstance(loop, dict) and isinstance(loop.get(name), int) else None
            for name in ('max_iters', 'max_epochs'))
        return max_iters or (max_epochs * self.epoch_length if max_epochs and self.epoch_length else None)


def read_run(work_dir: str | Path) -> Run:
    """Read a work folder.

    Args:
        work_dir: What ``--work-dir`` of train.py was. With several starts, resumed or not, the last one counts where
            they overlap.

    Returns:
        Run: Whatever was found.

    Raises:
        UserError: If there is no such folder, or nothing of mmengine's in it.
    """
    folder = Path(work_dir)
    if not folder.is_dir():
        raise UserError(f'{folder}: no such work folder')
    configs = sorted(folder.glob('*.py'), key=lambda path: path.stat().st_mtime)
    start_dirs = sorted(path for path in folder.iterdir() if path.is_dir() and _START.fullmatch(path.name))
    if not configs and not start_dirs and not list(folder.glob('*.pth')):
        raise UserError(
            f'{folder}: no config, no log and no checkpoint in it; give the folder that train.py wrote to, '
            'e.g. work_dirs/CONFIG_NAME')
    run = Run(folder, configs[-1].stem if configs else folder.resolve().name)
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
            run.missing.append(f'Not finished: iteration {run.train[-1]["iter"]} of {run.planned_iters} was the last '
                               'that was logged.')
    return run


def _read_start(folder: Path, run: Run) -> None:
    """Add what one start logged; folders of tests have no training scalars and are passed over."""
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
            val.append(row | dict(iter=train[-1]['iter'] if train else 0))  # its "step" is an epoch or an iteration
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
    except ValueError:  # not a day
        times = []
    run.starts.append(Start(
        folder.name, train[0]['iter'], train[-1]['iter'], times[-1] - times[0] if times else None))
    if not log:
        run.missing.append(f'{folder.name}: no log file, so neither its time nor its environment is known.')
        return
    lengths = _EPOCH_LENGTH.findall(log)
    run.epoch_length = int(lengths[-1]) if lengths else None
    header = log.split('Config:\n')[0]
    run.environment = {key: value for key, value in re.findall(r'^    ([^:\n]+): (.+)$', header, re.M)
                       if key in ENVIRONMENT or key.startswith('GPU ')}


def _read_record(path: Path, run: Run) -> dict:
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError):
        run.missing.append(f'{path.relative_to(run.folder)}: cannot be read: commit, seed and data are not known.')
        return {}


def _read_config(paths: list[Path], run: Run) -> Config | None:
    """The first of these that can be read, without running it: mmengine writes nothing but values there."""
    for path in paths:
        try:
            return Config(ConfigValues().read(parse_config(path), {}))
        except (UserError, KeyError, TypeError) as error:
            run.missing.append(f'{path.relative_to(run.folder)}: cannot be read ({error}).')
    run.missing.append('No readable config: nothing can be said about model and data, and nothing is evaluated.')
    return None


def find_checkpoint(folder: Path) -> Path | None:
    """The checkpoint to look at: the best one, or else the last one of a work folder."""
    def number(path: Path) -> int:
        return int((re.findall(r'\d+', path.stem) or ['0'])[-1])

    for pattern in ('best_*.pth', 'epoch_*.pth', 'iter_*.pth'):
        found = sorted(folder.glob(pattern), key=number)
        if found:
            return found[-1]
    return None
