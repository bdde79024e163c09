"""What a backward pass needs from the forward pass: kept (a residual), or computed again (rematerialised).

Everything that the step computes can be computed again in the adjoint's before stage, for all steps at once, from x and
h(t-1). What to keep is a minimum cut of the step's own values by bytes per row and step: constants and inputs are free,
noise is drawn again, products are never computed twice; a state and its predecessor are one sequence.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import combinations

import torch
from torch import fx

from elman.adjoint import adjoint
from elman.circuit import graphs
from elman.circuit.form import Circuit, InPort, Kind, OutPort, Wire
from elman.circuit.operations import operation_of
from elman.circuit.rows import Rows, carries, feature_shape, rows_of
from elman.errors import CircuitError
from elman.plan.regions import Regions, regions

_FOREVER = math.inf
_AGAIN = 2.0**40  # a product is computed twice only where nothing that spares it can be kept


@dataclass(frozen=True, eq=False)
class Pair:
    """A circuit for training: the forward pass gives out what the backward pass takes in.

    forward: the circuit with one more SEQUENCE output for every kept value.
    backward: its adjoint, with one SEQUENCE input for every kept value.
    kept: output port of `forward` -> input port of `backward`.
    bytes_per_row: what is kept, per row and step.
    """

    forward: Circuit
    backward: Circuit
    kept: dict[str, str]
    bytes_per_row: int

    def check(self) -> Pair:
        """Return itself, or raise CircuitError: whatever the backward pass reads of the forward pass is given out."""
        self.forward.check()
        self.backward.check()
        where = f"training of {self.forward.name}"
        given = {out.name for out in self.forward.outputs}
        for out in self.kept:
            if out not in given:
                raise CircuitError(what=f"'{out}' is kept, and nobody gives it out", where=where)
        same = {port.name: port for port in self.forward.inputs}
        for port in self.backward.inputs_of(Kind.SEQUENCE):
            # h(t-1) of all steps: the starting state, which has the same name, must never take its place.
            if (
                port.name in same
                and same[port.name].kind is Kind.STATE
                and port.name not in self.kept.values()
            ):
                raise CircuitError(
                    what=f"the backward pass reads {port.path}, and it is not kept", where=where
                )
        return self


def pair(circuit: Circuit, wrt: Iterable[str] | None = None, policy: str = "cut") -> Pair:
    """Split training between a forward and a backward circuit.

    wrt: input ports whose gradients are wanted. policy: "cut" keeps what a minimum cut says, "states" only the states
    (everything else is computed again).
    """
    back = adjoint(circuit, None if wrt is None else frozenset(wrt))
    where = regions(back, back.graph)
    needed = _needed(back.graph, where)
    kept = (
        _states_only(circuit, back.graph, needed)
        if policy == "states"
        else _minimum_cut(circuit, back.graph, where, needed)
    )
    joint = circuit.recorded().joint
    results = graphs.results_of(joint.graph)
    nodes = {node.name: node for node in joint.graph.nodes}
    ports = {port.name for port in circuit.inputs}
    inside = [name for name in kept if name not in ports]
    named = {name: results[name] for name in joint.results} | {_port(name): nodes[name] for name in inside}
    forward_graph = graphs.extract(joint.graph, named)
    _pack(forward_graph, [_port(name) for name in inside])
    graphs.with_placeholders(
        forward_graph,
        [(p.name, graphs.placeholder(circuit.graph, p.name).meta["val"]) for p in circuit.inputs],
    )
    outs = tuple(
        OutPort(
            _port(name),
            Kind.SEQUENCE,
            Wire.input(name) if name in ports else Wire.result(_port(name)),
            f"{name}, kept",
            kept=name,
        )
        for name in kept
    )
    forward = replace(circuit, graph=forward_graph, outputs=(*circuit.outputs, *outs), record=None).check()
    backward = _with_kept(back, inside, {name for name in kept if name in ports})
    # A kept state and what feeds its delay are one sequence.
    twins = {circuit.wire(p.next).name for p in circuit.inputs if p.name in kept and p.next is not None}
    size = sum(
        _bytes(graphs.placeholder(circuit.graph, n) if n in ports else nodes[n])
        for n in kept
        if n not in twins
    )
    return Pair(forward, backward, {_port(name): name for name in kept}, int(size)).check()


def parted(tangent: Circuit) -> tuple[Circuit, Circuit]:
    """A tangent as two circuits: what no direction changes, and the linear rest, which takes it in.

    For many directions at the same place the first runs once, and its rows are repeated for the second: what comes out
    of it as `kept`, with its rows first, is a SEQUENCE that comes in there.
    """
    ports = [port.name for port in tangent.inputs if port.tangent_of is not None]
    moving = set()
    for node in tangent.graph.nodes:  # in the order in which they are computed
        if str(node.target) in ports if node.op == "placeholder" else moving & {*node.all_input_nodes}:
            moving.add(node)
    time = regions(tangent, tangent.graph).time
    met = [
        node for node in tangent.graph.nodes
        if node.op == "call_function" and node in time and node not in moving and _bytes(node) < _FOREVER
        and moving & {*node.users}
    ]  # fmt: skip
    graph = graphs.extract(tangent.graph, {_port(node.name): node for node in met})
    _pack(graph, [_port(node.name) for node in met])
    still = tuple(port for port in tangent.inputs if port.tangent_of is None)
    graphs.with_placeholders(
        graph, [(p.name, graphs.placeholder(tangent.graph, p.name).meta["val"]) for p in still]
    )
    outs = tuple(
        OutPort(_port(n.name), Kind.SEQUENCE, Wire.result(_port(n.name)), f"{n.name}, kept", kept=n.name) for n in met
    )  # fmt: skip
    first = replace(
        tangent, name=f"around {tangent.name}", graph=graph, inputs=still, outputs=outs, record=None
    )
    return first.check(), _with_kept(tangent, [node.name for node in met], set())


def _port(value: str) -> str:
    """The name of the output port of what is kept."""
    return f"kept {value}"


def _pack(graph: fx.Graph, names: list[str]) -> None:
    """Turn some results of a step so that their rows come first."""
    results = graphs.results_of(graph)
    out = next(node for node in reversed(graph.nodes) if node.op == "output")
    with graph.inserting_before(out):
        out.args = (results | {name: graphs.rows_first(graph, results[name]) for name in names},)


def _unpack(graph: fx.Graph, name: str) -> torch.Tensor:
    """Let a placeholder come in with its rows first; return the description of what comes in."""
    node = graphs.placeholder(graph, name)
    where = rows_of(node.meta["val"])
    if where is not None and where != Rows(0, 1):
        aside, users = fx.Graph(), list(node.users)
        before = graphs.add_placeholder(aside, name, node.meta["val"])
        node.meta["val"] = graphs.rows_first(aside, before).meta["val"]
        with graph.inserting_before(next(n for n in graph.nodes if n.op != "placeholder")):
            back = graphs.rows_back(graph, node, before)
        for user in users:
            user.replace_input_with(node, back)
    return node.meta["val"]


def _with_kept(back: Circuit, kept: list[str], states: set[str]) -> Circuit:
    """The adjoint with some of the step's values coming in instead of being computed again; states do anyway."""
    nodes = {node.name: node for node in back.graph.nodes}
    results = graphs.results_of(back.graph)
    graph = graphs.extract(back.graph, results, {nodes[name]: name for name in kept if name in nodes})
    used = {str(node.target) for node in graph.nodes if node.op == "placeholder"}
    ports = [
        replace(port, kept=port.name) if port.name in states else port
        for port in back.inputs
        if port.name in used or port.kind is Kind.STATE
    ]
    for name in kept:
        value = _unpack(graph, name)
        rows = rows_of(value) is not None
        ports.append(
            InPort(
                name,
                Kind.SEQUENCE,
                feature_shape(value, rows),
                value.dtype,
                value.device,
                rows,
                f"{name}, kept",
                kept=name,
            )
        )
    graphs.with_placeholders(
        graph,
        [(p.name, graphs.placeholder(back.graph, p.name).meta["val"]) for p in ports if p.name not in kept],
    )
    return replace(back, graph=graph, inputs=tuple(ports), record=None).check()


