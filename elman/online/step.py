"""The derivatives of one step: the programs of its tangent and its adjoint, run on the tensors of a step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from elman import noise
from elman.circuit import graphs
from elman.circuit.form import Circuit, InPort, Kind
from elman.circuit.operations import operation_of
from elman.errors import NotSupported
from elman.execute import Call, Program
from elman.online.reach import Reach, reach
from elman.recurrent.programs import Argument, Binding, Captured, Owned
from elman.trace.call import store_of
from elman.trace.outside import locked
from elman.trace.unchanging import MARK, without_unchanging

Tensor = torch.Tensor


class Derivatives:
    """∂s(t)/∂s(t-1) and ∂s(t)/∂θ of the cell of a binding.

    states: the ports of what of the state can change a little; n is the number of their numbers. parameters: the ports
    of the weights that learn, P is the number of theirs.
    """

    def __init__(self, binding: Binding, cell: torch.nn.Module) -> None:
        self.program, self.sources, self.cell = binding.program, binding.sources, cell
        ports = self.program.inputs
        self.states = [p for p in ports if p.kind is Kind.STATE and p.smooth]
        self.parameters = [
            p for p, s in zip(ports, self.sources, strict=True)
            if p.kind is Kind.CONSTANT and p.differentiable and isinstance(s, Owned) and self._at(s).requires_grad
        ]  # fmt: skip
        self.n, self.P = (sum(math.prod(p.shape) for p in part) for part in (self.states, self.parameters))
        names = frozenset(p.name for p in (*self.states, *self.parameters))
        self._along = self.program.tangent(frozenset(p.name for p in self.states))
        self._back = self.program.adjoint(names)
        given = _given_noise(self.program.adjoint(frozenset(p.name for p in self.parameters)).circuit)
        self._apart = Program(given, is_adjoint=True)
        self._several: dict[tuple[int, bool], Program | None] = {}

    @property
    def sizes(self) -> tuple[Any, ...]:
        """What an influence depends on."""
        return tuple((p.path, p.shape, p.dtype, p.device) for p in (*self.states, *self.parameters))

    def _at(self, source: Owned) -> Tensor:
        return store_of(self.cell, source.place)[source.place.key]

    def weights(self) -> list[Tensor]:
        """The parameters themselves, as they are now."""
        of = dict(zip((p.name for p in self.program.inputs), self.sources, strict=True))
        return [self._at(of[p.name]) for p in self.parameters]  # type: ignore[arg-type]

    def inputs(
        self, xs: Sequence[Tensor], states: Sequence[Tensor], contexts: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """The tensors of a step by port; sequences are `[1, B, …]`."""
        parts = {"x": xs, "state": states, "context": contexts}
        found: dict[str, Tensor] = {}
        for port, source in zip(self.program.inputs, self.sources, strict=True):
            if isinstance(source, Owned):
                value = self._at(source)
            elif isinstance(source, Captured):
                value = source.tensor
            else:
                assert isinstance(source, Argument)
                value = parts[source.name][source.index]
                if port.kind is not Kind.CONSTANT:
                    value = value.unsqueeze(0)
            found[port.name] = value.detach()
        return found

    @locked
    def reach(self) -> Reach:
        """What reaches what in a step."""
        return reach(self._back.circuit, self.states, self.parameters)

    def flat(self, tensors: Sequence[Tensor]) -> Tensor:
        """[…, n], of the tensors of a state `[…, widths]`."""
        lead = tensors[0].dim() - len(self.states[0].shape)
        return torch.cat([t.flatten(lead) if t.dim() > lead else t.unsqueeze(-1) for t in tensors], -1)

    def _parts(self, flat: Tensor) -> list[Tensor]:
        """The inverse of `flat`."""
        sizes = [math.prod(p.shape) for p in self.states]
        pieces = zip(self.states, flat.split(sizes, -1), strict=True)
        return [piece.unflatten(-1, p.shape) if p.shape else piece.squeeze(-1) for p, piece in pieces]

    # --- along ----------------------------------------------------------------------------------------------------------

    def local(self) -> Program:
        """The tangent without what passes through a product: what a unit has of itself."""
        circuit = self._along.circuit
        graph = graphs.copy(circuit.graph)
        ways = {p.name for p in circuit.inputs if p.tangent_of is not None}
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
        return Program(replace(circuit, graph=graph, inputs=inputs, outputs=kept, record=None).check())

    def along(
        self, call: Call, values: dict[str, Tensor], ways: Tensor, program: Program | None = None
    ) -> Tensor:
        """∂s(t)/∂s(t-1) v. ways: `[B, n]`, or `[B, C, n]` for C directions of each row at once."""
        program = program or self._along
        directions = dict(zip((p.name for p in self.states), self._parts(ways), strict=True))
        ports = {p.name: p.tangent_of for p in program.inputs if p.tangent_of is not None}
        if ways.dim() == 2:
            given = [directions[ports[p.name]] if p.name in ports else values[p.name] for p in program.inputs]
            return self._ends(program, program.run(call, given), ways)
        many = program.vmapped(ways.shape[1], frozenset(ports), False)
        if isinstance(many, NotSupported):
            columns = [self.along(call, values, ways[:, c], program) for c in range(ways.shape[1])]
            return torch.stack(columns, 1)
        given = [directions[ports[p.name]] if p.name in ports else values[p.name] for p in many.inputs]
        return self._ends(many, many.run(call, given), ways)

    def _ends(self, program: Program, results: Sequence[Tensor], ways: Tensor) -> Tensor:
        of_final = {
            o.name: o.state for o in self.program.outputs if o.kind is Kind.STATE and o.state is not None
        }
        found = {
            of_final[str(out.tangent_of)]: value
            for out, value in zip(program.outputs, results, strict=True)
            if out.tangent_of in of_final
        }
        like = self._parts(ways)
        return self.flat([
            found[p.name] if p.name in found else torch.zeros_like(v)
            for p, v in zip(self.states, like, strict=True)
        ])  # fmt: skip

    # --- back -----------------------------------------------------------------------------------------------------------

    def back(self, call: Call, values: dict[str, Tensor], cotangents: Tensor) -> tuple[Tensor, Tensor]:
        """(∂s(t)/∂s(t-1)ᵀ g `[B, n]`, ∂s(t)/∂θᵀ g `[P]`, summed over the rows). cotangents: `[B, n]`."""
        program = self._back
        entering = self._entering(program, cotangents)
        given = [entering.get(p.name) if p.kind is Kind.STATE else values.get(p.name) for p in program.inputs]
        found = dict(zip((o.gradient_of for o in program.outputs), program.run(call, given), strict=True))
        before = [found.get(p.name) for p in self.states]
        like = self._parts(cotangents)
        pulled = [torch.zeros_like(v) if b is None else b for b, v in zip(before, like, strict=True)]
        return self.flat(pulled), self.joined([found.get(p.name) for p in self.parameters])

    def _entering(self, program: Program, cotangents: Tensor) -> dict[str, Tensor]:
        """Port -> cotangent of a state after the step."""
        ended = {o.state: o.name for o in self.program.outputs if o.kind is Kind.STATE}
        ports = {p.cotangent_of: p.name for p in program.inputs if p.kind is Kind.STATE}
        parts = zip(self.states, self._parts(cotangents), strict=True)
        return {ports[ended[s.name]]: part for s, part in parts if ended[s.name] in ports}

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
        program, V = self._apart, B * C
        rowed = {p.name for p in program.inputs if p.rows}
        values = {**values, **self._drawn(call)}
        each = self._entering(program, cotangents.repeat(B, 1))
        one = call._replace(batch=1)

        def row(port: InPort, value: Tensor, rows: slice | None) -> Tensor:
            """For rows of examples: those of `value` at the batch, C times each."""
            at = 0 if port.kind is Kind.CONSTANT else 1
            value = value.repeat_interleave(C, at)
            return value.unsqueeze(at) if rows is None else value.narrow(at, rows.start, 1)

        many = program.vmapped(V, frozenset(rowed), False)
        if isinstance(many, NotSupported):
            found = []
            for v in range(V):
                given = [
                    each[p.name][v : v + 1] if p.name in each
                    else row(p, values[p.name], slice(v, v + 1)) if p.name in rowed and p.name in values
                    else values.get(p.name)
                    for p in program.inputs
                ]  # fmt: skip
                found.append(self._gradients(program, program.run(one, given), ()))
            return torch.stack(found).unflatten(0, (B, C))
        given = [
            each[p.name].unsqueeze(0) if p.name in each
            else row(p, values[p.name], None) if p.name in rowed and p.name in values
            else values.get(p.name)
            for p in program.inputs
        ]  # fmt: skip
        return self._gradients(many, many.run(one, given), (V,)).unflatten(0, (B, C))

    def _gradients(self, program: Program, results: Sequence[Tensor], lead: tuple[int, ...]) -> Tensor:
        found = dict(zip((o.gradient_of for o in program.outputs), results, strict=True))
        return self.joined([found.get(p.name) for p in self.parameters], lead)

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


def _given_noise(circuit: Circuit) -> Circuit:
    """The same circuit, its random numbers handed in: examples of one row each are to have those of the whole batch."""
    inputs: tuple[Any, ...] = tuple(
        replace(p, kind=Kind.SEQUENCE, draw=None) if p.kind is Kind.NOISE else p for p in circuit.inputs
    )
    return replace(circuit, inputs=inputs)
