"""The way of a call under torch.compile.

What Dynamo follows here is short and plain: take the tensors out of the arguments, ask for a program (a constant of
the compilation), call one operator, put the results together. Widths must be static; T and B may be symbolic.
"""

from __future__ import annotations

import itertools
import weakref
from operator import index
from typing import Any, NamedTuple

import torch
from torch.autograd import forward_ad
from torch.nn.utils.rnn import PackedSequence

from elman.caches import listed
from elman.circuit.form import Kind
from elman.circuit.structure import NOTHING, Structure, TensorSpec, fill, take
from elman.errors import ElmanError, InputError, InputTypeError, NotSupported
from elman.execute import Program, operator
from elman.execute.inside import transformed
from elman.recurrent.arguments import as_outputs
from elman.recurrent.bound import Arguments
from elman.recurrent.programs import Argument, Captured, Owned, Shapes, Teacher, check_teacher, indivisible
from elman.recurrent.surroundings import (
    NOT_COMPILED,
    TRANSFORMED,
    constant,
    in_one_graph,
    not_compiled,
    way,
    without_graph,
)
from elman.segments.padded import PaddedLayout, check_happens
from elman.trace.initial import find_zeros
from elman.trace.modules import steps_to
from elman.trace.outside import outside

Tensor = torch.Tensor
_LAYERS: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
_NUMBERS = itertools.count()
listed("layers, by which compiled graphs find them", _LAYERS)


def register(layer: Any) -> int:
    """A number by which a constant of a compilation finds its layer again."""
    number = next(_NUMBERS)
    _LAYERS[number] = layer
    return number


def layer_of(number: int) -> Any:
    """The layer of a number."""
    return _LAYERS[number]


# --- constants of the compilation ---------------------------------------------------------------------------------


class _Input(NamedTuple):
    """Where an input of an operator comes from: tensor number `given` of the call; or the attribute `key` of the
    cell, at the end of `path`; or zeros `[B, *widths]`. differentiable: whether it can have a gradient."""

    given: int | None = None
    path: tuple[Any, ...] = ()
    key: str = ""
    widths: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32
    device: torch.device = torch.device("cpu")
    differentiable: bool = False


class _Compiled(NamedTuple):
    """A program as a compiled graph knows it; the rest as of `Binding`.

    name: of its plan for calls that want no gradient.
    """

    name: str
    inputs: tuple[_Input, ...]
    output: Structure
    outputs: tuple[int, ...]
    state: Structure
    finals: tuple[int, ...]
    noisy: bool


@constant
def _zeros(handle: int, x: Structure, xs: Any, context: Structure, contexts: Any) -> tuple[Structure, Any]:
    """(structure, specs) of the zeros that a cell starts from."""
    layer = _LAYERS[handle]
    mark = layer._calls.programs.seen(layer.cell).mark
    with outside():
        zeros = find_zeros(layer.cell, fill(x, _examples(xs)), fill(context, _examples(contexts)))
    _guard(layer, mark, None)
    return zeros.structure, tuple(map(tuple, zeros.specs))


@constant
def fits_start(
    handle: int, structures: tuple[Structure, Structure, Structure], specs: tuple[Any, Any, Any], rows: int
) -> bool:
    """Whether a step's state is built like what its cell starts from.

    structures, specs: of x, state and context. rows: 1 or 2, for a state of one row or of more; its specs leave them
    out. 0: they do not; under `fullgraph=True` InputError or InputTypeError is then raised, as a constant of the
    compilation, so that its words are seen.
    """
    layer = _LAYERS[handle]
    with outside():
        x, context = (fill(structures[i], _examples(specs[i])) for i in (0, 2))
        states = [TensorSpec(*spec).zeros(*([rows] if rows else [])) for spec in specs[1]]
        args = Arguments.of(1, x, fill(structures[1], states), context, step=True)
        try:
            layer._single.expect_like(layer, args)
        except (InputError, InputTypeError):
            if not rows and in_one_graph():
                raise
            return False
    return True


