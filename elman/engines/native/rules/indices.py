"""What indices choose: gather, scatter, and their like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from elman.engines.native.builder import NUMBER, Builder
from elman.engines.native.rules.features import lines_of
from elman.engines.native.rules.table import ResultSpec, rule
from elman.engines.native.values import INT, REAL, Unsupported, View

aten = torch.ops.aten


def _typed(code: str, type: str) -> str:
    if type not in (REAL, INT):
        raise Unsupported(f"{code} of {type} values")
    return code if type == REAL else f"int_{code}"


def gather(p: Builder, x: View, dim: int, index: View, behind: bool = False) -> View:
    """out[…, i, …] = x[…, index[…, i, …], …], index in the sizes of the result. behind: whether -1 is the last."""
    dim %= len(x.sizes)
    out = p.new(x.type, index.sizes)
    outer = [*index.sizes[:dim], *index.sizes[dim + 1 :]]
    (a, n, so), (b, _, si) = lines_of(p, out, [dim]), lines_of(p, index, [dim])
    rest = x.slice(dim, 0, 1).select(dim, 0)
    source = View(rest.buffer, rest.offset, tuple(outer), rest.strides)
    p.lines(
        _typed("gather", x.type), outer, n, [(a, so), (source, x.strides[dim]), (b, si)], k=x.sizes[dim],
        number=behind,
    )  # fmt: skip
    return out


def scatter(
    p: Builder, code: str, x: View, dim: int, index: View, source: View, behind: bool = False
) -> View:
    """A copy of x with out[…, index[…, i, …], …] = (or +=) source[…, i, …]."""
    dim %= len(x.sizes)
    out = p.copy(x, into=p.new(x.type, x.sizes))
    outer = [*index.sizes[:dim], *index.sizes[dim + 1 :]]
    source = View(source.buffer, source.offset, index.sizes, source.strides)
    (a, n, s), (b, _, si) = lines_of(p, source, [dim]), lines_of(p, index, [dim])
    rest = out.select(dim, 0)
    target = View(rest.buffer, rest.offset, tuple(outer), rest.strides)
    p.lines(
        _typed(code, x.type), outer, n, [(target, out.strides[dim]), (a, s), (b, si)], k=x.sizes[dim],
        number=behind,
    )  # fmt: skip
    return out


@rule(aten.gather.default)
def _gather(p: Builder, want: ResultSpec, x: View, dim: int, index: View, sparse_grad: bool = False) -> View:
    return gather(p, x, dim, index)


@rule(aten.scatter.src)
def _scatter(p: Builder, want: ResultSpec, x: View, dim: int, index: View, source: View) -> View:
    return scatter(p, "scatter", x, dim, index, source)


@rule(aten.scatter.value)
def _scatter_value(p: Builder, want: ResultSpec, x: View, dim: int, index: View, value: NUMBER) -> View:
    return scatter(p, "scatter", x, dim, index, p.number(value, x.type, index.sizes))


@rule(aten.scatter_add.default)
def _scatter_add(p: Builder, want: ResultSpec, x: View, dim: int, index: View, source: View) -> View:
    return scatter(p, "scatter_add", x, dim, index, source)


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
def _index_select(p: Builder, want: ResultSpec, x: View, dim: int, index: View) -> View:
    dim %= len(x.sizes)
    return gather(p, x, dim, _spread_index(index, dim, x.sizes))


@rule(aten.index.Tensor)
def _index(p: Builder, want: ResultSpec, x: View, indices: Sequence[View | None]) -> View:
    dim, index = _one_index(x, indices)
    return gather(p, x, dim, _spread_index(index, dim, x.sizes), behind=True)


@rule(aten.index_put.default)
def _index_put(
    p: Builder,
    want: ResultSpec,
    x: View,
    indices: Sequence[View | None],
    values: View,
    accumulate: bool = False,
) -> View:
    dim, index = _one_index(x, indices)
    spread = _spread_index(index, dim, x.sizes)
    code = "scatter_add" if accumulate else "scatter"
    return scatter(p, code, x, dim, spread, values.expand(spread.sizes), behind=True)


@rule(aten.index_add.default)
def _index_add(
    p: Builder, want: ResultSpec, x: View, dim: int, index: View, source: View, alpha: NUMBER = 1
) -> View:
    dim %= len(x.sizes)
    if alpha != 1:
        source = p.map("mul", REAL, source.sizes, source, alpha)
    return scatter(p, "scatter_add", x, dim, _spread_index(index, dim, x.sizes), source)


@rule(aten.embedding.default)
def _embedding(p: Builder, want: ResultSpec, table: View, index: View, *_: Any) -> View:
    width = table.sizes[1]
    out = p.new(REAL, want.sizes)
    rows = index.expand(index.sizes).unsqueeze(len(index.sizes)).expand((*index.sizes, width))
    ahead = (0,) * len(index.sizes)
    source = View(table.buffer, table.offset, (*index.sizes, width), (*ahead, table.strides[1]))
    p.lines("gather", want.sizes, 1, [(out, 0), (source, table.strides[0]), (rows, 0)], k=table.sizes[0])
    return out
