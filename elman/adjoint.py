"""The adjoint of a circuit: a circuit again, whose time runs the other way.

Running it is back-propagation through time. With a step (o, h') = f(θ, x, h), a loss L and a(t) = dL/dh'(t) arriving
from the future, the adjoint's step is the transposed step of f at time t:

    (dθ, dx, dh) = f'(θ, x(t), h(t-1))ᵀ (dL/do(t), a(t)),     a(t-1) = dh,     dL/dθ = Σ dθ

Its inputs are those of the circuit, states having become the sequences h(t-1), and one cotangent `g_…` per output; its
outputs are the gradients `d_…`. Kinds are dual: constant ↔ sum, sequence ↔ sequence, state ↔ state.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import torch
from torch import fx

from elman.circuit import graphs
from elman.circuit.form import Circuit, InPort, Joint, Kind, OutPort
from elman.circuit.rows import feature_shape, rows_of
from elman.errors import CircuitError, InputError, InputTypeError, expect
from elman.trace.joint import trace_joint
from elman.trace.outside import outside

aten = torch.ops.aten
Tensor = torch.Tensor


def adjoint(circuit: Circuit, wrt: Collection[str] | None = None) -> Circuit:
    """The circuit of dL/d(inputs) given dL/d(outputs).

    wrt: names of the input ports whose gradients are wanted; all differentiable ones by default. Gradients of states
        are worked out wherever the recurrence needs them.

    The adjoint of the adjoint gives second derivatives, and so on: its own backward is traced through the cell's
    autograd when it is asked for. Raises InputError for a name that no gradient goes to.
    """
    expect(
        circuit,
        Circuit,
        "an adjoint is that of a circuit",
        "adjoint(circuit)",
        "elman.trace(cell, x, state) gives one",
    )
    joint = circuit.joint()
    inputs = (*circuit.inputs, *_unknown(circuit, joint))
    _check_names(circuit, wrt)
    wiring = _wire(circuit, joint, inputs)
    wanted = {p.name for p in inputs if p.differentiable and (wrt is None or p.name in wrt)}
    known = {port.name: _seen_from_behind(port) for port in inputs}

    named = graphs.results_of(joint.graph)
    node_of = {node.name: node for node in joint.graph.nodes}
    asked = wanted | {port.name for port in inputs if port.kind is Kind.STATE and port.differentiable}
    gradients = {p: node_of[n] for p, n in joint.gradients.items() if n is not None and p in asked}
    graph = graphs.extract(
        joint.graph, {f"d_{p}": node for p, node in gradients.items()} or {"d_": next(iter(named.values()))}
    )
    new_ports = [entry.port for entries in wiring.values() for entry in entries]
    graphs.with_placeholders(
        graph,
        [
            *(
                (port.name, graphs.placeholder(joint.graph, port.name).meta["val"])
                for port in circuit.inputs
                if _has(joint, port)
            ),
            *((entry.port.name, entry.value) for entries in wiring.values() for entry in entries),
        ],
    )
    results = _sum_up(graph, joint, wiring, gradients)
    ports = _states_fed(new_ports, results, wiring)
    used = {str(node.target) for node in graph.nodes if node.op == "placeholder"}
    outputs = []
    for port in inputs:
        if port.name not in wanted or f"d_{port.name}" not in results:
            continue
        kind = {Kind.CONSTANT: Kind.SUM, Kind.SEQUENCE: Kind.SEQUENCE, Kind.STATE: Kind.STATE}[port.kind]
        fed = next((p.name for p in ports if kind is Kind.STATE and p.next == f"d_{port.name}"), None)
        outputs.append(OutPort(f"d_{port.name}", kind, f"d_{port.name}", f"gradient of {port.path}", fed))
    out = next(node for node in reversed(graph.nodes) if node.op == "output")
    out.args = (results,)
    graphs.drop_dead(graph)

    step = _step(circuit, joint, wiring, sorted(asked))
    all_inputs = tuple(p for p in (*known.values(), *ports) if p.name in used)

    signature = _with_captured(circuit, joint)

    @functools.cache
    def own_joint() -> Joint:
        with outside():
            met = signature.captured if signature is not None else {}
            return trace_joint(step, all_inputs, f"the adjoint of {circuit.name}", twice=True, met=met)

    return Circuit(
        name=f"adjoint of {circuit.name}",
        graph=graph,
        inputs=all_inputs,
        outputs=tuple(outputs),
        reverse=not circuit.reverse,
        step=step,
        joint=own_joint,
        signature=signature,
    ).check()


def _check_names(circuit: Circuit, wrt: Collection[str] | None) -> None:
    known = [port.name for port in circuit.inputs if port.differentiable]
    if isinstance(wrt, str):
        raise InputTypeError(
            what="wrt is a collection of names", where="wrt=", got=repr(wrt), mend=f"write [{wrt!r}]"
        )
    for name in wrt or ():
        if name not in known:
            raise InputError(
                what=f"{circuit.name} has no input '{name}' that a gradient goes to",
                where="wrt=",
                expected=f"some of {', '.join(known)}",
            )


def cotangent_of(circuit: Circuit, output: str) -> str:
    """The adjoint's input port for dL/d(output): `g_` and its name, with as many g as no input of the circuit has."""
    name, taken = f"g_{output}", {port.name for port in circuit.inputs}
    while name in taken:
        name = f"g{name}"
    return name


