"""The way of a call under torch.compile.

What Dynamo follows here is short and plain: take the tensors out of the arguments, ask for a program (a constant of
the compilation), call one operator, put the results together. Widths must be static; T and B may be symbolic.
"""

from __future__ import annotations

import itertools
import weakref
from operator import index
from typing import Any

import torch
from torch.utils import _pytree as pytree

from elman.circuit.signature import Place, flatten
from elman.errors import InputError, NotSupported
from elman.execute import Program, operator
from elman.forcing import WEIGHT
from elman.pieces.compiled import PaddedLayout, check_happens
from elman.recurrent.prepare import Shapes, check_teacher, indivisible, look_up, meta
from elman.trace.initial import find_zeros
from elman.trace.modules import module_at, steps_to
from elman.trace.outside import outside

Tensor = torch.Tensor
_LAYERS: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
_NUMBERS = itertools.count()


def register(layer: Any) -> int:
    """A number by which a constant of a compilation finds its layer again."""
    number = next(_NUMBERS)
    _LAYERS[number] = layer
    return number


def layer_of(number: int) -> Any:
    """The layer of a number."""
    return _LAYERS[number]


# --- structures as nested tuples of constants, which Dynamo can carry ------------------------------------------------


def encode(value: Any) -> Any:
    """A structure whose leaves are numbers, as nested tuples."""
    if value is None:
        return ("none",)
    if isinstance(value, dict):
        return ("dict", tuple(value), tuple(encode(v) for v in value.values()))
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return ("named", type(value), tuple(encode(v) for v in value))
    if isinstance(value, (tuple, list)):
        return ("tuple" if isinstance(value, tuple) else "list", tuple(encode(v) for v in value))
    return ("leaf", value)


def decode(code: Any, tensors: list[Tensor]) -> Any:
    """The structure with tensor number i for leaf i."""
    kind = code[0]
    if kind == "leaf":
        return tensors[code[1]]
    if kind == "static":
        return code[1]
    if kind == "dict":
        made = {}
        for i in range(len(code[1])):
            made[code[1][i]] = decode(code[2][i], tensors)
        return made
    if kind == "named":
        return code[1](*[decode(part, tensors) for part in code[2]])
    if kind == "tuple":
        return tuple([decode(part, tensors) for part in code[1]])
    if kind == "list":
        return [decode(part, tensors) for part in code[1]]
    return None


def constant(function: Any) -> Any:
    """torch.compiler.assume_constant_result, without importing the compiler: a constant of the graph comes out."""
    function._dynamo_marked_constant = True
    return function


# --- constants of the compilation ---------------------------------------------------------------------------------


@constant
def _starting_zeros(handle: int, x: Any, xs: Any, context: Any, contexts: Any) -> tuple[Any, Any]:
    """(structure, metas) of the zeros that a cell starts from."""
    with outside():
        some_x = _examples(x, xs)
        some_context = _examples(context, contexts) if context is not None else None
        zeros = find_zeros(_LAYERS[handle].cell, some_x, some_context)
    return encode(zeros.tree.fill(list(range(len(zeros.leaves))))), zeros.leaves


@constant
def refuse_compiled(what: str, mend: str) -> None:
    """Raise NotSupported for an argument; as a constant of the compilation, so that its words are seen."""
    raise NotSupported(what=f"{what} is not available under torch.compile", where="Recurrent(…)", mend=mend)


