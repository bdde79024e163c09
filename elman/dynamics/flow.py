"""A layer as a map of its state: s(t) = F(s(t-1), x(t)), the state flattened to a row of n numbers.

Everything here is planned calls: the circuit with its states exposed gives s(t-1) of every step, its tangent what
becomes of directions. Directions are more rows, K of them at B rows K·B; what no direction changes is computed on B.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils import _pytree as pytree

from elman.caches import cached
from elman.circuit import graphs
from elman.circuit.form import Circuit, InPort, Kind, OutPort
from elman.circuit.structure import apart, fill, flatten, side_by_side
from elman.errors import InputError, InputTypeError, NotSupported
from elman.execute import Call, Program
from elman.plan.cut import parted
from elman.recurrent import Recurrent, Stack
from elman.recurrent.bound import Arguments
from elman.recurrent.joined import joined, start
from elman.recurrent.programs import Binding

Tensor = torch.Tensor
Values = dict[str, Tensor]  # input port -> constant, sequence [T, B, …], or starting state [B, …]


@dataclass(frozen=True, eq=False)
class Flow:
    """A layer, a sequence and where it starts.

    values: of every input of the program, states at the start. states: the ports that s is made of, in order; what is
    not a real number (a counter) is carried along and not part of s.
    """

    binding: Binding
    program: Program
    still: Program
    linear: Program
    values: Values
    states: tuple[InPort, ...]
    steps: int
    batch: int
    engine: Any

    @classmethod
    def of(
        cls, rnn: Any, x: Any, state: Any, *, steps: int | None = None, context: Any = None,
        dtype: torch.dtype | None = None, where: str = "dynamics",
    ) -> Flow:  # fmt: skip
        """x: `[T, B, …]`, nested or not, or None with `steps`. dtype: of a copy of the layer to compute with."""
        if not isinstance(rnn, (Recurrent, Stack)):
            raise InputTypeError(
                what="dynamics are those of a layer", where=f"{where}(rnn)", got=type(rnn).__name__,
                expected="elman.Recurrent or elman.Stack", mend="elman.Recurrent(cell)",
            )  # fmt: skip
        if dtype is not None:
            rnn = copy.deepcopy(rnn).to(dtype)
            x, state, context = (pytree.tree_map(lambda v: _cast(v, dtype), v) for v in (x, state, context))
        if x is not None and rnn.batch_first:
            x = pytree.tree_map(lambda v: v.transpose(0, 1), x)
        with torch.no_grad():
            return cls._opened(rnn, x, state, steps, context, where)

    @classmethod
    def _opened(cls, rnn: Any, x: Any, state: Any, steps: int | None, context: Any, where: str) -> Flow:
        xs, of_x = flatten(x, "x")
        given, _ = flatten(state, "state")
        if any(v.dim() < 2 for v in xs) or not (xs or given):
            raise InputError(
                what="neither a sequence nor a state says how many rows there are", where=f"{where}(x, state)",
                expected="x [T, B, …] or, of an autonomous system, a state [B, …] and steps=",
            )  # fmt: skip
        steps = len(xs[0]) if xs and steps is None else steps
        if steps is None or steps < 1 or any(len(v) != steps for v in xs):
            raise InputError(
                what="the number of steps is not said", where=f"{where}(x, steps=)", got=steps,
                expected="x [T, B, …], all of one T ≥ 1; or x None and steps ≥ 1",
            )  # fmt: skip
        first = fill(of_x, [v[:1] for v in xs]) if xs else None
        batch = xs[0].shape[1] if xs else len(given[0])
        if isinstance(rnn, Stack):
            one = joined(rnn)
            if one is None:
                raise NotSupported(
                    what="the layers of this stack are not one map: one of them reads backward, or has an engine or a "
                    "generator of its own",
                    where=f"{where}(rnn)", mend="ask for the dynamics of one layer, rnn.part(i)",
                )  # fmt: skip
            state, context = start(rnn, one, fill(of_x, [v[0] for v in xs]), batch, state, context, False)
            rnn = one
        if rnn.reverse:
            raise NotSupported(
                what="a reversed layer runs against the time of its dynamics", where=f"{where}(rnn)",
                mend="flip x and take elman.Recurrent(cell) without reverse",
            )  # fmt: skip
        layer = Recurrent(rnn.cell, batch_first=False, engine=rnn.engine)
        if state is None:
            one_step = fill(of_x, [v[0] for v in xs])
            state = layer._single.start_of_step(layer, Arguments.of(1, one_step, None, context), batch)
        layer(first, state, steps=None if xs else 1, context=context)
        binding = layer._of_latest_call()
        states, contexts = flatten(state, "state")[0], flatten(context, "context")[0]
        values = binding.values(rnn.cell, xs, states, contexts)
        return cls._checked(binding, values, steps, batch, rnn.engine, where)

    @classmethod
    def _checked(
        cls, binding: Binding, values: Values, steps: int, batch: int, engine: Any, where: str
    ) -> Flow:
        program = binding.program
        if program.has_noise:
            raise NotSupported(
                what="the cell draws random numbers: its steps are no map of its state", where=f"{where}(rnn)",
                mend="rnn.eval(), if it is dropout",
            )  # fmt: skip
        ports = [program.inputs[slot] for slot in binding.slots("state")]
        if any(values[port.name].is_complex() for port in ports):
            raise NotSupported(
                what="a state holds complex numbers", where=f"{where}(rnn)",
                mend="hold it as real numbers, by torch.view_as_real",
            )  # fmt: skip
        smooth = tuple(port for port in ports if port.dtype.is_floating_point)
        if not smooth:
            raise NotSupported(what="no state holds real numbers", where=f"{where}(rnn)")
        still, linear = _parts(program, frozenset(port.name for port in smooth))
        return cls(binding, program.exposed, still, linear, values, smooth, steps, batch, engine)

    def repeated(self, count: int) -> Flow:
        """The same of `count` rows for each."""
        values = {p.name: _repeated(p, self.values[p.name], count) for p in self.program.inputs}
        return replace(self, values=values, batch=self.batch * count)

    # --- the state as a row ---------------------------------------------------------------------------------------

    @property
    def n(self) -> int:
        """How many numbers the state of a row is."""
        return sum(math.prod(port.shape) for port in self.states)

    @property
    def start(self) -> Tensor:
        """s(0), [B, n]."""
        return self.flat(self.values)

    def flat(self, values: Values) -> Tensor:
        """States `[…, B, *shape]` as `[…, B, n]`; a single vector is what it was."""
        if len(self.states) == 1 and len(self.states[0].shape) == 1:
            return values[self.states[0].name]
        return side_by_side([values[port.name] for port in self.states], [port.shape for port in self.states])

    def unflat(self, rows: Tensor) -> Values:
        """The inverse: `[…, B, n]` as a state of each port."""
        if len(self.states) == 1 and len(self.states[0].shape) == 1:
            return {self.states[0].name: rows}
        parts = apart(rows, [port.shape for port in self.states])
        return {port.name: part for port, part in zip(self.states, parts, strict=True)}

    # --- running --------------------------------------------------------------------------------------------------

    def at(self, first: int, steps: int, values: Values | None = None) -> Values:
        """The inputs, sequences from step `first` on for so many steps."""
        return {
            port.name: self.values[port.name][first : first + steps] for port in self.program.inputs
            if port.kind is Kind.SEQUENCE
        } | (values or {})  # fmt: skip

    def run(self, first: int, steps: int, states: Values) -> tuple[Values, Values]:
        """From `states` over steps first … first + steps - 1: (s(t-1) of every state and step, the final states)."""
        values = {**self.values, **states, **self.at(first, steps)}
        before, final = {}, {}
        for out, value in self._outputs(self.program, steps, len(values[self.states[0].name]), values):
            if out.state is not None:
                (before if out.kind is Kind.SEQUENCE else final)[out.state] = value
        return before, final

    def around(self, first: int, before: Values) -> Values:
        """What the linearised steps that begin at `first` take in besides directions. before: s(t-1), `[S, B, …]`."""
        steps, batch = before[self.states[0].name].shape[:2]
        values = {**self.values, **self.at(first, steps), **before}
        met = {str(out.kept): value for out, value in self._outputs(self.still, steps, batch, values)}
        return {**values, **met}

    def pushed(
        self, around: Values, directions: Tensor, stretch: slice = slice(None), memory: Values | None = None
    ) -> Tensor:
        """∂s(t+S)/∂s(t) v for directions v `[K, B, n]`, over a stretch of steps, S of them.

        memory: where what goes in once for each direction is laid out, again and again; a dict that the caller keeps
        and nobody else looks into. Megabytes that are new at every stretch cost more than the products.
        """
        outputs = self._push(self.linear, around, directions, stretch, memory)
        final = {out.state: value for out, value in outputs if out.kind is Kind.STATE}
        return self._directions(self.linear, final, directions)

    def pushed_along(self, around: Values, directions: Tensor) -> Tensor:
        """The same after each of the steps, `[S, K, B, n]`."""
        program = self.linear.exposed
        outputs = self._push(program, around, directions, slice(None))
        final = {out.state: value.unsqueeze(0) for out, value in outputs if out.kind is Kind.STATE}
        before = {out.state: value for out, value in outputs if out.kind is Kind.SEQUENCE}
        after = {state: torch.cat([before[state][1:], value]) for state, value in final.items()}
        return self._directions(program, after, directions)

    def side_by_side(self, around: Values, firsts: list[int], steps: int) -> Values:
        """Stretches of as many steps, beginning at each of `firsts`, as rows: those of the first, of the second, …"""
        states = [port.name for port in self.states]
        ports = [port for port in self.linear.inputs if port.tangent_of is None and port.name not in states]
        values = {p.name: _repeated(p, around[p.name], len(firsts)) for p in ports if p.kind is Kind.CONSTANT}
        sequences = states + [port.name for port in ports if port.kind is Kind.SEQUENCE]
        return values | {
            name: torch.cat([around[name][first : first + steps] for first in firsts], 1)
            for name in sequences
        }

    def _push(
        self,
        program: Program,
        around: Values,
        directions: Tensor,
        stretch: slice,
        memory: Values | None = None,
    ) -> list[tuple[OutPort, Tensor]]:
        count, batch, _ = directions.shape
        values, moved = {}, self.unflat(directions.flatten(0, 1))
        for port in program.inputs:
            if port.tangent_of is not None:
                values[port.name] = moved[port.tangent_of]
                continue
            value = around[port.name]
            if port.kind is Kind.SEQUENCE:
                value = value[stretch]
            values[port.name] = _repeated(port, value, count, memory)
        steps = around[self.states[0].name][stretch].shape[0]
        return self._outputs(program, steps, count * batch, values)

    def _outputs(
        self, program: Program, steps: int, rows: int, values: Values
    ) -> list[tuple[OutPort, Tensor]]:
        results = program.run(
            Call(steps, rows, 0, self.engine), [values[port.name] for port in program.inputs]
        )
        return [*zip(program.outputs, results, strict=True)]

    def _directions(self, program: Program, results: dict[str | None, Tensor], like: Tensor) -> Tensor:
        """Directions of every state, flattened, `[…, K, B, n]`; zero where nothing of before reaches a state."""
        ports = {port.tangent_of: port.name for port in program.inputs if port.tangent_of is not None}
        directions = {
            state: results[name] for state, name in ports.items() if state is not None and name in results
        }
        for port in self.states:
            if port.name not in directions:
                some, width = next(
                    (v, len(p.shape)) for p in self.states for n, v in directions.items() if n == p.name
                )
                directions[port.name] = like.new_zeros(*some.shape[: some.dim() - width], *port.shape)
        flat = self.flat(directions)
        return flat.view(*flat.shape[:-2], *like.shape[:2], flat.shape[-1])


@cached("linearised flows", 64)
def _parts(program: Program, changing: frozenset[str]) -> tuple[Program, Program]:
    still, linear = parted(_of_states(program.tangent(changing).circuit))
    return Program(still), Program(linear)


def _of_states(tangent: Circuit) -> Circuit:
    """A tangent without the directions of the outputs of every step, which nobody reads here."""
    outputs = tuple(out for out in tangent.outputs if out.kind is Kind.STATE)
    wires = [out.wire for out in outputs] + [port.next for port in tangent.inputs if port.next is not None]
    results = graphs.results_of(tangent.graph)
    graph = graphs.extract(tangent.graph, {w.name: results[w.name] for w in wires if not w.is_input})
    ports = [(p.name, graphs.placeholder(tangent.graph, p.name).meta["val"]) for p in tangent.inputs]
    graphs.with_placeholders(graph, ports)
    return replace(tangent, graph=graph, outputs=outputs, record=None).check()


def _repeated(port: InPort, value: Tensor, count: int, memory: Values | None = None) -> Tensor:
    """A value for rows that are there `count` times; in `memory`, if it is a sequence and there is one."""
    if not port.rows or count == 1:
        return value
    axis = 1 if port.kind is Kind.SEQUENCE else 0
    size = [*value.shape[:axis], count, *value.shape[axis:]]
    value = value.unsqueeze(axis).expand(size)
    if memory is None or not axis:
        return value.flatten(axis, axis + 1)
    there = memory.get(port.name)
    if there is None or there.shape[0] < size[0]:
        there = memory[port.name] = value.new_empty(size)
    return there[: size[0]].copy_(value).flatten(1, 2)


def _cast(value: Any, dtype: torch.dtype | None) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


@torch.no_grad()
def jacobian(rnn: Any, x_t: Any, state: Any, *, context: Any = None) -> Tensor:
    """∂s(t)/∂s(t-1) of one step, `[B, n, n]`; entry [b, i, j] is ∂sᵢ(t)/∂sⱼ(t-1) in row b. One planned call.

    rnn: a `Recurrent`, or a `Stack` that reads forward. x_t: `[B, …]`, nested or not; None for an autonomous cell.
    state: `[B, …]` in the cell's structure, whose real numbers, flattened in its order, are s.

    Raises NotSupported for reversed layers, cells that draw random numbers, and complex states.
    """
    time = 1 if getattr(rnn, "batch_first", False) else 0
    x = None if x_t is None else pytree.tree_map(lambda v: v.unsqueeze(time), x_t)
    flow = Flow.of(rnn, x, state, steps=1, context=context, where="jacobian")
    return jacobian_of(flow, flow.start)


def jacobian_of(flow: Flow, states: Tensor) -> Tensor:
    """The same of a flow of one step, at states `[B, n]`."""
    batch, n = states.shape
    every = torch.eye(n, dtype=states.dtype, device=states.device)[:, None].expand(n, batch, n)
    around = flow.around(0, {name: value.unsqueeze(0) for name, value in _at(flow, states).items()})
    return flow.pushed(around, every).permute(1, 2, 0)


def stepped(flow: Flow, states: Tensor) -> Tensor:
    """F(s, x) of a flow of one step, at states `[B, n]`."""
    return flow.flat(flow.run(0, 1, _at(flow, states))[1])


def _at(flow: Flow, states: Tensor) -> Values:
    others = {
        port.name: flow.values[port.name]
        for port in flow.program.inputs
        if port.kind is Kind.STATE and port not in flow.states
    }
    return {**others, **flow.unflat(states)}


@torch.no_grad()
def trajectory(
    rnn: Any, x: Any = None, state: Any = None, *, steps: int | None = None, context: Any = None
) -> Any:
    """s(1), …, s(T) of every row, `[T, B, …]` in the cell's structure; `rnn(x)` itself gives the last one alone.

    x: `[T, B, …]`; None, with `steps`, for an autonomous cell. state: s(0); by default where the cell starts.
    """
    flow = Flow.of(rnn, x, state, steps=steps, context=context, where="trajectory")
    names = [flow.binding.program.inputs[slot].name for slot in flow.binding.slots("state")]
    before, final = flow.run(0, flow.steps, {})
    whole = [torch.cat([before[name][1:], final[name].unsqueeze(0)]) for name in names]
    return fill(flow.binding.state, whole)
