"""NumPy arrays for tensors, on the way in and on the way out of a stream."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from elman.errors import InputError, InputTypeError

Tensor = torch.Tensor


def as_tensor(leaf: Any) -> Any:
    """The same as a tensor, if it is an array. Raises InputTypeError for one of numbers that PyTorch does not have, and
    where some are masked."""
    if not isinstance(leaf, np.ndarray):
        return leaf
    if np.ma.is_masked(leaf):
        raise InputTypeError(
            what="some numbers of an array are masked, and a tensor has no mask", where="an array",
            got=f"{np.ma.count_masked(leaf):,} of {leaf.size:,} masked", mend="fill them in: array.filled(0)",
        )  # fmt: skip
    try:
        return torch.from_numpy(np.array(leaf))
    except (TypeError, ValueError) as error:
        raise InputTypeError(
            what="PyTorch has no such numbers", where="an array", got=f"dtype {leaf.dtype.str}",
            mend="array.astype(np.float32), for example",
        ) from error  # fmt: skip


def as_tensors(value: Any) -> tuple[bool, Any]:
    """(whether it holds arrays, the same with tensors for them)."""
    if isinstance(value, Tensor) or value is None:
        return False, value
    arrays = any(isinstance(leaf, np.ndarray) for leaf in pytree.tree_leaves(value))
    return arrays, pytree.tree_map(as_tensor, value) if arrays else value


def as_arrays(value: Any) -> Any:
    """The same with arrays for tensors."""
    return pytree.tree_map(lambda leaf: leaf.numpy() if isinstance(leaf, Tensor) else leaf, value)


def into(out: Any, output: Any) -> Any:
    """`out`, tensors or arrays, with an output written into it. Raises InputError where there is no room for it."""
    mine, given = pytree.tree_leaves(output), pytree.tree_leaves(out)
    for value, place in zip(mine, given, strict=False):
        shape = tuple(getattr(place, "shape", ()))
        like = _room(place)
        if not isinstance(like, Tensor) or shape != tuple(value.shape) or like.dtype != value.dtype:
            got = f"{list(shape)} {like.dtype}" if isinstance(like, Tensor) else type(place).__name__
            raise InputError(
                what="there is no room for the output", where="out=", got=got,
                expected=f"{list(value.shape)} {value.dtype}",
            )  # fmt: skip
    if len(mine) != len(given):
        raise InputError(
            what="out= is not built like the output", where="out=", got=len(given), expected=len(mine)
        )
    for value, place in zip(mine, given, strict=True):
        _room(place).copy_(value)
    return out


def _room(place: Any) -> Any:
    """The memory of an array as a tensor. Raises InputError for what cannot be written to."""
    if not isinstance(place, np.ndarray):
        return place
    if not place.flags.writeable:
        raise InputError(what="the array is read-only", where="out=", mend="give one that can be written to")
    try:
        return torch.from_numpy(place)
    except (TypeError, ValueError) as error:  # strides below 0, bytes in the other order
        raise InputError(
            what="PyTorch has no tensor with such memory",
            where="out=",
            mend="give an array as np.empty makes it",
        ) from error
