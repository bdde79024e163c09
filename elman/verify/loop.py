"""What a sequence means, in plain PyTorch: a Python loop over the cell, that of the definition in docs/sequences.md.

Nothing here is a circuit, a layout or an engine: it is what they are held against.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from elman.circuit.structure import NOTHING, flatten
from elman.trace.call import call_cell, understand

Tensor = torch.Tensor
# (t, b) -> a context in which step t of row b runs (b None: of all rows), to feed it somebody else's random numbers.
Replay = Callable[[int, int | None], contextlib.AbstractContextManager[Any]]


@dataclass(frozen=True)
class Said:
    """What is said about the steps of a batch: lengths `[B]`, mask and reset `[T, B]`; None: nothing."""

    lengths: Tensor | None = None
    mask: Tensor | None = None
    reset: Tensor | None = None

    def given(self) -> dict[str, Tensor]:
        return {name: value for name, value in vars(self).items() if value is not None}

    def happens(self, T: int, B: int) -> Tensor:
        """`[T, B]`: the steps that happen."""
        happens = torch.ones(T, B, dtype=torch.bool)
        if self.lengths is not None:
            happens &= torch.arange(T)[:, None] < self.lengths
        return happens if self.mask is None else happens & self.mask


def whole(
    cell: torch.nn.Module, x: Any, state: Any, context: Any, T: int, reverse: bool = False,
    replay: Replay | None = None, row: int | None = None, order: Sequence[int] | None = None,
) -> tuple[dict[int, Any], Any]:  # fmt: skip
    """Run steps one after the other: (t -> output, final state). order: which; by default all, backward if reverse."""
    structure = flatten(state, "state")[1]
    takes_context = flatten(context, "context")[1] != NOTHING
    outputs: dict[int, Any] = {}
    for t in range(T)[:: -1 if reverse else 1] if order is None else order:
        with contextlib.nullcontext() if replay is None else replay(t, row):
            returned = call_cell(cell, _each(x, lambda leaf, t=t: leaf[t]), state, context, takes_context)
            outputs[t], state = understand(returned, structure, type(cell).__name__)
    return outputs, state


def sequences(
    cell: torch.nn.Module, x: Any, state: Any, context: Any, sizes: tuple[int, int], said: Said, reverse: bool,
    initial: Callable[[], Any], replay: Replay | None = None,
) -> tuple[Any, Any]:  # fmt: skip
    """(outputs `[T, B, …]`, final state `[B, …]`) of a batch, each row by itself if anything is said about its steps.

    initial: the cell's own initial state for one row, from which every piece but the first starts.
    """
    T, B = sizes
    if not said.given():
        outputs, state = whole(cell, x, state, context, T, reverse, replay)
        return _together(torch.stack, [outputs[t] for t in range(T)]), state
    happens = said.happens(T, B)
    rows: list[dict[int, Any]] = []
    finals: list[Any] = []
    for b in range(B):
        own_x, own_context = _each(x, lambda leaf, b=b: leaf[:, b : b + 1]), _row(context, b)
        resets = [] if said.reset is None else [t for t in range(T) if said.reset[t, b]]
        row: dict[int, Any] = {}
        last = _row(state, b)
        for number, piece in enumerate(pieces([t for t in range(T) if happens[t, b]], resets, reverse)):
            anew = number > 0 or (not reverse and any(r <= piece[0] for r in resets))
            start = initial() if anew else _row(state, b)
            outputs, last = whole(cell, own_x, start, own_context, T, reverse, replay, b, piece)
            row |= outputs
        rows.append(row)
        finals.append(last)
    some = next(output for row in rows for output in row.values())  # `Said` leaves one step at least
    nothing = _each(some, torch.zeros_like)
    sides = [_together(torch.stack, [row.get(t, nothing) for t in range(T)]) for row in rows]
    return _together(lambda leaves: torch.cat(leaves, 1), sides), _together(torch.cat, finals)


def pieces(happens: Sequence[int], resets: Sequence[int], reverse: bool) -> list[list[int]]:
    """The pieces of a row's steps, in the order in which they run."""
    cut: list[list[int]] = []
    for t in happens:
        if not cut or any(cut[-1][-1] < r <= t for r in resets):
            cut.append([])
        cut[-1].append(t)
    return [piece[::-1] for piece in reversed(cut)] if reverse else cut


def _each(tree: Any, function: Callable[[Tensor], Tensor]) -> Any:
    return pytree.tree_map(lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf, tree)


def _row(tree: Any, b: int) -> Any:
    return _each(tree, lambda leaf: leaf[b : b + 1])


def _together(join: Callable[[list[Tensor]], Tensor], trees: list[Any]) -> Any:
    def leaves(*each: Any) -> Any:
        return join(list(each)) if isinstance(each[0], Tensor) else each[0]

    return pytree.tree_map(leaves, trees[0], *trees[1:])
