"""Cells that exist for their operations: every operation met in real cells' loops occurs in one of the zoo's cells."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from tests.zoo import Base

Tensor = torch.Tensor


class HardGRU(Base):
    """Gates made of straight lines: hardsigmoid, hardtanh, relu6."""

    def __init__(self, n_in: int, n_hidden: int) -> None:
        super().__init__(n_in, n_hidden, 3)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        z, n, s = (self.U(x) + self.W(h)).chunk(3, -1)
        z = F.hardsigmoid(z)
        return z * h + (1 - z) * F.hardtanh(n, -0.8, 0.9) - 0.1 * F.relu6(s)


class SmoothRNN(Base):
    """Smooth pointwise functions: softplus, gelu, silu, elu, exp, log1p, sin, erf, atan, pow, division."""

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        a = self.U(x) + self.W(h)
        grown = (
            F.softplus(a)
            + F.gelu(a)
            - F.silu(a)
            + F.elu(a)
            + torch.exp(-a.square())
            - torch.log1p(a.square())
        )
        waves = (
            torch.sin(a) * torch.cos(h) + torch.erf(a) - torch.atan(h) + F.logsigmoid(a) + a**3 / (1 + a**4)
        )
        return torch.tanh(0.3 * grown - 0.2 * waves) / (1 + 0.1 * h.abs())


class KinkedRNN(Base):
    """Choices between values: clamp, where, maximum, minimum, abs, leaky_relu, masked_fill, comparisons."""

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        a, u = self.W(h), self.U(x)
        both = torch.where(a > u, torch.maximum(a, 0.5 * h), torch.minimum(u, h))
        both = both.masked_fill((h > 0.95) & ~(a <= 0), 0.1)
        return torch.clamp(both + F.leaky_relu(a) - 0.2 * u.abs(), -1.5, 1.5) * 0.7


class RootMeanSquareRNN(Base):
    """Zhang and Sennrich 2019: x rsqrt(mean(x²) + ε), and the state's length kept below one."""

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        a = self.U(x) + self.W(h)
        a = a * torch.rsqrt(a.pow(2).mean(-1, keepdim=True) + 1e-5)
        return a / (1 + torch.linalg.vector_norm(a, dim=-1, keepdim=True))


class StandardisedRNN(Base):
    """Layer norm by hand: var_mean along the features."""

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        a = self.U(x) + self.W(h)
        variance, mean = torch.var_mean(a, dim=1, keepdim=True, correction=0)
        return torch.tanh((a - mean) / (variance + 1e-3).sqrt() + 0.1 * torch.std(h, dim=1, keepdim=True))


class CompetingRNN(Base):
    """Softmax along the features, and the largest of them."""

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        a = self.U(x) + self.W(h)
        best, where = a.max(dim=-1, keepdim=True)
        share = torch.softmax(a - best, -1)
        h = torch.tanh(a * share + 0.1 * torch.logsumexp(a, -1, keepdim=True)) + 0.1 * a.gather(1, where)
        return h.amax(-1) - h.sum(-1), h


class FastWeightsRNN(Base):
    """Ba et al. 2016: the state also holds a matrix [B, H, H] of what was seen lately, by outer products."""

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        h, A = state
        h = torch.tanh(self.U(x) + self.W(h) + torch.bmm(A, h.unsqueeze(2)).squeeze(2))
        A = 0.8 * A + 0.1 * torch.bmm(h.unsqueeze(2), h.unsqueeze(1))
        return h, (h, A)

    def initial_state(self, batch: int) -> tuple[Tensor, Tensor]:
        n, weight = self.hidden_size, self.W.weight
        return weight.new_zeros(batch, n), weight.new_zeros(batch, n, n)


class SlotsRNN(Base):
    """A memory of three slots [B, 3, H], read by a softmax over them and written where the slot matches."""

    def forward(self, x: Tensor, M: Tensor) -> tuple[Tensor, Tensor]:
        key = torch.tanh(self.U(x))
        match = torch.softmax(torch.einsum("bsh,bh->bs", M, key), -1)
        read = (match.unsqueeze(-1) * M).sum(1)
        h = torch.tanh(key + self.W(read))
        return h, M * (1 - 0.5 * match.unsqueeze(-1)) + 0.5 * match.unsqueeze(-1) * h.unsqueeze(1)


