"""What lengths, masks, resets and teachers mean, in plain PyTorch: every row by itself, piece by piece, step by step.

    Drop the steps that are masked out; cut what is left wherever a reset stands between two kept steps or at the later
    one; run each piece by itself, backward if `reverse`; put the outputs back in place, zero at masked steps.

As tests/eager.py, it shares no code with elman, on purpose.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree

from tests import eager

Tensor = torch.Tensor
Replay = Callable[[int, int], contextlib.AbstractContextManager[Any]]


def unroll(
    cell: torch.nn.Module,
    x: Any,
    state: Any,
    *,
    initial: Callable[[], Any],
    steps: int | None = None,
    context: Any = None,
    reverse: bool = False,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
    teacher: Any = None,
    teacher_weight: Tensor | None = None,
    replay: Replay | None = None,
) -> tuple[Any, Any]:
    """(outputs [T, B, …], final state [B, …]).

    initial: the cell's initial state for one row, `[1, …]`. replay: (t, b) -> a context manager in which step t of row
    b runs, to feed it somebody else's random numbers.
    """
    T = steps if steps is not None else len(next(iter(_tensors(x))))
    B = len(next(iter(_tensors(state))))
    rows, finals = [], []
    for b in range(B):
        happens = [
            t
            for t in range(T)
            if (lengths is None or t < int(lengths[b])) and (mask is None or bool(mask[t, b]))
        ]
        found: dict[int, Any] = {}
        last = _row(state, b)
        pieces = cut(happens, [] if reset is None else [t for t in range(T) if reset[t, b]])
        for number, piece in enumerate(pieces[:: -1 if reverse else 1]):
            begins_anew = not reverse and reset is not None and bool(reset[: piece[0] + 1, b].any())
            start = initial() if number > 0 or begins_anew else _row(state, b)
            order = piece[:: -1 if reverse else 1]
            last = start
            for t in order:
                given = None if context is None else _row(context, b)
                with replay(t, b) if replay is not None else contextlib.nullcontext():
                    found[t], last = eager.step(cell, _row(eager.at(x, t), b), last, given)
                if teacher is not None and t != order[-1]:
                    w = None if teacher_weight is None else teacher_weight[t, b]
                    seen = _blend(w, _row(eager.at(teacher, t), b), found[t])
                    last = eager.forced(last, found[t], seen)
        rows.append(found)
        finals.append(last)
    some = next((output for found in rows for output in found.values()), None)
    if some is None:
        zeros = pytree.tree_map(lambda t: torch.zeros_like(t[0, :1]) if isinstance(t, Tensor) else t, x)
        some, _ = eager.step(cell, zeros, _row(state, 0), None if context is None else _row(context, 0))
    nothing = pytree.tree_map(lambda o: torch.zeros_like(o) if isinstance(o, Tensor) else o, some)
    outputs = [[found.get(t, nothing) for t in range(T)] for found in rows]
    return pytree.tree_map(_together, nothing, *[_sequence(row) for row in outputs]), _side_by_side(finals)


def cut(happens: list[int], resets: list[int]) -> list[list[int]]:
    """The pieces of a row's steps."""
    pieces: list[list[int]] = []
    for t in happens:
        if not pieces or any(pieces[-1][-1] < r <= t for r in resets):
            pieces.append([])
        pieces[-1].append(t)
    return pieces


def _blend(w: Tensor | None, teacher: Any, output: Any) -> Any:
    def one(y: Any, o: Any) -> Any:
        if w is None:
            return y
        return torch.where(w, y, o) if w.dtype == torch.bool else w * y + (1 - w) * o

    return pytree.tree_map(one, teacher, output)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def _row(tree: Any, b: int) -> Any:
    return pytree.tree_map(lambda leaf: leaf[b : b + 1] if isinstance(leaf, Tensor) else leaf, tree)


def _sequence(outputs: list[Any]) -> Any:
    """Outputs [1, …] of a row's steps as [T, 1, …]."""
    return eager.stack(outputs)


def _together(_: Any, *rows: Any) -> Any:
    return torch.cat(rows, 1) if isinstance(rows[0], Tensor) else rows[0]


def _side_by_side(states: list[Any]) -> Any:
    first, *others = states
    return pytree.tree_map(
        lambda *leaves: torch.cat(leaves) if isinstance(leaves[0], Tensor) else leaves[0], first, *others
    )
