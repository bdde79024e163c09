"""Writes of one value into many places, as a choice by a mask.

PyTorch's own gradient of such a value asks how many places there are, which is in the numbers of an index or a mask;
and nothing says of a write into the places of a mask that rows keep to themselves.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._subclasses.fake_tensor import DynamicOutputShapeException

Tensor = torch.Tensor


def index_fill(input: Tensor, dim: int, index: Tensor, value: Any) -> Tensor:
    """`torch.index_fill`, `[.., n, ..]`: the value where the index points."""
    if not _is_one(value, input) or not isinstance(dim, int):
        return torch.index_fill(input, dim, index, value)
    room = [1] * max(input.dim(), 1)
    room[dim] = input.shape[dim] if input.dim() else 1
    filled = torch.zeros(room, dtype=torch.bool, device=input.device).index_fill(dim, index, True)
    return torch.where(filled, value, input)


def index_fill_(input: Tensor, dim: int, index: Tensor, value: Any) -> Tensor:
    """The same in place."""
    if not _is_one(value, input):
        return input.index_fill_(dim, index, value)
    return input.copy_(index_fill(input, dim, index, value))


def set_item(input: Tensor, key: Any, value: Any) -> None:
    """`input[key] = value`; by a mask where the key is one, behind slices of everything."""
    mask = _mask_of(input, key) if input.is_floating_point() else None
    if mask is None:
        input[key] = value
    elif isinstance(value, (bool, int, float)) or _is_one(value, input):
        input.masked_fill_(mask, value)
    elif _is_one_each(value, mask, input):
        input.copy_(torch.where(mask, value, input))
    elif isinstance(value, Tensor) and value.requires_grad and torch.is_grad_enabled():
        # Its gradient has as many numbers as there are places; refused here, while the user's line is known.
        raise DynamicOutputShapeException(torch.ops.aten.nonzero.default)
    else:
        input[key] = value


def _is_one(value: Any, input: Tensor) -> bool:
    """Whether it is a tensor of one number, of which PyTorch's operation has nothing to say."""
    return isinstance(value, Tensor) and value.dim() == 0 and value.dtype == input.dtype


def _is_one_each(value: Any, mask: Tensor, input: Tensor) -> bool:
    """Whether it has one number for each row of a mask of the last dimension, `[..., 1]`."""
    if not isinstance(value, Tensor) or value.dtype != input.dtype or not 1 <= value.dim() <= input.dim():
        return False
    return mask.dim() == 1 and isinstance(value.shape[-1], int) and value.shape[-1] == 1


def _mask_of(input: Tensor, key: Any) -> Tensor | None:
    """The mask that a key consists of, with the dimensions behind it."""
    parts = key if isinstance(key, tuple) else (key,)
    at = next((i for i, part in enumerate(parts) if isinstance(part, Tensor)), None)
    if at is None or parts[at].dtype is not torch.bool or not parts[at].dim():
        return None
    others = [*parts[:at], *parts[at + 1 :]]
    if not all(part is Ellipsis or (isinstance(part, slice) and part == slice(None)) for part in others):
        return None
    mask, behind = parts[at], len(parts) - 1 - at
    if not any(part is Ellipsis for part in parts[:at]):
        behind = input.dim() - mask.dim() - at
    return mask.reshape(*mask.shape, *[1] * behind)