def expose(circuit: Circuit) -> Circuit:
    """The same circuit with the sequences h(t-1) of its states as further outputs `<state>_before`.

    Second derivatives flow through them: the adjoint takes h(t-1) as inputs.
    """
    known = {out.of for out in circuit.outputs_of(Kind.SEQUENCE)}
    extra = tuple(
        OutPort(f"{port.name}_before", Kind.SEQUENCE, port.name, f"{port.path} before each step", port.name)
        for port in circuit.inputs_of(Kind.STATE)
        if port.name not in known  # exposed already, for derivatives of a higher order
    )
    return replace(circuit, outputs=(*circuit.outputs, *extra)).check()


# --- how cotangents enter -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Entry:
    """A port of the adjoint that adds to the cotangent of a wire. `of` is the state whose delay it is, if any."""

    port: InPort
    value: object
    of: str | None = None


def _wire(circuit: Circuit, joint: Joint, inputs: tuple[InPort, ...]) -> dict[str, list[_Entry]]:
    """Wire -> the ports through which its cotangent comes in: from outputs, from the future, from the final state."""
    entries: dict[str, list[_Entry]] = {}

    def add(wire: str, name: str, kind: Kind, path: str, of: str | None = None) -> None:
        value = circuit.wire(wire).meta["val"]
        if not (value.dtype.is_floating_point or value.dtype.is_complex):
            return
        if wire in joint.results and wire not in joint.cotangents:
            return
        rows = rows_of(value) is not None
        port = InPort(name, kind, feature_shape(value, rows), value.dtype, value.device, rows, path)
        entries.setdefault(wire, []).append(_Entry(port, value, of))

    for out in circuit.outputs:
        if out.kind is not Kind.STATE:
            kind = Kind.CONSTANT if out.kind is Kind.SUM else Kind.SEQUENCE
            add(out.wire, cotangent_of(circuit, out.name), kind, f"gradient of {out.path}")
    finals = {out.wire: out for out in reversed(circuit.outputs_of(Kind.STATE))}
    paired: set[str] = set()
    by_state = {out.of: out for out in circuit.outputs_of(Kind.STATE)}
    for port in inputs:
        if port.kind is not Kind.STATE or port.next is None:
            continue
        final = by_state.get(port.name)
        if final is None or final.wire != port.next:
            final = finals.get(port.next)
        if final is not None and final.name not in paired and final.wire == port.next:
            paired.add(final.name)
            add(
                port.next,
                cotangent_of(circuit, final.name),
                Kind.STATE,
                f"gradient of {final.path}",
                port.name,
            )
        else:
            add(
                port.next,
                cotangent_of(circuit, f"{port.name}_next"),
                Kind.STATE,
                f"gradient of {port.path}, from the next step",
                port.name,
            )
    for out in circuit.outputs_of(Kind.STATE):
        if out.name not in paired:
            add(out.wire, cotangent_of(circuit, out.name), Kind.STATE, f"gradient of {out.path}")
    return entries


