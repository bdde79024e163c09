"""Which part of a step is sequential: strongly connected components, and what lies between them.

A delay is an edge like any other. The loop is what lies on a cycle, and what lies on a way from one cycle to another;
an operation that cannot be run on the rows of all steps at once is kept in the loop too, with the reason why.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import fx

from elman.circuit import rows
from elman.circuit.form import ROWS, Circuit, Kind, Wire, results_of
from elman.circuit.linear import stays_summed
from elman.circuit.verdict import ROWWISE, SUMMED, verdict
from elman.plan.exponential import blocks

if TYPE_CHECKING:
    import networkx as nx


@dataclass(frozen=True, eq=False)
class Regions:
    """The nodes of a step by the stage that they belong to. Ports count as nodes.

    time: depends on a sequence, a state or noise. once: does not. before, loop, after: a partition of `time`.
    shape: carries rows, but depends on nothing except their number; made anew wherever it is needed.
    summed: sums over rows; outside the loop they come out summed over time as well.
    reasons: node of the loop that lies on no cycle and could not be hoisted -> why.
    """

    time: frozenset[fx.Node]
    shape: frozenset[fx.Node]
    before: frozenset[fx.Node]
    loop: frozenset[fx.Node]
    after: frozenset[fx.Node]
    summed: frozenset[fx.Node]
    cycles: frozenset[fx.Node]
    reasons: dict[fx.Node, str]

    def stage(self, node: fx.Node) -> str:
        if node not in self.time:
            return "once"
        return "loop" if node in self.loop else "before" if node in self.before else "after"


def regions(circuit: Circuit, graph: fx.Graph) -> Regions:
    """Sort the nodes of a step (circuit's own graph or a rewritten copy with the same ports and results)."""
    import networkx as nx  # takes a tenth of a second, so not when elman is imported

    nodes = [node for node in graph.nodes if node.op != "output"]
    inputs = {str(node.target): node for node in nodes if node.op == "placeholder"}
    results = results_of(graph)

    def at(wire: Wire) -> fx.Node:
        return inputs[wire.name] if wire.is_input else results[wire.name]

    ports = {port.name: port for port in circuit.inputs}
    timed = (Kind.SEQUENCE, Kind.STATE, Kind.NOISE)
    time = {inputs[p.name] for p in circuit.inputs if p.kind in timed}
    data = set(time) | {inputs[p.name] for p in circuit.inputs if p.kind is Kind.CONSTANT}
    for node in nodes:
        if node.op != "placeholder":
            if any(source in time for source in node.all_input_nodes):
                time.add(node)
            if any(source in data for source in node.all_input_nodes):
                data.add(node)
    shape = {n for n in nodes if n not in data and (n.target == ROWS or n.all_input_nodes)}

    edges: nx.DiGraph = nx.DiGraph()
    edges.add_nodes_from(time)
    edges.add_edges_from((a, b) for b in time for a in b.all_input_nodes if a in time)
    for port in circuit.inputs_of(Kind.STATE):
        if port.next is not None and (feeding := at(port.next)) in time:
            edges.add_edge(feeding, inputs[port.name])
    cycles: set[fx.Node] = set()
    for component in nx.strongly_connected_components(edges):
        if len(component) > 1 or any(edges.has_edge(node, node) for node in component):
            cycles |= component

    summed, reasons = _folding([n for n in nodes if n in time], time, cycles, ports)
    kept = cycles | set(reasons)
    for out in circuit.outputs:
        node = at(out.wire)
        if node in time and out.kind is not Kind.SUM and not rows.carries(node.meta["val"]):
            kept.add(node)
            reasons.setdefault(node, "its value at every step is wanted, and it has no rows")
    loop = _hull(edges, kept)
    while True:
        # A sum over rows that is needed step by step cannot come out of one product over all steps.
        drawn_in = {
            n for n in summed if n in time and n not in loop and any(user in loop for user in n.users)
        }
        if not drawn_in:
            break
        reasons.update(dict.fromkeys(drawn_in, "its value at every step is needed in the loop"))
        loop = _hull(edges, loop | drawn_in)
    # The parts of a tuple stay where the tuple is made.
    parts = {node for node in time if node.target is operator.getitem and node.args[0] in loop} - loop
    reasons.update(dict.fromkeys(parts & summed, "one operation makes it together with what lies on a cycle"))
    loop |= parts
    downstream = _reached(edges.successors, loop)
    before = {node for node in time if node not in downstream}
    after = downstream - loop
    return Regions(
        frozenset(time), frozenset(shape), frozenset(before), frozenset(loop), frozenset(after),
        frozenset(summed - loop), frozenset(cycles), {n: why for n, why in reasons.items() if n in loop},
    )  # fmt: skip


def _folding(
    nodes: list[fx.Node], time: set[fx.Node], cycles: set[fx.Node], ports: dict
) -> tuple[set[fx.Node], dict[fx.Node, str]]:
    """The sums over rows, and the nodes off the cycles that cannot run on all steps at once, with reasons."""
    summed: set[fx.Node] = set()
    reasons: dict[fx.Node, str] = {}
    inside = blocks(nodes, lambda n: n not in time)
    stepwise: set[fx.Node] = {n for n in nodes if n.op == "placeholder" and not ports[str(n.target)].rows}
    for node in nodes:
        if node.op == "placeholder":
            continue
        if inside.get(node) in summed:
            summed.add(node)
            continue
        if any(source in stepwise for source in node.all_input_nodes):
            fault = "an operand changes from step to step and has no rows"
        elif any(source in summed for source in node.all_input_nodes):
            if stays_summed(node, summed, lambda n: n not in time):
                summed.add(node)
                continue
            fault = "it is not linear in a sum over rows"
        else:
            row_verdict = verdict(node)
            if row_verdict == SUMMED:
                summed.add(node)
                continue
            if row_verdict == ROWWISE and rows.carries(node.meta["val"]):
                continue
            fault = row_verdict.reason or "it removes the rows"
        if not rows.carries(node.meta["val"]):
            stepwise.add(node)
        if node not in cycles:
            reasons[node] = fault
    return summed, reasons


def _hull(edges: nx.DiGraph, nodes: set[fx.Node]) -> set[fx.Node]:
    """The given nodes and everything on a way from one of them to another."""
    return _reached(edges.successors, nodes) & _reached(edges.predecessors, nodes)


def _reached(neighbours: Callable[[fx.Node], Iterable[fx.Node]], nodes: set[fx.Node]) -> set[fx.Node]:
    """The given nodes and all that lie on a way from any of them: one search, however many they are."""
    reached, pending = set(nodes), list(nodes)
    while pending:
        for node in neighbours(pending.pop()):
            if node not in reached:
                reached.add(node)
                pending.append(node)
    return reached
