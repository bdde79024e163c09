"""Which dimension of a value is the batch.

A circuit is traced with one symbolic size, the batch. A value carries rows in the one dimension whose size
contains that symbol; the size may be a multiple of it (`[B·heads, d]`), the row index being the slow one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from elman.caches import cached


@dataclass(frozen=True)
class Rows:
    """Where a value carries the batch: dimension `dim`, of size factor·B."""

    dim: int
    factor: int


class Mixed(Exception):
    """A value has more than one batch dimension, or a size that is no multiple of the batch."""


def factor(size: Any) -> int:
    """k if a size is k·B with B the symbolic batch, 0 if it is an ordinary number."""
    if isinstance(size, int):
        return 0
    multiple = _factor(size.node.expr)
    if isinstance(multiple, str):
        raise Mixed(multiple)
    return multiple


@cached("what sizes are of the batch", 256)
def _factor(expression: Any) -> int | str:
    """The factor; or a sentence, where there is none. A step has few sizes, which are asked for thousands of times."""
    symbols = expression.free_symbols
    if not symbols:
        return 0
    (symbol,) = symbols
    ratio = expression / symbol
    if ratio.free_symbols or not ratio.is_integer:
        return f"a size of {expression} is no multiple of the batch"
    return int(ratio)


def rows_of(value: Any) -> Rows | None:
    """Where a fake tensor carries rows, or None. Raises Mixed for two batch dimensions."""
    if not isinstance(value, torch.Tensor):
        return None
    dims = [(dim, k) for dim, size in enumerate(value.shape) if (k := factor(size))]
    if len(dims) > 1:
        raise Mixed("the result has the batch in two dimensions, so every row meets every other")
    return Rows(*dims[0]) if dims else None


def feature_shape(value: torch.Tensor, rows: bool) -> tuple[int, ...]:
    """The shape without the leading batch dimension."""
    return tuple(int(size) for size in (value.shape[1:] if rows else value.shape))


def carries(value: Any) -> bool:
    """Whether a value, or any part of a tuple, carries rows; sizes do not count."""
    if isinstance(value, (tuple, list)):
        return any(carries(part) for part in value)
    try:
        return rows_of(value) is not None
    except Mixed:
        return True
