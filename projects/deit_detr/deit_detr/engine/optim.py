"""Construction of the optimizer: parameter groups and layer-wise decay of the learning rate."""

import logging

from mmdet.registry import OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.logging import MMLogger
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper, OptimWrapperDict
from torch import nn

from deit_detr.errors import UserError


def optim_wrappers(wrapper: OptimWrapper) -> dict[str, OptimWrapper]:
    """Return a training's optimizer wrappers by their names in ``OptimWrapperDict``; a single one has the name ''."""
    return dict(wrapper.items()) if isinstance(wrapper, OptimWrapperDict) else {'': wrapper}


def _is_no_line_of_a_parameter(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith('paramwise_options') and 'since its requires_grad' not in str(record.msg)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class GroupedOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's constructor with one parameter group for each set of options.

    The original makes one group per parameter and logs each of its options: several hundred lines before the first
    step. The results of a training do not depend on the grouping.

    ``paramwise_cfg=dict(layer_decay_rate=0.7)`` adds the layer-wise decay of ViTDet (arXiv 2203.16527): the learning
    rate of each layer of ``model.backbone`` is 0.7 times that of the layer above, in addition to everything else in
    ``paramwise_cfg``. The final norm keeps its rate; the first of 12 layers has 0.7 ** 12 of it, the patch embedding
    0.7 ** 13. The depths come from the backbone's ``get_layer_depth``, which mmpretrain's transformers have.
    """

    def add_params(self, params: list, module: nn.Module, prefix: str = '', is_dcn_module: bool | None = None):
        """Append the parameter groups of a module to ``params``; called once for each module in the tree."""
        if prefix:
            super().add_params(params, module, prefix=prefix, is_dcn_module=is_dcn_module)
            return
        logger = MMLogger.get_current_instance()
        logger.addFilter(_is_no_line_of_a_parameter)
        try:
            single = []
            super().add_params(single, module, is_dcn_module=is_dcn_module)
        finally:
            logger.removeFilter(_is_no_line_of_a_parameter)

        rate = self.paramwise_cfg.get('layer_decay_rate')
        if rate is not None:
            decays = layer_decays(module.backbone, rate)
            for group in single:
                group['lr'] = group.get('lr', self.base_lr) * decays.get(id(group['params'][0]), 1.0)

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
        frozen = [param.numel() for param in module.parameters() if not param.requires_grad]
        if frozen:
            logger.info(f'optimizer: {len(frozen)} tensors, {sum(frozen):,} parameters, are frozen')


def layer_decays(backbone: nn.Module, rate: float) -> dict[int, float]:
    """Return the factor of each backbone parameter's learning rate.

    Args:
        backbone (nn.Module): Has ``get_layer_depth(name)``, which returns a parameter's depth and the number of depths.
        rate (float): Learning rate of one depth divided by that of the next, in (0, 1].

    Returns:
        dict[int, float]: The ``id`` of a parameter -> its factor, in (0, 1].

    Raises:
        UserError: If the rate is out of range, or the backbone has no ``get_layer_depth``.
    """
    if not 0 < rate <= 1:
        raise UserError(f'optim_wrapper.paramwise_cfg.layer_decay_rate has to be above 0 and at most 1, not {rate}')
    if not hasattr(backbone, 'get_layer_depth'):
        raise UserError(
            f'optim_wrapper.paramwise_cfg.layer_decay_rate: {type(backbone).__name__} has no get_layer_depth; leave '
            'it out, or use a transformer of mmpretrain')
    decays = {}
    for name, param in backbone.named_parameters():
        depth, number = backbone.get_layer_depth(name)
        decays[id(param)] = rate ** (number - 1 - depth)
    return decays
