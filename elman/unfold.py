"""Unfolding: a circuit with cycles becomes a finite acyclic graph that shares its parameters between the steps.

The unfolded graph is the meaning of the circuit: it runs, and its gradient by ordinary autograd is back-propagation
through time. (A custom backward of the cell is not in it: that lives in the circuit's joint.)
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_arg

from elman.circuit import graphs
from elman.circuit.form import (
    ROWS,
    Circuit,
    Kind,
    OutPort,
    Wire,
    check_graph,
    describe,
    is_transposition,
    word,
)
from elman.circuit.rows import factor
from elman.errors import CircuitError, InputError, expect

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Unfolded:
    """An acyclic graph of `steps` copies of a circuit's step.

    Node `tanh` at step 2 is called `tanh_t2`; sequence inputs are `x_t0`, `x_t1`, …; states enter by their own name;
    outputs are a dict: `<port>_t<step>` for sequences, the port's name for states and sums.
    """

    circuit: Circuit
    steps: int
    graph: fx.Graph

    @property
    def inputs(self) -> dict[str, list[int | str]]:
        """Name of each input -> its shape, in which "B" is the batch.

        A parameter may be given by the cell's own dotted name as well, `U.weight` for `U_weight`.
        """
        return {
            port.name: [
                *([self.steps] if port.kind in (Kind.SEQUENCE, Kind.NOISE) else []),
                *(["B"] if port.rows else []),
                *port.shape,
            ]
            for port in self.circuit.inputs
        }

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Run it.

        inputs: name, as `self.inputs` lists them -> constant, sequence or noise `[T, B, …]`, or starting state
            `[B, …]`. Parameters may have the cell's names: `{**dict(cell.named_parameters()), "x": x, "h": h}`.
        Returns port name -> sequence `[T, B, …]`, sum, or final state. Raises InputError for an input that is
        missing or one too many, or has another shape than its port.
        """
        inputs = self._by_port(inputs)
        self._check_inputs(inputs)
        flat: dict[str, torch.Tensor] = {}
        batch = 1
        for port in self.circuit.inputs:
            value = inputs[port.name]
            if port.kind in (Kind.SEQUENCE, Kind.NOISE):
                flat |= {f"{port.name}_t{t}": value[t] for t in range(self.steps)}
                batch = int(value.shape[1]) if port.rows else batch
            else:
                flat[port.name] = value
                batch = int(value.shape[0]) if port.rows else batch
        values = graphs.run(self.graph, flat, batch)
        out: dict[str, torch.Tensor] = {}
        for port in self.circuit.outputs:
            if port.kind is Kind.SEQUENCE:
                kept = [values[f"{port.name}_t{t}"] for t in range(self.steps)]
                out[port.name] = torch.stack(kept) if kept else _empty(self.circuit, port, batch)
            else:
                out[port.name] = values[port.name]
        return out

    def _by_port(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The inputs by the names of their ports."""
        ports: dict[str, str] = {}
        signature = self.circuit.signature
        for port in self.circuit.inputs_of(Kind.CONSTANT):
            places = signature.owned.get(port.name, ()) if signature is not None else ()
            ports |= {
                path.removeprefix("cell."): port.name for path in (port.path, *(p.path for p in places))
            }
        by_port: dict[str, torch.Tensor] = {}
        for name, value in inputs.items():
            port = name if name in self.inputs else ports.get(name, name)
            if port in by_port and by_port[port] is not value:
                raise InputError(
                    what=f"input '{port}' is given twice", where=f"unfolded {self.circuit.name}", got=name
                )
            by_port[port] = value
        return by_port

    def _check_inputs(self, inputs: Mapping[str, torch.Tensor]) -> None:
        where = f"unfolded {self.circuit.name}"
        names = list(self.inputs)
        for name in inputs:
            if name not in names:
                raise InputError(
                    what=f"there is no input '{name}'", where=where, expected=f"{', '.join(names)}"
                )
        batch: int | None = None
        for port in self.circuit.inputs:
            value = inputs.get(port.name)
            if value is None:
                raise InputError(what=f"input '{port.name}' is missing", where=where)
            timed = port.kind in (Kind.SEQUENCE, Kind.NOISE)
            lead = [self.steps] if timed else []
            size = list(value.shape)[len(lead) : len(lead) + 1] if port.rows else []
            batch = size[0] if batch is None and size else batch
            expected = [*lead, *(["B" if batch is None else batch] if port.rows else []), *port.shape]
            if list(value.shape) != expected:
                raise InputError(
                    what=f"input '{port.name}' does not fit",
                    where=where,
                    got=list(value.shape),
                    expected=expected,
                )

    def __str__(self) -> str:
        """Shared inputs, then the operations of every step in the order in which they run, then the outputs."""
        places = [node for node in self.graph.nodes if node.op == "placeholder" and node.target != ROWS]
        lines = [f"{self.circuit.name}, unfolded for {self.steps} steps"]
        lines.append(f"  in   {', '.join(str(node.target) for node in places)}")
        before = None
        for node in self.graph.nodes:
            if node.op == "call_function" and not is_transposition(node):
                label = f"t={node.meta['step']}" if "step" in node.meta else ""
                lines.append(f"  {'' if label == before else label:5}{node.name} = {describe(node)}")
                before = label
        results = graphs.results_of(self.graph)
        whole = {out.name for out in self.circuit.outputs}
        for name in sorted(results, key=whole.__contains__):  # sequences, step by step, come first
            lines.append(f"  out  {name} = {word(results[name])}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<{self.circuit.name}, unfolded for {self.steps} steps>"

    def check(self) -> Unfolded:
        """Return itself, or raise CircuitError: every node is of a step or between steps, and parameters are shared."""
        where = f"unfolded {self.circuit.name}"
        check_graph(self.graph, where)
        names = [str(node.target) for node in self.graph.nodes if node.op == "placeholder"]
        for port in self.circuit.inputs_of(Kind.CONSTANT):
            if names.count(port.name) != 1:
                raise CircuitError(
                    what=f"constant '{port.name}' is not shared between the steps", where=where
                )
        return self


def unfold(circuit: Circuit, steps: int) -> Unfolded:
    """Unfold a circuit for `steps` time steps (the book's τ). Raises InputError for a negative number."""
    expect(
        circuit,
        Circuit,
        "what is unfolded is a circuit",
        "unfold(circuit, steps)",
        "elman.trace(cell, x, state) gives one",
    )
    expect(steps, int, "the number of steps is a whole number", "unfold(steps=)")
    if steps < 0:
        raise InputError(
            what="a circuit cannot be unfolded backward",
            where="unfold(steps=)",
            got=steps,
            expected="0 or more",
        )
    graph = fx.Graph()
    shared: dict[str, fx.Node] = {ROWS: graphs.add_placeholder(graph, ROWS, _rows(circuit))}
    for port in circuit.inputs:
        value = graphs.placeholder(circuit.graph, port.name).meta["val"]
        if port.kind in (Kind.SEQUENCE, Kind.NOISE):
            for t in range(steps):
                shared[f"{port.name}_t{t}"] = graphs.add_placeholder(graph, f"{port.name}_t{t}", value)
        else:
            shared[port.name] = graphs.add_placeholder(graph, port.name, value)
    states = {port.name: shared[port.name] for port in circuit.inputs_of(Kind.STATE)}
    outputs: dict[str, fx.Node] = {}
    order = range(steps - 1, -1, -1) if circuit.reverse else range(steps)
    for t in order:
        values = _one_step(graph, circuit, t, shared, states)
        for out in circuit.outputs:
            node = values[out.wire]
            if out.kind is Kind.SEQUENCE:
                outputs[f"{out.name}_t{t}"] = node
            elif out.kind is Kind.STATE:
                outputs[out.name] = node
            else:
                before = outputs.get(out.name)
                outputs[out.name] = (
                    node if before is None else graphs.insert(graph, aten.add.Tensor, before, node)
                )
        for port in circuit.inputs_of(Kind.STATE):
            states[port.name] = (
                values[port.next]
                if port.next is not None
                else graphs.insert(graph, aten.zeros_like.default, shared[port.name])
            )
    for out in circuit.outputs_of(Kind.SUM, Kind.STATE):
        if out.name not in outputs:  # of no steps
            state = circuit.state_of(out)
            outputs[out.name] = (
                _zeros(graph, circuit.wire(out.wire), shared[ROWS]) if state is None else states[state.name]
            )
    graph.output(outputs)
    graphs.drop_dead(graph)
    return Unfolded(circuit, steps, graph)


def _one_step(
    graph: fx.Graph, circuit: Circuit, t: int, shared: Mapping[str, fx.Node], states: Mapping[str, fx.Node]
) -> dict[Wire, fx.Node]:
    """Copy the step's nodes for time t; return wire -> node."""
    copies: dict[fx.Node, fx.Node] = {}
    values: dict[Wire, fx.Node] = {}
    timed = {port.name for port in circuit.inputs_of(Kind.SEQUENCE, Kind.NOISE)}
    for node in circuit.graph.nodes:
        if node.op == "placeholder":
            name = str(node.target)
            copies[node] = shared[f"{name}_t{t}"] if name in timed else states.get(name, shared.get(name))  # type: ignore[assignment]
            values[Wire.input(name)] = copies[node]
        elif node.op == "call_function":
            copy = graph.create_node(
                node.op, node.target, map_arg(node.args, copies.__getitem__),
                map_arg(node.kwargs, copies.__getitem__), f"{node.name}_t{t}",
            )  # fmt: skip
            copy.meta = node.meta | {"step": t}
            copies[node] = copy
    return values | {Wire.result(name): copies[node] for name, node in circuit.results().items()}


def _zeros(graph: fx.Graph, like: fx.Node, rows: fx.Node) -> fx.Node:
    """Zeros in the shape of a value of the step."""
    value = like.meta["val"]
    multiples = [factor(size) for size in value.shape]
    sizes = [
        graphs.insert(graph, operator.mul, rows, k) if k > 1 else rows if k else int(size)
        for k, size in zip(multiples, value.shape, strict=True)
    ]
    zeros = graph.call_function(aten.zeros.default, (sizes,), {"dtype": value.dtype, "device": value.device})
    zeros.meta["val"] = value
    return zeros


def _rows(circuit: Circuit) -> Any:
    for node in circuit.graph.nodes:
        if node.op == "placeholder" and node.target == ROWS:
            return node.meta["val"]
    for port in circuit.inputs:
        if port.rows:
            return graphs.placeholder(circuit.graph, port.name).meta["val"].shape[0]
    return 1


def _empty(circuit: Circuit, out: OutPort, batch: int) -> torch.Tensor:
    value = circuit.wire(out.wire).meta["val"]
    shape = [size if isinstance(size, int) else batch for size in value.shape]
    return torch.empty((0, *shape), dtype=value.dtype, device=value.device)
