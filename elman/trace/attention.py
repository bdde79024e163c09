"""Attention as what it is made of, while a step is traced.

PyTorch computes `scaled_dot_product_attention` by kernels of which a graph shows nothing, some of them with a name that
says "random" and without second derivatives. Inside `PlainAttention` it is two products and a softmax.
"""

from __future__ import annotations

import math
import types
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

Tensor = torch.Tensor


class PlainAttention(TorchFunctionMode):
    """Inside, scaled dot product attention is made of products and a softmax, also inside of multi-head attention."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _OURS.get(func, func)(*args, **(kwargs or {}))


def attend(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """softmax(q kᵀ / √d) v, as `torch.nn.functional.scaled_dot_product_attention` defines it: [.., L, d], [.., S, d].

    A row whose places are all hidden attends to nothing: zeros.
    """
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    score = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    hides = attn_mask is not None
    if is_causal:
        seen = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
        score = torch.where(seen, score, -math.inf)
    if attn_mask is not None:
        hidden = attn_mask.dtype == torch.bool
        score = torch.where(attn_mask, score, -math.inf) if hidden else score + attn_mask
    weight = torch.softmax(score, -1)
    if hides:
        weight = torch.where((score == -math.inf).all(-1, keepdim=True), 0.0, weight)
    return F.dropout(weight, dropout_p) @ value if dropout_p else weight @ value


def _with_ours(function: types.FunctionType) -> types.FunctionType:
    """The same function of torch, computing with `attend`."""
    known = {
        **function.__globals__,
        "scaled_dot_product_attention": attend,
        "has_torch_function": lambda tensors: False,
    }
    made = types.FunctionType(function.__code__, known, function.__name__, function.__defaults__)
    made.__kwdefaults__ = function.__kwdefaults__
    return made


_OURS: dict[Any, Any] = {
    F.scaled_dot_product_attention: attend,
    F.multi_head_attention_forward: _with_ours(F.multi_head_attention_forward),  # type: ignore[arg-type]
}
