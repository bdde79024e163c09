"""trace: from a cell, any torch.nn.Module whose forward is one time step, to a Circuit.

`call` knows how cells are called, `joint` records the step with its own backward, `normal` brings the record into
normal form, `refuse` says why a cell cannot be a circuit, `initial` finds the state a cell starts from, and
`selfcheck` compares the circuit with the cell.
"""

from __future__ import annotations

import re
from typing import Any

import torch

from elman.circuit import graphs
from elman.circuit.form import Circuit, InPort, Kind, OutPort
from elman.circuit.rows import rows_of
from elman.circuit.signature import Signature, flatten, identifier
from elman.errors import TraceError
from elman.trace import mistakes, refuse
from elman.trace.call import attributes, changed, places, skeleton, step_of, store_of
from elman.trace.initial import initial_state
from elman.trace.joint import trace_joint
from elman.trace.key import Changes
from elman.trace.outside import outside
from elman.trace.selfcheck import can_compare, compare_with_cell

__all__ = ["trace", "verify"]


def trace(
    cell: torch.nn.Module, x: Any, state: Any = None, context: Any = None, *, check: bool = True
) -> Circuit:
    """The circuit of a cell: h(t) = f(h(t-1), x(t); θ) with its cycles closed.

    cell: any module whose `forward(x, state[, context])` is one step; it is not changed.
    x, state, context: examples at one step, tensors `[B, …]` or nested tuples, dicts, NamedTuples of them. Only
        structure, widths, dtype and device are used, and the values of integer inputs; x is None for an autonomous
        cell. Without state: the cell's own initial state.
    check: compare the circuit with the cell on random steps, outputs and gradients.

    The batch stays symbolic, and time does not occur: one trace serves every B and T. Raises TraceError (an
    ElmanError) for what cannot be a circuit, naming the cell, the line and the mend.
    """
    mistakes.check_cell(cell, "trace(cell, …)")
    if state is None:
        state = initial_state(cell, x, context)
    with outside():
        lasting = Changes(cell)
        try:
            circuit = _trace(cell, x, state, context, check)
            refuse.changes(lasting, type(cell).__name__)
        except BaseException:
            lasting.undo()  # what a hook has noted of steps that never were
            raise
    return circuit


def _trace(cell: torch.nn.Module, x: Any, state: Any, context: Any, check: bool) -> Circuit:
    name = type(cell).__name__
    bones = skeleton(cell)
    taken: set[str] = {"rows", "timeline"}
    ports: list[InPort] = []

    def add(path: str, kind: Kind, tensor: torch.Tensor, rows: bool, word: str, frozen: bool = False) -> str:
        if rows and tensor.dim() == 0:
            raise TraceError(
                what=f"{path} has no batch dimension", where=name, got="a scalar", expected="a tensor [B, …]"
            )
        port = identifier(_own_word(word), taken)
        shape = tuple(tensor.shape[1:] if rows else tensor.shape)
        feed = f"{port}_next" if kind is Kind.STATE else None
        ports.append(InPort(port, kind, shape, tensor.dtype, tensor.device, rows, path, feed, frozen=frozen))
        return port

    owned = {}
    for entry in places(cell):
        tensor = store_of(cell, entry[0])[entry[0].key]
        frozen = not isinstance(tensor, torch.nn.Parameter) and not tensor.requires_grad
        frozen = frozen and all(place.store != "_parameters" for place in entry)
        owned[
            add(entry[0].path, Kind.CONSTANT, tensor, False, entry[0].path.removeprefix("cell."), frozen)
        ] = entry
    xs, x_tree = flatten(x, "x")
    states, state_tree = flatten(state, "state")
    if not states:
        raise TraceError(
            what="the state holds no tensor, so there is no recurrence", where=name, got=repr(state)
        )
    contexts, context_tree = flatten(context, "context") if context is not None else ([], None)
    x_ports = [add(p, Kind.SEQUENCE, t, True, p) for p, t in zip(x_tree.paths, xs, strict=True)]
    words = [path.replace("state", "h", 1) for path in state_tree.paths]
    state_ports = [
        add(p, Kind.STATE, t, True, w) for p, t, w in zip(state_tree.paths, states, words, strict=True)
    ]
    context_call = None
    if context_tree is not None:
        context_ports = [
            add(p, Kind.CONSTANT, t, True, p) for p, t in zip(context_tree.paths, contexts, strict=True)
        ]
        context_call = (context_ports, context_tree)
    step = step_of(bones, owned, (x_ports, x_tree), (state_ports, state_tree), context_call, name)
    before, lasting = attributes(bones), Changes(bones)

    def inspect(results: dict[str, torch.Tensor]) -> None:
        fault = changed(before, attributes(bones))
        if fault is not None:
            raise refuse.attribute(name, fault)
        refuse.changes(lasting, name)
        _check_state(results, ports, name)

    try:
        joint = trace_joint(step, ports, name, inspect, asking=not (check and can_compare(ports)))
    except TraceError:
        # What the step itself raises, as users would see it in a loop of their own, explains all that comes after.
        if (told := mistakes.find(cell, x, state, context)) is None:
            raise
        raise told from told.__cause__
    output_tree, output_wires = step.output  # type: ignore[attr-defined]
    ports += [*joint.noise, *(port for port, _ in joint.captured)]
    results = graphs.results_of(joint.graph)
    forward = graphs.extract(joint.graph, {key: results[key] for key in joint.results})
    outputs = [
        OutPort(identifier(path, taken), Kind.SEQUENCE, wire, path)
        for path, wire in zip(output_tree.paths if output_tree else (), output_wires, strict=True)
    ]
    outputs += [
        OutPort(f"{port.name}_final", Kind.STATE, f"{port.name}_next", f"final {port.path}", port.name)
        for port in ports
        if port.kind is Kind.STATE
    ]
    circuit = Circuit(
        name=name,
        graph=graphs.with_placeholders(forward, [(port.name, _val(joint.graph, port.name)) for port in ports]),
        inputs=tuple(ports),
        outputs=tuple(outputs),
        reverse=False,
        step=step,
        joint=lambda: joint,
        signature=Signature(
            x_tree, state_tree, context_tree, output_tree, output_wires, owned,
            {port.name: tensor for port, tensor in joint.captured},
        ),
    )  # fmt: skip
    circuit.check()
    for out in circuit.outputs_of(Kind.SEQUENCE):
        _check_output(circuit, out)
    if check:
        given = [*zip(x_ports, xs, strict=True), *zip(state_ports, states, strict=True)]
        if context_call is not None:
            given += zip(context_call[0], contexts, strict=True)
        try:
            compare_with_cell(circuit, cell, dict(given))
        except TraceError as error:
            told = None if error.__cause__ is None else mistakes.find(cell, x, state, context)
            if told is None:
                raise
            raise told from told.__cause__
    return circuit


