"""From a cell and the shapes of a call to a program: the one cache, by trace key."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from elman.caches import Recent, listed, listed_in
from elman.circuit.form import Circuit, Kind
from elman.circuit.signature import Place
from elman.circuit.structure import NOTHING, Structure, TensorSpec, fill, paths, specs
from elman.errors import InputError, InputTypeError, NotSupported, RetraceWarning
from elman.execute import Program
from elman.forcing import WEIGHT, blend, force, teachers
from elman.trace import trace
from elman.trace.call import store_of
from elman.trace.fingerprint import Seen, differs
from elman.trace.initial import own_state, starting_state
from elman.trace.modes import changes_operations
from elman.trace.outside import locked

Tensor = torch.Tensor
_PATIENCE = 5  # calls in a row that may each be traced before that is said


# --- where each input of a program comes from ------------------------------------------------------------------------


@dataclass(frozen=True)
class Owned:
    """A tensor of the cell's own."""

    place: Place

    def of(self, cell: torch.nn.Module) -> Tensor:
        """The tensor, as it is now."""
        return store_of(cell, self.place)[self.place.key]


@dataclass(frozen=True, eq=False)
class Captured:
    """A tensor that the step uses and the cell does not own."""

    tensor: Tensor


@dataclass(frozen=True)
class Argument:
    """A tensor of an argument of the call: "x", "state" or "context"."""

    name: str
    index: int


@dataclass(frozen=True)
class Teacher:
    """A tensor of the teacher; its weight comes after them."""

    index: int


@dataclass(frozen=True)
class Zero:
    """Zeros: what the delay of a teacher starts from."""


Source = Owned | Captured | Argument | Teacher | Zero


@dataclass(frozen=True, eq=False)
class Binding:
    """A program, and how the tensors of a call go into it and come out.

    sources: for each input of the program. outputs, finals: places among its outputs of the tensors of the output and
    of the final state, which have the structures `output` and `state`.
    """

    program: Program
    sources: tuple[Source, ...]
    output: Structure
    outputs: tuple[int, ...]
    state: Structure
    finals: tuple[int, ...]

    def values(
        self, cell: torch.nn.Module, xs: Sequence[Tensor], states: Sequence[Tensor], contexts: Sequence[Tensor]
    ) -> dict[str, Tensor]:  # fmt: skip
        """The tensors of the program's inputs by port, without history; those of a teacher left out."""
        tensors = self.fixed(cell)
        for name, given in (("x", xs), ("state", states), ("context", contexts)):
            for slot, tensor in zip(self.slots(name), given, strict=False):
                tensors[slot] = tensor
        ports = zip(self.program.inputs, tensors, strict=True)
        return {port.name: tensor.detach() for port, tensor in ports if tensor is not None}

    def fixed(self, cell: torch.nn.Module) -> list[Tensor | None]:
        """For each input the tensor that no argument gives: the cell's own, or one that it has caught; else None."""
        return [
            source.of(cell) if isinstance(source, Owned) else source.tensor if isinstance(source, Captured) else None
            for source in self.sources
        ]  # fmt: skip

    def slots(self, name: str) -> list[int]:
        """The places among the inputs of what the argument of a name holds, in order."""
        return [i for i, s in enumerate(self.sources) if isinstance(s, Argument) and s.name == name]


class Shapes(NamedTuple):
    """What a program depends on besides the cell: direction, structures of the arguments, and what their tensors are
    like (of x, state and context; a teacher has to fit the output). weight: the dtype of the teacher's weight."""

    reverse: bool
    x: Structure
    state: Structure
    context: Structure
    teacher: Structure
    specs: tuple[tuple[TensorSpec, ...], ...]
    weight: torch.dtype | None = None


# --- the cache -------------------------------------------------------------------------------------------------------


_SHARED = Recent(
    256
)  # all cells with the same trace key share a program, unless it has caught a tensor of one
listed("programs of recurrences, by trace key", lambda: len(_SHARED), _SHARED.limit)
_counted = listed_in("programs of the layers that are there", lambda programs: len(programs.kept), 32)


