"""Rewrites that move work out of a step's loop, and put product and sum together. `PASSES` is the list, in order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from elman.circuit import graphs, rows
from elman.circuit.form import Circuit
from elman.circuit.graphs import aten, insert, instead
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
                products.append(instead(graph, node, aten.mm.default, piece, block))
                at += width
            total = products[0]
            for product in products[1:]:
                total = instead(graph, node, aten.add.Tensor, total, product)
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


def open_products(graph: fx.Graph, where: Regions) -> None:
    """addmm(b, x, U) + a = (x U + b) + a in the loop, so that b may join what is added before the loop."""
    for node in list(graph.nodes):
        if node.target is not aten.addmm.default or node.kwargs or len(node.users) != 1:
            continue
        (user,) = node.users
        if not _is_sum(user) or user not in where.loop or node.args[0].meta["val"].dim() != 1:
            continue
        with graph.inserting_before(node):
            product = instead(graph, node, aten.mm.default, *node.args[1:])
            opened = instead(graph, node, aten.add.Tensor, product, node.args[0])
        node.replace_all_uses_with(opened)
        graph.erase_node(node)


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


def _is_product(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.target is aten.mm.default


def _terms(node: fx.Node, where: Regions) -> list[fx.Node]:
    """The terms of a sum, looking through additions that nothing else reads: in the loop, or product and bias."""
    terms: list[fx.Node] = []
    for arg in node.args:
        assert isinstance(arg, fx.Node)
        if _is_sum(arg) and len(arg.users) == 1 and (arg in where.loop or _is_product(arg.args[0])):
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
                fused = instead(graph, node, aten.addmm.default, start, *product.args)
            node.replace_all_uses_with(fused)
            graph.erase_node(node)
            break
    graphs.drop_dead(graph)


def share_out_joins(graph: fx.Graph, where: Regions) -> None:
    """After the loop, products of a concatenation become products of its parts: nothing is copied together.

    (p ‖ q)ᵀ x = pᵀ x above qᵀ x;  (p ‖ q) U = p U₁ + q U₂;  Σ (p ‖ q) = Σ p ‖ Σ q.
    Parts that the loop itself puts side by side are read there, as a slice.
    """
    joined: list[fx.Node] = []
    for node in list(graph.nodes):
        if _is_join(node) and node in where.loop:
            joined.append(node)
        if not _is_join(node) or node not in where.after:
            continue
        uses = [_use_of_join(node, user) for user in node.users]
        if not uses or any(use is None for use in uses):
            continue
        with graph.inserting_before(node):
            parts = _read_in_place(graph, list(node.args[0]), joined)
        for use in uses:
            assert use is not None
            old, rebuild = use
            with graph.inserting_before(old):
                new = rebuild(graph, parts, old)
            old.replace_all_uses_with(new)
            graph.erase_node(old)
    graphs.drop_dead(graph)


def _is_join(node: fx.Node) -> bool:
    return node.target is aten.cat.default and node.meta["val"].dim() == 2 and node.args[1:] in ((1,), (-1,))


def _width(node: fx.Node) -> int:
    return int(node.meta["val"].shape[1])


def _read_in_place(graph: fx.Graph, parts: list[fx.Node], joined: list[fx.Node]) -> list[fx.Node]:
    """The same columns in fewer parts, where runs of them stand side by side in another concatenation."""
    for whole in joined:
        others = list(whole.args[0])  # type: ignore[arg-type]
        fewer: list[fx.Node] = []
        i = 0
        while i < len(parts):
            at = others.index(parts[i]) if parts[i] in others else -1
            length = 0
            while (
                at >= 0 and parts[i + length : i + length + 1] == others[at + length : at + length + 1] != []
            ):
                length += 1
            if not length:
                fewer.append(parts[i])
                i += 1
                continue
            start = sum(map(_width, others[:at]))
            stop = start + sum(map(_width, others[at : at + length]))
            fewer.append(insert(graph, aten.slice.Tensor, whole, 1, start, stop, like=whole))
            i += length
        parts = fewer
    return parts


Rebuild = Callable[[fx.Graph, list[fx.Node], fx.Node], fx.Node]


def _use_of_join(node: fx.Node, user: fx.Node) -> tuple[fx.Node, Rebuild] | None:
    """What reads a concatenation, and how it is made of the parts instead; None if it needs it as a whole."""
    if user.target is aten.mm.default and user.args[0] is node and user.args[1] is not node:
        return (user, _sum_of_products) if not rows.carries(user.args[1].meta["val"]) else None  # type: ignore[union-attr]
    if user.target is aten.sum.dim_IntList and list(user.args[1]) == [0] and len(user.args) > 2:  # type: ignore[arg-type]
        return (user, _join_of_sums) if user.args[2] is True else None
    if user.target is aten.permute.default and list(user.args[1]) == [1, 0] and len(user.users) == 1:  # type: ignore[arg-type]
        (product,) = user.users
        if product.target is aten.mm.default and product.args[0] is user and product.args[1] is not user:
            return product, _stack_of_products
    return None


def _sum_of_products(graph: fx.Graph, parts: list[fx.Node], old: fx.Node) -> fx.Node:
    weight, at = old.args[1], 0
    total: fx.Node | None = None
    for part in parts:
        block = insert(graph, aten.slice.Tensor, weight, 0, at, at + _width(part), like=old)
        product = instead(graph, old, aten.mm.default, part, block)
        total = product if total is None else instead(graph, old, aten.add.Tensor, total, product)
        at += _width(part)
    assert total is not None
    return total


def _stack_of_products(graph: fx.Graph, parts: list[fx.Node], old: fx.Node) -> fx.Node:
    turned = [insert(graph, aten.permute.default, part, [1, 0], like=old) for part in parts]
    products = [insert(graph, aten.mm.default, part, old.args[1], like=old) for part in turned]
    return instead(graph, old, aten.cat.default, products, 0)


def _join_of_sums(graph: fx.Graph, parts: list[fx.Node], old: fx.Node) -> fx.Node:
    sums = [insert(graph, aten.sum.dim_IntList, part, [0], True, like=old) for part in parts]
    return instead(graph, old, aten.cat.default, sums, 1)


def _follows(graph: fx.Graph, product: fx.Node, node: fx.Node) -> bool:
    return product.meta["val"].shape == node.meta["val"].shape


PASSES: tuple[Pass, ...] = (split_products, open_products, reassociate, share_out_joins, fuse_products)


def rewritten(circuit: Circuit) -> tuple[fx.Graph, Regions]:
    """A copy of a circuit's step after all passes, and where its nodes belong."""
    graph = graphs.copy(circuit.graph)
    where = regions(circuit, graph)
    for one in PASSES:
        before = list(graph.nodes)
        one(graph, where)
        if list(graph.nodes) != before:  # whoever changes anything adds a node
            where = regions(circuit, graph)
    graph.lint()
    return graph, where
