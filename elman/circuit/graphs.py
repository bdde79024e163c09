"""The few ways in which a step's graph is rewritten: cut out, insert, run, drop what is dead or double."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch.fx.node import map_arg

from elman.circuit.form import ROWS, op_name, placeholder, results_of, target_name
from elman.circuit.rows import rows_of

aten = torch.ops.aten


def meta_of(value: Any) -> Any:
    """The fake value that stands behind an argument: nodes are replaced, the rest stays."""
    return map_arg(value, lambda node: node.meta["val"])


def insert(
    graph: fx.Graph, target: Callable[..., Any], *args: Any, like: fx.Node | None = None, val: Any = None,
    **kwargs: Any,
) -> fx.Node:  # fmt: skip
    """Add a call at the graph's insertion point and work out its value on fake tensors.

    like: the node whose source line the new node inherits.
    val: its value where that is known, since it takes the place of a node with this one; working it out takes long.
    """
    node = graph.create_node("call_function", target, args, kwargs, target_name(target))
    if val is None:
        node.meta["val"] = _worked_out(node)
    else:
        node.meta["val"] = val
    if like is not None:
        for key in ("stack_trace", "primal"):
            if key in like.meta:
                node.meta[key] = like.meta[key]
    return node


def instead(graph: fx.Graph, node: fx.Node, target: Callable[..., Any], *args: Any) -> fx.Node:
    """Add a call that is to take the place of `node`: its value has the same shape and dtype."""
    return insert(graph, target, *args, like=node, val=node.meta["val"])


def _worked_out(node: fx.Node) -> Any:
    values: list[Any] = [source.meta["val"] for source in node.all_input_nodes]
    modes = {getattr(value, "fake_mode") for value in values if isinstance(value, torch.Tensor)}  # noqa: B009
    fake_args, fake_kwargs = meta_of(node.args), meta_of(node.kwargs)
    target: Any = node.target
    if not modes:
        return target(*fake_args, **fake_kwargs)
    with modes.pop(), enable_python_dispatcher():  # else no operand is broadcast to a symbolic size
        return target(*fake_args, **fake_kwargs)


def extract(
    graph: fx.Graph, results: Mapping[str, fx.Node], stops: Mapping[fx.Node, str] | None = None
) -> fx.Graph:
    """A new graph that computes `results`, with the placeholders it needs and no dead nodes.

    stops: nodes that become placeholders of the given name instead of being computed.
    Names of nodes are kept, so that the same value has the same name in every graph cut from one joint.
    """
    stops = stops or {}
    needed: set[fx.Node] = set()
    pending = list(results.values())
    while pending:
        node = pending.pop()
        if node in needed:
            continue
        needed.add(node)
        if node not in stops:
            pending.extend(node.all_input_nodes)
    new = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    # Placeholders first: a stop may lie in the middle of the old graph, and fx wants inputs at the top.
    for node in graph.nodes:
        if node in needed and (node in stops or node.op == "placeholder"):
            copies[node] = add_placeholder(new, stops.get(node, str(node.target)), node.meta["val"])
            copies[node].meta.update(node.meta)
    for node in graph.nodes:
        if node in needed and node not in copies:
            copies[node] = new.node_copy(node, lambda n: copies[n])
            copies[node].meta = dict(node.meta)
    new.output({name: copies[node] for name, node in results.items()})
    return new


def add_placeholder(graph: fx.Graph, name: str, val: Any) -> fx.Node:
    """A new placeholder whose node has exactly the name `name` where that is free."""
    node = graph.create_node("placeholder", name, (), {}, name=name)
    node.meta["val"] = val
    return node


def copy(graph: fx.Graph) -> fx.Graph:
    """A copy with the same names, placeholders included even if dead."""
    new = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node.op == "output":
            new.output({name: copies[n] for name, n in results_of(graph).items()})
        else:
            copies[node] = new.node_copy(node, lambda n: copies[n])
            copies[node].meta = dict(node.meta)
    return new


def renamed(graph: fx.Graph) -> fx.Graph:
    """A copy whose operations are called `mm`, `mm_1`, `mm_2`, … in order, as they are named to a reader."""
    new = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node.op == "output":
            new.output({name: copies[n] for name, n in results_of(graph).items()})
            continue
        if node.op == "call_function":
            args, kwargs = map_arg(node.args, copies.__getitem__), map_arg(node.kwargs, copies.__getitem__)
            copies[node] = new.create_node(node.op, node.target, args, kwargs, op_name(node))
        else:
            copies[node] = new.node_copy(node)
        copies[node].meta = dict(node.meta)
    return new


def with_placeholders(graph: fx.Graph, wanted: Iterable[tuple[str, Any]]) -> fx.Graph:
    """Give a graph exactly the placeholders `wanted` (name, value), dead ones included, in that order; `rows` stays."""
    have = {str(node.target): node for node in graph.nodes if node.op == "placeholder"}
    first = next(iter(graph.nodes))
    with graph.inserting_before(first):
        for name, val in wanted:
            if name not in have:
                add_placeholder(graph, name, val)
    return graph


def drop_dead(graph: fx.Graph) -> None:
    """Remove nodes that nothing reads; placeholders stay (they are ports)."""
    for node in reversed(list(graph.nodes)):
        if node.op in ("call_function", "get_attr") and not node.users:
            graph.erase_node(node)


def merge_equal(graph: fx.Graph) -> None:
    """Common subexpressions: two equal calls on the same operands become one. Random draws were lifted before."""
    seen: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op not in ("call_function", "get_attr"):
            continue
        key = (node.op, node.target, _freeze(node.args), _freeze(tuple(sorted(node.kwargs.items()))))
        first = seen.get(key)
        if first is None:
            seen[key] = node
        else:
            node.replace_all_uses_with(first)
            graph.erase_node(node)


def _freeze(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(_freeze(v) for v in value)
    if isinstance(value, dict):
        return tuple((k, _freeze(v)) for k, v in value.items())
    if isinstance(value, float):
        return ("float", value.hex())
    return (type(value).__name__, value)


def run(graph: fx.Graph, inputs: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """Run a step on real tensors: input name -> tensor in, result name -> tensor out. The slow, obvious way."""
    values: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            values[node] = rows if node.target == ROWS else inputs[str(node.target)]
        elif node.op == "call_function":
            args = map_arg(node.args, values.__getitem__)
            values[node] = node.target(*args, **map_arg(node.kwargs, values.__getitem__))  # type: ignore[operator]
    return {name: values[node] for name, node in results_of(graph).items()}


def rows_first(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """A value that carries rows as [rows, …], wherever its operations have put them; its steps can then be packed."""
    where, value = rows_of(node.meta["val"]), node
    assert where is not None
    if where.dim:
        order = [where.dim, *(d for d in range(node.meta["val"].dim()) if d != where.dim)]
        value = insert(graph, aten.permute.default, value, order)
    if where.factor > 1:
        rest = [int(size) for size in value.meta["val"].shape[1:]]
        value = insert(graph, aten.reshape.default, value, [-1, where.factor, *rest])
    return value


def rows_back(graph: fx.Graph, value: fx.Node, like: fx.Node) -> fx.Node:
    """The inverse of `rows_first`: the layout of `like`, which its own operations expect."""
    where, shape = rows_of(like.meta["val"]), like.meta["val"].shape
    assert where is not None
    if where.factor > 1:
        rest = [int(size) for d, size in enumerate(shape) if d != where.dim]
        value = insert(graph, aten.reshape.default, value, [-1, *rest])
    if where.dim:
        order = list(range(1, len(shape)))
        order.insert(where.dim, 0)
        value = insert(graph, aten.permute.default, value, order)
    return value


def viewed(node: fx.Node) -> fx.Node | None:
    """What a node's value is a view of, which is the first operand for all of ATen's views; None if it is none."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return None
    is_view = any(returned.alias_info is not None for returned in node.target._schema.returns)
    return next(iter(node.all_input_nodes), None) if is_view else None


def ancestors(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """Every node that the given ones are computed from, themselves included."""
    reached: set[fx.Node] = set()
    pending = list(nodes)
    while pending:
        node = pending.pop()
        if node not in reached:
            reached.add(node)
            pending.extend(node.all_input_nodes)
    return reached


__all__ = [
    "add_placeholder",
    "ancestors",
    "aten",
    "copy",
    "drop_dead",
    "extract",
    "insert",
    "instead",
    "merge_equal",
    "meta_of",
    "placeholder",
    "renamed",
    "rows_back",
    "rows_first",
    "run",
    "viewed",
    "with_placeholders",
]
