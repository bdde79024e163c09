"""A plan written down as one Python function of tensors: nothing that is the same at every call is left to a call.

A call on a short sequence costs what its Python costs. So a plan becomes straight code, as its stages are already
(elman/engines/codegen.py): no names, no tables, no choice of an engine. The plan of an Elman network is

    def made(steps, batch, seed, a0, a1, a2, a3, a4):        # U, W, b, x, h
        if a3 is None: …
        rows = steps * batch
        line = Timeline(steps, batch, False)
        v5 = line.pack(a3)
        v6, = before(a2, v5, a0, rows, line)
        v7 = empty((steps, batch, 64))
        v8, = loop(batch, (batch,) * steps, False, (a1, v6, a4,), (v7,))
        return (v7, v8,)

For rows of different lengths it takes a Packing in the place of steps and batch; sequences go in and come out packed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from elman import noise
from elman.circuit import graphs
from elman.circuit.form import ROWS, InPort, Kind
from elman.engines.base import Runner, StageMaker
from elman.layout import Ragged, Timeline
from elman.plan.form import TIMELINE, Loop, Plan, Stage, final_of, shift
from elman.trace.outside import outside

Made = Callable[..., tuple[torch.Tensor, ...]]


def written(
    plan: Plan, make: StageMaker, runner: Runner | None, ends: Sequence[str], single: bool = False, ragged: bool = False
) -> Made:  # fmt: skip
    """The function `(steps, batch, seed, *inputs) -> outputs` of a plan whose stages `make` makes and whose loop
    `runner` runs.

    inputs: in the order of the circuit's, noise left out: constants, sequences, starting states, or None for zeros.
    ends: for each output, "own" for a tensor of its own rather than a view, "copy" for one in memory of its own.
    single: for one step alone, whose sequences go in and come out as `[B, …]`. Its noise comes straight from torch's
        default generator, since nobody draws it again.
    ragged: for rows of different lengths: `(packing, seed, *inputs) -> outputs`, whose sequences go in and come out as
        packed rows `[N, …]`.
    """
    return _Writer(plan, make, runner, ends, single, ragged).function()


class _Writer:
    """Writes the function of a plan.

    A sequence may be there in two forms, `[T, B, …]` as users have it and packed `[N, …]` as stages want it: `whole`
    and `rows` hold the names of both. Everything else has one form and stands in both.
    """

    def __init__(
        self, plan: Plan, make: StageMaker, runner: Runner | None, ends: Sequence[str], single: bool, ragged: bool
    ):  # fmt: skip
        self.plan, self.make, self.runner, self.ends = plan, make, runner, ends
        self.single, self.ragged = single, ragged
        self.as_rows = single or ragged  # whether users' sequences are packed rows
        self.whole: dict[str, str] = {}
        self.rows: dict[str, str] = {}
        self.fresh: set[str] = set()  # tensors that were made here and are no views
        self.views: dict[str, str] = {}  # expression -> view
        self.viewed: dict[str, str] = {}  # view -> the tensor that it looks at
        self.lines: list[str] = []
        self.space: dict[str, Any] = {"Timeline": Timeline, "Ragged": Ragged}
        self.count = 0

    def function(self) -> Made:
        plan = self.plan
        arguments = [self._input(port) for port in plan.circuit.inputs]
        self._stage(plan.once, "batch")
        self._stage(plan.before, "rows")
        if plan.loop is not None:
            self._loop(plan.loop)
        self._stage(self._with_delays(plan.after), "rows")
        ready = [self._output(out.kind, plan.outputs[out.name]) for out in plan.circuit.outputs]
        memory = Counter(self.viewed.get(name, name) for name in ready)
        results = [
            f"{name}.clone()" if end == "copy"
            else f"{name}.detach()" if end == "own" and not (name in self.fresh and memory[name] == 1)
            else name
            for name, end in zip(ready, self.ends, strict=True)
        ]  # fmt: skip
        if self.ragged:
            taken = ["packing"]
            first = ["steps, batch, rows = packing.steps, packing.batch, packing.rows"]
            line = f"line = Ragged(packing, {plan.circuit.reverse})"
        else:
            taken = ["steps", "batch"]
            first = ["rows = steps * batch"]
            line = f"line = Timeline(steps, batch, {plan.circuit.reverse})"
        taken = ", ".join([*taken, "seed", *(name for name in arguments if name)])
        if any("line" in line for line in self.lines):
            first.append(line)
        body = [*first, *self.lines, f"return ({''.join(f'{name}, ' for name in results)})"]
        text = "\n    ".join([f"def made({taken}):", *body])
        exec(compile(f"{text}\n", f"<elman plan of {plan.circuit.name}>", "exec"), self.space)
        return self.space["made"]  # type: ignore[no-any-return]

    # --- names ----------------------------------------------------------------------------------------------------

    def _new(self) -> str:
        self.count += 1
        return f"v{self.count - 1}"

    def _let(self, expression: str) -> str:
        name = self._new()
        self.lines.append(f"{name} = {expression}")
        return name

    def _constant(self, value: Any) -> str:
        key = f"k{len(self.space)}"
        self.space[key] = value
        return key

    def _in_rows(self, name: str) -> str:
        if name not in self.rows:
            self.rows[name] = self._view("line.pack", self.whole[name])
        return self.rows[name]

    def _in_time(self, name: str) -> str:
        if name not in self.whole:
            self.whole[name] = self._view("line.unpack", self.rows[name])
        return self.whole[name]

    def _view(self, way: str, of: str) -> str:
        """A tensor in the other form; a value may be known under several names."""
        call = f"{way}({of})"
        if call not in self.views:
            self.views[call] = self._let(call)
            self.viewed[self.views[call]] = of
        return self.views[call]

    def _empty(self, size: str, like: torch.Tensor) -> str:
        with outside():
            new = torch.empty(0, dtype=like.dtype, device=like.device).new_empty
        return f"{self._constant(new)}({size})"  # a shorter way than saying dtype and device

    # --- what goes in ---------------------------------------------------------------------------------------------

    def _input(self, port: InPort) -> str:
        """The argument of a port, or "" for noise, which is drawn here."""
        timed = port.kind in (Kind.SEQUENCE, Kind.NOISE)
        if port.kind is Kind.NOISE:
            argument, name = "", self._let(self._drawn(port))
        else:
            argument = name = f"a{self.count}"
            self.count += 1
            self.lines.append(f"if {name} is None: {name} = {self._zeros(port, timed)}")
        if timed and self.single:
            name = name if port.rows else self._let(f"{name}.unsqueeze(0)")
        if timed and port.rows and not self.as_rows:
            self.whole[port.name] = name
        else:
            self.whole[port.name] = self.rows[port.name] = name
        return argument

    def _drawn(self, port: InPort) -> str:
        if self.ragged and port.rows:
            return f"{self._constant(noise.draw_rows)}({self._constant(port)}, {noise.number(port)}, seed, 0, rows)"
        if not self.single:
            said = f"{self._constant(port)}, {noise.number(port)}, seed, 0, steps, batch"
            return f"{self._constant(noise.draw)}({said})"
        draw = self._constant(torch.rand if port.draw == "uniform" else torch.randn)
        where = f"dtype={self._constant(port.dtype)}, device={self._constant(port.device)}"
        return f"{draw}({_tuple('batch' if port.rows else '', *port.shape)}, {where})"

    def _zeros(self, port: InPort, timed: bool) -> str:
        """Zeros for what is left out: a starting state, or the cotangents of an output that nobody used."""
        leading = "batch" if port.rows else ""
        if timed and self.ragged:
            leading = "rows" if port.rows else "steps"
        elif timed and not self.single:
            leading = f"steps, {leading}".rstrip(", ")
        with outside():
            zero = torch.zeros(port.shape, dtype=port.dtype, device=port.device)
        return f"{self._constant(zero)}.expand({_tuple(leading, *port.shape)})"

    # --- stages and loop ------------------------------------------------------------------------------------------

    def _stage(self, stage: Stage, rows: str) -> None:
        results = graphs.results_of(stage.graph)
        made = [name for name, node in results.items() if node.op != "placeholder"]
        if made:
            read = [name for name in stage.inputs() if _is_read(stage.graph, name)]
            given = [*map(self._in_rows, read), rows, "line" if _is_read(stage.graph, TIMELINE) else "None"]
            run = self._constant(self.make(stage.graph, (*read, ROWS, TIMELINE), made))
            names = [self._new() for _ in made]
            self.lines.append(f"{''.join(f'{name}, ' for name in names)} = {run}({', '.join(given)})")
            self.rows.update(zip(made, names, strict=True))
        for name, node in results.items():
            if node.op == "placeholder":  # handed on
                for form in (self.whole, self.rows):
                    if str(node.target) in form:
                        form[name] = form[str(node.target)]

    def _loop(self, loop: Loop) -> None:
        results = graphs.results_of(loop.graph)
        delays = {} if self.ragged else _delays(self.plan.after, loop.emits)
        out = []
        for name in loop.emits:
            node, stepped = results[name], name in loop.stepped
            like = node.meta["val"]
            shape = [int(size) for size in (like.shape if stepped else like.shape[1:])]
            if stepped:
                made = self._let(self._empty(_tuple("steps", *shape), like))
                self.whole[name] = self.rows[name] = made
                self.fresh.add(made)
            elif name in delays:
                # The sequence of a state gets room for the starting value beside it: its delay is then a view.
                room = self._empty(_tuple("steps + 1", "batch", *shape), like)
                made, delay = self._new(), self._new()
                self.lines.append(f"{made}, {delay} = line.trail({room}, {self.rows[delays[name]]})")
                self.whole[name], self.whole[_delay(name)] = made, delay
            else:
                size = _tuple("rows" if self.as_rows else "steps, batch", *shape)
                made = self._let(self._empty(size, like))
                (self.rows if self.as_rows else self.whole)[name] = made
                self.fresh.add(made)
            out.append(made)
        values = [self.rows[name] for name in loop.constants]
        values += [self.rows.get(name) or f"{self.whole[name]}.contiguous()" for name in loop.sequences]
        values += [self.rows[state.name] for state in loop.states]
        ended = [final_of(state.name) for state in loop.states] + [*loop.sums]
        names = [self._new() for _ in ended]
        run = self._constant(self.runner)
        sizes = "packing.sizes" if self.ragged else "(batch,) * steps"
        call = f"{run}(batch, {sizes}, {self.plan.circuit.reverse}, {_tuple(*values)}, {_tuple(*out)})"
        self.lines.append(f"{''.join(f'{name}, ' for name in names)} = {call}" if names else call)
        self.fresh.update(names)
        self.whole.update(zip(ended, names, strict=True))
        self.rows.update(zip(ended, names, strict=True))

    def _with_delays(self, after: Stage) -> Stage:
        """The stage after the loop, with the delays that are views already coming in."""
        loop = self.plan.loop
        delays = {} if loop is None or self.ragged else _delays(after, loop.emits)
        stops = {}
        for node in after.graph.nodes:
            ends = _ends(node)
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


def _tuple(*parts: Any) -> str:
    said = [str(part) for part in parts if part != ""]
    return f"({', '.join(said)}{',' if len(said) == 1 else ''})"


def _is_read(graph: fx.Graph, name: str) -> bool:
    """Whether an operation reads the placeholder called `name`."""
    return any(
        user.op != "output"
        for node in graph.nodes
        if node.op == "placeholder" and node.target == name
        for user in node.users
    )


def _delays(after: Stage, emits: Sequence[str]) -> dict[str, str]:
    """Sequence that the loop emits -> the starting value of its delay, for those that the stage after it delays."""
    found: dict[str, str] = {}
    for node in after.graph.nodes:
        ends = _ends(node)
        if ends is not None and ends[0] in emits:
            # Two states may be fed by one value and start from different ones: there is room for one of them.
            found.setdefault(*ends)
    return found


def _ends(node: fx.Node) -> tuple[str, str] | None:
    """For a shift: what it delays and what that starts from, if both come in from outside of the stage."""
    if node.target is not shift:
        return None
    ends = [str(arg.target) for arg in node.args[:2] if isinstance(arg, fx.Node) and arg.op == "placeholder"]
    return (ends[0], ends[1]) if len(ends) == 2 else None


def _delay(name: str) -> str:
    return f"{name} delayed"
