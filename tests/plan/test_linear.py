"""Weights made of parameters: their gradients are worked out once, after the backward loop, and are autograd's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

import elman
from elman.circuit import graphs
from elman.circuit.linear import stays_summed
from elman.circuit.operations import OPERATIONS
from elman.plan.cut import pair
from tests.recurrent import compare
from tests.recurrent.compare import Inputs

Tensor = torch.Tensor
H = 4
INDEX = torch.tensor([2, 0, 1, 3])

# How a weight is made: every group is one cell, whose W is the sum of them all.
MADE: dict[str, dict[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "chosen": {
        "where": lambda w, m: torch.where(m, w, 0.0),
        "either": lambda w, m: torch.where(m, w, -w),
        "filled": lambda w, m: w.masked_fill(m, 0.0),
        "filled with a number": lambda w, m: w.masked_fill(m, 0.25),
        "clamp": lambda w, m: w.clamp(-0.2, 0.2),
        "maximum": lambda w, m: torch.maximum(w, w.T - 0.01),
        "minimum": lambda w, m: torch.minimum(w, -w),
        "relu": lambda w, m: w.relu(),
    },
    "moved": {
        "flip": lambda w, m: w.flip(0),
        "roll": lambda w, m: w.roll(1, 0),
        "triu": lambda w, m: w.triu(),
        "diagonal": lambda w, m: w - torch.diag(w.diagonal()),
        "columns": lambda w, m: w[:, INDEX],
        "taken": lambda w, m: w.flatten()[torch.arange(H * H - 1, -1, -1)].view(H, H),
        "repeat": lambda w, m: w[:2].repeat(2, 1),
        "unfold": lambda w, m: w.unfold(1, 2, 2).reshape(H, H),
    },
    "indexed": {
        "gather": lambda w, m: w.gather(1, INDEX.expand(H, -1)),
        "index_select": lambda w, m: w.index_select(0, INDEX),
        "scatter": lambda w, m: w.scatter(1, INDEX[:, None], 0.0),
        "scatter_add": lambda w, m: w.scatter_add(1, INDEX.expand(H, -1), w),
        "index_put": lambda w, m: w.index_put((INDEX[:2],), w[2:]),
        "embedding": lambda w, m: F.embedding(INDEX, w),
        "sort": lambda w, m: w.sort(0).values,
    },
    "summed": {
        "cumsum": lambda w, m: w.cumsum(0),
        "standardised": lambda w, m: (w - w.mean(0)) / w.std(0),
        "norm": lambda w, m: w / w.norm(),
        "softmax": lambda w, m: w.softmax(-1),
        "fourier": lambda w, m: torch.fft.irfft(torch.fft.rfft(w)),
        "interpolated": lambda w, m: torch.lerp(w, w.T, 0.3),
        "product": lambda w, m: w @ w.T,
    },
}


class Made(nn.Module):
    def __init__(self, makers: dict[str, Callable[[Tensor, Tensor], Tensor]]) -> None:
        super().__init__()
        self.hidden_size, self.makers = H, makers
        generator = torch.Generator().manual_seed(0)
        self.w = nn.ParameterList(torch.randn(H, H, generator=generator) * 0.3 for _ in makers)
        self.register_buffer("m", torch.rand(H, H, generator=generator) < 0.5)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        made = [make(w, self.m) for make, w in zip(self.makers.values(), self.w, strict=True)]
        return torch.tanh(x + h @ (torch.stack(made).sum(0) / 4))


@pytest.mark.parametrize("group", MADE)
def test_a_made_weight_is_made_once_and_so_is_its_gradient(group: str) -> None:
    cell = Made(MADE[group]).double()
    rnn = elman.Recurrent(cell)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5, 3, H, generator=generator, dtype=torch.float64, requires_grad=True)
    state = torch.randn(3, H, generator=generator, dtype=torch.float64, requires_grad=True)
    got, expected = compare.both(rnn, Inputs(5, 3, x, state, None, None))
    compare.assert_equal(got.values, expected.values)
    compare.assert_equal(got.gradients, expected.gradients)
    backward = elman.plan(pair(rnn.circuit).backward)
    assert backward.loop is not None
    assert backward.loop.sums == (), backward.reasons
    assert len(backward.loop.nodes()) == 3


class _Clipped(torch.autograd.Function):
    """The parameter itself, and backward its gradient clipped: that of one step, a sum over the rows there."""

    @staticmethod
    def forward(ctx: Any, w: Tensor) -> Tensor:
        return w.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g.clamp(-0.05, 0.05)


class Clipped(nn.Module):
    """Parameters whose gradients are sums over rows of every kind: of a layer norm, a bias, a product, a table."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_size = H
        generator = torch.Generator().manual_seed(0)
        self.w, self.table = (nn.Parameter(torch.randn(H, H, generator=generator)) for _ in range(2))
        self.scale, self.shift, self.bias = (
            nn.Parameter(torch.randn(H, generator=generator)) for _ in range(3)
        )

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        w, table, scale, shift, bias = map(
            _Clipped.apply, (self.w, self.table, self.scale, self.shift, self.bias)
        )
        place = (x[:, 0] > 0).long()
        pre = F.layer_norm(h @ w + F.embedding(place, table), (H,), scale, shift)
        return torch.tanh(x + pre + bias)


def test_a_gradient_clipped_at_each_step_is_not_the_sum_clipped() -> None:
    cell = Clipped().double()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5, 3, H, generator=generator, dtype=torch.float64, requires_grad=True)
    state = torch.randn(3, H, generator=generator, dtype=torch.float64, requires_grad=True)
    rnn = elman.Recurrent(cell)
    got, expected = compare.both(rnn, Inputs(5, 3, x, state, None, None))
    compare.assert_equal(got.values, expected.values)
    compare.assert_equal(got.gradients, expected.gradients)
    backward = elman.plan(pair(rnn.circuit).backward)
    assert backward.loop is not None
    assert len(backward.loop.sums) == 5, backward.loop.sums


# --- what counts as linear ------------------------------------------------------------------------------------------

aten = torch.ops.aten
ELEMENTWISE = {
    name: op for name, op in OPERATIONS.items() if op.native is not None and op.native.family == "unary"
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_an_operation_is_called_linear_if_it_is(name: str) -> None:
    f = getattr(aten, name)
    a, b = torch.tensor([[-0.4, 2.0, 0.75, 0.2], [1.9, -0.7, 0.75, 0.3]]).double()
    assert torch.allclose(f(a + b), f(a) + f(b)) == (ELEMENTWISE[name].linear == (0,))


def test_sums_meet_what_is_the_same_at_every_step_only() -> None:
    """(Σ a)(Σ b) is not Σ a b."""
    graph = fx.Graph()
    a, b, same, varies = (
        graphs.add_placeholder(graph, n, torch.ones(3, 3)) for n in ("a", "b", "same", "varies")
    )

    def stays(target: Any, *args: Any) -> bool:
        node = graphs.insert(graph, target, *args, val=torch.ones(3, 3))
        return stays_summed(node, {a, b}, {same}.__contains__)

    for product in (aten.mul.Tensor, aten.mm.default):
        assert stays(product, a, same)
        assert stays(product, same, b)
        assert not stays(product, a, b)
        assert not stays(product, a, varies)
    assert stays(aten.add.Tensor, a, b)
    assert not stays(aten.add.Tensor, a, same)
    assert not stays(aten.tanh.default, a)
    assert stays(aten.div.Tensor, a, same)
    assert not stays(aten.div.Tensor, same, a)
