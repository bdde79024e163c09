"""A stage's graph as one Python function: no interpreter, no dictionary of values, each value dropped after its last use."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten

# The same kernels through shorter ways than torch.ops: these calls are most of what a step on small tensors costs.
_SHORT: dict[Any, Callable[..., Any]] = {
    aten.mm.default: torch.mm,
    aten.bmm.default: torch.bmm,
    aten.addmm.default: torch.addmm,
    aten.add.Tensor: torch.add,
    aten.sub.Tensor: torch.sub,
    aten.mul.Tensor: torch.mul,
    aten.div.Tensor: torch.div,
    aten.neg.default: torch.neg,
    aten.tanh.default: torch.tanh,
    aten.sigmoid.default: torch.sigmoid,
    aten.relu.default: torch.relu,
    aten.exp.default: torch.exp,
    aten.cat.default: torch.cat,
    aten.reshape.default: torch.reshape,
    aten.permute.default: torch.permute,
    aten.where.self: torch.where,
    aten.maximum.default: torch.maximum,
    aten.rsqrt.default: torch.rsqrt,
}


def function(
    graph: fx.Graph, arguments: Sequence[str], results: Sequence[str]
) -> Callable[..., tuple[Any, ...]]:
    """Compile a graph to `f(*arguments) -> tuple of results`, both by name; placeholders not listed must be unused."""
    constants: dict[str, Any] = {}
    names: dict[fx.Node, str] = {}
    targets: dict[str, str] = {name: f"a{i}" for i, name in enumerate(arguments)}
    out = next(node for node in graph.nodes if node.op == "output").args[0]
    wanted = [out[name] for name in results]  # type: ignore[index]
    last_use = _last_uses(graph, set(wanted))
    lines: list[str] = []

    def constant(value: Any) -> str:
        key = f"k{len(constants)}"
        constants[key] = value
        return key

    def literal(value: Any) -> str:
        if isinstance(value, fx.Node):
            return names[value]
        if isinstance(value, (list, fx.immutable_collections.immutable_list)):
            return f"[{', '.join(map(literal, value))}]"
        if isinstance(value, tuple):
            return f"({', '.join(map(literal, value))}{',' if len(value) == 1 else ''})"
        if value is None or isinstance(value, (bool, int)):
            return repr(value)
        return constant(value)

    for node in graph.nodes:
        if node.op == "placeholder":
            names[node] = targets.get(str(node.target), "None")
        elif node.op == "call_function":
            names[node] = f"v{len(names)}"
            if node.target is operator.getitem:
                expression = f"{literal(node.args[0])}[{literal(node.args[1])}]"
            elif node.target is aten.slice.Tensor and node.args[1] == 1 and len(node.args) == 4:
                expression = f"{literal(node.args[0])}[:, {node.args[2]}:{node.args[3]}]"
            else:
                target = constant(_SHORT.get(node.target, node.target))
                parts = [literal(arg) for arg in node.args]
                parts += [f"{key}={literal(value)}" for key, value in node.kwargs.items()]
                expression = f"{target}({', '.join(parts)})"
            lines.append(f"    {names[node]} = {expression}")
        dead = [names[value] for value in last_use.get(node, ()) if value.op != "placeholder"]
        if dead:
            lines.append(f"    del {', '.join(dead)}")
    lines.append(f"    return ({''.join(names[node] + ', ' for node in wanted)})")
    source = f"def stage({', '.join(targets.values())}):\n" + "\n".join(lines) + "\n"
    space = dict(constants)
    exec(compile(source, "<elman stage>", "exec"), space)
    return space["stage"]  # type: ignore[no-any-return]


def _last_uses(graph: fx.Graph, wanted: set[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    """Node -> values that nothing reads after it."""
    last: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node.op != "output":
            for source in node.all_input_nodes:
                last[source] = node
            last.setdefault(node, node)
    found: dict[fx.Node, list[fx.Node]] = {}
    for value, user in last.items():
        if value not in wanted:
            found.setdefault(user, []).append(value)
    return found
