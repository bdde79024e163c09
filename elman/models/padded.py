"""Sequences of different lengths side by side: what stands behind the end of one is never read."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from elman.errors import InputError
from elman.segments.check import read_lengths

Lengths = Tensor | Sequence[int]


def happening(x: Tensor, lengths: Lengths) -> Tensor:
    """Bools `[T, B]`, where `t < lengths[b]`. Raises InputError where lengths are none of x, or all are 0."""
    T, B = x.shape[:2]
    numbers = read_lengths(lengths, T, B)
    if not numbers.any():
        raise InputError(
            what="no step happens", where="lengths=", got="0 in all" if B else "no sequences",
            expected="at least 1 somewhere", mend="leave the batch out",
        )  # fmt: skip
    return (torch.arange(T)[:, None] < numbers).to(x.device)


def cleaned(values: Tensor, there: Tensor | None) -> Tensor:
    """Symbols, and 0 for whatever stands in place of them behind the end of a sequence."""
    return values if there is None else values.masked_fill(~there, 0)


__all__ = ["Lengths", "cleaned", "happening"]
