"""Attention modules that replace mmcv's and never hold the whole attention matrix."""

import math

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks.transformer import MultiheadAttention
from mmcv.ops import MultiScaleDeformableAttention
from torch import Tensor, nn

from deit_detr.models.deformable_attention import PortableDeformableAttention


class FusedAttention(nn.Module):
    """mmcv's ``MultiheadAttention`` through :func:`torch.nn.functional.scaled_dot_product_attention`.

    mmcv asks ``torch.nn.MultiheadAttention`` for the attention weights and discards them. At 3350 tokens and 8 heads
    they take 0.36 GB a layer, and PyTorch cannot use a fused kernel. This module takes over the parameters of a plain
    one, so state-dict keys do not change.

    CUDA's fused kernels support dropout on the attention weights. The CPU's kernel does not: training with dropout
    uses :func:`attention_with_dropout` there.

    Args:
        plain (MultiheadAttention): The module to replace. Its submodules are shared, not copied.

    Raises:
        ValueError: If the plain module is not batch-first, or uses kdim, vdim, add_bias_kv or add_zero_attn.
    """

    def __init__(self, plain: MultiheadAttention) -> None:
        super().__init__()
        if not plain.batch_first:
            raise ValueError('FusedAttention needs batch_first=True')
        if plain.attn.in_proj_weight is None or plain.attn.bias_k is not None or plain.attn.add_zero_attn:
            raise ValueError('FusedAttention does not support kdim, vdim, add_bias_kv and add_zero_attn')
        self.attn = plain.attn
        self.proj_drop = plain.proj_drop
        self.dropout_layer = plain.dropout_layer

    def forward(
        self, query: Tensor, key: Tensor | None = None, value: Tensor | None = None, identity: Tensor | None = None,
        query_pos: Tensor | None = None, key_pos: Tensor | None = None, attn_mask: Tensor | None = None,
        key_padding_mask: Tensor | None = None, **kwargs,
    ) -> Tensor:
        """Attend as mmcv's module does, and add ``identity``.

        Args:
            query (Tensor): ``(batch, queries, channels)``.
            key (Tensor, optional): ``(batch, keys, channels)``. Default: ``query``.
            value (Tensor, optional): ``(batch, keys, channels)``. Default: ``key``.
            identity (Tensor, optional): ``(batch, queries, channels)``. Default: ``query``.
            query_pos (Tensor, optional): Added to ``query``.
            key_pos (Tensor, optional): Added to ``key``. Default: ``query_pos`` if it has the shape of ``key``.
            attn_mask (Tensor, optional): bool, ``(queries, keys)``; True where a query must not attend to a key, as
                between the denoising groups of DINO. Each query needs at least one key.
            key_padding_mask (Tensor, optional): bool, ``(batch, keys)``; True where a key is padding. Pass ``None``
                when nothing is padded: the faster kernels take no mask.
            **kwargs: Ignored, as in mmcv: mmdet passes a decoder layer's arguments to both of its attentions.

        Returns:
            Tensor: ``(batch, queries, channels)``.

        Raises:
            ValueError: If ``attn_mask`` has another shape or type.
        """
        if attn_mask is not None and (attn_mask.dtype != torch.bool or attn_mask.dim() != 2):
            raise ValueError('FusedAttention needs a boolean attn_mask of (queries, keys)')
        key = query if key is None else key
        value = key if value is None else value
        identity = query if identity is None else identity
        if key_pos is None and query_pos is not None and query_pos.shape == key.shape:
            key_pos = query_pos

        weight, bias = self.attn.in_proj_weight, self.attn.in_proj_bias
        width = self.attn.embed_dim
        is_self_attention = key is query and key_pos is query_pos
        query = query if query_pos is None else query + query_pos
        if is_self_attention:
            q, k = _project(query, weight, bias, 0, 2 * width).chunk(2, dim=-1)
        else:
            key = key if key_pos is None else key + key_pos
            q = _project(query, weight, bias, 0, width)
            k = _project(key, weight, bias, width, 2 * width)
        v = _project(value, weight, bias, 2 * width, 3 * width)

        q, k, v = (x.unflatten(-1, (self.attn.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
        takes_part = None if key_padding_mask is None else ~key_padding_mask[:, None, None]
        if attn_mask is not None:
            takes_part = ~attn_mask if takes_part is None else takes_part & ~attn_mask
        dropout = self.attn.dropout if self.training else 0.0
        if dropout and q.device.type == 'cpu':
            out = attention_with_dropout(q, k, v, takes_part, dropout)
        else:
            out = F.scaled_dot_product_attention(q, k, v, takes_part, dropout_p=dropout)
        out = self.attn.out_proj(out.transpose(1, 2).flatten(2))
        return identity + self.dropout_layer(self.proj_drop(out))


def _project(x: Tensor, weight: Tensor, bias: Tensor | None, start: int, stop: int) -> Tensor:
    return F.linear(x, weight[start:stop], None if bias is None else bias[start:stop])


def attention_with_dropout(
    q: Tensor, k: Tensor, v: Tensor, takes_part: Tensor | None, dropout: float, block: int = 128) -> Tensor:
    """Attend with dropout on the weights, on devices whose fused kernel has no dropout.

    Only one block of queries is in memory at a time, and the backward pass computes it again. One byte is kept for
    each weight: whether it was dropped.

    Args:
        q (Tensor): ``(batch, heads, queries, channels)``.
        k (Tensor): ``(batch, heads, keys, channels)``.
        v (Tensor): As ``k``.
        takes_part (Tensor, optional): bool, broadcast to ``(batch, heads, queries, keys)``; False where a query must
            not attend to a key.
        dropout (float): Probability of dropping a weight, in 0..1, rounded to 1 / 65536.
        block (int): Queries in a block.

    Returns:
        Tensor: ``(batch, heads, queries, channels)``.
    """
    keep = draw_kept((*q.shape[:3], k.shape[2]), dropout)
    hidden = None if takes_part is None else (~takes_part).expand(keep.shape)
    return _AttentionInBlocks.apply(q * q.shape[-1] ** -0.5, k, v / (1 - dropout), hidden, keep, block)


class _AttentionInBlocks(torch.autograd.Function):
    """``(softmax(q @ k.T) * keep) @ v``.

    Results are written into preallocated tensors: small allocations between the blocks' large temporaries would
    keep that memory from being reused.
    """

    @staticmethod
    def weights(q: Tensor, k: Tensor, hidden: Tensor | None) -> Tensor:
        scores = q @ k.mT
        if hidden is not None:
            scores.masked_fill_(hidden, -torch.inf)
        return scores.softmax(-1)

    @staticmethod
    def blocks(block: int, hidden: Tensor | None, *tensors: Tensor):
        parts = [x.split(block, dim=2) for x in tensors]
        hidden = [None] * len(parts[0]) if hidden is None else hidden.split(block, dim=2)
        return zip(hidden, *parts, strict=True)

    @staticmethod
    def forward(ctx, q, k, v, hidden, keep, block):
        ctx.save_for_backward(q, k, v, hidden, keep)
        ctx.block = block
        out = torch.empty_like(q)
        for hidden_i, q_i, keep_i, out_i in _AttentionInBlocks.blocks(block, hidden, q, keep, out):
            out_i.copy_(_AttentionInBlocks.weights(q_i, k, hidden_i).mul_(keep_i) @ v)
        return out

    @staticmethod
    def backward(ctx, grad):
        q, k, v, hidden, keep = ctx.saved_tensors
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for hidden_i, q_i, keep_i, grad_i, grad_q_i in _AttentionInBlocks.blocks(
                ctx.block, hidden, q, keep, grad, grad_q):
            weights = _AttentionInBlocks.weights(q_i, k, hidden_i)
            grad_scores = (grad_i @ v.mT).mul_(keep_i).mul_(weights)
            grad_scores.addcmul_(weights, grad_scores.sum(-1, keepdim=True), value=-1)
            grad_q_i.copy_(grad_scores @ k)
            grad_k += grad_scores.mT @ q_i
            grad_v += weights.mul_(keep_i).mT @ grad_i
        return grad_q, grad_k, grad_v, None, None, None


def draw_kept(shape: tuple[int, ...], dropout: float) -> Tensor:
    """Draw a dropout mask on the CPU: bool, False with probability ``dropout``.

    One 64-bit draw decides four weights; ``bernoulli_`` takes longer than the attention itself.
    """
    number = math.prod(shape)
    draws = torch.empty(-(-number // 4), dtype=torch.int64).random_(torch.iinfo(torch.int64).min, None)
    return (draws.view(torch.int16)[:number] >= round(65536 * dropout) - 32768).view(shape)


def replace_attention(module: nn.Module) -> None:
    """Replace mmcv's attention modules inside a module by this project's, which take over their parameters."""
    classes = {MultiheadAttention: FusedAttention, MultiScaleDeformableAttention: PortableDeformableAttention}
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child) in classes:
                setattr(parent, name, classes[type(child)](child))
