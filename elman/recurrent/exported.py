"""The way of a call under torch.export: PyTorch's own operations, so that the file needs no elman where it is loaded.

The circuit's step, in ATen operations, goes into torch's own loop, `scan`; T and B may be symbolic. Steps that do not
happen are run on zeros and thrown away. There has to be one step at least.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from operator import index
from typing import Any

import torch
from torch._higher_order_ops.scan import scan_op
from torch.fx import Interpreter, Node
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import _pop_mode, _push_mode

from elman.circuit.form import ROWS, Circuit, Kind, Wire
from elman.circuit.structure import fill, flatten, specs
from elman.errors import NotSupported
from elman.recurrent.arguments import as_outputs, batch_of, sizes, weight_of
from elman.recurrent.bound import Arguments, BoundCall
from elman.recurrent.compiled import constant
from elman.recurrent.programs import Binding, Shapes, check_teacher, indivisible
from elman.segments import Layout
from elman.segments.padded import check_happens
from elman.trace.initial import find_zeros
from elman.trace.outside import is_plain, outside

Tensor = torch.Tensor


def run_exported(
    layer: Any, x: Any, state: Any, steps: int | None, happens: tuple[Any, Any, Any], teacher: Any, weight: Any,
    context: Any,
) -> tuple[Any, Any]:  # fmt: skip
    """`Recurrent.forward` while it is being exported. happens: lengths, mask, reset."""
    if torch.compiler.is_dynamo_compiling():
        refuse_strict()
    _refuse(x, happens[2])
    args = Arguments.of(2, x, state, context, teacher)
    steps, batch = sizes(args.xs, args.structures[0], steps)
    if state is None:
        state = starting(layer, fill(args.structures[0], [x[0] for x in args.xs]), context)
        args = Arguments.of(2, x, state, context, teacher)
    batch = batch_of(args.states, args.structures[1], args.contexts, args.structures[2], batch)
    args = args._replace(
        taught=as_outputs(layer.cell, args.taught, lambda symbols: _all_happen(symbols, happens))
    )
    args = args._replace(weight=weight_of(weight, args.taught, (steps, batch)))
    with _unrecorded():
        parts = (args.xs, 2), (args.states, 1), (args.contexts, 1)
        examples = [_examples(tensors, leading) for tensors, leading in parts]
        shapes = Shapes(
            layer.reverse, *args.structures, tuple(specs(tensors, 1) for tensors in examples),
            None if args.weight is None else args.weight.dtype,
        )  # fmt: skip
        binding = layer._calls.programs.find(layer.cell, shapes, *examples)
    layer._calls.latest = binding
    if args.taught:
        check_teacher(binding, args.structures[3], args.taught, (steps, batch))
    device = (args.xs or args.states)[0].device
    tensors = BoundCall(layer, binding, args).tensors(
        args, args.states, Layout((steps, batch), batch, (steps, batch), device)
    )
    results = _scan(binding, _own(binding, tensors, batch), _active(binding, happens, steps, batch), steps)
    outputs = fill(binding.output, [results[slot] for slot in binding.outputs])
    return outputs, fill(binding.state, [results[slot] for slot in binding.finals])


def starting(layer: Any, x: Any, context: Any) -> Any:
    """The state that a cell starts from, at a step x `[B, …]`."""
    xs, structure = flatten(x, "x")
    contexts, context_structure = flatten(context, "context")
    batch = batch_of(xs, structure, contexts, context_structure, None)
    if callable(own := getattr(layer.cell, "initial_state", None)):
        return own(batch)
    with _unrecorded():
        some = fill(structure, _examples(xs, 1)), fill(context_structure, _examples(contexts, 1))
        zeros = find_zeros(layer.cell, *some)
    return zeros.make(batch)


def _refuse(x: Any, reset: Any) -> None:
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        raise _refused("torch.export of a recurrence under autocast", "leave autocast around the layer")
    if isinstance(x, PackedSequence):
        raise _refused("a PackedSequence under torch.export", "unpack it before, and pass lengths=")
    if reset is not None:
        raise _refused("reset= under torch.export", "give each sequence a row of its own")


@constant
def refuse_strict() -> None:
    raise _refused("torch.export(…, strict=True) of a recurrence", "leave strict=False, its default")


@contextlib.contextmanager
def _unrecorded() -> Iterator[None]:
    """Inside, cells are traced as they are anywhere: the export in progress does not see what is called."""
    modes = []
    while torch._C._len_torch_function_stack():
        modes.append(_pop_mode())
    try:
        with outside():
            yield
    finally:
        for mode in reversed(modes):
            _push_mode(mode)


def _all_happen(symbols: Tensor, happens: tuple[Any, Any, Any]) -> Tensor:
    if happens[0] is not None or happens[1] is not None:
        raise _refused(
            "a teacher of symbols beside lengths or a mask, exported,", "pass cell.as_output(symbols)"
        )
    return symbols


def _refused(what: str, mend: str) -> NotSupported:
    return NotSupported(what=f"{what} is not available", where="Recurrent(…)", mend=mend)


def _examples(tensors: Sequence[Tensor], leading: int) -> list[Tensor]:
    """Two rows of zeros for each: widths have to be known, T and B have not."""
    return [torch.zeros((2, *map(index, t.shape[leading:])), dtype=t.dtype, device=t.device) for t in tensors]


def _own(binding: Binding, tensors: Sequence[Tensor | None], batch: int) -> dict[str, Tensor]:
    """Input port -> its tensor. One that is not the export's becomes a constant of it where an operation reads it; a
    loop is none."""
    return {
        port.name: torch.zeros((batch, *port.shape), dtype=port.dtype, device=port.device) if value is None
        else value.clone() if is_plain(value)
        else value
        for port, value in zip(binding.program.inputs, tensors, strict=True)
    }  # fmt: skip


def _active(binding: Binding, happens: tuple[Any, Any, Any], steps: int, batch: int) -> Tensor | None:
    """[T, B]: which steps happen; None for all of them."""
    lengths, mask, _ = happens
    if lengths is None and mask is None:
        return None
    if isinstance(lengths, (list, tuple)):
        lengths = torch.tensor(lengths)
    check_happens(lengths, mask, None, steps, batch)
    if (reason := indivisible(binding, cuts=False)) is not None:
        raise reason
    if lengths is None:
        return mask.clone() if is_plain(mask) else mask
    before = torch.arange(steps, device=lengths.device)[:, None] < lengths
    return before if mask is None else before & mask


def _scan(
    binding: Binding, tensors: dict[str, Tensor], active: Tensor | None, steps: int
) -> dict[int, Tensor]:
    """Place among the program's outputs -> sequence or final state."""
    circuit = binding.program.circuit
    if binding.program.has_noise:
        raise _refused("a cell that draws random numbers under torch.export", "call model.eval() before")
    kinds = {kind: [p.name for p in circuit.inputs_of(kind)] for kind in Kind}
    states, constants = kinds[Kind.STATE], kinds[Kind.CONSTANT]
    # Where a teacher is, what the next step sees is not what the last one leaves: final states are carried beside.
    starts = [binding.program.inputs[slot].name for slot in binding.slots("state")]
    wires = [circuit.outputs[slot].wire for slot in binding.finals]
    carried = [*(tensors[name] for name in states), *(tensors[name].clone() for name in starts)]
    read = [tensors[name] for name in kinds[Kind.SEQUENCE]]
    if active is not None or not read:  # a loop over nothing has no steps
        read.append(active if active is not None else torch.zeros(steps))
    if circuit.reverse:
        read = [value.flip(0) for value in read]

    def step(*values: Tensor) -> list[Tensor]:
        before, now, fixed = _split(values, len(carried), len(read))
        inputs = dict(zip((*states, *constants), (*before[: len(states)], *fixed), strict=True))
        inputs |= dict(zip(kinds[Kind.SEQUENCE], now, strict=active is None and bool(kinds[Kind.SEQUENCE])))
        return _step(circuit, inputs, before, wires, None if active is None else now[-1])

    kept = [i for i, out in enumerate(circuit.outputs) if out.kind is Kind.SEQUENCE]
    results = scan_op(step, carried, read, tuple(tensors[name] for name in constants))
    _, finals, emitted = _split(results, len(states), len(starts))
    sequences = [value.flip(0) if circuit.reverse else value for value in emitted]
    return dict(zip((*binding.finals, *kept), (*finals, *sequences), strict=True))


