"""How many images an update of the weights sees."""

from mmengine.config import ConfigDict
from mmengine.dist import get_world_size
from mmengine.runner import Runner


def accumulative_counts(cfg: ConfigDict) -> int:
    """Return over how many steps the optimizer accumulates gradients before it updates the weights."""
    return (cfg.get('optim_wrapper') or {}).get('accumulative_counts', 1)


def images_per_update(cfg: ConfigDict) -> int:
    """Return the effective batch size: images per process and step x processes x accumulated steps."""
    return cfg.train_dataloader.get('batch_size', 1) * get_world_size() * accumulative_counts(cfg)


def count_accumulation(runner: Runner) -> None:
    """Scale the learning rate by the effective batch size if ``auto_scale_lr`` is enabled; mmengine takes one step's.

    Args:
        runner: Before its training starts. Its config stays as it is.
    """
    counts, scaling = accumulative_counts(runner.cfg), runner.auto_scale_lr or {}
    if counts == 1 or not scaling.get('enable'):
        return
    base = scaling['base_batch_size']
    runner.logger.info(
        f'accumulative_counts={counts}: {images_per_update(runner.cfg)} images per update, where the learning rate is '
        f'meant for {base}; mmengine counts both per step')
    runner.auto_scale_lr = dict(scaling, base_batch_size=base / counts)
