"""The circuit against the cell that it was traced from: one step, values and gradients, on random numbers.

It catches what leaves no mark in a trace: a branch that only B = 1 takes, a batch size used as a value, rows that
meet, a custom backward that was lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from elman import noise
from elman.circuit import graphs
from elman.circuit.form import Circuit, InPort, Kind, Wire
from elman.circuit.rows import rows_of
from elman.circuit.structure import Structure, paths
from elman.circuit.verdict import Does, verdict
from elman.errors import TraceError
from elman.trace import refuse
from elman.trace.call import skeleton_of, step_of, store_of
from elman.trace.outside import is_plain, readable

Tensor = torch.Tensor
SEED = 0x5EED
SCALES = (0.1, 2.0)


def can_compare(ports: Iterable[InPort]) -> bool:
    """Whether there are numbers to compare."""
    return all(port.device.type != "meta" for port in ports)


def compare_with_cell(circuit: Circuit, cell: torch.nn.Module, examples: Mapping[str, Tensor]) -> None:
    """Run circuit and cell on the same random steps; TraceError where they disagree.

    examples: the user's tensors, from which integers take their values (an index must stay in range), and all do where
        the cell fails on random numbers (a state that has to be positive definite, or a distribution).
    """
    signature = circuit.signature
    assert signature is not None
    if not can_compare(circuit.inputs):
        return
    constants: dict[str, Tensor] = dict(signature.captured)
    for name, entry in signature.owned.items():
        constants[name] = readable(store_of(cell, entry[0])[entry[0].key])
    skeleton = skeleton_of(cell)  # the cell itself stays as it is for whoever else uses it
    generator = torch.Generator().manual_seed(SEED)
    for scale in SCALES:
        inputs = {
            port.name: _example(port, 3, scale, examples.get(port.name), generator)
            for port in circuit.inputs
            if port.kind is not Kind.CONSTANT or port.rows
        }
        try:
            _compare_rows(circuit, skeleton, constants, inputs, generator)
        except _CellFails:
            own = {name: _rows(given, 3) for name, given in examples.items() if _has_rows(given)}
            _compare_rows(circuit, skeleton, constants, inputs | own, generator)


class _CellFails(TraceError):
    """It is the cell that fails."""


def _compare_rows(
    circuit: Circuit, cell: torch.nn.Module, constants: Mapping[str, Tensor], inputs: Mapping[str, Tensor],
    generator: torch.Generator,
) -> None:  # fmt: skip
    """Compare on three rows, and on the first alone; on the last, too, where there are operations without a rule for
    rows, some of which write into or read the first one of a batch alone (`index_fill`, `take`)."""
    together = _compare(circuit, cell, constants, inputs, 3, generator)
    words, unruled = _words(circuit), _without_rule(circuit)
    for row, which in ((0, "first"), (2, "last")) if unruled else ((0, "first"),):
        alone = _compare(circuit, cell, constants, _one_row(circuit, inputs, row), 1, generator)
        for name in circuit.recorded().joint.results:
            if rows_of(circuit.wire(Wire.result(name)).meta["val"]) is None:
                continue
            what = f"the {which} row of {words.get(name, name)}"
            try:
                _agree(circuit, what, alone[name], together[name][row : row + 1], 3)
            except TraceError as error:
                if not unruled:
                    raise
                raise refuse.mixing_unseen(circuit.name, what, [*unruled]) from error


def _without_rule(circuit: Circuit) -> dict[str, None]:
    """The names of operations of a step of which no rule says what they do to rows."""
    unknown = [n for n in circuit.graph.nodes if n.op == "call_function" and verdict(n).does is Does.UNKNOWN]
    return dict.fromkeys(str(n.target).split(".")[1] if "." in str(n.target) else n.name for n in unknown)


def _words(circuit: Circuit) -> dict[str, str]:
    """Result of the step -> the state that it becomes."""
    return {port.next.name: port.name for port in circuit.inputs if port.next is not None}


def _has_rows(given: Tensor) -> bool:
    return given.dim() > 0 and given.shape[0] > 0 and is_plain(given)


def _rows(given: Tensor, batch: int) -> Tensor:
    return given.detach()[torch.arange(batch, device=given.device) % given.shape[0]].clone()


def _example(
    port: InPort, batch: int, scale: float, given: Tensor | None, generator: torch.Generator
) -> Tensor:
    size = ((batch,) if port.rows else ()) + port.shape
    if port.kind is Kind.NOISE:
        return noise.draw(port, 0, SEED, 0, 1, batch)[0]
    if port.dtype.is_floating_point or port.dtype.is_complex:
        return noise.normal(size, port.dtype, port.device, generator) * scale
    if given is not None and _has_rows(given):
        return _rows(given, batch)
    return torch.zeros(size, dtype=port.dtype, device=port.device)


def _one_row(circuit: Circuit, inputs: Mapping[str, Tensor], row: int) -> dict[str, Tensor]:
    return {
        port.name: inputs[port.name][row : row + 1] if port.rows else inputs[port.name]
        for port in circuit.inputs
        if port.name in inputs
    }


def _compare(
    circuit: Circuit,
    cell: torch.nn.Module,
    constants: Mapping[str, Tensor],
    inputs: Mapping[str, Tensor],
    batch: int,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Compare at one batch size; return the circuit's values."""
    signature = circuit.signature
    assert signature is not None
    joint = circuit.recorded().joint
    ports = {port.name: port for port in circuit.inputs}
    leaves = {
        name: value.detach().clone().requires_grad_(ports[name].differentiable)
        for name, value in {**constants, **inputs}.items()
        if ports[name].kind is not Kind.NOISE and name not in signature.captured
    }
    step = step_of(
        cell, signature.owned, _call(circuit, "x"), _call(circuit, "state"),
        _call(circuit, "context"), circuit.name, signature.output_wires,
    )  # fmt: skip
    addresses = {name: leaf.data_ptr() for name, leaf in leaves.items()}
    replay = [inputs[port.name] for port in circuit.inputs_of(Kind.NOISE)]
    with refuse.asking(circuit.name):
        try:
            with torch.enable_grad(), noise.Replay(replay):
                eager = step(leaves)
        except Exception as error:
            raise _CellFails(
                what=f"the cell itself fails at batch size {batch}: {refuse.message(error)}",
                where=refuse.raised_at(circuit.name, error), mend="the step must run at any batch size",
            ) from error  # fmt: skip
    for name, value in eager.items():
        if circuit.wire(Wire.result(name)).meta["val"].dim() == value.dim() + 1:  # every row has it alike
            eager[name] = value.expand(batch, *value.shape)
    for name, leaf in leaves.items():
        if leaf.data_ptr() != addresses[name]:
            raise TraceError(
                what=f"the step replaces the data of {ports[name].path} (`.data = …`)", where=circuit.name,
                mend="write after optimizer.step(), or compute with a changed copy, or a parametrization",
            )  # fmt: skip
    cots = {
        name: noise.normal(eager[name].shape, eager[name].dtype, eager[name].device, generator)
        for name in joint.cotangents
        if eager[name].requires_grad
    }
    flowing = {name: result for name, result in joint.gradients.items() if result is not None}
    wants = [*flowing]
    eager_gradients: list[Tensor | None] = [None] * len(wants)
    if cots and wants:
        eager_gradients = list(
            torch.autograd.grad(
                [eager[n] for n in cots], [leaves[n] for n in wants], list(cots.values()), allow_unused=True
            )
        )
    with torch.no_grad(), torch._C.DisableTorchFunction():  # what a mode does is in the circuit already
        missing = {n: torch.zeros_like(eager[n]) for n in joint.cotangents if n not in cots}
        every = {**constants, **inputs, **{joint.cotangents[n]: v for n, v in (cots | missing).items()}}
        try:
            ours = graphs.run(joint.graph, every, batch)
        except RuntimeError as error:  # a size that was written down as a number
            raise TraceError(
                what=f"what was traced of the step cannot run at batch size {batch}: {refuse.message(error)}",
                where=circuit.name, mend="write that part of the step in operations that do not write into views",
            ) from error  # fmt: skip
    words = _words(circuit)
    for name in joint.results:
        _agree(circuit, words.get(name, name), eager[name].detach(), ours[name], batch)
    # A gradient that is zero, but for rounding, is as small as that beside the others.
    size = 1e-2 * max(
        map(_size, [*cots.values(), *(g for g in eager_gradients if g is not None)]), default=0.0
    )
    for name, gradient in zip(wants, eager_gradients, strict=True):
        expected = torch.zeros_like(leaves[name]) if gradient is None else gradient
        _agree(circuit, f"the gradient of {ports[name].path}", expected, ours[flowing[name]], batch, size)
    return ours


