"""Segments: stretches of time that run one after the other, so that less of a call is in memory at once."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from elman.errors import InputError, InputTypeError, expect

_UNITS = {"B": 1, **{f"{p}B": 1000**i for i, p in enumerate("kMGT", 1)}}
_UNITS |= {"KB": 1000, **{f"{p}iB": 1024**i for i, p in enumerate("KMGT", 1)}}


@dataclass(frozen=True)
class Segments:
    """What `memory=` may be: segments of so many steps each, whatever that takes.

    The backward pass computes each again from the state that it starts from, which alone is stored.
    """

    steps: int

    def __post_init__(self) -> None:
        expect(self.steps, int, "a segment is a number of steps", "Segments(steps)")
        if self.steps < 1:
            raise InputError("a segment has at least one step", where="Segments(steps)", got=self.steps)


Memory = Segments | int | None


def read_memory(memory: object, where: str = "memory=") -> Memory:
    """A budget in bytes, or how long segments are: of `"64 MB"`, a number of bytes, `Segments(k)`, or None.

    Raises InputError or InputTypeError for anything else.
    """
    if memory is None or isinstance(memory, Segments):
        return memory
    if isinstance(memory, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]+)\s*", memory)
        if match is None or match[2] not in _UNITS:
            raise InputError(
                what="a budget is a number of bytes with its unit", where=where, got=repr(memory),
                expected='"64 MB", "1.5 GB", "512 KiB"',
            )  # fmt: skip
        memory = int(float(match[1]) * _UNITS[match[2]])
    if isinstance(memory, bool) or not isinstance(memory, int):
        raise InputTypeError(
            what="memory is a budget, or the length of segments", where=where, got=type(memory).__name__,
            expected='"64 MB", a number of bytes, or elman.Segments(k)',
        )  # fmt: skip
    if memory <= 0:
        raise InputError(what="a budget is more than nothing", where=where, got=memory)
    return memory


def as_number(memory: Memory) -> int:
    """For operators of compiled graphs, which know numbers: bytes, minus the steps of a segment, or 0 for None."""
    return 0 if memory is None else -memory.steps if isinstance(memory, Segments) else memory


def of_number(number: int) -> Memory:
    """The other way round."""
    return None if not number else Segments(-number) if number < 0 else number


class Segment(NamedTuple):
    """Steps first … stop - 1 of a call, which are its packed rows start … end - 1.

    rows: how many rows have a step in it, the first ones. beyond: how many of them have one after it.
    """

    first: int
    stop: int
    start: int
    end: int
    rows: int
    beyond: int


class Cuts:
    """Where a call is cut, of which all rows have every step: into segments of `length` steps, the last may be shorter.

    count: K. worst: (rows at a step, steps, packed rows), the most that a segment has of each. entering: rows that run
    in all segments, added up.
    """

    def __init__(self, steps: int, batch: int, length: int) -> None:
        self.steps, self.batch, self.length = steps, batch, length
        self.count = -(-steps // length)
        self.worst = batch, min(length, steps), min(length, steps) * batch
        self.entering = self.count * batch

    def __getitem__(self, i: int) -> Segment:
        first, stop = i * self.length, min((i + 1) * self.length, self.steps)
        beyond = self.batch if stop < self.steps else 0
        return Segment(first, stop, first * self.batch, stop * self.batch, self.batch, beyond)

    def last(self, state: float, residuals: float, room: float) -> tuple[int, float]:
        """How many of the last segments can keep residuals instead of the state that they start from: (number, bytes).

        state, residuals: bytes of a row. room: bytes that there are for it.
        """
        each = (residuals * self.length - state) * self.batch
        number = self.count if each <= 0 else min(self.count, int(room // each))
        return number, number * each


class RaggedCuts(Cuts):
    """The same for rows of different lengths; steps are of the longest. sizes: rows at each step."""

    def __init__(self, sizes: np.ndarray, *, rows: int = 0, length: int = 0) -> None:
        """Segments of `length` steps, or of about `rows` packed rows each, at least one step."""
        before = np.append(0, np.cumsum(sizes))
        if length:
            bounds = np.append(np.arange(0, len(sizes), length), len(sizes))
        else:
            marks = np.arange(0, before[-1], max(rows, 1))
            bounds = np.unique(np.append(np.searchsorted(before, marks, "right") - 1, len(sizes)))
        self.bounds, self.before, self.sizes = bounds, before[bounds], np.append(sizes, 0)[bounds]
        self.count = len(bounds) - 1
        self.worst = int(sizes[0]), int(np.diff(bounds).max()), int(np.diff(self.before).max())
        self.entering = int(self.sizes.sum())

    def __getitem__(self, i: int) -> Segment:
        first, stop = self.bounds[i : i + 2].tolist()
        return Segment(first, stop, *self.before[i : i + 2].tolist(), *self.sizes[i : i + 2].tolist())

    def last(self, state: float, residuals: float, room: float) -> tuple[int, float]:
        spent = np.cumsum((residuals * np.diff(self.before) - state * self.sizes[:-1])[::-1])
        number = int(np.searchsorted(np.maximum.accumulate(spent), room, "right"))
        return number, float(spent[number - 1]) if number else 0.0
