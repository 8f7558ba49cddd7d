"""The checks of the commands, as a user types them, on the quickstart's recipe and a few rendered rooms."""

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

from deit_detr.inference.detector import load
from deit_detr.inference.export import BOX_TOLERANCE, SCORE_TOLERANCE
from deit_detr.measuring.deploy import onnx_providers, result_differences
from deit_detr.measuring.gpu_check.rows import Check, Failed, Row, Skipped, in_turn, side_by_side
from deit_detr.measuring.gpu_check.setting import Setting, variables
from deit_detr.threads import cores

#: Families to train deterministically: the quickstart's, and one with deformable attention in its encoder.
DETERMINISTIC = ('lw-detr', 'dino')
TIMEOUT = 240  # seconds per command
#: The line in which a program names its error; torchrun puts the rank of the process before it.
ERROR = re.compile(r'^(?:\[rank\d+\]: ?)?((?:error: |[\w.]*(?:Error|Exception)\b).*)', re.MULTILINE)


@dataclass(frozen=True)
class Commands:
    """Runs commands and checks their output and files.

    Attributes:
        setting: Setting of all checks.
        folder: Folder for work folders and outputs.
    """

    setting: Setting
    folder: Path

    @property
    def config(self) -> Path:
        """The quickstart's recipe."""
        return self.setting.mini_recipe('lw-detr')

    @property
    def trained(self) -> Path:
        """Checkpoint that :meth:`train` writes.

        Raises:
            Skipped: If it does not exist.
        """
        checkpoint = self.folder / 'train/epoch_1.pth'
        if not checkpoint.is_file():
            raise Skipped('no checkpoint: see the row of dist_train.sh')
        return checkpoint

    @property
    def picture(self) -> Path:
        """Image file of a validation frame."""
        return next((self.setting.rooms / 'val').glob('*/color/*.jpg'))

    def run(self, name: str, *command, fails: bool = False, **env) -> str:
        """Run a command and keep its output in a file.

        Args:
            name: Stem of the file's name.
            *command: Words of the command.
            fails: Whether it may end with a status other than 0.
            **env: Environment variables to add.

        Returns:
            str: Everything that the command printed.

        Raises:
            Failed: If it fails and must not, or does not end in time.
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

    def options(self, epochs: int = 1) -> list[str]:
        """Return options that make a run of a recipe short."""
        loaders = [
            f'{split}_dataloader.{field}' for split in ('train', 'val', 'test')
            for field in ('num_workers=0', 'persistent_workers=False')]
        weights = ['model.backbone.init_cfg=None'] if 'DEIT_CHECKPOINT' not in os.environ else []
        return ['--cfg-options', *weights, *loaders, f'train_cfg.max_epochs={epochs}', 'train_cfg.val_interval=1',
                'default_hooks.logger.interval=1']

    def python(self, script: str, *words) -> list:
        """Return the words of a Python command."""
        return [sys.executable, self.setting.repo / 'tools' / script, *words]

    def train(self) -> str:
        """Check dist_train.sh with one process: over NCCL on a GPU, over Gloo without one."""
        # NCCL prints its version when it sends the first message
        output = self.run(
            'train', 'bash', self.setting.repo / 'tools/dist_train.sh', self.config, 1, '--work-dir',
            self.folder / 'train', *self.options(), NCCL_DEBUG='VERSION')
        backend = re.search('NCCL version [^ \n]+' if self.setting.on_gpu else 'backend gloo', output)
        if not backend:
            raise Failed(f'the log does not name {"NCCL" if self.setting.on_gpu else "gloo"}; see '
                         f'{self.folder / "train.txt"}')
        return f'{_epoch(output, 1)}, {backend[0]}, {self.trained.name} written'

    def train_amp(self) -> str:
        """Check train.py --amp."""
        if not self.setting.on_gpu:
            raise Skipped('needs a GPU')
        return _epoch(self.run('amp', *self.python(
            'train.py', self.config, '--amp', '--work-dir', self.folder / 'amp', *self.options())), 1)

    def deterministic(self, family: str) -> str:
        """Check that two trainings with --deterministic end with equal weights, unless PyTorch cannot do that."""
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
        """Check that train.py --resume trains for another epoch."""
        output = self.run('resume', *self.python(
            'train.py', self.config, '--resume', self.trained, '--work-dir', self.folder / 'resume',
            *self.options(epochs=2)))
        if 'resumed epoch: 1' not in output:
            raise Failed(f'the log does not say "resumed epoch: 1"; see {self.folder / "resume.txt"}')
        return _epoch(output, 2)

    def test(self) -> str:
        """Check that test.py gives the AP of the evaluation during training."""
        output = self.run('test', *self.python(
            'test.py', self.config, self.trained, '--work-dir', self.folder / 'test', *self.options()))
        found = [re.findall(r'coco/bbox_mAP: +(\S+)', text)[-1:]
                 for text in (output, (self.folder / 'train.txt').read_text())]
        if not all(found) or abs(float(found[0][0]) - float(found[1][0])) > 0.001:
            raise Failed(f'AP {found[0]}, after the training {found[1]}; see {self.folder / "test.txt"}')
        return f'AP {found[0][0]}, as after the training'

    def attention(self) -> str:
        """Check that attention.py draws what a detection attends to."""
        out = self.folder / 'attention.jpg'
        self.run('attention', *self.python(
            'analysis_tools/attention.py', self.config, self.trained, self.picture, '--score-thr', 0, '--out', out))
        return f'{out.name}: {out.stat().st_size} bytes'

    def export(self) -> str:
        """Check that export_onnx.py writes a model with the same outputs as PyTorch."""
        if not all(map(importlib.util.find_spec, ('onnx', 'onnxruntime'))):
            raise Skipped('onnx and onnxruntime are not installed: pip install -r requirements/optional.txt')
        return self.run('export', *self.python(
            'deployment/export_onnx.py', self.config, self.trained, '--out', self.folder / 'model.onnx',
        )).strip().split('\n')[-1]

    def onnx_on_gpu(self) -> str:
        """Check that ONNX Runtime finds the same on the GPU as on the CPU, but for near ties in one frame."""
        model = self.folder / 'model.onnx'
        if not importlib.util.find_spec('onnxruntime') or 'cuda' not in onnx_providers():
            raise Skipped('onnxruntime-gpu is not installed')
        if not model.is_file():
            raise Skipped('no model: see the row of export_onnx.py')
        results = {name: self.folder / f'onnx-{name}.bbox.json' for name in ('cpu', 'cuda')}
        for name, file in results.items():
            self.run(f'onnx-{name}', *self.python(
                'deployment/run_onnx.py', model, self.setting.rooms / 'val', '--ann-file',
                self.setting.rooms / 'scannet_objdet_val.json', '--coco-json', file, '--provider', name))
        apart = sorted(result_differences(*results.values()))
        (boxes, scores), worst = apart[-2], apart[-1]
        if not (boxes <= BOX_TOLERANCE and scores <= SCORE_TOLERANCE):
            raise Failed(f'boxes differ from the CPU by {boxes:.2g} px, scores by {scores:.2g}, in all but one frame')
        return f'{len(apart)} frames: boxes within {boxes:.2g} px of the CPU, scores within {scores:.2g}; in one ' \
               f'{worst[0]:.2g} px, {worst[1]:.2g}'

    def load(self) -> str:
        """Check deit_detr.load in this process, on an image file."""
        detector = load(self.config, self.trained)
        found = detector(self.picture, score_thr=0).pred_instances
        if not len(found) or not torch.isfinite(found.bboxes).all():
            raise Failed(f'{len(found)} boxes, finite: {bool(torch.isfinite(found.bboxes).all())}')
        return f'{len(found)} boxes on {next(detector.model.parameters()).device}, best {found.label_names[0]} ' \
               f'with a score of {found.scores[0]:.2f}'


def check_commands(setting: Setting, folder: Path, log: TextIO) -> Iterator[Row]:
    """Run all commands; those that do not depend on each other run at the same time.

    Args:
        setting: Setting of all checks.
        folder: Empty folder for work folders and outputs.
        log: Receives everything else that is printed.
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
    yield from in_turn([Check('deit_detr.load', commands.load),
                        Check('run_onnx.py --provider cuda', commands.onnx_on_gpu)], log)


def last_words(output: str) -> str:
    """Return the last error in a program's output, or its last line."""
    errors = ERROR.findall(output)
    lines = [line for line in output.split('\n') if line.strip()]
    return errors[-1] if errors else lines[-1] if lines else 'nothing was printed'


def _epoch(output: str, number: int) -> str:
    """Return the number of logged steps of an epoch and its last loss."""
    losses = re.findall(rf'Epoch\(train\) +\[{number}\].* loss: (\S+)', output)
    if not losses:
        raise Failed(f'the log has no line about epoch {number}')
    return f'epoch {number}: {len(losses)} steps, loss {float(losses[-1]):.1f}'
