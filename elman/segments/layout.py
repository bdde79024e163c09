"""Where the steps of a call lie, from users' sequences to packed rows and back."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.utils.rnn import PackedSequence

from elman.caches import cached
from elman.segments.check import read_bools, read_lengths
from elman.segments.move import Move
from elman.segments.pieces import Pieces, carried, cut
from elman.segments.segment import Segment
from elman.segments.timeline import Packing, as_index

Tensor = torch.Tensor


@dataclass(eq=False)  # made anew in each ragged call: a frozen one takes two microseconds more
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
    _pieces: Pieces | None = None  # None: piece i is all of row i
    _packed: PackedSequence | None = None  # one that came in

    # --- making one -----------------------------------------------------------------------------------------------

    @classmethod
    @cached("layouts of batches of which every step happens", 64)
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
        counts = None if lengths is None else read_lengths(lengths, steps, batch)
        happens = None if mask is None else read_bools(mask, "mask", steps, batch)
        resets = None if reset is None else read_bools(reset, "reset", steps, batch)
        pieces = cut(steps, batch, counts, happens, resets)
        sizes = pieces.sizes
        even = len(sizes) == 0 or sizes[0] == sizes[-1]
        if pieces.in_order and even and pieces.alone and len(sizes) == steps:
            return cls.whole(steps, batch, device)
        if even:
            return cls((steps, batch), batch, (len(sizes), len(pieces.owner)), device, None, pieces)
        packing = Packing(sizes, device)
        return cls((steps, batch), batch, (packing.rows,), device, packing, pieces)

    @classmethod
    def of_packed(cls, sequence: PackedSequence) -> Layout:
        """The layout of a PackedSequence, which is packed already: its data is taken as it lies."""
        data, sizes = sequence.data, sequence.batch_sizes.numpy()
        packing = Packing(sizes, data.device)
        inner = (packing.steps, packing.batch) if packing.even else (packing.rows,)
        pieces, order, back = None, sequence.sorted_indices, sequence.unsorted_indices
        if order is not None and back is not None:
            owner, place = order.cpu().numpy(), back.cpu().numpy()
            pieces = Pieces(
                owner, owner < 0, place, place, packing.counts, owner[:0], owner[:0], in_order=True
            )
        uneven = None if packing.even else packing
        return cls((packing.rows,), packing.batch, inner, data.device, uneven, pieces, sequence)

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
    def rows(self) -> int:
        """N, the rows of all steps."""
        return self.steps * self.pieces if self.packing is None else self.packing.rows

    @property
    def is_packed(self) -> bool:
        """Whether sequences lie for users as they do for circuits."""
        return self.lead == self.inner and not self.moves and self._packed is None

    @property
    def moves(self) -> bool:
        """Whether sequences are packed by a move of rows, and outputs by one back."""
        return self._pieces is not None and not self._pieces.in_order

    @functools.cached_property
    def _move(self) -> Move | None:
        """From the user's rows to packed ones; None: they are the first N, in order."""
        pieces = self._pieces
        if pieces is None or pieces.in_order:
            return None
        return Move(pieces.rows, pieces.places, self.lead, self.device)

    @property
    def told(self) -> Pieces | None:
        """Where rows go, for a native pass that moves them itself (native/pass.hpp)."""
        return self._pieces

    @property
    def alone(self) -> bool:
        """Whether each row is one piece, which starts from the row's state: states change places with their rows, and
        nothing else happens to them."""
        return self.moves and self._pieces is not None and self._pieces.alone

    @functools.cached_property
    def swap(self) -> Move:
        """How states change places where rows are `alone`, and back. Elsewhere `start` and `final` find them."""
        assert self._pieces is not None
        return Move(self._pieces.owner, self._pieces.last, (self.batch,), self.device)

    @property
    def is_cut(self) -> bool:
        """Whether not every step of every row happens, in one piece."""
        return self._pieces is not None or self._packed is not None

    @functools.cached_property
    def cuts(self) -> bool:
        """Whether a row runs as several pieces."""
        pieces = self._pieces
        return pieces is not None and len(pieces.owner) > int(np.count_nonzero(pieces.first >= 0))

    def pack(self, value: Tensor) -> Tensor:
        """A sequence as circuits run it: `[T, B, …]` (of a PackedSequence the data) -> `[*inner, …]`."""
        if self.lead == self.inner:
            return value
        if len(self.lead) > 1:
            value = value.flatten(0, 1)[: self.rows] if self._move is None else self._move(value)
        return value if self.packing is not None else value.unflatten(0, self.inner)

    def unpack(self, value: Tensor) -> Tensor | PackedSequence:
        """Back in place: `[*inner, …]` -> `[T, B, …]`, zeros at steps that do not happen, or a PackedSequence."""
        return self.as_given(self.put_back(value))

    def put_back(self, value: Tensor) -> Tensor:
        """The same as a tensor: of a PackedSequence the data."""
        if self._packed is not None:
            return value if self.packing is not None else value.flatten(0, 1)
        if self.is_packed:
            return value
        if self.packing is None:
            value = value.flatten(0, 1)
        if self._move is not None:
            return self._move.back(value)
        steps, batch = self.lead
        filled = value.new_zeros((steps * batch, *value.shape[1:]))
        filled[: len(value)] = value
        return filled.unflatten(0, self.lead)

    # --- a segment at a time --------------------------------------------------------------------------------------

    def part(self, value: Tensor, s: Segment) -> Tensor:
        """Of a sequence as users have it, what circuits run in a segment."""
        if self.lead == self.inner:
            return value[s.first : s.stop] if self.packing is None else value[s.start : s.end]
        if len(self.lead) == 1:
            part = value[s.start : s.end]
        elif value.is_contiguous() and self._move is None:
            part = value.flatten(0, 1)[s.start : s.end]
        else:
            rows = self._rows(s)
            if value.is_contiguous():
                part = value.flatten(0, 1).index_select(0, rows)
            else:  # flattened, it would be copied as a whole
                part = value[rows // self.lead[1], rows % self.lead[1]]
        return part if self.packing is not None else part.unflatten(0, (s.stop - s.first, s.rows))

    def put(self, whole: Tensor, value: Tensor, s: Segment) -> None:
        """Write what circuits made of a segment into its places: into `room`."""
        if self.lead == self.inner and self.packing is None:
            whole[s.first : s.stop] = value
            return
        if self.packing is None:
            value = value.flatten(0, 1)
        flat = whole if len(self.lead) == 1 else whole.flatten(0, 1)
        if self._move is None:
            flat[s.start : s.end] = value
        else:
            flat.index_copy_(0, self._rows(s), value)

    def room(self, widths: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Memory for a sequence as users have it, zero at steps that do not happen."""
        make = torch.zeros if self.is_cut else torch.empty
        return make((*self.lead, *widths), dtype=dtype, device=self.device)

    def as_given(self, value: Tensor) -> Tensor | PackedSequence:
        """A sequence that is put back, or was made in `room`, as the user's come."""
        return value if self._packed is None else PackedSequence(value, *self._packed[1:])

    def _rows(self, s: Segment) -> Tensor:
        """[rows of a segment]: where each lies among the T B."""
        if self._move is None:
            return torch.arange(s.start, s.end, device=self.device)
        return self._move.rows[s.start : s.end]

    def first(self, value: Tensor) -> Tensor:
        """The first step of a packed sequence, `[pieces, …]`, for tracing; zeros where there is none."""
        if self.packing is not None:
            return value[: self.pieces]
        return value[0] if self.steps else value.new_zeros(value.shape[1:])

    def spread(self, value: Tensor) -> Tensor:
        """A value per row, for each piece: `[B, …]` -> `[pieces, …]`."""
        return value if self._pieces is None else self._choose([value], self._pieces.owner)[0]

    def starts_anew(self, reverse: bool) -> int:
        """How many pieces start from the cell's initial state rather than from that of their row."""
        pieces = self._pieces
        if pieces is None or (not self.cuts and not pieces.fresh.any()):
            return 0
        return len(pieces.owner) - int(carried(pieces, reverse).sum())

    def start(
        self, states: Sequence[Tensor], reverse: bool, initial: Callable[[int], Sequence[Tensor]]
    ) -> list[Tensor]:
        """What each piece starts from, `[pieces, …]`: its row's state `[B, …]`, or the cell's initial state.

        initial: batch size -> initial states; asked only where a piece needs one.
        """
        pieces = self._pieces
        if pieces is None:
            return list(states)
        count = self.starts_anew(reverse)
        if not count:
            return self._choose(states, pieces.owner)
        own = carried(pieces, reverse)
        index = np.where(own, pieces.owner, self.batch - 1 + (~own).cumsum())
        both = [torch.cat(some) for some in zip(states, initial(count), strict=True)]
        return self._choose(both, index)

    def final(self, ended: Sequence[Tensor], states: Sequence[Tensor | None], reverse: bool) -> list[Tensor]:
        """Each row's final state, from those of its pieces, and from its own (None: zeros) where no step happens."""
        pieces = self._pieces
        if pieces is None:
            return list(ended)
        index = pieces.first if reverse else pieces.last
        missing = index < 0
        if missing.any():
            index = np.where(missing, len(pieces.owner) + _numbers(self.batch), index)
            own = [
                value.new_zeros((self.batch, *value.shape[1:])) if state is None else state
                for value, state in zip(ended, states, strict=True)
            ]
            ended = [torch.cat(both) for both in zip(ended, own, strict=True)]
        return self._choose(ended, index)

    def _choose(self, values: Sequence[Tensor], index: np.ndarray) -> list[Tensor]:
        """The same rows of several tensors."""
        if not values or (len(index) == len(values[0]) and bool((index == _numbers(len(index))).all())):
            return list(values)
        rows = as_index(index, self.device)
        return [value.index_select(0, rows) for value in values]


def _numbers(count: int) -> np.ndarray:
    """0 … count - 1: a part of one array, which is made once and grows. Not to be written to."""
    global _counted
    numbers = _counted  # looked at once: another thread may put fewer there
    if count > len(numbers):
        _counted = numbers = np.arange(2 * count)
    return numbers[:count]


_counted = np.arange(1024)
