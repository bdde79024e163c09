"""Symbols -> batches: the windows that training walks through."""

from __future__ import annotations

from typing import Any

import torch

from elman.data.batches import Batch, Batches
from elman.errors import InputError


class Windows(Batches):
    """Endless windows over a text for training with carried state (truncated back-propagation through time).

    The text is cut into `batch` lanes of equal length, each contiguous; window k holds the steps k·T … k·T + T - 1 of
    every lane, so the state at the end of one window is the one that the next begins with:

        lanes = tokens[: batch * L].view(batch, L)        # window k: lanes[:, k*T : (k+1)*T].T

    After the last whole window of the lanes they are cut anew from a random place in the first window of the text, so
    that no symbol is always left over and windows do not always end at the same ones.

    tokens: [N], a tensor or anything whose slices are int64 tensors; only slices are taken. window: T, steps. batch: B,
    lanes. Raises InputError if the text is too short for that.

    A batch is (x, y), int64 [T, B], y(t) = x(t+1); it is fresh where the lanes begin. Of several processes each
    reads as many of the lanes. `position` is (passes over the text, step within its lanes).

    restart: the share of windows that are fresh all the same, chosen by seed and position: a model that is to read
    texts from their beginning, too, has to begin now and then.
    """

    unit = "symbols"

    def __init__(self, tokens: Any, window: int, batch: int, seed: int = 0, restart: float = 0.0) -> None:
        for name, value in (("window", window), ("batch", batch)):
            if value < 1:
                raise InputError(
                    what=f"{name} must be at least 1",
                    where=name,
                    got=value,
                    mend="leave it out for the default",
                )
        needed = batch * window + 1
        if len(tokens) < needed:
            raise InputError(
                what="the text is too short for one window of every lane",
                where="tokens",
                got=f"{len(tokens)} symbols",
                expected=f"at least {needed} (batch {batch} · window {window} + 1)",
                mend="take a smaller batch or window, or more text",
            )
        if not 0 <= restart <= 1:
            raise InputError(
                what="restart is a share of the windows", where="restart", got=restart, mend="take 0 … 1"
            )
        self.tokens, self.window, self.batch, self.seed = tokens, window, batch, seed
        self.restart = restart
        self.size, self.count = len(tokens), batch * window
        self.lanes = slice(0, batch)  # that are read here

    def split(self, rank: int, processes: int) -> None:
        if self.batch % processes:
            raise InputError(
                what="the batch cannot be shared out equally", where="batch", got=self.batch,
                expected=f"a multiple of the {processes} processes", mend="take another batch, or other processes",
            )  # fmt: skip
        super().split(rank, processes)
        each = self.batch // processes
        self.lanes = slice(rank * each, (rank + 1) * each)

    def __next__(self) -> Batch:
        turn, t = self.position
        start = self._start(turn)
        length = (len(self.tokens) - 1 - start) // self.batch
        lanes = [
            self.tokens[first + t : first + t + self.window + 1]
            for first in range(start, start + self.batch * length, length)[self.lanes]
        ]
        both = torch.stack(lanes, 1)
        after = t + self.window
        self.position = (turn, after) if after + self.window <= length else (turn + 1, 0)
        values = (both[:-1], both[1:])
        fresh = t == 0 or self._restarts(turn, t)
        return Batch(values, fresh=fresh, count=self.batch * self.window, part=1 / self.processes)

    def holds(self, position: tuple[int, ...]) -> bool:
        if len(position) != 2:
            return False
        turn, t = position
        length = (len(self.tokens) - 1 - self._start(turn)) // self.batch if turn >= 0 else 0
        return 0 <= t <= length - self.window

    def _start(self, turn: int) -> int:
        """Where the lanes of a pass over the text begin; a number of its own, so that no state has to be kept."""
        if turn == 0:
            return 0
        # Starts that leave every lane a whole window.
        spare = min(self.window, len(self.tokens) - self.batch * self.window)
        return int(torch.randint(spare, (), generator=_generator(self.seed, turn)))

    def _restarts(self, turn: int, t: int) -> bool:
        if not self.restart:
            return False
        return bool(torch.rand((), generator=_generator(self.seed, turn, t)) < self.restart)


def _generator(*numbers: int) -> torch.Generator:
    """One for these numbers: nothing has to be kept."""
    seed = 0
    for number in numbers:
        seed = (seed * 1_000_003 + number) % 2**63
    return torch.Generator().manual_seed(seed)


def windows(tokens: Any, window: int, batch: int, seed: int = 0, restart: float = 0.0) -> Windows:
    """See `Windows`."""
    return Windows(tokens, window, batch, seed, restart)
