"""Operators that a step dispatches: what a GPU is asked to do, counted without one."""

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from torch.utils._python_dispatch import TorchDispatchMode

#: Operators that compute nothing: they return another view of a tensor, or memory that is not filled.
VIEWS = frozenset({
    '_reshape_alias', '_unsafe_view', 'alias', 'as_strided', 'detach', 'detach_', 'diagonal', 'empty', 'empty_like',
    'empty_strided', 'expand', 'new_empty', 'new_empty_strided', 'permute', 'resize_', 'select', 'slice', 'split',
    'split_with_sizes', 'squeeze', 'squeeze_', 't', 'transpose', 'unbind', 'unfold', 'unsqueeze', 'unsqueeze_', 'view'})
#: Operators whose result, or the size of it, the host waits for.
READS = frozenset({
    '_local_scalar_dense', '_unique2', 'equal', 'is_nonzero', 'item', 'masked_select', 'nonzero', 'unique_consecutive',
    'unique_dim'})


class OperatorCounts(NamedTuple):
    """What a step dispatches, without views of tensors.

    Attributes:
        operators (int): Operators, each of which is one or a few kernels on a GPU.
        casts (int): Those that change the type or the device of a tensor.
        reads (int): Those that wait for a result on the device. A CPU does not show copies of whole tensors to the
            host, as for matching and for the log.
    """

    operators: int
    casts: int
    reads: int


class OperatorCounter(TorchDispatchMode):
    """Count the operators dispatched inside it, backward passes included.

    Deformable attention is one operator a pass, as it is one kernel on a GPU.

    Attributes:
        names (Counter[str]): How often each operator was dispatched, by its name without namespace and overload.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))

    def counts(self) -> OperatorCounts:
        """Return the numbers so far."""
        return OperatorCounts(
            sum(number for name, number in self.names.items() if name not in VIEWS), self.names['_to_copy'],
            sum(self.names[name] for name in READS))


def count_operators(step: Callable[[], object]) -> OperatorCounts:
    """Return the operators, casts and reads of the device of one call of ``step``.

    Equal steps give equal numbers on every machine of one device type. Call the step before, if its first run prepares
    something, as an optimizer does.
    """
    with OperatorCounter() as counter:
        step()
    return counter.counts()
