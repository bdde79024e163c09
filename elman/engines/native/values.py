"""What a value is while a loop is lowered: a view into a buffer, per row.

The batch is left out: `[B, 3, 7]` is a tensor `[1, 3, 7]` in each row, `[B·heads, d]` is `[heads, d]`. So slices,
transpositions and broadcasts are new strides on old memory, whatever they do to the batch dimension.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from elman.circuit.rows import factor

REAL, BOOL, INT = "real", "bool", "int"
TYPES = {torch.float32: REAL, torch.float64: REAL, torch.bool: BOOL, torch.int64: INT}


class Unsupported(Exception):
    """Why a loop cannot be lowered; its text is the reason that `supports()` gives."""


@dataclass(eq=False)
class Buffer:
    """Memory for one value. kind: as in native/program.hpp.

    width: elements in a row. index: which constant, sequence, emit or state. inside: the buffer that this one is a part
    of, and where (a piece of a concatenation). offset: in the scratch or prepared memory, in bytes.
    """

    kind: str
    type: str
    width: int
    index: int = 0
    inside: tuple[Buffer, int] | None = None
    offset: int = 0

    def root(self) -> tuple[Buffer, int]:
        """The buffer that has memory of its own, and where in it this one begins."""
        buffer, offset = self, 0
        while buffer.inside is not None:
            buffer, offset = buffer.inside[0], offset + buffer.inside[1]
        return buffer, offset

    @property
    def fixed(self) -> bool:
        """Whether it holds the same during a call, for all rows."""
        return self.kind in ("constant", "prepared")


@dataclass(frozen=True)
class View:
    """A tensor per row: `sizes`, and strides in elements."""

    buffer: Buffer
    offset: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def type(self) -> str:
        return self.buffer.type

    @property
    def numel(self) -> int:
        return math.prod(self.sizes)

    @property
    def whole(self) -> bool:
        """Whether it is its buffer, in order."""
        return self.offset == 0 and self.numel == self.buffer.width and self.contiguous

    @property
    def contiguous(self) -> bool:
        return all(
            size == 1 or stride == expected
            for size, stride, expected in zip(self.sizes, self.strides, contiguous(self.sizes), strict=True)
        )

    def strides_agree(self, other: View) -> bool:
        """Whether elements lie as far from one another as another view's of the same sizes."""
        return all(a == b or n == 1 for n, a, b in zip(self.sizes, self.strides, other.strides, strict=True))

    def permute(self, order: Sequence[int]) -> View:
        order = [d % len(self.sizes) for d in order]
        return replace(
            self,
            sizes=tuple(self.sizes[d] for d in order),
            strides=tuple(self.strides[d] for d in order),
        )

    def slice(self, dim: int, start: int, stop: int, step: int = 1) -> View:
        size = self.sizes[dim]
        start = min(max(start + size if start < 0 else start, 0), size)
        stop = min(max(stop + size if stop < 0 else stop, start), size)
        sizes, strides = list(self.sizes), list(self.strides)
        offset = self.offset + start * strides[dim]
        sizes[dim], strides[dim] = -((start - stop) // step), strides[dim] * step
        return replace(self, offset=offset, sizes=tuple(sizes), strides=tuple(strides))

    def select(self, dim: int, index: int) -> View:
        dim %= len(self.sizes)
        index += self.sizes[dim] if index < 0 else 0
        one = self.slice(dim, index, index + 1)
        return replace(one, sizes=_without(one.sizes, dim), strides=_without(one.strides, dim))

    def flip(self, dims: Sequence[int]) -> View:
        strides, offset = list(self.strides), self.offset
        for dim in dims:
            offset += (self.sizes[dim] - 1) * strides[dim]
            strides[dim] = -strides[dim]
        return replace(self, offset=offset, strides=tuple(strides))

    def unsqueeze(self, dim: int) -> View:
        dim %= len(self.sizes) + 1
        return replace(
            self,
            sizes=(*self.sizes[:dim], 1, *self.sizes[dim:]),
            strides=(*self.strides[:dim], 0, *self.strides[dim:]),
        )

    def expand(self, sizes: Sequence[int]) -> View:
        """Broadcast to sizes, dimensions of size 1 repeated."""
        missing = len(sizes) - len(self.sizes)
        own_sizes, own_strides = (1,) * missing + self.sizes, (0,) * missing + self.strides
        strides = []
        for have, want, stride in zip(own_sizes, sizes, own_strides, strict=True):
            if have != want and have != 1:
                raise Unsupported(f"sizes {list(self.sizes)} do not broadcast to {list(sizes)}")
            strides.append(stride if have == want and want != 1 else 0)
        return replace(self, sizes=tuple(sizes), strides=tuple(strides))

    def reshape(self, sizes: Sequence[int]) -> View | None:
        """The same elements in the same order under other sizes, or None if strides cannot say that."""
        if self.numel == 0 or self.contiguous:
            return replace(self, sizes=tuple(sizes), strides=contiguous(sizes))
        own_sizes, (own_strides,) = collapse([self])  # the runs that hang together
        runs = list(zip(own_sizes, own_strides, strict=True))
        strides: list[int] = []
        at = len(runs) - 1
        left, stride = runs[at] if runs else (1, 1)
        for size in reversed(sizes):
            if size == 1:
                strides.append(0)
                continue
            if left == 1:
                at -= 1
                left, stride = runs[at]
            if left % size:
                return None
            strides.append(stride)
            left, stride = left // size, stride * size
        return replace(self, sizes=tuple(sizes), strides=tuple(reversed(strides)))


def contiguous(sizes: Sequence[int]) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(sizes):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def collapse(views: Sequence[View]) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """Common sizes of views of the same shape with as few dimensions as they allow, and each view's strides."""
    sizes: list[int] = []
    strides: list[list[int]] = [[] for _ in views]
    for d, size in enumerate(views[0].sizes):
        if size == 1:
            continue
        if sizes and all(own[-1] == view.strides[d] * size for own, view in zip(strides, views, strict=True)):
            sizes[-1] *= size
            for own, view in zip(strides, views, strict=True):
                own[-1] = view.strides[d]
            continue
        sizes.append(size)
        for own, view in zip(strides, views, strict=True):
            own.append(view.strides[d])
    return tuple(sizes), [tuple(own) for own in strides]


def row_sizes(value: Any) -> tuple[int, ...]:
    """The sizes of a traced tensor in one row."""
    return tuple(size if isinstance(size, int) else factor(size) or int(size) for size in value.shape)


def type_of(value: Any) -> str:
    type = TYPES.get(value.dtype)
    if type is None:
        raise Unsupported(f"values of type {str(value.dtype).removeprefix('torch.')}")
    return type


def _without(items: tuple[int, ...], dim: int) -> tuple[int, ...]:
    return items[:dim] + items[dim + 1 :]
