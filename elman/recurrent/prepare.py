"""From a cell and the shapes of a call to a program, kept by trace key; and how tensors go into it and come out."""

from __future__ import annotations

import itertools
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from elman.circuit.form import Circuit, Kind
from elman.circuit.rows import carries
from elman.circuit.signature import Place, Tree
from elman.errors import InputError, InputTypeError, NotSupported, RetraceWarning
from elman.execute import Program
from elman.forcing import WEIGHT, blend, force, teachers
from elman.trace import trace
from elman.trace.fingerprint import Seen, differs
from elman.trace.outside import locked

Tensor = torch.Tensor


@dataclass(frozen=True, eq=False)
class Prepared:
    """A program, and how the tensors of a call go into it and come out."""

    program: Program
    # Per input: kept by the cell, known, or "x", "state", "context", path of a teacher or its weight; None for zeros.
    sources: tuple[Place | Tensor | str | None, ...]
    output: Tree | None
    output_slots: tuple[int, ...]
    state: Tree
    state_slots: tuple[int, ...]


_SHARED: OrderedDict[Any, Prepared] = (
    OrderedDict()
)  # every instance with the same trace key shares one program
_LIMIT = 256
_LIMIT_OF_ONE = 32  # programs that one layer keeps
_PATIENCE = 5  # calls in a row that may each be traced before that is said


@dataclass(frozen=True)
class Shapes:
    """What a trace depends on besides the cell: structures of the arguments; widths, dtype, device of their tensors.

    weight: the dtype of the teacher's weight, None without one.
    """

    x: Tree
    state: Tree
    context: Tree | None
    teacher: Tree | None
    metas: tuple[Any, ...]
    weight: torch.dtype | None = None


class Kept:
    """What one layer knows: its programs by trace key, the latest last, and its cell as it was seen last."""

    def __init__(self) -> None:
        self.programs: OrderedDict[Any, Prepared] = OrderedDict()
        self._seen: Seen | None = None
        self._traced: list[tuple[Any, Shapes]] = []  # calls in a row that had to be traced
        self._told = False

    def seen(self, cell: torch.nn.Module) -> Seen:
        """The cell as it is now; looked at again only where something may have changed."""
        before = self._seen
        if before is None or not before.holds(cell):
            self._seen = Seen(cell)
            if before is not None and before.mark == self._seen.mark:
                self._seen.mark = before.mark  # the same object is compared faster
        assert self._seen is not None
        return self._seen

    def unchanged(self, cell: torch.nn.Module) -> Callable[[], bool] | None:
        """Whether the cell still is what the latest program is for; None where that cannot be said."""
        latest = next(reversed(self.programs), None)
        seen = self.seen(cell)
        return seen.unchanged if latest is not None and latest[0] == seen.mark else None

    def hit(self, key: Any, found: Prepared) -> None:
        self.programs[key] = found
        self.programs.move_to_end(key)
        if len(self.programs) > _LIMIT_OF_ONE:
            self.programs.popitem(last=False)
        self._traced.clear()

    def traced(self, key: Any, found: Prepared, mark: Any, shapes: Shapes) -> None:
        before = [*self._traced, (mark, shapes)]
        self.hit(key, found)
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


@locked
def look_up(
    cell: torch.nn.Module, reverse: bool, shapes: Shapes, own: Kept,
    xs: Sequence[Tensor], states: Sequence[Tensor], contexts: Sequence[Tensor],
) -> Prepared:  # fmt: skip
    """The program for a call: from the caches by trace key, or traced now. `own` is the cache of one instance."""
    mark = own.seen(cell).mark
    key = (mark, reverse, shapes)
    last, latest = next(reversed(own.programs.items()), (None, None))
    found = latest if key == last else None  # comparing is cheaper than hashing
    if found is None:
        found = own.programs.get(key) or _SHARED.get(key)
    if found is not None:
        own.hit(last if found is latest else key, found)
        return found
    plain = replace(shapes, teacher=None, weight=None)
    others = [(mark, direction, plain) for direction in (reverse, not reverse)]
    known = next((p for o in others if (p := own.programs.get(o) or _SHARED.get(o)) is not None), None)
    if known is not None:  # direction and teacher are none of the trace's business
        circuit = replace(known.program.circuit, reverse=False)
    else:
        _check_devices(cell, shapes)
        circuit = trace(
            cell,
            shapes.x.fill(first_step(xs)),
            shapes.state.fill(states),
            shapes.context.fill(contexts) if shapes.context is not None else None,
        )
    found = prepare(circuit, reverse, shapes.teacher, shapes.weight)
    if circuit.signature is not None and not circuit.signature.captured:
        _SHARED[key] = found
        if len(_SHARED) > _LIMIT:
            _SHARED.popitem(last=False)
    if known is None:
        own.traced(key, found, mark, shapes)
    else:
        own.hit(key, found)
    return found


