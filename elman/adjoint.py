"""The adjoint of a circuit: a circuit again, whose time runs the other way.

Running it is back-propagation through time. With a step (o, h') = f(θ, x, h), a loss L and a(t) = dL/dh'(t) arriving
from the future, the adjoint's step is the transposed step of f at time t:

    (dθ, dx, dh) = f'(θ, x(t), h(t-1))ᵀ (dL/do(t), a(t)),     a(t-1) = dh,     dL/dθ = Σ dθ

Its inputs are those of the circuit, states having become the sequences h(t-1), and one cotangent `g_…` per output; its
outputs are the gradients `d_…`. Kinds are dual: constant ↔ sum, sequence ↔ sequence, state ↔ state.
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from dataclasses import dataclass, replace

import torch
from torch import fx

from elman.circuit import graphs
from elman.circuit.form import Circuit, InPort, Joint, Kind, OutPort, StepFunction, Wire
from elman.circuit.rows import feature_shape, rows_of
from elman.errors import CircuitError, InputError, InputTypeError, expect
from elman.trace.joint import Recording

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
    joint = circuit.recorded().joint
    inputs = (*circuit.inputs, *_unknown(circuit, joint))
    check_names(circuit, [port.name for port in circuit.inputs if port.differentiable], wrt, "gradient")
    wiring = _wire(circuit, joint, inputs)
    wanted = {p.name for p in inputs if p.differentiable and (wrt is None or p.name in wrt)}
    named = graphs.results_of(joint.graph)
    asked = wanted | {port.name for port in inputs if port.kind is Kind.STATE and port.differentiable}
    gradients = {
        p: named[result] for p, result in joint.gradients.items() if result is not None and p in asked
    }
    graph = graphs.extract(joint.graph, gradients or dict([next(iter(named.items()))]))
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
    sums = _sum_up(graph, joint, wiring, gradients.keys())
    ports = _states_fed(new_ports, sums.keys(), wiring)
    used = {str(node.target) for node in graph.nodes if node.op == "placeholder"}
    outputs = []
    for port in inputs:
        if port.name not in wanted or port.name not in sums:
            continue
        wire = _gradient_of(port.name)
        kind = {Kind.CONSTANT: Kind.SUM, Kind.SEQUENCE: Kind.SEQUENCE, Kind.STATE: Kind.STATE}[port.kind]
        fed = next((p.name for p in ports if p.next == wire), None)
        outputs.append(OutPort(wire.name, kind, wire, f"gradient of {port.path}", fed, gradient_of=port.name))
    out = next(node for node in reversed(graph.nodes) if node.op == "output")
    out.args = ({_gradient_of(name).name: node for name, node in sums.items()},)
    graphs.drop_dead(graph)

    all_inputs = tuple(p for p in (*map(seen_from_behind, inputs), *ports) if p.name in used)
    # What nobody reads, as of a teacher that is data, the step does not give out: no cotangent would come for it.
    read = {out.wire for out in outputs} | {port.next for port in all_inputs}
    step = _step(circuit, joint, wiring, sorted(name for name in sums if _gradient_of(name) in read))

    signature = _with_captured(circuit, joint)
    met = signature.captured if signature is not None else {}
    return Circuit(
        name=f"adjoint of {circuit.name}",
        graph=graph,
        inputs=all_inputs,
        outputs=tuple(outputs),
        reverse=not circuit.reverse,
        signature=signature,
        record=Recording(
            step,
            all_inputs,
            f"the adjoint of {circuit.name}",
            twice=True,
            met=met,
            dual=circuit.recorded().dual,
        ),
    ).check()


def check_names(circuit: Circuit, known: Collection[str], wrt: Collection[str] | None, what: str) -> None:
    """Refuse names that are not `known` ones: of the inputs of a circuit that have a gradient, or a direction."""
    if isinstance(wrt, str):
        raise InputTypeError(
            what="wrt is a collection of names", where="wrt=", got=repr(wrt), mend=f"write [{wrt!r}]"
        )
    for name in wrt or ():
        if name not in known:
            raise InputError(
                what=f"{circuit.name} has no input '{name}' that has a {what}",
                where="wrt=",
                expected=f"some of {', '.join(known)}",
            )


def cotangent_ports(adjoint: Circuit) -> dict[str, str]:
    """Output port of a circuit -> the port of its adjoint through which dL/d(output) comes in, where one does."""
    return {port.cotangent_of: port.name for port in adjoint.inputs if port.cotangent_of is not None}


def _gradient_of(name: str) -> Wire:
    """The adjoint's result that is dL/d(input)."""
    return Wire.result(f"d_{name}")


