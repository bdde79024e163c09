"""Plan -> Plan: cheap operations before the loop go into it, where their operands are read anyway.

A pass over the rows of all steps reads and writes main memory; inside a compiled loop the same operation works on what
is in the cache. Worth it for engines whose operations cost nothing to start; `Engine.sinks` says which do.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import fx

from elman.circuit import graphs
from elman.circuit.form import ROWS
from elman.circuit.rows import Rows, carries, rows_of
from elman.circuit.signature import identifier
from elman.plan.form import TIMELINE, Plan, Stage


def sunk(plan: Plan) -> Plan:
    """The same plan with what is element by element, and feeds nothing but the loop, inside the loop."""
    if plan.loop is None:
        return plan
    elsewhere = {*plan.after.inputs(), *plan.outputs.values(), *plan.loop.stepped}
    for name in plan.loop.sequences:
        if name not in elsewhere:
            plan = _one(plan, name)
    return plan.check()


def _one(plan: Plan, name: str) -> Plan:
    """Move what makes one sequence, if that takes no more sequences than it spares."""
    loop = plan.loop
    assert loop is not None
    results = graphs.results_of(plan.before.graph)
    if name not in results:
        return plan
    moved = _movable(plan.before, results[name])
    leaves = dict.fromkeys(
        source
        for node in plan.before.graph.nodes
        if node in moved
        for source in node.all_input_nodes
        if source not in moved
    )
    taken, names = {*plan.names(), *graphs.results_of(loop.graph)}, {}
    for leaf in leaves:
        names[leaf] = _name(leaf, results, taken)
    fresh = {n for leaf, n in names.items() if carries(leaf.meta["val"]) and n not in loop.sequences}
    if not moved or len(fresh) > 1 or any(not _enters(leaf) for leaf in leaves):
        return plan

    graph, copies = fx.Graph(), {}
    inputs = {str(n.target): n for n in loop.graph.nodes if n.op == "placeholder"}
    for target, old in inputs.items():
        if target != name:
            copies[old] = graphs.add_placeholder(graph, target, old.meta["val"])
    here: dict[fx.Node, fx.Node] = {}
    for leaf, target in names.items():
        old = inputs.get(target)
        here[leaf] = (
            copies[old] if old is not None else graphs.add_placeholder(graph, target, leaf.meta["val"])
        )
    for node in plan.before.graph.nodes:
        if node in moved:
            here[node] = graph.node_copy(node, lambda n: here[n])
            here[node].meta = dict(node.meta)
    copies[inputs[name]] = here[results[name]]
    for node in loop.graph.nodes:
        if node.op == "call_function":
            copies[node] = graph.node_copy(node, lambda n: copies[n])
            copies[node].meta = dict(node.meta)
    graph.output({key: copies[node] for key, node in graphs.results_of(loop.graph).items()})

    constants = [n for leaf, n in names.items() if not carries(leaf.meta["val"]) and n not in loop.constants]
    sequences = [n for n in loop.sequences if n != name] + sorted(fresh)
    built = replace(loop, graph=graph, constants=(*loop.constants, *constants), sequences=tuple(sequences))
    kept = {key: node for key, node in results.items() if key != name}
    kept |= {n: leaf for leaf, n in names.items() if leaf.op != "placeholder"}
    before = Stage("before", graphs.extract(plan.before.graph, kept))
    return replace(plan, before=before, loop=built)


def _movable(before: Stage, root: fx.Node) -> set[fx.Node]:
    """The operations element by element that lead to a value and to nothing else."""
    moved: set[fx.Node] = set()
    pending = [root]
    while pending:
        node = pending.pop()
        users = [user for user in node.users if user.op != "output"]
        shared = any(user not in moved for user in users) or (
            node is not root and len(users) < len(node.users)
        )
        if node in moved or shared or not _elementwise(node):
            continue
        moved.add(node)
        pending.extend(node.all_input_nodes)
    return moved


def _elementwise(node: fx.Node) -> bool:
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or torch.Tag.pointwise not in target.tags:
        return False
    return isinstance(node.meta["val"], torch.Tensor) and rows_of(node.meta["val"]) == Rows(0, 1)


def _enters(leaf: fx.Node) -> bool:
    """Whether a value can be handed to a loop as it is."""
    value = leaf.meta["val"]
    if (leaf.op == "placeholder" and leaf.target in (ROWS, TIMELINE)) or not isinstance(value, torch.Tensor):
        return False
    return rows_of(value) == Rows(0, 1) if carries(value) else leaf.op == "placeholder"


def _name(leaf: fx.Node, results: dict[str, fx.Node], taken: set[str]) -> str:
    """The name of a value between stages: a node's own may be that of another value there."""
    if leaf.op == "placeholder":
        return str(leaf.target)
    name = next((name for name, node in results.items() if node is leaf), None)
    return name or identifier(leaf.name, taken)
