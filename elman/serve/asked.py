"""What a scheduler is asked to write, what becomes of it, and what it has done since it began."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Condition
from typing import Any

import numpy as np

from elman.serve.prefixes import State
from elman.serve.written import Stops


@dataclass(frozen=True, eq=False)
class Ask:
    """One text to be written.

    prompt: int64 [P], P >= 1. most: symbols to write. seed: None for one that nobody knows; choice: which of several
    texts of one seed. stop: texts before which it ends. logprobs: how many of the likeliest symbols are told beside
    each (None: none are, nor the probability of the symbol itself); of_prompt: of the prompt's symbols too. watched:
    whether the units of the state are told now and then.
    """

    prompt: np.ndarray
    most: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    choice: int = 0
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    of_prompt: bool = False
    watched: bool = False


@dataclass(frozen=True)
class Scored:
    """A symbol, log p of it, and of the likeliest ones, in that order."""

    symbol: int
    logprob: float | None
    top: dict[int, float]


@dataclass(eq=False)
class Job:
    """A text that is being written. Its reader takes `pieces` and `scored` from the left, and may `cancel`.

    reason: why it has ended: "stop", "length", "cancelled", "timeout", "closed", "error"; None as long as it goes on.
    changed: is told of by the scheduler whenever there is news. leave: tells it that nobody wants the text any more.
    known: symbols of the prompt that were read before. begun, first: when it was asked for, and its first symbol
    was written, by `time.monotonic`. units: the latest look.
    """

    ask: Ask
    changed: Condition = field(repr=False)
    leave: Callable[[Job], None] = field(repr=False)
    begun: float
    due: float
    owner: Any = None
    pieces: deque[str] = field(default_factory=deque)
    scored: deque[Scored] = field(default_factory=deque)
    symbols: list[int] = field(default_factory=list)
    reason: str | None = None
    known: int = 0
    first: float | None = None
    units: dict[str, list[int]] | None = None
    # Of the scheduler alone:
    fed: int = 0
    state: State | None = None
    seen: Any = None  # a digest of what it has been fed
    stops: Stops | None = None
    spell: Any = None
    rest: Any = None

    def cancel(self) -> None:
        """Nobody wants it any more: its row is free at the next step."""
        self.leave(self)

    def result(self, seconds: float | None = None) -> Job:
        """Itself, once it has ended. Raises TimeoutError."""
        with self.changed:
            if not self.changed.wait_for(lambda: self.reason is not None, seconds):
                raise TimeoutError
        return self

    @property
    def text(self) -> str:
        """All of it that nobody has taken."""
        return "".join(self.pieces)


@dataclass
class SchedulerCounts:
    """What a scheduler has done since it began. blocks: symbols of prompts read in blocks; stepped: one by one; known:
    remembered."""

    steps: int = 0
    written: int = 0
    blocks: int = 0
    stepped: int = 0
    known: int = 0
    step_seconds: float = 0.0
    block_seconds: float = 0.0