def _call(circuit: Circuit, which: str) -> tuple[list[str], Structure]:
    signature = circuit.signature
    assert signature is not None
    structure = getattr(signature, which)
    names = {port.path: port.name for port in circuit.inputs}
    return [names[path] for path in paths(structure, which)], structure


def _size(value: Tensor) -> float:
    """The largest of the finite numbers in a tensor; 1 where there is none, or they are no floats."""
    finite = (
        value[torch.isfinite(value)] if value.is_floating_point() and value.numel() else value.flatten()[:0]
    )
    return float(finite.abs().max()) if finite.numel() else 1.0


def _agree(circuit: Circuit, what: str, cell: Tensor, ours: Tensor, batch: int, least: float = 0.0) -> None:
    """Same shape, same dtype, and the same numbers up to rounding; NaN agrees with NaN. least: the size of numbers
    beside which smaller ones are rounding."""
    tolerance = 1e-9 if cell.dtype == torch.float64 else 1e-3 if cell.dtype == torch.float32 else 5e-2
    same = cell.shape == ours.shape and cell.dtype == ours.dtype
    if same and cell.numel():
        scale = max(_size(cell), least, 1e-6)
        same = torch.allclose(cell, ours, rtol=tolerance, atol=tolerance * scale, equal_nan=True)
    if not same:
        raise TraceError(
            what=f"the circuit and the cell disagree about {what} at batch size {batch}",
            where=circuit.name,
            got=_summary(ours),
            expected=_summary(cell),
            mend="the step may branch on the batch size, compute with it, mix rows, or differ from call to call",
        )


def _summary(value: Tensor) -> str:
    return f"{list(value.shape)} {value.dtype} starting with {value.flatten()[:3].tolist()}"
