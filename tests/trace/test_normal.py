"""The normal form of a step computes what the step does: all that it does away with, written in one cell."""

from __future__ import annotations

import torch
from torch import nn

import elman
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
