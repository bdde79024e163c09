"""An adjoint whose gradients are each row's own: a sum over rows is left undone, and so is what follows it.

    dW = Σ_b δ(b) h(b)ᵀ     becomes     dW(b) = δ(b) h(b)ᵀ,     [H, H] becomes [B, H, H]

What an operation does to rows says which ones add them up. Of what is computed from such a sum each row is an example,
as those of `elman.vmapped` are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from elman.circuit.form import Circuit, Kind
from elman.circuit.graphs import aten
from elman.circuit.rows import Rows, carries, rows_of
from elman.circuit.verdict import ROWWISE, SUMMED, verdict
from elman.errors import NotSupported
from elman.vmapped.record import example, places_of, recorded
from elman.vmapped.step import MappedStep

Tensor = torch.Tensor


def apart(circuit: Circuit) -> Circuit:
    """The same adjoint, of whose sums over rows and time each row and step has its own share: sequences.

    Raises NotSupported where rows meet otherwise than in a sum, or an operation has no batching rule.
    """
    from elman.trace.fakes import Fakes

    fakes = Fakes()
    values = [example(fakes, node.meta["val"], None) for node in places_of(circuit.graph)]
    step = _RowsApart(circuit.name, fakes.batch)
    graph = recorded(
        circuit.graph, circuit.name, fakes, values, lambda inputs: step.run(circuit.graph, inputs, ())
    )
    outputs = tuple(replace(o, kind=Kind.SEQUENCE) if o.kind is Kind.SUM else o for o in circuit.outputs)
    return replace(circuit, graph=graph, outputs=outputs, record=None).check()


class _RowsApart(MappedStep):
    """One step, of which each row is an example from where rows are added up."""

    def __init__(self, name: str, rows: Any) -> None:
        super().__init__(rows, set())
        self.name = name

    def run_one(self, node: fx.Node) -> Any:
        sources = node.all_input_nodes
        if any(source in self.several for source in sources):
            if any(carries(source.meta["val"]) for source in sources):
                raise self._meeting(node, "a sum over rows goes back to each of them")
            return super().run_one(node)
        does = verdict(node)
        if does == ROWWISE:
            return super().run_one(node)
        if does != SUMMED:
            raise self._meeting(node, does.reason or does.does.value)
        self.several.add(node)
        return self._unsummed(node)

    def _result(self, node: fx.Node, added: bool) -> Tensor:
        return self.values[node] if carries(node.meta["val"]) else self.of_each(node)

    def _meeting(self, node: fx.Node, reason: str) -> NotSupported:
        return NotSupported(
            what=f"rows do not stay apart in the backward pass: {reason}", where=f"{self.name}, {node}"
        )

    def _unsummed(self, node: fx.Node) -> Any:
        """What a sum over rows is of each row by itself."""
        rule = _UNSUMMED.get(node.target)
        if rule is not None and (value := rule(self, node)) is not None:
            return value
        # As any operation on several examples, each of which has one row.
        sources = {n for n in node.all_input_nodes if carries(n.meta["val"])}
        step = MappedStep(self.size, sources)
        step.values = self.values | {n: self._as_examples(n) for n in sources}
        return step.run_one(node)

    def _as_examples(self, node: fx.Node) -> Tensor:
        """[…, 1, B, …], of a value that carries rows: one row, and its example behind it."""
        rows = rows_of(node.meta["val"])
        assert rows is not None
        value, dim = self.values[node], rows.dim
        sizes = *value.shape[:dim], self.size, rows.factor, *value.shape[dim + 1 :]
        return value.reshape(sizes).transpose(dim, dim + 1)


def _product(step: _RowsApart, node: fx.Node) -> Tensor | None:
    """δᵀ h of one row is every number of the one times every number of the other."""
    left, right = node.args
    assert isinstance(left, fx.Node)
    assert isinstance(right, fx.Node)
    rows = rows_of(left.meta["val"])
    if rows is None or rows.factor > 1:
        return None
    return step.values[left].permute(1, 0).unsqueeze(2) * step.values[right].unsqueeze(1)


def _embedding_backward(step: _RowsApart, node: fx.Node) -> Tensor | None:
    """The row of the table that was looked up takes the gradient."""
    gradient, index, number, padding, by_frequency = node.args
    assert isinstance(gradient, fx.Node)
    assert isinstance(index, fx.Node)
    if by_frequency or index.meta["val"].dim() != 1 or rows_of(index.meta["val"]) != Rows(0, 1):
        return None
    g, i = step.values[gradient], step.values[index]
    looked_up = i.unsqueeze(1) == torch.arange(number, device=g.device)  # type: ignore[arg-type]
    if padding != -1:
        looked_up = looked_up & (i != padding).unsqueeze(1)
    return g.unsqueeze(1) * looked_up.unsqueeze(2)


_UNSUMMED: dict[Any, Callable[[_RowsApart, fx.Node], Tensor | None]] = {
    aten.mm.default: _product,
    aten.embedding_dense_backward.default: _embedding_backward,
}
