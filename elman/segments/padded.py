"""Pieces under torch.compile: the numbers of rows as tensors whose sizes do not depend on what is in them.

A compiled graph cannot know how many pieces or packed rows there will be. It works with as many as there can be, T B
rows and `most` pieces; what is left over lies behind and is zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from elman.errors import InputError, InputTypeError
from elman.segments.check import read_bools, read_lengths
from elman.segments.pieces import carried, cut
from elman.segments.timeline import Packing

Tensor = torch.Tensor


@torch.library.custom_op("elman::pieces", mutates_args=())
def pieces_op(
    lengths: Tensor | None,
    mask: Tensor | None,
    reset: Tensor | None,
    steps: int,
    batch: int,
    most: int,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(sizes [T], rows [T B], places [T B], owner, start [most], final [B]), int64 on the CPU.

    sizes: packed rows at each step. rows: where each lies among the T B. places: where each of the T B lies among the
    packed ones, T B for nowhere. owner: the row of a piece. start: what a piece starts from, b for the state of row b,
    B + k for the k-th initial state of the cell. final: where the final state of a row is, p for that of piece p,
    most + b for the row's own.
    """
    pieces = cut(
        steps, batch,
        None if lengths is None else read_lengths(lengths, steps, batch),
        None if mask is None else read_bools(mask, "mask", steps, batch),
        None if reset is None else read_bools(reset, "reset", steps, batch),
    )  # fmt: skip
    count, all_rows = int(pieces.sizes.sum()), steps * batch
    places = np.where(pieces.places == count, all_rows, pieces.places)
    own = carried(pieces, reverse)
    start = np.where(own, pieces.owner, batch - 1 + (~own).cumsum())
    chosen = pieces.first if reverse else pieces.last
    final = np.where(chosen < 0, most + np.arange(batch), chosen)
    return (
        _padded(pieces.sizes, steps), _padded(pieces.rows, all_rows), torch.from_numpy(places),
        _padded(pieces.owner, most), _padded(start, most), torch.from_numpy(final),
    )  # fmt: skip


@pieces_op.register_fake
def _(
    lengths: Tensor | None,
    mask: Tensor | None,
    reset: Tensor | None,
    steps: int,
    batch: int,
    most: int,
    reverse: bool,
) -> tuple[Tensor, ...]:
    return tuple(
        torch.empty(size, dtype=torch.int64)
        for size in (steps, steps * batch, steps * batch, most, most, batch)
    )


def _padded(numbers: np.ndarray, size: int) -> Tensor:
    padded = torch.zeros(size, dtype=torch.int64)
    padded[: len(numbers)] = torch.from_numpy(numbers)
    return padded


class PaddedLayout:
    """What `Layout` is for a call, in operations that a compiler can follow."""

    def __init__(
        self, lengths: Tensor | None, mask: Tensor | None, reset: Tensor | None, steps: int, batch: int, reverse: bool,
        device: torch.device,
    ) -> None:  # fmt: skip
        self.steps, self.batch, self.rows = steps, batch, steps * batch
        self.starts_anew = reset is not None  # else every row is one piece
        self.most = self.rows if reset is not None else batch
        numbers = torch.ops.elman.pieces(lengths, mask, reset, steps, batch, self.most, reverse)
        self.sizes = numbers[0]
        self._rows, self._places, self._owner, self._start, self._final = [t.to(device) for t in numbers[1:]]

    def pack(self, value: Tensor) -> Tensor:
        """[T, B, …] -> [T B, …]."""
        return value.flatten(0, 1).index_select(0, self._rows)

    def unpack(self, value: Tensor) -> Tensor:
        """[T B, …] -> [T, B, …], zeros at steps that do not happen."""
        nothing = value.new_zeros((1, *value.shape[1:]))
        moved = torch.cat([value, nothing]).index_select(0, self._places)
        return moved.reshape(self.steps, self.batch, *value.shape[1:])

    def spread(self, value: Tensor) -> Tensor:
        """[B, …] -> [most, …]."""
        return value.index_select(0, self._owner)

    def start(self, states: list[Tensor], initial: list[Tensor] | None) -> list[Tensor]:
        """What pieces start from: [B, …] -> [most, …].

        initial: [most, …], the cell's own initial states; None for zeros.
        """
        if not self.starts_anew:
            return [self.spread(state) for state in states]
        if initial is None:  # one zero is enough
            index = torch.clamp(self._start, max=self.batch)
            initial = [state.new_zeros((1, *state.shape[1:])) for state in states]
        else:
            index = self._start
        return [
            torch.cat([state, more]).index_select(0, index)
            for state, more in zip(states, initial, strict=True)
        ]

    def final(self, ended: list[Tensor], states: list[Tensor]) -> list[Tensor]:
        """[most, …] -> [B, …]."""
        return [
            torch.cat([last, own]).index_select(0, self._final)
            for last, own in zip(ended, states, strict=True)
        ]


class Filled:
    """The part of padded tensors that packed rows fill: what an operator runs on. sizes: of `pieces_op`."""

    def __init__(self, sizes: Tensor, device: torch.device) -> None:
        rows = [size for size in sizes.tolist() if size]
        self.steps, self.pieces, self.rows = len(rows), max(rows, default=0), sum(rows)
        self.packing = Packing(rows, device) if rows and rows[0] != rows[-1] else None

    def part(self, value: Tensor, timed: bool, rows: bool) -> Tensor:
        """Of a padded input. timed: whether it is a sequence; rows: whether it has a batch dimension."""
        if not timed:
            return value[: self.pieces] if rows else value
        if not rows:
            return value[: self.steps]
        value = value[: self.rows]
        return value if self.packing is not None else value.unflatten(0, (self.steps, self.pieces))

    def whole(self, value: Tensor, timed: bool, shape: Sequence[int]) -> Tensor:
        """Padded with zeros to a shape."""
        if timed and self.packing is None and value.dim() > len(shape):
            value = value.flatten(0, 1)
        padded = value.new_zeros(shape)
        padded[tuple(slice(size) for size in value.shape)] = value
        return padded


def check_happens(
    lengths: Tensor | None, mask: Tensor | None, reset: Tensor | None, steps: int, batch: int
) -> None:
    """Refuse, while compiling, what has another shape or dtype; values are looked at when the graph runs."""
    if lengths is not None:
        if lengths.is_floating_point() or lengths.dtype == torch.bool:
            raise InputTypeError("lengths are whole numbers", where="lengths=", expected="int64 or int32")
        if lengths.dim() != 1 or lengths.shape[0] != batch:
            raise InputError("there is one length for each sequence", where="lengths=", expected="[B]")
    for name, value in (("mask", mask), ("reset", reset)):
        if value is not None:
            if value.dtype != torch.bool:
                raise InputTypeError(
                    f"{name} says yes or no for each step", where=f"{name}=", expected="bools"
                )
            if value.dim() != 2 or value.shape[0] != steps or value.shape[1] != batch:
                raise InputError(
                    f"{name} says it for each step of each sequence", where=f"{name}=", expected="[T, B]"
                )
