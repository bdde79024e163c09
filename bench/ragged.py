"""Ragged batches and episodes: a GRU that runs the steps that happen, beside what one does without it."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import elman
from bench.measure import in_turns

Tensor = torch.Tensor
RAGGED, PADDED, DENSE, PACKED = "ours, ragged", "ours, padded", "ours, dense", "torch.nn, packed"
RESET, WHOLE, WHERE, SPLIT = "ours, resets", "ours, no resets", "loop with where", "torch.nn, split by hand"
SIZES = tuple((T, 32, H) for T in (10, 400, 2000) for H in (64, 256))
EPISODES = (256, 16, 64)


@dataclass(frozen=True)
class Line:
    """One problem: seconds of every round of a training step, by way."""

    words: str
    seconds: dict[str, list[float]]

    def milliseconds(self, way: str) -> float:
        return 1e3 * statistics.median(self.seconds[way])

    def ratio(self, way: str, to: str) -> float:
        """How many times longer one way takes than another: the median over rounds."""
        return statistics.median(a / b for a, b in zip(self.seconds[way], self.seconds[to], strict=True))


def _pair(H: int) -> tuple[elman.Recurrent, nn.GRU]:
    """The same GRU as ours and as torch's."""
    torch.manual_seed(0)
    theirs = nn.GRU(H, H)
    ours = elman.Recurrent(elman.cells.GRU(H, H))
    with torch.no_grad():
        for name, weight in {
            "U": "weight_ih_l0",
            "W": "weight_hh_l0",
            "b": "bias_ih_l0",
            "c": "bias_hh_l0",
        }.items():
            getattr(ours.cell, name).copy_(getattr(theirs, weight))
    return ours, theirs


def _training(run: Callable[[], Tensor], cotangent: Tensor, layer: nn.Module) -> Callable[[], None]:
    def step() -> None:
        layer.zero_grad()
        run().backward(cotangent)

    return step


def lengths(T: int, B: int, H: int, seconds: float) -> Line:
    """Lengths uniform in 1 … T: a training step on them, on the same batch padded, on a dense batch of as many steps,
    and torch's on a PackedSequence, which it makes and takes apart. Outputs are compared first."""
    ours, theirs = _pair(H)
    x, cotangent = torch.randn(T, B, H), torch.randn(T, B, H)
    n = torch.randint(1, T + 1, (B,))
    n[0] = T
    mean = round(n.sum().item() / B)
    happen = (torch.arange(T)[:, None] < n)[..., None]
    cotangent *= happen

    def packed() -> Tensor:
        rows = pack_padded_sequence(x, n, enforce_sorted=False)
        return pad_packed_sequence(theirs(rows)[0])[0]

    torch.testing.assert_close(ours(x, lengths=n)[0], packed(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours(x)[0] * happen, packed(), rtol=1e-4, atol=1e-4)
    ways: dict[str, Callable[[], Any]] = {
        RAGGED: _training(lambda: ours(x, lengths=n)[0], cotangent, ours),
        PADDED: _training(lambda: ours(x)[0], cotangent, ours),
        DENSE: _training(lambda: ours(x[:mean])[0], cotangent[:mean].contiguous(), ours),
        PACKED: _training(packed, cotangent, theirs),
    }
    # torch's time grows with the square of T on a PackedSequence: half a minute for one step of the longest.
    return Line(f"lengths 1 … {T}, B{B}H{H}", in_turns(ways, 1 if T > 1000 else 100, seconds))


def episodes(T: int, B: int, H: int, seconds: float, every: int = 30) -> Line:
    """A reset every 30 steps on average: a training step with them, without, by a Python loop over torch's cell that
    chooses the state with `where`, and by torch's layer on episodes cut and packed by hand."""
    ours, theirs = _pair(H)
    x, cotangent = torch.randn(T, B, H), torch.randn(T, B, H)
    reset = torch.rand(T, B) < 1 / every
    cell = nn.GRUCell(H, H)
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        setattr(cell, name, getattr(theirs, f"{name}_l0"))

    def where() -> Tensor:
        h, outputs = torch.zeros(B, H), []
        zero = torch.zeros(())
        for x_t, begins in zip(x, reset, strict=True):
            h = cell(x_t, torch.where(begins[:, None], zero, h))
            outputs.append(h)
        return torch.stack(outputs)

    def split() -> Tensor:
        starts = [[0, *(t for t in column.nonzero()[:, 0].tolist() if t), T] for column in reset.T]
        pieces = [(b, s, e) for b, cuts in enumerate(starts) for s, e in pairwise(cuts)]
        rows = nn.utils.rnn.pack_sequence([x[s:e, b] for b, s, e in pieces], enforce_sorted=False)
        made, _ = pad_packed_sequence(theirs(rows)[0])
        columns: list[list[Tensor]] = [[] for _ in range(B)]
        for i, (b, s, e) in enumerate(pieces):
            columns[b].append(made[: e - s, i])
        return torch.stack([torch.cat(column) for column in columns], 1)

    for other in (where, split):
        torch.testing.assert_close(ours(x, reset=reset)[0], other(), rtol=1e-4, atol=1e-4)
    ways: dict[str, Callable[[], Any]] = {
        RESET: _training(lambda: ours(x, reset=reset)[0], cotangent, ours),
        WHOLE: _training(lambda: ours(x)[0], cotangent, ours),
        WHERE: _training(where, cotangent, cell),
        SPLIT: _training(split, cotangent, theirs),
    }
    return Line(f"T{T}, a reset every {every}, B{B}H{H}", in_turns(ways, 100, seconds))
