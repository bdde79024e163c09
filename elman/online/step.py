"""The derivatives of one step: the programs of its tangent and its adjoints, run on the tensors of a step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch

from elman.circuit import graphs
from elman.circuit.form import InPort, Kind
from elman.circuit.operations import operation_of
from elman.circuit.structure import apart, side_by_side
from elman.engines import Engine
from elman.errors import NotSupported
from elman.execute import Call, Program
from elman.online.linear import AtOnce, InTurn, Linear, Pulled, PulledAtOnce, PulledEach, Values, numbers
from elman.online.reach import Reach, reach
from elman.recurrent.programs import Binding, Owned
from elman.tangent import tangent
from elman.trace.outside import derived, locked, outside
from elman.trace.unchanging import MARK, without_unchanging
from elman.vmapped import apart as rows_apart

Tensor = torch.Tensor


class Derivatives:
    """∂s(t)/∂s(t-1) and ∂s(t)/∂θ of the cell of a binding.

    states: the ports of what of the state can change a little; n is the number of their numbers. parameters: the ports
    of the weights that learn, P is the number of theirs; `weights` are they.
    """

    def __init__(self, binding: Binding, cell: torch.nn.Module, engine: str | Engine) -> None:
        self.binding, self.program = binding, binding.program
        self.engine = self.program.whole.engine(engine)
        ports = self.program.inputs
        self.states = [p for p in ports if p.kind is Kind.STATE and p.smooth]
        learns = [
            p.kind is Kind.CONSTANT and p.differentiable and isinstance(s, Owned) and s.of(cell).requires_grad
            for p, s in zip(ports, binding.sources, strict=True)
        ]
        self.parameters = [p for p, yes in zip(ports, learns, strict=True) if yes]
        self.n, self.P = (sum(map(_size, part)) for part in (self.states, self.parameters))
        # The outputs, by the number of the state that each of them is after the step; None if one is something else.
        fed = {p.next: i for i, p in enumerate(p for p in ports if p.kind is Kind.STATE)}
        wires = [o.wire for o in self.program.outputs if o.kind is Kind.SEQUENCE]
        self.shown = [fed[w] for w in wires] if all(w in fed for w in wires) else None
        self.noises = self.program.circuit.inputs_of(Kind.NOISE)
        self._given = [slot for name in ("x", "state", "context") for slot in binding.slots(name)]
        self._timed = [slot for slot in self._given if ports[slot].kind is not Kind.CONSTANT]
        self._learning = [i for i, yes in enumerate(learns) if yes]
        self.step = InTurn(self.program, binding.finals, ())
        self.look(cell)

    def look(self, cell: torch.nn.Module) -> None:
        """Take the tensors that the cell has now."""
        self._fixed = [*self.binding.fixed(cell), None]
        self.weights = [cast("Tensor", self._fixed[i]) for i in self._learning]

    @property
    def in_place(self) -> bool:
        """Whether the engine carries an influence forward where it lies."""
        return self.engine is not None and self.engine.carries(self.weights[0])

    @property
    def sizes(self) -> tuple[Any, ...]:
        """What an influence depends on."""
        return tuple((p.path, p.shape, p.dtype, p.device) for p in (*self.states, *self.parameters))

    def inputs(
        self, xs: Sequence[Tensor], states: Sequence[Tensor], contexts: Sequence[Tensor]
    ) -> list[Tensor | None]:
        """The tensors of a step, by port; what varies in time is `[1, B, …]`."""
        values = self._fixed.copy()
        for slot, tensor in zip(self._given, (*xs, *states, *contexts), strict=True):
            values[slot] = tensor
        for slot in self._timed:
            values[slot] = values[slot].unsqueeze(0)  # type: ignore[union-attr]
        return values

    def numbers(self, call: Call) -> list[Tensor]:
        """The random numbers that a step draws, `[1, B, …]` each."""
        return numbers(self.noises, call)

    def flat(self, parts: Sequence[Tensor]) -> Tensor:
        """[…, n], of the parts of a state `[…, widths]`."""
        if len(parts) == 1 and (widths := self.states[0].shape):
            return parts[0].flatten(-len(widths))
        return side_by_side(parts, [p.shape for p in self.states])

    def parts(self, flat: Tensor) -> list[Tensor]:
        """The inverse of `flat`."""
        return apart(flat, [p.shape for p in self.states])

    # --- what reaches what --------------------------------------------------------------------------------------------

    @locked
    def reach(self) -> Reach:
        """What reaches what in a step."""
        program = self.program.adjoint(frozenset(p.name for p in (*self.states, *self.parameters)))
        return reach(program.circuit, self._places(program), self.states, self.parameters)

    @locked
    def reach_within(self, program: Program) -> Reach:
        """What of the state reaches what, in `within` or `local`."""
        return reach(program.circuit, self._places(program), self.states)

    def _places(self, program: Program) -> dict[str, str]:
        """State -> the port of an adjoint where the cotangent of what it is after the step comes in."""
        ended = {o.name: o.state for o in self.program.outputs if o.kind is Kind.STATE}
        ports = [p for p in program.inputs if p.kind is Kind.STATE and p.cotangent_of in ended]
        return {str(ended[str(p.cotangent_of)]): p.name for p in ports}

    def _entering(self, program: Program) -> dict[str, int]:
        """The same, by port: the number of the state."""
        places = self._places(program)
        return {places[s.name]: number for number, s in enumerate(self.states) if s.name in places}

    # --- along, and back ----------------------------------------------------------------------------------------------

    @derived
    def _along(self) -> Linear:
        names = [p.name for p in self.states]
        with outside():
            program = Program(tangent(self.program.circuit, frozenset(names), of_backward=True))
        ended = {o.name: o.state for o in self.program.outputs if o.kind is Kind.STATE}
        found = {ended.get(str(o.tangent_of)): place for place, o in enumerate(program.outputs)}
        enters = {p.name: names.index(p.tangent_of) for p in program.inputs if p.tangent_of is not None}
        return Linear(program, self.program.inputs, enters, [found.get(name) for name in names])

    @derived
    def _along_and_back(self) -> tuple[AtOnce, list[tuple[int, int]], list[tuple[int, int]]]:
        ways = self._along, self._back
        run = AtOnce(self.step, [way.program for way in ways], {})
        return run, run.slots(self._along.enters, 1), run.slots(self._back.enters, 2)

    def along_and_back(
        self, call: Call, values: Values, way: Tensor, cotangents: Tensor
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """The state after the step, by part; ∂s(t)/∂s(t-1) v, `[B, n]`: the transpose of what the cell's backward says,
        whatever it says forward; and `back`."""
        run, *slots = self._along_and_back
        ways, backs = self.parts(way), self.parts(cotangents)
        own = [(slot, ways[i].unsqueeze(0)) for slot, i in slots[0]] + [
            (slot, backs[i]) for slot, i in slots[1]
        ]
        after, (moved, gradients) = run(call, values, own)
        parts = [None if i is None else moved[i][0] for i in self._along.leaves]
        flat = self.flat([torch.zeros_like(w) if m is None else m for m, w in zip(parts, ways, strict=True)])
        return (
            after,
            flat,
            self._joined([None if i is None else gradients[i] for i in self._back.leaves], cotangents),
        )

    @derived
    def within(self) -> Program:
        """The adjoint in the states."""
        return self.program.adjoint(frozenset(p.name for p in self.states))

    @derived
    def _back(self) -> Linear:
        program = self.program.adjoint(frozenset(p.name for p in self.parameters))
        return Linear.pulling(program, self.program.inputs, self._entering(program), self.parameters)

    def back(self, call: Call, values: Values, cotangents: Tensor) -> Tensor:
        """∂s(t)/∂θᵀ g, `[P]`, summed over the rows. cotangents: `[B, n]`."""
        return self._joined(self._back(call, values, self.parts(cotangents)), cotangents)

    def _joined(self, gradients: Sequence[Tensor | None], like: Tensor) -> Tensor:
        pairs = zip(self.parameters, gradients, strict=True)
        return torch.cat([like.new_zeros(_size(p)) if g is None else g.reshape(-1) for p, g in pairs])

    def pulled(self, adjoint: Program, rows: Tensor, colours: Tensor, batch: int) -> InTurn | PulledAtOnce:
        """The state after the step, and two things of each row: ∂s(t)/∂s(t-1)ᵀ g, `[B, C, n]`, for every g of `rows`,
        `[C, n]`, and ∂s(t)/∂θᵀ g, `[B, C, P]`, for those of `colours`. adjoint: `within` or `local`."""
        jacobian = self._pulled(adjoint, self.states, rows, batch)
        program = self._back.program
        try:
            with outside():
                each = Program(rows_apart(program.circuit), is_adjoint=True)
        except NotSupported:
            parts = self.parts(colours)
            enters = self._entering(program)
            every = PulledEach(program.circuit, self.program.inputs, enters, self.parameters, parts, batch)
            return InTurn(self.program, self.binding.finals, [jacobian, every])
        immediate = self._pulled(each, self.parameters, colours, batch)
        step, pulls = InTurn(self.program, self.binding.finals, [jacobian, immediate]), [jacobian, immediate]
        return PulledAtOnce(step, pulls) if all(pull.program is not None for pull in pulls) else step

    def _pulled(self, adjoint: Program, wanted: Sequence[InPort], cotangents: Tensor, batch: int) -> Pulled:
        pull = Linear.pulling(adjoint, self.program.inputs, self._entering(adjoint), wanted)
        return Pulled(pull, self.parts(cotangents), [*map(_size, wanted)], batch)

    def local(self) -> Program:
        """The adjoint in the states without what passes through a product: what a unit has of itself."""
        circuit = self.within.circuit
        graph = graphs.copy(circuit.graph)
        ways = {p.name for p in circuit.inputs if p.kind is Kind.STATE or p.cotangent_of is not None}
        moved = {n for n in graph.nodes if n.op == "placeholder" and n.target in ways}
        for node in graph.nodes:
            if moved.intersection(node.all_input_nodes):
                moved.add(node)
                if operation_of(node).contracts is not None:
                    node.meta[MARK] = True
        gone = without_unchanging(graph)
        kept = tuple(o for o in circuit.outputs if o.wire.is_input or o.wire.name not in gone)
        inputs = tuple(
            replace(p, next=None) if p.next is not None and not p.next.is_input and p.next.name in gone else p
            for p in circuit.inputs
        )
        local = replace(circuit, graph=graph, inputs=inputs, outputs=kept, record=None)
        return Program(local.check(), is_adjoint=True)


def _size(port: InPort) -> int:
    """How many numbers a port takes, of each row."""
    return math.prod(port.shape)