def _cotangent_name(circuit: Circuit, output: str) -> str:
    """The name of the adjoint's port for dL/d(output): with as many g as no input of the circuit has."""
    name, taken = f"g_{output}", {port.name for port in circuit.inputs}
    while name in taken:
        name = f"g{name}"
    return name


def expose(circuit: Circuit) -> Circuit:
    """The same circuit with the sequences h(t-1) of its states as further outputs `<state>_before`.

    Second derivatives flow through them: the adjoint takes h(t-1) as inputs.
    """
    exposed = {out.state for out in circuit.outputs_of(Kind.SEQUENCE)}
    extra = tuple(
        OutPort(
            f"{port.name}_before",
            Kind.SEQUENCE,
            Wire.input(port.name),
            f"{port.path} before each step",
            port.name,
        )
        for port in circuit.inputs_of(Kind.STATE)
        if port.name not in exposed  # exposed already, for derivatives of a higher order
    )
    return replace(circuit, outputs=(*circuit.outputs, *extra)).check()


def carrying_on(circuit: Circuit) -> Circuit:
    """The same circuit with what each of its delays hands on as a further output, where none is: what goes on from it
    begins with that.

    It is not the final state where a teacher stands in for an output: the next step sees the teacher's.
    """
    have = {(out.state, out.wire) for out in circuit.outputs_of(Kind.STATE)}
    names = {out.name for out in circuit.outputs}
    extra = []
    for port in circuit.inputs_of(Kind.STATE):
        if port.next is not None and (port.name, port.next) not in have:
            name = f"{port.name}_on"
            while name in names:
                name += "_"
            path = f"{port.path}, handed on"
            extra.append(OutPort(name, Kind.STATE, port.next, path, port.name))
    return replace(circuit, outputs=(*circuit.outputs, *extra)).check() if extra else circuit


# --- how cotangents enter -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Entry:
    """A port of the adjoint that adds to the cotangent of a wire. state: whose delay it is, if any."""

    port: InPort
    value: object
    state: str | None


def _wire(circuit: Circuit, joint: Joint, inputs: tuple[InPort, ...]) -> dict[Wire, list[_Entry]]:
    """Wire -> the ports through which its cotangent comes in: from outputs, from the future, from the final state."""
    entries: dict[Wire, list[_Entry]] = {}

    def add(
        wire: Wire, kind: Kind, path: str, name: str, out: OutPort | None = None, state: str | None = None
    ) -> None:
        value = circuit.wire(wire).meta["val"]
        if not (value.dtype.is_floating_point or value.dtype.is_complex):
            return
        if not wire.is_input and wire.name not in joint.cotangents:
            return
        rows = rows_of(value) is not None
        port = InPort(
            _cotangent_name(circuit, name), kind, feature_shape(value, rows), value.dtype, value.device, rows,
            f"gradient of {path}", cotangent_of=None if out is None else out.name,
        )  # fmt: skip
        entries.setdefault(wire, []).append(_Entry(port, value, state))

    for out in circuit.outputs:
        if out.kind is not Kind.STATE:
            add(out.wire, Kind.CONSTANT if out.kind is Kind.SUM else Kind.SEQUENCE, out.path, out.name, out)
    finals = {out.state: out for out in circuit.outputs_of(Kind.STATE)}
    paired: set[str] = set()
    for port in inputs:
        if port.kind is not Kind.STATE or port.next is None:
            continue
        final = finals.get(port.name)
        if final is not None and final.wire == port.next:
            paired.add(final.name)
            add(port.next, Kind.STATE, final.path, final.name, final, port.name)
        else:
            path = f"{port.path}, from the next step"
            add(port.next, Kind.STATE, path, f"{port.name}_next", None, port.name)
    for out in circuit.outputs_of(Kind.STATE):
        if out.name not in paired:
            add(out.wire, Kind.STATE, out.path, out.name, out)
    return entries


