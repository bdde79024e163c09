"""How the rows of a call lie in memory: packed, step after step.

The rows of all steps that happen are one tensor `[N, …]`: first those of step 0, then those of step 1, and so on;
`batch_sizes[t]` rows run at step t, and the sizes never grow (as in torch's PackedSequence). A row keeps its place
among the rows of a step. Here is the dense case, where every step has B rows and packing is a view; what knows
about steps and rows asks a Timeline and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

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
