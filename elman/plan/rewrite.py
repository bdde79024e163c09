"""Rewrites that move work out of a step's loop, and put product and sum together. `PASSES` is the list, in order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from elman.circuit import graphs, rows
from elman.circuit.form import Circuit
from elman.circuit.graphs import aten, insert
from elman.plan.regions import Regions, regions

Pass = Callable[[fx.Graph, Regions], None]


def split_products(graph: fx.Graph, where: Regions) -> None:
    """(x ‖ h) W = x W₁ + h W₂ where a part of the concatenation can be hoisted."""
    for node in list(graph.nodes):
        if node.target is not aten.mm.default or node not in where.loop:
            continue
        joined, weight = node.args
        if joined.target is not aten.cat.default or joined.args[1] % 2 != 1 or joined not in where.loop:
            continue
        parts = joined.args[0]
        if all(where.stage(part) == "loop" for part in parts) or rows.carries(weight.meta["val"]):
            continue
        with graph.inserting_before(node):
            products, at = [], 0
            for group in _runs(parts, lambda part: where.stage(part) == "loop"):
                width = sum(int(part.meta["val"].shape[1]) for part in group)
                piece = (
                    group[0]
                    if len(group) == 1
                    else insert(graph, aten.cat.default, list(group), 1, like=joined)
                )
                block = insert(graph, aten.slice.Tensor, weight, 0, at, at + width, like=node)
                products.append(insert(graph, aten.mm.default, piece, block, like=node))
                at += width
            total = products[0]
            for product in products[1:]:
                total = insert(graph, aten.add.Tensor, total, product, like=node)
        node.replace_all_uses_with(total)
        graph.erase_node(node)
    graphs.drop_dead(graph)


def _runs(items: Any, key: Callable[[Any], bool]) -> list[list[Any]]:
    """Neighbours with the same key, together."""
    groups: list[list[Any]] = []
    for item in items:
        if groups and key(groups[-1][0]) == key(item):
            groups[-1].append(item)
        else:
            groups.append([item])
    return groups


def _is_sum(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.target is aten.add.Tensor and not node.kwargs and all(
        isinstance(arg, fx.Node) and isinstance(arg.meta["val"], torch.Tensor) for arg in node.args
    )  # fmt: skip


def reassociate(graph: fx.Graph, where: Regions) -> None:
    """a + (b + c) in the loop: what can be added before the loop is added there, constants first, products last."""
    order = {"once": 0, "before": 1, "after": 2, "loop": 2}
    for node in list(graph.nodes):
        if not _is_sum(node) or node not in where.loop:
            continue
        if any(_is_sum(user) and user in where.loop and len(node.users) == 1 for user in node.users):
            continue  # the whole sum is looked at from its last addition
        terms = _terms(node, where)
        hoisted = [term for term in terms if where.stage(term) != "loop"]
        inside = [term for term in terms if where.stage(term) == "loop"]
        if len(terms) < 3 or not hoisted or len(inside) == 0:
            continue
        if len({term.meta["val"].dtype for term in terms}) > 1:
            continue
        hoisted.sort(key=lambda term: order[where.stage(term)])
        inside.sort(key=lambda term: term.target is aten.mm.default)
        with graph.inserting_before(node):
            total = hoisted[0]
            for term in (*hoisted[1:], *inside):
                total = insert(graph, aten.add.Tensor, total, term, like=node)
        node.replace_all_uses_with(total)
    graphs.drop_dead(graph)


def _terms(node: fx.Node, where: Regions) -> list[fx.Node]:
    """The terms of a sum, looking through additions that nothing else reads and that are not hoisted as a whole."""
    terms: list[fx.Node] = []
    for arg in node.args:
        assert isinstance(arg, fx.Node)
        if _is_sum(arg) and len(arg.users) == 1 and arg in where.loop:
            terms += _terms(arg, where)
        else:
            terms.append(arg)
    return terms


def fuse_products(graph: fx.Graph, where: Regions) -> None:
    """c + a·b is one operation (addmm): the product starts from c."""
    for node in list(graph.nodes):
        if not _is_sum(node):
            continue
        left, right = node.args
        for product, start in ((right, left), (left, right)):
            if product.target is not aten.mm.default or len(product.users) != 1 or product is start:
                continue
            same_stage = where.stage(product) == where.stage(node)
            value, out = start.meta["val"], node.meta["val"]
            fits = value.dim() in (1, 2) and value.shape[-1:] == out.shape[-1:] and value.dtype == out.dtype
            if value.dim() == 2:
                fits = (
                    fits
                    and rows.rows_of(value) == rows.rows_of(out)
                    and tuple(value.shape) == tuple(out.shape)
                )
            if not same_stage or not fits or node in where.summed or not _follows(graph, product, node):
                continue
            with graph.inserting_before(node):
                fused = insert(graph, aten.addmm.default, start, *product.args, like=node)
            node.replace_all_uses_with(fused)
            graph.erase_node(node)
            break
    graphs.drop_dead(graph)


def _follows(graph: fx.Graph, product: fx.Node, node: fx.Node) -> bool:
    return product.meta["val"].shape == node.meta["val"].shape


PASSES: tuple[Pass, ...] = (split_products, reassociate, fuse_products)


def rewritten(circuit: Circuit) -> tuple[fx.Graph, Regions]:
    """A copy of a circuit's step after all passes, and where its nodes belong."""
    graph = graphs.copy(circuit.graph)
    for one in PASSES:
        one(graph, regions(circuit, graph))
        graph.lint()
    return graph, regions(circuit, graph)
