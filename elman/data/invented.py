"""Sequences that nobody wrote, beside those that are there: what has to carry any of them over learns no habits."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from elman.data.batches import Batch, Batches, Ragged

_RANDOM, _CHANGED, _SHARE = 0.25, 0.35, 0.15


def written(x: Sequence[Tensor], batch: int, seed: int = 0) -> Ragged:
    """Batches (x [T, B, …], zero beyond each one's length, lengths [B]) of sequences [T, …]; a step more than there are
    is counted of each, as it has an end."""

    def take(rows: list[int]) -> tuple[Tensor, Tensor]:
        return _together([x[i] for i in rows])

    return Ragged([len(one) + 1 for one in x], take, batch, seed, unit="steps")


def _together(x: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    return pad_sequence(list(x)), torch.tensor([len(one) for one in x])


class Invented(Batches):
    """Batches of which one half is invented: the front of one sequence on the back of another, anew in every batch.

    Of symbols, a quarter of these are then drawn at random from all symbols, and of a third each symbol is exchanged
    for any other with a probability of 0.15: rare symbols come up as often as others.

    x: sequences int64 [T] or float [T, I]. batch: B, both halves together. symbols: (first, last) that are drawn, of
    int64. In a batch, as of `written`: (x [T, B, …], lengths [B]). What is invented is no longer than the longest of x.
    """

    unit = "steps"

    def __init__(
        self, x: Sequence[Tensor], batch: int, seed: int = 0, symbols: tuple[int, int] | None = None
    ) -> None:
        self.x, self.seed, self.symbols = x, seed, symbols
        self.real = written(x, max(batch // 2, 1), seed)
        self.longest = max(map(len, x))
        self.size, self.count = 2 * self.real.size, 2 * self.real.count

    def __next__(self) -> Batch:
        draw = random.Random(f"{self.seed} {self.position}")
        self.real.position = self.position
        x, lengths = next(self.real).values
        self.position = self.real.position
        real = [x[:n, i] for i, n in enumerate(lengths.tolist())]
        # All processes invent the same, and each takes its part.
        both = real + [self._made(draw) for _ in real]
        mine = both[self.rank :: self.processes]
        count = sum(len(one) + 1 for one in both)
        part = sum(len(one) + 1 for one in mine) / count
        return Batch(_together(mine or both[:1]), fresh=True, count=count, part=part)

    def holds(self, position: tuple[int, ...]) -> bool:
        return self.real.holds(position)

    def _made(self, draw: random.Random) -> Tensor:
        front, back = draw.choice(self.x), draw.choice(self.x)
        cut, rest = draw.randint(1, len(front)), draw.randint(0, len(back) - 1)
        sequence = torch.cat([front[:cut], back[rest:]])[: self.longest]
        if self.symbols is None or (how := draw.random()) >= _RANDOM + _CHANGED:
            return sequence
        share = 1 if how < _RANDOM else _SHARE
        return torch.tensor([
            draw.randint(*self.symbols) if draw.random() < share else symbol for symbol in sequence.tolist()
        ])  # fmt: skip
