"""All checks before training: of a config alone, and of a runner that is about to start."""

import copy

from mmdet.registry import DATASETS, HOOKS, MODELS
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import all_gather_object, broadcast_object_list, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import init_default_scope
from mmengine.runner import BaseLoop, Runner
from torch import nn
from torch.utils.data import Dataset

from deit_detr.engine.start.classes import check_classes
from deit_detr.engine.start.data import check_data, largest_image
from deit_detr.engine.start.evaluator import build_metrics, check_evaluator
from deit_detr.engine.start.fields import check_fields
from deit_detr.engine.start.findings import (
    FAIL,
    OK,
    UNKNOWN,
    WARN,
    Finding,
    as_finding,
    attempt,
    mark_ignored,
    require,
    run_check,
    table,
)
from deit_detr.engine.start.pretrained_check import PretrainedCheckHook, check_start
from deit_detr.engine.start.resources import check_disk, check_memory
from deit_detr.engine.start.schedule import check_schedule, rates_in_force, starting_rates
from deit_detr.engine.start.trial_step import (
    TooLarge,
    check_gradients,
    check_weights,
    same_random_state,
    take_step,
)
from deit_detr.errors import UserError
from deit_detr.versions import installed, untested, version_problems


def check_config(cfg: Config) -> list[Finding]:
    """Run all checks on a config. Its data and model are built for that.

    Args:
        cfg: The config of a training run. Not changed.

    Returns:
        list[Finding]: A row for each check. Failures that ``PreflightHook.ignore`` of the config names are marked.

    Raises:
        UserError: If ``PreflightHook.ignore`` names an unknown check.
    """
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    ignore = ignored_checks(cfg)
    return mark_ignored(_all_findings(cfg), ignore)


def _all_findings(cfg: Config) -> list[Finding]:
    datasets = build_datasets(cfg)
    findings = check_data_and_config(cfg, datasets)
    model = attempt(lambda: MODELS.build(copy.deepcopy(cfg.model)).to(get_device()))
    if isinstance(model, UserError):
        if not any(finding.check == 'model fields' and finding.status == FAIL for finding in findings):
            findings.append(Finding('model', FAIL, f'cannot be built: {model}'))  # or the fields say why
        return findings
    if run_check('pretrained', check_weights, model).status != FAIL:  # mmengine would stop at a missing file
        failure = attempt(model.init_weights)
        if failure is not None:
            findings.append(Finding('initialization', FAIL, str(failure)))
    train = datasets.get('train')
    findings += check_model(model, cfg, _largest_image(train)) + _check_start(model, cfg, train)
    if cfg.get('train_cfg') and train is not None and not isinstance(train, UserError):
        loader = attempt(lambda: Runner.build_dataloader(dict(cfg.train_dataloader, dataset=train)))
        findings.append(run_check('schedule', check_schedule, cfg, attempt(starting_rates, model, cfg), loader))
    return findings


def ignored_checks(cfg: Config) -> tuple[str, ...]:
    """Return the checks that ``PreflightHook.ignore`` of a config names; none without the hook."""
    return tuple(name for hook in _hooks(cfg, PreflightHook) for name in PreflightHook(hook.get('ignore', ())).ignore)


def _hooks(cfg: Config, kind: type[Hook]) -> list[dict]:
    """Return the settings of a config's hooks of a class."""
    hooks = [*(cfg.get('default_hooks') or {}).values(), *(cfg.get('custom_hooks') or [])]
    return [hook for hook in hooks if isinstance(hook, dict) and kind.__name__ in str(hook.get('type'))]


def _check_start(model: nn.Module, cfg: Config, train: Dataset | UserError | None) -> list[Finding]:
    """Say what a training will get from its ``load_from``; nothing if it resumes or may resume."""
    if not cfg.get('load_from') or cfg.get('resume') or train is None or isinstance(train, UserError):
        return []
    hooks = _hooks(cfg, PretrainedCheckHook)
    if not hooks:
        return [Finding('load_from', WARN, (
            'not checked: custom_hooks has no PretrainedCheckHook, so classes of other names get the rows of their '
            'number'))]
    return [run_check('load_from', check_start, model, cfg, train, hooks[0].get('same_classes'))]


def build_datasets(cfg: Config) -> dict[str, Dataset | UserError]:
    """Build the data sets of a config for training and validation; the error takes the place of one that fails."""
    return {
        split: attempt(DATASETS.build, copy.deepcopy(cfg[f'{split}_dataloader'].dataset))
        for split in ('train', 'val') if cfg.get(f'{split}_dataloader')}


def check_data_and_config(cfg: Config, datasets: dict[str, Dataset | UserError]) -> list[Finding]:
    """Run the checks that need no model.

    Args:
        cfg: The config of the run.
        datasets: From :func:`build_datasets`.
    """
    built = {split: dataset for split, dataset in datasets.items() if not isinstance(dataset, UserError)}
    metrics = attempt(build_metrics, cfg.get('val_evaluator'))
    findings = [run_check('versions', _check_versions), run_check('model fields', check_fields, cfg.model)]
    findings += [
        Finding(f'{split} annotations', FAIL, str(error)) for split, error in datasets.items() if split not in built]
    findings += check_data(built)
    known = [] if isinstance(metrics, UserError) else metrics
    findings.append(run_check('classes', check_classes, built, dict(val=known), cfg.model))
    if 'val' in built:
        findings.append(run_check('evaluator', check_evaluator, metrics, built['val']))
    return findings


