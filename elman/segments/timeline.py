"""How the rows of a call lie in memory: packed, step after step.

The rows of all steps that happen are one tensor `[N, …]`: first those of step 0, then those of step 1, and so on;
`batch_sizes[t]` rows run at step t, and the sizes never grow (as in torch's PackedSequence). A row keeps its place
among the rows of a step. What knows about steps and rows asks a timeline and nothing else: `Timeline` where every step
has B rows and packing is a view, `RaggedTimeline` where the rows are of different lengths.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch._C._functorch import peek_interpreter_stack
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from elman.segments.segment import Segment

Tensor = torch.Tensor


@dataclass(eq=False, slots=True)
class Timeline:
    """The steps of one call: `steps` of `batch` rows, running backward if `reverse`."""

    steps: int
    batch: int
    reverse: bool

    @property
    def batch_sizes(self) -> Sequence[int]:
        """Rows at each step, never growing."""
        return (self.batch,) * self.steps

    @property
    def rows(self) -> int:
        """N, the rows of all steps."""
        return self.steps * self.batch

    def pack(self, value: Tensor) -> Tensor:
        """[T, B, …] -> [N, …]."""
        return value.reshape(self.rows, *value.shape[2:])

    def unpack(self, value: Tensor) -> Tensor:
        """[N, …] -> [T, B, …]."""
        return value.reshape(self.steps, self.batch, *value.shape[1:])

    def trail(self, room: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """Memory `[T + 1, B, …]` for the sequence of a state: (the sequence, its delay that begins with `start`).

        Both are `[T, B, …]`, views of the same memory, one step apart: what is written into one, the other shows.
        """
        if self.reverse:
            room[self.steps].copy_(start)
            return room[: self.steps], room[1:]
        room[0].copy_(start)
        return room[1:], room[: self.steps]

    def shift(self, value: Tensor, initial: Tensor | None) -> Tensor:
        """What each step sees of the step that ran before it; `initial` [B, …] (or zeros) at the first."""
        if self.steps == 0:
            return value
        start = value.new_zeros((self.batch, *value.shape[1:])) if initial is None else initial
        rest = value[self.batch :] if self.reverse else value[: self.rows - self.batch]
        return torch.cat([rest, start] if self.reverse else [start, rest])

    def spread(self, value: Tensor, dim: int) -> Tensor:
        """A value per sequence, at each of its steps; `dim` carries the B rows (-1: the value has none yet)."""
        if dim < 0:
            return value.unsqueeze(0).expand(self.rows, *value.shape)
        many = value.unsqueeze(dim).expand(*value.shape[:dim], self.steps, *value.shape[dim:])
        return many.reshape(*value.shape[:dim], self.steps * value.shape[dim], *value.shape[dim + 1 :])

    def total(self, value: Tensor) -> Tensor:
        """[N, …] -> [B, …], summed over each sequence's steps."""
        return self.unpack(value).sum(0, dtype=value.dtype)

    def last(self, value: Tensor, initial: Tensor | None) -> Tensor:
        """[N, …] -> [B, …], each sequence's last step, or its starting value if it has none."""
        if self.steps == 0:
            return value.new_zeros((self.batch, *value.shape[1:])) if initial is None else initial.clone()
        return (value[: self.batch] if self.reverse else value[self.rows - self.batch :]).clone()

    def times(self, value: Tensor, rows: bool) -> Tensor:
        """A value that is the same at every step, summed over the steps."""
        return value * self.steps


