"""A program of torch.export as an ONNX graph: node by node, a scan as a Scan with a body of its own."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import onnx
import torch
from onnx import helper
from torch.fx import GraphModule, Node

from elman.errors import NotSupported
from elman.export.onnx.nodes import Nodes, arguments, dtype_of, kind_of
from elman.export.onnx.operators import SAID, SIZES, rule_of


class NoRule(Exception):
    """An operation that has no form in ONNX. node: what computes it."""

    def __init__(self, node: Node, why: NotSupported | None = None) -> None:
        super().__init__(str(node.target))
        self.node, self.why = node, why


def translate(module: GraphModule, w: Nodes) -> list[Any]:
    """Write the nodes of a module's graph that somebody needs; `w.names` holds its placeholders.

    Returns what its results are called. Raises NoRule.
    """
    results = results_of(module)
    needed = _needed(results)
    for node in module.graph.nodes:
        if node in needed and node.op == "call_function":
            try:
                w.names[node] = _written(module, node, w)
            except NotSupported as error:
                raise NoRule(node, error) from error
    return [w.names[node] for node in results]


def results_of(module: GraphModule) -> list[Node]:
    """What a module's graph returns, without what is None."""
    (results,) = next(node for node in reversed(module.graph.nodes) if node.op == "output").args
    return [node for node in results if isinstance(node, Node)]  # type: ignore[union-attr]


def _needed(results: Any) -> set[Node]:
    """All that results are computed from."""
    needed: set[Node] = set()
    open_ = list(results)
    while open_:
        node = open_.pop()
        if node not in needed:
            needed.add(node)
            open_ += node.all_input_nodes
    return needed


def _written(module: GraphModule, node: Node, w: Nodes) -> Any:
    target = node.target
    if target is operator.getitem:
        return w.names[node.args[0]][node.args[1]]  # type: ignore[index]
    if target is torch.ops.aten.sym_size.int:
        return w.size(node.args[0], node.args[1])  # type: ignore[arg-type]
    if target in SIZES:
        return w.add(SIZES[target], *(w.sizes([value]) for value in node.args))
    if str(target) == "scan":
        return _scan(module, node, w)
    name = getattr(getattr(target, "overloadpacket", None), "__name__", "")
    rule = rule_of(target)
    if rule is None or name in SAID:
        raise NoRule(node)
    result = rule(w, node, *arguments(node))
    return list(result) if isinstance(result, tuple) else result


def _scan(module: GraphModule, node: Node, w: Nodes) -> list[str]:
    """torch's scan as ONNX's: what the body reads besides states and sequences, it sees from outside."""
    args: Any = node.args
    body_node, states, sequences, constants = args
    body: GraphModule = getattr(module, str(body_node.target))
    inner = Nodes(w)
    places = [p for p in body.graph.nodes if p.op == "placeholder"]
    inside, outside = places[: len(states) + len(sequences)], places[len(states) + len(sequences) :]
    for place, given in zip(outside, constants, strict=True):
        inner.names[place] = w.names[given] if isinstance(given, Node) else w.sizes([given])
    for place in inside:
        inner.names[place] = inner.name("at_step")
    takes = [described(inner.names[place], place) for place in inside]
    outputs = translate(body, inner)
    results = results_of(body)
    # What comes out of a body is a name of its own, made in it.
    names = [inner.add("Identity", name, wish="after_step") for name in outputs]
    gives = [described(name, result) for name, result in zip(names, results, strict=True)]
    graph = helper.make_graph(inner.nodes, w.name("step"), takes, gives)
    given = [*states, *sequences]
    return w.several(
        "Scan", [w.names[one] for one in given], len(names), body=graph, num_scan_inputs=len(sequences)
    )


def described(name: str, node: Node, axes: Sequence[str | None] | None = None) -> onnx.ValueInfoProto:
    """What a tensor is like. axes: what sizes that are open are called, "" for one without a word."""
    sizes: list[Any] = [size if isinstance(size, int) else None for size in node.meta["val"].shape]
    for dim, axis in enumerate(axes or ()):
        if sizes[dim] is None:
            sizes[dim] = axis or None
    return helper.make_tensor_value_info(name, kind_of(dtype_of(node)), sizes)
