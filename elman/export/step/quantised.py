"""Weights in fewer bytes: whole numbers of 8 bits with a scale for each row, or numbers of 16 bits."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from elman.errors import InputError
from elman.export.step.flat import Array

KINDS = ("float32", "float16", "int8")
HELP = "How matrices are stored: float32; int8, with a scale for each row; in a page float16, too, and int8 by default."


class QuantisedRows(NamedTuple):
    """A matrix whose element [n, k] is scales[n] · numbers[n, k]: int8 [N, K] in -127 … 127, float32 [N]."""

    numbers: Tensor
    scales: Tensor

    def whole(self) -> Tensor:
        return self.numbers * self.scales[:, None]


def rows_of(array: Array) -> QuantisedRows:
    """A matrix in int8, symmetric: the largest of a row's absolute values is 127. Raises InputError for what is not
    finite."""
    assert array.row is not None
    matrix = array.values.reshape(-1, array.row)
    if not bool(matrix.isfinite().all()):
        raise InputError(
            what="weights that are not finite have no form in int8",
            where=array.name,
            mend='use weights="float32"',
        )
    top = matrix.abs().amax(1)
    scales = torch.where(top > 0, top / 127, 1.0)
    return QuantisedRows((matrix / scales[:, None]).round().clamp(-127, 127).to(torch.int8), scales)


def expect_kind(weights: str | None, kinds: tuple[str, ...], default: str) -> str:
    """Which of `kinds`. Raises InputError for any other."""
    if weights is None:
        return default
    if weights not in kinds:
        raise InputError(
            what="weights are not stored so", where="export(weights=)", got=str(weights)[:50],
            expected=", ".join(kinds), mend="take one of them",
        )  # fmt: skip
    return weights
