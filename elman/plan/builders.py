"""The graphs of stages while they grow: each brings in what it needs, and has others make what is theirs to make."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import fx

from elman.circuit import graphs
from elman.circuit.form import ROWS, Circuit, InPort, Kind, Wire
from elman.circuit.graphs import aten, insert
from elman.circuit.rows import Rows, carries, rows_of
from elman.plan.form import TIMELINE, Loop, LoopState, Stage, shift, spread
from elman.plan.regions import Regions


@dataclass(frozen=True, eq=False)
class CutStep:
    """The step that is cut apart: a circuit, its graph (rewritten), and where the nodes of that belong."""

    circuit: Circuit
    graph: fx.Graph
    where: Regions

    @functools.cached_property
    def inputs(self) -> dict[str, fx.Node]:
        return {str(node.target): node for node in self.graph.nodes if node.op == "placeholder"}

    @functools.cached_property
    def results(self) -> dict[str, fx.Node]:
        return graphs.results_of(self.graph)

    def wire(self, wire: Wire) -> fx.Node:
        return self.inputs[wire.name] if wire.is_input else self.results[wire.name]


class Builders:
    """The builders of the four stages of one step; every value has the name of its node."""

    def __init__(self, step: CutStep) -> None:
        self.step = step
        self.once, self.before = StageBuilder(self, "once"), StageBuilder(self, "before")
        self.loop, self.after = LoopBuilder(self), StageBuilder(self, "after")

    def of(self, node: fx.Node) -> GraphBuilder:
        """The builder of the stage that a node belongs to."""
        return {"once": self.once, "before": self.before, "loop": self.loop, "after": self.after}[
            self.step.where.stage(node)
        ]


class GraphBuilder(ABC):
    """The graph of one stage while it grows. `get` brings a value in: copied if it belongs here, else as an input."""

    def __init__(self, builders: Builders) -> None:
        self.builders, self.step = builders, builders.step
        self.graph = fx.Graph()
        self.outputs: dict[str, fx.Node] = {}
        self._values: dict[fx.Node, fx.Node] = {}
        self._places: dict[str, fx.Node] = {}

    # --- bringing values in ---------------------------------------------------------------------------------------

    def get(self, node: fx.Node) -> fx.Node:
        """The node of this stage's graph that holds a value of the step."""
        pending = [node]
        while pending:
            current = pending[-1]
            if current in self._values:
                pending.pop()
                continue
            if not self._belongs(current) or current.op == "placeholder":
                self._values[current] = self._bring(current)
                continue
            missing = [source for source in current.all_input_nodes if source not in self._values]
            if missing:
                pending.extend(missing)
                continue
            copy = self.graph.node_copy(current, lambda n: self._values[n])
            copy.meta = dict(current.meta)
            self._values[current] = copy
        return self._values[node]

    def _bring(self, node: fx.Node) -> fx.Node:
        """A value that another stage makes, or that goes into the circuit."""
        if node.op == "placeholder":
            name = str(node.target)
            if name == ROWS:
                return self.place(ROWS, node.meta["val"])
            port = self.step.circuit.input(name)
            if port.kind is Kind.STATE:
                return self._state(node, port)
            if port.kind is Kind.CONSTANT:
                return self._constant(node, name)
            return self._sequence(node, name)
        if node not in self.step.where.time:
            return self._constant(node, self.builders.once.make(node))
        return self._from(self.builders.of(node), node)

    @abstractmethod
    def _belongs(self, node: fx.Node) -> bool:
        """Whether a value is computed here."""

    @abstractmethod
    def _state(self, node: fx.Node, port: InPort) -> fx.Node:
        """A state port."""

    @abstractmethod
    def _constant(self, node: fx.Node, name: str) -> fx.Node:
        """A value that goes in, or is made, once, under its name between stages."""

    @abstractmethod
    def _sequence(self, node: fx.Node, name: str) -> fx.Node:
        """A sequence or noise port."""

    @abstractmethod
    def _from(self, maker: GraphBuilder, node: fx.Node) -> fx.Node:
        """A value that varies in time and another stage makes."""

    def _rows_as_in(self, node: fx.Node, maker: GraphBuilder, name: str) -> fx.Node:
        """What a stage gives out with rows first, as the step's own operations expect it."""
        placed = self.place(name, maker.value_of(name))
        return placed if rows_of(node.meta["val"]) is None else graphs.rows_back(self.graph, placed, node)

    def place(self, name: str, val: Any) -> fx.Node:
        """The placeholder of a value that comes from outside this stage."""
        if name not in self._places:
            first = next(iter(self.graph.nodes), None)
            with self.graph.inserting_before(first):
                self._places[name] = graphs.add_placeholder(self.graph, name, val)
        return self._places[name]

    # --- giving values out ----------------------------------------------------------------------------------------

    @abstractmethod
    def make(self, node: fx.Node) -> str:
        """Make sure this stage gives out a value; return its name."""

    def make_rows_first(self, node: fx.Node) -> str:
        """The same with rows first, [rows, …]: so values cross the border of the loop."""
        where = rows_of(node.meta["val"])
        assert where is not None
        if where == Rows(0, 1):
            return self.make(node)
        value = self.get(node)
        name = f"{node.name} rows first"
        if name not in self.outputs:
            self.outputs[name] = graphs.rows_first(self.graph, value)
        return name

    def value_of(self, name: str) -> Any:
        return self.outputs[name].meta["val"]

    def finish(self) -> fx.Graph:
        self.graph.output(dict(self.outputs))
        self.graph.lint()
        return self.graph


