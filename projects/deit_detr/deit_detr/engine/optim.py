"""Optimizer construction."""

import logging

from mmdet.registry import OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.logging import MMLogger
from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn


def _is_no_paramwise_line(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith('paramwise_options')


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class GroupedOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's constructor with one parameter group for each set of options.

    The original makes one group a parameter and logs each of its options: several hundred lines before the first
    step. The numbers of a training run do not depend on the grouping.
    """

    def add_params(self, params: list, module: nn.Module, prefix: str = '', is_dcn_module: bool | None = None):
        """Append the parameter groups of a module to ``params``; called once for each module in the tree."""
        if prefix:
            super().add_params(params, module, prefix=prefix, is_dcn_module=is_dcn_module)
            return
        logger = MMLogger.get_current_instance()
        logger.addFilter(_is_no_paramwise_line)
        try:
            single = []
            super().add_params(single, module, is_dcn_module=is_dcn_module)
        finally:
            logger.removeFilter(_is_no_paramwise_line)

        merged = {}
        for group in single:
            options = {key: value for key, value in group.items() if key != 'params'}
            merged.setdefault(tuple(sorted(options.items())), dict(options, params=[]))['params'] += group['params']
        params.extend(merged.values())
        for group in merged.values():
            number = sum(param.numel() for param in group['params'])
            logger.info(
                f'optimizer: {len(group["params"])} tensors, {number:,} parameters, '
                f'lr {group.get("lr", self.base_lr):g}, weight decay {group.get("weight_decay", self.base_wd):g}')
