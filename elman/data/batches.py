"""What training walks through: batches without end, and the place in them, which a run goes on from.

Windows    of one long stream, with the state carried from each to the next (windows.py)
Ragged     of examples that differ in length, in buckets of like length, shuffled anew in each pass
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from elman.errors import InputError

_POOL = (
    50  # batches that are sorted by length together: enough to fill most of each, few enough to mix a pass
)


@dataclass(frozen=True)
class Batch:
    """What one step of training reads.

    values: what the loss is a function of: tensors, or nested ones. fresh: nothing was read before, no state is carried
    in. count: what the loss is a mean over, in units of the batches, in all processes together. part: the share of
    them that is in these values.
    """

    values: tuple[Any, ...]
    fresh: bool
    count: int
    part: float = 1.0


class Batches(ABC):
    """Batches without end, pass after pass over the same data.

        batches.split(rank, count)            # of so many processes, each reads its own part of every batch
        place = batches.position
        batch = next(batches)
        batches.position = place              # the same batch comes again: nothing else is remembered

    position: whole numbers, the first of them the passes so far. unit: what is counted, in the plural. size: units in a
    pass. count: of them in a batch, the mean.
    """

    unit: str
    size: int
    count: float
    position: tuple[int, ...] = (0, 0)
    rank: int = 0
    processes: int = 1

    def __iter__(self) -> Batches:
        return self

    @abstractmethod
    def __next__(self) -> Batch: ...

    @abstractmethod
    def holds(self, position: tuple[int, ...]) -> bool:
        """Whether the walk can go on from there."""

    def split(self, rank: int, processes: int) -> None:
        """From now on read one part of so many of every batch. Raises InputError where that cannot be."""
        self.rank, self.processes = rank, processes


class Ragged(Batches):
    """Examples of different lengths: each once in a pass, in batches of like length, in another order in each pass.

    The order is drawn from (seed, pass) alone. A pass is shuffled, cut into pools of 50 batches, and each pool is
    sorted by length before it is cut into batches, which are shuffled again: little padding, and no batch twice.

    lengths: of the examples. take: indices -> the values of a batch of those. batch: B, examples in one; the last of a
    pool may have fewer. unit: "examples", or "steps" where the loss is a mean over steps.
    position: (passes, batches since the pass began).
    """

    def __init__(
        self, lengths: Sequence[int], take: Callable[[list[int]], tuple[Any, ...]], batch: int, seed: int = 0,
        *, unit: str = "examples",
    ) -> None:  # fmt: skip
        if not len(lengths) or min(lengths) < 1:
            raise InputError(
                what="there is nothing to learn from" if not len(lengths) else "an example is empty", where="lengths",
                expected="at least one example, each of at least one step", mend="leave out what is empty",
            )  # fmt: skip
        if batch < 1:
            raise InputError(
                what="batch must be at least 1", where="batch", got=batch, mend="leave it out for the default"
            )
        if unit not in ("examples", "steps"):
            raise InputError(what="unknown unit", where="unit", got=unit, expected="examples or steps")
        self.lengths, self.take, self.batch, self.seed, self.unit = (
            torch.as_tensor(lengths, dtype=torch.int64),
            take,
            batch,
            seed,
            unit,
        )
        self.size = self._counted(range(len(self.lengths)))
        self._order: tuple[int, list[list[int]]] = (-1, [])
        self.count = self.size / len(self._batches(0))

    def __next__(self) -> Batch:
        turn, k = self.position
        order = self._batches(turn)
        rows = order[k]
        self.position = (turn, k + 1) if k + 1 < len(order) else (turn + 1, 0)
        count = self._counted(rows)
        mine = rows[self.rank :: self.processes]
        # A process for which nothing is left reads what counts for nothing: all of them take the same steps.
        part = self._counted(mine) / count
        return Batch(self.take(mine or rows[:1]), fresh=True, count=count, part=part)

    def holds(self, position: tuple[int, ...]) -> bool:
        return len(position) == 2 and position[0] >= 0 and 0 <= position[1] < len(self._batches(position[0]))

    def _batches(self, turn: int) -> list[list[int]]:
        """The batches of a pass, as indices of examples."""
        if self._order[0] != turn:
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + turn) % 2**63)
            shuffled = torch.randperm(len(self.lengths), generator=generator)
            batches = [
                part
                for pool in shuffled.split(_POOL * self.batch)
                for part in pool[self.lengths[pool].argsort(stable=True)].split(self.batch)
            ]
            order = torch.randperm(len(batches), generator=generator).tolist()
            self._order = (turn, [batches[i].tolist() for i in order])
        return self._order[1]

    def _counted(self, rows: Sequence[int]) -> int:
        return len(rows) if self.unit == "examples" else int(self.lengths[list(rows)].sum())


def ragged(
    x: Sequence[Tensor], y: Sequence[Tensor] | Tensor | None = None, batch: int = 32, seed: int = 0,
    *, unit: str | None = None,
) -> Ragged:  # fmt: skip
    """Examples (x, y) as batches of `(x, y, lengths)`, as the layers take them: `layer(x, lengths=lengths)`.

    x: tensors `[T, …]` of different T; in a batch `[T, B, …]`, zero beyond each one's length. y: a tensor `[N, …]`, one
    entry for each example, in a batch `[B, …]`; or a sequence of tensors `[T, …]`, one entry for each step, in a batch
    as x; or None. lengths: int64 `[B]`. unit: see `Ragged`; None is "steps" where y is given for each, otherwise
    "examples". Raises InputError where x and y do not belong together.
    """
    each = None if isinstance(y, Tensor) else y
    if y is not None and len(y) != len(x):
        raise InputError(what="there is one target for each example", where="y", got=len(y), expected=len(x))
    lengths = [len(one) for one in x]
    if each is not None and (odd := [i for i, one in enumerate(each) if len(one) != lengths[i]]):
        raise InputError(
            what="there is one target for each step", where=f"y[{odd[0]}]", got=len(each[odd[0]]),
            expected=lengths[odd[0]], mend="give a tensor [N, …] where there is one target for each example",
        )  # fmt: skip

    def take(rows: list[int]) -> tuple[Any, ...]:
        return (
            pad_sequence([x[i] for i in rows]),
            y[rows] if isinstance(y, Tensor) else each and pad_sequence([each[i] for i in rows]),
            torch.tensor([lengths[i] for i in rows]),
        )

    return Ragged(lengths, take, batch, seed, unit=unit or ("examples" if each is None else "steps"))