def _name(node: fx.Node) -> str:
    """The name of a value between stages; a state's sequence is not its starting value, which has the port's name."""
    return node.name if node.op != "placeholder" else f"{node.target} before"


class StageBuilder(GraphBuilder):
    """A stage beside the loop, where time lies in the rows."""

    def __init__(self, builders: Builders, name: str) -> None:
        super().__init__(builders)
        self.name = name

    def _belongs(self, node: fx.Node) -> bool:
        return node in self.step.where.shape or self.step.where.stage(node) == self.name

    def _state(self, node: fx.Node, port: InPort) -> fx.Node:
        """A shift of the sequence that feeds it."""
        mine = self.step.where.stage(node)
        if mine not in (self.name, "loop"):
            return self.place(self.builders.of(node).make(node), node.meta["val"])
        start = self.start_of(port)
        feeding = None if port.next is None else self.step.wire(port.next)
        if feeding is None:
            zeros = insert(self.graph, aten.zeros_like.default, self._rows_like(node))
            return self.call(shift, zeros, start, self.timeline())
        if feeding is node:
            return self.spread(node, port.name)  # handed on unchanged: the starting value at every step
        if self._comes_round(node):
            return self._from(self.builders.loop, node)
        value = self.get(feeding) if feeding in self.step.where.time else self.spread(feeding)
        return self.call(shift, value, start, self.timeline())

    def _comes_round(self, state: fx.Node) -> bool:
        """Whether states only change places, and this is one of them: each is fed by the next, the last one by it."""
        seen: set[fx.Node] = set()
        node = state
        while node.op == "placeholder" and node not in seen:
            seen.add(node)
            port = self.step.circuit.input(str(node.target))
            if port.kind is not Kind.STATE or port.next is None:
                return False
            node = self.step.wire(port.next)
        return node is state

    def _rows_like(self, node: fx.Node) -> fx.Node:
        """A value of N rows with the shape of a state, for the state that is fed by zeros."""
        value = node.meta["val"]
        shape = [self.place(ROWS, value.shape[0]), *map(int, value.shape[1:])]
        empty = self.graph.call_function(
            aten.empty.memory_format, (shape,), {"dtype": value.dtype, "device": value.device}
        )
        empty.meta["val"] = value
        return empty

    def start_of(self, port: InPort) -> fx.Node:
        """The starting value of a state, [B, …]."""
        return self.place(port.name, self.step.inputs[port.name].meta["val"])

    def _constant(self, node: fx.Node, name: str) -> fx.Node:
        if self.name != "once" and carries(node.meta["val"]):
            return self.spread(node, name)
        return self.place(name, node.meta["val"])

    def _sequence(self, node: fx.Node, name: str) -> fx.Node:
        return self.place(name, node.meta["val"])

    def _from(self, maker: GraphBuilder, node: fx.Node) -> fx.Node:
        value = node.meta["val"]
        if not isinstance(maker, LoopBuilder):
            return self.place(maker.make(node), value)
        if carries(value):
            return self._rows_as_in(node, maker, maker.make_rows_first(node))
        return self.place(maker.sum(node) if node in self.step.where.summed else maker.make(node), value)

    def spread(self, node: fx.Node, name: str | None = None) -> fx.Node:
        """A constant per row, at each of the row's steps. Batchless constants are given rows first."""
        where = rows_of(node.meta["val"])
        placed = self.place(name or self._once_name(node), node.meta["val"])
        return self.call(spread, placed, where.dim if where is not None else -1, self.timeline(), like=node)

    def from_once(self, node: fx.Node) -> fx.Node:
        return self.place(self._once_name(node), node.meta["val"])

    def _once_name(self, node: fx.Node) -> str:
        return str(node.target) if node.op == "placeholder" else self.builders.once.make(node)

    def call(self, operation: Callable[..., Any], *args: Any, like: fx.Node | None = None) -> fx.Node:
        """One of the operations on time; its description is that of its first operand (or of `like`)."""
        node = self.graph.call_function(operation, args)
        node.meta["val"] = (like or args[0]).meta["val"]
        return node

    def timeline(self) -> fx.Node:
        return self.place(TIMELINE, None)

    def make(self, node: fx.Node) -> str:
        return self.keep(_name(node), self.get(node))

    def keep(self, name: str, node: fx.Node) -> str:
        self.outputs[name] = node
        return name

    def stage(self) -> Stage:
        return Stage(self.name, self.finish())


