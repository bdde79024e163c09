"""What a circuit is: one time step as a graph of ATen operations, its ports, and its delays.

A value in the graph is known by the name of its node. A *wire* is a result of the step or what goes in at one of its
ports, by name; ports and delays point at wires, never at positions. What a port is to another one (the gradient of an
input, the last value of a state) is a field of it and never a part of its name.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import fx

from elman.circuit import rows as row_rules
from elman.circuit.signature import Signature
from elman.errors import CircuitError, InputError

ROWS = "rows"  # the placeholder that holds the number of rows a stage runs on; the only symbolic size


class Kind(enum.Enum):
    """What a port is in time. The adjoint swaps CONSTANT and SUM, SEQUENCE and SEQUENCE, STATE and STATE."""

    CONSTANT = "constant"
    SEQUENCE = "sequence"
    STATE = "state"
    NOISE = "noise"
    SUM = "sum"


IN_KINDS = (Kind.CONSTANT, Kind.SEQUENCE, Kind.STATE, Kind.NOISE)
OUT_KINDS = (Kind.SUM, Kind.SEQUENCE, Kind.STATE)


@dataclass(frozen=True)
class Wire:
    """A value of the step: one of its results, or what goes in at a port. These are two name spaces."""

    name: str
    is_input: bool

    @classmethod
    def result(cls, name: str) -> Wire:
        return cls(name, False)

    @classmethod
    def input(cls, name: str) -> Wire:
        return cls(name, True)


@dataclass(frozen=True)
class InPort:
    """One tensor that goes into every step.

    name: the placeholder in the step's graph (and the wire).
    kind: one of CONSTANT, SEQUENCE, STATE, NOISE.
    shape: the shape at one step without the batch dimension.
    rows: whether the first dimension at one step is the batch.
    path: the user's word for it, such as `cell.U.weight`, `x['left']`, `state[1]`.
    next: for a STATE, the wire whose value at step t is this port's value at step t + 1;
        None means that it is zero after the first step.
    draw: for NOISE, the distribution, "uniform" in [0, 1) or "normal".
    number: for NOISE, which draw of the cell's step it is; its adjoints, which may lack some, draw the same numbers.
    frozen: no gradient is ever asked for (a buffer).
    cotangent_of: in an adjoint, the output port of the circuit dL/d(which) comes in here.
    kept: in the backward part of a pair, the node whose value comes in here instead of being computed again.
    teaches: the output port that this is the teacher of.
    tangent_of: in a tangent, the input port of the circuit whose direction comes in here.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    rows: bool
    path: str
    next: Wire | None = None
    draw: str | None = None
    number: int = 0
    frozen: bool = False
    cotangent_of: str | None = None
    kept: str | None = None
    teaches: str | None = None
    tangent_of: str | None = None

    @property
    def smooth(self) -> bool:
        """Whether it holds real or complex numbers, which can change a little."""
        return self.kind is not Kind.NOISE and (self.dtype.is_floating_point or self.dtype.is_complex)

    @property
    def differentiable(self) -> bool:
        """Whether a gradient can flow to this port at all."""
        return self.smooth and not self.frozen


@dataclass(frozen=True)
class OutPort:
    """One tensor that comes out: the wire's sum over time, its sequence, or its value after the last step.

    state: the state port that it tells of: a STATE is its last value (where a row has no step, its starting value), a
        SEQUENCE its values before each step.
    gradient_of: in an adjoint, the input port of the circuit dL/d(which) comes out here.
    kept: in the forward part of a pair, the node whose value is kept (a residual) for the backward part.
    tangent_of: in a tangent, the output port of the circuit whose direction comes out here.
    """

    name: str
    kind: Kind
    wire: Wire
    path: str
    state: str | None = None
    gradient_of: str | None = None
    kept: str | None = None
    tangent_of: str | None = None


@dataclass(frozen=True)
class Joint:
    """A step together with its own backward, in one graph.

    results: result name -> node, the step itself.
    cotangents: result name -> placeholder of dL/d(result); results that carry no gradient are absent.
    gradients: input name -> the graph's result that is dL/d(input), or None where no gradient flows.
    flowing: result name -> the inputs to which the step's own autograd leads back from it.
    noise, captured: ports of the graph that the step's signature does not know: what it drew, and tensors that it
        uses and that nobody passed.
    """

    graph: fx.Graph
    results: dict[str, str]
    cotangents: dict[str, str]
    gradients: dict[str, str | None]
    flowing: dict[str, frozenset[str]]
    noise: tuple[InPort, ...] = ()
    captured: tuple[tuple[InPort, torch.Tensor], ...] = ()


StepFunction = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]


