"""Loop -> program: walk the graph of a step, give every value a place, write down what the interpreter runs.

    lower(loop, panel)  ->  Lowered      or raises Unsupported with the reason

In order: choose fused operations, lower node by node, bind results to the memory that they are wanted in, finish the
program (finishing.py).
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from elman.circuit import graphs
from elman.circuit.form import ROWS
from elman.circuit.rows import carries
from elman.circuit.verdict import ROWWISE, verdict
from elman.engines.native.builder import Builder, Op
from elman.engines.native.extension import compiled
from elman.engines.native.finishing import finish, root
from elman.engines.native.rules import RULES, ResultSpec
from elman.engines.native.values import (
    REAL,
    Buffer,
    Unsupported,
    View,
    contiguous,
    row_sizes,
    type_of,
)
from elman.plan.form import Loop

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Lowered:
    """A program as plain data. widths: elements in a row of every sequence and state, by name."""

    real: torch.dtype
    ops: list[Op]
    prepare: list[Op]
    buffers: list[Buffer]
    states: list[
        tuple[int, int, int]
    ]  # the emit that holds its next values or -1, width, bytes of an element
    scratch_bytes: int
    prepared_bytes: int
    work: int
    widest: int


def lower(loop: Loop, panel32: int, panel64: int) -> Lowered:
    """A loop as a program. Raises Unsupported."""
    return _Lowering(loop, panel32, panel64).lowered()


class _Lowering:
    def __init__(self, loop: Loop, panel32: int, panel64: int):
        self.loop = loop
        self.real = _real(loop)
        wide = self.real is torch.float64
        self.p = Builder(8 if wide else 4, panel64 if wide else panel32)
        self.values: dict[fx.Node, Any] = {}
        self.results = graphs.results_of(loop.graph)
        self.states: list[tuple[int, int, int]] = []

    def lowered(self) -> Lowered:
        if self.loop.sums:
            raise Unsupported("sums over rows inside the loop")
        if len(self.loop.states) > compiled.MOST_STATES:
            raise Unsupported(f"more than {compiled.MOST_STATES} states")
        self._inputs()
        fused = _fused(self.loop.graph)
        for node in self.loop.graph.nodes:
            if node.op == "call_function" and node not in fused.skipped:
                self.values[node] = fused.lower(self, node) or self._node(node)
        self._outputs()
        p = self.p
        scratch, prepared = finish(p)
        widest = max((op.k * op.size[3] for op in p.ops if op.code == "product"), default=0)
        used = {root(v) for op in (*p.ops, *p.prepare) for v in op.operands if v is not None}
        buffers = [buffer for buffer in p.buffers if buffer in used]
        if len(buffers) > compiled.MOST_BUFFERS:
            raise Unsupported(f"more than {compiled.MOST_BUFFERS} values")
        work = sum(2 * op.k * op.size[3] if op.code == "product" else 8 * op.count for op in p.ops)
        return Lowered(self.real, p.ops, p.prepare, buffers, self.states, scratch, prepared, work, widest)

    # --- what comes in ------------------------------------------------------------------------------------------------

    def _inputs(self) -> None:
        loop = self.loop
        places: dict[str, tuple[str, int]] = {}
        places |= {
            name: ("rowed" if name in loop.rowed else "constant", i) for i, name in enumerate(loop.constants)
        }
        places |= {
            name: ("stepped" if name in loop.stepped else "sequence", i)
            for i, name in enumerate(loop.sequences)
        }
        places |= {state.name: ("state", i) for i, state in enumerate(loop.states)}
        for node in loop.graph.nodes:
            if node.op != "placeholder" or node.target == ROWS or not node.users:
                continue
            kind, index = places[str(node.target)]
            value = node.meta["val"]
            sizes = row_sizes(value)
            width = contiguous(sizes)[0] * sizes[0] if sizes else 1
            buffer = self.p.buffer(kind, type_of(value), width, index)
            self.values[node] = View(buffer, 0, sizes, contiguous(sizes))

    # --- one operation ------------------------------------------------------------------------------------------------

    def _node(self, node: fx.Node) -> Any:
        if node.target is operator.getitem:
            return self.values[node.args[0]][node.args[1]]  # type: ignore[index]
        if not isinstance(node.target, torch._ops.OpOverload):
            return None  # arithmetic on sizes
        value = node.meta["val"]
        if not isinstance(value, (torch.Tensor, tuple, list)):
            return None
        rule = RULES.get(node.target)
        if rule is None:
            raise Unsupported(f"{str(node.target).removesuffix('.default')}")
        if verdict(node) != ROWWISE and any(_carries(arg) for arg in node.all_input_nodes):
            raise Unsupported(f"{node.target} adds up over rows")
        return rule(self.p, self.want(node), *[self._argument(a) for a in node.args], **{
            key: self._argument(a) for key, a in node.kwargs.items() if a is not None
        })  # fmt: skip

    def want(self, node: fx.Node) -> ResultSpec:
        value = node.meta["val"]
        results = [v for v in value if v is not None] if isinstance(value, (tuple, list)) else [value]
        return ResultSpec(row_sizes(results[0]), type_of(results[0]), tuple(row_sizes(v) for v in results))

    def _argument(self, arg: Any) -> Any:
        if isinstance(arg, fx.Node):
            return self.values.get(arg)
        if isinstance(arg, (list, tuple)):
            return [self._argument(a) for a in arg]
        return arg

    # --- what goes out ------------------------------------------------------------------------------------------------

    def _outputs(self) -> None:
        loop, p = self.loop, self.p
        emitted: dict[fx.Node, int] = {}
        for i, name in enumerate(loop.emits):
            if name in loop.stepped:
                raise Unsupported(f"'{name}' has no rows")
            node = self.results[name]
            self._bind(self._value(node), "emit", i)
            emitted.setdefault(node, i)
        for i, state in enumerate(loop.states):
            placeholder = next(
                (n for n in loop.graph.nodes if n.op == "placeholder" and n.target == state.name), None
            )
            feeding = None if state.next is None else self.results[state.next]
            like = (placeholder if placeholder is not None else feeding).meta["val"]  # type: ignore[union-attr]
            sizes, type = row_sizes(like), type_of(like)
            width = contiguous(sizes)[0] * sizes[0] if sizes else 1
            if feeding is not None and feeding in emitted:
                self.states.append((emitted[feeding], width, p.bytes_of(type)))
                continue
            self.states.append((-1, width, p.bytes_of(type)))
            value = p.number(0, type, sizes) if feeding is None else self._value(feeding)
            self._bind(value.expand(sizes) if feeding is None else value, "next", i)

    def _value(self, node: fx.Node) -> View:
        value = self.values.get(node)
        if not isinstance(value, View):
            raise Unsupported(f"'{node.name}' is no tensor of rows")
        return value

    def _bind(self, value: View, kind: str, index: int) -> None:
        """Have a value where it is wanted: made there, if it was made in scratch memory of its own; else copied."""
        buffer = value.buffer
        if value.whole and buffer.kind == "scratch" and buffer.inside is None:
            buffer.kind, buffer.index = kind, index
            return
        self.p.copy(value, into=self.p.new(value.type, value.sizes, kind))
        self.p.buffers[-1].index = index


def _real(loop: Loop) -> torch.dtype:
    dtypes = {
        value.dtype
        for node in loop.graph.nodes
        for value in _tensors(node.meta.get("val"))
        if value.dtype.is_floating_point
    }
    if len(dtypes) > 1:
        raise Unsupported(
            f"{' and '.join(sorted(str(d).removeprefix('torch.') for d in dtypes))} in one loop"
        )
    real = next(iter(dtypes), torch.float32)
    if real not in (torch.float32, torch.float64):
        raise Unsupported(f"values of type {str(real).removeprefix('torch.')}")
    return real


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for t in value if isinstance(t, torch.Tensor)] if isinstance(value, (tuple, list)) else []


def _carries(node: fx.Node) -> bool:
    return any(carries(value) for value in _tensors(node.meta.get("val")))


# --- fused operations -----------------------------------------------------------------------------------------------


class _fused:
    """a b + c, c - a b, a b - c and a + (-b) as one operation, where nothing else reads the part."""

    def __init__(self, graph: fx.Graph):
        self.skipped: set[fx.Node] = set()
        self.operations: dict[fx.Node, tuple[str, tuple[Any, ...]]] = {}
        for node in graph.nodes:
            if node.target not in (aten.add.Tensor, aten.sub.Tensor) or node.kwargs or not _is_real(node):
                continue
            a, b = node.args
            plus = node.target is aten.add.Tensor
            if _alone(a, node, aten.mul.Tensor) and isinstance(b, fx.Node):
                self._enter(node, a, "fma" if plus else "fms", (*a.args, b))
            elif _alone(b, node, aten.mul.Tensor) and isinstance(a, fx.Node):
                self._enter(node, b, "fma" if plus else "fnma", (*b.args, a))
            elif plus and _alone(b, node, aten.neg.default) and isinstance(a, fx.Node):
                self._enter(node, b, "sub", (a, *b.args))

    def _enter(self, node: fx.Node, part: fx.Node, code: str, args: tuple[Any, ...]) -> None:
        self.skipped.add(part)
        self.operations[node] = (code, args)

    def lower(self, lowering: _Lowering, node: fx.Node) -> View | None:
        if node not in self.operations:
            return None
        code, args = self.operations[node]
        arguments = [lowering._argument(arg) for arg in args]
        return lowering.p.map(code, REAL, lowering.want(node).sizes, *arguments)


def _is_real(node: fx.Node) -> bool:
    value = node.meta["val"]
    operands = [value, *(arg.meta["val"] for arg in node.all_input_nodes)]
    return all(isinstance(v, torch.Tensor) and v.dtype.is_floating_point for v in operands)


def _alone(part: Any, user: fx.Node, target: Any) -> bool:
    return (
        isinstance(part, fx.Node) and part.target is target and len(part.users) == 1 and not part.kwargs
        and _is_real(part) and sum(arg is part for arg in user.args) == 1
        and row_sizes(part.meta["val"]) == row_sizes(user.meta["val"])
    )  # fmt: skip
