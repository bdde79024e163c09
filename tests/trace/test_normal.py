"""The normal form of a step computes what the step does: all that it does away with, written in one cell."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import elman
from elman.circuit.form import op_name
from elman.trace import trace
from tests.recurrent import compare
from tests.recurrent.compare import Inputs

Tensor = torch.Tensor
H = 12


class ManyWays(nn.Module):
    """Scaled products and sums, pieces of pieces and with gaps between them, stacks, repeated rows."""

    hidden_size = H

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.W = nn.Parameter(torch.randn(H, H, generator=generator) * 0.3)
        self.v = nn.Parameter(torch.randn(H, generator=generator))

    def products(self, x: Tensor, h: Tensor) -> Tensor:
        many, wide = self.W.expand(h.shape[0], H, H), h.unsqueeze(1)
        scaled = torch.addmm(x, h, self.W, beta=0.5, alpha=0.1) + torch.addmm(
            self.v, x, self.W, beta=0, alpha=0.3
        )
        return scaled + torch.baddbmm(wide, wide, many, beta=0.25, alpha=0.2).squeeze(1)

    def pieces(self, h: Tensor) -> Tensor:
        inner = h[:, 2:11][:, 1:8][:, 1:4]  # columns 4, 5 and 6
        wave = h.sin()
        apart = torch.cat([wave[:, :3] * 2, wave[:, 5:] * 3], 1).sum(1, keepdim=True)  # not columns 3 and 4
        a, b, c = h.split([3, 4, 5], 1)
        first, _, last = h.view(-1, 3, 4).unbind(1)
        return (
            inner.sum(1, keepdim=True) * c[:, 1:2]
            + apart
            + (b * first - last).mean(1, keepdim=True) * a[:, :1]
        )

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        made = torch.sub(torch.add(self.products(x, h), h, alpha=0.7), x, alpha=-0.3)
        turned = torch.stack([made, h], 1).transpose(1, 2).reshape(-1, 2 * H)[:, ::2]
        rows = self.v[:4].expand(h.shape[0], 3, 4).reshape(-1, H)
        return torch.tanh(turned + rows + self.pieces(h) * torch.ones_like(h))


def test_the_normal_form_is_the_step() -> None:
    rnn = elman.Recurrent(ManyWays().double())
    x = torch.randn(4, 3, H, dtype=torch.float64, requires_grad=True)
    state = torch.randn(3, H, dtype=torch.float64, requires_grad=True)
    got, expected = compare.both(rnn, Inputs(4, 3, x, state, None, None))
    compare.assert_equal(got.values, expected.values)
    compare.assert_equal(got.gradients, expected.gradients)


class Turning(nn.Module):
    """Pairs that do not lie side by side, as complex numbers: a view of them asks for strides."""

    hidden_size = 4

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor([0.3, 1.1]))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        pairs = torch.view_as_complex((x + h).reshape(-1, 2, 2).transpose(1, 2).contiguous())
        turned = torch.view_as_real(pairs * torch.polar(torch.ones_like(self.a), self.a))
        return torch.tanh(turned.transpose(1, 2).flatten(1))


def test_a_view_as_complex_numbers_of_what_lies_apart() -> None:
    rnn = elman.Recurrent(Turning().double())
    x, h = torch.randn(5, 3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    got, expected = compare.both(rnn, Inputs(5, 3, x.requires_grad_(), h.requires_grad_(), None, None))
    compare.assert_equal(got.values, expected.values)
    compare.assert_equal(got.gradients, expected.gradients)


# --- what is taken apart while tracing --------------------------------------------------------------------------------


Step = Callable[[Tensor, Tensor, Tensor], Tensor]
# Of x and h [B, 4], and a weight [4, 4].
APART: dict[str, Step] = {
    "mv": lambda x, h, w: h * torch.mv(w, w[0]),
    "addmv": lambda x, h, w: h * torch.addmv(w[1], w, w[0]),
    "dot": lambda x, h, w: h * torch.dot(w[0], w[1]),
    "addr": lambda x, h, w: h @ torch.addr(w, w[0], w[1]),
    "nll_loss": lambda x, h, w: h + F.nll_loss(h, x.argmax(1), reduction="none").unsqueeze(1),
    "mse_loss": lambda x, h, w: F.mse_loss(h, x, reduction="none"),
    "smooth_l1_loss": lambda x, h, w: F.smooth_l1_loss(h, x, reduction="none"),
    "huber_loss": lambda x, h, w: F.huber_loss(h, x, reduction="none"),
    "binary_cross_entropy": lambda x, h, w: F.binary_cross_entropy(
        h.sigmoid(), x.sigmoid(), reduction="none"
    ),
    "glu": lambda x, h, w: F.glu(torch.cat([h, x], 1)),
    "logaddexp": lambda x, h, w: torch.logaddexp(h, x),
    "std": lambda x, h, w: h / h.std(1, keepdim=True),
    "norm": lambda x, h, w: h / torch.ops.aten.norm.ScalarOpt_dim(h, 2, [1], True),
}


class Apart(nn.Module):
    """All of them in one step, and the same number of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_size, self.w = 4, nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor, h: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        return tuple(torch.tanh(function(x, h, self.w)) for function in APART.values()), h + x


def test_what_is_taken_apart_is_not_met() -> None:
    circuit = trace(Apart().double(), torch.zeros(2, 4).double(), torch.zeros(2, 4).double())
    met = {op_name(node) for graph in (circuit.graph, circuit.recorded().joint.graph) for node in graph.nodes}
    assert not [one for one in met if one.startswith(tuple(APART))]


class Made(nn.Module):
    """Numbers made in the likeness of what has rows, without any themselves."""

    hidden_size = 4

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        h = torch.maximum(x.sigmoid().log(), h.new_full((), -0.5)) + h * x.new_ones(4)
        return torch.tanh(
            h + x.new_zeros(1, 4).cos() * F.binary_cross_entropy(h.sigmoid(), x.sigmoid(), reduction="none")
        )


@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_what_is_made_without_rows_is_a_constant(engine: str) -> None:
    rnn = elman.Recurrent(Made(), engine=engine)
    x = torch.randn(5, 3, 4, dtype=torch.float64, requires_grad=True)
    state = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    got, expected = compare.both(rnn, Inputs(5, 3, x, state, None, None))
    compare.assert_equal(got.values, expected.values)
    compare.assert_equal(got.gradients, expected.gradients)
    assert not any(op_name(node).startswith("new_") for node in rnn.circuit.graph.nodes)
