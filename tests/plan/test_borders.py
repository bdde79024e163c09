"""What crosses the borders of a plan's stages, and how: cells that are made for one border each."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import elman
from elman.circuit import graphs
from elman.circuit.form import Kind, OutPort, Wire, op_name
from elman.execute.executable import Call, run
from elman.plan import Plan, plan
from elman.plan.sink import sunk
from elman.trace import trace
from elman.unfold import unfold
from tests import eager
from tests.circuits import assert_close

Tensor = torch.Tensor
H = 4


class Gated(nn.Module):
    """Before the loop: a product of two products, and a square root that comes out as well as it goes in."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_size = H
        self.U, self.V, self.W = (nn.Parameter(torch.randn(H, H)) for _ in range(3))

    def forward(self, x: Tensor, h: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        size = x.square()
        h = torch.tanh(h @ self.W + (x @ self.U) * (x @ self.V)) * torch.exp(-size)
        return (h, size), h


def operations(made: Plan) -> list[str]:
    assert made.loop is not None
    return sorted(op_name(node) for node in (*made.before.nodes(), *made.loop.nodes()))


@pytest.mark.parametrize("part", ["products", "squares"])
def test_what_sinks_into_the_loop_is_computed_once_and_brings_no_more_sequences(part: str) -> None:
    made = plan(trace(Gated(), torch.zeros(2, H), torch.zeros(2, H)))
    sinking = sunk(made)
    assert made.loop is not None
    assert sinking.loop is not None
    if part == "products":
        assert len(sinking.loop.sequences) <= len(made.loop.sequences)
    else:
        assert operations(sinking) == operations(made)
        assert len(sinking.loop.nodes()) > len(made.loop.nodes())  # the exponential is in it


class Told(nn.Module):
    """Hands out, at every step, what is the same for all rows: numbers made once, and numbers that are drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.W, self.b, self.hidden_size = (
            nn.Parameter(torch.randn(H, H) / H),
            nn.Parameter(torch.randn(3)),
            H,
        )

    def forward(self, x: Tensor, h: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
        h = torch.tanh(x + h @ self.W)
        return (h, 2 * torch.rand(3, dtype=x.dtype), self.b.exp()), h


def test_outputs_that_no_row_decides_come_from_where_they_are_made() -> None:
    cell, x = Told().double(), torch.randn(5, 2, H).double()
    hs, drawn, made = elman.Recurrent(cell)(x)[0]
    assert drawn.shape == (5, 2, 3)
    assert len(drawn.unique()) == drawn[:, 0].numel()  # the same for all rows
    torch.testing.assert_close(made, cell.b.exp().expand(5, 2, 3))
    (hs.sum() + made.sum()).backward()
    torch.testing.assert_close(cell.b.grad, 10 * cell.b.exp())


class Columns(nn.Module):
    """Columns all through: what is made of the context once has its rows last."""

    def __init__(self) -> None:
        super().__init__()
        self.W, self.hidden_size = nn.Parameter(torch.randn(H, H) / H), H

    def forward(self, x: Tensor, h: Tensor, context: Tensor) -> Tensor:
        return torch.tanh(self.W @ h.T + torch.exp(context.T) * h.T).T + x


@pytest.mark.parametrize("engine", ["reference", "auto"])
def test_what_is_made_once_with_its_rows_elsewhere_goes_into_the_loop_row_by_row(engine: str) -> None:
    cell = Columns().double()
    x, context = torch.randn(5, 3, H).double(), torch.randn(3, H).double()
    out, final = elman.Recurrent(cell, engine=engine)(x, lengths=[5, 2, 4], context=context)
    for row, length in enumerate([5, 2, 4]):
        one = slice(row, row + 1)
        expected, last = eager.unroll(cell, x[:length, one], torch.zeros(1, H).double(), context=context[one])
        torch.testing.assert_close(out[:length, one], expected)
        torch.testing.assert_close(final[one], last)


class Constant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w, self.hidden_size = nn.Parameter(torch.randn(H)), H

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        made = self.w * self.w
        return made.expand(x.shape[0], -1) * x, torch.tanh(h * made)


def test_a_sum_of_what_is_the_same_at_every_step_counts_the_steps() -> None:
    cell = Constant().double()
    circuit = trace(cell, torch.zeros(2, H).double(), torch.zeros(2, H).double())
    made = next(node for node in circuit.graph.nodes if op_name(node) == "mul")
    assert [source.name for source in made.all_input_nodes] == ["w"]
    graph = graphs.extract(circuit.graph, {**graphs.results_of(circuit.graph), "squared": made})
    total = OutPort("total", Kind.SUM, Wire.result("squared"), "the sum")
    circuit = replace(circuit, graph=graph, outputs=(*circuit.outputs, total), record=None)
    inputs = {"x": torch.randn(5, 2, H).double(), "h": torch.randn(2, H).double(), "w": cell.w.detach()}
    got = run(plan(circuit), Call(5, 2, 0, "reference"), inputs)
    assert_close(got, unfold(circuit, 5)(inputs))
    torch.testing.assert_close(got["total"], 5 * cell.w.detach().square())


class Keeps(nn.Module):
    """k is handed on as it is, and used: its gradient comes two ways."""

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        h, k = state
        h = x + h * k
        return h, (h, k)


def test_derivatives_of_any_order_come_every_way() -> None:
    """The third ones as well: there the second derivative's step is differentiated."""
    cell = Keeps().double()
    x = torch.randn(3, 2, H).double().requires_grad_()
    start = tuple(torch.randn(2, H).double().requires_grad_() for _ in range(2))
    leaves = [x, *start]

    def derivatives(made: tuple[Tensor, tuple[Tensor, Tensor]]) -> list[Tensor]:
        loss, found = made[0].square().sum() + sum(part.pow(3).sum() for part in made[1]), []
        for _ in range(3):
            gradients = torch.autograd.grad(loss, leaves, create_graph=True)
            loss = sum(g.square().sum() for g in gradients) / 10
            found += gradients
        return found

    got, expected = derivatives(elman.Recurrent(cell)(x, start)), derivatives(eager.unroll(cell, x, start))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
