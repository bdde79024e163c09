"""The trace key: everything about a cell, besides the values of its tensors, that a trace depends on.

A trace depends on what the step reads, and the step can read what its code names: `walk` finds that. One walk answers
three questions. `Seen.mark` is the key. `Seen.unchanged` says at the next calls, in a few microseconds, whether it
still holds. And a walk before and after a step says whether the step changes something that outlives it (`Changes`),
which no trace could do again.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Hashable
from typing import Any

import torch

from elman.trace.walk import Walk


class Seen:
    """A cell as it was seen: its part of the trace key, and whether it still is so.

    unchanged: compares by identity, so True is certain (1 and 1.0 are two things), and False may be a false alarm:
    then the key has to be worked out. None for a cell that keeps what cannot be watched so (hooks): its key has to be
    worked out at every call. Under torch.compile the same function decides whether a program still holds.
    """

    def __init__(self, cell: torch.nn.Module) -> None:
        walk = Walk(cell)
        self.cell, self.mark = cell, tuple(walk.found)
        self.unchanged = walk.watched.unchanged()

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
    then = _by_path(before)
    now = _by_path(after)
    return next((path for path in (*now, *then) if now.get(path) != then.get(path)), None)


def _by_path(found: Any) -> dict[str, list[Any]]:
    entries: dict[str, list[Any]] = {}
    for path, *rest in found:
        if rest[0] != "again":
            entries.setdefault(path, []).append(tuple(rest))
    return entries


class Changes:
    """What a step has changed, since this was made, that outlives it."""

    def __init__(self, cell: torch.nn.Module) -> None:
        self._cell, self._walk = cell, Walk(cell)
        self._dice = _dice()
        self._restore = self._walk.watched.save()

    def look(self) -> tuple[str | None, str | None]:
        """(a random number generator, not of PyTorch's, that was drawn from; the path of what is changed), if any: a
        value that is another one now, or a tensor that has been kept."""
        now = Walk(self._cell)
        states = dict(self._walk.drawn)
        drawn = next((name for name, state in _dice().items() if state != self._dice[name]), None)
        drawn = drawn or next((path for path, state in now.drawn if states.get(path, state) != state), None)
        then, found = _by_path(self._walk.found), _by_path(now.found)
        for path, before in then.items():
            if found.get(path) != before:
                return drawn, path
        kept = (p for p, entries in found.items() if p not in then and any(e[0] == "tensor" for e in entries))
        return drawn, next(kept, None)

    def undo(self) -> None:
        """Put back what containers, closures, globals and classes held, and the process's generators."""
        self._restore()
        for name, state in _dice().items():
            if state != self._dice[name]:
                _set_dice(name, self._dice[name])


def _dice() -> dict[str, Any]:
    """States of the random number generators that belong to the process."""
    numpy = sys.modules.get("numpy")
    found: dict[str, Any] = {"random": random.getstate()}
    if numpy is not None:
        kind, key, *rest = numpy.random.get_state()
        found["numpy.random"] = (kind, key.tobytes(), *rest)
    return found


def _set_dice(name: str, state: Any) -> None:
    if name == "random":
        random.setstate(state)
        return
    numpy = sys.modules["numpy"]
    kind, key, *rest = state
    numpy.random.set_state((kind, numpy.frombuffer(key, numpy.uint32), *rest))
