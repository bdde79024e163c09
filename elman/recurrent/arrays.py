"""NumPy arrays for tensors, on the way in and on the way out of a stream."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from elman.errors import InputError

Tensor = torch.Tensor


def as_tensor(leaf: Any) -> Any:
    """The same as a tensor, if it is an array."""
    return torch.from_numpy(np.array(leaf)) if isinstance(leaf, np.ndarray) else leaf


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
        like = torch.from_numpy(place) if isinstance(place, np.ndarray) else place
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
        (torch.from_numpy(place) if isinstance(place, np.ndarray) else place).copy_(value)
    return out
