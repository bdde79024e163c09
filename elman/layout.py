"""How the rows of a call lie in memory: packed, step after step.

The rows of all steps that happen are one tensor `[N, …]`: first those of step 0, then those of step 1, and so on;
`batch_sizes[t]` rows run at step t, and the sizes never grow (as in torch's PackedSequence). A row keeps its place
among the rows of a step. Here is the dense case, where every step has B rows and packing is a view; what knows
about steps and rows asks a Timeline and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

Tensor = torch.Tensor


@dataclass(eq=False)
class Timeline:
    """The steps of one call: `steps` of `batch` rows, running backward if `reverse`.

    trails: sequences of a state that were allocated with one block more for the starting value, by the address of
        their data, so that their delay is a view; with that starting value.
    """

    steps: int
    batch: int
    reverse: bool
    trails: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

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

    def allocate(
        self, shape: Sequence[int], dtype: torch.dtype, device: torch.device, start: Tensor | None
    ) -> Tensor:
        """Room for a packed sequence; with the starting value of its state, room for that beside it."""
        if start is None or self.steps == 0:
            return torch.empty((self.rows, *shape), dtype=dtype, device=device)
        trail = torch.empty((self.rows + self.batch, *shape), dtype=dtype, device=device)
        sequence, first = self._parts(trail)
        first.copy_(start)
        self.trails[sequence.data_ptr()] = (trail, start)
        return sequence

    def _parts(self, trail: Tensor) -> tuple[Tensor, Tensor]:
        """(the sequence, the starting value) in a trail."""
        if self.reverse:
            return trail[: self.rows], trail[self.rows :]
        return trail[self.batch :], trail[: self.batch]

    def shift(self, value: Tensor, initial: Tensor | None) -> Tensor:
        """What each step sees of the step that ran before it; `initial` [B, …] (or zeros) at the first."""
        # Two states may be fed by one value and start from different ones: a trail is good for its own start only.
        trail, start = self.trails.get(value.data_ptr(), (None, None)) if self.rows else (None, None)
        if trail is not None and start is initial and trail.shape[1:] == value.shape[1:]:
            return trail[self.batch :] if self.reverse else trail[: self.rows]
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