def verify(cell: torch.nn.Module, x: Any, state: Any = None, context: Any = None) -> Circuit:
    """Trace a cell and check the circuit against it, outputs and gradients, at B = 1 and 3; return the circuit.

    x, state, context: as for `trace`. Raises TraceError that says what cannot be a circuit, or where circuit and cell
    disagree.
    """
    mistakes.check_cell(cell, "verify(cell, …)")
    return trace(cell, x, state, context)


def _own_word(word: str) -> str:
    """A word for a port that no circuit, adjoint or unfolded graph makes of the name of another port."""
    word = identifier(word, set())
    if re.match(r"(d|g+|ct|noise|captured)_|o(_\d+)?$", word):
        word = f"cell_{word}"
    return f"{word}_2" if re.search(r"_(next|final|before|t\d+)$", word) else word


def _val(graph: torch.fx.Graph, name: str) -> Any:
    return graphs.placeholder(graph, name).meta["val"]


def _check_state(results: dict[str, torch.Tensor], ports: list[InPort], name: str) -> None:
    """A state keeps its shape, dtype and device from step to step."""
    for port in ports:
        if port.kind is not Kind.STATE:
            continue
        new = results[f"{port.name}_next"]
        got = (
            [str(size) if isinstance(size, int) else "B" for size in new.shape],
            new.dtype,
            new.device.type,
        )
        expected = (["B", *map(str, port.shape)], port.dtype, port.device.type)
        if got != expected:
            raise TraceError(
                what=f"{port.path} changes its shape, dtype or device in one step",
                where=name,
                got=f"[{', '.join(got[0])}] {got[1]} on {got[2]}",
                expected=f"[{', '.join(expected[0])}] {expected[1]} on {expected[2]}",
                mend="return the state as it came in (a float64 constant promotes it: use .to(h.dtype))",
            )


def _check_output(circuit: Circuit, out: OutPort) -> None:
    """What is kept per step has the batch in front, or not at all."""
    where = rows_of(circuit.wire(out.wire).meta["val"])
    if where is not None and (where.dim, where.factor) != (0, 1):
        raise TraceError(
            what=f"{out.path} does not have the batch as its first dimension",
            where=circuit.name,
            mend="return outputs as [B, …]",
        )
