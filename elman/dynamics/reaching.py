"""Vanishing and exploding: what of a state is left k steps later."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from elman.dynamics.flow import Flow
from elman.errors import InputError, expect

Tensor = torch.Tensor
_ROOM = 2**24  # numbers of the Jacobians that are there at a time
NORMS = ("rms", "spectral", "frobenius")


@dataclass(frozen=True, eq=False)
class GradientFlow:
    """‖∂s(t)/∂s(t-k)‖ for k = 1, …, K.

    norms: `[S, K]`, of every place t - k and row that was looked at. norm: which.
    """

    norms: Tensor
    norm: str

    @property
    def mean(self) -> Tensor:
        """The geometric mean over places, `[K]`: norms of products are spread over orders of magnitude."""
        return self.norms.log().mean(0).exp()

    @property
    def rate(self) -> float:
        """By how many nats a step it grows, fitted to the second half of k: below zero it vanishes."""
        log = self.norms.log().mean(0).double()
        k = torch.arange(1.0, len(log) + 1, dtype=log.dtype)
        half = (k > len(log) / 2) & log.cpu().isfinite()
        k, log = k[half], log.cpu()[half]
        if len(k) < 2:
            return math.nan
        k = k - k.mean()
        return float((k * log).sum() / k.square().sum())

    def __str__(self) -> str:
        ks = sorted({min(k, self.norms.shape[1]) for k in (1, 2, 5, 10, 20, 50, 100, 200, 500)})
        shown = ", ".join(f"k={k} {self.mean[k - 1]:.3g}" for k in ks)
        return (
            f"‖∂s(t)/∂s(t-k)‖ ({self.norm}), {len(self.norms)} places: {shown}; {self.rate:+.3g} nats a step"
        )


@torch.no_grad()
def gradient_flow(
    rnn: Any, x: Any = None, state: Any = None, k: int | None = None, *, steps: int | None = None, places: int = 16,
    norm: str = "rms", context: Any = None,
) -> GradientFlow:  # fmt: skip
    """How much of a state is left in later ones: exact norms of ∂s(t)/∂s(t-k), k = 1, …, K, along trajectories.

    The product of Jacobians that makes gradients vanish or explode (Bengio, Simard and Frasconi 1994; Pascanu, Mikolov
    and Bengio 2013). All n directions of all places are rows of one planned call, or of a few where memory asks.

    rnn: a `Recurrent`, or a `Stack` that reads forward. x: `[T, B, …]`, in the layer's order; None, with `steps`, for
        an autonomous cell, from `state` `[B, …]`.
    k: K, by default 64, or T if that is less. places: how many t - k are looked at, evenly spread over time; each in
        every row, all for the same K.
    norm: "rms", the root mean square over directions, ‖·‖_F / √n (of the identity 1); "spectral", the largest singular
        value, what the most favoured direction keeps; or "frobenius".

    Raises InputError for a k or norm that does not fit, and what `jacobian` raises.
    """
    flow = Flow.of(rnn, x, state, steps=steps, context=context, where="gradient_flow")
    k = min(64, flow.steps) if k is None else k
    expect(k, int, "it is a whole number", "gradient_flow(k=)")
    if not 1 <= k <= flow.steps:
        raise InputError(
            what="it does not fit", where="gradient_flow(k=)", got=k, expected=f"1 to {flow.steps}"
        )
    if norm not in NORMS:
        raise InputError(
            what="there is no such norm", where="gradient_flow(norm=)", got=repr(norm), expected=" or ".join(NORMS)
        )  # fmt: skip
    before, _ = flow.run(0, flow.steps, {})
    around = flow.around(0, before)
    room = flow.steps - k
    firsts = sorted({room * place // max(places - 1, 1) for place in range(max(places, 1))})
    every = torch.eye(flow.n, dtype=flow.start.dtype, device=flow.start.device)[:, None]
    together = max(1, _ROOM // (k * flow.batch * flow.n**2))
    norms = []
    for at in range(0, len(firsts), together):
        some = firsts[at : at + together]
        rows = flow.batch * len(some)
        pushed = flow.pushed_along(flow.side_by_side(around, some, k), every.expand(-1, rows, -1))
        norms.append(_norms(pushed.permute(2, 0, 3, 1), norm))
    return GradientFlow(torch.cat(norms), norm)


def _norms(jacobians: Tensor, norm: str) -> Tensor:
    if norm == "spectral":
        return torch.linalg.matrix_norm(jacobians, 2)
    norms = torch.linalg.matrix_norm(jacobians)
    return norms / math.sqrt(jacobians.shape[-1]) if norm == "rms" else norms