class StepRecord(Protocol):
    """What a circuit's graph does not know, since it was recorded from it.

    step: the same step as a function of real tensors under its own autograd; what higher derivatives and the
        self-check run. It may ignore noise ports (it draws for itself).
    joint: the step with its own backward.
    dual: whether the step computes with dual numbers, of which PyTorch has only one level.
    """

    @property
    def step(self) -> StepFunction: ...
    @property
    def joint(self) -> Joint: ...
    @property
    def dual(self) -> bool: ...


@dataclass(frozen=True, eq=False)
class Circuit:
    """A step with its cycles closed.

    graph: one time step; placeholders are the input ports and `rows`, the output is a dict of results.
    reverse: whether time runs from the last step to the first.
    signature: how the cell that was traced is called, and where its constants are kept.
    record: what the graph was recorded from; None for a circuit that is not differentiated again.
    """

    name: str
    graph: fx.Graph
    inputs: tuple[InPort, ...]
    outputs: tuple[OutPort, ...]
    reverse: bool
    signature: Signature | None = None
    record: StepRecord | None = None

    def recorded(self) -> StepRecord:
        """Its record; InputError if it has none."""
        if self.record is None:
            raise InputError(
                what="a circuit that was cut for training has no derivative of its own", where=self.name,
                mend="take that of the whole circuit",
            )  # fmt: skip
        return self.record

    def input(self, name: str) -> InPort:
        return next(port for port in self.inputs if port.name == name)

    def inputs_of(self, *kinds: Kind) -> tuple[InPort, ...]:
        return tuple(port for port in self.inputs if port.kind in kinds)

    def outputs_of(self, *kinds: Kind) -> tuple[OutPort, ...]:
        return tuple(port for port in self.outputs if port.kind in kinds)

    def results(self) -> dict[str, fx.Node]:
        """Result name -> node."""
        return results_of(self.graph)

    def wire(self, wire: Wire) -> fx.Node:
        """The node whose value a wire carries; CircuitError if there is none."""
        node = placeholder(self.graph, wire.name) if wire.is_input else self.results().get(wire.name)
        if node is None:
            raise CircuitError(what=f"there is no wire '{wire.name}'", where=self.name)
        return node

    def state_of(self, out: OutPort) -> InPort | None:
        """The state that an output port tells of, if any."""
        return None if out.state is None else self.input(out.state)

    def delays(self) -> Iterator[tuple[InPort, fx.Node]]:
        """Every delay: the state port and the node that feeds it one step later (None-fed states are left out)."""
        for port in self.inputs_of(Kind.STATE):
            if port.next is not None:
                yield port, self.wire(port.next)

    def check(self) -> Circuit:
        """Return the circuit itself, or raise CircuitError naming the node or port that breaks a rule."""
        check_graph(self.graph, self.name)
        names = [port.name for port in (*self.inputs, *self.outputs)]
        for name in names:
            if names.count(name) > 1:
                raise CircuitError(what=f"port '{name}' is named twice", where=self.name)
        wires = {Wire.result(name) for name in self.results()} | {
            Wire.input(port.name) for port in self.inputs
        }
        placeholders = {str(node.target) for node in self.graph.nodes if node.op == "placeholder"}
        for port in self.inputs:
            where = f"{self.name}, input port '{port.name}'"
            if port.kind not in IN_KINDS:
                raise CircuitError(what=f"{port.kind.value} cannot go in", where=where)
            if port.name not in placeholders:
                raise CircuitError(what="the port has no placeholder in the step", where=where)
            if port.next is not None and (port.kind is not Kind.STATE or port.next not in wires):
                raise CircuitError(
                    what=f"its delay comes from '{port.next.name}', which is no wire", where=where
                )
            if (port.draw is not None) != (port.kind is Kind.NOISE):
                raise CircuitError(what="a distribution belongs to noise and to nothing else", where=where)
            if port.teaches is not None and port.teaches not in {out.name for out in self.outputs}:
                raise CircuitError(what=f"it teaches '{port.teaches}', which is no output", where=where)
            if port.next is not None:
                self._check_delay(port, where)
        for name in placeholders - {port.name for port in self.inputs} - {ROWS}:
            raise CircuitError(what=f"placeholder '{name}' has no port", where=self.name)
        for out in self.outputs:
            where = f"{self.name}, output port '{out.name}'"
            if out.kind not in OUT_KINDS:
                raise CircuitError(what=f"{out.kind.value} cannot come out", where=where)
            if out.wire not in wires:
                raise CircuitError(what=f"there is no wire '{out.wire.name}'", where=where)
            if out.state is not None and out.state not in {port.name for port in self.inputs_of(Kind.STATE)}:
                raise CircuitError(what=f"it tells of '{out.state}', which is no state", where=where)
        return self

    def _check_delay(self, port: InPort, where: str) -> None:
        assert port.next is not None
        value = self.wire(port.next).meta["val"]
        got = (row_rules.feature_shape(value, port.rows), value.dtype)
        if got != (port.shape, port.dtype):
            raise CircuitError(
                what="a delay must keep shape and dtype",
                where=where,
                got=f"{list(got[0])} {got[1]}",
                expected=f"{list(port.shape)} {port.dtype}",
            )

    def __str__(self) -> str:
        def shape(port: InPort) -> str:
            sizes = [*(["B"] if port.rows else []), *map(str, port.shape)]
            return f"[{', '.join(sizes)}]"

        lines = [f"circuit {self.name}" + (", time runs backward" if self.reverse else "")]

        def delay(port: InPort) -> str:
            if port.kind is not Kind.STATE:
                return ""
            if port.next is None:
                return " <- delay of zero"
            name, value = port.next.name, word(self.wire(port.next))
            return f" <- delay of {name}" + (f" ({value})" if value != name else "")

        for port in self.inputs:
            lines.append(f"  in   {port.kind.value:9}{port.name} {shape(port)}{delay(port)}")
        for node in self.graph.nodes:
            if node.op in ("call_function", "get_attr") and not is_transposition(node):
                lines.append(f"       {node.name} = {describe(node)}")
        for out in self.outputs:
            lines.append(f"  out  {out.kind.value:9}{out.name} = {word(self.wire(out.wire))}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<circuit {self.name}: {len(self.inputs)} ports in, {len(self.outputs)} out>"


def results_of(graph: fx.Graph) -> dict[str, fx.Node]:
    """Result name -> node of a step's graph."""
    out = next(node for node in reversed(graph.nodes) if node.op == "output")
    return dict(out.args[0])  # type: ignore[arg-type]


def placeholder(graph: fx.Graph, name: str) -> fx.Node:
    """The placeholder called `name`; CircuitError if there is none."""
    for node in graph.nodes:
        if node.op == "placeholder" and node.target == name:
            return node
    raise CircuitError(what=f"there is no wire '{name}'", where="the step's graph")


def op_name(node: fx.Node) -> str:
    """A short name of what a node computes: `mm`, `tanh`, `getitem`."""
    return target_name(node.target)


def target_name(target: Any) -> str:
    """The same for what a node calls."""
    if isinstance(target, torch._ops.OpOverload):
        return str(target.overloadpacket.__name__)
    return str(getattr(target, "__name__", target))


def is_transposition(node: fx.Node) -> bool:
    """Whether a node is the transpose of a matrix: printed as `Wᵀ` where it is used, without a line of its own."""
    return node.target is torch.ops.aten.permute.default and list(node.args[1]) == [1, 0]  # type: ignore[arg-type]


def word(value: Any, names: Mapping[str, str] | None = None) -> str:
    """A value for printing: `Wᵀ`, `mm_1`, `[1, 0]`. names: what placeholders are called if not by their own."""
    if isinstance(value, fx.Node):
        if value.op == "placeholder":
            return (names or {}).get(str(value.target), str(value.target))
        return f"{word(value.args[0], names)}ᵀ" if is_transposition(value) else value.name
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(word(part, names) for part in value)}]"
    return str(value)


def describe(node: fx.Node, names: Mapping[str, str] | None = None) -> str:
    """`mm(h, Wᵀ)`: the operation and its operands, for printing."""
    where = {"device", "layout", "pin_memory", "memory_format"}
    words = [word(arg, names) for arg in node.args]
    words += [f"{key}={word(arg, names)}" for key, arg in node.kwargs.items() if key not in where]
    return f"{op_name(node)}({', '.join(words)})"


def check_graph(graph: fx.Graph, where: str) -> None:
    """Every node is a functional ATen operation, a read of a tuple, or arithmetic on sizes; every value is known."""
    graph.lint()
    for node in graph.nodes:
        at = f"{where}, node '{node.name}'"
        if node.op == "output":
            if not isinstance(node.args[0], dict):
                raise CircuitError(what="the output of a step must be a dict of results", where=at)
            continue
        if "val" not in node.meta:
            raise CircuitError(what="the node carries no value description", where=at)
        if node.op == "call_function":
            target = node.target
            if isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable:
                raise CircuitError(what=f"{target} writes into its operand", where=at)
        elif node.op not in ("placeholder", "get_attr"):
            raise CircuitError(what=f"a node of kind {node.op} has no place in a circuit", where=at)
