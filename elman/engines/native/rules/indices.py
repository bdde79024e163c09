"""What indices choose: gather, scatter, and their like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from elman.engines.native.rules.features import lines_of
from elman.engines.native.rules.table import Want, rule
from elman.engines.native.values import INT, REAL, Unsupported, View
from elman.engines.native.writer import NUMBER, Writer

aten = torch.ops.aten


def _typed(code: str, type: str) -> str:
    if type not in (REAL, INT):
        raise Unsupported(f"{code} of {type} values")
    return code if type == REAL else f"int_{code}"


def gather(w: Writer, x: View, dim: int, index: View, behind: bool = False) -> View:
    """out[…, i, …] = x[…, index[…, i, …], …], index in the sizes of the result. behind: whether -1 is the last."""
    dim %= len(x.sizes)
    out = w.new(x.type, index.sizes)
    outer = [*index.sizes[:dim], *index.sizes[dim + 1 :]]
    (a, n, so), (b, _, si) = lines_of(w, out, [dim]), lines_of(w, index, [dim])
    rest = x.slice(dim, 0, 1).select(dim, 0)
    source = View(rest.buffer, rest.offset, tuple(outer), rest.strides)
    w.lines(
        _typed("gather", x.type), outer, n, [(a, so), (source, x.strides[dim]), (b, si)], k=x.sizes[dim],
        number=behind,
    )  # fmt: skip
    return out


def scatter(w: Writer, code: str, x: View, dim: int, index: View, source: View, behind: bool = False) -> View:
    """A copy of x with out[…, index[…, i, …], …] = (or +=) source[…, i, …]."""
    dim %= len(x.sizes)
    out = w.copy(x, into=w.new(x.type, x.sizes))
    outer = [*index.sizes[:dim], *index.sizes[dim + 1 :]]
    source = View(source.buffer, source.offset, index.sizes, source.strides)
    (a, n, s), (b, _, si) = lines_of(w, source, [dim]), lines_of(w, index, [dim])
    rest = out.select(dim, 0)
    target = View(rest.buffer, rest.offset, tuple(outer), rest.strides)
    w.lines(
        _typed(code, x.type), outer, n, [(target, out.strides[dim]), (a, s), (b, si)], k=x.sizes[dim],
        number=behind,
    )  # fmt: skip
    return out


@rule(aten.gather.default)
def _gather(w: Writer, want: Want, x: View, dim: int, index: View, sparse_grad: bool = False) -> View:
    return gather(w, x, dim, index)


@rule(aten.scatter.src)
def _scatter(w: Writer, want: Want, x: View, dim: int, index: View, source: View) -> View:
    return scatter(w, "scatter", x, dim, index, source)


@rule(aten.scatter.value)
def _scatter_value(w: Writer, want: Want, x: View, dim: int, index: View, value: NUMBER) -> View:
    return scatter(w, "scatter", x, dim, index, w.number(value, x.type, index.sizes))


@rule(aten.scatter_add.default)
def _scatter_add(w: Writer, want: Want, x: View, dim: int, index: View, source: View) -> View:
    return scatter(w, "scatter_add", x, dim, index, source)


def _spread_index(index: View, dim: int, sizes: Sequence[int]) -> View:
    """A line of indices, in the sizes of what it chooses from along `dim`."""
    sizes = [*sizes[:dim], index.numel, *sizes[dim + 1 :]]
    strides = [0] * len(sizes)
    strides[dim] = index.strides[0] if index.sizes else 0
    return View(index.buffer, index.offset, tuple(sizes), tuple(strides))


def _one_index(x: View, indices: Sequence[View | None]) -> tuple[int, View]:
    given = [(d, index) for d, index in enumerate(indices) if index is not None]
    if len(given) != 1 or len(given[0][1].sizes) != 1 or given[0][1].type != INT:
        raise Unsupported("indexing by more than one tensor, or by one that is not a line of whole numbers")
    return given[0]


@rule(aten.index_select.default)
def _index_select(w: Writer, want: Want, x: View, dim: int, index: View) -> View:
    dim %= len(x.sizes)
    return gather(w, x, dim, _spread_index(index, dim, x.sizes))


@rule(aten.index.Tensor)
def _index(w: Writer, want: Want, x: View, indices: Sequence[View | None]) -> View:
    dim, index = _one_index(x, indices)
    return gather(w, x, dim, _spread_index(index, dim, x.sizes), behind=True)


@rule(aten.index_put.default)
def _index_put(
    w: Writer, want: Want, x: View, indices: Sequence[View | None], values: View, accumulate: bool = False
) -> View:
    dim, index = _one_index(x, indices)
    spread = _spread_index(index, dim, x.sizes)
    code = "scatter_add" if accumulate else "scatter"
    return scatter(w, code, x, dim, spread, values.expand(spread.sizes), behind=True)


@rule(aten.index_add.default)
def _index_add(
    w: Writer, want: Want, x: View, dim: int, index: View, source: View, alpha: NUMBER = 1
) -> View:
    dim %= len(x.sizes)
    if alpha != 1:
        source = w.map("mul", REAL, source.sizes, source, alpha)
    return scatter(w, "scatter_add", x, dim, _spread_index(index, dim, x.sizes), source)


@rule(aten.embedding.default)
def _embedding(w: Writer, want: Want, table: View, index: View, *_: Any) -> View:
    width = table.sizes[1]
    out = w.new(REAL, want.sizes)
    rows = index.expand(index.sizes).unsqueeze(len(index.sizes)).expand((*index.sizes, width))
    ahead = (0,) * len(index.sizes)
    source = View(table.buffer, table.offset, (*index.sizes, width), (*ahead, table.strides[1]))
    w.lines("gather", want.sizes, 1, [(out, 0), (source, table.strides[0]), (rows, 0)], k=table.sizes[0])
    return out
