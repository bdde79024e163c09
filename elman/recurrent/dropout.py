"""Dropout for recurrences: what is left out stays out for a whole sequence."""

from __future__ import annotations

from torch import Tensor, nn

from elman.segments import Layout


def locked(x: Tensor, p: float, layout: Layout | None = None) -> Tensor:
    """x with a share of its units left out, the same ones at every step of a sequence, others in each sequence.

        y(t) = x(t) ⊙ m / (1 - p),  m ~ Bernoulli(1 - p), drawn once per call

    Against a fresh draw at each step it costs nothing to speak of, and a unit that is out cannot come back a step later
    through the state.

    x: [T, B, …], or [B, …] for one step; packed by a layout, [N, …]. Source: Gal and Ghahramani, A theoretically
    grounded application of dropout in recurrent neural networks, 2016.
    """
    if layout is None or layout.packing is None:
        mask = x.new_empty(x.shape[-2:]).bernoulli_(1 - p)
        return x * (mask / (1 - p))
    mask = x.new_empty((layout.pieces, *x.shape[1:])).bernoulli_(1 - p)
    return x * (mask / (1 - p))[layout.packing.sequence]


class LockedDropout(nn.Module):
    """`locked` as a module, which leaves out nothing in evaluation."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return locked(x, self.p) if self.training and self.p else x

    def extra_repr(self) -> str:
        return f"p={self.p}"
