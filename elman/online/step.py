"""The derivatives of one step: the programs of its tangent and its adjoint, run on the tensors of a step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch

from elman import noise
from elman.circuit import graphs
from elman.circuit.form import Circuit, InPort, Kind
from elman.circuit.operations import operation_of
from elman.circuit.structure import apart, side_by_side
from elman.errors import NotSupported
from elman.execute import Call, Program
from elman.online.reach import Reach, reach
from elman.recurrent.programs import Binding, Owned
from elman.tangent import tangent
from elman.trace.outside import LOCK, locked
from elman.trace.unchanging import MARK, without_unchanging

Tensor = torch.Tensor


class Derivatives:
    """∂s(t)/∂s(t-1) and ∂s(t)/∂θ of the cell of a binding.

    states: the ports of what of the state can change a little; n is the number of their numbers. parameters: the ports
    of the weights that learn, P is the number of theirs.
    """

    def __init__(self, binding: Binding, cell: torch.nn.Module) -> None:
        self.binding, self.program, self.cell = binding, binding.program, cell
        ports = self.program.inputs
        self.states = [p for p in ports if p.kind is Kind.STATE and p.smooth]
        self.parameters = [
            p for p, s in zip(ports, binding.sources, strict=True)
            if p.kind is Kind.CONSTANT and p.differentiable and isinstance(s, Owned) and s.of(cell).requires_grad
        ]  # fmt: skip
        self.n, self.P = (sum(math.prod(p.shape) for p in part) for part in (self.states, self.parameters))
        # The outputs, by the number of the state that each of them is after the step; None if one is something else.
        fed = {p.next: i for i, p in enumerate(p for p in ports if p.kind is Kind.STATE)}
        wires = [o.wire for o in self.program.outputs if o.kind is Kind.SEQUENCE]
        self.shown = [fed[w] for w in wires] if all(w in fed for w in wires) else None
        states, weights = (frozenset(p.name for p in part) for part in (self.states, self.parameters))
        self.within, self._back = self.program.adjoint(states), self.program.adjoint(weights)
        self._apart = Program(_given_noise(self._back.circuit), is_adjoint=True)
        self._along: Program | None = None

    @property
    def sizes(self) -> tuple[Any, ...]:
        """What an influence depends on."""
        return tuple((p.path, p.shape, p.dtype, p.device) for p in (*self.states, *self.parameters))

    def weights(self) -> list[Tensor]:
        """The parameters themselves, as they are now."""
        names = (p.name for p in self.program.inputs)
        of = dict(zip(names, self.binding.fixed(self.cell), strict=True))
        return [cast("Tensor", of[p.name]) for p in self.parameters]

    def inputs(
        self, xs: Sequence[Tensor], states: Sequence[Tensor], contexts: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """The tensors of a step by port; sequences are `[1, B, …]`."""
        tensors = self.binding.values(self.cell, xs, states, contexts)
        timed = {p.name for p in self.program.inputs if p.kind is not Kind.CONSTANT}
        return {name: value.unsqueeze(0) if name in timed else value for name, value in tensors.items()}

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

    def flat(self, tensors: Sequence[Tensor]) -> Tensor:
        """[…, n], of the tensors of a state `[…, widths]`."""
        return side_by_side(tensors, [p.shape for p in self.states])

    def _parts(self, flat: Tensor) -> list[Tensor]:
        """The inverse of `flat`."""
        return apart(flat, [p.shape for p in self.states])

    # --- along --------------------------------------------------------------------------------------------------------

    def along(self, call: Call, values: dict[str, Tensor], way: Tensor) -> Tensor:
        """∂s(t)/∂s(t-1) v, `[B, n]`: the transpose of what the cell's backward says, whatever it says forward."""
        if self._along is None:
            with LOCK:
                names = frozenset(p.name for p in self.states)
                self._along = Program(tangent(self.program.circuit, names, of_backward=True))
        program = self._along
        directions = dict(zip((p.name for p in self.states), self._parts(way), strict=True))
        given = [
            directions[p.tangent_of] if p.tangent_of is not None else values[p.name] for p in program.inputs
        ]
        results = program.run(call, given)
        ended = {o.name: o.state for o in self.program.outputs if o.kind is Kind.STATE}
        by_state = {ended.get(str(o.tangent_of)): r for o, r in zip(program.outputs, results, strict=True)}
        return self.flat([by_state.get(p.name, torch.zeros_like(directions[p.name])) for p in self.states])

    # --- back ---------------------------------------------------------------------------------------------------------

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

    def back(self, call: Call, values: dict[str, Tensor], cotangents: Tensor) -> Tensor:
        """∂s(t)/∂θᵀ g, `[P]`, summed over the rows. cotangents: `[B, n]`."""
        gradients = self._backward(self._back, call, values, cotangents)
        return self.joined([gradients.get(p.name) for p in self.parameters])

    def jacobian(self, call: Call, values: dict[str, Tensor], cotangents: Tensor, program: Program) -> Tensor:
        """∂s(t)/∂s(t-1)ᵀ g, `[B, C, n]`. cotangents: `[C, n]`, the same for every row. program: `within` or `local`."""
        C = len(cotangents)
        if not program.outputs:  # nothing is left of it
            return cotangents.new_zeros(call.batch, C, self.n)
        ports = [p.name for p in program.inputs if p.kind is Kind.STATE]
        many = program.vmapped(C, frozenset(ports), False)
        if isinstance(many, NotSupported):
            each = [self._pulled(program, call, values, g.expand(call.batch, -1)) for g in cotangents]
            return torch.stack(each, 1)
        return self._pulled(many, call, values, cotangents.expand(call.batch, -1, -1))

    def _pulled(self, program: Program, call: Call, values: dict[str, Tensor], cotangents: Tensor) -> Tensor:
        gradients = self._backward(program, call, values, cotangents)
        like = zip(self.states, self._parts(cotangents), strict=True)
        return self.flat([gradients.get(p.name, torch.zeros_like(part)) for p, part in like])

    def _backward(
        self, program: Program, call: Call, values: dict[str, Tensor], cotangents: Tensor
    ) -> dict[str | None, Tensor]:  # fmt: skip
        """Input of the step -> its gradient, by an adjoint."""
        entering = self._entering(program, cotangents)
        given = [entering.get(p.name) if p.kind is Kind.STATE else values.get(p.name) for p in program.inputs]
        return dict(zip((o.gradient_of for o in program.outputs), program.run(call, given), strict=True))

    def _entering(self, program: Program, cotangents: Tensor) -> dict[str, Tensor]:
        """Port -> cotangent of a state after the step."""
        places = self._places(program)
        parts = zip(self.states, self._parts(cotangents), strict=True)
        return {places[s.name]: part for s, part in parts if s.name in places}

    def joined(self, gradients: Sequence[Tensor | None], lead: tuple[int, ...] = ()) -> Tensor:
        """[…, P], of a gradient for each parameter."""
        like = self.parameters[0]
        return torch.cat(
            [
                torch.zeros(*lead, math.prod(p.shape), dtype=like.dtype, device=like.device)
                if g is None
                else g.reshape(*lead, -1)
                for p, g in zip(self.parameters, gradients, strict=True)
            ],
            -1,
        )

    def immediate(self, call: Call, values: dict[str, Tensor], cotangents: Tensor) -> Tensor:
        """∂s(t)/∂θᵀ g of each row by itself, `[B, C, P]`. cotangents: `[C, n]`, the same for every row."""
        B, C = call.batch, len(cotangents)
        program, one = self._apart, call._replace(batch=1)
        values = {**values, **self._drawn(call)}
        each = self._entering(program, cotangents.repeat(B, 1))
        rows = [
            each[p.name] if p.name in each
            else value if (value := values.get(p.name)) is None or not p.rows
            else value.repeat_interleave(C, _rows_at(p))
            for p in program.inputs
        ]  # fmt: skip
        given = [(p, v) for p, v in zip(program.inputs, rows, strict=True)]
        many = program.vmapped(B * C, frozenset(p.name for p in program.inputs if p.rows), False)
        if isinstance(many, NotSupported):
            gradients = torch.stack([
                self._gradients(program, program.run(one, [
                    v.narrow(_rows_at(p), i, 1) if p.rows and v is not None else v for p, v in given
                ]), ())
                for i in range(B * C)
            ])  # fmt: skip
        else:
            together = [v.unsqueeze(_rows_at(p)) if p.rows and v is not None else v for p, v in given]
            gradients = self._gradients(many, many.run(one, together), (B * C,))
        return gradients.unflatten(0, (B, C))

    def _gradients(self, program: Program, results: Sequence[Tensor], lead: tuple[int, ...]) -> Tensor:
        gradients = dict(zip((o.gradient_of for o in program.outputs), results, strict=True))
        return self.joined([gradients.get(p.name) for p in self.parameters], lead)

    def _drawn(self, call: Call) -> dict[str, Tensor]:
        """The random numbers of a step, where they are handed in."""
        return dict(zip((p.name for p in self._noises), self.numbers(call), strict=True))

    @property
    def _noises(self) -> list[InPort]:
        return [p for p in self.program.circuit.inputs if p.kind is Kind.NOISE]

    def numbers(self, call: Call) -> list[Tensor]:
        """The random numbers that a step draws, `[1, B, …]` each."""
        return [
            noise.draw(p, p.number, call.seed, call.first, call.first + 1, call.batch) for p in self._noises
        ]


def _rows_at(port: InPort) -> int:
    """The dimension in which the rows of a step stand."""
    return 1 if port.kind is Kind.SEQUENCE else 0


def _given_noise(circuit: Circuit) -> Circuit:
    """The same circuit, its random numbers handed in: examples of one row each are to have those of the whole batch."""
    inputs: tuple[Any, ...] = tuple(
        replace(p, kind=Kind.SEQUENCE, draw=None) if p.kind is Kind.NOISE else p for p in circuit.inputs
    )
    return replace(circuit, inputs=inputs)
