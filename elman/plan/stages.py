"""Circuit -> Plan: cut the step where its regions meet, and fold time into the rows outside the loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx

from elman.circuit import graphs
from elman.circuit.form import ROWS, Circuit, Kind, Wire
from elman.circuit.graphs import aten, insert
from elman.circuit.rows import Rows, carries, rows_of
from elman.errors import expect
from elman.plan.form import (
    TIMELINE,
    Loop,
    LoopState,
    Plan,
    Stage,
    final_of,
    last,
    shift,
    spread,
    times,
    total,
)
from elman.plan.regions import Regions
from elman.plan.rewrite import rewritten


def plan(circuit: Circuit) -> Plan:
    """Split a circuit into what runs once, before, in and after its loop."""
    expect(
        circuit,
        Circuit,
        "a plan is made of a circuit",
        "plan(circuit)",
        "elman.trace(cell, x, state) gives one",
    )
    graph, where = rewritten(circuit)
    return _Cutter(circuit, graph, where).plan().check()


class _Cutter:
    """Builds the stages of one plan; every value has the name of its node."""

    def __init__(self, circuit: Circuit, graph: fx.Graph, where: Regions):
        self.circuit, self.where = circuit, where
        self.inputs = {str(n.target): n for n in graph.nodes if n.op == "placeholder"}
        self.results = graphs.results_of(graph)
        self.ports = {port.name: port for port in circuit.inputs}
        self.builders = {name: _Builder(self, name) for name in ("once", "before", "loop", "after")}
        self.made: dict[tuple[str, fx.Node], str] = {}  # what one stage makes for others

    def wire(self, wire: Wire) -> fx.Node:
        return self.inputs[wire.name] if wire.is_input else self.results[wire.name]

    def plan(self) -> Plan:
        loop_states = [
            (port, self.inputs[port.name])
            for port in self.circuit.inputs_of(Kind.STATE)
            if self.inputs[port.name] in self.where.loop
        ]
        loop = self.builders["loop"]
        states = []
        for port, _ in loop_states:
            if port.next is None:
                states.append(LoopState(port.name, None))
            else:
                feeding = self.wire(port.next)
                loop.outputs[f"{port.name} next"] = loop.get(feeding)
                states.append(LoopState(port.name, f"{port.name} next"))
        outputs = {port.name: self._output(port) for port in self.circuit.outputs}
        built = None
        if self.where.loop:
            built = loop.loop(tuple(states))
        once, before, after = (self.builders[name].stage() for name in ("once", "before", "after"))
        reasons = {node.name: why for node, why in self.where.reasons.items()}
        return Plan(self.circuit, once, before, built, after, outputs, reasons)

    def _output(self, port: Any) -> str:
        """The value of an output port: make it in the right stage and name it."""
        node, where = self.wire(port.wire), self.where
        stage = where.stage(node)
        after = self.builders["after"]
        if port.kind is Kind.STATE:
            state = self.circuit.state_of(port)
            if state is not None and state.next == port.wire and self.inputs[state.name] in where.loop:
                return final_of(state.name)
            start = after.start_of(state) if state is not None else None
            value = after.get(node) if stage != "once" or node in where.shape else after.spread(node)
            return after.keep(f"{port.name} out", after.call(last, value, start, after.timeline()))
        if port.kind is Kind.SEQUENCE:
            if stage == "once":
                value = after.get(node) if node in where.shape else after.spread(node)
                return after.keep(f"{port.name} out", value)
            if stage == "loop" and not carries(node.meta["val"]):
                return self.builders["loop"].emit(node)
            return after.keep(f"{port.name} out", after.get(node))
        if stage == "once":
            value = after.from_once(node)
            return after.keep(
                f"{port.name} out", after.call(times, value, carries(node.meta["val"]), after.timeline())
            )
        if carries(node.meta["val"]):
            return after.keep(f"{port.name} out", after.call(total, after.get(node), after.timeline()))
        if stage == "loop":
            return self.builders["loop"].sum(node)
        return after.keep(f"{port.name} out", after.get(node))


def _name(node: fx.Node) -> str:
    """The name of a value between stages; a state's sequence is not its starting value, which has the port's name."""
    return node.name if node.op != "placeholder" else f"{node.target} before"


class _Builder:
    """The graph of one stage while it grows. `get` brings a value in: copied if it belongs here, else as an input."""

    def __init__(self, cutter: _Cutter, name: str):
        self.cutter, self.name = cutter, name
        self.graph = fx.Graph()
        self.values: dict[fx.Node, fx.Node] = {}
        self.outputs: dict[str, fx.Node] = {}
        self.kinds: dict[str, set[str]] = {
            k: set() for k in ("constants", "sequences", "emits", "sums", "rowed", "stepped")
        }
        self.places: dict[str, fx.Node] = {}
        self.kept: dict[tuple[str, fx.Node], str] = {}

    # --- bringing values in ---------------------------------------------------------------------------------------

    def get(self, node: fx.Node) -> fx.Node:
        """The node of this stage's graph that holds a value of the step."""
        pending = [node]
        while pending:
            current = pending[-1]
            if current in self.values:
                pending.pop()
                continue
            if not self._belongs(current) or current.op == "placeholder":
                self.values[current] = self._bring(current)
                continue
            missing = [source for source in current.all_input_nodes if source not in self.values]
            if missing:
                pending.extend(missing)
                continue
            copy = self.graph.node_copy(current, lambda n: self.values[n])
            copy.meta = dict(current.meta)
            self.values[current] = copy
        return self.values[node]

    def _belongs(self, node: fx.Node) -> bool:
        if node in self.cutter.where.shape:
            return self.name != "loop" or not carries(node.meta["val"])
        return self.cutter.where.stage(node) == self.name

    def _bring(self, node: fx.Node) -> fx.Node:
        """A value that another stage makes, or that goes into the circuit."""
        where, ports = self.cutter.where, self.cutter.ports
        if node.op == "placeholder":
            name = str(node.target)
            if name == ROWS:
                return self.place(ROWS, node.meta["val"])
            port = ports[name]
            if port.kind is Kind.STATE:
                return self._state(node)
            if port.kind is Kind.CONSTANT:
                return self._constant(node, name)
            return self._sequence(node, name)
        if node not in where.time:
            if self.name == "once":
                raise AssertionError(node)
            return self._constant(node, self.cutter.builders["once"].make(node))
        maker = self.cutter.builders[where.stage(node)]
        if self.name == "loop" or maker.name == "loop":
            return self._canonical_from(maker, node)
        return self.place(maker.make(node), node.meta["val"])

    def _state(self, node: fx.Node) -> fx.Node:
        """A state port: a delay of the loop in the loop; elsewhere a shift of the sequence that feeds it."""
        name = str(node.target)
        if self.name == "loop" and node in self.cutter.where.loop:
            return self.place(name, node.meta["val"])
        if self.name == "loop":
            return self._canonical_from(self.cutter.builders["before"], node)
        mine = self.cutter.where.stage(node)
        if mine != self.name and mine != "loop":
            return self.place(self.cutter.builders[mine].make(node), node.meta["val"])
        port = self.cutter.ports[name]
        start = self.start_of(port)
        feeding = None if port.next is None else self.cutter.wire(port.next)
        if feeding is None:
            zeros = insert(self.graph, aten.zeros_like.default, self._rows_like(node))
            return self.call(shift, zeros, start, self.timeline())
        if feeding is node:
            return self.spread(node, name)  # handed on unchanged: the starting value at every step
        value = self.get(feeding) if feeding in self.cutter.where.time else self.spread(feeding)
        return self.call(shift, value, start, self.timeline())

    def _rows_like(self, node: fx.Node) -> fx.Node:
        """A value of N rows with the shape of a state, for the state that is fed by zeros."""
        size = self.place(ROWS, node.meta["val"].shape[0])
        shape = [size, *map(int, node.meta["val"].shape[1:])]
        made = self.graph.call_function(
            aten.empty.memory_format,
            (shape,),
            {"dtype": node.meta["val"].dtype, "device": node.meta["val"].device},
        )
        made.meta["val"] = node.meta["val"]
        return made

    def start_of(self, port: Any) -> fx.Node:
        """The starting value of a state, [B, …]."""
        return self.place(port.name, self.cutter.inputs[port.name].meta["val"])

    def _constant(self, node: fx.Node, name: str) -> fx.Node:
        if self.name == "loop":
            self.kinds["constants"].add(name)
            if carries(node.meta["val"]):
                return self._canonical_constant(node, name)
            return self.place(name, node.meta["val"])
        if self.name != "once" and carries(node.meta["val"]):
            return self.spread(node, name)
        return self.place(name, node.meta["val"])

    def _canonical_constant(self, node: fx.Node, name: str) -> fx.Node:
        if rows_of(node.meta["val"]) == Rows(0, 1):
            self.kinds["rowed"].add(name)
            return self.place(name, node.meta["val"])
        self.kinds["constants"].discard(name)
        made = self.cutter.builders["once"].make_canonical(node)
        self.kinds["constants"].add(made)
        self.kinds["rowed"].add(made)
        return self._restore(self.place(made, self.cutter.builders["once"].value_of(made)), node)

    def _sequence(self, node: fx.Node, name: str) -> fx.Node:
        if self.name == "loop":
            self.kinds["sequences"].add(name)
            if not carries(node.meta["val"]):
                self.kinds["stepped"].add(name)
        return self.place(name, node.meta["val"])

    def _canonical_from(self, maker: _Builder, node: fx.Node) -> fx.Node:
        """A value that crosses the border of the loop: rows first, whatever the step does with them."""
        value = node.meta["val"]
        if not carries(value):
            if maker.name != "loop":
                raise AssertionError(node)
            return self.place(
                maker.sum(node) if node in self.cutter.where.summed else maker.emit(node), value
            )
        name = maker.make_canonical(node)
        if self.name == "loop":
            self.kinds["sequences"].add(name)
        return self._restore(self.place(name, maker.value_of(name)), node)

    def _restore(self, placed: fx.Node, node: fx.Node) -> fx.Node:
        """From rows first back to the layout that the step's own operations expect."""
        return placed if rows_of(node.meta["val"]) is None else graphs.rows_back(self.graph, placed, node)

    def spread(self, node: fx.Node, name: str | None = None) -> fx.Node:
        """A constant per row, at each of the row's steps. Batchless constants are given rows first."""
        where = rows_of(node.meta["val"])
        placed = self.place(name or self._once_name(node), node.meta["val"])
        return self.call(spread, placed, where.dim if where is not None else -1, self.timeline(), like=node)

    def from_once(self, node: fx.Node) -> fx.Node:
        return self.place(self._once_name(node), node.meta["val"])

    def _once_name(self, node: fx.Node) -> str:
        if node.op == "placeholder":
            return str(node.target)
        return self.cutter.builders["once"].make(node)

    def call(self, operation: Callable[..., Any], *args: Any, like: fx.Node | None = None) -> fx.Node:
        """One of the operations on time; its description is that of its first operand (or of `like`)."""
        made = self.graph.call_function(operation, args)
        made.meta["val"] = (like or args[0]).meta["val"]
        return made

    def place(self, name: str, val: Any) -> fx.Node:
        """The placeholder of a value that comes from outside this stage."""
        if name not in self.places:
            first = next(iter(self.graph.nodes), None)
            with self.graph.inserting_before(first):
                self.places[name] = graphs.add_placeholder(self.graph, name, val)
        return self.places[name]

    def timeline(self) -> fx.Node:
        return self.place(TIMELINE, None)

    # --- giving values out ----------------------------------------------------------------------------------------

    def make(self, node: fx.Node) -> str:
        """Make sure this stage gives out a value; return its name."""
        if self.name == "loop":
            return self.emit(node)
        return self.keep(_name(node), self.get(node))

    def keep(self, name: str, node: fx.Node) -> str:
        self.outputs[name] = node
        return name

    def make_canonical(self, node: fx.Node) -> str:
        """The same with rows first: [rows, …]."""
        where = rows_of(node.meta["val"])
        assert where is not None
        if where == Rows(0, 1):
            return self.make(node)
        value = self.get(node)
        name = f"{node.name} rows first"
        if name not in self.outputs:
            self.outputs[name] = graphs.rows_first(self.graph, value)
            if self.name == "loop":
                self.kinds["emits"].add(name)
        return name

    def value_of(self, name: str) -> Any:
        return self.outputs[name].meta["val"]

    def emit(self, node: fx.Node) -> str:
        """Loop only: keep a value at every step."""
        name = _name(node)
        self.outputs[name] = self.get(node)
        self.kinds["emits"].add(name)
        if not carries(node.meta["val"]):
            self.kinds["stepped"].add(name)
        return name

    def sum(self, node: fx.Node) -> str:
        """Loop only: add a value up over the steps."""
        name = f"{node.name} summed"
        self.outputs[name] = self.get(node)
        self.kinds["sums"].add(name)
        return name

    # --- the finished stage ---------------------------------------------------------------------------------------

    def stage(self) -> Stage:
        self.graph.output(dict(self.outputs))
        self.graph.lint()
        return Stage(self.name, self.graph)

    def loop(self, states: tuple[LoopState, ...]) -> Loop:
        self.graph.output(dict(self.outputs))
        self.graph.lint()
        order = {name: i for i, name in enumerate(self.places)}

        def listed(kind: str) -> tuple[str, ...]:
            return tuple(sorted(self.kinds[kind], key=lambda name: order.get(name, 0)))

        return Loop(
            self.graph, listed("constants"), listed("sequences"), states, tuple(sorted(self.kinds["emits"])),
            tuple(sorted(self.kinds["sums"])), frozenset(self.kinds["rowed"]), frozenset(self.kinds["stepped"]),
        )  # fmt: skip
