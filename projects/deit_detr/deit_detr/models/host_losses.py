"""Losses of a step, summed and logged without a wait for each."""

from collections import OrderedDict

import torch
from torch import Tensor


class HostLosses:
    """Mixin for a detector that copies all values to log to the host at once.

    mmengine would read each with ``item()``: twenty to forty waits for the device in a step.
    """

    def parse_losses(self, losses: dict[str, Tensor | list[Tensor]]) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum the losses.

        Args:
            losses (dict[str, Tensor | list[Tensor]]): Losses, and other values to log, whose names lack ``loss``.

        Returns:
            tuple: The total loss, and the values to log on the CPU; the total is called ``loss``.
        """
        values = [
            (value if isinstance(value, Tensor) else torch.stack([x.mean() for x in value]).sum()) for value in
            losses.values()]
        values = torch.stack([value.mean() if value.dim() else value for value in values])
        if all('loss' in name for name in losses):
            total = values.sum()
        else:
            total = torch.stack([value for name, value in zip(losses, values, strict=True) if 'loss' in name]).sum()
        log_values = torch.cat([total.detach()[None], values.detach()]).cpu()
        return total, OrderedDict(zip(['loss', *losses], log_values, strict=True))
