"""Dropout for recurrences: what is left out stays out for a whole window."""

from __future__ import annotations

from torch import Tensor, nn


class LockedDropout(nn.Module):
    """Leaves out a share of the units, the same ones at every step of a call, others in each sequence.

        y(t) = x(t) ⊙ m / (1 - p),  m ~ Bernoulli(1 - p), drawn once per call

    Against a fresh draw at each step (torch.nn.Dropout) it costs nothing to speak of, and a unit that is out cannot
    come back a step later through the state.

    x: [T, B, …], or [B, …] for one step. Source: Gal and Ghahramani, A theoretically grounded application of dropout in
    recurrent neural networks, 2016.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        mask = x.new_empty(x.shape[-2:]).bernoulli_(1 - self.p)
        return x * (mask / (1 - self.p))

    def extra_repr(self) -> str:
        return f"p={self.p}"
