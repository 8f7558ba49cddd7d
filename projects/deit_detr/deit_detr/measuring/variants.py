"""What the benchmark measures: steps of a recipe's model, and of its twin made of plain mmdet classes."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch
from mmcv_ops.deformable_attention import choose_kernel
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.runner import turn_on_activation_checkpointing
from torch import nn

from deit_detr.datasets.noise import make_batch
from deit_detr.machine import device


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
        amp: Whether to autocast to bfloat16.
        compile: Whether to use torch.compile.
        checkpointing: Whether to recompute the activations of backbone and encoder layers.
        dropout: Whether to keep the dropout of the recipe; otherwise it is off.
        memory_limit: Most bytes that the process may take, where the system can enforce it.
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
    compile: bool = False
    checkpointing: bool = False
    dropout: bool = False
    memory_limit: float | None = None


def load_recipe(path: str | Path) -> Config:
    """Read a recipe and enter its default scope, so that its parts can be built."""
    cfg = Config.fromfile(path)
    init_default_scope(cfg.default_scope)
    return cfg


def load_model_config(variant: Variant) -> Config:
    """Return the recipe of a variant without pretrained weights, which change no time and no memory."""
    cfg = load_recipe(variant.config)
    cfg.model.backbone.init_cfg = None
    cfg.model.data_preprocessor.pop('batch_augments', None)  # they would change the size
    if variant.plain:
        cfg.model.type, cfg.model.bbox_head.type = 'DETR', 'DETRHead'
        cfg.model.pop('compile', None)
        cfg.model.data_preprocessor.pop('non_blocking', None)
        cfg.optim_wrapper.optimizer.pop('fused', None)
    elif variant.compile:
        cfg.model.compile = dict()
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
        return make_sampling_step(variant)
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


def make_sampling_step(variant: Variant) -> Callable[[], None]:
    """Return a step of deformable attention with its gradients, as in a layer of DINO's encoder.

    It has 8 heads, 4 points and strides 8, 16 and 32. The plain variant is mmcv's PyTorch function, the other one the
    kernel chosen for this device.
    """
    shapes = torch.tensor([[-(-side // stride) for side in variant.size] for stride in (8, 16, 32)])
    starts = torch.cat([shapes.new_zeros(1), shapes.prod(1).cumsum(0)])
    tokens = int(starts[-1])
    generator = torch.Generator().manual_seed(0)
    size = (variant.batch, tokens, 8, len(shapes), 4)
    centres = torch.cat([
        torch.cartesian_prod(*((torch.arange(side) + 0.5) / side for side in shape)).flip(-1) for shape in shapes])
    offsets = 3 * torch.randn(*size, 2, generator=generator) / shapes.flip(-1)[:, None]
    inputs = [
        torch.randn(variant.batch, tokens, 8, 32, generator=generator), centres[:, None, None, None] + offsets,
        torch.randn(*size, generator=generator).flatten(3).softmax(-1).view(size)]
    value, locations, weights = (x.to(device()).requires_grad_() for x in inputs)
    shapes, starts = shapes.to(device()), starts[:-1].to(device())
    upstream = torch.randn(variant.batch, tokens, 256, generator=generator).to(device())
    kernel = choose_kernel(device().type)

    def step() -> None:
        if variant.plain:
            out = multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)
        else:
            out = kernel(value, shapes, starts, locations, weights, 64)
        torch.autograd.grad(out, (value, locations, weights), upstream)
    return step
