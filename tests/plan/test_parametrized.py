"""What a parametrization computes, and its backward, runs once per call: nothing of it stays in the loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import elman
from elman.circuit import graphs
from elman.plan.regions import regions
from tests import eager

Tensor = torch.Tensor
I, H = 3, 4


class Dale(nn.Module):
    """Every unit excites or inhibits."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("sign", torch.tensor([1.0, 1.0, 1.0, -1.0]))

    def forward(self, W: Tensor) -> Tensor:
        return W.abs() * self.sign


class Twice(nn.Module):
    """exp(A) by the very blocks of its derivative, and another use of what lies between: nothing may be moved."""

    def forward(self, A: Tensor) -> Tensor:
        return torch.linalg.matrix_exp(A - A.T) + 0.1 * torch.linalg.matrix_exp(A)


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden_size = H
        self.U, self.W = nn.Linear(I, H), nn.Linear(H, H)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.U(x) + self.W(h))


WAYS: dict[str, Callable[[nn.Module], Any]] = {
    "exponential": lambda W: parametrizations.orthogonal(W, orthogonal_map="matrix_exp"),
    "cayley": lambda W: parametrizations.orthogonal(W, orthogonal_map="cayley"),
    "weight norm": parametrizations.weight_norm,
    "dale": lambda W: parametrize.register_parametrization(W, "weight", Dale()),
    "two exponentials": lambda W: parametrize.register_parametrization(W, "weight", Twice()),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_parametrization_is_computed_once(way: str) -> None:
    cell = Cell()
    WAYS[way](cell.W)
    rnn = elman.Recurrent(cell.double())
    x, h = torch.randn(5, 2, I, dtype=torch.float64), torch.randn(2, H, dtype=torch.float64)
    wanted = list(cell.parameters())
    outputs, final = rnn(x, h)
    mine = torch.autograd.grad(outputs.sin().sum() + final.sum(), wanted)
    expected, last = eager.unroll(cell, x, h)
    right = torch.autograd.grad(expected.sin().sum() + last.sum(), wanted)
    torch.testing.assert_close([outputs, final, *mine], [expected, last, *right], rtol=1e-10, atol=1e-10)
    plain = elman.Recurrent(Cell().double())
    plain(x, h)
    for plan, simple in zip(rnn.explain().plans, plain.explain().plans, strict=True):
        assert plan.loop is not None
        assert simple.loop is not None
        assert len(plan.loop.graph.nodes) == len(simple.loop.graph.nodes)
        assert not plan.loop.sums


def test_an_exponential_that_is_used_otherwise_stays() -> None:
    """The block alone is linear: where the whole exponential goes on, it is not moved out of its step."""
    cell = Cell()
    parametrizations.orthogonal(cell.W, orthogonal_map="matrix_exp")
    rnn = elman.Recurrent(cell.double())
    rnn(torch.randn(5, 2, I, dtype=torch.float64))[0].sum().backward()
    circuit = rnn.explain().plans[1].circuit
    graph = graphs.extract(circuit.graph, graphs.results_of(circuit.graph))
    assert "linalg_matrix_exp" not in str([n.name for n in regions(circuit, graph).loop])
    exponential = next(
        n for n in graph.nodes if n.name.startswith("linalg_matrix_exp") and n.meta["val"].shape[0] == 2 * H
    )
    block = next(iter(exponential.users))
    with graph.inserting_after(block):
        other = graph.call_function(torch.ops.aten.slice.Tensor, (exponential, 0, H, 2 * H))
    other.meta["val"] = block.meta["val"]
    assert exponential in regions(circuit, graph).loop
