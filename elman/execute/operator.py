"""The door of torch.compile: registered operators, which a compiled graph calls by the name of a program.

Operators without state of their own: `elman::run` runs a plan; `elman::train` runs a plan that was cut for training and
gives out what its backward pass needs. The backward of `elman::train` is `elman::run` of the adjoint. Under a budget,
`elman::bounded` gives out nothing but outputs; its backward, `elman::bounded_backward`, begins with the forward pass.
"""

from __future__ import annotations

import uuid
import warnings
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._library.autograd import make_autograd_impl
from torch.autograd import forward_ad
from torch.utils._pytree import tree_leaves

from elman.adjoint import cotangent_ports
from elman.caches import listed
from elman.circuit.form import Circuit, InPort, Kind, OutPort
from elman.circuit.rows import carries
from elman.errors import NotSupported, StateError
from elman.execute.executable import Call, Executable
from elman.execute.program import Program
from elman.execute.segmented import SegmentedRun, prepared, run_of
from elman.segments.padded import Filled
from elman.segments.segment import of_number
from elman.trace.outside import locked


@dataclass(frozen=True, eq=False)
class Entry:
    """One plan of a program, as compiled graphs know it: by name.

    wants: the inputs whose gradients will be asked for. backward: the plan that finds them, if there are any.
    """

    name: str
    program: Program
    executable: Executable
    wants: frozenset[str]
    backward: Entry | None


# A program keeps its entries, and a compilation its program (see `elman.recurrent.compiled`). Reading it needs no lock.
_ENTRIES: weakref.WeakValueDictionary[str, Entry] = weakref.WeakValueDictionary()
listed("plans that compiled graphs know by name", _ENTRIES)


@locked
def register(program: Program, wants: frozenset[str], bounded: bool = False) -> str:
    """Name a program's plans, which are derived now: inside a compiled graph it would be too late.

    wants: the inputs whose gradients will be asked for, if any. bounded: whether the calls have a budget.
    """
    key = wants, bounded
    entry = program.entries.get(key)
    if entry is None:
        if bounded:
            prepared(program, wants)
            entry = _named(program, Executable(program.plan), wants, None)
        elif wants:
            training = program.training(wants)
            backward = _named(program, Executable(training.backward), frozenset(), None)
            entry = _named(program, Executable(training.forward), wants, backward)
        else:
            entry = _named(program, Executable(program.plan), wants, None)
        program.entries[key] = entry
    return entry.name


def _named(program: Program, executable: Executable, wants: frozenset[str], backward: Entry | None) -> Entry:
    """The name is a random one, never given twice: PyTorch keeps compiled graphs on disk, and would otherwise give
    another process, or a fork of this one, the graph of whatever program had the name here."""
    entry = Entry(uuid.uuid4().hex, program, executable, wants, backward)
    _ENTRIES[entry.name] = entry
    return entry


def _entry(name: str) -> Entry:
    entry = _ENTRIES.get(name)
    if entry is None:
        raise StateError(
            what="a compiled graph calls a program that is not here (any more)", where="torch.compile",
            mend="compile again in this process, and keep the layer for as long as what was compiled from it",
        )  # fmt: skip
    return entry


def program_of(name: str) -> Program:
    """The program of a name."""
    return _entry(name).program


def plans(name: str, wants: Sequence[bool], bounded: bool) -> tuple[str, tuple[int, ...]]:
    """(name, places of outputs through which no gradient flows) of another call of a program. wants: see `register`,
    for the inputs that an operator is called with, in order."""
    program = program_of(name)
    names = frozenset(n for n, wanted in zip(_passed(program.circuit), wants, strict=True) if wanted)
    return register(program, names, bounded), program.training(names).silent if names else ()


def _bound(circuit: Circuit) -> dict[str, Tensor]:
    """Inputs that belong to the program rather than to the call."""
    return circuit.signature.captured if circuit.signature is not None else {}


def _passed(circuit: Circuit) -> list[str]:
    """The inputs that an operator is called with, in order."""
    return [p.name for p in circuit.inputs if p.kind is not Kind.NOISE and p.name not in _bound(circuit)]


def _outputs(executable: Executable) -> tuple[OutPort, ...]:
    return executable.plan.circuit.outputs


