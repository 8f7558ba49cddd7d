"""Compile the layers of a detector with ``torch.compile``."""

import functools
import time

import torch
from mmcv.cnn.bricks import DropPath
from mmengine.logging import MMLogger
from torch import nn

#: Parts of a detector whose ``layers`` are compiled.
PARTS = ('backbone', 'encoder', 'decoder')
#: Graphs that PyTorch keeps for a layer: one for each shape, in training and in validation, with and without a mask.
MAX_GRAPHS = 64


class CompiledLayers:
    """Mixin for a detector whose layers ``torch.compile`` can compile.

    Args:
        *args: As for the detector.
        compile (dict, optional): Options of :func:`compile_layers`, e.g. ``dict()``. Default: nothing is compiled.
        **kwargs: As for the detector.
    """

    def __init__(self, *args, compile: dict | None = None, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if compile is not None:
            compile_layers(self, **compile)


def compile_layers(model: nn.Module, **options) -> None:
    """Compile each layer of backbone, encoder and decoder.

    Layers of one kind share their graphs, so twelve layers compile in the time of one. What is between the layers is
    not compiled, nor is the head. State-dict keys do not change, and copies of the model are not compiled. The log says
    how long each graph took.

    A layer is one graph, except in training with dropout of attention weights on a CPU.

    Args:
        model (nn.Module): The detector.
        **options: Arguments of ``torch.compile``. By default, the second shape compiles graphs for all others; with
            ``dynamic=False`` each shape has graphs of its own: use :class:`BatchRandomResize`, which has few.
            ``mode='reduce-overhead'`` runs CUDA graphs; do not combine it with ``accumulative_counts``.
    """
    for module in model.modules():
        if isinstance(module, DropPath):
            # mmpretrain sets a NumPy number; `if` on one breaks the graph in every layer
            module.drop_prob = float(module.drop_prob)
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MAX_GRAPHS)
    for name in PARTS:
        for layer in getattr(getattr(model, name, None), 'layers', ()):
            layer.compile(**options)
    # CUDA graphs reuse memory: all layers of a step belong together, and their outputs may be overwritten in the next
    model.register_forward_pre_hook(_begin_step)
    _log_times()
    MMLogger.get_current_instance().info(
        'torch.compile: the first steps with a new image or batch size compile the layers, which can take minutes')


def _begin_step(*_) -> None:
    torch.compiler.cudagraph_mark_step_begin()


@functools.cache
def _log_times() -> None:
    """Log the time that each graph takes to compile, from the first call of this function on."""
    from torch._dynamo.callback import callback_handler

    begin = [0.0]

    def start(_) -> None:
        begin[0] = time.perf_counter()

    def end(args) -> None:
        seconds = time.perf_counter() - begin[0]
        if seconds >= 1:
            MMLogger.get_current_instance().info(f'torch.compile: graph {args.compile_id} took {seconds:.0f} s')

    callback_handler.register_start_callback(start)
    callback_handler.register_end_callback(end)