@constant
def _program(
    handle: int,
    reverse: bool,
    x: Any,
    state: Any,
    context: Any,
    teacher: Any,
    metas: tuple[Any, ...],
    flows: tuple[bool, ...] | None,
    cuts: bool | None,
) -> tuple[Any, ...]:
    """(key, whether gradients are wanted, outputs without one, sources, output structure, output slots, state
    structure, state slots, noisy).

    The structures have the number of a tensor at every leaf; metas are widths, dtype and device of x, state, context,
    teacher, which one more follows for its weight if there is one.
    flows: for x, state, context, teacher, weight in order, whether a gradient is wanted; None for none at all.
    cuts: whether resets cut rows; None where every step happens.
    """
    layer = _LAYERS[handle]
    cell_now = cell_key(layer)  # before the program is looked up: a change in between makes the guard fail
    with outside():
        examples = [
            _examples(tree, some) if tree is not None else None
            for tree, some in zip((x, state, context, teacher), metas, strict=True)
        ]
        xs, x_tree = flatten(examples[0], "x")
        states, state_tree = flatten(examples[1], "state")
        contexts, context_tree = flatten(examples[2], "context") if context is not None else ([], None)
        teachers, teacher_tree = [], None
        if teacher is not None:
            teachers, teacher_tree = flatten(examples[3], "teacher")
        weighted = teacher_tree is not None and len(metas[3]) > len(teachers)
        shapes = Shapes(
            x_tree, state_tree, context_tree, teacher_tree, (meta(xs, 1), meta(states, 1), meta(contexts, 1)),
            metas[3][-1][1] if weighted else None,
        )  # fmt: skip
        found = look_up(
            layer.cell, reverse, shapes, layer._own, [t.unsqueeze(0) for t in xs], states, contexts
        )
        layer._latest = found
        if cuts is not None and (reason := indivisible(found, cuts)) is not None:
            raise reason
        if teacher_tree is not None:
            check_teacher(
                found.program,
                dict(zip(teacher_tree.paths, [t.unsqueeze(0) for t in teachers], strict=True)),
                (1, 2),
            )
        counters = {"x": 0, "state": len(xs), "context": len(xs) + len(states)}
        first_teacher = len(xs) + len(states) + len(contexts)
        sources: list[Any] = []
        wants = set()
        for port, source in zip(found.program.inputs, found.sources, strict=True):
            if isinstance(source, Place):
                sources.append((steps_to(source.module), source.key))
                tensor = getattr(module_at(layer.cell, source.module), source.key)
                flowing = flows is not None and tensor.requires_grad
            elif isinstance(source, Tensor):
                continue
            elif source is None:  # a state that starts from zeros
                sources.append((port.shape, port.dtype, port.device))
                flowing = False
            else:
                if source in counters:
                    slot = counters[source]
                    counters[source] += 1
                else:
                    assert teacher_tree is not None
                    paths = (*teacher_tree.paths, WEIGHT)
                    slot = first_teacher + paths.index(source)
                sources.append(slot)
                flowing = flows is not None and flows[slot]
            if flowing and port.differentiable:
                wants.add(port.name)
        key = operator.register(found.program, frozenset(wants))
    _guard(layer, cell_now, found.program)
    silent = found.program.training(frozenset(wants)).silent if wants else ()
    output = None if found.output is None else encode(found.output.fill(list(range(len(found.output_slots)))))
    return (
        key, bool(wants), silent, tuple(sources), output, found.output_slots,
        encode(found.state.fill(list(range(len(found.state_slots))))), found.state_slots, found.program.has_noise,
    )  # fmt: skip


def _examples(code: Any, metas: Any) -> Any:
    """Two rows of zeros for every leaf."""
    return decode(code, [torch.zeros((2, *widths), dtype=d, device=v) for widths, d, v in metas])


def _guard(layer: Any, key: Any, program: Program) -> None:
    """Have the compilation done again when the cell is no longer what it was when its trace key was `key`.

    What a trace depends on is more than Dynamo can follow, so its guards ask the eager call's own key. The guard also
    keeps the program, which the compiled graph knows by name alone.
    """
    from torch._dynamo.guards import install_guard
    from torch._dynamo.source import GlobalStateSource
    from torch._guards import Guard

    known = weakref.ref(layer)

    def unchanged(program: Program = program) -> bool:
        found = known()
        return found is not None and cell_key(found) == key

    def build(builder: Any, guard: Any) -> None:
        words = [f"elman: {type(layer.cell).__name__} is the cell that was compiled"]
        builder.add_python_lambda_leaf_guard_to_root(["same()"], words, closure_vars={"same": unchanged})

    install_guard(Guard(GlobalStateSource(), build))


def cell_key(layer: Any) -> Any:
    """The trace key of a layer's cell, worked out again only where something may have changed."""
    return layer._own.seen(layer.cell).mark


# --- what Dynamo follows ------------------------------------------------------------------------------------------


def _numbered(value: Any) -> tuple[list[Tensor], Any]:
    """The tensors of a structure, and the structure encoded with their numbers."""
    tensors: list[Tensor] = []
    return tensors, _number(value, tensors)


