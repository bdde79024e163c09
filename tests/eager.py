"""What a sequence means, in plain PyTorch: a Python loop over the cell. Every later test compares with it.

It shares no code with elman, on purpose: what both got wrong in the same way, no test would find.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree

Tensor = torch.Tensor
Replay = Callable[[int], contextlib.AbstractContextManager[Any]]


def unroll(
    cell: torch.nn.Module,
    x: Any,
    state: Any,
    *,
    context: Any = None,
    steps: int | None = None,
    reverse: bool = False,
    teacher: Any = None,
    replay: Replay | None = None,
) -> tuple[Any, Any]:
    """Run a cell over a sequence, one step after the other.

        for t in range(T):                      # backward if reverse
            outputs[t], state = cell(x[t], state)

    x: tensors [T, B, …], nested as the cell wants them, or None (then `steps` is T). state: tensors [B, …], nested.
    context: tensors [B, …] handed to every step as third argument. teacher: the output's structure, [T, B, …]; the step
    that runs after step t finds teacher[t] where it would have found the output of step t.
    replay: t -> a context manager in which step t runs, to feed it the random numbers of somebody else.

    Returns (outputs [T, B, …] in the structure of the cell's output, or None if it is None; final state [B, …]).
    """
    tensors = [leaf for leaf in pytree.tree_leaves(x) if isinstance(leaf, Tensor)]
    assert bool(tensors) != (steps is not None), "steps= is for cells without x, and needed there"
    length = len(tensors[0]) if tensors else int(steps or 0)
    if length == 0:
        return _nothing(cell, x, state, context), state

    outputs: list[Any] = [None] * length
    order = list(range(length))[:: -1 if reverse else 1]
    for t in order:
        with replay(t) if replay is not None else contextlib.nullcontext():
            outputs[t], state = step(cell, at(x, t), state, context)
        if teacher is not None and t != order[-1]:
            state = forced(state, outputs[t], at(teacher, t))
    return stack(outputs), state


def step(cell: torch.nn.Module, x: Any, state: Any, context: Any = None) -> tuple[Any, Any]:
    """One step: (output, new state), whichever of the two forms of return the cell chose."""
    returned = cell(x, state) if context is None else cell(x, state, context)
    if alike(returned, state):
        return next(leaf for leaf in pytree.tree_leaves(returned) if isinstance(leaf, Tensor)), returned
    if not (isinstance(returned, (tuple, list)) and len(returned) == 2 and alike(returned[1], state)):
        raise TypeError(f"{type(cell).__name__} returned neither its new state nor (output, new state)")
    return returned[0], returned[1]


def forced(state: Any, output: Any, teacher: Any) -> Any:
    """The state with the teacher in the entry that is the output (the same tensor object), for every such output."""
    outputs, structure = pytree.tree_flatten(output)
    teachers, other = pytree.tree_flatten(teacher)
    assert structure == other, "the teacher does not have the output's structure"
    leaves, nesting = pytree.tree_flatten(state)
    found = False
    for mine, theirs in zip(outputs, teachers, strict=True):
        for i, leaf in enumerate(leaves):
            if leaf is mine:
                leaves[i], found = theirs, True
                break
    assert found, "no entry of the state is the output"
    return pytree.tree_unflatten(leaves, nesting)


def alike(value: Any, state: Any) -> bool:
    """Whether a value is nested like the state, with tensors in the same places."""
    leaves, structure = pytree.tree_flatten(value)
    others, expected = pytree.tree_flatten(state)
    return structure == expected and all(
        isinstance(a, Tensor) == isinstance(b, Tensor) for a, b in zip(leaves, others, strict=True)
    )


def at(tree: Any, t: int) -> Any:
    """The values of step t of a tree of sequences."""
    return pytree.tree_map(lambda leaf: leaf[t] if isinstance(leaf, Tensor) else leaf, tree)


def stack(trees: list[Any]) -> Any:
    """Trees of tensors [B, …], one for each step, as one tree of [T, B, …]."""
    first, *_ = trees
    return pytree.tree_map(
        lambda *leaves: torch.stack(leaves) if isinstance(leaves[0], Tensor) else leaves[0], first, *trees[1:]
    )


def _nothing(cell: torch.nn.Module, x: Any, state: Any, context: Any) -> Any:
    """The outputs of no step, [0, B, …]: their structure and widths are those of a step on zeros."""

    def zeros(leaf: Any) -> Any:
        return leaf.new_zeros(leaf.shape[1:]) if isinstance(leaf, Tensor) else leaf

    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        output, _ = step(cell, pytree.tree_map(zeros, x), state, context)
    return pytree.tree_map(lambda o: o.new_empty((0, *o.shape)) if isinstance(o, Tensor) else o, output)