def _sum_up(
    graph: fx.Graph, joint: Joint, wiring: dict[str, list[_Entry]], gradients: dict[str, fx.Node]
) -> dict[str, fx.Node]:
    """Put the sums of cotangents where the joint graph has one placeholder each; return the adjoint's results."""
    have = {str(node.target): node for node in graph.nodes if node.op == "placeholder"}
    first = next(node for node in graph.nodes if node.op != "placeholder")
    old_results = graphs.results_of(graph)
    with graph.inserting_before(first):
        for result, name in joint.cotangents.items():
            if name not in have:
                continue
            terms = [have[entry.port.name] for entry in wiring.get(result, [])]
            if not terms:
                raise CircuitError(
                    f"result '{result}' goes to no port, so it has no gradient", where="adjoint"
                )
            total = functools.reduce(lambda a, b: graphs.insert(graph, aten.add.Tensor, a, b), terms)
            have[name].replace_all_uses_with(total)
            old_results = {k: total if v is have[name] else v for k, v in old_results.items()}
            graph.erase_node(have[name])
    out = next(node for node in reversed(graph.nodes) if node.op == "output")
    results: dict[str, fx.Node] = {}
    for p in gradients:
        results[f"d_{p}"] = old_results[f"d_{p}"]
    with graph.inserting_before(out):
        for wire, entries in wiring.items():
            if wire in joint.results:
                continue
            terms = [have[entry.port.name] for entry in entries]
            if f"d_{wire}" in results:
                terms.insert(0, results[f"d_{wire}"])
            results[f"d_{wire}"] = functools.reduce(
                lambda a, b: graphs.insert(graph, aten.add.Tensor, a, b), terms
            )
    return results


def _states_fed(
    ports: list[InPort], results: dict[str, fx.Node], wiring: dict[str, list[_Entry]]
) -> list[InPort]:
    """Close the adjoint's cycles: what arrives at a delay is the gradient of the state that it feeds."""
    of = {entry.port.name: entry.of for entries in wiring.values() for entry in entries}
    fed = []
    for port in ports:
        state = of[port.name]
        wire = f"d_{state}" if state is not None and f"d_{state}" in results else None
        fed.append(replace(port, next=wire) if port.kind is Kind.STATE else port)
    return fed


def _step(
    circuit: Circuit, joint: Joint, wiring: dict[str, list[_Entry]], asked: list[str]
) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """The adjoint's step as a function with its own autograd: the cell's backward, itself differentiable."""
    inner = [port.name for port in circuit.inputs]

    def step(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        primal = {name: inputs[name] for name in inner if name in inputs}
        outputs = circuit.step(primal)
        cotangents = {
            result: functools.reduce(torch.add, [inputs[entry.port.name] for entry in wiring[result]])
            for result in joint.cotangents
            if wiring.get(result)
        }
        sources = [name for name in asked if joint.gradients.get(name) is not None]
        found = torch.autograd.grad(
            [outputs[result] for result in cotangents], [primal[name] for name in sources],
            list(cotangents.values()), allow_unused=True, create_graph=True,
        )  # fmt: skip
        results = {
            f"d_{name}": torch.zeros_like(primal[name]) if g is None else g
            for name, g in zip(sources, found, strict=True)
        }
        for wire, entries in wiring.items():
            if wire not in joint.results:
                terms = [inputs[entry.port.name] for entry in entries]
                if f"d_{wire}" in results:
                    terms.insert(0, results[f"d_{wire}"])
                results[f"d_{wire}"] = functools.reduce(torch.add, terms)
        return results

    return step


def _seen_from_behind(port: InPort) -> InPort:
    """A circuit's input as the adjoint sees it: a state has become the sequence h(t-1)."""
    if port.kind is not Kind.STATE:
        return port
    return replace(port, kind=Kind.SEQUENCE, next=None, path=f"{port.path} before each step")


def _has(joint: Joint, port: InPort) -> bool:
    return any(node.op == "placeholder" and node.target == port.name for node in joint.graph.nodes)


def _unknown(circuit: Circuit, joint: Joint) -> tuple[InPort, ...]:
    """Ports of the joint that the circuit does not have: noise drawn, or tensors met, in the backward pass only."""
    have = {port.name for port in circuit.inputs}
    return tuple(port for port in (*joint.noise, *(p for p, _ in joint.captured)) if port.name not in have)


def _with_captured(circuit: Circuit, joint: Joint):  # type: ignore[no-untyped-def]
    if circuit.signature is None:
        return None
    captured = dict(circuit.signature.captured) | {port.name: tensor for port, tensor in joint.captured}
    return replace(circuit.signature, captured=captured)
