"""The commands as a user types them, on the quickstart's recipe and a few rendered rooms."""

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TextIO

import torch

import deit_detr
from deit_detr.measuring.gpu_check.rows import Check, Failed, Row, Skipped, in_turn, side_by_side
from deit_detr.measuring.gpu_check.setting import Setting, variables
from deit_detr.threads import cores

#: The first is the quickstart's; the second has deformable attention in its encoder.
DETERMINISTIC = ('lw-detr', 'dino')
TIMEOUT = 240  # seconds of a command
#: The line in which a program names its error; torchrun puts the number of the process before it.
ERROR = re.compile(r'^(?:\[rank\d+\]: ?)?((?:error: |[\w.]*(?:Error|Exception)\b).*)', re.MULTILINE)


@dataclass(frozen=True)
class Commands:
    """Runs commands and looks at what they leave.

    Attributes:
        setting: Of all checks.
        folder: Work folders and outputs.
    """

    setting: Setting
    folder: Path

    @property
    def config(self) -> Path:
        """The quickstart's recipe."""
        return self.setting.mini_recipe('lw-detr')

    @property
    def trained(self) -> Path:
        """What :meth:`train` leaves.

        Raises:
            Skipped: If it is not there.
        """
        checkpoint = self.folder / 'train/epoch_1.pth'
        if not checkpoint.is_file():
            raise Skipped('there is no checkpoint: see the row of dist_train.sh')
        return checkpoint

    @property
    def picture(self) -> Path:
        """A validation frame."""
        return next((self.setting.rooms / 'val').glob('*/color/*.jpg'))

    def run(self, name: str, *command, fails: bool = False, **env) -> str:
        """Run a command; its output is left in a file.

        Args:
            name: Of the file.
            *command: Words.
            fails: Whether it may end with a status other than 0.
            **env: Variables beside those of this process.

        Returns:
            str: What it printed.

        Raises:
            Failed: If it fails and must not, or does not end.
        """
        path = self.folder / f'{name}.txt'
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, 'w') as output:
            try:
                status = subprocess.run(
                    list(map(str, command)), cwd=self.setting.repo, stdin=subprocess.DEVNULL, stdout=output,
                    stderr=subprocess.STDOUT, env=os.environ | env, timeout=TIMEOUT, check=False).returncode
            except subprocess.TimeoutExpired:
                raise Failed(f'did not end within {TIMEOUT} s; see {path}') from None
        text = path.read_text(errors='replace')
        if status and not fails:
            raise Failed(f'status {status}: {last_words(text)}; see {path}')
        return text

    def options(self, family: str = 'lw-detr', epochs: int = 1) -> list[str]:
        """Options that make a recipe's run short."""
        loaders = [
            f'{split}_dataloader.{field}' for split in ('train', 'val', 'test')
            for field in ('num_workers=0', 'persistent_workers=False')]
        weights = ['model.backbone.init_cfg=None'] if 'DEIT_CHECKPOINT' not in os.environ else []
        return ['--cfg-options', *weights, *loaders, f'train_cfg.max_epochs={epochs}', 'train_cfg.val_interval=1',
                'default_hooks.logger.interval=1']

    def python(self, script: str, *words) -> list:
        """The words of a Python command."""
        return [sys.executable, self.setting.repo / 'tools' / script, *words]

    def train(self) -> str:
        """dist_train.sh with one process: over NCCL on a GPU, over Gloo without one."""
        # NCCL names itself when the first message is sent through it, not when it is asked for
        output = self.run(
            'train', 'bash', self.setting.repo / 'tools/dist_train.sh', self.config, 1, '--work-dir',
            self.folder / 'train', *self.options(), NCCL_DEBUG='VERSION')
        backend = re.search('NCCL version [^ \n]+' if self.setting.on_gpu else 'backend gloo', output)
        if not backend:
            raise Failed(f'the log does not name {"NCCL" if self.setting.on_gpu else "gloo"}; see '
                         f'{self.folder / "train.txt"}')
        return f'{_epoch(output, 1)}, {backend[0]}, {self.trained.name} written'

    def train_amp(self) -> str:
        """train.py --amp."""
        if not self.setting.on_gpu:
            raise Skipped('needs a GPU')
        return _epoch(self.run('amp', *self.python(
            'train.py', self.config, '--amp', '--work-dir', self.folder / 'amp', *self.options())), 1)

    def deterministic(self, family: str) -> str:
        """Two trainings with --deterministic end with equal weights, or PyTorch names what it cannot do so."""
        for index in (1, 2):
            name = f'deterministic-{family}-{index}'
            output = self.run(name, *self.python(
                'train.py', self.setting.mini_recipe(family), '--deterministic', '--work-dir', self.folder / name,
                *self.options(), 'randomness.seed=0'), fails=True)
            checkpoint = self.folder / name / 'epoch_1.pth'
            if not checkpoint.is_file():
                refused = re.search(r'\S+ does not have a deterministic implementation', output)
                if refused:
                    raise Skipped(f'not possible on this device: {refused[0]}')
                raise Failed(f'{last_words(output)}; see {self.folder / name}.txt')
        first, second = (
            torch.load(self.folder / f'deterministic-{family}-{index}/epoch_1.pth', weights_only=True,
                       map_location='cpu')['state_dict'] for index in (1, 2))
        differ = [name for name, tensor in first.items() if not torch.equal(tensor, second[name])]
        if differ:
            raise Failed(f'{len(differ)} of {len(first)} tensors differ after two equal trainings, e.g. {differ[0]}')
        return f'{len(first)} tensors equal after two trainings'

    def resume(self) -> str:
        """One more epoch from the checkpoint."""
        output = self.run('resume', *self.python(
            'train.py', self.config, '--resume', self.trained, '--work-dir', self.folder / 'resume',
            *self.options(epochs=2)))
        if 'resumed epoch: 1' not in output:
            raise Failed(f'the log does not say "resumed epoch: 1"; see {self.folder / "resume.txt"}')
        return _epoch(output, 2)

    def test(self) -> str:
        """test.py evaluates as the training did."""
        output = self.run('test', *self.python(
            'test.py', self.config, self.trained, '--work-dir', self.folder / 'test', *self.options()))
        found = [re.findall(r'coco/bbox_mAP: +(\S+)', text)[-1:]
                 for text in (output, (self.folder / 'train.txt').read_text())]
        if not all(found) or abs(float(found[0][0]) - float(found[1][0])) > 0.001:
            raise Failed(f'AP {found[0]}, after the training {found[1]}; see {self.folder / "test.txt"}')
        return f'AP {found[0][0]}, as after the training'

    def attention(self) -> str:
        """attention.py draws where a detection looks."""
        out = self.folder / 'attention.jpg'
        self.run('attention', *self.python(
            'analysis_tools/attention.py', self.config, self.trained, self.picture, '--score-thr', 0, '--out', out))
        return f'{out.name}: {out.stat().st_size} bytes'

    def export(self) -> str:
        """export_onnx.py writes a file whose numbers are PyTorch's."""
        if not all(map(importlib.util.find_spec, ('onnx', 'onnxruntime'))):
            raise Skipped('onnx and onnxruntime are not installed: pip install -r requirements/optional.txt')
        return self.run('export', *self.python(
            'deployment/export_onnx.py', self.config, self.trained, '--out', self.folder / 'model.onnx',
        )).strip().split('\n')[-1]

    def load(self) -> str:
        """deit_detr.load in this process, on an image file."""
        detector = deit_detr.load(self.config, self.trained)
        found = detector(self.picture, score_thr=0).pred_instances
        if not len(found) or not torch.isfinite(found.bboxes).all():
            raise Failed(f'{len(found)} boxes, finite: {bool(torch.isfinite(found.bboxes).all())}')
        return f'{len(found)} boxes on {next(detector.model.parameters()).device}, best {found.label_names[0]} ' \
               f'with a score of {found.scores[0]:.2f}'