def _call(
    tensors: Sequence[Tensor], key: str, steps: int, batch: int, seed: Tensor | None, engine: str,
    sizes: Tensor | None, rows: int,
) -> list[Tensor]:  # fmt: skip
    executable = _entry(key).executable
    circuit = executable.plan.circuit
    values = dict(zip(_passed(circuit), tensors, strict=True)) | _bound(circuit)
    number = 0 if seed is None else int(seed.item())
    ports = [port for port in circuit.inputs if port.kind is not Kind.NOISE]
    with torch.no_grad():
        if sizes is None:
            outputs = executable.run(
                Call(steps, batch, number, engine), [values[port.name] for port in ports]
            )
            return _apart(tensors, outputs)
        filled = Filled(sizes, ports[0].device)
        call = Call(filled.steps, filled.pieces, number, engine, filled.packing)
        outputs = executable.run(
            call, [filled.part(values[p.name], p.kind is Kind.SEQUENCE, p.rows) for p in ports]
        )
        shapes = [_shape(executable, out, steps, batch, rows) for out in _outputs(executable)]
        return [
            filled.whole(value, out.kind is Kind.SEQUENCE, shape)
            for value, out, shape in zip(outputs, _outputs(executable), shapes, strict=True)
        ]


def _apart(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> list[Tensor]:
    """An operator's results share memory neither with each other nor with its inputs."""
    seen = {t.untyped_storage().data_ptr() for t in inputs}
    apart = []
    for value in outputs:
        address = value.untyped_storage().data_ptr()
        if address in seen or value.storage_offset() or not value.is_contiguous():
            value = value.clone(memory_format=torch.contiguous_format)
        seen.add(value.untyped_storage().data_ptr())
        apart.append(value)
    return apart


def _shape(executable: Executable, out: OutPort, steps: int, batch: int, rows: int) -> list[int]:
    """Of an output; rows: of all steps, where they are packed."""
    like = executable.plan.circuit.wire(out.wire).meta["val"]
    shape = [size if isinstance(size, int) else batch for size in like.shape]
    if out.kind is not Kind.SEQUENCE:
        return shape
    if rows and carries(like):
        return [rows, *shape[1:]]
    return [steps, *shape]


def _shapes(
    tensors: Sequence[Tensor], key: str, steps: int, batch: int, seed: Tensor | None, engine: str,
    sizes: Tensor | None, rows: int,
) -> list[Tensor]:  # fmt: skip
    """What comes out, without computing it."""
    executable = _entry(key).executable
    outputs = []
    for out in _outputs(executable):
        dtype = executable.plan.circuit.wire(out.wire).meta["val"].dtype
        outputs.append(
            tensors[0].new_empty(
                _shape(executable, out, steps, batch, 0 if sizes is None else rows), dtype=dtype
            )
        )
    return outputs


def _nothing(port: InPort, steps: int, batch: int, like: Tensor, rows: int | None = None) -> Tensor:
    """Where nothing comes in: the starting value of a state, or the cotangents of an output, are zeros."""
    size = ([steps] if port.kind is Kind.SEQUENCE else []) + ([batch] if port.rows else [])
    if rows is not None and len(size) == 2:
        size = [rows]
    return like.new_zeros([*size, *port.shape], dtype=port.dtype, device=port.device)


@torch.library.custom_op("elman::run", mutates_args=())
def run_op(
    tensors: Sequence[Tensor], key: str, steps: int, batch: int, seed: Tensor | None, engine: str,
    sizes: Tensor | None, rows: int,
) -> list[Tensor]:  # fmt: skip
    return _call(tensors, key, steps, batch, seed, engine, sizes, rows)


@torch.library.custom_op("elman::train", mutates_args=())
def train_op(
    tensors: Sequence[Tensor], key: str, steps: int, batch: int, seed: Tensor | None, engine: str,
    sizes: Tensor | None, rows: int,
) -> list[Tensor]:  # fmt: skip
    return _call(tensors, key, steps, batch, seed, engine, sizes, rows)


def run_named(program: Program, call: Call, tensors: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """Run a program derived from one that a compiled graph keeps, which will keep it as well, as an operator."""
    name = register(program, frozenset())
    call.owner.derived[name] = _entry(name)
    like = next(t for t in tensors if t is not None)
    given = [
        t.contiguous() if t is not None else _nothing(port, call.steps, call.batch, like)
        for port, t in zip(program.inputs, tensors, strict=True)
    ]
    passed = {port.name: t for port, t in zip(program.inputs, given, strict=True)}
    outputs = run_op(
        [passed[n] for n in _passed(program.circuit)],
        name,
        call.steps,
        call.batch,
        None,
        call.engine,
        None,
        0,
    )
    return tuple(outputs)


run_op.register_fake(_shapes)
train_op.register_fake(_shapes)


def _save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    tensors, ctx.key, ctx.steps, ctx.batch, seed, ctx.engine, sizes, ctx.rows = inputs
    ctx.count = len(tensors)
    ctx.seeded, ctx.ragged = seed is not None, sizes is not None
    ctx.save_for_backward(*tensors, *output, *[t for t in (seed, sizes) if t is not None])


def _zeros(port: InPort, ctx: Any, like: Tensor) -> Tensor:
    return _nothing(port, ctx.steps, ctx.batch, like, ctx.rows if ctx.ragged else None)


def _backward(ctx: Any, cotangents: list[Tensor | None]) -> tuple[Any, ...]:
    entry = _entry(ctx.key)
    assert entry.backward is not None
    program, forward, backward = entry.program, entry.executable, entry.backward.executable.plan.circuit
    saved = list(ctx.saved_tensors)
    sizes = saved.pop() if ctx.ragged else None
    seed = saved.pop() if ctx.seeded else None
    tensors, outputs = saved[: ctx.count], saved[ctx.count :]
    passed = _passed(program.circuit)
    values: dict[str, Tensor] = dict(zip(passed, tensors, strict=True))
    training = program.training(entry.wants)
    ports_of = cotangent_ports(backward)
    for port, value, cotangent in zip(_outputs(forward), outputs, cotangents, strict=True):
        if port.name in training.pair.kept:
            values[training.pair.kept[port.name]] = value
        elif port.name in ports_of:
            values[ports_of[port.name]] = torch.zeros_like(value) if cotangent is None else cotangent
    ports = {port.name: port for port in backward.inputs}
    given = [
        values[name].contiguous() if name in values else _zeros(ports[name], ctx, tensors[0])
        for name in _passed(backward)
    ]
    results = run_op(given, entry.backward.name, ctx.steps, ctx.batch, seed, ctx.engine, sizes, ctx.rows)
    gradients = {out.gradient_of: value for out, value in zip(backward.outputs, results, strict=True)}
    return [gradients.get(name) for name in passed], *[None] * 7


train_op.register_autograd(_backward, setup_context=_save)


# --- under a budget -----------------------------------------------------------------------------------------------


class _Bounded:
    """A call of the two operators. memory: as `elman.segments.segment.as_number` says it."""

    def __init__(
        self, tensors: Sequence[Tensor], key: str, steps: int, batch: int, seed: Tensor | None, engine: str,
        sizes: Tensor | None, rows: int, memory: int,
    ) -> None:  # fmt: skip
        self.entry = _entry(key)
        program = self.entry.program
        self.ports = program.inputs
        values = _bound(program.circuit) | dict(zip(_passed(program.circuit), tensors, strict=True))
        self.filled = None if sizes is None else Filled(sizes, self.ports[0].device)
        packing = None
        if self.filled is not None:
            steps, batch, packing = self.filled.steps, self.filled.pieces, self.filled.packing
        number = 0 if seed is None else int(seed.item())
        self.call = Call(steps, batch, number, engine, packing, memory=of_number(memory))
        self.tensors = [self._part(values[p.name], p.kind, p.rows) for p in self.ports]

    def _part(self, value: Tensor, kind: Kind, rows: bool) -> Tensor:
        return value if self.filled is None else self.filled.part(value, kind is Kind.SEQUENCE, rows)

    def run(self, wants: frozenset[str] | None) -> SegmentedRun:
        return run_of(self.entry.program, self.call, wants)

    def cotangent(self, value: Tensor | None, out: OutPort) -> Tensor | None:
        if value is None:
            return None
        rows = carries(self.entry.program.circuit.wire(out.wire).meta["val"])
        return self._part(value, out.kind, rows)

    def whole(self, value: Tensor, kind: Kind, shape: Sequence[int]) -> Tensor:
        return value if self.filled is None else self.filled.whole(value, kind is Kind.SEQUENCE, shape)


@torch.library.custom_op("elman::bounded", mutates_args=())
def bounded_op(
    tensors: Sequence[Tensor], key: str, steps: int, batch: int, seed: Tensor | None, engine: str,
    sizes: Tensor | None, rows: int, memory: int,
) -> list[Tensor]:  # fmt: skip
    with torch.no_grad():
        call = _Bounded(tensors, key, steps, batch, seed, engine, sizes, rows, memory)
        outputs, _ = call.run(call.entry.wants or None).forward(call.tensors, store=False)
        executable = call.entry.executable
        shapes = [_shape(executable, out, steps, batch, rows) for out in _outputs(executable)]
        ports = _outputs(executable)
        whole = [call.whole(o, out.kind, shape) for o, out, shape in zip(outputs, ports, shapes, strict=True)]
        return _apart(tensors, whole)


@bounded_op.register_fake
def _(
    tensors: Sequence[Tensor], key: str, steps: int, batch: int, seed: Tensor | None, engine: str,
    sizes: Tensor | None, rows: int, memory: int,
) -> list[Tensor]:  # fmt: skip
    return _shapes(tensors, key, steps, batch, seed, engine, sizes, rows)


@torch.library.custom_op("elman::bounded_backward", mutates_args=())
def bounded_backward_op(
    tensors: Sequence[Tensor], cotangents: Sequence[Tensor | None], key: str, steps: int, batch: int,
    seed: Tensor | None, engine: str, sizes: Tensor | None, rows: int, memory: int,
) -> list[Tensor]:  # fmt: skip
    """The gradients of the inputs that want one, in their order."""
    with torch.no_grad():
        call = _Bounded(tensors, key, steps, batch, seed, engine, sizes, rows, memory)
        wants, program = call.entry.wants, call.entry.program
        run = call.run(wants)
        _, stored = run.forward(call.tensors)
        ports = zip(cotangents, program.outputs, program.carrying, strict=True)
        given = [call.cotangent(c, out) if flows else None for c, out, flows in ports]
        by_name = dict(
            zip((p.name for p in program.inputs), run.backward(call.tensors, stored, given), strict=True)
        )
        kinds = {p.name: p.kind for p in program.inputs}
        gradients = []
        for name, like in zip(_passed(program.circuit), tensors, strict=True):
            if name in wants:
                value = by_name[name]
                gradients.append(
                    torch.zeros_like(like) if value is None else call.whole(value, kinds[name], like.shape)
                )
        return _apart(tensors, gradients)


@bounded_backward_op.register_fake
def _(
    tensors: Sequence[Tensor], cotangents: Sequence[Tensor | None], key: str, steps: int, batch: int,
    seed: Tensor | None, engine: str, sizes: Tensor | None, rows: int, memory: int,
) -> list[Tensor]:  # fmt: skip
    entry = _entry(key)
    names = _passed(entry.program.circuit)
    return [
        like.new_empty(like.shape) for name, like in zip(names, tensors, strict=True) if name in entry.wants
    ]


def _save_bounded(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    tensors, ctx.key, ctx.steps, ctx.batch, seed, ctx.engine, sizes, ctx.rows, ctx.memory = inputs
    ctx.seeded, ctx.ragged = seed is not None, sizes is not None
    ctx.save_for_backward(*tensors, *[t for t in (seed, sizes) if t is not None])


def _bounded_backward(ctx: Any, cotangents: list[Tensor | None]) -> tuple[Any, ...]:
    entry, tensors = _entry(ctx.key), list(ctx.saved_tensors)
    sizes = tensors.pop() if ctx.ragged else None
    seed = tensors.pop() if ctx.seeded else None
    gradients = iter(
        bounded_backward_op(
            tensors, cotangents, ctx.key, ctx.steps, ctx.batch, seed, ctx.engine, sizes, ctx.rows, ctx.memory
        )
    )
    names = _passed(entry.program.circuit)
    return [next(gradients) if name in entry.wants else None for name in names], *[None] * 8


bounded_op.register_autograd(_bounded_backward, setup_context=_save_bounded)


# --- forward mode -------------------------------------------------------------------------------------------------


def _refuse_directions(op: Any) -> None:
    """Have an operator refuse dual numbers: PyTorch registers gradients for operators, and no forward mode, for want of
    which their directions would be lost without a word."""
    kernel = make_autograd_impl(op._opoverload, op)

    def refusing(keyset: Any, *args: Any, **more: Any) -> Any:
        if forward_ad._current_level >= 0 and torch._C._is_fwd_grad_enabled():
            tensors = [t for t in tree_leaves(args) if isinstance(t, Tensor)]
            if any(forward_ad.unpack_dual(t).tangent is not None for t in tensors):
                raise NotSupported(
                    what="a compiled graph that knows no dual numbers is called with them", where=op._qualname,
                    mend="call the layer without torch.compile, or open the level inside what is compiled",
                )  # fmt: skip
        return kernel(keyset, *args, **more)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there was a kernel before
        op._lib.impl(op._name, refusing, "Autograd", with_keyset=True)


for one in (run_op, train_op, bounded_op, bounded_backward_op):
    _refuse_directions(one)