@constant
def refuse_compiled(what: str, mend: str) -> None:
    """Raise NotSupported for an argument; as a constant of the compilation, so that its words are seen."""
    raise NotSupported(what=f"{what} is not available under torch.compile", where="Recurrent(…)", mend=mend)


@constant
def _program(
    handle: int, reverse: bool, structures: tuple[Structure, Structure, Structure, Structure], specs: tuple[Any, ...],
    weight: torch.dtype | None, cuts: bool | None,
) -> _Compiled:  # fmt: skip
    """structures, specs: of x, state, context and teacher. cuts: whether resets cut rows; None where every step
    happens."""
    layer = _LAYERS[handle]
    programs = layer._calls.programs
    mark = programs.seen(
        layer.cell
    ).mark  # before the program is looked up: a change in between fails the guard
    with outside():
        specs = tuple([tuple([TensorSpec(*spec) for spec in part]) for part in specs])
        xs, states, contexts, taught = map(_examples, specs)
        shapes = Shapes(reverse, *structures, specs=specs[:3], weight=weight)
        binding = programs.find(layer.cell, shapes, xs, states, contexts)
        layer._calls.latest = binding
        if cuts and (reason := indivisible(binding)) is not None:
            raise reason
        if structures[3] != NOTHING:
            check_teacher(binding, structures[3], [t.unsqueeze(0) for t in taught], (1, 2))
        starts = {"x": 0, "state": len(xs), "context": len(xs) + len(states)}
        inputs = []
        for port, source in zip(binding.program.inputs, binding.sources, strict=True):
            if isinstance(source, Captured):
                continue
            if isinstance(source, Owned):
                place = source.place
                one = _Input(path=steps_to(place.module), key=place.key)
            elif isinstance(source, (Argument, Teacher)):
                first = (
                    starts[source.name] if isinstance(source, Argument) else starts["context"] + len(contexts)
                )
                one = _Input(first + source.index)
            else:
                one = _Input(widths=port.shape, dtype=port.dtype, device=port.device)
            inputs.append(one._replace(differentiable=port.differentiable))
        name = operator.register(binding.program, frozenset())
    _guard(layer, mark, binding.program)
    return _Compiled(
        name,
        tuple(inputs),
        binding.output,
        binding.outputs,
        binding.state,
        binding.finals,
        binding.program.has_noise,
    )


@constant
def output_dimensions(
    handle: int, structures: tuple[Structure, Structure, Structure], specs: tuple[Any, Any, Any]
) -> tuple[int, ...] | None:
    """How many dimensions the outputs of one step have in the cell's circuit; None where it is none.

    structures, specs: of x, state and context. What the answer depends on guards the compilation already, since Dynamo
    has followed the cell itself.
    """
    layer = _LAYERS[handle]
    with outside():
        like = tuple([tuple([TensorSpec(*spec) for spec in part]) for part in specs])
        xs, states, contexts = map(_examples, specs)
        x, state, context = structures
        shapes = Shapes(False, x, state, context, NOTHING, like)
        try:
            circuit = layer._calls.programs.find(layer.cell, shapes, xs, states, contexts).program.circuit
        except ElmanError:
            return None
        return tuple([circuit.wire(o.wire).meta["val"].dim() for o in circuit.outputs_of(Kind.SEQUENCE)])


@constant
def _plans(name: str, wants: tuple[bool, ...], bounded: bool) -> tuple[str, tuple[int, ...]]:
    """(name, places of outputs through which no gradient flows) of the plans of a program for a call.

    wants: for the inputs that an operator is called with, whether a gradient is wanted. bounded: whether there is a
    budget.
    """
    with outside():
        return operator.plans(name, wants, bounded)


def _examples(specs: Any) -> list[Tensor]:
    """Two rows of zeros for every tensor."""
    return [TensorSpec(*spec).zeros(2) for spec in specs]