class Packing:
    """Where the steps of rows of different lengths lie; the same forward and backward. Every row has a step.

    sizes: rows at each step, never growing, the last one above zero. device: of the tensors that are packed.
    origin: the step and the packed row of the call that it begins with, where it is a segment of one.
    """

    def __init__(
        self, sizes: Sequence[int] | np.ndarray, device: torch.device, origin: tuple[int, int] = (0, 0)
    ):
        self.counts = np.asarray(sizes)
        self.sizes: list[int] = self.counts.tolist()
        self.device = device
        self.steps, self.batch, self.rows = len(self.sizes), self.sizes[0], sum(self.sizes)
        self.first_step, self.first_row = origin

    def part(self, s: Segment) -> Packing:
        """That of a segment."""
        return Packing(self.counts[s.first : s.stop], self.device, (s.first, s.start))

    @property
    def even(self) -> bool:
        """Whether all rows are of one length, and a Timeline will do."""
        return self.sizes[0] == self.sizes[-1]

    @functools.cached_property
    def sequence(self) -> Tensor:
        """[N]: the sequence that a packed row belongs to."""
        return self._tensor(self._sequence)

    @functools.cached_property
    def before(self) -> Tensor:
        """[N]: where the step before lies; any row for a sequence's first step."""
        rows = np.arange(self.rows)
        rows[self.batch :] -= np.repeat(self.counts[:-1], self.counts[1:])
        return self._tensor(rows)

    @functools.cached_property
    def after(self) -> Tensor:
        """[N]: where the step after lies; any row for a sequence's last step."""
        return self._tensor(
            np.minimum(np.arange(self.rows) + np.repeat(self.counts, self.counts), self.rows - 1)
        )

    @functools.cached_property
    def ends(self) -> Tensor:
        """[B]: where each sequence's last step lies."""
        return self._tensor(self._first[self._lengths - 1] + np.arange(self.batch))

    @functools.cached_property
    def lengths(self) -> Tensor:
        """[B]: the steps of each sequence."""
        return self._tensor(self._lengths)

    @functools.cached_property
    def _first(self) -> np.ndarray:
        """Of each step's rows."""
        return self.counts.cumsum() - self.counts

    @functools.cached_property
    def _sequence(self) -> np.ndarray:
        return np.arange(self.rows) - np.repeat(self._first, self.counts)

    @functools.cached_property
    def _lengths(self) -> np.ndarray:
        return np.searchsorted(-self.counts, -np.arange(self.batch))

    def _tensor(self, index: np.ndarray) -> Tensor:
        return as_index(index, self.device)


def as_index(index: np.ndarray, device: torch.device) -> Tensor:
    """Numbers of rows as a tensor that belongs to no transform that is going on."""
    if peek_interpreter_stack() is None:
        here = torch.from_numpy(index)
        return here if device.type == "cpu" else here.to(device)
    with temporarily_clear_interpreter_stack():
        return torch.from_numpy(index).to(device)


@dataclass(eq=False, slots=True)
class RaggedTimeline:
    """A Timeline for rows of different lengths: each begins at step 0 and ends at its own last, backward if `reverse`.

    What starts a sequence is given as `[B, …]`, and taken where it starts.
    """

    packing: Packing
    reverse: bool

    def shift(self, value: Tensor, initial: Tensor | None) -> Tensor:
        """What each step sees of the step that ran before it; `initial` [B, …] (or zeros) at the first."""
        packing = self.packing
        start = value.new_zeros((packing.batch, *value.shape[1:])) if initial is None else initial
        if self.reverse:
            return value.index_select(0, packing.after).index_copy_(0, packing.ends, start)
        shifted = value.index_select(0, packing.before)
        shifted.narrow(0, 0, packing.batch).copy_(start)
        return shifted

    def spread(self, value: Tensor, dim: int) -> Tensor:
        """A value per sequence, at each of its steps; `dim` carries the B rows (-1: the value has none yet)."""
        packing = self.packing
        if dim < 0:
            return value.unsqueeze(0).expand(packing.rows, *value.shape)
        if value.shape[dim] == packing.batch:
            return value.index_select(dim, packing.sequence)
        apart = value.unflatten(dim, (packing.batch, -1))  # several rows of the value for each sequence
        return apart.index_select(dim, packing.sequence).flatten(dim, dim + 1)

    def total(self, value: Tensor) -> Tensor:
        """[N, …] -> [B, …], summed over each sequence's steps."""
        totals = value.new_zeros((self.packing.batch, *value.shape[1:]))
        return totals.index_add_(0, self.packing.sequence, value)

    def last(self, value: Tensor, initial: Tensor | None) -> Tensor:
        """[N, …] -> [B, …], the step of each sequence that runs last."""
        packing = self.packing
        return value[: packing.batch].clone() if self.reverse else value.index_select(0, packing.ends)

    def times(self, value: Tensor, rows: bool) -> Tensor:
        """A value that is the same at every step, summed over the steps."""
        if not rows:
            return value * self.packing.steps
        lengths = self.packing.lengths.to(value.dtype)
        return value * lengths.reshape(-1, *[1] * (value.dim() - 1))
