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
        return in_rounds(self.graph, self.dtype)

    def call(self, node: fx.Node) -> None:
        if not is_product(node, self.dtype):
            if any(source in self.waiting for source in node.all_input_nodes):
                self._compute()
            super().call(node)
            return
        start = start_of(node, self.dtype)
        if any(source in self.waiting and source is not start for source in node.all_input_nodes):
            self._compute()
        start, left, right = parts_of(node)
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


def in_rounds(graph: fx.Graph, dtype: torch.dtype) -> list[fx.Node]:
    """The nodes in an order in which products come as early as they can, and what reads them as late: so the calls are
    few."""
    round_of: dict[fx.Node, int] = {}  # how many calls come before a node
    for node in graph.nodes:
        start = start_of(node, dtype)
        round_of[node] = max(
            (round_of[s] + (is_product(s, dtype) and s is not start) for s in node.all_input_nodes), default=0
        )
    nodes = [node for node in graph.nodes if node.op != "output"]
    return sorted(nodes, key=lambda node: (round_of[node], is_product(node, dtype)))


def is_product(node: fx.Node, dtype: torch.dtype) -> bool:
    """Whether it is a product of matrices, or a sum over rows, that `native/matrices.hpp` computes."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or value.dtype != dtype:
        return False
    if node.target is aten.sum.dim_IntList:
        summed: Any = node.args[0]
        return (
            len(node.args) == 3
            and node.args[1] == [0]
            and node.args[2] is True
            and summed.meta["val"].dim() == 2
        )
    return node.target is normal_sum or (node.target in _PRODUCTS and not node.kwargs)


def normal_sum(x: torch.Tensor, mean: torch.Tensor, inverse: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """Σ g (x - mean) inverse over rows: the gradient of a layer norm's scale, as a pass has it.

    x, g: `[N, n]`. mean, inverse: `[N, 1]`, of x's rows. Returns `[1, n]`.
    """
    return (g * ((x - mean) * inverse)).sum([0], True)


def start_of(node: fx.Node, dtype: torch.dtype) -> Any:
    """What a product is added to, if that may be computed in the same call: it is shared out as the product is."""
    start: Any = node.args[0] if node.target is aten.addmm.default and is_product(node, dtype) else None
    same = start is not None and start.target in _PRODUCTS and codegen.form_of(start) == codegen.form_of(node)
    return start if same else None


def parts_of(node: fx.Node) -> tuple[Any, Any, Any]:
    """(start, left, right) of a product: start may be None; left is None for a sum over the rows of right."""
    if node.target is aten.sum.dim_IntList or node.target is normal_sum:
        return None, None, node.args[-1] if node.target is normal_sum else node.args[0]
    return (None, *node.args) if node.target is aten.mm.default else node.args  # type: ignore[return-value]
