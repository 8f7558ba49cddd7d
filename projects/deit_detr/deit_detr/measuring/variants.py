"""What the benchmark measures: steps of a recipe's model, and of its twin made of plain mmdet classes."""

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.runner import turn_on_activation_checkpointing
from torch import nn

from deit_detr.config_file import read_config
from deit_detr.datasets.noise import make_batch
from deit_detr.errors import UserError
from deit_detr.machine import device
from deit_detr.measuring.sampling import Sampling, make_sampling_step


@dataclass(frozen=True)
class Variant:
    """A step to measure: a task, the recipe it is for, and its settings.

    Attributes:
        name: Name of its row in the table.
        task: 'train', 'infer', 'head' or 'deformable'.
        config: Path of the recipe.
        plain: Whether to use mmdet's classes and settings in place of the recipe's fast ones.
        batch: Images per step.
        size: Height and width of the images, in pixels.
        boxes: Boxes per image.
        padded: Whether every second image is 64 pixels shorter and 32 narrower, so that it is padded.
        amp: Whether to autocast to bfloat16; for 'deformable', whether the values are bfloat16.
        compile: Whether to use torch.compile, or its mode: 'reduce-overhead' runs CUDA graphs.
        checkpointing: Whether to recompute the activations of backbone and encoder layers.
        dropout: Whether to keep the dropout of the recipe; otherwise it is off.
        memory_limit: Most bytes that the process may take, where the system can enforce it.
        sampling: What to sample, for 'deformable'.
    """

    name: str
    task: str
    config: str
    plain: bool = False
    batch: int = 1
    size: tuple[int, int] = (800, 1072)
    boxes: int = 10
    padded: bool = False
    amp: bool = False
    compile: bool | str = False
    checkpointing: bool = False
    dropout: bool = False
    memory_limit: float | None = None
    sampling: Sampling = Sampling()


def load_recipe(path: str | Path) -> Config:
    """Read a recipe and enter its default scope, so that its parts can be built."""
    cfg = read_config(path)
    init_default_scope(cfg.default_scope)
    return cfg


def plain_class(name: str) -> str:
    """Return the name of the mmdet class that a registered class extends, or is.

    Raises:
        UserError: If that class is abstract: the model has no twin in mmdet.
    """
    base = next(base for base in MODELS.get(name).__mro__ if base.__module__.startswith('mmdet.'))
    if inspect.isabstract(base):
        raise UserError(f'{name} has no plain twin in mmdet')
    return base.__name__


def load_model_config(variant: Variant) -> Config:
    """Return the recipe of a variant without pretrained weights, which change no time and no memory."""
    cfg = load_recipe(variant.config)
    cfg.model.backbone.init_cfg = None
    cfg.model.data_preprocessor.pop('batch_augments', None)  # they would change the size
    if variant.plain:
        for part in (cfg.model, cfg.model.bbox_head, cfg.model.data_preprocessor):
            part.type = plain_class(part.type)
        cfg.model.pop('compile', None)
        cfg.model.data_preprocessor.pop('non_blocking', None)
        cfg.optim_wrapper.optimizer.pop('fused', None)
    elif variant.compile:
        cfg.model.compile = dict() if variant.compile is True else dict(mode=variant.compile)
    return cfg


def build_model(cfg: Config, dropout: bool) -> nn.Module:
    """Build a model with the weights of seed 0, which are equal for a fast model and its plain twin."""
    torch.manual_seed(0)
    MMLogger.get_current_instance().setLevel('WARNING')
    model = MODELS.build(copy.deepcopy(cfg.model))
    model.init_weights()
    if not dropout:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            elif isinstance(module, nn.MultiheadAttention):
                module.dropout = 0.0
    return model


def make_step(variant: Variant) -> Callable[[], None]:
    """Return the step to measure, ready to be called."""
    if variant.task == 'deformable':
        kernel = 'mmcv' if variant.plain else variant.sampling.kernel
        return make_sampling_step(
            replace(variant.sampling, kernel=kernel), variant.batch, variant.size,
            torch.bfloat16 if variant.amp else torch.float32)
    cfg = load_model_config(variant)
    model = build_model(cfg, variant.dropout).to(device())
    data = make_batch(variant.batch, variant.size, variant.boxes, variant.padded)
    if variant.checkpointing:
        turn_on_activation_checkpointing(
            model, [f'{name}.layers.{index}' for name in ('backbone', 'encoder')
                    for index in range(len(model.get_submodule(f'{name}.layers')))])

    if variant.task == 'train':
        model.train()
        optim_wrapper = build_optim_wrapper(model, copy.deepcopy(cfg.optim_wrapper))

        def step() -> None:
            model.train_step(data, optim_wrapper)
    elif variant.task == 'infer':
        model.eval()
        step = torch.inference_mode()(lambda: model.test_step(data))
    else:
        # Matching, targets and losses for given outputs, and the gradients of these outputs.
        samples = model.data_preprocessor(data, training=True)['data_samples']
        hidden_states = torch.randn(
            cfg.model.decoder.num_layers, variant.batch, cfg.model.num_queries, cfg.model.bbox_head.embed_dims,
            generator=torch.Generator().manual_seed(0)).to(device())
        outputs = [output.detach().requires_grad_() for output in model.bbox_head(hidden_states)]
        targets = [sample.gt_instances for sample in samples], [sample.metainfo for sample in samples]

        def step() -> None:
            losses = model.bbox_head.loss_by_feat(*outputs, *targets)
            torch.autograd.grad(sum(losses.values()), outputs)

    def autocast_step() -> None:
        with torch.autocast(device().type, torch.bfloat16, enabled=variant.amp):
            step()
    return autocast_step
