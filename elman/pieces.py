"""Lengths, masks and resets: which steps happen, cut into pieces that run by themselves.

A piece is a stretch of a row's steps, those that are masked out dropped, between two resets. Pieces are the rows that
circuits run on: they are sorted by length and their steps gathered into packed rows, so that padding is never computed
on, nothing in it can leak, and a row that is cut runs as several short ones side by side.

What is said of a batch of sequences `[T, B, …]` here is meant by elman's definition of a sequence: the piece of a row
that runs first starts from the row's state, unless it runs forward and a reset stands at or before its first step;
every other piece starts from the cell's initial state; a row's final state is that of its piece run last, or the state
that it came with if it has none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch._C._functorch import is_functorch_wrapped_tensor, peek_interpreter_stack
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.nn.utils.rnn import PackedSequence

from elman.errors import InputError, InputTypeError, NotSupported
from elman.layout import Packing, as_index

Tensor = torch.Tensor


@dataclass(frozen=True, eq=False)
class _Pieces:
    """For each piece in the order of the packed rows: whose it is, and how it lies among its row's pieces.

    owner: the row. first, last: whether it is its row's first or last in time. fresh: whether a reset stands at or
    before its first step.
    """

    owner: np.ndarray
    first: np.ndarray
    last: np.ndarray
    fresh: np.ndarray


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the steps of a call lie: sequences as users have them on one side, as circuits run them on the other.

    lead: the leading dimensions of the user's sequences, (T, B), or (N,) for a PackedSequence. batch: B.
    inner: the leading dimensions of packed ones: (steps, pieces) where all pieces are of one length, else (N,).
    device: of the tensors. packing: the sizes of steps, where they differ.
    """

    lead: tuple[int, ...]
    batch: int
    inner: tuple[int, ...]
    device: torch.device
    packing: Packing | None = None
    _pieces: _Pieces | None = None  # None: piece i is all of row i
    _rows: Tensor | None = None  # [N], where a packed row lies among the user's; None: the first N, in order
    _packed: PackedSequence | None = None  # one that came in

    # --- making one -----------------------------------------------------------------------------------------------

    @classmethod
    def whole(cls, steps: int, batch: int, device: torch.device) -> Layout:
        """Every step of every row happens."""
        return cls((steps, batch), batch, (steps, batch), device)

    @classmethod
    def of(
        cls, steps: int, batch: int, device: torch.device, *,
        lengths: Tensor | Sequence[int] | None = None, mask: Tensor | None = None, reset: Tensor | None = None,
    ) -> Layout:  # fmt: skip
        """The layout of a batch `[T, B, …]` of which not all steps happen, or which resets cut.

        lengths: `[B]` whole numbers in 0 … T, on any device: steps t < lengths[b] happen.
        mask: `[T, B]` bools: steps where it is true happen. reset: `[T, B]` bools: step t begins a new sequence.
        Raises InputError or InputTypeError for what does not fit.
        """
        known = None if lengths is None else _lengths(lengths, steps, batch)
        if mask is None and reset is None:
            return cls.whole(steps, batch, device) if known is None else cls._ragged(known, steps, device)
        happens = np.ones((steps, batch), bool) if mask is None else _bools(mask, "mask", steps, batch)
        if known is not None:
            happens = happens & (np.arange(steps)[:, None] < known)
        resets = None if reset is None else _bools(reset, "reset", steps, batch)
        return cls._cut(happens, resets, device)

    @classmethod
    def _ragged(cls, lengths: np.ndarray, steps: int, device: torch.device) -> Layout:
        """The first steps of each row: one piece for each that has any."""
        batch = len(lengths)
        order = np.argsort(-lengths, kind="stable")[: np.count_nonzero(lengths)]
        each = lengths[order]
        step, place = (np.arange(each.max(initial=0))[:, None] < each).nonzero()
        every = np.ones(len(order), bool)
        pieces = _Pieces(order, every, every, ~every)
        return cls._placed(steps, batch, pieces, np.bincount(step), step * batch + order[place], device)

    @classmethod
    def _cut(cls, happens: np.ndarray, resets: np.ndarray | None, device: torch.device) -> Layout:
        """Whatever there is."""
        steps, batch = happens.shape
        # All steps that happen, row after row: two of a row are in one piece if as many resets stand before both.
        row, time = happens.T.nonzero()
        before = np.zeros(len(row), int) if resets is None else resets.cumsum(0)[time, row]
        begins = np.ones(len(row), bool)
        begins[1:] = (row[1:] != row[:-1]) | (before[1:] != before[:-1])
        (starts,) = begins.nonzero()
        lengths = np.diff(starts, append=len(row))
        owner = row[starts]
        first = np.diff(owner, prepend=-1) > 0
        last = np.diff(owner, append=batch) > 0
        # The longest first, and then step after step.
        order = np.argsort(-lengths, kind="stable")
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        piece = begins.cumsum() - 1
        step = np.arange(len(row)) - starts[piece]
        sizes = np.bincount(step)
        rows = np.empty_like(row)
        rows[(sizes.cumsum() - sizes)[step] + place[piece]] = time * batch + row
        pieces = _Pieces(owner[order], first[order], last[order], before[starts[order]] > 0)
        return cls._placed(steps, batch, pieces, sizes, rows, device)

    @classmethod
    def _placed(
        cls, steps: int, batch: int, pieces: _Pieces, sizes: np.ndarray, rows: np.ndarray, device: torch.device
    ) -> Layout:  # fmt: skip
        """rows: where each packed row lies among the `T * B`. sizes: how many there are at each step."""
        in_order = np.array_equal(rows, np.arange(len(rows)))
        if in_order and len(rows) == steps * batch and not pieces.fresh.any():
            return cls.whole(steps, batch, device)
        index = None if in_order else as_index(rows, device)
        if len(sizes) == 0 or sizes[0] == sizes[-1]:
            return cls((steps, batch), batch, (len(sizes), len(pieces.owner)), device, None, pieces, index)
        packing = Packing(sizes.tolist(), device)
        return cls((steps, batch), batch, (packing.rows,), device, packing, pieces, index)

    @classmethod
    def of_packed(cls, sequence: PackedSequence) -> Layout:
        """The layout of a PackedSequence, which is packed already: its data is taken as it lies."""
        data, sizes = sequence.data, sequence.batch_sizes.tolist()
        packing = Packing(sizes, data.device)
        inner = (packing.steps, packing.batch) if packing.even else (packing.rows,)
        pieces, order = None, sequence.sorted_indices
        if order is not None:
            every = np.ones(packing.batch, bool)
            pieces = _Pieces(order.cpu().numpy(), every, every, ~every)
        uneven = None if packing.even else packing
        return cls((packing.rows,), packing.batch, inner, data.device, uneven, pieces, None, sequence)

    # --- what circuits see ----------------------------------------------------------------------------------------

    @property
    def steps(self) -> int:
        """The steps of the longest piece."""
        return self.inner[0] if self.packing is None else self.packing.steps

    @property
    def pieces(self) -> int:
        """How many pieces there are: the batch that circuits run on."""
        return self.inner[1] if self.packing is None else self.packing.batch

    @property
    def is_cut(self) -> bool:
        """Whether not every step of every row happens, in one piece."""
        return self._pieces is not None or self._packed is not None

    @property
    def cuts(self) -> bool:
        """Whether a row runs as several pieces."""
        return self._pieces is not None and not bool(self._pieces.first.all())

    def pack(self, value: Tensor) -> Tensor:
        """A sequence as circuits run it: `[T, B, …]` (of a PackedSequence the data) -> `[*inner, …]`."""
        if self.lead == self.inner:
            return value
        if len(self.lead) > 1:
            value = value.flatten(0, 1)
            count = self.pieces * self.steps if self.packing is None else self.packing.rows
            value = value[:count] if self._rows is None else value.index_select(0, self._rows)
        return value if self.packing is not None else value.unflatten(0, self.inner)

    def unpack(self, value: Tensor) -> Tensor | PackedSequence:
        """Back in place: `[*inner, …]` -> `[T, B, …]`, zeros at steps that do not happen, or a PackedSequence."""
        if self._packed is not None:
            _, sizes, order, back = self._packed
            return PackedSequence(
                value if self.packing is not None else value.flatten(0, 1), sizes, order, back
            )
        if self.lead == self.inner and self._rows is None:
            return value
        if self.packing is None:
            value = value.flatten(0, 1)
        steps, batch = self.lead
        made = value.new_zeros((steps * batch, *value.shape[1:]))
        if self._rows is not None:
            made = made.index_copy_(0, self._rows, value)
        else:
            made[: len(value)] = value
        return made.unflatten(0, self.lead)

    def example(self, value: Tensor) -> Tensor:
        """One step of a packed sequence, `[1, pieces, …]`, for tracing."""
        return value[:1] if self.packing is None else value[: self.pieces].unsqueeze(0)

    def spread(self, value: Tensor) -> Tensor:
        """A value per row, for each piece: `[B, …]` -> `[pieces, …]`."""
        return value if self._pieces is None else self._choose(value, self._pieces.owner)

    def start(
        self, states: Sequence[Tensor], reverse: bool, initial: Callable[[int], Sequence[Tensor]]
    ) -> list[Tensor]:
        """What each piece starts from, `[pieces, …]`: its row's state `[B, …]`, or the cell's initial state.

        initial: batch size -> initial states; asked only where a piece needs one.
        """
        pieces = self._pieces
        if pieces is None:
            return list(states)
        carried = pieces.last if reverse else pieces.first & ~pieces.fresh
        count = int((~carried).sum())
        index = np.where(carried, pieces.owner, self.batch - 1 + (~carried).cumsum())
        if count:
            states = [torch.cat(both) for both in zip(states, initial(count), strict=True)]
        return [self._choose(state, index) for state in states]

    def final(self, ended: Sequence[Tensor], states: Sequence[Tensor], reverse: bool) -> list[Tensor]:
        """Each row's final state, from those of its pieces, and from its own where no step happens."""
        pieces = self._pieces
        if pieces is None:
            return list(ended)
        index = len(pieces.owner) + np.arange(self.batch)
        chosen = pieces.first if reverse else pieces.last
        index[pieces.owner[chosen]] = chosen.nonzero()[0]
        if chosen.sum() < self.batch:
            ended = [torch.cat(both) for both in zip(ended, states, strict=True)]
        return [self._choose(state, index) for state in ended]

    def _choose(self, value: Tensor, index: np.ndarray) -> Tensor:
        """Rows of a tensor."""
        if len(index) == len(value) and np.array_equal(index, np.arange(len(index))):
            return value
        return value.index_select(0, as_index(index, self.device))


