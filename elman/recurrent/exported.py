"""The way of a call under torch.export: PyTorch's own operations, so that the file needs no elman where it is loaded.

The plan's stages are ATen operations, and its loop goes into torch's own, `scan`; T and B may be symbolic. Steps that
do not happen are run on zeros and thrown away. There has to be one step at least.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from operator import index
from typing import Any

import torch
from torch._higher_order_ops.scan import scan_op
from torch.fx import Graph, Interpreter, Node
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import _pop_mode, _push_mode

from elman.circuit.form import ROWS, Kind
from elman.circuit.structure import fill, flatten, specs
from elman.errors import NotSupported
from elman.plan.form import TIMELINE, Loop, Stage, final_of, shift
from elman.plan.stepwise import stepwise
from elman.recurrent.arguments import as_outputs, batch_of, sizes, weight_of
from elman.recurrent.bound import Arguments, BoundCall
from elman.recurrent.programs import Binding, Shapes, check_teacher
from elman.recurrent.surroundings import constant
from elman.segments import Layout
from elman.segments.padded import check_happens
from elman.segments.timeline import Timeline
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
    own, active = _own(binding, tensors, batch), _active(binding, happens, steps, batch)
    training = any(part.training for part in layer.cell.modules())
    results = _run(binding, own, active, steps, batch, training)
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
    if lengths is None:
        return mask.clone() if is_plain(mask) else mask
    before = torch.arange(steps, device=lengths.device)[:, None] < lengths
    return before if mask is None else before & mask


def _run(
    binding: Binding,
    tensors: dict[str, Tensor],
    active: Tensor | None,
    steps: int,
    batch: int,
    training: bool,
) -> dict[int, Tensor]:
    """Place among the program's outputs -> sequence or final state."""
    program = binding.program
    if program.has_noise:
        inside = "draw the numbers outside of the step, and give them to it as a part of x"
        raise _refused(
            "a cell that draws random numbers under torch.export",
            "call model.eval() before" if training else inside,
        )
    circuit = program.circuit
    with _unrecorded():
        plan = program.plan
        if active is not None and any(node.target is shift for s in plan.stages() for node in s.graph.nodes):
            plan = stepwise(circuit)  # the step before may not be the one that ran before
    if active is not None:
        tensors = tensors | {
            port.name: tensors[port.name].masked_fill(~_wide(active, tensors[port.name]), 0)
            for port in circuit.inputs_of(Kind.SEQUENCE) if port.rows
        }  # fmt: skip
    timeline = _Timeline(steps, batch, circuit.reverse, active)
    timed = {port.name: port.rows for port in circuit.inputs_of(Kind.SEQUENCE)}
    have = {
        name: timeline.pack(value) if timed.get(name, False) else value for name, value in tensors.items()
    }
    have |= _stage(plan.once, have, batch, timeline)
    have |= _stage(plan.before, have, steps * batch, timeline)
    if plan.loop is not None:
        have |= _scan(plan.loop, have, timeline)
    have |= _stage(plan.after, have, steps * batch, timeline)
    stepped = frozenset() if plan.loop is None else plan.loop.stepped
    results = {}
    for place, out in enumerate(circuit.outputs):
        value = have[plan.outputs[out.name]]
        if out.kind is Kind.SEQUENCE and plan.outputs[out.name] not in stepped:
            value = timeline.unpack(value)
            value = value if active is None else value.masked_fill(~_wide(active, value), 0)
        results[place] = value.clone()
    return results