class Programs:
    """What one layer knows of its cell: how it was seen last, its programs, and the state that it starts from."""

    def __init__(self) -> None:
        self.kept = Recent(32)
        self._start: tuple[Any, Callable[[int], Any]] | None = None
        self._seen: Seen | None = None
        self._traced: list[tuple[Any, Shapes]] = []  # calls in a row that had to be traced
        self._told = False
        _counted(self)

    def seen(self, cell: torch.nn.Module) -> Seen:
        """The cell as it is now; looked at again only where something may have changed."""
        before = self._seen
        if before is None or not before.holds(cell):
            self._seen = Seen(cell)
            if before is not None and before.mark == self._seen.mark:
                self._seen.mark = before.mark  # the same object is compared faster
        assert self._seen is not None
        return self._seen

    @locked
    def find(
        self, cell: torch.nn.Module, shapes: Shapes, xs: Sequence[Tensor], states: Sequence[Tensor],
        contexts: Sequence[Tensor],
    ) -> Binding:  # fmt: skip
        """The program for a call: kept, or traced now, on one step xs `[B, …]`. Under a TorchFunctionMode that may make
        other operations of the step's, it is traced for this call alone."""
        parts = ((shapes.x, xs), (shapes.state, states), (shapes.context, contexts))
        if changes_operations():
            return bind(trace(cell, *(fill(structure, tensors) for structure, tensors in parts)), shapes)
        mark = self.seen(cell).mark
        key = mark, shapes
        last, latest = self.kept.latest
        if key == last:  # comparing is cheaper than hashing
            return self._hit(last, latest)
        if (binding := self._get(key)) is not None:
            return self._hit(key, binding)
        plain = shapes._replace(teacher=NOTHING, weight=None)
        others = [(mark, plain._replace(reverse=reverse)) for reverse in (shapes.reverse, not shapes.reverse)]
        turned = next((b for other in others if (b := self._get(other)) is not None), None)
        if turned is not None:  # direction and teacher are none of the trace's business
            circuit = replace(turned.program.circuit, reverse=False)
        else:
            _check_devices(cell, shapes)
            circuit = trace(cell, *(fill(structure, tensors) for structure, tensors in parts))
        binding = bind(circuit, shapes)
        if circuit.signature is not None and not circuit.signature.captured:
            _SHARED.keep(key, binding)
        if turned is not None:
            return self._hit(key, binding)
        self.kept.keep(key, binding)
        self._note(mark, shapes)
        return binding

    def initial(
        self, cell: torch.nn.Module, batch: int, x: tuple[Structure, Sequence[Tensor]],
        context: tuple[Structure, Sequence[Tensor]],
    ) -> Any:  # fmt: skip
        """The state that the cell starts from; found out once for what x and context, of one step, are like."""
        if callable(getattr(cell, "initial_state", None)):
            return own_state(cell, batch)
        key = self.seen(cell).mark, x[0], context[0], specs(x[1], 1), specs(context[1], 1)
        start = self._start
        if start is None or start[0] != key:
            start = self._start = key, starting_state(cell, fill(*x), fill(*context))
        return start[1](batch)

    def settle(self) -> None:
        """A call needed no trace: they do not come in a row."""
        if self._traced:
            self._traced.clear()

    def _get(self, key: Any) -> Binding | None:
        return self.kept.get(key) or _SHARED.get(key)

    def _hit(self, key: Any, binding: Binding) -> Binding:
        self.kept.keep(key, binding)
        self._traced.clear()
        return binding

    def _note(self, mark: Any, shapes: Shapes) -> None:
        """Say once that every call is traced anew, and why."""
        before = [*self._traced, (mark, shapes)]
        self._traced = before[-2:] if self._told else before
        if len(before) < _PATIENCE or self._told:
            return
        self._told = True
        what = differs(before[-2][0], mark)
        warnings.warn(
            "a recurrence is traced anew at every call, which takes some 300 ms each: "
            + (
                f"{what} keeps changing, which its step reads"
                if what
                else "its arguments keep changing their widths"
            )
            + ". Make it a buffer (register_buffer) or a tensor in an attribute: their values are read at every call."
            * bool(what),
            RetraceWarning,
            stacklevel=2,
        )