class HeadsRNN(nn.Module):
    """Several small recurrences side by side: reshape, permute, and a product of a parameter by bmm."""

    def __init__(self, n_in: int, n_hidden: int) -> None:
        super().__init__()
        self.hidden_size = 3 * n_hidden
        self.U = nn.Linear(n_in, 3 * n_hidden)
        self.W = nn.Parameter(torch.randn(3, n_hidden, n_hidden) / (2 * n_hidden) ** 0.5)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        heads = h.reshape(h.shape[0], 3, -1).permute(1, 0, 2)
        mixed = torch.bmm(heads, self.W).transpose(0, 1).reshape(h.shape)
        return torch.tanh(self.U(x) + mixed)


class AddressingRNN(Base):
    """Values moved along the features: roll, flip, index, index_select, gather, scatter, pad, stack, repeat, expand."""

    order: Tensor

    def __init__(self, n_in: int, n_hidden: int) -> None:
        super().__init__(n_in, n_hidden)
        self.register_buffer("order", torch.randperm(n_hidden, generator=torch.Generator().manual_seed(1)))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        a, n = torch.tanh(self.U(x) + self.W(h)), self.hidden_size
        moved = a.roll(1, 1) + a.flip(1) - a[:, self.order] * h.index_select(1, self.order)
        moved = moved + F.pad(a[:, 1:], (0, 1)) - torch.stack([a, h], 2).mean(2) + a[:, :1].expand(-1, n)
        placed = torch.zeros_like(h).scatter(1, self.order.expand(h.shape[0], -1), a)
        return (
            torch.tanh(moved + placed.gather(1, (self.order * 2 % n).expand_as(a)) + a[:, 1:2].repeat(1, n))
            * 0.8
        )


class PointerRNN(Base):
    """Indices that come with the data, one per row: gather and scatter_add."""

    def forward(self, x: tuple[Tensor, Tensor], h: Tensor) -> tuple[Tensor, Tensor]:
        pointer = (x[1] % self.hidden_size).unsqueeze(-1)
        seen = h.gather(1, pointer)
        h = torch.tanh(self.U(x[0]) + self.W(h)).scatter_add(1, pointer, seen * 0.5)
        return seen.squeeze(-1), h * 0.9


class AccumulatingRNN(Base):
    """Sums that run along the features: cumsum, and a product of them."""

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        a = torch.tanh(self.U(x) + self.W(h))
        return a.cumsum(-1) / self.hidden_size + 0.1 * a.prod(-1, keepdim=True)


class ConvolutionalRNN(nn.Module):
    """The state is a map [B, 2, H], and the product with it a convolution along it."""

    def __init__(self, n_in: int, n_hidden: int) -> None:
        super().__init__()
        self.U, self.W = nn.Linear(n_in, 2 * n_hidden), nn.Conv1d(2, 2, 3, padding=1)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.U(x).view(-1, 2, h.shape[2]) + self.W(h))


class ConvLSTM(nn.Module):
    """Shi et al. 2015: an LSTM whose products are convolutions over a picture; x is [B, 1, 3, H], h [B, 2, 3, H]."""

    def __init__(self, n_in: int, n_hidden: int) -> None:
        super().__init__()
        self.U = nn.Conv2d(1, 8, 3, padding=1)
        self.W = nn.Conv2d(2, 8, 3, padding=1, bias=False)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        h, c = state
        i, f, g, o = (self.U(x) + self.W(h)).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        return h, (h, c)


class LinearRNN(nn.Module):
    """A gated linear recurrence: the gates look at x alone, so the loop holds two or three operations."""

    def __init__(self, n_in: int, n_hidden: int) -> None:
        super().__init__()
        self.hidden_size = n_hidden
        self.U = nn.Linear(n_in, 3 * n_hidden)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        value, forget, show = self.U(x).chunk(3, -1)
        f = torch.sigmoid(forget)
        h = torch.lerp(value, h, f)
        return F.silu(show) * h, h


class BaddbmmRNN(Base):
    """The fused forms of products and sums: addmm, baddbmm, addcmul, matmul with a vector."""

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        a = torch.addmm(self.U(x), h, self.W.weight)
        b = torch.baddbmm(a.unsqueeze(1), h.unsqueeze(1), self.W.weight.expand(h.shape[0], -1, -1)).squeeze(1)
        return torch.tanh(torch.addcmul(b, a, h, value=0.1) + (h @ self.U.bias).unsqueeze(-1))
