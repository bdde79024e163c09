"""trace: from a cell, any torch.nn.Module whose forward is one time step, to a Circuit.

`call` knows how cells are called, `joint` records the step with its own backward, `normal` brings the record into
normal form, `refuse` says why a cell cannot be a circuit, `initial` finds the state a cell starts from, `states` what
its code calls that, and `selfcheck` compares the circuit with the cell.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from typing import Any

import torch

from elman.circuit import graphs
from elman.circuit.form import Circuit, InPort, Kind, OutPort, Wire
from elman.circuit.rows import Mixed, rows_of
from elman.circuit.signature import Signature, identifier
from elman.circuit.structure import flatten, paths
from elman.errors import TraceError
from elman.trace import mistakes, refuse
from elman.trace.call import attributes, changed, next_result, places, skeleton_of, step_of, store_of
from elman.trace.changes import Changes
from elman.trace.initial import initial_state
from elman.trace.joint import Recording, trace_joint
from elman.trace.outside import outside
from elman.trace.selfcheck import can_compare, compare_with_cell
from elman.trace.states import state_words

__all__ = ["trace"]


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
    skeleton = skeleton_of(cell)
    taken: set[str] = {"rows", "timeline"}
    ports: list[InPort] = []

    def add(path: str, kind: Kind, tensor: torch.Tensor, rows: bool, word: str, frozen: bool = False) -> str:
        if rows and tensor.dim() == 0:
            raise TraceError(
                what=f"{path} has no batch dimension", where=name, got="a scalar", expected="a tensor [B, …]"
            )
        port = identifier(_own_word(word), taken)
        shape = tuple(tensor.shape[1:] if rows else tensor.shape)
        feed = Wire.result(next_result(port)) if kind is Kind.STATE else None
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
    xs, x_structure = flatten(x, "x")
    states, state_structure = flatten(state, "state")
    if not states:
        raise TraceError(
            what="the state holds no tensor, so there is no recurrence", where=name, got=repr(state)
        )
    contexts, context_structure = flatten(context, "context")
    x_ports = [add(p, Kind.SEQUENCE, t, True, p) for p, t in zip(paths(x_structure, "x"), xs, strict=True)]
    state_paths = paths(state_structure, "state")
    words = state_words(cell, state_paths, taken)
    if state_paths == ["state"] and _own_word(words[0]) != words[0]:  # o, of a cell that hands on its output
        words = ["h"]
    state_ports = [
        add(path, Kind.STATE, tensor, True, word)
        for path, tensor, word in zip(state_paths, states, words, strict=True)
    ]
    context_ports = [
        add(path, Kind.CONSTANT, tensor, True, path)
        for path, tensor in zip(paths(context_structure, "context"), contexts, strict=True)
    ]
    step = step_of(
        skeleton, owned, (x_ports, x_structure), (state_ports, state_structure), (context_ports, context_structure),
        name,
    )  # fmt: skip
    before, lasting = attributes(skeleton), Changes(skeleton)
    kept = {next_result(port) for port in state_ports}

    def of_rows(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return _for_each_row(step(inputs), kept)

    def inspect(results: dict[str, torch.Tensor]) -> None:
        fault = changed(before, attributes(skeleton))
        if fault is not None:
            raise refuse.attribute(name, fault)
        refuse.changes(lasting, name)
        _check_state(results, ports, name)

    try:
        joint = trace_joint(of_rows, ports, name, inspect, asking=not (check and can_compare(ports)))
    except TraceError as error:
        # What the step itself raises, as users would see it in a loop of their own, explains all that comes after.
        if (told := mistakes.find(cell, x, state, context)) is not None:
            raise told from told.__cause__
        if refuse.takes_number(error) and (own := mistakes.numbers_of_its_own(cell, x, state, context)):
            raise refuse.own_number(error, own) from error.__cause__
        raise
    output, output_wires = step.output  # type: ignore[attr-defined]
    given = tuple(ports)
    ports += [*joint.noise, *(port for port, _ in joint.captured)]
    results = graphs.results_of(joint.graph)
    forward = graphs.extract(joint.graph, {key: results[key] for key in joint.results})
    outputs = [
        OutPort(identifier(path, taken), Kind.SEQUENCE, Wire.result(wire), path)
        for path, wire in zip(paths(output, "output"), output_wires, strict=True)
    ]
    outputs += [
        OutPort(f"{port.name}_final", Kind.STATE, port.next, f"final {port.path}", port.name)
        for port in ports
        if port.next is not None
    ]
    circuit = Circuit(
        name=name,
        graph=graphs.with_placeholders(forward, [(port.name, _val(joint.graph, port.name)) for port in ports]),
        inputs=tuple(ports),
        outputs=tuple(outputs),
        reverse=False,
        signature=Signature(
            x_structure, state_structure, context_structure, output, output_wires, owned,
            {port.name: tensor for port, tensor in joint.captured},
        ),
        record=Recording(of_rows, given, name, traced=joint),
    )  # fmt: skip
    circuit.check()
    for out in circuit.outputs_of(Kind.SEQUENCE):
        _check_output(circuit, out)
    if check:
        examples = dict(zip((*x_ports, *state_ports, *context_ports), (*xs, *states, *contexts), strict=True))
        try:
            compare_with_cell(circuit, cell, examples)
        except TraceError as error:
            told = None if error.__cause__ is None else mistakes.find(cell, x, state, context)
            if told is None:
                raise
            raise told from told.__cause__
    return circuit


def _own_word(word: str) -> str:
    """A word for a port that no circuit, adjoint or unfolded graph makes of the name of another port."""
    word = identifier(word, set())
    if re.match(r"(d|g+|ct|noise|captured)_|o(_\d+)?$", word):
        word = f"cell_{word}"
    return f"{word}_2" if re.search(r"_(next|final|before|t\d+)$", word) else word


def _val(graph: torch.fx.Graph, name: str) -> Any:
    return graphs.placeholder(graph, name).meta["val"]


def _for_each_row(results: Mapping[str, torch.Tensor], kept: Container[str]) -> dict[str, torch.Tensor]:
    """With a row for each sequence of what all have alike (a penalty on weights): the gradients that reach an output
    are those of rows. kept: the results that are states."""
    batch, alike = None, set()
    for name, value in results.items():
        try:
            where = rows_of(value)
        except (
            Mixed
        ):  # said later: of states by their shapes, of outputs at the operation that lets rows meet
            continue
        if where is None:
            alike.add(name)
        elif where.factor == 1 and batch is None:
            batch = value.shape[where.dim]
    return {
        name: value.expand(batch, *value.shape)
        if batch is not None and name in alike and name not in kept
        else value
        for name, value in results.items()
    }


def _check_state(results: dict[str, torch.Tensor], ports: list[InPort], name: str) -> None:
    """A state keeps its shape, dtype and device from step to step."""
    for port in ports:
        if port.next is None:
            continue
        new = results[port.next.name]
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
                mend="if it is [layers, B, …] as of torch.nn, drop the dimension, h_0.squeeze(0), or use elman.nn"
                if port.shape[:1] == (1,) and len(port.shape) > 1 and got[0][1:2] == ["B"]
                else "return the state as it came in (a float64 constant promotes it: use .to(h.dtype))",
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
