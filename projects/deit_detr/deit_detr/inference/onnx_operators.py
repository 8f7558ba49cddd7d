"""What the exported graph computes with other operators than PyTorch does."""

import torch
import torch.nn.functional as F
from mmdet.models.layers.transformer.utils import ConditionalAttention
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

#: What is added to the scores of masked pairs: zero after softmax, and inside float16.
MASKED = -1e4
#: Largest difference of scores of tokens, in logits, whose order is left to the runtime.
TIE = 1e-3


class GraphOperators(TorchFunctionMode):
    """Replace functions while a graph is traced.

    Attention becomes one operator, which never holds the matrix of all pairs of tokens. Bicubic resizing of the
    position embedding becomes two small matrix products.

    Args:
        fused (bool): Whether to replace attention.
    """

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused

    def __torch_function__(self, func, types, args=(), kwargs=None):  # noqa: D105
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            q, k, v, takes_part = (*args, None)[:4]
            q, k = q.to(v.dtype), k.to(v.dtype)  # under autocast a sum with float32 is float32
            # numbers: a boolean mask adds IsNaN and Where over all pairs of tokens
            mask = None if takes_part is None else torch.where(takes_part, 0.0, MASKED).to(v.dtype)
            if not self.fused:
                return func(q, k, v, mask)
            if mask is not None:  # for each pair of tokens of a window
                mask = mask + torch.zeros_like(mask).transpose(2, 3)
            return _MultiHeadAttention.apply(q, k, v, mask, int(q.shape[1]))
        if func in (F.layer_norm, F.batch_norm):  # ONNX and OpenVINO need the type of their weights
            return func(args[0].float(), *args[1:], **kwargs)
        if func is F.interpolate and kwargs.get('mode') == 'bicubic':
            return resize_bicubic(args[0], kwargs['size'])
        return func(*args, **kwargs)


class _MultiHeadAttention(torch.autograd.Function):
    """``MultiHeadAttention`` of the domain com.microsoft, which ONNX Runtime, its web build and OpenVINO support."""

    @staticmethod
    def forward(ctx, q, k, v, mask, heads):
        return F.scaled_dot_product_attention(q, k, v, mask)

    @staticmethod
    def symbolic(g, q, k, v, mask, heads: int):
        def reshape(x, *shape: int):
            return g.op('Reshape', x, g.op('Constant', value_t=torch.tensor(shape)))

        def swap(x):
            return g.op('Transpose', x, perm_i=[0, 2, 1, 3])

        inputs = [reshape(swap(x), 0, 0, -1) for x in (q, k, v)]
        if mask is not None:
            none = g.op('prim::Constant')
            none.setType(torch._C.OptionalType.ofTensor())
            inputs += [none, none, mask]  # neither a bias nor a mask of keys
        out = g.op('com.microsoft::MultiHeadAttention', *inputs, num_heads_i=heads)
        out.setType(v.type().with_sizes([None] * 3))  # PyTorch does not know it, and ONNX's checker wants it
        return swap(reshape(out, 0, 0, heads, -1))


class Selection(TorchFunctionMode):
    """Record which tokens a two-stage model selects as queries, or make it select given tokens of equal scores.

    The order of scores that differ in the last bits is arbitrary, and DINO and LW-DETR have a learned query for each
    rank: two runtimes may return different detections and both be right.

    In an exported graph, ``short``, bool ``(batch, 1)``, tells which images have fewer tokens than queries. Runtimes
    differ in what TopK does then, so there it selects the last token several times.

    Args:
        replay (Tensor, optional): Indices of tokens to return from the first ``topk``, in this order. They are used
            if no score changes by more than :data:`TIE`.
    """

    def __init__(self, replay: Tensor | None = None) -> None:
        super().__init__()
        self.replay = replay
        self.noted, self.short = [], None

    def __torch_function__(self, func, types, args=(), kwargs=None):  # noqa: D105
        is_topk = func in (torch.topk, Tensor.topk)
        if is_topk and torch.onnx.is_in_onnx_export():
            return self._select_in_graph(*args[:2], **(kwargs or {}))
        result = func(*args, **(kwargs or {}))
        if not is_topk:
            return result
        self.noted.append(result.indices)
        if self.replay is not None and len(self.noted) == 1:
            values = args[0].gather(-1, self.replay)
            if (values - result.values).abs().max() <= TIE:
                return torch.return_types.topk((values, self.replay))
        return result

    def _select_in_graph(self, scores: Tensor, k: int, dim: int = -1) -> torch.return_types.topk:
        lowest = torch.finfo(scores.dtype).min
        values, index = F.pad(scores, (0, k), value=lowest).topk(k)
        self.short = values[..., -1].reshape(-1, 1) <= lowest  # LW-DETR's have a dimension of groups before
        self.noted.append(index.clamp(max=scores.shape[-1] - 1))
        return torch.return_types.topk((values, self.noted[-1]))


def resize_bicubic(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize maps as ``F.interpolate(x, size, mode='bicubic')`` does.

    Args:
        x (Tensor): ``(batch, channels, rows, columns)``.
        size (tuple[int, int]): New rows and columns.

    Returns:
        Tensor: ``(batch, channels, *size)``.
    """
    by_rows, by_columns = (_bicubic_weights(old, new) for old, new in zip(x.shape[2:], size, strict=True))
    return by_rows @ x @ by_columns.T


def _bicubic_weights(old: int, new: int) -> Tensor:
    """Return the weights of the old positions in each new one, ``(new, old)``; those beyond a border are its own."""
    at = (torch.arange(new) + 0.5) * (old / new) - 0.5
    apart = (at[:, None] - torch.arange(-2, int(old) + 2)).abs()
    near = (1.25 * apart - 2.25) * apart ** 2 + 1
    far = ((-0.75 * apart + 3.75) * apart - 6) * apart + 3
    weights = torch.where(apart <= 1, near, torch.where(apart < 2, far, torch.zeros_like(apart)))
    first, inside, last = weights.split([3, int(old) - 2, 3], 1)
    return torch.cat([first.sum(1, keepdim=True), inside, last.sum(1, keepdim=True)], 1)


def use_sdpa(model: nn.Module) -> None:
    """Let mmdet's attention of Conditional and DAB-DETR call PyTorch's, in evaluation without masks."""
    for module in model.modules():
        if isinstance(module, ConditionalAttention):
            module.forward_attn = lambda query, key, value, attn_mask, key_padding_mask, module=module: (
                _conditional_attention(module, query, key, value), None)


def _conditional_attention(module: ConditionalAttention, *tokens: Tensor) -> Tensor:
    q, k, v = (x.unflatten(-1, (module.num_heads, -1)).transpose(1, 2) for x in tokens)
    return module.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
