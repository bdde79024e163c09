"""Teacher forcing: the state entry that is the output is cut from the output and fed by the teacher instead.

    h(t-1) = delay of o          becomes          h(t-1) = delay of teacher

Nothing else changes: the step, its joint and the other ports stay as they are. If no cycle is left, the plan has no
loop, and training is parallel over time.
"""

from __future__ import annotations

from dataclasses import replace

from elman.circuit import graphs
from elman.circuit.form import Circuit, InPort, Kind
from elman.circuit.signature import identifier
from elman.errors import InputError


def force(circuit: Circuit) -> Circuit:
    """The circuit whose next step sees the teacher where it saw its own output.

    The new ports are sequences named `teacher`, one for every tensor of the output that is also an entry of the state;
    `teachers(circuit)` lists them. Raises InputError if the output is no entry of the state.
    """
    states = {port.next: port for port in circuit.inputs_of(Kind.STATE) if port.next is not None}
    taken = {port.name for port in circuit.inputs} | {node.name for node in circuit.graph.nodes}
    forced: dict[str, InPort] = {}
    for out in circuit.outputs_of(Kind.SEQUENCE):
        port = states.get(out.wire)
        if port is not None and port.name not in forced:
            path = out.path.replace("output", "teacher", 1)
            forced[port.name] = InPort(
                identifier(path, taken), Kind.SEQUENCE, port.shape, port.dtype, port.device, port.rows, path
            )
    if not forced:
        raise InputError(
            what="teacher forcing needs a cell whose output is an entry of its state",
            where=f"teacher= of {circuit.name}",
            mend="return the output as part of the state (as cells.Jordan does), or feed the target in through x",
        )
    inputs = [replace(p, next=forced[p.name].name) if p.name in forced else p for p in circuit.inputs]
    graph = graphs.copy(circuit.graph)
    graphs.with_placeholders(
        graph,
        [(teacher.name, graphs.placeholder(graph, state).meta["val"]) for state, teacher in forced.items()],
    )
    return replace(circuit, graph=graph, inputs=(*inputs, *forced.values())).check()


def teachers(circuit: Circuit) -> dict[str, str]:
    """Output path -> the port of its teacher, for a circuit made by `force`."""
    return {
        port.path.replace("teacher", "output", 1): port.name
        for port in circuit.inputs_of(Kind.SEQUENCE)
        if port.path.split("[")[0].split(".")[0] == "teacher"
    }
