"""Learning on a stream that never ends: the gradient carried forward, beside back-propagation through its latest steps.

Every way sees the same stream and takes a step of Adam every three steps, at a rate that falls. The task is to say what
came in six steps ago.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from torch import Tensor, nn

import elman
from bench import traced
from elman.online import RULES, cost

LAG, EVERY, B, H = 6, 3, 8, 16
WINDOWS = (3, 6, 30, 300)
BUDGET = "64 MB"  # of back-propagation through the whole stream, once more
PEER, CUT, WHOLE = "braintrace, ", "truncated, ", "all steps"
CHUNK = 3000  # steps that are there at once
RATE = 0.01  # of Adam, at the beginning
Stream = Iterator[tuple[Tensor, Tensor]]
Tell = Callable[[int], None]


@dataclass(frozen=True)
class Run:
    """error: mean square over the last tenth of the stream; what always says the mean has 1. bytes: counted, of what is
    held between steps, or for the backward pass. microseconds: a step."""

    way: str
    steps: int
    error: float
    bytes: int
    microseconds: float


def ways() -> list[str]:
    """Rules, windows of truncation, the whole stream without a budget and with one, and the peer's rules."""
    peers = [] if traced.absent() else [f"{PEER}{rule}" for rule in traced.RULES]
    return [*RULES, *(f"{CUT}{window} steps" for window in WINDOWS), WHOLE, f"{WHOLE}, {BUDGET}", *peers]


