"""Teacher forcing: the state entry that is the output is cut from the output and fed by the teacher instead.

    h(t-1) = delay of o          becomes          h(t-1) = delay of teacher

Nothing else changes: the step, its joint and the other ports stay as they are. If no cycle is left, the plan has no
loop, and training is parallel over time.

With a weight for every step, what the next step sees lies between the two, and the cycle stays:

    the step on h(t-1)               becomes          the step on w(t-1) teacher(t-1) + (1 - w(t-1)) h(t-1)
"""

from __future__ import annotations

from dataclasses import replace

import torch

from elman.circuit import graphs
from elman.circuit.form import Circuit, InPort, Kind, Wire
from elman.circuit.signature import identifier
from elman.errors import InputError
from elman.trace.joint import Recording

Tensor = torch.Tensor
WEIGHT = "teacher_weight"  # path of the port that a blended circuit has for it


def force(circuit: Circuit) -> Circuit:
    """The circuit whose next step sees the teacher where it saw its own output.

    The new ports are sequences named `teacher`, one for every tensor of the output that is also an entry of the state;
    `teachers(circuit)` lists them. Raises InputError if the output is no entry of the state.
    """
    forced = _taught(circuit, _names(circuit))
    inputs = [
        replace(p, next=Wire.input(forced[p.name].name)) if p.name in forced else p for p in circuit.inputs
    ]
    graph = graphs.copy(circuit.graph)
    graphs.with_placeholders(
        graph,
        [(teacher.name, graphs.placeholder(graph, state).meta["val"]) for state, teacher in forced.items()],
    )
    return replace(circuit, graph=graph, inputs=(*inputs, *forced.values())).check()


def blend(circuit: Circuit, weight: torch.dtype) -> Circuit:
    """The circuit whose next step sees the teacher to a part that a weight says, and its own output for the rest.

    weight: its dtype; true or 1 is the teacher, false or 0 the output, numbers between lie between. The new ports are
    those of `force` and one sequence more, of the path `teacher_weight`, a number per row; and the delay of each, which
    starts from zero, so that a first step sees its starting state. Raises as `force` does.
    """
    taken = _names(circuit)
    forced = _taught(circuit, taken)
    device = next(iter(forced.values())).device
    weights = InPort(identifier(WEIGHT, taken), Kind.SEQUENCE, (), weight, device, True, WEIGHT)
    taught = (*forced.values(), weights)
    delays = {
        p.name: replace(
            p,
            name=identifier(f"{p.name}_before", taken),
            kind=Kind.STATE,
            next=Wire.input(p.name),
            teaches=None,
        )
        for p in taught
    }

    step_before = circuit.recorded().step

    def step(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        seen = dict(inputs)
        part = seen[delays[weights.name].name]
        for state, teacher in forced.items():
            own, taught = seen[state], seen[delays[teacher.name].name]
            w = part.reshape(-1, *[1] * (own.dim() - 1))
            seen[state] = torch.where(w, taught, own) if w.dtype == torch.bool else w * taught + (1 - w) * own
        return step_before({port.name: seen[port.name] for port in circuit.inputs if port.name in seen})

    captured = circuit.signature.captured if circuit.signature is not None else {}
    given = [p for p in circuit.inputs if p.kind is not Kind.NOISE and p.name not in captured]
    ports = [*given, *taught, *delays.values()]

    record = Recording(step, tuple(ports), circuit.name)
    joint = record.joint
    results = graphs.results_of(joint.graph)
    graph = graphs.extract(joint.graph, {key: results[key] for key in joint.results})
    ports += [*joint.noise, *(port for port, _ in joint.captured)]
    vals = [(port.name, graphs.placeholder(joint.graph, port.name).meta["val"]) for port in ports]
    graphs.with_placeholders(graph, vals)
    return replace(circuit, graph=graph, inputs=tuple(ports), record=record).check()


def _names(circuit: Circuit) -> set[str]:
    return {port.name for port in circuit.inputs} | {node.name for node in circuit.graph.nodes}


def _taught(circuit: Circuit, taken: set[str]) -> dict[str, InPort]:
    """State port -> the new port of its teacher."""
    states = {port.next: port for port in circuit.inputs_of(Kind.STATE) if port.next is not None}
    forced: dict[str, InPort] = {}
    for out in circuit.outputs_of(Kind.SEQUENCE):
        port = states.get(out.wire)
        if port is not None and port.name not in forced:
            path = out.path.replace("output", "teacher", 1)
            forced[port.name] = InPort(
                identifier(path, taken), Kind.SEQUENCE, port.shape, port.dtype, port.device, port.rows, path,
                teaches=out.name,
            )  # fmt: skip
    if not forced:
        raise InputError(
            what="teacher forcing needs a cell whose output is an entry of its state",
            where=f"teacher= of {circuit.name}",
            mend="return the output as part of the state (as cells.Jordan does), or feed the target in through x",
        )
    return forced


def teachers(circuit: Circuit) -> dict[str, str]:
    """Output path -> the port of its teacher, for a circuit made by `force` or `blend`."""
    paths = {out.name: out.path for out in circuit.outputs}
    return {paths[port.teaches]: port.name for port in circuit.inputs if port.teaches is not None}
