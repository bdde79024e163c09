"""What `elman.cost(…, machine=)` says of a call's time, beside what the call takes.

The three numbers of a machine are those of its processors at their full speed. Beside other guests of a host they have
it in some moments only: so a loop of multiply-adds in registers is timed before and after each stretch of calls, and
a stretch counts where both are about as fast as that loop ever is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils import _pytree as pytree

import elman
from bench.contestants import ENTRIES
from bench.form import Shape
from elman.engines.native import why_not_built
from elman.engines.speed import least

CELLS = ("rnn", "gru", "lstm", "leaky", "mgu", "ln")
SHAPES = ("B1H64", "B4H256", "B16H64", "B32H128", "B8H512")
STEPS = (1, 10, 100)
WITHIN = 0.3  # of the call's time
ENOUGH = 5  # stretches of calls at full speed
PATIENCE = 8  # times as long is waited for them
AGAIN = 4  # times a call is timed anew that took longer than was said


@dataclass(frozen=True)
class Line:
    """One call. said, taken: seconds."""

    cell: str
    shape: str
    steps: int
    training: bool
    said: float
    taken: float

    @property
    def ratio(self) -> float:
        return self.said / self.taken

    @property
    def met(self) -> bool:
        return abs(math.log(self.ratio)) <= math.log1p(WITHIN)


class Clock:
    """Times calls while the processor runs at about its full speed: what it had in one of ten moments at first."""

    def __init__(self, moments: int = 2000) -> None:
        speeds = sorted(self.speed() for _ in range(moments))
        self.enough = 0.95 * speeds[moments * 9 // 10]

    def speed(self) -> float:
        """Multiply-adds a second, now; without the compiled part always the same."""
        if why_not_built() is not None:
            return 1.0
        from elman import _native

        begun = time.perf_counter()
        return _native.multiply_adds(60_000) / (time.perf_counter() - begun)

    def full(self) -> bool:
        return self.speed() > self.enough

    def wait(self, seconds: float) -> None:
        """Until many moments are such ones, or so long."""
        end = time.perf_counter() + seconds
        while sum(self.full() for _ in range(200)) < 60 and time.perf_counter() < end:
            time.sleep(0.1)

    def least(self, call: Callable[[], Any], seconds: float) -> float:
        """The least time of a call in stretches at full speed; where there are none for long, of all of them."""
        found = anyhow = math.inf
        stretches, end = 0, time.perf_counter() + PATIENCE * seconds
        call()
        while stretches < ENOUGH and time.perf_counter() < end:
            before = self.full()
            here = least(call, seconds / ENOUGH)
            anyhow = min(anyhow, here)
            if before and self.full():
                found, stretches = min(found, here), stretches + 1
        return found if stretches else anyhow


def lines(seconds: float) -> list[Line]:
    """Inference and a training step of each, I = H; seconds: of timing for a line.

    Those that take longer than is said are timed again behind the others, while somebody else may leave the processor
    and its caches alone: the least of all times is what a call takes.
    """
    clock = Clock()
    clock.wait(60)
    elman.machine()
    found, calls = list[Line](), list[Callable[[], Any]]()
    for name in CELLS:
        for text in SHAPES:
            shape = Shape.parse(text)
            rnn = elman.Recurrent(ENTRIES[name].case.make(shape.H, shape.H))
            for T in STEPS:
                for training, said, call in _both(rnn, T, shape):
                    found.append(Line(name, text, T, training, said, clock.least(call, seconds)))
                    calls.append(call)
    for _ in range(AGAIN):
        for i, line in enumerate(found):
            if not line.met and line.ratio < 1:
                found[i] = replace(line, taken=min(line.taken, clock.least(calls[i], seconds)))
    return found


def _both(rnn: elman.Recurrent, T: int, shape: Shape) -> Iterator[tuple[bool, float, Callable[[], Any]]]:
    """(training, what is said, a call), without and with."""
    x = torch.randn(T, shape.B, shape.H, requires_grad=True)
    with torch.no_grad():
        g, state = rnn(x)
    wants, start = [x, *rnn.parameters()], pytree.tree_map(torch.Tensor.detach, state)

    def infer() -> None:
        with torch.no_grad():
            rnn(x, start)

    def train() -> None:
        torch.autograd.grad(rnn(x, start)[0], wants, g, allow_unused=True)

    train()
    both = elman.pair(rnn.circuit)
    for training, call, circuits in (
        (False, infer, [rnn.circuit]),
        (True, train, [both.forward, both.backward]),
    ):
        plans = [elman.plan(circuit) for circuit in circuits]
        said = [elman.cost(plan, T, shape.B, machine=elman.machine()).seconds for plan in plans]
        yield training, sum(s or 0.0 for s in said), call
