"""A graph as one Python function: no interpreter, no dictionary of values, each value dropped after its last use.

On small tensors a step costs what its calls cost, so three things are done about them: operations are called on a short
way; results are written where they are wanted, or over an operand that nobody needs any more; slices that share out
a value are one `chunk`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import fx
from torch.fx.immutable_collections import immutable_list

from elman.engines.lookups import telling
from elman.engines.python import PythonFunction, tuple_of

aten = torch.ops.aten


def _exponential(matrices: torch.Tensor) -> torch.Tensor:
    """PyTorch's takes no batch that does not lie in one piece, which one that was turned or expanded does not."""
    return aten.linalg_matrix_exp.default._op(matrices.contiguous())


# The same kernels through shorter ways than torch.ops. All but the first four take `out=`.
_VIEWS: dict[Any, Callable[..., Any]] = {
    aten.reshape.default: torch.reshape,
    aten.permute.default: torch.permute,
    aten.relu.default: torch.relu,
    aten.linalg_matrix_exp.default: _exponential,
}
_WRITERS: dict[Any, Callable[..., Any]] = {
    aten.mm.default: torch.mm,
    aten.bmm.default: torch.bmm,
    aten.addmm.default: torch.addmm,
    aten.add.Tensor: torch.add,
    aten.sub.Tensor: torch.sub,
    aten.mul.Tensor: torch.mul,
    aten.div.Tensor: torch.div,
    aten.neg.default: torch.neg,
    aten.tanh.default: torch.tanh,
    aten.sigmoid.default: torch.sigmoid,
    aten.exp.default: torch.exp,
    aten.cat.default: torch.cat,
    aten.where.self: torch.where,
    aten.maximum.default: torch.maximum,
    aten.rsqrt.default: torch.rsqrt,
}
# Operation -> (the one that writes into memory that it is given, its word for that memory).
_INTO: dict[Any, tuple[Callable[..., Any], str]] = {
    **{target: (short, "out") for target, short in _WRITERS.items()},
    aten.tanh_backward.default: (aten.tanh_backward.grad_input._op, "grad_input"),
    aten.sigmoid_backward.default: (aten.sigmoid_backward.grad_input._op, "grad_input"),
    aten.threshold_backward.default: (aten.threshold_backward.grad_input._op, "grad_input"),
    aten.relu.default: (aten.relu.out._op, "out"),
}
_SHORT = _VIEWS | _WRITERS


def function(
    graph: fx.Graph, arguments: Sequence[str], results: Sequence[str], body: Callable[..., Body] | None = None
) -> Callable[..., tuple[Any, ...]]:
    """Compile a graph to `f(*arguments) -> tuple of results`, both by name; placeholders not listed must be unused.

    body: what writes the lines, called as `Body` is.
    """
    python = PythonFunction("stage", "stage")
    wanted = [outputs_of(graph)[name] for name in results]
    lines = (body or Body)(graph, python, {name: python.argument() for name in arguments}, set(wanted))
    lines.write()
    return python.returning(lines.names[node] for node in wanted)


