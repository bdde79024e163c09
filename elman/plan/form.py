"""What a plan is: a circuit's step cut into four stages, each a graph of its own.

    once    what depends on constants alone, on B rows where a context is among them
    before  what feeds the loop and does not depend on it, on the rows of all time steps at once (N rows)
    loop    what lies on a cycle: the only part that is sequential
    after   what no cycle depends on, on N rows; sums over time come out of single products

`once` is what compilers call loop-invariant code motion; `before` and `after` go further, since time becomes rows
there. Values travel between stages under their names. Rows of all steps are *packed*: `[N, …]`, step after step, in the
order of PyTorch's PackedSequence. Five operations exist beside ATen, all about time; they take the call's timeline:

    shift(v, h0)   v delayed by one step, h0 at the first        spread(v)  a row's constant at every step of the row
    total(v)       the sum over a row's steps                    last(v)    the value at a row's last step
    times(v)       a constant added up over the steps
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from elman.circuit import graphs
from elman.circuit.form import ROWS, Circuit, check_graph, describe, is_transposition, word
from elman.errors import CircuitError

TIMELINE = "timeline"  # the placeholder through which a stage reaches the lengths of the call


def shift(value: torch.Tensor, initial: torch.Tensor | None, timeline: Any) -> torch.Tensor:
    """Packed rows one step later: the initial value at each row's first step, zeros if there is none."""
    return timeline.shift(value, initial)


def spread(value: torch.Tensor, dim: int, timeline: Any) -> torch.Tensor:
    """A value per sequence, repeated at each of its steps: B rows in dimension `dim` become N."""
    return timeline.spread(value, dim)


def total(value: torch.Tensor, timeline: Any) -> torch.Tensor:
    """Packed rows summed over the steps of each sequence: [N, …] -> [B, …]."""
    return timeline.total(value)


def last(value: torch.Tensor, initial: torch.Tensor | None, timeline: Any) -> torch.Tensor:
    """The packed row of each sequence's last step (the initial value where there is none): [N, …] -> [B, …]."""
    return timeline.last(value, initial)


def times(value: torch.Tensor, rows: bool, timeline: Any) -> torch.Tensor:
    """A value that is the same at every step, summed over the steps."""
    return timeline.times(value, rows)


TIME_OPERATIONS = (shift, spread, total, last, times)


@dataclass(frozen=True, eq=False)
class Stage:
    """A graph that runs once per call, on `rows` rows: its placeholders are value names, its output a dict of them."""

    name: str
    graph: fx.Graph

    def nodes(self) -> list[fx.Node]:
        """The operations, in order, without reads of tuples and arithmetic on sizes."""
        return list(operations(self.graph))

    def inputs(self) -> tuple[str, ...]:
        return tuple(
            str(n.target)
            for n in self.graph.nodes
            if n.op == "placeholder" and n.target not in (ROWS, TIMELINE)
        )

    def outputs(self) -> tuple[str, ...]:
        return tuple(graphs.results_of(self.graph))


@dataclass(frozen=True)
class LoopState:
    """A delay in the loop: placeholder `name`, starting value of the same name, fed by result `next` (None: zero)."""

    name: str
    next: str | None


def final_of(state: str) -> str:
    """The name, between stages, of a state's value after its last step."""
    return f"{state} final"


@dataclass(frozen=True, eq=False)
class Loop:
    """One step of the sequential part: everything an engine has to know.

    graph: placeholders are constants, sequences, states and `rows`; the output is a dict of results.
    constants: the same at every step; `rowed` ones are [B, …] and a step sees the rows that are still running.
    sequences: packed rows [N, …], a step sees its own; `stepped` ones have no rows: [T, …].
    emits: results kept at each step, packed [N, …], or [T, …] if in `stepped`.
    sums: results added up over the steps.
    """

    graph: fx.Graph
    constants: tuple[str, ...]
    sequences: tuple[str, ...]
    states: tuple[LoopState, ...]
    emits: tuple[str, ...]
    sums: tuple[str, ...]
    rowed: frozenset[str]
    stepped: frozenset[str]

    def nodes(self) -> list[fx.Node]:
        return list(operations(self.graph))

    def makes(self) -> tuple[str, ...]:
        """The names of what comes out of it."""
        return (*self.emits, *self.sums, *(final_of(state.name) for state in self.states))

    def check(self, where: str) -> None:
        check_graph(self.graph, f"{where}, loop")
        results = graphs.results_of(self.graph)
        inputs = {*self.constants, *self.sequences, *(state.name for state in self.states), ROWS}
        for node in self.graph.nodes:
            if node.op == "placeholder" and node.target not in inputs:
                raise CircuitError(
                    what=f"placeholder '{node.target}' is no input of the loop", where=f"{where}, loop"
                )
        for name in (*self.emits, *self.sums, *(s.next for s in self.states if s.next is not None)):
            if name not in results:
                raise CircuitError(what=f"'{name}' is no result of the loop", where=f"{where}, loop")


