"""Cells of other people's packages: the Python loop that one writes for them, and `elman.Recurrent` over them."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

import elman
from bench.form import LOOP, OURS
from bench.measure import in_turns
from bench.ragged import Line

Tensor = torch.Tensor


class Elapsed(nn.Module):
    """A cell whose third argument is the time since the step before: x is (input, time)."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: tuple[Tensor, Tensor], h: Tensor) -> Any:
        return self.cell(x[0], h, x[1])


class Spiking(nn.Module):
    """Leaky integrate-and-fire: v(t) = β v(t-1) + U x(t), o = [v > 1], which takes 1 off v; a surrogate gradient."""

    def __init__(
        self, surrogate: Callable[[Tensor], Tensor], width: int, hidden: int, beta: float = 0.9
    ) -> None:
        super().__init__()
        self.surrogate, self.beta = surrogate, beta
        self.U = nn.Linear(width, hidden)

    def forward(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        v = self.beta * v + self.U(x)
        spikes = self.surrogate(v - 1)
        return spikes, v - spikes.detach()


@dataclass(frozen=True)
class Other:
    """A cell of a package.

    make: (the package, I, H) -> the cell. states: how many tensors its state has; one stands alone.
    timed: whether it is given the elapsed time.
    """

    name: str
    package: str
    make: Callable[[Any, int, int], nn.Module]
    states: int = 1
    timed: bool = False

    def problem(self, T: int, B: int, I: int, H: int, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
        """(x, state). Raises ImportError where the package is absent."""
        x: Any = torch.randn(T, B, I, dtype=dtype)
        if self.timed:
            x = x, torch.rand(T, B, 1, dtype=dtype)
        state = tuple(torch.randn(B, H, dtype=dtype) for _ in range(self.states))
        return x, state if self.states > 1 else state[0]

    def cell(self, I: int, H: int) -> nn.Module:
        return self.make(importlib.import_module(self.package), I, H)


OTHERS = (
    Other("MGUCell", "torchrecurrent", lambda p, i, h: p.MGUCell(i, h)),
    Other("PeepholeLSTMCell", "torchrecurrent", lambda p, i, h: p.PeepholeLSTMCell(i, h), states=2),
    Other("LEMCell", "torchrecurrent", lambda p, i, h: p.LEMCell(i, h), states=2),
    Other("coRNNCell", "torchrecurrent", lambda p, i, h: p.coRNNCell(i, h), states=2),
    Other("UnICORNNCell", "torchrecurrent", lambda p, i, h: p.UnICORNNCell(i, h), states=2),
    Other("CfCCell", "ncps.torch", lambda p, i, h: Elapsed(p.CfCCell(i, h)), timed=True),
    Other("fast_sigmoid in Spiking", "snntorch.surrogate", lambda p, i, h: Spiking(p.fast_sigmoid(), i, h)),
)


def loop(cell: nn.Module, x: Any, state: Any) -> tuple[Tensor, Any]:
    """The loop that everybody writes: (outputs, final state)."""
    outputs = []
    for t in range(len(pytree.tree_leaves(x)[0])):
        made = cell(pytree.tree_map(lambda part, t=t: part[t], x), state)
        alone = isinstance(state, Tensor)
        output, state = made if isinstance(made, tuple) and alone else (None, made)
        outputs.append(output if output is not None else pytree.tree_leaves(made)[0])
    return torch.stack(outputs), state


def lines(T: int = 100, B: int = 16, H: int = 64, repeats: int = 7, seconds: float = 3.0) -> list[Line]:
    """A training step of each, after comparing outputs; cells whose package is absent are left out."""
    found = []
    for other in OTHERS:
        torch.manual_seed(0)
        try:
            cell = other.cell(H, H)
        except ImportError:
            continue
        (x, state), rnn = other.problem(T, B, H, H), elman.Recurrent(cell)
        torch.testing.assert_close(rnn(x, state)[0], loop(cell, x, state)[0], rtol=1e-4, atol=1e-4)

        runs: dict[str, Callable[..., Any]] = {OURS: rnn, LOOP: functools.partial(loop, cell)}
        ways = {name: functools.partial(_train, run, cell, x, state) for name, run in runs.items()}
        found.append(Line(other.name, in_turns(ways, repeats, seconds)))
    return found


def _train(run: Callable[..., Any], cell: nn.Module, x: Any, state: Any) -> None:
    cell.zero_grad()
    run(x, state)[0].square().sum().backward()
