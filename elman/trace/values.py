"""What comes out of the operations that cells are made of: shape, dtype and strides, where these go without saying.

Fake tensors find it out by PyTorch's own rules, for any operands: by broadcasting, promotion and the order of strides,
in arithmetic with the symbolic batch; where an operation has no rule they run what it is made of. That is most of a
trace. Where all operands have one shape, one dtype and their elements row after row, the result is one more like them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

aten = torch.ops.aten
Tensor = torch.Tensor

# Element by element; what comes out is of the dtype of what goes in.
_ALIKE = (
    aten.add.Tensor, aten.sub.Tensor, aten.div.Tensor, aten.rsub.Scalar, aten.neg.default,
    aten.tanh.default, aten.sigmoid.default, aten.relu.default, aten.exp.default,
    aten.tanh_backward.default, aten.sigmoid_backward.default, aten.threshold_backward.default,
)  # fmt: skip
# Comparisons, of which bools come out.
_COMPARES = tuple(
    getattr(getattr(aten, name), overload)
    for name in ("gt", "lt", "ge", "le", "eq", "ne")
    for overload in ("Tensor", "Scalar")
)
_DTYPES = (torch.float32, torch.float64)


def known(func: Any, args: Any, kwargs: Any) -> Any:
    """A value like what comes out of an operation on fake tensors; None where PyTorch is to be asked."""
    rule = _RULES.get(func)
    return None if rule is None or kwargs else rule(*args)


def _alike(*operands: Any) -> Tensor | None:
    """What operands of one shape give, and numbers in the code."""
    tensors = [value for value in operands if isinstance(value, Tensor)]
    if not _of_one_kind(*tensors) or not all(map(_in_rows, tensors)):
        return None
    like = tensors[0]
    if not all(isinstance(value, Tensor) or type(value) in (int, float) for value in operands):
        return None
    return _new(like.shape, like) if all(_same(value.shape, like.shape) for value in tensors[1:]) else None


def _compared(*operands: Any) -> Tensor | None:
    like = _alike(*operands)
    return None if like is None else _new(like.shape, like, torch.bool)


def _product(a: Any, b: Any) -> Tensor | None:
    return _masked(a, b, b) if isinstance(b, Tensor) and b.dtype == torch.bool else _alike(a, b)


def _masked(value: Any, mask: Any, *_: Any) -> Tensor | None:
    like = _alike(value)
    if like is None or not isinstance(mask, FakeTensor) or mask.dtype != torch.bool or not _in_rows(mask):
        return None
    return like if mask.fake_device == value.fake_device and _same(mask.shape, value.shape) else None


def _where(condition: Any, a: Any, b: Any) -> Tensor | None:
    return None if _masked(a, condition) is None else _alike(a, b)


def _addmm(c: Tensor, a: Tensor, b: Tensor) -> Tensor | None:
    """c + a b for c [N] or [M, N], a [M, K], b [K, N]."""
    if not _of_one_kind(c, a, b) or not a.dim() == b.dim() == 2 or not _same(a.shape[1:], b.shape[:1]):
        return None
    size = (a.shape[0], b.shape[1])
    return _new(size, a) if _same(c.shape, size) or _same(c.shape, size[1:]) else None


def _layer_norm(x: Tensor, shape: Any, *more: Any) -> Any:
    weight, bias, _ = more
    keep = x.dim() - len(shape)
    if not _normed(x, shape, weight, bias):
        return None
    scales = (*x.shape[:keep], *[1] * len(shape))
    return _new(x.shape, x), _new(scales, x), _new(scales, x)


def _layer_norm_backward(g: Tensor, x: Tensor, shape: Any, mean: Tensor, scale: Tensor, *more: Any) -> Any:
    weight, bias, wanted = more
    if not _normed(x, shape, weight, bias) or _alike(g, x) is None:
        return None
    likes = (x, weight, bias)
    if any(wants and like is None for wants, like in zip(wanted, likes, strict=True)):
        return None
    return tuple(_new(like.shape, x) if wants else None for wants, like in zip(wanted, likes, strict=True))


def _normed(x: Tensor, shape: Any, weight: Tensor | None, bias: Tensor | None) -> bool:
    """Whether x, and parameters where there are any, are what a layer norm over `shape` takes."""
    parameters = [p for p in (weight, bias) if p is not None]
    if not _of_one_kind(x, *parameters) or not _in_rows(x) or not 0 < len(shape) < x.dim():
        return False
    return all(
        _same(size, shape) for size in (x.shape[x.dim() - len(shape) :], *(p.shape for p in parameters))
    )


def _dropout(x: Tensor, p: float, train: bool | None) -> Any:
    like = _alike(x) if train and 0 < p < 1 else None
    return None if like is None else (like, _new(x.shape, x, torch.bool))


_RULES: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys(_ALIKE, _alike),
    **dict.fromkeys(_COMPARES, _compared),
    aten.mul.Tensor: _product,
    aten.native_dropout_backward.default: _masked,
    aten.where.self: _where,
    aten.addmm.default: _addmm,
    aten.native_layer_norm.default: _layer_norm,
    aten.native_layer_norm_backward.default: _layer_norm_backward,
    aten.native_dropout.default: _dropout,
}


def _new(size: Any, like: Any, dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty(size, dtype=dtype or like.dtype, device=like.fake_device)


def _of_one_kind(*values: Any) -> bool:
    """Whether all are fake tensors, of one dtype and device."""
    return all(
        type(value) is FakeTensor
        and value.dtype in _DTYPES
        and (value.dtype, value.fake_device) == (values[0].dtype, values[0].fake_device)
        for value in values
    )


def _same(a: Any, b: Any) -> bool:
    """Whether two shapes are one, without a decision about the batch."""
    return len(a) == len(b) and all(
        m.node.expr == n.node.expr
        if isinstance(m, torch.SymInt) and isinstance(n, torch.SymInt)
        else type(m) is type(n) is int and m == n
        for m, n in zip(a, b, strict=True)
    )


def _in_rows(value: Any) -> bool:
    """Whether a value's elements lie one after the other in the order of its dimensions, perhaps with gaps: then what
    is made of it element by element has no gaps, and the same order."""
    if type(value) is not FakeTensor or value.dim() == 0:
        return False
    strides = value.stride()
    if not all(type(step) is int and step > 0 for step in strides) or value.layout != torch.strided:
        return False
    return all(a > b for a, b in zip(strides, strides[1:], strict=False)) and all(
        type(size) is not int or size > 1 for size in value.shape
    )