@dataclass(frozen=True, eq=False)
class Plan:
    """A circuit cut into once, before, loop and after. `outputs`: output port -> the value that it returns.

    reasons: node of the loop -> why it could not be hoisted, for nodes that lie on no cycle.
    """

    circuit: Circuit
    once: Stage
    before: Stage
    loop: Loop | None
    after: Stage
    outputs: dict[str, str]
    reasons: dict[str, str]

    def stages(self) -> tuple[Stage, Stage, Stage]:
        return self.once, self.before, self.after

    def __str__(self) -> str:
        """The operations of every stage, in the order in which they run."""
        lines = [f"plan of {self.circuit.name}" + (", time runs backward" if self.circuit.reverse else "")]
        names: dict[str, str] = {}

        def block(label: str, entries: list[str]) -> None:
            lines.extend(f"  {'' if i else label:7} {line}" for i, line in enumerate(entries or ["nothing"]))

        for label, stage in (
            ("once", self.once),
            ("before", self.before),
            ("loop", self.loop),
            ("after", self.after),
        ):
            if stage is None:
                continue
            results = graphs.results_of(stage.graph)
            names |= {name: word(node, names) for name, node in results.items()}
            entries = [
                f"{node.name} = {describe(node, names).replace(f', {TIMELINE})', ')')}"
                for node in stage.graph.nodes
                if node.op == "call_function" and not is_transposition(node)
            ]
            if isinstance(stage, Loop):
                entries += [f"next {s.name} = {names[s.next] if s.next else 'zero'}" for s in stage.states]
                names |= {f"{name} summed": f"Σ {names[name]}" for name in stage.sums}
                names |= {final_of(s.name): f"{s.name} at the end of the loop" for s in stage.states}
            block(label, entries)
        block("out", [f"{name} = {names.get(value, value)}" for name, value in self.outputs.items()])
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<plan of {self.circuit.name}>"

    def names(self) -> set[str]:
        """Of all values that travel between stages, and of the circuit's inputs."""
        names = {port.name for port in self.circuit.inputs}
        for stage in self.stages():
            names.update(stage.outputs())
        return names if self.loop is None else names.union(self.loop.makes())

    def check(self) -> Plan:
        """Return itself, or raise CircuitError: every value is made once, before it is used, and nothing outside the
        loop is sequential."""
        where = f"plan of {self.circuit.name}"
        have = {port.name for port in self.circuit.inputs}
        for stage in (self.once, self.before, self.loop, self.after):
            if isinstance(stage, Stage):
                check_graph(stage.graph, f"{where}, {stage.name}")
                needs, makes = stage.inputs(), stage.outputs()
            elif stage is not None:
                stage.check(where)
                needs = (*stage.constants, *stage.sequences)
                makes = stage.makes()
            else:
                continue
            for name in needs:
                if name not in have:
                    place = stage.name if isinstance(stage, Stage) else "loop"
                    raise CircuitError(what=f"'{name}' is used before it is made", where=f"{where}, {place}")
            for name in makes:
                if name in have:
                    raise CircuitError(what=f"'{name}' is made twice", where=where)
            have.update(makes)
        for port, name in self.outputs.items():
            if name not in have:
                raise CircuitError(what=f"nobody makes '{name}' for output port '{port}'", where=where)
        return self


def operations(graph: fx.Graph) -> Iterator[fx.Node]:
    """The nodes that compute something."""
    for node in graph.nodes:
        if node.op == "call_function" and (
            isinstance(node.target, torch._ops.OpOverload) or node.target in TIME_OPERATIONS
        ):
            yield node


def delays_of(after: Stage, emits: Sequence[str]) -> dict[str, str]:
    """Sequence that the loop emits -> the starting value of its delay, for those that the stage after it delays."""
    delays: dict[str, str] = {}
    for node in after.graph.nodes:
        ends = ends_of(node)
        if ends is not None and ends[0] in emits:
            # Two states may be fed by one value and start from different ones: there is room for one of them.
            delays.setdefault(*ends)
    return delays


def ends_of(node: fx.Node) -> tuple[str, str] | None:
    """For a shift: what it delays and what that starts from, if both come in from outside of the stage."""
    if node.target is not shift:
        return None
    ends = [str(arg.target) for arg in node.args[:2] if isinstance(arg, fx.Node) and arg.op == "placeholder"]
    return (ends[0], ends[1]) if len(ends) == 2 else None
