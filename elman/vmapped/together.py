"""Circuits that go with one step, as one circuit: what they have in common is computed once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_arg

from elman.adjoint import seen_from_behind
from elman.circuit import graphs
from elman.circuit.form import ROWS, Circuit, InPort, Kind, OutPort, Wire
from elman.circuit.structure import side_by_side
from elman.vmapped.record import example, recorded

Tensor = torch.Tensor
_NOTHING: Mapping[int, int] = {}


def beside(number: int, name: str) -> str:
    """What a port of circuit `number` is called in `together`, where it is its own; as nothing else is."""
    return f"{name}@{number}"


def together(circuits: Sequence[Circuit], joined: Mapping[int, int] = _NOTHING) -> Circuit:
    """The circuits' steps side by side: a circuit, its adjoints, those with their rows apart or for several examples.

    Inputs of one name are one, states being the sequences that adjoints take, but for cotangents: those, and all that
    comes out, are called as `beside` says. What no adjoint gives out as a state comes out as a sequence.

    joined: number of a circuit -> dimensions in front of the numbers of what it gives out, which come out side by side,
    as one sequence.
    """
    parts = [_Part(number, circuit, joined.get(number)) for number, circuit in enumerate(circuits)]
    inputs = {port.name: (port, value) for part in parts for port, value in part.inputs}
    from elman.trace.fakes import Fakes

    fakes, graph = Fakes(), fx.Graph()
    for name, (_, value) in inputs.items():
        graphs.add_placeholder(graph, name, value)
    graphs.add_placeholder(graph, ROWS, None)
    graph.output({})

    def step(values: dict[fx.Node, Any]) -> dict[str, Tensor]:
        given = {str(node.target): value for node, value in values.items()}
        return {name: value for part in parts for name, value in part.run(given).items()}

    examples = [example(fakes, value, None) for _, value in inputs.values()]
    whole = recorded(graph, "a step", fakes, [*examples, fakes.batch], step)
    ports = tuple(port for port, _ in inputs.values())
    name = f"{circuits[0].name} with its derivatives"
    outputs = tuple(out for part in parts for out in part.outputs)
    return Circuit(name, whole, ports, outputs, True, circuits[0].signature).check()


class _Part:
    def __init__(self, number: int, circuit: Circuit, lead: int | None) -> None:
        self.number, self.circuit, self.lead = number, circuit, lead
        behind = any(port.cotangent_of is not None for port in circuit.inputs)
        ports = circuit.inputs if behind else tuple(map(seen_from_behind, circuit.inputs))
        self.names = {p.name: beside(number, p.name) if self._own(p) else p.name for p in ports}
        places = {str(n.target): n.meta["val"] for n in circuit.graph.nodes if n.op == "placeholder"}
        self.inputs = [(self._renamed(port), places[port.name]) for port in ports]
        self.outputs = [self._out(out, behind) for out in circuit.outputs]
        if lead is not None:
            name = beside(number, "joined")
            self.outputs = [
                OutPort(name, Kind.SEQUENCE, Wire.result(name), "what is given out, side by side")
            ]

    def _own(self, port: InPort) -> bool:
        return port.cotangent_of is not None or port.kind is Kind.STATE

    def _wire(self, wire: Wire) -> Wire:
        return (
            Wire.input(self.names[wire.name])
            if wire.is_input
            else Wire.result(beside(self.number, wire.name))
        )

    def _renamed(self, port: InPort) -> InPort:
        following = None if port.next is None else self._wire(port.next)
        return replace(port, name=self.names[port.name], next=following)

    def _out(self, out: OutPort, behind: bool) -> OutPort:
        kind = out.kind if behind else Kind.SEQUENCE
        state = None if out.state is None or not behind else self.names[out.state]
        return replace(
            out, name=beside(self.number, out.name), wire=self._wire(out.wire), kind=kind, state=state
        )

    def run(self, given: dict[str, Any]) -> dict[str, Tensor]:
        """The results of its step."""
        values: dict[fx.Node, Any] = {}
        for node in self.circuit.graph.nodes:
            if node.op == "placeholder":
                values[node] = given[self.names.get(str(node.target), str(node.target))]
            elif node.op == "call_function":
                target: Any = node.target
                args, kwargs = (map_arg(part, values.__getitem__) for part in (node.args, node.kwargs))
                values[node] = target(*args, **kwargs)
        found = {name: values[node] for name, node in graphs.results_of(self.circuit.graph).items()}
        if self.lead is not None:
            outputs = [values[self.circuit.wire(out.wire)] for out in self.circuit.outputs]
            found["joined"] = side_by_side(outputs, [tuple(v.shape[self.lead :]) for v in outputs])
        return {beside(self.number, name): value for name, value in found.items()}
