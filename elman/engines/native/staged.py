"""The pieces of a stage: programs on its rows, and products; all that can be computed at once are one piece."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from elman.circuit import graphs
from elman.circuit.form import op_name
from elman.circuit.rows import Rows, carries, rows_of
from elman.engines.native.builder import Builder
from elman.engines.native.extension import compiled
from elman.engines.native.grouped import in_rounds, is_product, normal_sum, parts_of, start_of
from elman.engines.native.places import Memory, Places, delayed
from elman.engines.native.rules import RULES, ResultSpec
from elman.engines.native.sums import summed
from elman.engines.native.values import REAL, Unsupported, View, row_sizes, type_of
from elman.plan.form import TIME_OPERATIONS, Loop, Stage, ends_of, last, shift

aten = torch.ops.aten
LARGEST = 1 << 18  # numbers in a value without rows that a program computes, which runs on one thread


@dataclass
class _Waiting:
    """What is to be computed together: products, or the operations of a program on `count` rows."""

    nodes: list[fx.Node] = field(default_factory=list)
    products: list[list[Any]] = field(default_factory=list)
    made: set[Memory] = field(default_factory=set)
    read: list[Memory] = field(default_factory=list)
    count: str = "one"


class StageWriter:
    """Writes the pieces of a stage."""

    def __init__(self, writer: Places, stage: Stage, count: str, delays: dict[str, str] | None = None):
        self.writer, self.graph, self.count, self.delays = writer, summed(stage.graph), count, delays or {}
        self.results = graphs.results_of(self.graph)
        self.values: dict[fx.Node, View] = {}
        self.products, self.program = _Waiting(), _Waiting()
        self.joined: dict[fx.Node, View] = {}  # product -> its place in a concatenation
        loop = writer.plan.loop
        self.whole = set(writer.plan.outputs.values())  # goes out, so has to lie by itself
        self.ordered = set() if loop is None else {*loop.constants, *loop.sequences}  # has to lie in order

    def write(self) -> None:
        nodes = in_rounds(self.graph, self.writer.real)
        if any(node.op == "call_function" for node in nodes):
            self._place_joins()
            for node in nodes:
                self._node(node)
            self._compute(self.products)
            self._compute(self.program)
        for name, node in self.results.items():
            if node.op == "call_function":
                self._settle(node, products=False)
            if node.op == "placeholder" and node.target in self.writer.values:
                self.writer.values[name] = self.writer.values[str(node.target)]
            elif node in self.values:
                self.writer.values[name] = self.values[node]

    def _node(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            if str(node.target) in self.writer.values:
                self.values[node] = self.writer.values[str(node.target)]
        elif node.target in TIME_OPERATIONS:
            self._in_time(node)
        elif not isinstance(node.meta.get("val"), torch.Tensor):
            pass  # arithmetic on sizes, or several values, which are parts of an operation
        elif is_product(node, self.writer.real):
            self._product(node)
        elif node in self.joined:
            self.values[node] = self.joined[node]
        elif (view := self._view(node)) is not None:
            self.values[node] = view
        elif not self._waits(node):
            self._operation(node)

    # --- addressing ---------------------------------------------------------------------------------------------------

    def _view(self, node: fx.Node) -> View | None:
        """A value as another one seen otherwise, if it is that."""
        source = graphs.viewed(node)
        if source not in self.values or node.target not in RULES:
            return None
        p = Builder(self.writer.bytes[REAL], 16)
        value = node.meta["val"]
        want = ResultSpec(row_sizes(value), type_of(value), (row_sizes(value),))
        args = [self.values.get(a, None) if isinstance(a, fx.Node) else a for a in node.args]
        view = RULES[node.target](p, want, *args)
        if p.ops or p.prepare or not isinstance(view, View):
            return None
        fits = (view.whole or not self._is_in(self.whole, node)) and (
            view.contiguous or not self._is_in(self.ordered, node)
        )
        return view if fits else None

    def _is_in(self, names: set[str], node: fx.Node) -> bool:
        return any(name in names for name, result in self.results.items() if result is node)

    def _waits(self, node: fx.Node) -> bool:
        """Whether it is a view of what is not computed yet: whoever reads it will see."""
        source = graphs.viewed(node)
        wanted = self._is_in(self.whole | self.ordered, node)
        return source is not None and source not in self.values and not wanted

    def _place_joins(self) -> None:
        """Products that are read by nobody but a concatenation are computed in their place there."""
        writer = self.writer
        for node in self.graph.nodes:
            if node.target is not aten.cat.default:
                continue
            parts: Any = node.args[0]
            value, dim = node.meta["val"], (node.args[1] if len(node.args) > 1 else 0)
            rows = rows_of(value)
            columns = rows is None or (rows == Rows(0, 1) and dim != 0)
            if value.dim() != 2 or not columns or len({*parts}) < len(parts):
                continue
            if not all(is_product(part, writer.real) and len(part.users) == 1 for part in parts):
                continue
            whole, at = writer.new(value, self.count if rows else "one"), 0
            for part in parts:
                size = row_sizes(part.meta["val"])[dim]
                self.joined[part] = whole.slice(dim, at, at + size)
                at += size
            self.joined[node] = whole

    # --- products -----------------------------------------------------------------------------------------------------

    def _product(self, node: fx.Node) -> None:
        start = start_of(node, self.writer.real)
        for source in node.all_input_nodes:
            self._settle(source, products=source is not start)
        begin, left, right = parts_of(node)
        sizes = row_sizes(node.meta["val"])
        rows = rows_of(node.meta["val"])
        if rows is not None and rows.dim != 0:
            raise Unsupported("a product whose rows are columns")
        out = self.joined.get(node) or self.writer.new(node.meta["val"], self.count if rows else "one")
        width = out.buffer.width // rows.factor if rows else out.strides[0]
        m = [rows.factor, compiled.ROWS[self.count]] if rows else [sizes[0], 0]
        offset = out.offset * self.writer.bytes[REAL]
        none = [-1, 0, 0, 0, 0]
        (k, n), b = self._side(right)
        a = none if left is None else self._side(left)[1]
        start_side, out_side = self._start(begin, sizes, rows), [out.buffer, offset, width, 1, 0]
        times = none
        if node.target is normal_sum:
            a, start_side, times = (self._side(source)[1] for source in node.args[:3])  # type: ignore[arg-type]
        flat = [int(left is None), *m, *n, *k, *a, *b, *start_side, *times, *out_side]
        self.products.products.append(flat)
        self.products.made.add(out.buffer)  # type: ignore[arg-type]
        self.products.read += [item for item in flat if isinstance(item, Memory)]
        self.values[node] = out

    def _start(self, begin: fx.Node | None, sizes: tuple[int, ...], rows: Rows | None) -> list[Any]:
        if begin is None:
            return [-1, 0, 0, 0, 0]
        value = begin.meta["val"]
        if value.dim() == 2 and (rows_of(value) is None) == (rows is None) and row_sizes(value) == sizes:
            side = self._side(begin)[1]
        else:
            view = self.values[begin].expand(sizes[-1:]) if value.dim() == 1 else None
            if view is None or rows_of(value) is not None:
                raise Unsupported("a product that starts from something else than rows")
            side = [view.buffer, view.offset * self.writer.bytes[REAL], 0, view.strides[0], 0]
        if side[3] != 1 and sizes[1] > 1:
            raise Unsupported("a product that starts from something else than rows")
        return side

    def _side(self, node: fx.Node) -> tuple[tuple[list[int], list[int]], list[Any]]:
        """A matrix: (rows, columns) as native/pass.hpp's Size, and its Side."""
        view, rows = self.values[node], rows_of(node.meta["val"])
        memory = view.buffer
        assert type(memory) is Memory
        if view.type != REAL or len(view.sizes) != 2:
            raise Unsupported("a product of something else than matrices")
        sizes, strides = [[size, 0] for size in view.sizes], list(view.strides)
        if rows is not None:
            if memory.count != self.count:
                raise Unsupported("a product of values with different rows")
            if rows.factor > 1 and view.strides[rows.dim] * rows.factor != memory.width:
                raise Unsupported("a product of rows that do not lie in order")
            sizes[rows.dim] = [rows.factor, compiled.ROWS[self.count]]
            strides[rows.dim] = memory.width // rows.factor
        elif memory.count != "one":
            raise Unsupported("a product of values with different rows")
        along = 0 if rows is None else rows.dim + 1
        return (sizes[0], sizes[1]), [memory, view.offset * self.writer.bytes[REAL], *strides, along]

    # --- programs -----------------------------------------------------------------------------------------------------

    def _operation(self, node: fx.Node) -> None:
        count = self.count if carries(node.meta["val"]) else "one"
        if self.program.nodes and self.program.count != count:
            self._compute(self.program)
        pending = [*node.all_input_nodes]
        while pending:
            source = pending.pop()
            if source in self.values:
                if self.values[source].buffer in self.products.made:
                    self._compute(self.products)
            elif source not in self.program.nodes:
                pending += source.all_input_nodes
        value = node.meta["val"]
        if count == "one" and math.prod(row_sizes(value)) > LARGEST:
            raise Unsupported(f"{_said(node)} of so many numbers without rows")
        self.program.count = count
        self.program.nodes.append(node)

    def _settle(self, source: fx.Node, products: bool = True) -> None:
        """Have a value computed that is to be read."""
        if source in self.program.nodes:
            self._compute(self.program)
        if source not in self.values and isinstance(source.meta.get("val"), torch.Tensor):
            for other in source.all_input_nodes:
                self._settle(other)
            if (view := self._view(source)) is None:
                raise Unsupported(f"{_said(source)} of a value without a place")
            self.values[source] = view
        if products and source in self.values and self.values[source].buffer in self.products.made:
            self._compute(self.products)

    def _compute(self, waiting: _Waiting) -> None:
        if waiting is self.products and waiting.products:
            self.products = _Waiting()
            self.writer.piece(["products", waiting.products], waiting.read)
        if waiting is self.program and waiting.nodes:
            self.program = _Waiting()
            self._program(waiting.nodes, waiting.count)

    def _program(self, nodes: list[fx.Node], count: str) -> None:
        writer = self.writer
        graph, copies = fx.Graph(), {}
        leaves: dict[str, tuple[fx.Node, View]] = {}

        def come_in(node: fx.Node) -> fx.Node:
            """A value that lies in memory; one that is turned, as it lies there, and turned back."""
            name, view, value = f"in{len(leaves)}", self.values[node], node.meta["val"]
            dims = range(len(view.sizes))
            order = [*dims] if view.contiguous else sorted(dims, key=lambda dim: -view.strides[dim])
            leaves[name] = node, view.permute(order)
            if order == [*dims]:
                return graphs.add_placeholder(graph, name, value)
            leaf = graphs.add_placeholder(graph, name, value.permute(order))
            return graphs.insert(
                graph, aten.permute.default, leaf, [order.index(dim) for dim in dims], val=value
            )

        def enter(node: fx.Node) -> None:
            """A value that is read; of what it is a view of comes in, and is seen so there."""
            if node in copies:
                return
            if node in self.values and graphs.viewed(node) not in self.values:
                copies[node] = come_in(node)
            elif node.op == "placeholder":
                copies[node] = graphs.add_placeholder(graph, str(node.target), node.meta["val"])
            else:
                for source in node.all_input_nodes:
                    enter(source)
                copies[node] = graph.node_copy(node, lambda n: copies[n])
                copies[node].meta = dict(node.meta)

        for node in nodes:
            enter(node)
        computed = {*copies} - {*self.values}
        kept = {*self.results.values()}
        seen = kept.difference(nodes)  # views that go out
        out = [node for node in nodes if node in kept or _outlives(node, computed, seen)]
        graph.output({f"out{i}": copies[node] for i, node in enumerate(out)})
        constants, sequences = [], []
        for name, (node, view) in leaves.items():
            memory, rowed = view.buffer, carries(node.meta["val"])
            assert type(memory) is Memory
            if rowed and count == "one":
                raise Unsupported(f"{' and '.join(dict.fromkeys(map(_said, nodes)))} over rows")
            if memory.count != (count if rowed else "one"):
                raise Unsupported("an operation on values with different rows")
            (sequences if rowed or count == "one" else constants).append(name)
        emits = {f"out{i}": writer.new(node.meta["val"], count) for i, node in enumerate(out)}
        ordered = graphs.extract(graph, graphs.results_of(graph))  # placeholders first
        loop = Loop(
            ordered, tuple(constants), tuple(sequences), (), tuple(emits), (), frozenset(), frozenset()
        )
        spots = [writer.spot(leaves[name][1]) for name in (*constants, *sequences)]
        spots += [writer.spot(value) for value in emits.values()]
        writer.piece(
            ["program", writer.ready(loop), compiled.ROWS[count], False, spots], [spot[0] for spot in spots]
        )
        self.values.update(zip(out, emits.values(), strict=True))

    # --- time -------------------------------------------------------------------------------------------------------

    def _in_time(self, node: fx.Node) -> None:
        """shift and last."""
        writer, reverse = self.writer, self.writer.plan.circuit.reverse
        if node.target not in (shift, last):
            raise Unsupported(f"{_said(node)} over time")
        ends = ends_of(node)
        if ends is not None and self.delays.get(ends[0]) == ends[1] and not writer.single:
            self.values[node] = writer.values[delayed(ends[0])]
            return
        source, start = node.args[:2]
        for one in (source, start):
            if isinstance(one, fx.Node):
                self._settle(one)
        if self.count != "all" or not isinstance(source, fx.Node):
            raise Unsupported("a delay of something without steps")
        value = self.values[source]
        out = writer.new(node.meta["val"], "all" if node.target is shift else "batch")
        if node.target is last:
            writer.in_time("ends", value, out, reverse)
        elif not isinstance(start, fx.Node):
            raise Unsupported("a delay that starts from nothing")
        else:
            writer.in_time("delay", value, out, reverse, self.values[start])
        self.values[node] = out


def _outlives(node: fx.Node, computed: set[fx.Node], kept: set[fx.Node]) -> bool:
    """Whether somebody reads it who is not computed with it."""
    if node in kept:
        return True
    return any(
        (user not in computed and (graphs.viewed(user) is None or _outlives(user, computed, kept)))
        or user in kept
        for user in node.users
        if user.op != "output"
    )


def _said(node: fx.Node) -> str:
    source: Any = node.args[0] if node.target is operator.getitem else node
    return op_name(source)
