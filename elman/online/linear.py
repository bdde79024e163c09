"""A step's adjoints and its tangent as functions of parts of its state: what they take and give is found out once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch

from elman import noise
from elman.circuit.form import Circuit, InPort, Kind
from elman.errors import NotSupported
from elman.execute import Call, Program
from elman.vmapped import beside, together

Tensor = torch.Tensor
# The tensors of a step, in the order of its program's inputs, and None behind them.
Values = Sequence[Tensor | None]


class Linear:
    """An adjoint of a step, or a tangent: parts go in, parts come out.

    inputs: of the step's program. enters: port -> the number of the part that goes in there. leaves: for each part that
    comes out, the number of the output that it is, None where it is zero.
    """

    def __init__(
        self, program: Program, inputs: Sequence[InPort], enters: Mapping[str, int], leaves: Sequence[int | None]
    ) -> None:  # fmt: skip
        self.program, self.enters, self.leaves = program, enters, leaves
        places = {port.name: place for place, port in enumerate(inputs)}
        self._given = [places.get(port.name, -1) for port in program.inputs]
        self._entering = [(slot, enters[p.name]) for slot, p in enumerate(program.inputs) if p.name in enters]
        # What nobody gives to the step, but its backward reads.
        self.met = {} if program.circuit.signature is None else program.circuit.signature.captured
        self._met = [(slot, self.met[p.name]) for slot, p in enumerate(program.inputs) if p.name in self.met]
        self.remains = any(place is not None for place in leaves)

    @classmethod
    def pulling(
        cls, program: Program, inputs: Sequence[InPort], enters: Mapping[str, int], wanted: Sequence[InPort]
    ) -> Linear:
        """An adjoint, out of which the gradients of the inputs `wanted` come."""
        found = {out.gradient_of: place for place, out in enumerate(program.outputs)}
        return cls(program, inputs, enters, [found.get(port.name) for port in wanted])

    def __call__(
        self, call: Call, values: Values, parts: Sequence[Tensor], program: Program | None = None
    ) -> list[Tensor | None]:  # fmt: skip
        """program: its own one by default, else that for several examples."""
        if not self.remains:
            return [None] * len(self.leaves)
        given = [values[place] for place in self._given]
        for slot, tensor in self._met:
            given[slot] = tensor
        for slot, number in self._entering:
            given[slot] = parts[number]
        results = (program or self.program).run(call, given)
        return [None if place is None else results[place] for place in self.leaves]


class Pulled:
    """Jᵀ g of each row for cotangents g that are the same for every row and step: `[B, C, …]`.

    pull: an adjoint that keeps rows apart. cotangents: `[C, …]`, by part of the state. sizes: of the parts that come
    out, which are put side by side.
    """

    def __init__(self, pull: Linear, cotangents: Sequence[Tensor], sizes: Sequence[int], batch: int) -> None:
        self.pull, self.batch, self.count = pull, batch, len(cotangents[0])
        self._zeros, self._program = _zeros(cotangents[0], batch, self.count, sizes), None
        if self.count > 1 and pull.remains:
            ports = frozenset(p.name for p in pull.program.inputs if p.kind is Kind.STATE)
            several = pull.program.vmapped(self.count, ports, False)
            self._program = None if isinstance(several, NotSupported) else several
        runs = (
            [cotangents] if self._program else [[part[c] for part in cotangents] for c in range(self.count)]
        )
        self._runs = [[part.expand(batch, *part.shape).contiguous() for part in run] for run in runs]

    def __call__(self, call: Call, values: Values) -> Tensor:
        found = [self.pull(call, values, parts, self._program) for parts in self._runs]
        return _joined([self._shaped(parts) for parts in found], 1)

    def _shaped(self, found: Sequence[Tensor | None]) -> Tensor:
        return _side_by_side(found, self._zeros, (self.batch, self.count // len(self._runs)))

    @property
    def program(self) -> Program | None:
        """What runs, if that is one run."""
        return (self._program or self.pull.program) if self.pull.remains and len(self._runs) == 1 else None

    @property
    def given(self) -> dict[str, Tensor]:
        """What goes in at its ports besides the tensors of the step."""
        return {port: self._runs[0][number] for port, number in self.pull.enters.items()}

    @property
    def in_order(self) -> bool:
        """Whether what its program gives out is what is wanted, in the same order."""
        return self.program is not None and [*self.pull.leaves] == [*range(len(self.program.outputs))]

    def taken(self, results: Sequence[Tensor]) -> Tensor:
        """The same as a call, of what its program gave out."""
        return self._shaped([None if place is None else results[place] for place in self.pull.leaves])


class PulledEach:
    """The same by an adjoint whose rows do not stay apart: each row, with each cotangent, is one example. They
    run together, or one after the other where an operation has no rule for examples."""

    def __init__(
        self, circuit: Circuit, inputs: Sequence[InPort], enters: Mapping[str, int], wanted: Sequence[InPort],
        cotangents: Sequence[Tensor], batch: int,
    ) -> None:  # fmt: skip
        self.batch, self.count = batch, len(cotangents[0])
        # A row by itself is to have the random numbers that it has in the batch: they are handed in.
        self._noises = circuit.inputs_of(Kind.NOISE)
        given = {p.name: replace(p, kind=Kind.SEQUENCE, draw=None) for p in self._noises}
        circuit = replace(circuit, inputs=tuple(given.get(p.name, p) for p in circuit.inputs))
        self._inputs, program = (*inputs, *given.values()), Program(circuit, is_adjoint=True)
        self.pull = Linear.pulling(program, self._inputs, enters, wanted)
        over = frozenset(p.name for p in program.inputs if p.rows)
        several = program.vmapped(batch * self.count, over, False)
        self._program = None if isinstance(several, NotSupported) else several
        self._parts = [part.repeat(batch, *[1] * (part.dim() - 1)) for part in cotangents]
        self._zeros = _zeros(cotangents[0], batch * self.count, 1, [math.prod(p.shape) for p in wanted])

    def __call__(self, call: Call, values: Values) -> Tensor:
        values = [*values[:-1], *numbers(self._noises, call)]
        values = self._of_rows(values, lambda v, dim: v.repeat_interleave(self.count, dim))
        one, examples = call._replace(batch=1), self.batch * self.count
        if self._program is not None:
            given, parts = self._of_rows(values, torch.unsqueeze), [part.unsqueeze(0) for part in self._parts]
            found = _side_by_side(
                self.pull(one, [*given, None], parts, self._program), self._zeros, (examples, 1)
            )
            return found.view(self.batch, self.count, -1)
        rows = []
        for i in range(examples):
            given = self._of_rows(values, lambda v, dim, i=i: v.narrow(dim, i, 1))
            parts = [part[i : i + 1] for part in self._parts]
            rows.append(_side_by_side(self.pull(one, [*given, None], parts), self._zeros, (1, 1)))
        return torch.cat(rows).view(self.batch, self.count, -1)

    def _of_rows(self, values: Values, change: Callable[..., Tensor]) -> list[Tensor | None]:
        """With what has rows changed, along the dimension that they are: what varies in time is `[1, B, …]`."""
        return [
            value if value is None or not port.rows else change(value, int(port.kind is not Kind.CONSTANT))
            for port, value in zip(self._inputs, values, strict=True)
        ]


class InTurn:
    """The state after a step, by part, and what is pulled back through it."""

    def __init__(self, program: Program, finals: Sequence[int], pulls: Sequence[Pulled | PulledEach]) -> None:
        self.program, self.finals, self.pulls = program, finals, pulls
        self._states = [p.kind is Kind.STATE for p in program.inputs]

    def __call__(self, call: Call, values: Values) -> tuple[list[Tensor], list[Tensor]]:
        return self.after(call, values), [pull(call, values) for pull in self.pulls]

    def after(self, call: Call, values: Values) -> list[Tensor]:
        """The state alone."""
        given = [cast("Tensor", v)[0] if state else v for state, v in zip(self._states, values, strict=False)]
        results = self.program.run(call, given)
        return [results[place] for place in self.finals]


class AtOnce:
    """The step and others on the same inputs, by one program.

    joined: number of a program, the step being 0 -> dimensions in front of what it gives out, which is put together.
    """

    def __init__(self, step: InTurn, programs: Sequence[Program], joined: Mapping[int, int]) -> None:
        every, self._finals = [step.program, *programs], step.finals
        self._program = Program(together([p.circuit for p in every], joined), is_adjoint=True)
        places = {port.name: place for place, port in enumerate(step.program.inputs)}
        self._given = [places.get(port.name, -1) for port in self._program.inputs]
        self._slots = {port.name: slot for slot, port in enumerate(self._program.inputs)}
        counts = [1 if i in joined else len(program.outputs) for i, program in enumerate(every)]
        self._parts = [slice(*ends) for ends in itertools.pairwise(itertools.accumulate(counts))]

    def slots(self, given: Mapping[str, Any], number: int) -> list[tuple[int, Any]]:
        """By port of a program -> by place among all inputs; of ports that are still there."""
        found = (
            (self._slots.get(beside(number, name), self._slots.get(name)), it) for name, it in given.items()
        )
        return [(slot, it) for slot, it in found if slot is not None]

    def __call__(
        self, call: Call, values: Values, own: Sequence[tuple[int, Tensor]]
    ) -> tuple[list[Tensor], list[Sequence[Tensor]]]:
        """The state after the step, and what each of the others gives out. own: what goes in besides."""
        given = [values[place] for place in self._given]
        for slot, tensor in own:
            given[slot] = tensor
        results = self._program.run(call, given)
        return [results[place][0] for place in self._finals], [results[part] for part in self._parts]


class PulledAtOnce:
    """As `InTurn`, where each is one program."""

    def __init__(self, step: InTurn, pulls: Sequence[Pulled]) -> None:
        # What each gives out is put together by the program, too, if it is what is wanted.
        joined = {i: 1 + (pull.count > 1) for i, pull in enumerate(pulls, 1) if pull.in_order}
        self._run = AtOnce(step, [cast("Program", pull.program) for pull in pulls], joined)
        self._own = [
            slot for i, pull in enumerate(pulls, 1) for slot in self._run.slots(pull.given | pull.pull.met, i)
        ]
        self._pulls = [(pull, i in joined) for i, pull in enumerate(pulls, 1)]

    def __call__(self, call: Call, values: Values) -> tuple[list[Tensor], list[Tensor]]:
        after, found = self._run(call, values, self._own)
        return after, [
            results[0].reshape(pull.batch, pull.count, -1) if joined else pull.taken(results)
            for (pull, joined), results in zip(self._pulls, found, strict=True)
        ]


def numbers(ports: Sequence[InPort], call: Call) -> list[Tensor]:
    """The random numbers that a step draws, `[1, B, …]` each."""
    return [noise.draw(p, p.number, call.seed, call.first, call.first + 1, call.batch) for p in ports]


def _zeros(like: Tensor, batch: int, count: int, sizes: Sequence[int]) -> list[Tensor]:
    return [like.new_zeros(()).expand(batch, count, size) for size in sizes]


def _side_by_side(parts: Sequence[Tensor | None], zeros: Sequence[Tensor], shape: tuple[int, int]) -> Tensor:
    """`[B, C, …]`, of parts that may be missing."""
    B, C = shape
    return _joined(
        [z[:B, :C] if p is None else p.reshape(B, C, -1) for p, z in zip(parts, zeros, strict=True)], 2
    )


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)
