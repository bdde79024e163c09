"""In-place operations of a recorded step: on memory that nobody else reads, they are what they are named after.

PyTorch's own cells and many of its backwards write into values that they have just made. To take such writes out here
is cheap; `torch.func.functionalize`, which takes out any write, records the whole step once more.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from elman.circuit import graphs


def is_write(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def without_plain_writes(graph: fx.Graph) -> bool:
    """Replace the in-place operations that write into fresh memory; whether none is left."""
    memory: dict[fx.Node, object] = {}  # the same object: values that may share memory
    sharing: dict[object, list[fx.Node]] = {}
    places = {node: i for i, node in enumerate(graph.nodes)}
    whole = True

    def lies(node: fx.Node, where: object) -> None:
        memory[node] = where
        sharing.setdefault(where, []).append(node)

    for node in list(graph.nodes):
        if not is_write(node):
            lies(node, _memory(node, memory))
            continue
        replacement = _replaced(graph, node, memory, sharing, places)
        if replacement is None:
            whole = False
            lies(node, memory.get(node.args[0], node) if node.args else node)  # type: ignore[arg-type]
        else:
            lies(replacement, replacement)
    return whole


def _memory(node: fx.Node, memory: dict[fx.Node, object]) -> object:
    """What stands for the memory that a node's value lies in."""
    if node.target is operator.getitem:
        source: Any = node.args[0]
        return memory[source] if memory[source] is not source else node
    viewed = graphs.viewed(node)
    return node if viewed is None else memory[viewed]


def _replaced(
    graph: fx.Graph,
    node: fx.Node,
    memory: dict[fx.Node, object],
    sharing: dict[object, list[fx.Node]],
    places: dict[fx.Node, int],
) -> fx.Node | None:
    """What computes an in-place operation's value without writing; None where somebody else would see the write."""
    target, written = node.target, node.args[0] if node.args else None
    assert isinstance(target, torch._ops.OpOverload)
    plain = _plain(target)
    if plain is None or not isinstance(written, fx.Node):
        return None
    where, now = memory[written], places[node]
    if isinstance(where, fx.Node) and where.op in ("placeholder", "get_attr"):
        return None
    for other in sharing[where]:
        if other is not written and any(places[user] > now for user in other.users):
            return None
    if any(source is not written and memory[source] is where for source in node.all_input_nodes):
        return None
    with graph.inserting_before(node):
        replacement = graphs.insert(graph, plain, *node.args, like=node, **node.kwargs)
    value, before = replacement.meta["val"], node.meta["val"]
    if value.dtype != before.dtype or value.dim() != before.dim():  # it would have been cast, or broadcast
        graph.erase_node(replacement)
        return None
    places[replacement] = now
    node.replace_all_uses_with(replacement)
    for user in [user for user in written.users if places[user] > now]:
        user.replace_input_with(written, replacement)
    graph.erase_node(node)
    return replacement


def _plain(target: torch._ops.OpOverload) -> torch._ops.OpOverload | None:
    """ATen's operation that gives what an in-place one writes: `pow.Tensor_Scalar` of `pow_.Scalar`."""
    name = target._schema.name.partition("::")[2]
    packet = getattr(torch.ops.aten, name.removesuffix("_"), None)
    if target.namespace != "aten" or name[-1:] != "_" or packet is None:
        return None
    if torch.Tag.nondeterministic_seeded in target.tags:
        return getattr(packet, target._overloadname, None)
    alike = [
        one for one in (getattr(packet, name) for name in packet.overloads()) if _takes(one) == _takes(target)
    ]
    return next((one for one in alike if one._overloadname == target._overloadname), next(iter(alike), None))


def _takes(target: torch._ops.OpOverload) -> list[tuple[str, str]]:
    return [(argument.name, str(argument.real_type)) for argument in target._schema.arguments]
