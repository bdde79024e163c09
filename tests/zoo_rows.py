"""Cells whose values do not have the batch in front: computational neuroscience, graphs, agents, heads and frames."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

Tensor = torch.Tensor


def _weight(*shape: int, scale: float = 0.6) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) * scale / shape[-1] ** 0.5)


class ColumnsRNN(nn.Module):
    """tanh(W hᵀ + U xᵀ + b)ᵀ: states as columns, as neuroscience writes them."""

    def __init__(self, n_in: int, n_hidden: int) -> None:
        super().__init__()
        self.hidden_size = n_hidden
        self.W, self.U = _weight(n_hidden, n_hidden), _weight(n_hidden, n_in)
        self.b = nn.Parameter(torch.randn(n_hidden, 1) * 0.1)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.W @ h.T + self.U @ x.T + self.b).T


class ColumnRatesRNN(nn.Module):
    """The same with what varies kept as columns: rates, a leak, and adaptation that reads them both."""

    def __init__(self, n_in: int, n_hidden: int) -> None:
        super().__init__()
        self.W, self.U = _weight(n_hidden, n_hidden), _weight(n_hidden, n_in)
        self.a = nn.Parameter(torch.rand(n_hidden, 1) * 0.5)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        v, w = state[0].T, state[1].T
        rate = F.softplus(v)
        v = 0.8 * v + 0.2 * (self.W @ torch.tanh(rate) + self.U @ x.T - w)
        w = torch.sigmoid(self.a) * w + self.a * rate * torch.sin(v)
        return rate.T, (v.T, w.T)


class GatesFirstGRU(nn.Module):
    """Gates stacked in front: einsum("gij,bj->gbi")."""

    def __init__(self, n_in: int, n_hidden: int) -> None:
        super().__init__()
        self.hidden_size = n_hidden
        self.W, self.U = _weight(3, n_hidden, n_hidden), _weight(3, n_hidden, n_in)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        r, z, n = torch.einsum("gij,bj->gbi", self.U, x) + torch.einsum("gij,bj->gbi", self.W, h)
        r, z = torch.sigmoid(r), torch.sigmoid(z)
        return z * h + (1 - z) * torch.tanh(r * n)


class StackedColumnsGRU(nn.Module):
    """The same as one product of stacked matrices with columns: W [3, H, H] @ hᵀ."""

    def __init__(self, n_in: int, n_hidden: int) -> None:
        super().__init__()
        self.hidden_size = n_hidden
        self.W, self.U = _weight(3, n_hidden, n_hidden), _weight(3, n_hidden, n_in)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        r, z, n = (self.W @ h.T + self.U @ x.T).transpose(1, 2).sigmoid()
        return z * h + (1 - z) * torch.tanh(r * n)


class MergedHeadsRNN(nn.Module):
    """Attention over memory slots with heads merged into the batch, B·2 rows, as fairseq wrote it."""

    def __init__(self, n_in: int, n_hidden: int) -> None:
        super().__init__()
        self.width = 2 * n_hidden
        self.q, self.k = _weight(self.width, self.width), _weight(self.width, self.width)
        self.U = _weight(n_in, self.width)

    def forward(self, x: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        B, S, D = m.shape

        def split(z: Tensor) -> Tensor:
            return z.view(B, -1, 2, D // 2).transpose(1, 2).reshape(B * 2, -1, D // 2)

        seen = torch.cat([m, (x @ self.U)[:, None]], 1)
        q, k, v = split(m @ self.q), split(seen @ self.k), split(seen)
        weights = torch.bmm(q, k.transpose(1, 2)).softmax(-1)
        o = torch.bmm(weights, v).view(B, 2, S, D // 2).transpose(1, 2).reshape(B, S, D)
        return o.flatten(1), torch.tanh(0.4 * m + 0.4 * o)


class NodesRNN(nn.Module):
    """Agents, or nodes of a graph, as B·3 rows of one network, and a message between them."""

    def __init__(self, n_in: int, n_hidden: int) -> None:
        super().__init__()
        self.U, self.W = nn.Linear(n_in, n_hidden), nn.Linear(n_hidden, n_hidden)
        self.a = nn.Parameter(torch.rand(n_hidden))
        self.register_buffer("graph", torch.tensor([[0.0, 1.0, 0.0], [0.5, 0.0, 0.5], [1.0, 0.0, 0.0]]))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        B, N, H = h.shape
        message = torch.relu(self.W(h.reshape(B * N, H)) + 0.013).view(B, N, H)
        told = torch.einsum("mn,bnh->bmh", self.graph, message)
        return torch.sin(h) * self.a + 0.3 * told + torch.tanh(self.U(x))[:, None]


class NodesInnerGRU(nn.Module):
    """A torch.nn.GRUCell on B·3 rows: multi-agent learning's own way."""

    def __init__(self, n_in: int, n_hidden: int) -> None:
        super().__init__()
        self.cell, self.V = nn.GRUCell(n_in, n_hidden), nn.Linear(n_hidden, 2)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        B, N, _ = h.shape
        flat = self.cell(x[:, None].expand(-1, N, -1).reshape(B * N, -1), h.flatten(0, 1))
        return self.V(flat).view(B, 2 * N), flat.view(B, N, -1)


