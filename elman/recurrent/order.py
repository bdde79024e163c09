"""Which dimension is time: calls that are batch first are turned round at the door, all behind it is time-major."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

from elman.errors import AmbiguityWarning, InputError, InputTypeError

Tensor = torch.Tensor


def turned(value: Any) -> Any:
    """`[B, T, …]` <-> `[T, B, …]`, every tensor of a structure; what has no two dimensions stays, to be refused."""
    if isinstance(value, (Tensor, np.ndarray)):
        return value.swapaxes(0, 1) if value.ndim > 1 else value
    return value if value is None else pytree.tree_map_only((Tensor, np.ndarray), turned, value)


def run_batch_first(run: Callable[..., tuple[Any, Any]], x: Any, state: Any, **more: Any) -> tuple[Any, Any]:
    """`run`, a time-major call, on what is batch first: x, mask, reset, teacher and its weight; outputs as x."""
    if isinstance(x, PackedSequence):  # it has an order of its own
        return run(x, state, **more)
    for name in ("mask", "reset", "teacher", "teacher_weight"):
        if more.get(name) is not None:
            more[name] = turned(more[name])
    try:
        outputs, final = run(turned(x), state, **more)
    except (InputError, InputTypeError) as error:
        error.where = (
            f"{error.where} (with batch_first=True, x, mask, reset and teacher are [B, T, …]; "
            "their shapes are told here as [T, B, …])"
        )
        raise
    return turned(outputs), final


def warn_if_unclear(layer: Any, x: Any) -> None:
    """Say once, of a layer that has not been told, that T = B hides which of them comes first."""
    if layer.order_is_said or isinstance(x, PackedSequence):
        return
    if isinstance(x, Tensor):
        shape = x.shape
    else:
        shape = next((leaf.shape for leaf in pytree.tree_leaves(x) if isinstance(leaf, Tensor)), ())
    if len(shape) < 2 or shape[0] != shape[1] or shape[0] < 2:
        return
    layer.order_is_said = True
    warnings.warn(
        f"x is [{shape[0]}, {shape[1]}, …]: as many steps as sequences, so that a batch-first x looks like a "
        f"time-major one. It is read as [T, B, …]. Construct {type(layer).__name__} with batch_first=True or "
        "batch_first=False, and nothing is said",
        AmbiguityWarning,
        stacklevel=6,  # behind `_time_major`, `forward` and torch.nn.Module's own calls: the user's line
    )
