"""Plans for engines whose operations cost nothing to start.

stepwise(circuit)      one step at a time: everything that varies in time stands in the loop, so that a step is one
                       call of the engine instead of a call of PyTorch for every operation
with_views(plan)       views of constants, such as Wᵀ, go into the loop, where they are only addresses; handed in,
                       they would have to be brought into order at every call
"""

from __future__ import annotations

from dataclasses import replace

from torch import fx

from elman.circuit import graphs
from elman.circuit.form import Circuit
from elman.plan.form import Loop, Plan, Stage
from elman.plan.rewrite import rewritten
from elman.plan.stages import cut_apart


def stepwise(circuit: Circuit) -> Plan:
    """The plan of a circuit with every node in the loop that depends on more than constants."""
    graph, where = rewritten(circuit)
    nothing: frozenset[fx.Node] = frozenset()
    where = replace(where, loop=where.time, before=nothing, after=nothing, summed=nothing)
    return with_views(cut_apart(circuit, graph, where))


def with_views(plan: Plan) -> Plan:
    """The same plan; the loop takes constants as they come in and looks at them itself."""
    loop = plan.loop
    if loop is None:
        return plan
    results = graphs.results_of(plan.once.graph)
    chains = {
        name: chain
        for name in loop.constants
        if name in results and name not in loop.rowed and (chain := _views(results[name])) is not None
    }
    if not chains:
        return plan
    elsewhere = {*plan.before.inputs(), *plan.after.inputs(), *plan.outputs.values()}
    kept = {name: node for name, node in results.items() if name in elsewhere or name not in chains}
    once = Stage("once", graphs.extract(plan.once.graph, kept))
    return replace(plan, once=once, loop=_moved(loop, chains)).check()


def _views(node: fx.Node) -> list[fx.Node] | None:
    """The way from a placeholder to a view of it, the placeholder first; None if something is computed on it."""
    chain = [node]
    while node.op != "placeholder":
        source = graphs.viewed(node)
        if source is None or len(node.all_input_nodes) != 1:
            return None
        node = source
        chain.insert(0, node)
    return chain


def _moved(loop: Loop, chains: dict[str, list[fx.Node]]) -> Loop:
    """The loop with views made inside."""
    graph, copies = fx.Graph(), {}
    inputs = [n for n in loop.graph.nodes if n.op == "placeholder" and n.target not in chains]
    for old in inputs:
        copies[old] = graphs.add_placeholder(graph, str(old.target), old.meta["val"])
    placed = {str(old.target): copies[old] for old in inputs}
    for first, *_ in chains.values():
        if first.target not in placed:
            placed[str(first.target)] = graphs.add_placeholder(graph, str(first.target), first.meta["val"])
    for old in loop.graph.nodes:
        if old.op == "placeholder" and old.target in chains:
            first, *rest = chains[str(old.target)]
            here = {first: placed[str(first.target)]}
            for node in rest:
                here[node] = graph.node_copy(node, lambda n, here=here: here[n])
                here[node].meta = dict(node.meta)
            copies[old] = here[rest[-1]] if rest else here[first]
    for node in loop.graph.nodes:
        if node.op == "call_function":
            copies[node] = graph.node_copy(node, lambda n: copies[n])
            copies[node].meta = dict(node.meta)
    graph.output({key: copies[node] for key, node in graphs.results_of(loop.graph).items()})
    graph.lint()
    roots = [str(first.target) for first, *_ in chains.values()]
    constants = dict.fromkeys([*(name for name in loop.constants if name not in chains), *roots])
    return replace(loop, graph=graph, constants=tuple(constants))