def _is_primal(node: fx.Node) -> bool:
    return bool(node.meta.get("primal"))


def _needed(graph: fx.Graph, where: Regions) -> set[fx.Node]:
    """The step's own values that vary in time and that its backward reads."""
    return {
        node
        for node in graph.nodes
        if node.op != "output" and _is_primal(node) and node in where.time
        and any(user.op == "output" or not _is_primal(user) for user in node.users)
    }  # fmt: skip


def _bytes(node: fx.Node) -> float:
    """Bytes per row and step of keeping a value; infinite where it cannot be kept as packed rows."""
    value = node.meta["val"]
    if not isinstance(value, torch.Tensor) or not carries(value) or (where := rows_of(value)) is None:
        return _FOREVER
    return (
        where.factor
        * math.prod(int(n) for d, n in enumerate(value.shape) if d != where.dim)
        * value.dtype.itemsize
    )


def _states_only(circuit: Circuit, graph: fx.Graph, needed: set[fx.Node]) -> list[str]:
    reached = graphs.ancestors(needed)
    return [
        p.name
        for p in circuit.inputs_of(Kind.STATE)
        if any(n.op == "placeholder" and n.target == p.name for n in reached)
    ]


def _minimum_cut(circuit: Circuit, graph: fx.Graph, where: Regions, needed: set[fx.Node]) -> list[str]:
    """Names of the values to keep. Each choice of states whose sequence is kept is one cut; the cheapest wins."""
    states = circuit.inputs_of(Kind.STATE)
    choices = (
        [c for n in range(len(states) + 1) for c in combinations(states, n)]
        if len(states) <= 4
        else [(), tuple(states)]
    )
    best: tuple[float, list[str]] | None = None
    for chosen in choices:
        # A state's sequence and its predecessor's are one: when it is kept, both ends of the delay are free.
        free = {port.name for port in chosen}
        ends = {circuit.wire(port.next).name for port in chosen if port.next is not None}
        cost = sum(_bytes(graphs.placeholder(circuit.graph, port.name)) for port in chosen)
        weight, names = _cut(graph, where, needed, free, ends, {port.name for port in states} - free)
        if best is None or cost + weight < best[0]:
            used = _used(graph, needed, set(names))
            kept_states = [port.name for port in chosen if port.name in used]
            kept_ends = [
                circuit.wire(p.next).name
                for p in chosen
                if p.next is not None and circuit.wire(p.next).name in names
            ]
            best = (cost + weight, [*dict.fromkeys([*kept_states, *names, *kept_ends])])
    if (
        best is None or best[0] == _FOREVER
    ):  # never with all states: everything can be computed from them again
        raise CircuitError(
            what="nothing that can be kept spares the forward pass", where=f"training of {circuit.name}"
        )
    return best[1]