def check_commands(setting: Setting, folder: Path, log: TextIO) -> Iterator[Row]:
    """Run all commands, those that do not need each other side by side.

    Args:
        setting: Of all checks.
        folder: Empty; work folders and outputs go there.
        log: Where everything else goes that is printed.
    """
    commands = Commands(setting, folder)
    first = [Check('dist_train.sh', commands.train), Check('train.py --amp', commands.train_amp)]
    first += [Check(f'--deterministic {family}', partial(commands.deterministic, family))
              for family in DETERMINISTIC if family in setting.families]
    then = [Check('train.py --resume', commands.resume), Check('test.py', commands.test),
            Check('attention.py', commands.attention), Check('export_onnx.py', commands.export)]
    workers = min(len(first), cores())
    threads = os.environ.get('OMP_NUM_THREADS', str(max(1, cores() // workers)))
    path = f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'  # the shell scripts call python
    with variables(dict(OMP_NUM_THREADS=threads, PATH=path)):
        yield from side_by_side(first, workers)
        yield from side_by_side(then, workers)
    yield from in_turn([Check('deit_detr.load', commands.load)], log)


def last_words(output: str) -> str:
    """The last error in a program's output, or its last line."""
    errors = ERROR.findall(output)
    lines = [line for line in output.split('\n') if line.strip()]
    return errors[-1] if errors else lines[-1] if lines else 'nothing was printed'


def _epoch(output: str, number: int) -> str:
    """What the log says of an epoch's last step."""
    losses = re.findall(rf'Epoch\(train\) +\[{number}\].* loss: (\S+)', output)
    if not losses:
        raise Failed(f'the log has no line of epoch {number}')
    return f'epoch {number}: {len(losses)} steps, loss {float(losses[-1]):.1f}'
