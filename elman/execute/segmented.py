"""A call in segments of time: exact gradients in bounded memory, for any circuit.

Forward, each segment runs from the states that the one before it ended with, and only some of those states are stored
(elman/plan/memory.py says which). Backward, from the last segment to the first, each is run again for what its backward
pass reads. Every stage runs a segment at a time, so what is computed before and after the loop never exists for all
steps at once, and users' sequences are read and written in place.

Rows that have ended, or not begun, wait: the states `[B, …]` of all rows are there, and a segment takes the first ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch

from elman.circuit.form import Circuit, Kind, OutPort
from elman.circuit.rows import carries
from elman.engines import sparing
from elman.engines.native.extension import keeping_memory
from elman.execute.executable import Call
from elman.plan.footprint import Footprint, held_back
from elman.plan.memory import Schedule, marks, needs, reversal, schedule
from elman.segments import Layout
from elman.segments.segment import Segment

if TYPE_CHECKING:
    from elman.execute.program import Program, TrainingPlans

Tensor = torch.Tensor
_TOLD = 32  # bytes for each packed row: where it and its neighbours lie
_VIEW = 700  # bytes of a view of one step, of which the reference engine has one for each sequence


def prepared(program: Program, wants: frozenset[str] | None) -> tuple[Program, TrainingPlans | None]:
    """What runs a segment: a program whose states all come out, and its plans for training, if gradients are wanted."""
    whole = program.carrying_on
    if not wants:
        return whole, None
    states = {p.name for p in whole.inputs if p.kind is Kind.STATE and p.differentiable}
    return whole, whole.training(wants | states)


def run_of(program: Program, call: Call, wants: frozenset[str] | None) -> SegmentedRun:
    """How a call runs under its budget. wants: inputs whose gradients are wanted; None for a call without gradients.

    Raises InputError for a budget that is too small.
    """
    whole, training = prepared(program, wants)
    if isinstance(call.memory, int):
        call = call._replace(engine=sparing(call.engine, program.inputs[0].device))
    layout, packing = call.layout, call.packing
    gathers = layout is not None and layout.lead != layout.inner
    sizes = None if packing is None else packing.counts
    key = (
        wants, call.engine, call.memory, gathers, call.steps, call.batch,
        None if sizes is None else sizes.tobytes(),
    )  # fmt: skip
    chosen = whole.schedules.get(key)
    if chosen is None:
        runs, kept = [whole.whole], 0
        if training is not None:
            runs, kept = [*runs, training.forwards, training.backwards], training.pair.bytes_per_row
        counted = {one.plan: one.needs(call) for one in runs}
        if training is not None and isinstance(counted[training.forwards.plan], Footprint):
            kept = max(kept, held_back(training.forwards.plan))
        needed = needs(
            *counted, residuals=kept, gathers=gathers, viewed=_viewed(whole, training, call.engine),
            count=counted.__getitem__,
        )  # fmt: skip
        if gathers or sizes is not None:  # where steps lie is told by numbers of rows
            rows = call.steps * call.batch if sizes is None else int(sizes.sum())
            needed = replace(needed, extra=needed.extra + _TOLD * rows, gathered=needed.gathered + _TOLD)
        chosen = schedule(needed, call.memory, call.steps, call.batch, sizes, whole.circuit.name)
    whole.schedules.keep(key, chosen)  # the latest one comes last, for whoever explains it
    return SegmentedRun(whole, call, chosen, training, len(program.outputs))


def _viewed(whole: Program, training: TrainingPlans | None, engine: Any) -> int:
    """Bytes for each step of an engine that looks at the steps one by one."""
    most = 0
    for one in [whole.whole] if training is None else [training.forwards, training.backwards]:
        chosen, loop = one.engine(engine), one.plan.loop
        if chosen is not None and loop is not None and not chosen.cheap_to_start:
            most = max(most, _VIEW * (len(loop.sequences) + len(loop.emits)))
    return most


@dataclass
class Stored:
    """Of the forward pass: states that segments start from, and what those keep that are not run again.

    states: of each state `[M, …]`, one segment's after another's: small pieces here and there would leave holes between
        what segments need. places: segment -> where its own begin.
    """

    states: list[Tensor]
    places: dict[int, int]
    kept: dict[int, tuple[Tensor, ...]]


class SegmentedRun:
    """One call of a program in segments.

    program: carries on; its first `outputs` outputs are those of the circuit that it was made of. training: its plans,
        for a call that wants gradients.
    """

    def __init__(
        self, program: Program, call: Call, chosen: Schedule, training: TrainingPlans | None, outputs: int
    ) -> None:
        self.program, self.call, self.schedule, self.training = program, call, chosen, training
        self.outputs = outputs
        self.layout = call.layout or _as_it_lies(call, program.inputs[0].device)
        self.ports = program.inputs
        self.states = [i for i, port in enumerate(self.ports) if port.kind is Kind.STATE]
        ended = {(out.state, out.wire): i for i, out in enumerate(program.outputs) if out.kind is Kind.STATE}
        # Of each state: the output that is what it is fed with, None for one that nothing feeds.
        self.fed = {
            i: None if (wire := self.ports[i].next) is None else ended[self.ports[i].name, wire]
            for i in self.states
        }
        self.reverse = program.circuit.reverse

    @property
    def fits(self) -> bool:
        """Whether the call can as well be run as it is."""
        chosen, lies = self.schedule, self.layout.lead == self.layout.inner
        return lies and chosen.cuts.count <= 1 and (self.training is None or chosen.kept == chosen.cuts.count)

    # --- segments -------------------------------------------------------------------------------------------------

    def segment(self, turn: int) -> Segment:
        """The segment whose turn it is, counted in the order in which they run forward."""
        cuts = self.schedule.cuts
        return cuts[cuts.count - 1 - turn if self.reverse else turn]

    def _part(self, s: Segment) -> Call:
        """The call of one segment."""
        call = self.call
        packing = None if call.packing is None else call.packing.part(s)
        return call._replace(
            steps=s.stop - s.first,
            batch=s.rows,
            packing=packing,
            first=call.first + s.first,
            memory=None,
            layout=None,
        )

    def _inputs(
        self, s: Segment, tensors: Sequence[Tensor | None], states: Sequence[Tensor] | None
    ) -> list[Any]:
        """The program's inputs for one segment; the states that it starts from are in the first rows of `states`."""
        given: list[Tensor | None] = list(tensors)
        for i, port in enumerate(self.ports):
            value = tensors[i]
            if port.kind is Kind.SEQUENCE:
                given[i] = None if value is None else self._read(value, port.rows, s)
            elif port.kind is Kind.CONSTANT and port.rows and value is not None:
                given[i] = value[: s.rows]
        for n, i in enumerate(self.states):
            given[i] = None if states is None else states[n][: s.rows]
        return given

    def _read(self, value: Tensor, rows: bool, s: Segment) -> Tensor:
        return self.layout.part(value, s) if rows else value[s.first : s.stop]

    def _put(self, whole: Tensor, value: Tensor, rows: bool, s: Segment) -> None:
        if rows:
            self.layout.put(whole, value, s)
        else:
            whole[s.first : s.stop] = value

    def _room(self, shape: Sequence[int], rows: bool, dtype: torch.dtype) -> Tensor:
        if rows:
            return self.layout.room(shape, dtype)
        return torch.empty((self.call.steps, *shape), dtype=dtype, device=self.layout.device)

    # --- forward --------------------------------------------------------------------------------------------------

    @keeping_memory()
    def forward(self, tensors: Sequence[Tensor | None], store: bool = True) -> tuple[list[Tensor], Stored]:
        """(outputs of the circuit, what the backward pass needs). store: False: nothing, whatever it needs."""
        cuts, training = self.schedule.cuts, self.training if store else None
        count = cuts.count
        begins = count - self.schedule.kept
        wanted = {*marks(begins, self.schedule.stored)} if training is not None else set()
        states = self._first(tensors)
        if not count:
            return self._nothing(tensors), self._places((), states)
        stored = self._places(wanted, states)
        outputs: list[Tensor | None] = [None] * self.outputs
        sums: dict[int, _Sum] = {}
        for turn in range(count):
            s = self.segment(turn)
            if turn in wanted:
                for into, state in zip(self._stored(stored, turn), states, strict=True):
                    into.copy_(state[: len(into)])
            given, call = self._inputs(s, tensors, states), self._part(s)
            if training is None or turn < begins:
                values = self.program.whole.run(call, given)
            else:
                values = training.forwards.run(call, given)
                stored.kept[turn] = values[len(self.program.outputs) :]
            for i, out in enumerate(self.program.outputs[: self.outputs]):
                outputs[i] = self._collect(i, out, values[i], s, outputs[i], sums)
            self._move(s, states, values)
        return cast("list[Tensor]", outputs), stored

    def _places(self, wanted: Iterable[int], states: Sequence[Tensor]) -> Stored:
        """Memory for the states of some segments."""
        places, rows = {}, 0
        for turn in sorted(wanted):
            places[turn] = rows
            rows += self.segment(turn).rows
        return Stored([state.new_empty((rows, *state.shape[1:])) for state in states], places, {})

    def _stored(self, stored: Stored, turn: int) -> list[Tensor]:
        """The states that a segment starts from."""
        first, rows = stored.places[turn], self.segment(turn).rows
        return [state[first : first + rows] for state in stored.states]

    def _first(self, tensors: Sequence[Tensor | None]) -> list[Tensor]:
        """States of all rows, to be written over."""
        return [
            self._zeros(i) if (value := tensors[i]) is None else value.detach().clone() for i in self.states
        ]

    def _zeros(self, i: int) -> Tensor:
        """For a state of all rows."""
        port = self.ports[i]
        return torch.zeros((self.call.batch, *port.shape), dtype=port.dtype, device=port.device)

    def _move(self, s: Segment, states: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        """Let the states go on, past a segment."""
        for i, state in zip(self.states, states, strict=True):
            part, slot = state[: s.rows], self.fed[i]
            if slot is None:
                part.zero_()
            else:
                part.copy_(values[slot])

    def _collect(
        self, i: int, out: OutPort, value: Tensor, s: Segment, so_far: Tensor | None, sums: dict[int, _Sum]
    ) -> Tensor:
        """An output of the whole call, with that of one more segment in it."""
        rows = _has_rows(self.program.circuit, out)
        if out.kind is Kind.SUM:
            total = sums.setdefault(i, _Sum(value, self.call.batch if rows else None))
            total.add(value, s.rows if rows else None)
            return total.value
        if out.kind is Kind.SEQUENCE:
            if so_far is None:
                shape = value.shape[self._leading(rows) :]
                so_far = self._room(shape, rows, value.dtype)
            self._put(so_far, value, rows, s)
            return so_far
        if not rows:
            return value.clone()
        if so_far is None:
            so_far = value.new_empty((self.call.batch, *value.shape[1:]))
        so_far[: s.rows] = value
        return so_far

    def _leading(self, rows: bool) -> int:
        """Leading dimensions of a segment's sequences."""
        return 2 if rows and self.call.packing is None else 1

    def _nothing(self, tensors: Sequence[Tensor | None]) -> list[Tensor]:
        """The outputs of a call without a step."""
        s = Segment(0, 0, 0, 0, self.call.batch, 0)
        values = self.program.whole.run(self._part(s), self._inputs(s, tensors, self._first(tensors)))
        outputs = []
        for out, value in zip(self.program.outputs[: self.outputs], values, strict=False):
            rows = _has_rows(self.program.circuit, out)
            at_steps = out.kind is Kind.SEQUENCE and rows
            outputs.append(self.layout.room(value.shape[2:], value.dtype) if at_steps else value.clone())
        return outputs

    # --- backward -------------------------------------------------------------------------------------------------

    def backward(
        self, tensors: Sequence[Tensor | None], stored: Stored, cotangents: Sequence[Tensor | None]
    ) -> list[Tensor | None]:
        """The gradients of the inputs, in their order."""
        training = self.training
        assert training is not None
        count = self.schedule.cuts.count
        if not count:
            return [None if t is None else torch.zeros_like(t) for t in tensors]
        begins = count - self.schedule.kept
        into = self._into(cotangents)
        gradients: list[Any] = [None] * len(self.ports)
        for turn in reversed(range(begins, count)):
            self._back(turn, tensors, stored.kept[turn], into, cotangents, gradients)
        again: dict[int, list[Tensor]] = {}
        rooms = self._rooms(begins)
        for turn, begin in reversal(begins, self.schedule.stored):
            start = again[begin] if begin in again else self._stored(stored, begin)
            if turn != begin:
                again[turn] = self._advanced(begin, turn, tensors, start, rooms.pop())
                continue
            if turn in again:
                rooms.append(again.pop(turn))
            s = self.segment(turn)
            values = training.forwards.run(self._part(s), self._inputs(s, tensors, start))
            del start
            kept = values[len(self.program.outputs) :]
            del values
            self._back(turn, tensors, kept, into, cotangents, gradients)
            del kept
        for n, i in enumerate(self.states):
            if self.fed[i] is not None:
                gradients[i] = into[n]
        return [g.value if isinstance(g, _Sum) else g for g in gradients]

    def _into(self, cotangents: Sequence[Tensor | None]) -> list[Tensor]:
        """dL/d(state) of all rows, to be written over: at first of the final states."""
        into = [self._zeros(i) for i in self.states]
        for i, zeros in zip(self.states, into, strict=True):
            slot = self.fed[i]
            given = None if slot is None or slot >= self.outputs else cotangents[slot]
            if given is not None:
                zeros.copy_(given)
        return into

    def _rooms(self, begins: int) -> list[list[Tensor]]:
        """Memory for the states that are had again at one time, before segments ask for theirs: a small piece behind
        what a segment had would keep that from being used again."""
        most, there = 0, set[int]()
        for turn, begin in reversal(begins, self.schedule.stored):
            if turn == begin:
                there.discard(turn)
            else:
                there.add(turn)
                most = max(most, len(there))
        ports = [self.ports[i] for i in self.states]
        rooms = [
            torch.empty((most, self.call.batch, *port.shape), dtype=port.dtype, device=port.device) for port in ports
        ]  # fmt: skip
        return [[room[n] for room in rooms] for n in range(most)]

    def _advanced(
        self, begin: int, turn: int, tensors: Sequence[Tensor | None], begins: Sequence[Tensor], room: list[Tensor],
    ) -> list[Tensor]:  # fmt: skip
        """The states that a segment starts from, from those of one before it; they lie in `room`, of all rows."""
        states = self._first(tensors)
        for state, start in zip(states, begins, strict=True):
            state[: len(start)] = start
        for between in range(begin, turn):
            s = self.segment(between)
            self._move(s, states, self.program.whole.run(self._part(s), self._inputs(s, tensors, states)))
        for kept, state in zip(room, states, strict=True):
            kept.copy_(state)
        return room

    def _back(
        self, turn: int, tensors: Sequence[Tensor | None], kept: Sequence[Tensor], into: list[Tensor],
        cotangents: Sequence[Tensor | None], gradients: list[Any],
    ) -> None:  # fmt: skip
        """The backward pass of one segment, from what it kept."""
        training = self.training
        assert training is not None
        s = self.segment(turn)
        given = self._inputs(s, tensors, None)
        arriving = [
            self._cotangent(i, out, s, into, cotangents) for i, out in enumerate(self.program.outputs)
        ]
        values = (*given, *kept, *arriving, None)
        results = training.backwards.run(self._part(s), [values[place] for place in training.feeds])
        for i, place in enumerate(training.gives):
            if place >= 0:
                self._gather(i, results[place], s, into, gradients)
            elif self.ports[i].kind is Kind.STATE:  # no gradient flows back through this state
                into[self.states.index(i)][: s.rows] = 0

    def _cotangent(
        self, slot: int, out: OutPort, s: Segment, into: Sequence[Tensor], cotangents: Sequence[Tensor | None]
    ) -> Tensor | None:
        """dL/d(output of one segment)."""
        rows = _has_rows(self.program.circuit, out)
        for n, i in enumerate(self.states):
            if self.fed[i] == slot:
                return into[n][: s.rows].clone()
        given = cotangents[slot] if slot < self.outputs else None
        if given is None:
            return None
        if out.kind is Kind.SEQUENCE:
            return self._read(given, rows, s)
        if out.kind is Kind.SUM:
            return given[: s.rows] if rows else given
        # A final state that is not what is handed on: of the rows that end here.
        last = s.first == 0 if self.reverse else s.beyond == 0
        if not rows:
            return given if last else None
        goes_on = s.beyond if not self.reverse else 0 if last else s.rows
        if goes_on == s.rows:
            return None
        part = given[: s.rows].clone()
        part[:goes_on] = 0
        return part

    def _gather(self, i: int, value: Tensor, s: Segment, into: list[Tensor], gradients: list[Any]) -> None:
        """Put the gradient of one segment to those of the others."""
        port = self.ports[i]
        if port.kind is Kind.CONSTANT:
            if gradients[i] is None:
                gradients[i] = _Sum(value, self.call.batch if port.rows else None)
            gradients[i].add(value, s.rows if port.rows else None)
        elif port.kind is Kind.SEQUENCE:
            if gradients[i] is None:
                gradients[i] = self._room(port.shape, port.rows, value.dtype)
            self._put(gradients[i], value, port.rows, s)
        else:
            if self.fed[i] is not None:
                into[self.states.index(i)][: s.rows] = value
                return
            # Nothing feeds it: only rows that begin here have seen it.
            if gradients[i] is None:
                gradients[i] = self._zeros(i)
            goes_on = s.beyond if self.reverse else 0 if s.first == 0 else s.rows
            gradients[i][goes_on : s.rows] = value[goes_on:]


class _Sum:
    """A sum over segments, in the order in which they come, with what rounding has lost (Kahan 1965).

    rows: how many rows the whole has, where it has them; what is added may be of the first ones.
    """

    def __init__(self, like: Tensor, rows: int | None) -> None:
        shape = like.shape if rows is None else (rows, *like.shape[1:])
        self.value, self.rest = like.new_zeros(shape), like.new_zeros(shape)

    def add(self, value: Tensor, rows: int | None) -> None:
        total, rest = (self.value, self.rest) if rows is None else (self.value[:rows], self.rest[:rows])
        if not (value.is_floating_point() or value.is_complex()):
            total.add_(value)
            return
        value = value - rest
        new = total + value
        torch.sub(new, total, out=rest)
        rest.sub_(value).nan_to_num_(0.0, 0.0, 0.0)  # of infinity nothing is left
        total.copy_(new)


def _has_rows(circuit: Circuit, out: OutPort) -> bool:
    return carries(circuit.wire(out.wire).meta["val"])


def _as_it_lies(call: Call, device: torch.device) -> Layout:
    """The layout of sequences that are as circuits run them."""
    lead = (call.steps, call.batch) if call.packing is None else (call.packing.rows,)
    return Layout(lead, call.batch, lead, device, call.packing)