def _sum_up(
    graph: fx.Graph, joint: Joint, wiring: dict[Wire, list[_Entry]], gradients: Collection[str]
) -> dict[str, fx.Node]:
    """Put the sums of cotangents where the joint graph has one placeholder each; return input -> its gradient.

    gradients: the inputs whose gradients are results of `graph`.
    """
    have = {str(node.target): node for node in graph.nodes if node.op == "placeholder"}
    first = next(node for node in graph.nodes if node.op != "placeholder")
    results = graphs.results_of(graph)
    with graph.inserting_before(first):
        for result, name in joint.cotangents.items():
            if name not in have:
                continue
            terms = [have[entry.port.name] for entry in wiring.get(Wire.result(result), [])]
            if not terms:
                raise CircuitError(
                    f"result '{result}' goes to no port, so it has no gradient", where="adjoint"
                )
            total = _added(graph, terms)
            have[name].replace_all_uses_with(total)
            results = {k: total if v is have[name] else v for k, v in results.items()}
            graph.erase_node(have[name])
    out = next(node for node in reversed(graph.nodes) if node.op == "output")
    gradient_of = {name: results[name] for name in gradients}
    with graph.inserting_before(out):
        for name, entries in _handed_on(wiring):
            terms = [
                *([gradient_of[name]] if name in gradient_of else []),
                *(have[entry.port.name] for entry in entries),
            ]
            gradient_of[name] = _added(graph, terms)
    return gradient_of


def _added(graph: fx.Graph, terms: list[fx.Node]) -> fx.Node:
    return functools.reduce(lambda a, b: graphs.insert(graph, aten.add.Tensor, a, b), terms)


def _handed_on(wiring: dict[Wire, list[_Entry]]) -> list[tuple[str, list[_Entry]]]:
    """Inputs that come out as they go in, and the ports of their cotangents."""
    return [(wire.name, entries) for wire, entries in wiring.items() if wire.is_input]


def _states_fed(
    ports: list[InPort], gradients: Collection[str], wiring: dict[Wire, list[_Entry]]
) -> list[InPort]:
    """Close the adjoint's cycles: what arrives at a delay is the gradient of the state that it feeds."""
    state_of = {entry.port.name: entry.state for entries in wiring.values() for entry in entries}
    return [
        replace(port, next=_gradient_of(state))
        if (state := state_of[port.name]) in gradients and state
        else port
        for port in ports
    ]


def _step(circuit: Circuit, joint: Joint, wiring: dict[Wire, list[_Entry]], asked: list[str]) -> StepFunction:
    """The adjoint's step as a function with its own autograd: the cell's backward, itself differentiable."""
    inner = [port.name for port in circuit.inputs]
    step_before = circuit.recorded().step
    entering = {result: wiring.get(Wire.result(result), []) for result in joint.cotangents}
    entering = {result: entries for result, entries in entering.items() if entries}
    sources = [name for name in asked if joint.gradients.get(name) is not None]

    def step(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        primal = {name: inputs[name] for name in inner if name in inputs}
        outputs = step_before(primal)
        gradients = torch.autograd.grad(
            [outputs[result] for result in entering], [primal[name] for name in sources],
            [_sum(inputs, entries) for entries in entering.values()], allow_unused=True, create_graph=True,
        )  # fmt: skip
        gradient_of = {
            name: torch.zeros_like(primal[name]) if g is None else g
            for name, g in zip(sources, gradients, strict=True)
        }
        for name, entries in _handed_on(wiring):
            if name not in asked:
                continue
            total = _sum(inputs, entries)
            gradient_of[name] = gradient_of[name] + total if name in gradient_of else total
        return {_gradient_of(name).name: value for name, value in gradient_of.items()}

    return step


def _sum(inputs: dict[str, Tensor], entries: list[_Entry]) -> Tensor:
    return functools.reduce(torch.add, [inputs[entry.port.name] for entry in entries])


def seen_from_behind(port: InPort) -> InPort:
    """A circuit's input as the adjoint sees it: a state has become the sequence h(t-1), and roles are the circuit's."""
    port = replace(port, cotangent_of=None, kept=None, teaches=None, tangent_of=None)
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
