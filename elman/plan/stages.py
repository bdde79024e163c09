"""Circuit -> Plan: cut the step where its regions meet, and fold time into the rows outside the loop."""

from __future__ import annotations

from torch import fx

from elman.circuit.form import Circuit, Kind, OutPort
from elman.circuit.rows import carries
from elman.errors import expect
from elman.plan.builders import Builders, CutStep
from elman.plan.form import Plan, final_of, last, times, total
from elman.plan.regions import Regions
from elman.plan.rewrite import rewritten


def plan(circuit: Circuit) -> Plan:
    """Split a circuit into what runs once, before, in and after its loop."""
    expect(
        circuit,
        Circuit,
        "a plan is made of a circuit",
        "plan(circuit)",
        "elman.trace(cell, x, state) gives one",
    )
    return cut_apart(circuit, *rewritten(circuit)).check()


def cut_apart(circuit: Circuit, graph: fx.Graph, where: Regions) -> Plan:
    """The plan of a circuit whose step, rewritten as `graph`, is cut into these regions."""
    step = CutStep(circuit, graph, where)
    builders = Builders(step)
    for port in circuit.inputs_of(Kind.STATE):
        if step.inputs[port.name] in where.loop:
            builders.loop.state(port)
    outputs = {port.name: _output(builders, port) for port in circuit.outputs}
    loop = builders.loop.loop() if where.loop else None
    once, before, after = (builder.stage() for builder in (builders.once, builders.before, builders.after))
    return Plan(
        circuit, once, before, loop, after, outputs, {node.name: why for node, why in where.reasons.items()}
    )


def _output(builders: Builders, port: OutPort) -> str:
    """The value of an output port: make it in the right stage and name it."""
    step, after, loop = builders.step, builders.after, builders.loop
    node, where = step.wire(port.wire), step.where
    stage, name, rows = where.stage(node), f"{port.name} out", carries(node.meta["val"])
    if port.kind is Kind.STATE:
        state = step.circuit.state_of(port)
        if state is not None and state.next == port.wire and step.inputs[state.name] in where.loop:
            return final_of(state.name)
        start = after.start_of(state) if state is not None else None
        value = after.get(node) if stage != "once" or node in where.shape else after.spread(node)
        return after.keep(name, after.call(last, value, start, after.timeline()))
    if port.kind is Kind.SEQUENCE:
        if stage == "loop" and not rows:
            return loop.make(node)
        value = after.get(node) if stage != "once" or node in where.shape else after.spread(node)
        return after.keep(name, value)
    if stage == "once":
        return after.keep(name, after.call(times, after.from_once(node), rows, after.timeline()))
    if rows:
        return after.keep(name, after.call(total, after.get(node), after.timeline()))
    return loop.sum(node) if stage == "loop" else after.keep(name, after.get(node))
