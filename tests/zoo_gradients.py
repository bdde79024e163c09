"""Cells whose gradient is not the derivative of what they compute: only their own autograd knows it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.zoo import Base

Tensor = torch.Tensor


class Sign(torch.autograd.Function):
    """Forward the sign, backward the identity."""

    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        return torch.sign(a)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g


class StraightThroughRNN(Base):
    """Binary units, trained through the straight-through estimator (Bengio, Léonard and Courville 2013)."""

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return 0.5 * h + 0.5 * Sign.apply(self.U(x) + self.W(h))


class RoundedRNN(Base):
    """The straight-through estimator without a Function: y + (round(y) - y).detach()."""

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        y = 4 * torch.tanh(self.U(x) + self.W(h))
        return (y + (torch.round(y) - y).detach()) / 4


class Lie(torch.autograd.Function):
    """Forward tanh, backward three times its derivative: wrong on purpose, and differentiable again."""

    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        y = torch.tanh(a)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return 3 * g * (1 - y * y)


class LyingRNN(Base):
    """The plain recurrence with a backward that lies: whoever differentiates the forward pass instead is found out."""

    def __init__(self, n_in: int, n_hidden: int) -> None:
        super().__init__(n_in, n_hidden)
        with torch.no_grad():
            self.W.weight.mul_(0.4)  # three times the derivative, and still it contracts

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return Lie.apply(self.U(x) + self.W(h))


class Spike(torch.autograd.Function):
    """Forward a step at zero, backward the derivative of the fast sigmoid (Zenke and Ganguli 2018)."""

    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        ctx.save_for_backward(a)
        return (a > 0).to(a.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (a,) = ctx.saved_tensors
        return g / (1 + 10 * a.abs()).square()


class SpikingRNN(Base):
    """Leaky integrate-and-fire units: the membrane v leaks, and is set back by the spikes s that it sent."""

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        v, s = state
        v = 0.9 * v * (1 - s.detach()) + self.U(x) + self.W(s)
        s = Spike.apply(v - 0.3)
        return s, (v, s)

    def initial_state(self, batch: int) -> tuple[Tensor, Tensor]:
        weight = self.W.weight
        return weight.new_zeros(batch, self.hidden_size), weight.new_zeros(batch, self.hidden_size)


class DetachedRNN(Base):
    """One way back to the past is cut, the other is open."""

    def __init__(self, n_in: int, n_hidden: int) -> None:
        super().__init__(n_in, n_hidden)
        self.R = nn.Linear(n_hidden, n_hidden, bias=False)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        gate = torch.sigmoid(self.R(h.detach()))
        return gate * torch.tanh(self.U(x) + self.W(h)) + (1 - gate) * h


class NoGradRNN(Base):
    """A scale that is computed without gradient."""

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        with torch.no_grad():
            scale = 1 + h.square().mean(-1, keepdim=True).sqrt()
        return torch.tanh(self.U(x) + self.W(h / scale))


class Clip(torch.autograd.Function):
    """Forward W h, backward with W's gradient clipped: what is clipped is a sum over rows at one step."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(h, weight)
        return h @ weight.t()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        h, weight = ctx.saved_tensors
        return g @ weight, (g.t() @ h).clamp(-0.05, 0.05)


class ClippedRNN(Base):
    """The gradient of W is clipped at every step, before it is added up."""

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.U(x) + Clip.apply(h, self.W.weight))


class CutRNN(Base):
    """Nothing flows back through time at all, though the state is used."""

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.U(x) + self.W(h.detach()))