def repeated(
    graph: fx.Graph,
    constants: Sequence[str],
    sequences: Sequence[str],
    states: Mapping[str, str | None],
    emits: Sequence[str],
    sums: Sequence[str],
    rows: str,
    masked: bool = False,
) -> Callable[..., tuple[Any, ...]]:
    """Compile the graph of a step to a function that runs many steps of it:

        f(steps, rows, *constants, *sequences, *emits, *states, *sums) -> (*states, *sums)

    A sequence is a list with one tensor for each step, in the order in which the steps run; an emit is a list of the
    memory to write each step's value into. states: placeholder -> the result that feeds it, None for zero. Sums
    start from what is passed, None for nothing. A state that is returned may lie in an emit's memory.
    masked: behind the emits comes a list for each state, that says at each step which of its rows change.
    """
    python = PythonFunction("loop", "loop")
    outputs = outputs_of(graph)
    python.argument("steps")
    names = {rows: python.argument("rows")} | {name: python.argument() for name in constants}
    names |= {name: f"x{i}" for i, name in enumerate(sequences)}
    names |= {name: f"h{i}" for i, name in enumerate(states)}
    items = [f"x{i}" for i in range(len(sequences))] + [f"y{i}" for i in range(len(emits))]
    items += [f"m{i}" for i in range(len(states)) if masked]
    lists = [python.argument(item.upper()) for item in items]
    feeding = [outputs[name] if name is not None else None for name in states.values()]
    added = [outputs[name] for name in sums]
    ends = [f"h{i}" for i in range(len(feeding))] + [f"z{i}" for i in range(len(added))]
    for end in ends:
        python.argument(end)
    slots: dict[fx.Node, list[str]] = {}
    for i, name in enumerate(emits):
        slots.setdefault(outputs[name], []).append(f"y{i}")
    each = (
        f"{', '.join(items)} in zip({', '.join(lists)})"
        if len(items) > 1
        else f"{items[0]} in {lists[0]}"
        if items
        else "_ in range(steps)"
    )
    with python.block(f"for {each}:"):
        wanted = {node for node in feeding if node is not None} | set(added) | set(slots)
        if masked:
            wanted |= {node for node in graph.nodes if node.op == "placeholder" and node.target in states}
        body = Body(graph, python, names, wanted, slots)
        body.write()
        nexts = [
            body.names[node] if node is not None else f"{python.constant(torch.zeros_like)}(h{i})"
            for i, node in enumerate(feeding)
        ]
        if masked:
            where = python.constant(torch.where)
            nexts = [f"{where}(m{i}, {value}, h{i})" for i, value in enumerate(nexts)]
        sums_so_far = [(f"z{i}", body.names[node]) for i, node in enumerate(added)]
        nexts += [f"{value} if {total} is None else {total} + {value}" for total, value in sums_so_far]
        if ends:
            python.line(f"{', '.join(ends)} = {', '.join(nexts)}")
    return python.returning(ends)