def _used(graph: fx.Graph, needed: set[fx.Node], kept: set[str]) -> set[str]:
    """Placeholders that are still read when `kept` comes in from outside."""
    reached: set[fx.Node] = set()
    pending = list(needed)
    while pending:
        node = pending.pop()
        if node not in reached:
            reached.add(node)
            if node.name not in kept:
                pending.extend(node.all_input_nodes)
    return {str(node.target) for node in reached if node.op == "placeholder"}


def _cut(
    graph: fx.Graph, where: Regions, needed: set[fx.Node], free: set[str], ends: set[str], dear: set[str]
) -> tuple[float, list[str]]:
    """The cheapest set of values that separates what is there from what the backward pass reads.

    free: states that are kept anyway. ends: values that are kept with them. dear: states that would have to be kept.
    """
    import networkx as nx  # takes a tenth of a second, so not when elman is imported

    network: nx.DiGraph = nx.DiGraph()
    network.add_node("there")
    network.add_node("read")
    for node in graphs.ancestors(needed):
        if node not in where.time:
            continue
        enters, leaves = f"{node.name} in", f"{node.name} out"
        cost = 0.0 if node.name in ends else _bytes(node)
        if node.op == "placeholder":
            name = str(node.target)
            if name in dear:
                network.add_edge("there", enters, capacity=_FOREVER)
                network.add_edge(enters, leaves, capacity=_FOREVER)
            continue
        network.add_edge(enters, leaves, capacity=cost)
        timed = [source for source in node.all_input_nodes if source in where.time]
        for source in timed:
            network.add_edge(f"{source.name} out", enters, capacity=_FOREVER)
        if not operation_of(node).recomputed:
            network.add_edge("there", enters, capacity=_AGAIN)
        if node in needed:
            network.add_edge(leaves, "read", capacity=_FOREVER)
    for node in needed:
        if node.op == "placeholder" and str(node.target) in dear:
            network.add_edge(f"{node.name} out", "read", capacity=_FOREVER)
    try:
        weight, (near, _) = nx.minimum_cut(network, "there", "read")
    except nx.NetworkXUnbounded:  # without these states something cannot be had at all
        return _FOREVER, []
    cut = [
        node.name
        for node in graph.nodes
        if f"{node.name} in" in near
        and network.has_node(f"{node.name} out")
        and f"{node.name} out" not in near
    ]
    return float(weight), cut
