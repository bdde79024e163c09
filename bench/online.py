"""Learning on a stream that never ends: the gradient carried forward, beside back-propagation through its latest steps.

Every way sees the same stream and takes a step of Adam every three steps. The task is to say what came in six steps
ago.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import elman
from bench import traced
from elman.online import RULES, cost

LAG, EVERY, B, H = 6, 3, 8, 16
WINDOWS = (3, 6, 30, 300)
BUDGET = "64 MB"  # of back-propagation through the whole stream, once more
PEER = "braintrace, "
CHUNK = 3000  # steps that are there at once


@dataclass(frozen=True)
class Run:
    """error: mean square over the last tenth of the stream; what always says the mean has 1. bytes: counted, of what is
    held between steps, or for the backward pass. microseconds: a step."""

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
    for budget in (None, BUDGET):
        yield _whole(steps, budget)
    for rule in () if traced.absent() else traced.RULES:
        losses, held, took = traced.learnt(rule, _stream(steps), B, H, EVERY)
        yield Run(f"{PEER}{rule}", steps, float(losses[-steps // 10 :].mean()), held, took)


def _whole(steps: int, budget: str | None) -> Run:
    """Back-propagation through all of the stream, which has one gradient and comes to its first update at the end."""
    torch.manual_seed(1)
    rnn, V = elman.Recurrent(elman.cells.GRU(1, H), memory=budget), nn.Linear(H, 1)
    x, y = (torch.cat(part) for part in zip(*_stream(steps), strict=True))
    began = time.perf_counter()
    each = (V(rnn(x)[0]) - y).square().mean((1, 2))
    each.mean().backward()
    took = 1e6 * (time.perf_counter() - began) / steps
    held = elman.cost(elman.plan(rnn.circuit), T=steps, B=B, memory=budget).kept
    way = "all steps" if budget is None else f"all steps, {budget}"
    return Run(way, steps, float(each.detach()[-steps // 10 :].mean()), held, took)


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
        losses = _learn(online, V, steps, optimizer)
        held = cost(rnn, torch.zeros(B, 1), way).bytes
    took = 1e6 * (time.perf_counter() - began) / steps
    return Run(way, steps, float(torch.stack(losses[-steps // 10 :]).mean()), held, took)


@dataclass(frozen=True)
class Bias:
    """How a rule's gradient g, summed over a piece of stream while the weights stay, differs from the exact one, r:
    ‖g − r‖ / ‖r‖, and the cosine of the two. learnt: steps that the exact rule has learnt before."""

    rule: str
    learnt: int
    error: float
    cosine: float


def biases(learnt: Sequence[int] = (0, 3000), steps: int = 300) -> Iterator[Bias]:
    """Of the weights of the cell; the readout's gradient needs no rule."""
    for before in learnt:
        torch.manual_seed(1)
        rnn, V = elman.Recurrent(elman.cells.GRU(1, H)), nn.Linear(H, 1)
        if before:
            _learn(
                elman.Online(rnn, "rtrl"),
                V,
                before,
                torch.optim.Adam([*rnn.parameters(), *V.parameters()], lr=0.01),
            )
        found = {}
        for rule in RULES:
            rnn.zero_grad()
            _learn(elman.Online(rnn, rule, generator=torch.Generator().manual_seed(0)), V, steps)
            found[rule] = torch.cat([p.grad.flatten() for p in rnn.parameters() if p.grad is not None])
        exact = found.pop("rtrl")
        for rule, g in found.items():
            cosine = float(torch.cosine_similarity(g, exact, dim=0))
            yield Bias(rule, before, float((g - exact).norm() / exact.norm()), cosine)


def picture(made: Sequence[Run]) -> Figure:
    """Error against what is held, both logarithmic; beside every way the microseconds of a step."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot(
        xscale="log", yscale="log", xlabel="bytes held", ylabel="mean square error at the end"
    )
    kinds = {
        "carried forward": [run for run in made if run.way in RULES],
        "truncated": [run for run in made if run.way.startswith("truncated")],
        "all steps, one update": [run for run in made if run.way.startswith("all")],
        "braintrace": [run for run in made if run.way.startswith(PEER)],
    }
    for (kind, some), marker in zip(kinds.items(), "osD^", strict=True):
        if some:
            axes.plot([run.bytes for run in some], [run.error for run in some], marker, label=kind)
    for together in _close(made):
        words = [
            f"{run.way.removeprefix('truncated, ')}: {run.microseconds:,.0f} µs a step" for run in together
        ]
        place = together[0].bytes, together[0].error
        axes.annotate("\n".join(words), place, (8, -3), textcoords="offset points", fontsize=8, va="top")
    axes.axhline(1, color="0.7", linewidth=1, zorder=0)
    axes.margins(x=0.25, y=0.2)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(f"What came in {LAG} steps ago, learnt on one stream of {made[0].steps:,} steps")
    return figure


def _close(made: Sequence[Run]) -> list[list[Run]]:
    """Ways whose words would lie on each other, together."""
    groups: list[list[Run]] = []
    for run in made:
        near = (
            g
            for g in groups
            if max(abs(math.log(run.bytes / g[0].bytes)), abs(math.log(run.error / g[0].error))) < 0.8
        )
        group = next(near, None)
        if group is None:
            groups.append([run])
        else:
            group.append(run)
    return groups


def _learn(
    online: elman.Online, V: nn.Linear, steps: int, optimizer: torch.optim.Optimizer | None = None
) -> list[Tensor]:
    """The losses of a stream. Without an optimizer gradients add up."""
    losses: list[Tensor] = []
    for xs, ys in _stream(steps):
        for x, y in zip(xs, ys, strict=True):
            losses.append(online.step(x, y, lambda h, target: (V(h) - target).square().mean()))
            if optimizer is not None and len(losses) % EVERY == 0:
                optimizer.step()
                optimizer.zero_grad()
    return losses


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
