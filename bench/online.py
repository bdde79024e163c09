"""Learning on a stream that never ends: the gradient carried forward, beside back-propagation through its latest steps.

Every way sees the same stream and takes a step of Adam every three steps. The task is to say what came in six steps
ago.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import elman
from elman.online import RULES, cost

LAG, EVERY, B, H = 6, 3, 8, 16
WINDOWS = (3, 6, 30, 300)
CHUNK = 3000  # steps that are there at once


@dataclass(frozen=True)
class Run:
    """error: mean square over the last tenth of the stream; what always says the mean has 1. bytes: counted, of what is
    held between steps. microseconds: a step."""

    way: str
    steps: int
    error: float
    bytes: int
    microseconds: float


def runs(steps: int) -> Iterator[Run]:
    """Every way over a stream of `steps`."""
    for rule in RULES:
        yield _run(rule, steps, 0)
    for window in WINDOWS:
        yield _run(f"truncated, {window} steps", steps, window)


def _run(way: str, steps: int, window: int) -> Run:
    torch.manual_seed(1)
    rnn, V = elman.Recurrent(elman.cells.GRU(1, H)), nn.Linear(H, 1)
    optimizer = torch.optim.Adam([*rnn.parameters(), *V.parameters()], lr=0.01)
    losses: list[Tensor] = []
    began = time.perf_counter()
    if window:
        chunks = ((x, y) for x, y in _stream(steps))
        pairs, targets = _apart(chunks)
        for newest in elman.truncated(rnn, pairs, k1=EVERY, k2=window):
            y = torch.stack([next(targets) for _ in range(len(newest.outputs))])
            each = (V(newest.outputs) - y).square().mean((1, 2))
            each.sum().backward()
            losses += each.detach()
            optimizer.step()
            optimizer.zero_grad()
        held = elman.cost(elman.plan(rnn.circuit), T=window, B=B).kept
    else:
        online = elman.Online(rnn, way, generator=torch.Generator().manual_seed(0))
        for xs, ys in _stream(steps):
            for x, y in zip(xs, ys, strict=True):
                losses.append(online.step(x, y, lambda h, target: (V(h) - target).square().mean()))
                if len(losses) % EVERY == 0:
                    optimizer.step()
                    optimizer.zero_grad()
        held = cost(rnn, torch.zeros(B, 1), way).bytes
    took = 1e6 * (time.perf_counter() - began) / steps
    return Run(way, steps, float(torch.stack(losses[-steps // 10 :]).mean()), held, took)


def _stream(steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(x, y) `[T, B, 1]`, a chunk after the other: y is the x of `LAG` steps before."""
    generator, last = torch.Generator().manual_seed(0), torch.zeros(LAG, B, 1)
    for start in range(0, steps, CHUNK):
        count = min(CHUNK, steps - start)
        x = torch.randint(2, (count, B, 1), generator=generator).float() * 2 - 1
        whole = torch.cat([last, x])
        last = whole[-LAG:]
        yield x, whole[:count]


def _apart(chunks: Iterator[tuple[Tensor, Tensor]]) -> tuple[Iterator[Tensor], Iterator[Tensor]]:
    """The inputs, and the targets of those that have been taken, step by step."""
    waiting: list[Tensor] = []

    def inputs() -> Iterator[Tensor]:
        for x, y in chunks:
            waiting.extend(y)
            yield x

    def targets() -> Iterator[Tensor]:
        while True:
            yield waiting.pop(0)

    return inputs(), targets()
