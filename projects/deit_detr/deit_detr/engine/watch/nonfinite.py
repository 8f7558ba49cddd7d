"""A hook for training runs whose loss or gradients become NaN or infinite."""

from collections.abc import Sequence
from pathlib import Path

import torch
from mmdet.models.task_modules.assigners import hungarian_assigner
from mmdet.registry import HOOKS
from mmdet.structures import DetDataSample
from mmengine.dist import all_gather_object, get_rank
from mmengine.hooks import Hook
from mmengine.logging import MessageHub
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from torch import Tensor, nn

from deit_detr.checkpoints.safe_loading import load_checkpoint_file, save_checkpoint_file
from deit_detr.errors import UserError
from deit_detr.models.matching import assign


@HOOKS.register_module()
class NonFiniteHook(Hook):
    """Stop, or skip a few steps, when loss or gradients are NaN or infinite, and save the batches that caused it.

    The hook checks the norm of the gradients, which mmengine computes to clip them; in a recipe without clipping it is
    computed and nothing is clipped, and where values are clipped it is computed before. The gradients of several
    processes are averaged, so the norm is the same in all of them and they agree without communication. A step whose
    norm is not finite changes no weight. Only then do the processes exchange whose loss was not finite. Where gradients
    are accumulated, all batches since the last step are checked.

    A batch is saved as ``nonfinite/iter_N_rank_R.pth`` in the work folder, at most one for each step and process; see
    :func:`load_batch`. If costs of the Hungarian matching are not finite, neither is the loss.

    In float16 the scaler of mmengine's ``AmpOptimWrapper`` lowers its factor after an overflow: if all losses are
    finite, such steps are left to it.

    Args:
        max_skips (int): Steps that are skipped in a run, with a warning each; the next one stops it.
    """

    def __init__(self, max_skips: int = 0) -> None:
        self.max_skips = max_skips
        self.skipped = 0
        self._batches = []

    def before_train(self, runner: Runner) -> None:
        """Make the optimizer skip non-finite gradients, and the matching accept non-finite costs.

        Raises:
            UserError: If the training has several optimizers.
        """
        wrapper = runner.optim_wrapper
        if not isinstance(wrapper, OptimWrapper) or isinstance(wrapper, OptimWrapperDict):
            raise UserError(f'NonFiniteHook supports one OptimWrapper, not {type(wrapper).__name__}: take it out of '
                            'custom_hooks')
        if not wrapper.clip_grad_kwargs:
            wrapper.clip_grad_kwargs = dict(max_norm=float('inf'))
            wrapper.clip_func, wrapper.grad_name = nn.utils.clip_grad_norm_, 'grad_norm'
        elif wrapper.grad_name != 'grad_norm':
            wrapper.clip_func, wrapper.grad_name = _clip_value, 'grad_norm'
        wrapper.optimizer.register_step_pre_hook(_keep_weights)
        # mmdet's assigner takes SciPy's function, which raises an error for costs that are not finite
        hungarian_assigner.linear_sum_assignment = assign

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None,
    ) -> None:
        """Check the step that was just taken.

        Raises:
            UserError: In all processes, if it was not finite and ``max_skips`` steps were skipped before.
        """
        losses = {name: torch.as_tensor(value).detach() for name, value in (outputs or {}).items()}
        self._batches.append((runner.iter + 1, data_batch, losses))
        wrapper = runner.optim_wrapper
        if not wrapper.should_update():
            return
        batches, self._batches = self._batches, []
        if _norm_is_finite():
            return

        broken = [batch for batch in batches if not all(map(_is_finite, batch[2].values()))]
        everywhere = all_gather_object([iteration for iteration, *_ in broken])
        scaler = getattr(wrapper, 'loss_scaler', None)
        if not any(everywhere) and scaler is not None and wrapper.cast_dtype is not torch.bfloat16:
            return
        saved = None
        if broken or not any(everywhere):  # all losses are finite: any batch may be the cause
            saved = self._save(runner, *(broken or batches)[0])
        places = ', '.join(text for text in all_gather_object(saved) if text)
        what = f'loss or gradients of step {runner.iter + 1} are not finite; saved: {places}'
        if self.skipped < self.max_skips:
            self.skipped += 1
            runner.logger.warning(f'{what}. Step skipped, {self.skipped} of at most {self.max_skips}')
            return
        raise UserError(
            f'{what}. The weights are those before the step. Check these images and boxes first; then lower '
            'optim_wrapper.optimizer.lr, or train in float32 or bfloat16. max_skips of NonFiniteHook in custom_hooks '
            f'allows such steps to be skipped (now {self.max_skips})')

    @staticmethod
    def _save(runner: Runner, iteration: int, data_batch: dict, losses: dict[str, Tensor]) -> str:
        """Write a batch; return its path and its images as text."""
        path = Path(runner.work_dir, 'nonfinite', f'iter_{iteration}_rank_{get_rank()}.pth')
        save_batch(path, data_batch, losses)
        images = ', '.join(str(sample.img_path) for sample in data_batch['data_samples'])
        return f'{path} ({images})'


def _clip_value(params: list[Tensor], **kwargs) -> Tensor:
    """Clip gradients by value and return their norm before, because clipping hides infinite ones."""
    norm = nn.utils.clip_grad_norm_(params, float('inf'))
    nn.utils.clip_grad_value_(params, **kwargs)
    return norm


def _keep_weights(optimizer: torch.optim.Optimizer, *_) -> None:
    """Remove gradients that are not finite before a step: the optimizer then changes neither weights nor moments."""
    if not _norm_is_finite():
        optimizer.zero_grad(set_to_none=True)


def _norm_is_finite() -> bool:
    """Return whether the norm of the last gradients, as mmengine logs it, is finite."""
    return _is_finite(MessageHub.get_current_instance().get_scalar('train/grad_norm').current())


def _is_finite(value: Tensor | float) -> bool:
    return bool(torch.as_tensor(value).isfinite().all())


def save_batch(path: Path, data_batch: dict, losses: dict[str, Tensor]) -> None:
    """Write a batch as the data loader gave it.

    Args:
        path: The file to write.
        data_batch: ``inputs``, a list of images, and ``data_samples``, as mmdet's pipelines pack them.
        losses: Name -> value.
    """
    samples: Sequence[DetDataSample] = data_batch['data_samples']
    save_checkpoint_file(dict(
        images=[image.cpu() for image in data_batch['inputs']],
        boxes=[torch.as_tensor(getattr(sample.gt_instances.bboxes, 'tensor', sample.gt_instances.bboxes)).cpu()
               for sample in samples],
        labels=[sample.gt_instances.labels.cpu() for sample in samples],
        img_paths=[str(sample.img_path) for sample in samples],
        losses={name: value.float().cpu() for name, value in losses.items()}), path)


def load_batch(path: str | Path) -> dict:
    """Read a batch that :func:`save_batch` wrote, in the form of ``model.train_step`` and ``model.data_preprocessor``.

    Args:
        path: The file.

    Returns:
        dict: ``inputs`` and ``data_samples``, with boxes (x1, y1, x2, y2) in pixels and labels.
    """
    saved = load_checkpoint_file(path)
    samples = []
    for image, boxes, labels, img_path in zip(
            saved['images'], saved['boxes'], saved['labels'], saved['img_paths'], strict=True):
        shape = tuple(image.shape[-2:])
        samples.append(DetDataSample(
            metainfo=dict(img_path=img_path, img_shape=shape, ori_shape=shape, scale_factor=(1.0, 1.0)),
            gt_instances=InstanceData(bboxes=boxes, labels=labels)))
    return dict(inputs=saved['images'], data_samples=samples)
