"""A cell's fingerprint, or trace key: everything about it, besides the values of its tensors, that a trace depends on.

A trace depends on what the step reads, and the step can read what its code names: `walk` finds that. One walk answers
three questions. `Seen.mark` is the fingerprint. `Seen.unchanged` says at the next calls, in a few microseconds, whether
it still holds (`watch`). And a walk before and after a step says whether the step changes something that outlives it
(`changes`), which no trace could do again.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch

from elman.trace.walk import Walk


class Seen:
    """A cell as it was seen: its part of the trace key, and whether it still is so.

    unchanged: compares by identity, so True is certain (1 and 1.0 are two things), and False may be a false alarm:
    then the key has to be worked out. None for a cell that keeps what cannot be watched so (hooks): its key has to be
    worked out at every call. Under torch.compile the same function decides whether a program still holds.
    same: the same, may be but for what tensors are like: for whoever looks at the tensors anyway.
    """

    def __init__(self, cell: torch.nn.Module) -> None:
        walk = Walk(cell)
        self.cell, self.mark = cell, tuple(walk.found)
        self.unchanged = walk.watched.unchanged()
        self.same = walk.watched.same

    def holds(self, cell: torch.nn.Module) -> bool:
        return self.cell is cell and self.unchanged is not None and self.unchanged()


def fingerprint(cell: torch.nn.Module) -> tuple[Hashable, ...]:
    """The part of the trace key that belongs to the cell: (path, what counts about it) for all that its step reads."""
    return Seen(cell).mark


def watch(cell: torch.nn.Module) -> Callable[[], bool] | None:
    """Whether everything that the trace key depends on is as it was when `watch` was called (see `Seen`)."""
    return Seen(cell).unchanged


def differs(before: tuple[Hashable, ...], after: tuple[Hashable, ...]) -> str | None:
    """The first thing by path that is not the same in two marks."""
    then = by_path(before)
    now = by_path(after)
    return next((path for path in (*now, *then) if now.get(path) != then.get(path)), None)


def by_path(found: Any) -> dict[str, list[Any]]:
    entries: dict[str, list[Any]] = {}
    for path, *rest in found:
        if rest[0] != "again":
            entries.setdefault(path, []).append(tuple(rest))
    return entries
