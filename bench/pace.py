"""What `elman.cost(…, machine=)` says of a call's time, beside what the call takes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.utils import _pytree as pytree

import elman
from bench.contestants import ENTRIES
from bench.form import Shape
from elman.engines.speed import least

CELLS = ("rnn", "gru", "lstm", "leaky", "mgu", "ln")
SHAPES = ("B1H64", "B4H256", "B16H64", "B32H128", "B8H512")
STEPS = (1, 10, 100)
WITHIN = 0.3  # of the call's time


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


def lines(seconds: float) -> Iterator[Line]:
    """Inference and a training step of each, I = H; seconds: of timing for a line."""
    for name in CELLS:
        for text in SHAPES:
            shape = Shape.parse(text)
            rnn = elman.Recurrent(ENTRIES[name].case.make(shape.H, shape.H))
            for T in STEPS:
                for training, said, taken in _both(rnn, T, shape, seconds):
                    yield Line(name, text, T, training, said, taken)


def _both(rnn: elman.Recurrent, T: int, shape: Shape, seconds: float) -> Iterator[tuple[bool, float, float]]:
    """(training, what is said, what is taken), without and with."""
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
        yield training, sum(s or 0.0 for s in said), least(call, seconds)