def run(way: str, steps: int, tell: Tell = lambda done: None) -> Run:
    """One way over a stream of `steps`. tell: called now and then with the steps that are done."""
    if way.startswith(WHOLE):
        return _whole(way, steps)
    if way.startswith(PEER):
        losses, held, took = traced.learnt(way.removeprefix(PEER), _stream(steps, tell), B, H, EVERY, _rate)
        return Run(way, steps, float(losses[-steps // 10 :].mean()), held, took)
    torch.manual_seed(1)
    rnn, V = elman.Recurrent(elman.cells.GRU(1, H)), nn.Linear(H, 1)
    update = _Updates(rnn, V)
    last, window = (
        _Last(steps // 10, steps),
        int(way.removeprefix(CUT).split()[0]) if way.startswith(CUT) else 0,
    )
    began = time.perf_counter()
    if window:
        pairs, targets = _apart(_stream(steps, tell))
        for newest in elman.truncated(rnn, pairs, k1=EVERY, k2=window):
            y = torch.stack([targets.popleft() for _ in range(len(newest.outputs))])
            each = (V(newest.outputs) - y).square().mean((1, 2))
            each.sum().backward()
            last.add(each.detach())
            update()
    else:
        online = elman.Online(rnn, way, generator=torch.Generator().manual_seed(0))
        _learn(online, V, _stream(steps, tell), update, last)
    took = 1e6 * (time.perf_counter() - began) / steps
    if window:
        held = elman.cost(elman.plan(rnn.circuit), T=window, B=B).kept
    else:
        held = cost(rnn, torch.zeros(B, 1), way).bytes
    return Run(way, steps, last.mean, held, took)


def _whole(way: str, steps: int) -> Run:
    """Back-propagation through all of the stream, which has one gradient and comes to its first update at the end."""
    torch.manual_seed(1)
    budget = None if way == WHOLE else BUDGET
    rnn, V = elman.Recurrent(elman.cells.GRU(1, H), memory=budget), nn.Linear(H, 1)
    x, y = (torch.cat(part) for part in zip(*_stream(steps), strict=True))
    began = time.perf_counter()
    each = (V(rnn(x)[0]) - y).square().mean((1, 2))
    each.mean().backward()
    took = 1e6 * (time.perf_counter() - began) / steps
    held = elman.cost(elman.plan(rnn.circuit), T=steps, B=B, memory=budget).kept
    return Run(way, steps, float(each.detach()[-steps // 10 :].mean()), held, took)


class _Last:
    """The mean of the last `count` losses of a stream."""

    def __init__(self, count: int, steps: int) -> None:
        self._count, self._left, self._sum = count, steps, torch.zeros((), dtype=torch.float64)

    def add(self, losses: Tensor) -> None:
        """losses: of the next steps, `[T]`, or of one, `[]`."""
        before, self._left = self._left, self._left - losses.numel()
        if self._left < self._count:
            self._sum += losses.reshape(-1)[max(before - self._count, 0) :].sum()

    @property
    def mean(self) -> float:
        return float(self._sum / self._count)


def _rate(updates: int) -> float:
    """Of Adam after so many updates. At a rate that stays, weights walk on at random once there is nothing left to
    learn: 3.5·10^5 steps on, states are chaotic, ∂s/∂θ grows without end, and what is carried on never forgets it."""
    return RATE / math.sqrt(1 + updates / 3000)


class _Updates:
    """Steps of Adam."""

    def __init__(self, *modules: nn.Module) -> None:
        self._adam = torch.optim.Adam([p for m in modules for p in m.parameters()], lr=RATE, fused=True)
        self._count = 0

    def __call__(self) -> None:
        if self._count % 100 == 0:
            self._adam.param_groups[0]["lr"] = _rate(self._count)
        self._count += 1
        self._adam.step()
        self._adam.zero_grad()


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
            _learn(elman.Online(rnn, "rtrl"), V, _stream(before), _Updates(rnn, V))
        found = {}
        for rule in RULES:
            rnn.zero_grad()
            online = elman.Online(rnn, rule, generator=torch.Generator().manual_seed(0))
            _learn(online, V, _stream(steps))
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
        "truncated": [run for run in made if run.way.startswith(CUT)],
        "all steps, one update": [run for run in made if run.way.startswith(WHOLE)],
        "braintrace": [run for run in made if run.way.startswith(PEER)],
    }
    for (kind, some), marker in zip(kinds.items(), "osD^", strict=True):
        if some:
            axes.plot([run.bytes for run in some], [run.error for run in some], marker, label=kind)
    axes.axhline(1, color="0.7", linewidth=1, zorder=0)
    axes.margins(x=0.25, y=0.2)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(f"What came in {LAG} steps ago, learnt on one stream of {made[0].steps:,} steps")
    figure.draw_without_rendering()
    taken = [Bbox.from_bounds(*axes.transData.transform((run.bytes, run.error)) - 5, 10, 10) for run in made]
    for together in sorted(_close(made), key=lambda group: -group[0].bytes):
        words = "\n".join(
            f"{run.way.removeprefix(CUT)}: {run.microseconds:,.0f} µs a step" for run in together
        )
        taken.append(_said(axes, words, (together[0].bytes, together[0].error), taken))
    return figure


_LINE: dict[str, Any] = {"arrowstyle": "-", "color": "0.6", "linewidth": 0.7, "shrinkA": 0}


def _said(axes: Axes, words: str, place: tuple[float, float], taken: Sequence[Bbox]) -> Bbox:
    """Words beside a place, or further up or down with a line to it, where they lie on nothing that is taken."""
    for right, far, up in product((1, -1), (5, 14, 30, 46, 62), (-1, 1)):
        said = axes.annotate(
            words, place, (right * 8, up * far), textcoords="offset points", fontsize=8,
            ha="left" if right > 0 else "right", va="bottom" if up > 0 else "top",
            arrowprops=_LINE | {"relpos": (right < 0, up < 0)} if far > 14 else None,
        )  # fmt: skip
        said.get_window_extent()  # puts it there
        box = Text.get_window_extent(said)
        inside = axes.bbox.contains(box.x0, box.y0) and axes.bbox.contains(box.x1, box.y1)
        if inside and not box.count_overlaps(taken):
            return box
        said.remove()
    axes.annotate(words, place, (8, -5), textcoords="offset points", fontsize=8, va="top")
    return box


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
    online: elman.Online,
    V: nn.Linear,
    stream: Stream,
    update: _Updates | None = None,
    last: _Last | None = None,
) -> None:
    """Learn a stream. Without updates gradients add up."""
    step = 0
    for xs, ys in stream:
        for x, y in zip(xs, ys, strict=True):
            loss = online.step(x, y, lambda h, target: (V(h) - target).square().mean())
            step += 1
            if last is not None:
                last.add(loss)
            if update is not None and step % EVERY == 0:
                update()


def _stream(steps: int, tell: Tell = lambda done: None) -> Stream:
    """(x, y) `[T, B, 1]`, a chunk after the other: y is the x of `LAG` steps before."""
    generator, last = torch.Generator().manual_seed(0), torch.zeros(LAG, B, 1)
    for start in range(0, steps, CHUNK):
        tell(start)
        count = min(CHUNK, steps - start)
        x = torch.randint(2, (count, B, 1), generator=generator).float() * 2 - 1
        whole = torch.cat([last, x])
        last = whole[-LAG:]
        yield x, whole[:count]


def _apart(stream: Stream) -> tuple[Iterator[Tensor], deque[Tensor]]:
    """The inputs, and the targets of those that have been taken, step by step."""
    waiting: deque[Tensor] = deque()

    def inputs() -> Iterator[Tensor]:
        for x, y in stream:
            waiting.extend(y)
            yield x

    return inputs(), waiting
