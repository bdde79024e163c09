"""Sums over rows, written as what `native/matrices.hpp` adds up: products, and sums down the columns of a matrix.

    summed(graph)  ->  the same stage; where it adds up nothing else, the graph itself

In a pass every sum over rows then has one order, which neither the batch nor the number of threads changes, and runs
beside the stage's products. What is to be added up is worked out row by row before.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from elman.circuit import graphs
from elman.circuit.graphs import aten, insert
from elman.circuit.rows import rows_of
from elman.circuit.verdict import SUMMED, verdict
from elman.engines.native.grouped import is_product, normal_sum

MOST = 16  # matrices of one batched product, each of which becomes a product


def summed(graph: fx.Graph) -> fx.Graph:
    if not any(_rewriter(node) for node in graph.nodes):
        return graph
    graph = graphs.copy(graph)
    for node in list(graph.nodes):
        if rewrite := _rewriter(node):
            with graph.inserting_before(node):
                rewrite(graph, node)
    graphs.drop_dead(graph)
    return graph


def _rewriter(node: fx.Node) -> Callable[[fx.Graph, fx.Node], None] | None:
    if node.op != "call_function" or node.target not in _REWRITERS or verdict(node) != SUMMED:
        return None
    value = _value(node)
    is_one = isinstance(value, torch.Tensor) and is_product(node, value.dtype)
    return None if is_one else _REWRITERS[node.target]


def _value(node: Any) -> Any:
    return node.meta["val"]


def _sum(graph: fx.Graph, node: fx.Node) -> None:
    """Over rows and any other dimensions: those first, the rest are columns."""
    source: Any = node.args[0]
    given: Any = node.args[1] if len(node.args) > 1 else None
    value, out = _value(source), _value(node)
    dims = {dim % value.dim() for dim in given or range(value.dim())}
    if value.dtype != out.dtype or not value.dtype.is_floating_point:
        return
    rows = rows_of(value)
    assert rows is not None
    rest = [dim for dim in range(value.dim()) if dim not in dims]
    order = [rows.dim, *sorted(dims - {rows.dim}), *rest]
    if order != sorted(order):
        source = insert(graph, aten.permute.default, source, order, like=node)
    columns = math.prod(value.shape[dim] for dim in rest)
    flat = insert(graph, aten.reshape.default, source, [-1, columns], like=node)
    total = insert(graph, aten.sum.dim_IntList, flat, [0], True, like=node)
    node.replace_all_uses_with(insert(graph, aten.reshape.default, total, list(out.shape), like=node))


def _layer_norm_backward(graph: fx.Graph, node: fx.Node) -> None:
    """The gradients of scale and shift: Σ g z and Σ g, with z the normalised x, which is kept nowhere."""
    gradient, x, shape, mean, inverse, *_ = node.args
    n = math.prod(shape)  # type: ignore[arg-type]
    flat = [insert(graph, aten.reshape.default, side, [-1, n], like=node) for side in (x, gradient)]
    of_rows = [insert(graph, aten.reshape.default, side, [-1, 1], like=node) for side in (mean, inverse)]
    for read in list(node.users):
        if read.args[1] == 1:
            total = insert(graph, normal_sum, flat[0], *of_rows, flat[1], like=node)
        else:
            total = insert(graph, aten.sum.dim_IntList, flat[1], [0], True, like=node)
        shaped = insert(graph, aten.reshape.default, total, list(_value(read).shape), like=node)
        read.replace_all_uses_with(shaped)


def _bmm(graph: fx.Graph, node: fx.Node) -> None:
    """Each matrix by itself, one below the other."""
    left, right = node.args
    out = _value(node)
    if out.shape[0] > MOST:
        return
    parts = []
    for i in range(out.shape[0]):
        each = [insert(graph, aten.select.int, side, 0, i, like=node) for side in (left, right)]
        parts.append(insert(graph, aten.mm.default, *each, like=node))
    whole = insert(graph, aten.cat.default, parts, 0, like=node)
    node.replace_all_uses_with(insert(graph, aten.reshape.default, whole, list(out.shape), like=node))


_REWRITERS: dict[Any, Callable[[fx.Graph, fx.Node], None]] = {
    aten.sum.dim_IntList: _sum,
    aten.sum.default: _sum,
    aten.native_layer_norm_backward.default: _layer_norm_backward,
    aten.bmm.default: _bmm,
}