class Body:
    """The lines of Python that compute a graph's values, one after the other.

    python: the function that they are lines of. inputs: placeholder -> its name there. wanted: values that outlive the
    body. slots: value -> memory that it has to be written into.
    """

    def __init__(
        self,
        graph: fx.Graph,
        python: PythonFunction,
        inputs: Mapping[str, str],
        wanted: set[fx.Node],
        slots: Mapping[fx.Node, Sequence[str]] = MappingProxyType({}),
    ):
        self.graph, self.python, self.inputs, self.slots = graph, python, inputs, slots
        self.dying = _last_uses(self.order(), wanted)
        self.places = {node: names[0] for node, names in slots.items() if node.target in _INTO}
        self.chunks = _chunks(graph)
        self.names: dict[fx.Node, str] = {}

    def write(self) -> None:
        # What only leads to a value that has its place is computed in that place.
        for node in reversed(self.graph.nodes):
            if node in self.places and (operand := self._to_overwrite(node)) is not None:
                self.places[operand] = self.places[node]
        for node in self.order():
            if node.op == "placeholder":
                self.names[node] = self.inputs.get(str(node.target), "None")
            elif node.op == "call_function":
                self.call(node)
            for slot in self.slots.get(node, ()):
                if self.places.get(node) != slot:
                    self.python.line(f"{slot}.copy_({self.names[node]})")
            dead = [self.names[value] for value in self.dying.get(node, ()) if value.op != "placeholder"]
            if dead:
                self.drop(dead)

    def order(self) -> Sequence[fx.Node]:
        """The nodes in the order in which they are computed."""
        return list(self.graph.nodes)

    def drop(self, names: Sequence[str]) -> None:
        """Values that nobody needs any more."""
        self.python.drop(names)

    def call(self, node: fx.Node) -> None:
        if node in self.names:
            return
        if node in self.chunks:
            parts = self.chunks[node]
            call = f"{self.python.constant(torch.chunk)}({self.literal(node.args[0])}, {len(parts)}, 1)"
            self.names.update(zip(parts, self.python.unpack(call, len(parts)), strict=True))
            return
        if node.target is operator.getitem:
            expression = f"{self.literal(node.args[0])}[{self.literal(node.args[1])}]"
        elif node.target is aten.slice.Tensor and node.args[1] == 1 and len(node.args) == 4:
            expression = f"{self.literal(node.args[0])}[:, {node.args[2]}:{node.args[3]}]"
        else:
            arguments = [self.literal(arg) for arg in node.args]
            arguments += [f"{key}={self.literal(value)}" for key, value in node.kwargs.items()]
            place = self.places.get(node)
            if place is None and (operand := self._to_overwrite(node)) is not None:
                place = self.names[operand]
            if place is None:
                short = node.target._op if isinstance(node.target, torch._ops.OpOverload) else node.target
                target = telling(node.target, _SHORT.get(node.target, short))
            else:
                target, word = _INTO[node.target]
                arguments.append(f"{word}={place}")
            name = self.python.constant(target, node.target.__name__.partition(".")[0])  # type: ignore[union-attr]
            expression = f"{name}({', '.join(arguments)})"
        self.names[node] = self.python.let(expression)

    def _to_overwrite(self, node: fx.Node) -> fx.Node | None:
        """An operand in whose memory the result may be put: of the same form, its own, needed by nobody after this."""
        if node.target not in _INTO or torch.Tag.pointwise not in node.target.tags:  # type: ignore[union-attr]
            return None
        for value in self.dying.get(node, ()):
            alone = value.target in _INTO and all(user.target in _INTO for user in value.users)
            if alone and value is not node and value not in self.places and form_of(value) == form_of(node):
                return value
        return None

    def literal(self, value: Any) -> str:
        if isinstance(value, fx.Node):
            return self.names[value]
        if isinstance(value, (list, immutable_list)):
            return f"[{', '.join(map(self.literal, value))}]"
        if isinstance(value, tuple):
            return tuple_of(*map(self.literal, value))
        if value is None or isinstance(value, (bool, int)) or (type(value) is float and math.isfinite(value)):
            return repr(value)
        return self.python.constant(value)


def outputs_of(graph: fx.Graph) -> dict[str, fx.Node]:
    return next(node for node in graph.nodes if node.op == "output").args[0]  # type: ignore[return-value]


def form_of(node: fx.Node) -> tuple[Any, ...]:
    """Shape and dtype; the batch is a symbol."""
    value = node.meta["val"]
    return (tuple(size if isinstance(size, int) else str(size) for size in value.shape), value.dtype)


def _chunks(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """The first slice of a value -> all of them in order, where they share out its columns evenly."""
    shared_out = {}
    for value in graph.nodes:
        slices = [
            u for u in value.users if u.target is aten.slice.Tensor and u.args[1] == 1 and len(u.args) == 4
        ]
        if len(slices) < 2:
            continue
        width, rest = divmod(value.meta["val"].shape[1], len(slices))
        parts = {user.args[2:4]: user for user in slices}
        ranges = [(k * width, (k + 1) * width) for k in range(len(slices))]
        if not rest and set(parts) == set(ranges):
            shared_out[slices[0]] = [parts[columns] for columns in ranges]
    first_in_order = {node: i for i, node in enumerate(graph.nodes)}
    return {min(parts, key=first_in_order.__getitem__): parts for parts in shared_out.values()}


def _last_uses(nodes: Sequence[fx.Node], wanted: set[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    """Node -> values that nothing reads after it, in this order."""
    last: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        if node.op != "output":
            for source in node.all_input_nodes:
                last[source] = node
            last.setdefault(node, node)
    dying: dict[fx.Node, list[fx.Node]] = {}
    for value, user in last.items():
        if value not in wanted:
            dying.setdefault(user, []).append(value)
    return dying
