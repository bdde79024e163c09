"""Dimensions merged with the batch, k·B rows: the batch becomes the slow one, whatever the step merged in front of it.

`torch.stack([a, b]) @ W` and `z.flatten(0, 1)` of a value [k, B, …] make rows in the order (k, B). In a circuit rows of
a sequence stand together, (B, k): then the rows of all steps are one step's rows, more of them. What computes row by
row does not mind the order, so it is enough to turn the rows where they are merged, and back where they are parted.
"""

from __future__ import annotations

import math
from typing import Any

from torch import fx

from elman.circuit import rows
from elman.circuit.graphs import aten, insert
from elman.circuit.verdict import ROWWISE, verdict

ANY = 0  # the order of a value that is the same in all rows


def batch_slow(graph: fx.Graph) -> bool:
    """Bring merged rows into the order (B, k), in place; whether anything was done.

    A graph in which rows of different orders meet, or in which rows in another order come out, stays as it is: it is
    refused later, with the operation's own reason.
    """
    order = _orders(graph)
    if order is None or all(k in (ANY, 1) for k in order.values()):
        return False
    for node in list(graph.nodes):
        source = node.args[0] if node.target is aten.reshape.default else None
        if source is None or order[node] == ANY or (order[source] in (ANY, 1) and order[node] == 1):
            continue
        with graph.inserting_before(node):
            value = _as_written(graph, source, order[source] or 1)
            value = _in_order(graph, value, node, order[node])
        order[value] = order[node]
        node.replace_all_uses_with(value)
        graph.erase_node(node)
    return True


def _orders(graph: fx.Graph) -> dict[fx.Node, int] | None:
    """For each value, how many rows of other dimensions come before the batch in its merged dimension (1: none do)."""
    order: dict[fx.Node, int] = {}
    for node in graph.nodes:
        if node.op == "output":
            return order if all(order[n] in (ANY, 1) for n in node.all_input_nodes) else None
        if node.op == "placeholder" or not rows.carries(node.meta.get("val")):
            order[node] = 1 if node.op == "placeholder" else ANY
            summed = {order[n] for n in node.all_input_nodes if rows.carries(n.meta["val"])} - {ANY}
            if len(summed) > 1:
                return None
            continue
        orders = {order[n] for n in node.all_input_nodes if rows.carries(n.meta["val"])} - {ANY}
        if len(orders) > 1:
            return None
        mine = orders.pop() if orders else ANY
        if node.target is aten.reshape.default and (mine != ANY or _merges(node)):
            mine = _reshaped(node, mine or 1)
        elif mine > 1 and verdict(node) != ROWWISE:
            mine = -1
        if mine < 0:
            return None
        order[node] = mine
    return order


def _merges(node: fx.Node) -> bool:
    """Whether other dimensions are merged with the rows: then the rows of a value differ that was the same in all."""
    return rows.carries(node.args[0].meta["val"]) and _factor(node) != _factor(node.args[0])  # type: ignore[union-attr, arg-type]


def _factor(node: fx.Node) -> int:
    where = rows.rows_of(node.meta["val"])
    return 0 if where is None else where.factor


def _reshaped(node: fx.Node, order: int) -> int:
    """The order of the rows after a reshape; -1 if the batch is cut through."""
    try:
        before, after = (rows.rows_of(value) for value in (node.args[0].meta["val"], node.meta["val"]))  # type: ignore[union-attr]
    except rows.Mixed:
        return -1
    if before is None or after is None:
        return -1
    fast = _in_front(node.args[0], before.dim) * order  # type: ignore[arg-type]
    now, rest = divmod(fast, _in_front(node, after.dim))
    return now if rest == 0 and now and after.factor % now == 0 else -1


def _in_front(node: fx.Node, dim: int) -> int:
    return math.prod(int(size) for size in node.meta["val"].shape[:dim])


def _shape(node: fx.Node) -> list[Any]:
    return [size if isinstance(size, int) else -1 for size in node.meta["val"].shape]


def _as_written(graph: fx.Graph, node: fx.Node, order: int) -> fx.Node:
    """A value (…, B·k, …) as the step has it, its dimension parted: (…, order, B, k / order, …)."""
    if order == 1:
        return node
    where, shape = rows.rows_of(node.meta["val"]), _shape(node)
    assert where is not None
    parts = [*shape[: where.dim], -1, order, where.factor // order, *shape[where.dim + 1 :]]
    value = insert(graph, aten.reshape.default, node, parts, like=node)
    return insert(graph, aten.permute.default, value, _swapped(len(parts), where.dim), like=node)


def _in_order(graph: fx.Graph, value: fx.Node, like: fx.Node, order: int) -> fx.Node:
    """The reverse: a value in the shape of `like`, its rows in the order (B, k)."""
    if order > 1:
        where, shape = rows.rows_of(like.meta["val"]), _shape(like)
        assert where is not None
        parts = [*shape[: where.dim], order, -1, where.factor // order, *shape[where.dim + 1 :]]
        value = insert(graph, aten.reshape.default, value, parts, like=like)
        value = insert(graph, aten.permute.default, value, _swapped(len(parts), where.dim), like=like)
    return insert(graph, aten.reshape.default, value, _shape(like), like=like)


def _swapped(rank: int, dim: int) -> list[int]:
    order = list(range(rank))
    order[dim], order[dim + 1] = order[dim + 1], order[dim]
    return order
