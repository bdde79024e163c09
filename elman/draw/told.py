"""What a play tells of at each step: the variables drawn, and named values that lie between them.

A picture leaves a of h = tanh(a) out, as nobody else reads it; whoever follows the numbers wants it, and δ = ∂L/∂a.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx

from elman.circuit.form import Circuit, Kind, OutPort, op_name
from elman.draw.names import names
from elman.draw.variables import SIGNS, Equations

_SOFTMAX = ("_softmax", "_log_softmax")
_BENT = set(SIGNS) - set(_SOFTMAX)


@dataclass(frozen=True)
class Told:
    """A value of every step.

    key: the node that holds it. place: the drawn variable that it is or leads to, None where there is none. role: as of
    a `Variable`; "inner" for what is not drawn, "share" for ŷ, of which no gradient is told. delta: it is the a of the
    step's only nonlinear function, so that its gradient is δ. log: the node holds the logarithm.
    """

    key: str
    name: str
    role: str
    place: str | None
    delta: bool = False
    log: bool = False


@dataclass(frozen=True)
class Loss:
    """What a play sends back. parts: the outputs in it; own: each is a loss of the cell's own, one number a row, and so
    told as a variable; last: it is of the last state, as nothing is given out; sign: the name of one step's share."""

    parts: tuple[OutPort, ...]
    own: bool
    last: bool
    sign: str
    text: str


def told(circuit: Circuit, eq: Equations) -> tuple[Told, ...]:
    """What is told of, in the order in which it is computed."""
    drawn = {v.key: v for v in eq.variables if v.name and v.role != "before"}
    if eq.back:
        return tuple(Told(v.key, v.name, v.role, v.key) for v in drawn.values())
    named = {node: name for node, name in names(circuit).items() if node.op == "call_function"}
    of = _sources(circuit, {v.key for v in eq.variables})
    bent = [
        node.all_input_nodes[0]
        for node in circuit.graph.nodes
        if node.op == "call_function" and op_name(node) in _BENT and of[node] and node.all_input_nodes
    ]
    taken = {v.name for v in drawn.values()}
    inner = {
        name: node  # of several of one name the last
        for node, name in named.items()
        if node.name not in drawn and name not in taken and (len(of[node]) > 1 or (of[node] and node in bent))
    }
    if (
        len(bent) == 1
        and bent[0].op == "call_function"
        and bent[0] not in named
        and "a" not in taken | {*inner}
    ):
        inner["a"] = bent[0]
    called = {node: name for name, node in inner.items() if node.meta["val"].is_floating_point()}
    rows: list[Told] = []
    for node in circuit.graph.nodes:
        delta = len(bent) == 1 and node is bent[0]
        if node.name in drawn:
            rows.append(Told(node.name, drawn[node.name].name, drawn[node.name].role, node.name, delta))
        elif node in called:
            rows.append(Told(node.name, called[node], "inner", _place(circuit, node, drawn), delta))
        elif op_name(node) in _SOFTMAX and _to_a_loss(circuit, node):
            log = op_name(node) == "_log_softmax"
            name = "ŷ" if log else named.get(node, "ŷ")
            if name not in taken | {one.name for one in rows}:
                rows.append(Told(node.name, name, "share", _place(circuit, node, drawn), log=log))
    return tuple(rows)


def loss(circuit: Circuit, rows: tuple[Told, ...]) -> Loss:
    """What is to be sent back: the cell's own loss where it gives one out, else one made up, half a square."""
    name = {row.key: row.name for row in rows}
    outs = {circuit.wire(out.wire): out for out in circuit.outputs_of(Kind.SEQUENCE)}
    outs = {node: out for node, out in outs.items() if node.meta["val"].is_floating_point()}
    own = {node: out for node, out in outs.items() if node.meta["val"].dim() < 2}
    sign = "ℓ" if "L" in name.values() else "L"

    def of(nodes: Mapping[fx.Node, OutPort], form: str, time: str) -> str:
        return " + ".join(
            form.format(f"{name.get(node.name, out.path)}({time})") for node, out in nodes.items()
        )

    if own:
        terms = of(own, "{}", "t")
        text = f"L = Σ {terms if len(own) == 1 else f'({terms})'}: the loss is what the cell gives out."
        return Loss(tuple(own.values()), own=True, last=False, sign=sign, text=text)
    made_up = "a loss made up for this example."
    if outs:
        text = f"L = Σ {sign}(t) with {sign}(t) = {of(outs, '½‖{}‖²', 't')}: {made_up}"
        return Loss(tuple(outs.values()), own=False, last=False, sign=sign, text=text)
    ends = {circuit.wire(out.wire): out for out in circuit.outputs_of(Kind.STATE)}
    ends = {node: out for node, out in ends.items() if node.meta["val"].is_floating_point()}
    text = f"L = {of(ends, '½‖{}‖²', 'τ')}: {made_up}"
    return Loss(tuple(ends.values()), own=False, last=True, sign=sign, text=text)


def _sources(circuit: Circuit, drawn: set[str]) -> dict[fx.Node, frozenset[str]]:
    """Node -> the drawn variables that it is computed from, without others between."""
    sources: dict[fx.Node, frozenset[str]] = {}
    for node in circuit.graph.nodes:
        of = [frozenset({one.name}) if one.name in drawn else sources[one] for one in node.all_input_nodes]
        sources[node] = frozenset().union(*of)
    return sources


def _onward(node: fx.Node, stop: Mapping[str, object]) -> list[fx.Node]:
    """What is computed from a node, no further than the drawn variables."""
    reached: dict[fx.Node, None] = {}
    left = list(node.users)
    while left:
        one = left.pop()
        if one not in reached and one.op == "call_function":
            reached[one] = None
            left += [] if one.name in stop else one.users
    return list(reached)


def _place(circuit: Circuit, node: fx.Node, drawn: Mapping[str, object]) -> str | None:
    """The first drawn variable that is computed from a node."""
    onward = {one.name for one in _onward(node, drawn)}
    return next((one.name for one in circuit.graph.nodes if one.name in onward and one.name in drawn), None)


def _to_a_loss(circuit: Circuit, node: fx.Node) -> bool:
    """Whether a softmax serves a loss that the cell gives out, one number a row, and no state."""
    onward = set(_onward(node, {}))
    states = {fed for _, fed in circuit.delays()}
    ends = {circuit.wire(out.wire) for out in circuit.outputs_of(Kind.SEQUENCE)}
    return not onward & states and any(end.meta["val"].dim() < 2 for end in onward & ends)


__all__ = ["Loss", "Told", "loss", "told"]
