"""Dimensions merged with the batch, brought into one order: the batch is the slow index.

`[L, B, E] -> [L·B, E]`, as attention does it, puts the batch in the middle of a merged dimension. Everything between that
reshape and the one that takes it apart again (products with weights, pointwise operations, sums over all of it) does
not care in which order the rows lie. So both reshapes are turned into others that put the batch in front, and what
lies between is as it was.
"""

from __future__ import annotations

import math
from typing import Any

from torch import fx

from elman.circuit.graphs import aten, insert
from elman.circuit.rows import Mixed, carries, rows_of


def batch_first(graph: fx.Graph) -> None:
    """Turn reshapes that merge the batch behind another dimension, and those that part the two; all of them or none."""
    before: dict[fx.Node, int] = {}  # node -> what lies before the batch in its merged dimension, if anything does
    turned: list[tuple[fx.Node, int, bool]] = []  # reshape, what it merges or parts, whether it merges
    try:
        for node in graph.nodes:
            if node.op == "output":
                if any(source in before for source in node.all_input_nodes):
                    return
            elif node.op == "call_function" and not _follow(node, before, turned):
                return
    except Mixed:
        return
    for node, outer, merges in turned:
        with graph.inserting_before(node):
            new = _merged(graph, node, outer) if merges else _parted(graph, node, outer)
        node.replace_all_uses_with(new)
        graph.erase_node(node)


def _follow(node: fx.Node, before: dict[fx.Node, int], turned: list[tuple[fx.Node, int, bool]]) -> bool:
    """Find out about one node; False where the order matters, or nobody knows whether it does."""
    if not any(carries(source.meta["val"]) for source in node.all_input_nodes):
        return True
    outer = {before.get(source, 1) for source in node.all_input_nodes if _has_rows(source)}
    if node.target is not aten.reshape.default:
        if outer and outer != {1}:
            if len(outer) > 1:
                return False
            if carries(node.meta["val"]):
                before[node] = outer.pop()
        return True
    source, (mine,) = node.args[0], outer
    was, now = rows_of(source.meta["val"]), rows_of(node.meta["val"])  # type: ignore[union-attr]
    if was is None or now is None:
        return mine == 1
    front, after = (_front(value.meta["val"], rows.dim) for value, rows in ((source, was), (node, now)))  # type: ignore[union-attr]
    if front == after:
        if mine != 1:
            before[node] = mine
        return True
    if mine == 1 and after and front % after == 0 and now.factor % (front // after) == 0:
        before[node] = front // after
        turned.append((node, front // after, True))
        return True
    if mine != 1 and front and after == front * mine:
        turned.append((node, mine, False))
        return True
    return mine == 1  # as it is; what it does to rows, its verdict says


def _has_rows(node: fx.Node) -> bool:
    """Whether a value carries rows that came from somewhere; not a shape filled with one number."""
    return carries(node.meta["val"]) and (
        node.op == "placeholder" or any(carries(source.meta["val"]) for source in node.all_input_nodes)
    )


def _front(value: Any, dim: int) -> int:
    return math.prod(int(size) for size in value.shape[:dim])


def _sizes(value: Any) -> list[int]:
    """A shape, the batch, which is one dimension at most, as -1."""
    return [size if isinstance(size, int) else -1 for size in value.shape]


def _merged(graph: fx.Graph, node: fx.Node, outer: int) -> fx.Node:
    """[P…, L…, B·R…] -> [P, L, B, R…] -> [P, B, L, R…] -> as the reshape has it."""
    source = node.args[0]
    value, rows = source.meta["val"], rows_of(source.meta["val"])  # type: ignore[union-attr]
    assert rows is not None
    inner = [rows.factor] if rows.factor > 1 else []
    shape = [_front(value, rows.dim) // outer, outer, -1, *inner, *_sizes(value)[rows.dim + 1 :]]
    made = insert(graph, aten.reshape.default, source, shape, like=node)
    made = insert(graph, aten.permute.default, made, [0, 2, 1, *range(3, len(shape))], like=node)
    return insert(graph, aten.reshape.default, made, _sizes(node.meta["val"]), like=node)


def _parted(graph: fx.Graph, node: fx.Node, outer: int) -> fx.Node:
    """The way back: [P…, B·L·R…] -> [P, B, L, R…] -> [P…, L…, B, R…]."""
    source, value = node.args[0], node.meta["val"]
    rows = rows_of(value)
    assert rows is not None
    inner = [rows.factor] if rows.factor > 1 else []
    shape = [_front(value, rows.dim) // outer, -1, outer, *inner, *_sizes(value)[rows.dim + 1 :]]
    made = insert(graph, aten.reshape.default, source, shape, like=node)
    made = insert(graph, aten.permute.default, made, [0, 2, 1, *range(3, len(shape))], like=node)
    return insert(graph, aten.reshape.default, made, _sizes(value), like=node)


__all__ = ["batch_first"]
