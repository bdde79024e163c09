"""Cutting a batch into pieces: numbers only, in C++ where that part is there."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

try:
    from elman import _native
except ImportError:
    _native: Any = None


class Pieces(NamedTuple):
    """The pieces of a batch `[T, B]`, the longest first, and its N packed rows: the steps of all pieces, those of their
    first steps before those of their second ones.

    owner: [P], the row of each piece. fresh: [P], whether a reset stands at or before its first step.
    first, last: [B], a row's first and last piece in time, -1 for a row without a step.
    sizes: [steps of the longest piece], how many pieces are longer than t.
    rows: [N], t B + b of each packed row. in_order: whether they are the first N, in order.
    places: [T B], which packed row is step t of row b; N where it does not happen.
    alone: whether each row is one piece, and starts from the row's state.
    """

    owner: np.ndarray
    fresh: np.ndarray
    first: np.ndarray
    last: np.ndarray
    sizes: np.ndarray
    rows: np.ndarray
    places: np.ndarray
    in_order: bool = False
    alone: bool = False


def carried(pieces: Pieces, reverse: bool) -> np.ndarray:
    """[P]: whether each starts from its row's state."""
    starts = np.zeros(len(pieces.owner), bool)
    begins = pieces.last if reverse else pieces.first
    starts[begins[begins >= 0]] = True
    return starts if reverse else starts & ~pieces.fresh


def cut(
    steps: int, batch: int, lengths: torch.Tensor | None, happens: torch.Tensor | None, resets: torch.Tensor | None
) -> Pieces:  # fmt: skip
    """The pieces of a batch, of which the steps happen that are within the lengths and where `happens` is true.

    lengths: int64 [B], in 0 … T. happens, resets: bool [T, B]. All contiguous, on the CPU.
    """
    if _native is not None:
        return _native.Pieces(
            steps, batch, lengths, happens, resets
        )  # which makes each array when it is asked for
    within = None if lengths is None else lengths.numpy()
    return plainly(steps, batch, within, *(None if t is None else t.numpy() for t in (happens, resets)))


def plainly(
    steps: int, batch: int, lengths: np.ndarray | None, happens: np.ndarray | None, resets: np.ndarray | None
) -> Pieces:
    """The same in numpy: what it means."""
    kept = np.ones((steps, batch), bool) if happens is None else happens
    if lengths is not None:
        kept = kept & (np.arange(steps)[:, None] < lengths)
    # All steps that happen, row after row: two of a row are in one piece if as many resets stand before both.
    row, time = kept.T.nonzero()
    passed = np.zeros(len(row), int) if resets is None else resets.cumsum(0)[time, row]
    begins = np.ones(len(row), bool)
    begins[1:] = (row[1:] != row[:-1]) | (passed[1:] != passed[:-1])
    (starts,) = begins.nonzero()
    owner, fresh = row[starts], passed[starts] > 0
    each = np.diff(starts, append=len(row))
    # The longest first, and then step after step.
    order = np.argsort(-each, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    first, last = np.full(batch, -1), np.full(batch, -1)
    last[owner] = place
    first[owner[::-1]] = place[::-1]
    piece = begins.cumsum() - 1
    step = np.arange(len(row)) - starts[piece]
    sizes = np.bincount(step)
    packed = (sizes.cumsum() - sizes)[step] + place[piece]
    rows = np.empty_like(row)
    rows[packed] = time * batch + row
    places = np.full(steps * batch, len(rows))
    places[rows] = np.arange(len(rows))
    in_order = np.array_equal(rows, np.arange(len(rows)))
    alone = len(owner) == batch and bool((first >= 0).all()) and not fresh.any()
    return Pieces(owner[order], fresh[order], first, last, sizes, rows, places, in_order, alone)
