"""What happens when the numbers of a training run stop being numbers."""

from collections.abc import Sequence
from pathlib import Path

import torch
from mmdet.models.task_modules.assigners import hungarian_assigner
from mmdet.registry import HOOKS
from mmdet.structures import DetDataSample
from mmengine.dist import all_gather_object, get_rank
from mmengine.hooks import Hook
from mmengine.logging import MessageHub
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from torch import Tensor, nn

from deit_detr.checkpoints.safe_loading import load_checkpoint_file, save_checkpoint_file
from deit_detr.errors import UserError
from deit_detr.models.fast_detr_head import assign


@HOOKS.register_module()
class NonFiniteHook(Hook):
    """Stop, or skip a few steps, when loss or gradients are NaN or infinite, and save the batches that caused it.

    The sign is the norm of the gradients, which mmengine computes to clip them; a recipe without clipping gets the
    norm, and nothing clipped. After the gradients of several processes were averaged it is the same in all of them:
    they agree without waiting for each other. A step with such a norm changes no weight. Only then do the processes
    tell each other whose loss it was. Where gradients are accumulated, all batches since the last step are looked at.

    A batch is saved as ``nonfinite/iter_N_rank_R.pth`` in the work folder, see :func:`load_batch`, at most one for
    each step and process. Costs of the Hungarian matching that are no finite numbers make the loss so, too.

    In float16 the scaler of mmengine's ``AmpOptimWrapper`` finds its factor by steps whose gradients overflow: where
    all losses are finite, those are its business.

    Args:
        max_skips (int): So many steps are skipped in a run, with a warning each; the next one stops it.

    Raises:
        UserError: If the gradients are clipped by value, which hides infinite ones.
    """

    def __init__(self, max_skips: int = 0) -> None:
        self.max_skips = max_skips
        self.skipped = 0
        self._batches = []

    def before_train(self, runner: Runner) -> None:
        """Attach to optimizer and matching."""
        wrapper = runner.optim_wrapper
        if not isinstance(wrapper, OptimWrapper):
            raise UserError(f'NonFiniteHook knows one OptimWrapper, not {type(wrapper).__name__}: leave the hook out')
        if not wrapper.clip_grad_kwargs:
            wrapper.clip_grad_kwargs = dict(max_norm=float('inf'))
            wrapper.clip_func, wrapper.grad_name = nn.utils.clip_grad_norm_, 'grad_norm'
        elif wrapper.grad_name != 'grad_norm':
            raise UserError('optim_wrapper.clip_grad.type is "value", which hides infinite gradients: clip the norm, '
                            'or take NonFiniteHook out of custom_hooks')
        wrapper.optimizer.register_step_pre_hook(_keep_weights)
        # mmdet's assigner has this function from SciPy, which raises an error
        hungarian_assigner.linear_sum_assignment = assign

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None,
    ) -> None:
        """Look at the step that has just been taken, or not.

        Raises:
            UserError: If it was one too many; in all processes.
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
        if broken or not any(everywhere):  # finite losses with such gradients: any of the batches
            saved = self._save(runner, *(broken or batches)[0])
        places = ', '.join(text for text in all_gather_object(saved) if text)
        what = f'loss or gradients of step {runner.iter + 1} are not finite; saved: {places}'
        if self.skipped < self.max_skips:
            self.skipped += 1
            runner.logger.warning(f'{what}. Step skipped, {self.skipped} of at most {self.max_skips}')
            return
        raise UserError(
            f'{what}. The weights are those before the step. Look at these images and boxes first; then lower '
            'optim_wrapper.optimizer.lr, or train in float32 or bfloat16. max_skips of NonFiniteHook in custom_hooks '
            f'allows to skip such steps (now {self.max_skips})')

    @staticmethod
    def _save(runner: Runner, iteration: int, data_batch: dict, losses: dict[str, Tensor]) -> str:
        """Write a batch; say where it is and from which images."""
        path = Path(runner.work_dir, 'nonfinite', f'iter_{iteration}_rank_{get_rank()}.pth')
        save_batch(path, data_batch, losses)
        images = ', '.join(str(sample.img_path) for sample in data_batch['data_samples'])
        return f'{path} ({images})'


def _keep_weights(optimizer: torch.optim.Optimizer, *_) -> None:
    """Before a step: without gradients an optimizer changes nothing, neither weights nor moments."""
    if not _norm_is_finite():
        optimizer.zero_grad(set_to_none=True)


def _norm_is_finite() -> bool:
    """Whether the gradients of the last step were numbers, as mmengine has them in its log."""
    return _is_finite(MessageHub.get_current_instance().get_scalar('train/grad_norm').current())


def _is_finite(value: Tensor | float) -> bool:
    return bool(torch.as_tensor(value).isfinite().all())


def save_batch(path: Path, data_batch: dict, losses: dict[str, Tensor]) -> None:
    """Write a batch as the data loader gave it.

    Args:
        path: Where.
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
    """Read what :func:`save_batch` wrote, as ``model.train_step`` and ``model.data_preprocessor`` take it.

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