def _lengths(lengths: Tensor | Sequence[int], steps: int, batch: int) -> np.ndarray:
    given = lengths if isinstance(lengths, Tensor) else torch.tensor(lengths)
    if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
        raise InputTypeError(
            what="lengths are whole numbers", where="lengths=", got=str(given.dtype), expected="int64 or int32",
            mend="use lengths.long()",
        )  # fmt: skip
    if given.shape != (batch,):
        raise InputError(
            what="there is one length for each sequence", where="lengths=", got=f"shape {list(given.shape)}",
            expected=f"[{batch}]",
        )  # fmt: skip
    found = _read(given, "lengths")
    wrong = np.flatnonzero((found < 0) | (found > steps))
    if len(wrong):
        raise InputError(
            what="a length is not between none and all of the steps", where=f"lengths=, at [{wrong[0]}]",
            got=str(found[wrong[0]]), expected=f"0 … {steps}",
        )  # fmt: skip
    return found


def _bools(value: Tensor, name: str, steps: int, batch: int) -> np.ndarray:
    if not isinstance(value, Tensor) or value.dtype != torch.bool:
        raise InputTypeError(
            what=f"{name} says yes or no for each step", where=f"{name}=",
            got=str(value.dtype) if isinstance(value, Tensor) else type(value).__name__,
            expected="a tensor of bools", mend=f"use {name}.bool()",
        )  # fmt: skip
    if value.shape != (steps, batch):
        mend = "transpose it: time comes first" if value.shape == (batch, steps) else None
        raise InputError(
            what=f"{name} says it for each step of each sequence", where=f"{name}=",
            got=f"shape {list(value.shape)}", expected=f"[{steps}, {batch}]", mend=mend,
        )  # fmt: skip
    return _read(value, name)


def _read(value: Tensor, name: str) -> np.ndarray:
    """The numbers of a tensor, from wherever it lies and whatever transform is going on around."""
    if is_functorch_wrapped_tensor(value):
        raise NotSupported(
            what=f"{name} is an argument of a transform of torch.func, so that nobody knows its numbers",
            where=f"{name}=", mend="let the function that is transformed take it from outside",
        )  # fmt: skip
    if peek_interpreter_stack() is None:
        return value.detach().cpu().numpy()
    with temporarily_clear_interpreter_stack():
        return value.detach().cpu().numpy()