def _check_versions() -> tuple[str, str]:
    problems, others = version_problems(), untested()
    if problems:
        return FAIL, '; '.join(problems)
    if others:
        return WARN, f'{installed()}; not tested with this version of {", ".join(others)}: bash tools/setup_env.sh'
    return OK, installed()


def _largest_image(dataset: Dataset | UserError | None) -> tuple[int, int] | UserError | None:
    return None if dataset is None or isinstance(dataset, UserError) else attempt(largest_image, dataset)


def check_model(model: nn.Module, cfg: Config, size: tuple[int, int] | UserError | None) -> list[Finding]:
    """Run the checks that need the model, in every process, because losses are averaged over the processes.

    Args:
        model: The detector on its device, not wrapped. Not changed.
        cfg: The config of the run.
        size: Height and width of the largest training images, in pixels, or the error of the pipeline; None without
            training data.

    Raises:
        UserError: If a step of one process of several does not fit on its GPU.
    """
    fit = run_check('model fields', check_fields, cfg.model).status != FAIL
    step = attempt(take_step, model, cfg) if fit else None  # an error about shapes names no field
    pipeline = [Finding('train pipeline', FAIL, str(size))] if isinstance(size, UserError) else []
    memory = attempt(check_memory, model, cfg, *(None if isinstance(x, UserError) else x for x in (step, size)))
    for result in (step, memory):
        if isinstance(result, TooLarge) and get_world_size() > 1:  # the others may wait for the losses of this process
            raise UserError(f'process {get_rank()}: {result}')
    return pipeline + [
        run_check('pretrained', check_weights, model, cfg.get('load_from')),
        run_check('gradients', check_gradients, step, cfg),
        as_finding('memory', memory), run_check('disk', check_disk, model, cfg)]


#: Names of all checks, for ``PreflightHook.ignore``.
CHECKS = (
    'versions', 'model fields', *(f'{split} {part}' for split in ('train', 'val') for part in (
        'annotations', 'data', 'boxes', 'images')), 'train/val overlap', 'classes', 'evaluator', 'model',
    'initialization', 'train pipeline', 'pretrained', 'load_from', 'gradients', 'memory', 'disk', 'schedule')


@HOOKS.register_module()
class PreflightHook(Hook):
    """Check a training run before its first step, and stop it with a list of everything that is wrong.

    The checks are those of ``tools/preflight.py`` and take seconds. Data is checked in the first process only; all
    processes stop together. The run itself is not changed, nor are its random numbers.

    Args:
        ignore (tuple[str, ...] | str): Names of checks, as in the table, whose failures do not stop the run, in any
            process. Spaces may be left out, as ``--cfg-options`` does.

    Raises:
        UserError: If there is no check of a name.
    """

    def __init__(self, ignore: tuple[str, ...] | str = ()) -> None:
        names = {name.replace(' ', ''): name for name in CHECKS}
        asked = [ignore] if isinstance(ignore, str) else list(ignore)
        unknown = [name for name in asked if str(name).replace(' ', '') not in names]
        if unknown:
            raise UserError(f'PreflightHook.ignore has {unknown}, but the checks are {", ".join(CHECKS)}')
        self.ignore = tuple(names[name.replace(' ', '')] for name in asked)

    def before_run(self, runner: Runner) -> None:
        """Run the checks if this is a training.

        Raises:
            UserError: With a line for each failure.
        """
        if not isinstance(runner._train_loop, BaseLoop):
            return
        findings, size = [], [None]
        if get_rank() == 0:
            loops = dict(train=runner._train_loop, val=runner._val_loop)
            datasets = {name: loop.dataloader.dataset for name, loop in loops.items() if isinstance(loop, BaseLoop)}
            with same_random_state():
                findings = check_data_and_config(runner.cfg, datasets)
                size = [_largest_image(datasets['train'])]
        broadcast_object_list(size)
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        findings += check_model(model, runner.cfg, size[0])
        findings += _check_start(model, runner.cfg, runner._train_loop.dataloader.dataset)
        if get_rank() == 0:
            rates = rates_in_force(runner.optim_wrapper)
            schedule = attempt(check_schedule, runner.cfg, rates, runner.train_dataloader)
            if isinstance(schedule, UserError):  # mmengine has built it, so training works
                schedule = UNKNOWN, f'not drawn: {schedule}'
            findings.append(as_finding('schedule', schedule))
        first, *others = all_gather_object(mark_ignored(findings, self.ignore))
        known = {finding.message for finding in first}
        first += [
            Finding(f'{finding.check} of process {rank}', FAIL, finding.message)
            for rank, of_rank in enumerate(others, 1) for finding in of_rank
            if finding.status == FAIL and finding.message not in known]
        runner.logger.info(f'before training:\n{table(first)}')
        require(first)


def build_runner(cfg: Config) -> Runner:
    """Build the runner of a training and its data; if that fails, report everything that is wrong.

    mmengine calls the first hook after it has built model and data. An error in building them is only the first of
    perhaps several mistakes, and an error about shapes does not name the fields that caused it.

    Args:
        cfg: The config of the run. Not changed.

    Raises:
        UserError: With a line for each failure.
    """
    if 'sync_bn' in cfg and get_device() == 'cpu':
        cfg = copy.deepcopy(cfg)
        cfg.pop('sync_bn')  # SyncBatchNorm trains on GPUs only
    try:
        runner = Runner.from_cfg(cfg)
        runner.train_loop, runner.val_loop  # noqa: B018 - builds them
    except Exception:
        require(mark_ignored(check_data_and_config(cfg, build_datasets(cfg)), ignored_checks(cfg)))
        raise
    return runner
