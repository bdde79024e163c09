"""A stage beside the loop, whose matrix products are this engine's: all that can run at once are one call."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from elman.engines import codegen
from elman.engines.python import PythonFunction, tuple_of

aten = torch.ops.aten
_threads = torch.get_num_threads
_PRODUCTS = (aten.mm.default, aten.addmm.default)


def function(
    graph: fx.Graph,
    arguments: Sequence[str],
    results: Sequence[str],
    multiply: Callable[[tuple[Any, ...], int], None],
    dtype: torch.dtype,
) -> Callable[..., tuple[Any, ...]]:
    """As `codegen.function`. multiply: native/bind.cpp's `Multiplier` for this dtype; other products are torch's."""
    return codegen.function(graph, arguments, results, functools.partial(_Body, multiply, dtype))


class _Body(codegen.Body):
    """Products wait until somebody reads one of them; then all that wait are computed together."""

    def __init__(
        self,
        multiply: Callable[[tuple[Any, ...], int], None],
        dtype: torch.dtype,
        graph: fx.Graph,
        python: PythonFunction,
        inputs: Mapping[str, str],
        wanted: set[fx.Node],
    ):
        self.multiply, self.dtype = multiply, dtype
        self.waiting: dict[fx.Node, str] = {}  # product -> how `multiply` is told about it
        self.held: list[str] = []  # what may be dropped after them
        super().__init__(graph, python, inputs, wanted)

    def write(self) -> None:
        super().write()
        self._compute()

    def order(self) -> list[fx.Node]:
        """Products as early as they can, what reads them as late: so the calls are few."""
        round_of: dict[fx.Node, int] = {}  # how many calls come before a node
        for node in self.graph.nodes:
            sources = node.all_input_nodes
            start = self._start(node)
            round_of[node] = max(
                (round_of[s] + (self._is_ours(s) and s is not start) for s in sources), default=0
            )
        nodes = [node for node in self.graph.nodes if node.op != "output"]
        return sorted(nodes, key=lambda node: (round_of[node], self._is_ours(node)))

    def call(self, node: fx.Node) -> None:
        if not self._is_ours(node):
            if any(source in self.waiting for source in node.all_input_nodes):
                self._compute()
            super().call(node)
            return
        start = self._start(node)
        if any(source in self.waiting and source is not start for source in node.all_input_nodes):
            self._compute()
        if node.target is aten.sum.dim_IntList:
            start, left, right = None, None, node.args[0]
        elif node.target is aten.mm.default:
            start, (left, right) = None, node.args
        else:
            start, left, right = node.args
        rows = "1" if left is None else f"{self.literal(left)}.shape[0]"
        columns = f"{self.literal(right)}.shape[1]"
        name = self.python.let(f"{self.literal(right)}.new_empty(({rows}, {columns}))")
        self.names[node] = name
        self.waiting[node] = tuple_of(*map(self.literal, (left, right, start)), name)

    def drop(self, names: Sequence[str]) -> None:
        if self.waiting:
            self.held += names
        else:
            super().drop(names)

    def _compute(self) -> None:
        if self.waiting:
            multiply = self.python.constant(self.multiply, "multiply")
            threads = self.python.constant(_threads)
            self.python.line(f"{multiply}({tuple_of(*self.waiting.values())}, {threads}())")
            self.waiting.clear()
        held, self.held = self.held, []
        if held:
            super().drop(held)

    def _is_ours(self, node: fx.Node) -> bool:
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor) or value.dtype != self.dtype:
            return False
        if node.target is aten.sum.dim_IntList:
            summed: Any = node.args[0]
            return (
                len(node.args) == 3
                and node.args[1] == [0]
                and node.args[2] is True
                and summed.meta["val"].dim() == 2
            )
        return node.target in _PRODUCTS and not node.kwargs

    def _start(self, node: fx.Node) -> Any:
        """What a product is added to, if that may be computed in the same call: it is shared out as the product is."""
        start: Any = node.args[0] if self._is_ours(node) and node.target is aten.addmm.default else None
        same = (
            start is not None
            and start.target in _PRODUCTS
            and codegen.form_of(start) == codegen.form_of(node)
        )
        return start if same else None