def _guard(layer: Any, mark: Any, program: Program | None) -> None:
    """Have the compilation done again when the cell is no longer what it was when its trace key was `mark`, or a
    program that was compiled is called with dual numbers.

    What a trace depends on is more than Dynamo can follow, so its guards ask the eager call's own key. The guard also
    keeps the program, which the compiled graph knows by name alone.
    """
    from torch._dynamo.guards import install_guard
    from torch._dynamo.source import GlobalStateSource
    from torch._guards import Guard

    alive = weakref.ref(layer)

    def unchanged(program: Program | None = program) -> bool:
        now = alive()
        if now is None or (program is not None and forward_ad._current_level >= 0):
            return False
        return now._calls.programs.seen(now.cell).mark == mark

    def build(builder: Any, guard: Any) -> None:
        words = [
            f"elman: {type(layer.cell).__name__} is the cell that was compiled"
            + (", and there are no dual numbers" if program is not None else "")
        ]
        builder.add_python_lambda_leaf_guard_to_root(["same()"], words, closure_vars={"same": unchanged})

    install_guard(Guard(GlobalStateSource(), build))


# --- what Dynamo follows ------------------------------------------------------------------------------------------


def specs_of(tensors: list[Tensor], leading: int) -> tuple[Any, ...]:
    """Widths (made static), dtypes and devices."""
    return tuple([(tuple([index(s) for s in t.shape[leading:]]), t.dtype, t.device) for t in tensors])


def zeros_of(
    layer: Any, x: Structure, xs: Any, context: Structure, contexts: Any, batch: Any
) -> tuple[Structure, list[Tensor]]:
    """(structure, tensors) of the zeros that a cell starts from. xs, contexts: specs of one step."""
    structure, like = _zeros(layer._handle, x, xs, context, contexts)
    return structure, [
        torch.zeros((batch, *widths), dtype=kind, device=place) for widths, kind, place in like
    ]


def _check_sizes(sequences: list[Tensor], rows: list[Tensor], steps: Any, batch: Any) -> None:
    for t in sequences:
        if t.dim() < 2 or t.shape[0] != steps or t.shape[1] != batch:
            raise InputError(
                "the sequences disagree about T or B", where="x or teacher", expected="[T, B, …]"
            )
    for t in rows:
        if t.dim() < 1 or t.shape[0] != batch:
            raise InputError("it does not have the batch size of the sequences", where="state or context")