class _Timeline(Timeline):
    """Every step of every row runs; of rows where only some of them happen, the others are thrown away."""

    __slots__ = ("active",)

    def __init__(self, steps: int, batch: int, reverse: bool, active: Tensor | None) -> None:
        super().__init__(steps, batch, reverse)
        self.active = active

    def last(self, value: Tensor, initial: Tensor | None) -> Tensor:
        if self.active is None:
            return super().last(value, initial)
        time = torch.arange(self.steps, device=value.device)[:, None]
        ends = (
            time.where(self.active, self.steps).amin(0)
            if self.reverse
            else time.where(self.active, -1).amax(0)
        )
        happens = self.active.any(0)
        whole = self.unpack(value)
        place = _wide(ends.where(happens, 0), value).expand(self.batch, *value.shape[1:])
        final = whole.gather(0, place.unsqueeze(0)).squeeze(0)
        start = torch.zeros_like(final) if initial is None else initial
        return torch.where(_wide(happens, final), final, start)


def _stage(stage: Stage, have: dict[str, Tensor], rows: int, timeline: Timeline) -> dict[str, Tensor]:
    """Value -> tensor, of those that a stage makes."""
    return _Results(stage.graph).of({**have, ROWS: rows, TIMELINE: timeline})


def _scan(loop: Loop, have: dict[str, Tensor], timeline: _Timeline) -> dict[str, Tensor]:
    """Value -> tensor, of those that a loop makes."""
    states, active = [state.name for state in loop.states], timeline.active
    read = [have[name] if name in loop.stepped else timeline.unpack(have[name]) for name in loop.sequences]
    if active is not None or not read:  # a loop over nothing has no steps
        read.append(active if active is not None else torch.zeros(timeline.steps))
    if timeline.reverse:
        read = [value.flip(0) for value in read]
    fixed = [have[name] for name in loop.constants]
    emits = list(dict.fromkeys(loop.emits))

    def step(*values: Tensor) -> list[Tensor]:
        before, now, constants = _split(values, len(states), len(read))
        inputs = dict(zip((*states, *loop.constants), (*before, *constants), strict=False))
        inputs |= dict(zip(loop.sequences, now, strict=False))
        computed = _Results(loop.graph).of(inputs | {ROWS: before[0].shape[0]})
        nexts = [
            torch.zeros_like(old) if state.next is None else computed[state.next]
            for state, old in zip(loop.states, before, strict=True)
        ]
        if active is not None:  # the state waits where a step does not happen
            nexts = [
                torch.where(_wide(now[-1], new), new, old) for new, old in zip(nexts, before, strict=True)
            ]
        return [_own_memory(value) for value in (*nexts, *(computed[name] for name in emits))]

    # B among what it reads: compiled ahead of time, a loop knows of no other sizes.
    told = [*fixed, timeline.batch] if isinstance(timeline.batch, torch.SymInt) else fixed
    results = scan_op(step, [_own_memory(have[name]) for name in states], read, tuple(told))
    finals, emitted, _ = _split(results, len(states), len(emits))
    tensors = {final_of(name): value for name, value in zip(states, finals, strict=True)}
    for name, value in zip(emits, emitted, strict=True):
        whole = value.flip(0) if timeline.reverse else value
        tensors[name] = whole if name in loop.stepped else timeline.pack(whole)
    return tensors


def _own_memory(value: Tensor) -> Tensor:
    """A scan wants its values in memory of their own, and states in the same order at every step."""
    return value.clone(memory_format=torch.contiguous_format)


def _split(values: Sequence[Tensor], one: int, other: int) -> tuple[Sequence[Tensor], ...]:
    return values[:one], values[one : one + other], values[one + other :]


def _wide(active: Tensor, value: Tensor) -> Tensor:
    """`[B]` or `[T, B]`, as wide as a value."""
    return active.reshape(*active.shape, *[1] * (value.dim() - active.dim()))


class _Results(Interpreter):
    """Runs a graph on what its placeholders are called, and gives its results by name."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(torch.nn.Module(), garbage_collect_values=False, graph=graph)

    def of(self, inputs: dict[str, Any]) -> dict[str, Any]:
        self.inputs = inputs
        return self.run(enable_io_processing=False)

    def run_node(self, n: Node) -> Any:
        return self.inputs[str(n.target)] if n.op == "placeholder" else super().run_node(n)