def _number(value: Any, tensors: list[Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors.append(value)
        return ("leaf", len(tensors) - 1)
    if value is None:
        return ("none",)
    if isinstance(value, dict):
        return ("dict", tuple(value), tuple([_number(v, tensors) for v in value.values()]))
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return ("named", type(value), tuple([_number(v, tensors) for v in value]))
    if isinstance(value, (tuple, list)):
        return ("tuple" if isinstance(value, tuple) else "list", tuple([_number(v, tensors) for v in value]))
    return ("static", value)


def _metas(tensors: list[Tensor], leading: int) -> tuple[Any, ...]:
    """Widths (made static), dtypes and devices."""
    return tuple([(tuple([index(s) for s in t.shape[leading:]]), t.dtype, t.device) for t in tensors])


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
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        raise NotSupported(
            what="torch.compile of a recurrence under autocast is not available yet", where="Recurrent",
            mend="leave autocast around the layer, or do not compile it",
        )  # fmt: skip
    xs, x_shape = _numbered(x)
    contexts, context_shape = _numbered(context) if context is not None else ([], None)
    if xs:
        if steps is not None:
            raise InputError("the number of steps is given twice", where="steps=")
        steps, batch = xs[0].shape[0], xs[0].shape[1]
    else:
        if steps is None or state is None:
            raise InputError("an autonomous system needs steps= and a state", where="x")
        batch = pytree.tree_leaves(state)[0].shape[0]
    assert steps is not None
    own = hasattr(layer.cell, "initial_state")
    if state is None:
        if own:
            state = layer.cell.initial_state(batch)
        else:
            code, leaves = _starting_zeros(
                layer._handle, x_shape, _metas(xs, 2), context_shape, _metas(contexts, 1)
            )
            state = decode(
                code, [torch.zeros((batch, *leaf[0]), dtype=leaf[1], device=leaf[2]) for leaf in leaves]
            )
    states, state_shape = _numbered(state)
    taught, teacher_shape = _numbered(teacher) if teacher is not None else ([], None)
    if weight is not None:
        if teacher is None:
            raise InputError("there is a weight and no teacher", where="teacher_weight=")
        taught = [*taught, weight if weight.dtype == torch.bool else weight.to(taught[0].dtype)]
    _check_sizes([*xs, *taught], [*states, *contexts], steps, batch)
    layout = None
    starts = states
    if happens[0] is not None or happens[1] is not None or happens[2] is not None:
        check_happens(*happens, steps, batch)
        device = (xs or states)[0].device
        layout = PaddedLayout(*happens, steps, batch, layer.reverse, device)
        xs, taught = [layout.pack(t) for t in xs], [layout.pack(t) for t in taught]
        contexts = [layout.spread(t) for t in contexts]
        initial = None
        if layout.starts_anew:
            if own:
                initial = _numbered(layer.cell.initial_state(layout.most))[0]
            else:  # a cell that does not say that it starts from zeros is refused
                _starting_zeros(layer._handle, x_shape, _metas(xs, 1), context_shape, _metas(contexts, 1))
        starts = layout.start(states, initial)
    given = [*xs, *starts, *contexts, *taught]
    flows = tuple([t.requires_grad for t in given]) if torch.is_grad_enabled() else None
    lead = 2 if layout is None else 1
    metas = (_metas(xs, lead), _metas(states, 1), _metas(contexts, 1), _metas(taught, lead))
    cuts = None if layout is None else layout.starts_anew
    key, training, silent, sources, output, output_slots, final, final_slots, noisy = _program(
        layer._handle, layer.reverse, x_shape, state_shape, context_shape, teacher_shape, metas, flows, cuts
    )
    tensors = []
    for source in sources:
        if isinstance(source, int):
            tensors.append(given[source])
        elif len(source) == 3:
            rows = batch if layout is None else layout.most
            tensors.append(torch.zeros((rows, *source[0]), dtype=source[1], device=source[2]))
        else:
            here: Any = layer.cell
            for kind, name in source[0]:
                here = here[name] if kind == "item" else getattr(here, name)
            tensors.append(getattr(here, source[1]))
    seed = torch.randint(2**62, (), dtype=torch.int64) if noisy else None
    run: Any = torch.ops.elman.train if training else torch.ops.elman.run
    if layout is None:
        made = run(tensors, key, steps, batch, seed, layer.engine, None, 0)
    else:
        made = run(tensors, key, steps, layout.most, seed, layer.engine, layout.sizes, layout.rows)
    ended = [made[i].detach() if i in silent else made[i] for i in final_slots]
    outputs = [made[i].detach() if i in silent else made[i] for i in output_slots]
    if layout is not None:
        ended = layout.final(ended, states)
        outputs = [layout.unpack(t) for t in outputs]
    last = decode(final, ended)
    if output is None:
        return None, last
    return decode(output, outputs), last