class LoopBuilder(GraphBuilder):
    """One step of the loop. What is neither the next value of a state nor a sum is kept at every step."""

    def __init__(self, builders: Builders) -> None:
        super().__init__(builders)
        self._constants: set[str] = set()
        self._sequences: set[str] = set()
        self._sums: set[str] = set()
        self._states: list[LoopState] = []

    def _belongs(self, node: fx.Node) -> bool:
        if node in self.step.where.shape:
            return not carries(node.meta["val"])
        return node in self.step.where.loop

    def _state(self, node: fx.Node, port: InPort) -> fx.Node:
        """A delay, or the sequence of one that lies on no cycle."""
        if node in self.step.where.loop:
            return self.place(port.name, node.meta["val"])
        return self._from(self.builders.before, node)

    def _constant(self, node: fx.Node, name: str) -> fx.Node:
        value = node.meta["val"]
        if not carries(value) or rows_of(value) == Rows(0, 1):
            self._constants.add(name)
            return self.place(name, value)
        name = self.builders.once.make_rows_first(node)
        self._constants.add(name)
        return self._rows_as_in(node, self.builders.once, name)

    def _sequence(self, node: fx.Node, name: str) -> fx.Node:
        self._sequences.add(name)
        return self.place(name, node.meta["val"])

    def _from(self, maker: GraphBuilder, node: fx.Node) -> fx.Node:
        name = maker.make_rows_first(node)
        self._sequences.add(name)
        return self._rows_as_in(node, maker, name)

    def make(self, node: fx.Node) -> str:
        """Keep a value at every step."""
        name = _name(node)
        self.outputs[name] = self.get(node)
        return name

    def sum(self, node: fx.Node) -> str:
        """Add a value up over the steps."""
        name = f"{node.name} summed"
        self.outputs[name] = self.get(node)
        self._sums.add(name)
        return name

    def state(self, port: InPort) -> None:
        """Carry a state from step to step."""
        feeding = None
        if port.next is not None:
            feeding = f"{port.name} next"
            self.outputs[feeding] = self.get(self.step.wire(port.next))
        else:  # nobody else may say what it is like
            self.place(port.name, self.step.wire(Wire.input(port.name)).meta["val"])
        self._states.append(LoopState(port.name, feeding))

    def loop(self) -> Loop:
        emits = self.outputs.keys() - self._sums - {state.next for state in self._states}
        values = {name: node.meta["val"] for name, node in (*self._places.items(), *self.outputs.items())}

        def placed(names: set[str]) -> tuple[str, ...]:
            return tuple(name for name in self._places if name in names)

        return Loop(
            self.finish(), placed(self._constants), placed(self._sequences), tuple(self._states),
            tuple(sorted(emits)), tuple(sorted(self._sums)),
            rowed=frozenset(name for name in self._constants if carries(values[name])),
            stepped=frozenset(name for name in {*self._sequences, *emits} if not carries(values[name])),
        )  # fmt: skip
