"""What a step has changed that outlives it, which no trace could do again."""

from __future__ import annotations

import random
import sys
from typing import Any

import torch

from elman.trace.fingerprint import by_path
from elman.trace.walk import Walk


class Changes:
    """What a step has changed, since this was made, that outlives it."""

    def __init__(self, cell: torch.nn.Module) -> None:
        self._cell, self._walk = cell, Walk(cell)
        self._dice = _dice()
        self._restore = self._walk.watched.save()

    def look(self) -> tuple[str | None, str | None]:
        """(a random number generator, not of PyTorch's, that was drawn from; the path of what is changed), if any: a
        value that is another one now, or a tensor that has been kept."""
        walk = Walk(self._cell)
        states = dict(self._walk.drawn)
        drawn = next((name for name, state in _dice().items() if state != self._dice[name]), None)
        drawn = drawn or next((path for path, state in walk.drawn if states.get(path, state) != state), None)
        then, now = by_path(self._walk.found), by_path(walk.found)
        for path, before in then.items():
            if now.get(path) != before:
                return drawn, path
        kept = (p for p, entries in now.items() if p not in then and any(e[0] == "tensor" for e in entries))
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
    states: dict[str, Any] = {"random": random.getstate()}
    if numpy is not None:
        kind, key, *rest = numpy.random.get_state()
        states["numpy.random"] = (kind, key.tobytes(), *rest)
    return states


def _set_dice(name: str, state: Any) -> None:
    if name == "random":
        random.setstate(state)
        return
    numpy = sys.modules["numpy"]
    kind, key, *rest = state
    numpy.random.set_state((kind, numpy.frombuffer(key, numpy.uint32), *rest))