def prepare(
    circuit: Circuit, reverse: bool, teacher: Tree | None, weight: torch.dtype | None = None
) -> Prepared:
    """Make a traced circuit ready for calls: its direction, its teacher, and where each input comes from."""
    signature = circuit.signature
    assert signature is not None
    if reverse:
        circuit = replace(circuit, reverse=True)
    taught: dict[str, str] = {}
    if teacher is not None:
        _check_structure(circuit, teacher)
        circuit = force(circuit) if weight is None else blend(circuit, weight)
        taught = {port: path.replace("output", "teacher", 1) for path, port in teachers(circuit).items()}
        taught |= {port.name: WEIGHT for port in circuit.inputs_of(Kind.SEQUENCE) if port.path == WEIGHT}
    program = Program(circuit)
    sources: list[Any] = []
    for port in program.inputs:
        if port.name in signature.owned:
            sources.append(signature.owned[port.name][0])
        elif port.name in signature.captured:
            sources.append(signature.captured[port.name])
        elif (
            port.next is not None
            and port.next.is_input
            and port.next.name in taught
            and port.path in taught.values()
        ):
            sources.append(None)  # the delay of a teacher, or of its weight
        elif port.name in taught:
            sources.append(taught[port.name])
        elif port.kind is Kind.STATE:
            sources.append("state")
        else:
            sources.append("context" if port.kind is Kind.CONSTANT else "x")
    slots = {out.name: i for i, out in enumerate(program.outputs)}
    kept = [out for out in program.outputs if out.kind is Kind.SEQUENCE]
    states = [port for port, source in zip(program.inputs, sources, strict=True) if source == "state"]
    ended = {out.state: slots[out.name] for out in program.outputs if out.kind is Kind.STATE}
    finals = [ended[port.name] for port in states]
    return Prepared(
        program,
        tuple(sources),
        signature.output,
        tuple(slots[out.name] for out in kept),
        signature.state,
        tuple(finals),
    )


def _check_structure(circuit: Circuit, teacher: Tree) -> None:
    output = circuit.signature.output if circuit.signature is not None else None
    alike = output is not None and (
        output.spec == teacher.spec or sorted(output.paths) == sorted(teacher.paths)
    )
    if not alike:  # dicts may be in another order
        raise InputTypeError(
            what="the teacher does not have the structure of the output", where="teacher=",
            got=str(list(teacher.paths)), expected=str(list(output.paths) if output is not None else None),
        )  # fmt: skip


def _check_devices(cell: torch.nn.Module, shapes: Shapes) -> None:
    """Refuse tensors that do not lie where the cell does, if that is one place."""
    devices = {parameter.device for parameter in cell.parameters()}
    if len(devices) != 1:
        return
    (device,) = devices
    paths = [
        path for tree in (shapes.x, shapes.state, shapes.context) if tree is not None for path in tree.paths
    ]
    for path, (_, _, found) in zip(paths, itertools.chain(*shapes.metas), strict=True):
        if found != device:
            raise InputError(
                what="it lies on another device than the cell", where=path, got=str(found), expected=str(device),
                mend=f'use .to("{device}")',
            )  # fmt: skip


def check_teacher(program: Program, teachers_: dict[str, Tensor], lead: tuple[int, ...]) -> None:
    """lead: the leading dimensions of sequences, (T, B)."""
    known = {port.path: port for port in program.inputs if port.kind is Kind.SEQUENCE}
    for path, tensor in teachers_.items():
        port = known.get(path)  # None: this tensor of the output is no entry of the state, and not looked at
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


def indivisible(prepared: Prepared, cuts: bool) -> NotSupported | None:
    """Why rows cannot have steps of their own or, where a layout `cuts`, be cut: what belongs to all rows at once."""
    circuit = prepared.program.circuit
    for out in circuit.outputs_of(Kind.SEQUENCE):
        if not carries(circuit.wire(out.wire).meta["val"]):
            return NotSupported(
                what="an output without a batch dimension belongs to no sequence, whose steps could be left out",
                where=out.path, mend="give it out as [B, …], or leave lengths, mask and reset away",
            )  # fmt: skip
    if cuts and not all(port.rows for port in circuit.inputs_of(Kind.NOISE)):
        return NotSupported(
            what="the cell draws random numbers for all rows at once, which rows that are cut cannot share",
            where=circuit.name, mend="draw them for each row: [B, …]",
        )  # fmt: skip
    return None


def meta(tensors: Sequence[Tensor], leading: int) -> tuple[Any, ...]:
    """Widths, dtype and device of tensors: what a trace depends on."""
    return tuple((tuple(t.shape[leading:]), t.dtype, t.device) for t in tensors)


def first_step(xs: Sequence[Tensor]) -> list[Tensor]:
    return [x[0] if x.shape[0] else x.new_zeros(x.shape[1:]) for x in xs]