def run_compiled(
    layer: Any, x: Any, state: Any, steps: int | None, happens: tuple[Any, Any, Any], teacher: Any, weight: Any,
    context: Any,
) -> tuple[Any, Any]:  # fmt: skip
    """`Recurrent.forward` while it is being compiled. happens: lengths, mask, reset."""
    autocast = torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")
    ragged = happens[0] is not None or happens[1] is not None or happens[2] is not None
    taken = way(autocast, layer.memory_number != 0, ragged)
    if taken == NOT_COMPILED:
        return not_compiled(layer._time_major, x, state, steps, *happens, teacher, weight, context)
    if isinstance(x, PackedSequence):
        refuse_compiled("a PackedSequence", "unpack it before, and pass lengths=")
    if layer.generator is not None:
        refuse_compiled("generator=", "leave it away, and set torch.manual_seed")
    xs: list[Tensor] = []
    states: list[Tensor] = []
    contexts: list[Tensor] = []
    taught: list[Tensor] = []
    x_structure, context_structure, teacher_structure = (
        take(x, xs),
        take(context, contexts),
        take(teacher, taught),
    )
    if xs:
        if steps is not None:
            raise InputError("the number of steps is given twice", where="steps=")
        steps, batch = xs[0].shape[0], xs[0].shape[1]
    else:
        if steps is None or state is None:
            raise InputError("an autonomous system needs steps= and a state", where="x")
        take(state, states)
        batch = states.pop(0).shape[0]
        states.clear()
    assert steps is not None
    own = hasattr(layer.cell, "initial_state")
    if state is None and own:
        state = layer.cell.initial_state(batch)
    if state is None:
        state_structure, states = zeros_of(
            layer, x_structure, specs_of(xs, 2), context_structure, specs_of(contexts, 1), batch
        )
    else:
        state_structure = take(state, states)
    if weight is not None and teacher is None:
        raise InputError("there is a weight and no teacher", where="teacher_weight=")
    _check_sizes([*xs, *taught, *([] if weight is None else [weight])], [*states, *contexts], steps, batch)
    layout = None
    starts = states
    if ragged:
        lengths = torch.tensor(happens[0]) if isinstance(happens[0], (list, tuple)) else happens[0]
        check_happens(lengths, happens[1], happens[2], steps, batch)
        layout = PaddedLayout(
            lengths, happens[1], happens[2], steps, batch, layer.reverse, (xs or states)[0].device
        )
        xs = [layout.pack(t) for t in xs]
        contexts = [layout.spread(t) for t in contexts]
        initial = None
        if layout.starts_anew:
            if own:
                initial = []
                take(layer.cell.initial_state(layout.most), initial)
            else:  # a cell that does not say that it starts from zeros is refused
                _zeros(layer._handle, x_structure, specs_of(xs, 1), context_structure, specs_of(contexts, 1))
        starts = layout.start(states, initial)
    if layout is None:
        taught = as_outputs(layer.cell, taught, lambda symbols: symbols)
    else:
        taught = as_outputs(layer.cell, taught, lambda symbols: layout.unpack(layout.pack(symbols)))
    if weight is not None:
        taught = [*taught, weight if weight.dtype == torch.bool else weight.to(taught[0].dtype)]
    if layout is not None:
        taught = [layout.pack(t) for t in taught]
    given = [*xs, *starts, *contexts, *taught]
    lead, memory = 2 if layout is None else 1, layer.memory_number
    structures = x_structure, state_structure, context_structure, teacher_structure
    specs = specs_of(xs, lead), specs_of(states, 1), specs_of(contexts, 1), specs_of(taught, lead)
    program = _program(
        layer._handle, layer.reverse, structures, specs, None if weight is None else taught[-1].dtype,
        None if layout is None else layout.starts_anew,
    )  # fmt: skip
    if taken == TRANSFORMED and program.noisy:
        without_graph("a cell that draws random numbers, inside a transform of torch.func,")
        return not_compiled(layer._time_major, x, state, steps, *happens, teacher, weight, context)
    rows = batch if layout is None else layout.most
    tensors = [_tensor(layer.cell, source, given, rows) for source in program.inputs]
    if taken == TRANSFORMED:
        results = transformed(tensors, program.name, steps, batch, layer.engine)
        outputs, ended = [results[i] for i in program.outputs], [results[i] for i in program.finals]
        return fill(program.output, outputs), fill(program.state, ended)
    # What wants a gradient is asked of the tensors themselves: functional_call puts others in the place of parameters.
    asked = torch.is_grad_enabled()
    wants = tuple(
        [asked and s.differentiable and t.requires_grad for s, t in zip(program.inputs, tensors, strict=True)]
    )
    name, silent = _plans(program.name, wants, memory != 0)
    seed = torch.randint(2**62, (), dtype=torch.int64) if program.noisy else None
    run: Any = torch.ops.elman.train if any(wants) else torch.ops.elman.run
    budget: tuple[int, ...] = ()
    if memory:
        run, budget = torch.ops.elman.bounded, (memory,)
    if layout is None:
        results = run(tensors, name, steps, batch, seed, layer.engine, None, 0, *budget)
    else:
        results = run(
            tensors, name, steps, layout.most, seed, layer.engine, layout.sizes, layout.rows, *budget
        )
    ended = [results[i].detach() if i in silent else results[i] for i in program.finals]
    outputs = [results[i].detach() if i in silent else results[i] for i in program.outputs]
    if layout is not None:
        ended = layout.final(ended, states)
        outputs = [layout.unpack(t) for t in outputs]
    return fill(program.output, outputs), fill(program.state, ended)


def _tensor(cell: Any, source: _Input, given: list[Tensor], rows: Any) -> Tensor:
    if source.given is not None:
        return given[source.given]
    if not source.key:
        return torch.zeros((rows, *source.widths), dtype=source.dtype, device=source.device)
    here = cell
    for kind, name in source.path:
        here = here[name] if kind == "item" else getattr(here, name)
    return getattr(here, source.key)
