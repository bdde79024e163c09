"""Several layers under one budget, each with its share: what they hand on to one another is there as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

from elman.errors import InputError
from elman.plan.work import told
from elman.recurrent.budget import granted
from elman.segments.segment import Memory, Segments

Tensor = torch.Tensor


def shares(
    layers: Sequence[Any],
    memory: Memory,
    x: Any,
    rows: int,
    contexts: Sequence[dict[str, Any]],
    chained: bool,
) -> dict[Any, Memory]:
    """What each of several layers has of a budget, beside what they hand on to one another as a whole.

    x: a first step. rows: of all steps. chained: whether each reads what the one before it makes; else their outputs
    are there beside the one that all of them become. Raises InputError where that leaves nothing of the budget.
    """
    if memory is None or isinstance(memory, Segments):
        return dict.fromkeys(layers, memory)
    between, given = 0, _one(x)
    with torch.no_grad(), granted(dict.fromkeys(layers)):
        for layer, context in zip(layers[: len(layers) - chained], contexts, strict=False):
            outputs, _ = layer(given, **{name: row_of(value) for name, value in context.items()})
            between += _bytes(outputs) * rows
            given = outputs if chained else given
    left = (memory - between) // len(layers)
    if left <= 0:
        raise InputError(
            what="the budget is too small for what these layers hand on to one another", where="memory=",
            got=told(memory), expected=f"more than {told(between)}",
            mend="a stack whose layers all read forward hands nothing on as a whole",
        )  # fmt: skip
    return dict.fromkeys(layers, left)


def first_of(x: Any) -> Any | None:
    """The first step of users' sequences, `[B, …]`; None where there is none."""
    if isinstance(x, PackedSequence):
        return x.data[: int(x.batch_sizes[0])]
    leaves = [leaf for leaf in pytree.tree_leaves(x) if isinstance(leaf, Tensor)]
    if not leaves or any(leaf.dim() < 2 or not len(leaf) for leaf in leaves):
        return None
    return pytree.tree_map(lambda leaf: leaf[0] if isinstance(leaf, Tensor) else leaf, x)


def batch_in(x: Any) -> int:
    """B of users' sequences."""
    if isinstance(x, PackedSequence):
        return int(x.batch_sizes[0])
    return next(leaf for leaf in pytree.tree_leaves(x) if isinstance(leaf, Tensor)).shape[1]


def rows_of(x: Any) -> int:
    """Rows of all steps of users' sequences."""
    if isinstance(x, PackedSequence):
        return len(x.data)
    leaf = next(leaf for leaf in pytree.tree_leaves(x) if isinstance(leaf, Tensor))
    return leaf.shape[0] * leaf.shape[1]


def _one(x: Any) -> Any:
    """A sequence of one step of one row."""
    return pytree.tree_map(lambda leaf: leaf[:1].unsqueeze(0) if isinstance(leaf, Tensor) else leaf, x)


def row_of(value: Any) -> Any:
    """The first row of every tensor in it."""
    return pytree.tree_map(lambda leaf: leaf[:1] if isinstance(leaf, Tensor) else leaf, value)


def _bytes(outputs: Any) -> int:
    """Of a row at a step, of the outputs of one."""
    leaves = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves)
