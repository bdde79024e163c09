"""Lyapunov exponents: ours, and the loop that everybody writes, `torch.func.jacrev` and QR at every step."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.func import jacrev

import elman
from bench.measure import in_turns
from bench.ragged import Line

Tensor = torch.Tensor
OURS, LOOP = "ours", "jacrev, QR"
T, N = 1000, 128


def lines(seconds: float, steps: int = T, width: int = N) -> Iterator[Line]:
    """All exponents, and the first 16, of three networks of one sequence; compared before they are timed."""
    for name, cell in _networks(width).items():
        rnn = elman.Recurrent(cell)
        x, h = 0.3 * torch.randn(steps, 1, width), torch.randn(1, width)
        for k in (width, min(16, width)):
            ways = {
                OURS: lambda rnn=rnn, x=x, h=h, k=k: elman.dynamics.lyapunov(rnn, x, h, k, warm=0).exponents,
                LOOP: lambda cell=cell, x=x, h=h, k=k: _loop(cell, x, h, k),
            }
            ours, theirs = (way().double() for way in ways.values())
            # Both begin with directions of their own, which are forgotten; the slowest last.
            torch.testing.assert_close(ours[:8], theirs[:8], rtol=0.05, atol=10 / steps)
            words = f"{name}, k = {k}"
            yield Line(words, in_turns(ways, 2, seconds))


def _networks(width: int) -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    chaotic, rate, gru = (
        kind(width, width) for kind in (elman.cells.Elman, elman.cells.Leaky, elman.cells.GRU)
    )
    for cell in (chaotic, rate):
        torch.nn.init.normal_(cell.W, std=1.5 / width**0.5)  # Sompolinsky, Crisanti and Sommers 1988: g = 1.5
    return {"tanh, g = 1.5": chaotic, "leaky tanh, g = 1.5": rate, "GRU": gru}


@torch.no_grad()
def _loop(cell: torch.nn.Module, x: Tensor, h: Tensor, k: int) -> Tensor:
    width = h.shape[1]
    q, total = torch.linalg.qr(torch.randn(width, k)).Q, torch.zeros(k)
    for x_t in x:
        jacobian = jacrev(lambda s, x_t=x_t: cell(x_t, s[None])[0])(h[0])
        q, r = torch.linalg.qr(jacobian @ q)
        total += r.diagonal().abs().log()
        h = cell(x_t, h)
    return total.sort(descending=True).values / len(x)