class FramesGRU(nn.Module):
    """Two cameras merged into the batch for a convolution, and a recurrence over what they see."""

    def __init__(self, n_in: int, n_hidden: int) -> None:
        super().__init__()
        self.conv, self.cell = nn.Conv2d(1, 2, 3), nn.GRUCell(4 * n_hidden - 8, n_hidden)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        B = x.shape[0]
        seen = torch.tanh(self.conv(x.flatten(0, 1))).flatten(1)
        return self.cell(seen.view(B, -1), h)


class BatchInTheMiddleRNN(nn.Module):
    """Values [2, B, H/…] and [B·2, …] read non-linearly on both sides of what moves the batch."""

    def __init__(self, n_in: int, n_hidden: int) -> None:
        super().__init__()
        self.hidden_size = n_hidden
        self.W, self.U = _weight(2, n_hidden, n_hidden), _weight(2, n_in, n_hidden)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        two = torch.tanh(torch.stack([h, h * h]) @ self.W + x @ self.U)  # [2, B, H]
        merged = torch.sin(two.permute(1, 0, 2).reshape(-1, two.shape[-1]))  # [B·2, H]
        back = merged.view(-1, 2, two.shape[-1]).permute(2, 0, 1)  # [H, B, 2]
        out = torch.tanh(back * back.sum(0, keepdim=True).cos()).sum(-1)  # [H, B]
        return two.prod(0), out.T * 0.5


class StackedInputsRNN(nn.Module):
    """One linear map of h and x stacked, [2, B, H]: rows merged in the order (2, B), which is not (B, 2)."""

    def __init__(self, n_in: int, n_hidden: int) -> None:
        super().__init__()
        self.hidden_size = n_hidden
        self.embed, self.both = nn.Linear(n_in, n_hidden), nn.Linear(n_hidden, n_hidden)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        a, b = torch.tanh(self.both(torch.stack([h, self.embed(x)])))
        return a * torch.sigmoid(b) + 0.1 * h


class FlattenedFirstRNN(nn.Module):
    """The same by hand: flatten(0, 1) of [3, B, H], layer norm, a product, a convolution, and back."""

    def __init__(self, n_in: int, n_hidden: int) -> None:
        super().__init__()
        self.hidden_size = n_hidden
        self.embed, self.norm = nn.Linear(n_in, n_hidden), nn.LayerNorm(n_hidden)
        self.W, self.conv = nn.Linear(n_hidden, n_hidden, bias=False), nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        seen = self.embed(x)
        three = torch.stack([h, seen, h * seen])
        flat = torch.sin(self.W(self.norm(three.flatten(0, 1))))
        back = self.conv(flat[:, None]).squeeze(1).unflatten(0, (3, -1))
        return torch.tanh(0.5 * back.sum(0)) + 0.1 * back[1]