def _split(values: Sequence[Tensor], one: int, other: int) -> tuple[Sequence[Tensor], ...]:
    return values[:one], values[one : one + other], values[one + other :]


def _step(
    circuit: Circuit,
    inputs: dict[str, Tensor],
    before: Sequence[Tensor],
    wires: list[Wire],
    active: Tensor | None,
) -> list[Tensor]:
    """(next states, values of wires, outputs) of one step, each in memory of its own.

    before: what the first two were at the step before, and stay where a row is not active.
    """
    if active is not None:
        inputs = inputs | {
            port.name: inputs[port.name].masked_fill(~_wide(active, inputs[port.name]), 0)
            for port in circuit.inputs_of(Kind.SEQUENCE) if port.rows
        }  # fmt: skip
    results = _Results(circuit)
    results.of(inputs | {ROWS: before[0].shape[0]})
    nexts = [port.next for port in circuit.inputs_of(Kind.STATE)]
    after = [
        torch.zeros_like(old) if wire is None else results.env[circuit.wire(wire)]
        for wire, old in zip((*nexts, *wires), before, strict=True)
    ]
    outputs = [results.env[circuit.wire(out.wire)] for out in circuit.outputs_of(Kind.SEQUENCE)]
    if active is not None:
        after = [torch.where(_wide(active, new), new, old) for new, old in zip(after, before, strict=True)]
        outputs = [value.masked_fill(~_wide(active, value), 0) for value in outputs]
    return [value.clone() for value in (*after, *outputs)]


def _wide(active: Tensor, value: Tensor) -> Tensor:
    return active.reshape(-1, *[1] * (value.dim() - 1))


class _Results(Interpreter):
    """Runs the step of a circuit and keeps every value."""

    def __init__(self, circuit: Circuit) -> None:
        super().__init__(torch.nn.Module(), garbage_collect_values=False, graph=circuit.graph)

    def of(self, inputs: dict[str, Any]) -> None:
        self.inputs = inputs
        self.run(enable_io_processing=False)

    def run_node(self, n: Node) -> Any:
        return self.inputs[str(n.target)] if n.op == "placeholder" else super().run_node(n)
