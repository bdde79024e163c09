"""A plan written down as one Python function of tensors: nothing that is the same at every call is left to a call.

A call on a short sequence costs what its Python costs. So a plan becomes straight code, as its stages are already
(elman/engines/codegen.py): no names, no tables, no choice of an engine. The plan of an Elman network is

    def plan(steps, batch, seed, first, a4, a5, a6, a7, a8):        # U, W, b, x, h
        rows = steps * batch
        if a4 is None: …
        v0 = Timeline(steps, batch, False)
        v1 = v0.pack(a7)
        v2, = before(a6, v1, a4, rows, None)
        v3 = new_empty((steps, batch, 64))
        v4, = loop(batch, (batch,) * steps, False, (a5, v2, a8), (v3,))
        del v2
        return (v3, v4)

For rows of different lengths it takes a Packing in the place of steps and batch; sequences go in and come out packed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch._C._functorch import peek_interpreter_stack

from elman import noise
from elman.circuit import graphs
from elman.circuit.form import ROWS, InPort, Kind
from elman.engines.base import PlanFunction, Runner, StageMaker
from elman.engines.python import PythonFunction, tuple_of
from elman.plan.form import TIMELINE, Loop, Plan, Stage, delays_of, ends_of, final_of
from elman.segments.timeline import RaggedTimeline, Timeline
from elman.trace.outside import outside


def emit(
    plan: Plan, make: StageMaker, runner: Runner | None, ends: Sequence[str], single: bool = False,
    ragged: bool = False, drawn: bool = False,
) -> PlanFunction:  # fmt: skip
    """The function `(steps, batch, seed, first, *inputs) -> outputs` of a plan whose stages `make` makes and whose loop
    `runner` runs.

    first: the number of the first step, of which the noise depends.
    inputs: in the order of the circuit's, noise left out: constants, sequences, starting states, or None for zeros.
    ends: for each output, "own" for a tensor of its own rather than a view, "copy" for one in memory of its own.
    single: for one step alone, whose sequences go in and come out as `[B, …]`. Its noise comes straight from torch's
        default generator, since nobody draws it again.
    ragged: for rows of different lengths: `(packing, seed, *inputs) -> outputs`, whose sequences go in and come out as
        packed rows `[N, …]`.
    drawn: the numbers of noise are inputs too, behind all others.
    """
    return _Emitter(plan, make, runner, ends, single, ragged, drawn).function()


class _Zeros(dict[Any, torch.Tensor]):
    """Size -> zeros like a port's, which are one number in memory and never written to. Those of recent sizes are
    kept, since a call on a short sequence feels what it takes to make them."""

    def __init__(self, port: InPort) -> None:
        super().__init__()
        with outside():
            self.zero = torch.zeros(port.shape, dtype=port.dtype, device=port.device)

    def __missing__(self, size: Any) -> torch.Tensor:
        zeros = self.zero.expand(size)
        if peek_interpreter_stack() is None and type(zeros) is torch.Tensor:
            if len(self) > 64:
                self.clear()
            self[size] = zeros
        return zeros


class _Emitter:
    """Writes the function of a plan.

    A sequence may be there in two forms, `[T, B, …]` as users have it and packed `[N, …]` as stages want it: `whole`
    and `rows` hold the names of both. Everything else has one form and stands in both.
    """

    def __init__(
        self, plan: Plan, make: StageMaker, runner: Runner | None, ends: Sequence[str], single: bool, ragged: bool,
        drawn: bool,
    ):  # fmt: skip
        self.plan, self.make, self.runner, self.ends = plan, make, runner, ends
        self.single, self.ragged, self.drawn = single, ragged, drawn
        self.as_rows = single or ragged  # whether users' sequences are packed rows
        self.whole: dict[str, str] = {}
        self.rows: dict[str, str] = {}
        self.fresh: set[str] = set()  # tensors that were made here and are no views
        self.views: dict[str, str] = {}  # expression -> view
        self.viewed: dict[str, str] = {}  # view -> the tensor that it looks at
        self.python = PythonFunction("plan", f"plan of {plan.circuit.name}")
        self.timeline = ""  # its name, as soon as somebody needs it

    def function(self) -> PlanFunction:
        plan = self.plan
        if self.ragged:
            self.python.argument("packing")
            self.python.line("steps, batch, rows = packing.steps, packing.batch, packing.rows")
        else:
            self.python.line(f"rows = {self.python.argument('steps')} * {self.python.argument('batch')}")
        self.python.argument("seed")
        if not self.ragged:
            self.python.argument("first")
        # Noise that is given comes behind all others.
        for port in sorted(plan.circuit.inputs, key=lambda port: self.drawn and port.kind is Kind.NOISE):
            self._input(port)
        self._stage(plan.once, "batch")
        self._stage(plan.before, "rows")
        if plan.loop is not None:
            self._loop(plan.loop)
            self._drop_before()
        self._stage(self._withdelays_of(plan.after), "rows")
        ready = [self._output(out.kind, plan.outputs[out.name]) for out in plan.circuit.outputs]
        memory = Counter(self.viewed.get(name, name) for name in ready)
        results = [
            f"{name}.clone()" if end == "copy"
            else f"{name}.detach()" if end == "own" and not (name in self.fresh and memory[name] == 1)
            else name
            for name, end in zip(ready, self.ends, strict=True)
        ]  # fmt: skip
        return self.python.returning(results)

    # --- names ----------------------------------------------------------------------------------------------------

    def _timeline(self) -> str:
        if not self.timeline:
            kind, sizes = (RaggedTimeline, "packing") if self.ragged else (Timeline, "steps, batch")
            self.timeline = self.python.let(
                f"{self.python.constant(kind)}({sizes}, {self.plan.circuit.reverse})"
            )
        return self.timeline

    def _in_rows(self, name: str) -> str:
        if name not in self.rows:
            self.rows[name] = self._view(f"{self._timeline()}.pack", self.whole[name])
        return self.rows[name]

    def _in_time(self, name: str) -> str:
        if name not in self.whole:
            self.whole[name] = self._view(f"{self._timeline()}.unpack", self.rows[name])
        return self.whole[name]

    def _view(self, way: str, of: str) -> str:
        """A tensor in the other form; a value may be known under several names."""
        call = f"{way}({of})"
        if call not in self.views:
            self.views[call] = self.python.let(call)
            self.viewed[self.views[call]] = of
        return self.views[call]

    def _empty(self, size: str, like: torch.Tensor) -> str:
        with outside():
            new = torch.empty(0, dtype=like.dtype, device=like.device).new_empty
        return f"{self.python.constant(new)}({size})"  # a shorter way than saying dtype and device

    # --- what goes in ---------------------------------------------------------------------------------------------

    def _input(self, port: InPort) -> None:
        """A port's argument; or noise, which is drawn here."""
        timed = port.kind in (Kind.SEQUENCE, Kind.NOISE)
        if port.kind is Kind.NOISE and not self.drawn:
            name = self.python.let(self._drawn(port))
        else:
            name = self.python.argument()
            if port.kind is not Kind.NOISE:
                self.python.line(f"if {name} is None: {name} = {self._zeros(port, timed)}")
        if timed and self.single and not port.rows:
            name = self.python.let(f"{name}.unsqueeze(0)")
        if timed and port.rows and not self.as_rows:
            self.whole[port.name] = name
        else:
            self.whole[port.name] = self.rows[port.name] = name

    def _drawn(self, port: InPort) -> str:
        constant = self.python.constant
        draw, first, stop = noise.draw, "first", "first + steps, batch"
        if self.ragged:
            first, stop = "packing.first_step", "packing.first_step + steps, batch"
            if port.rows:
                draw, first, stop = noise.draw_rows, "packing.first_row", "packing.first_row + rows"
        drawn = f"{constant(draw)}({constant(port, 'port')}, {port.number}, seed, {first}, {stop})"
        return f"{drawn}[0]" if self.single else drawn

    def _zeros(self, port: InPort, timed: bool) -> str:
        """Zeros for what is left out: a starting state, or the cotangents of an output that nobody used."""
        leading = "batch" if port.rows else ""
        if timed and self.ragged:
            leading = "rows" if port.rows else "steps"
        elif timed and not self.single:
            leading = f"steps, {leading}".rstrip(", ")
        zeros = self.python.constant(_Zeros(port), "zeros")
        return f"{zeros}[{tuple_of(leading, *port.shape)}]"

    # --- stages and loop ------------------------------------------------------------------------------------------

    def _stage(self, stage: Stage, rows: str) -> None:
        results = graphs.results_of(stage.graph)
        computed = [name for name, node in results.items() if node.op != "placeholder"]
        if computed:
            read = [name for name in stage.inputs() if _is_read(stage.graph, name)]
            line = self._timeline() if _is_read(stage.graph, TIMELINE) else "None"
            given = [*map(self._in_rows, read), rows, line]
            run = self.python.constant(self.make(stage.graph, (*read, ROWS, TIMELINE), computed), stage.name)
            names = self.python.unpack(f"{run}({', '.join(given)})", len(computed))
            self.rows.update(zip(computed, names, strict=True))
        for name, node in results.items():
            if node.op == "placeholder":  # handed on
                for form in (self.whole, self.rows):
                    if str(node.target) in form:
                        form[name] = form[str(node.target)]

    def _loop(self, loop: Loop) -> None:
        results = graphs.results_of(loop.graph)
        delays = {} if self.ragged else delays_of(self.plan.after, loop.emits)
        out = []
        for name in loop.emits:
            node, stepped = results[name], name in loop.stepped
            like = node.meta["val"]
            shape = [int(size) for size in (like.shape if stepped else like.shape[1:])]
            if stepped:
                memory = self.python.let(self._empty(tuple_of("steps", *shape), like))
                self.whole[name] = self.rows[name] = memory
                self.fresh.add(memory)
            elif name in delays:
                # The sequence of a state gets room for the starting value beside it: its delay is then a view.
                room = self._empty(tuple_of("steps + 1", "batch", *shape), like)
                trail = f"{self._timeline()}.trail({room}, {self.rows[delays[name]]})"
                memory, delay = self.python.unpack(trail, 2)
                self.whole[name], self.whole[_delay(name)] = memory, delay
            else:
                size = tuple_of("rows" if self.as_rows else "steps, batch", *shape)
                memory = self.python.let(self._empty(size, like))
                (self.rows if self.as_rows else self.whole)[name] = memory
                self.fresh.add(memory)
            out.append(memory)
        values = [self.rows[name] for name in loop.constants]
        values += [self.rows.get(name) or f"{self.whole[name]}.contiguous()" for name in loop.sequences]
        values += [self.rows[state.name] for state in loop.states]
        ended = [final_of(state.name) for state in loop.states] + [*loop.sums]
        run = self.python.constant(self.runner, "loop")
        sizes = "packing.sizes" if self.ragged else "(batch,) * steps"
        call = f"{run}(batch, {sizes}, {self.plan.circuit.reverse}, {tuple_of(*values)}, {tuple_of(*out)})"
        names = self.python.unpack(call, len(ended))
        self.fresh.update(names)
        self.whole.update(zip(ended, names, strict=True))
        self.rows.update(zip(ended, names, strict=True))

    def _drop_before(self) -> None:
        """What was made before the loop, and nobody needs after it: it may be larger than all the rest."""
        later = {*self.plan.after.inputs(), *self.plan.outputs.values()}
        needed = {form[name] for form in (self.whole, self.rows) for name in later if name in form}
        results = graphs.results_of(self.plan.before.graph)
        dead = {self.rows[name] for name, node in results.items() if node.op != "placeholder"} - needed
        if dead:
            self.python.drop(sorted(dead))

    def _withdelays_of(self, after: Stage) -> Stage:
        """The stage after the loop, with the delays that are views already coming in."""
        loop = self.plan.loop
        delays = {} if loop is None or self.ragged else delays_of(after, loop.emits)
        stops = {}
        for node in after.graph.nodes:
            ends = ends_of(node)
            if ends is not None and delays.get(ends[0]) == ends[1]:
                stops[node] = _delay(ends[0])
        return Stage(after.name, graphs.extract(after.graph, graphs.results_of(after.graph), stops))

    # --- what comes out -------------------------------------------------------------------------------------------

    def _output(self, kind: Kind, value: str) -> str:
        if kind is not Kind.SEQUENCE:
            return self.rows[value]
        if self.plan.loop and value in self.plan.loop.stepped:
            return f"{self.rows[value]}[0]" if self.single else self.rows[value]
        return self._in_rows(value) if self.as_rows else self._in_time(value)


def _is_read(graph: fx.Graph, name: str) -> bool:
    """Whether an operation reads the placeholder called `name`."""
    return any(
        user.op != "output"
        for node in graph.nodes
        if node.op == "placeholder" and node.target == name
        for user in node.users
    )


def _delay(name: str) -> str:
    return f"{name} delayed"