def bind(circuit: Circuit, shapes: Shapes) -> Binding:
    """Make a traced circuit ready for calls: its direction, its teacher, and where each input comes from."""
    signature = circuit.signature
    assert signature is not None
    if shapes.reverse:
        circuit = replace(circuit, reverse=True)
    taught: dict[str, int] = {}  # port of a teacher, or of its weight -> its number
    if shapes.teacher != NOTHING:
        entries = paths(shapes.teacher, "output")
        if sorted(entries) != sorted(paths(signature.output, "output")):  # dicts may be in another order
            raise InputTypeError(
                what="the teacher does not have the structure of the output", where="teacher=",
                got=str(paths(shapes.teacher, "teacher")), expected=str(paths(signature.output, "output")),
            )  # fmt: skip
        circuit = force(circuit) if shapes.weight is None else blend(circuit, shapes.weight)
        taught = {port: entries.index(path) for path, port in teachers(circuit).items()}
        taught |= {
            port.name: len(entries) for port in circuit.inputs_of(Kind.SEQUENCE) if port.path == WEIGHT
        }
    program = Program(circuit)
    delayed = {port.path for port in program.inputs if port.name in taught}
    numbers = {name: itertools.count() for name in ("x", "state", "context")}

    def argument(name: str) -> Argument:
        return Argument(name, next(numbers[name]))

    sources: list[Source] = []
    for port in program.inputs:
        if port.name in signature.owned:
            sources.append(Owned(signature.owned[port.name][0]))
        elif port.name in signature.captured:
            sources.append(Captured(signature.captured[port.name]))
        elif port.name in taught:
            sources.append(Teacher(taught[port.name]))
        elif port.kind is Kind.STATE:
            fed = port.next is not None and port.next.is_input and port.next.name in taught
            sources.append(Zero() if fed and port.path in delayed else argument("state"))
        else:
            sources.append(argument("context" if port.kind is Kind.CONSTANT else "x"))
    places = {out.name: i for i, out in enumerate(program.outputs)}
    ended = {out.state: places[out.name] for out in program.outputs if out.kind is Kind.STATE}
    states = [
        p.name for p, s in zip(program.inputs, sources, strict=True) if isinstance(s, Argument) and s.name == "state"
    ]  # fmt: skip
    outputs = tuple(places[out.name] for out in program.outputs if out.kind is Kind.SEQUENCE)
    finals = tuple(ended[name] for name in states)
    return Binding(program, tuple(sources), signature.output, outputs, signature.state, finals)


# --- what does not fit -----------------------------------------------------------------------------------------------


def _check_devices(cell: torch.nn.Module, shapes: Shapes) -> None:
    """Refuse tensors that do not lie where the cell does, if that is one place."""
    devices = {parameter.device for parameter in cell.parameters()}
    if len(devices) != 1:
        return
    (device,) = devices
    names = [p for name in ("x", "state", "context") for p in paths(getattr(shapes, name), name)]
    for path, spec in zip(names, itertools.chain(*shapes.specs), strict=True):
        if spec.device != device:
            raise InputError(
                what="it lies on another device than the cell", where=path, got=str(spec.device),
                expected=str(device), mend=f'use .to("{device}")',
            )  # fmt: skip


def check_teacher(
    binding: Binding, teacher: Structure, tensors: Sequence[Tensor], lead: tuple[int, ...]
) -> None:
    """Refuse teachers that do not say every output. lead: the leading dimensions of sequences, (T, B)."""
    ports = {
        s.index: p for s, p in zip(binding.sources, binding.program.inputs, strict=True) if isinstance(s, Teacher)
    }  # fmt: skip
    for i, path in enumerate(paths(teacher, "teacher")):
        tensor, port = tensors[i], ports.get(i)  # None: it is of no entry of the state, and not looked at
        expected = lead if port is None else (*lead, *port.shape)
        got = tuple(tensor.shape[: len(lead)] if port is None else tensor.shape)
        if got != expected or (
            port is not None and (tensor.dtype, tensor.device) != (port.dtype, port.device)
        ):
            raise InputError(
                what="the teacher must say every output", where=path,
                got=f"shape {list(tensor.shape)}, {tensor.dtype} on {tensor.device}",
                expected=f"[{', '.join(map(str, expected))}{', …' if port is None else ''}]"
                + ("" if port is None else f", {port.dtype} on {port.device}"),
            )  # fmt: skip


def indivisible(binding: Binding) -> NotSupported | None:
    """Why rows cannot be cut into pieces: what belongs to all rows at once."""
    circuit = binding.program.circuit
    if not all(port.rows for port in circuit.inputs_of(Kind.NOISE)):
        return NotSupported(
            what="the cell draws random numbers for all rows at once, which rows that are cut cannot share",
            where=circuit.name, mend="draw them for each row: [B, …]",
        )  # fmt: skip
    return None
