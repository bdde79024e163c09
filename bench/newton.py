"""pararnn's diagonal cells by its Newton solver, beside our loop over the same cells, with the same parameters.

The package is `pararnn-torch`, which has its eager solver on CPUs and wants triton to be installed all the same.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import elman
from bench.form import NEWTON, OURS

Tensor = torch.Tensor
KINDS = {"gru": "ParaGRU", "lstm": "ParaLSTM"}
HIDDEN = 1  # the place of h in the state (c, h)


class Step(nn.Module):
    """One of its cells as others write one: (x, state) -> (output, state)."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        state = self.cell.step(state, x)
        return (state if self.cell.state_slots == 1 else state[..., HIDDEN, :]), state


def absent() -> bool:
    return importlib.util.find_spec("pararnn") is None


def ways(kind: str, T: int, B: int, H: int) -> dict[str, Callable[[], Any]]:
    """A training step of both, I = H, after comparing outputs and all gradients. Raises AssertionError where they
    differ, ImportError without the package."""
    import pararnn

    torch.manual_seed(0)
    cell = getattr(pararnn, KINDS[kind])(H, H)
    theirs, ours = pararnn.ParaRNN(cell, batch_first=False, solver="newton"), elman.Recurrent(Step(cell))
    x, cotangent = torch.randn(T, B, H, requires_grad=True), torch.randn(T, B, H)
    state = torch.zeros(B, H) if cell.state_slots == 1 else torch.zeros(B, cell.state_slots, H)
    leaves = [x, *cell.parameters()]

    def step(run: Callable[[], Tensor]) -> Any:
        outputs = run()
        return outputs, *torch.autograd.grad(outputs, leaves, cotangent)

    runs: dict[str, Callable[[], Tensor]] = {OURS: lambda: ours(x, state)[0], NEWTON: lambda: theirs(x)}
    made, expected = step(runs[OURS]), step(runs[NEWTON])
    for a, b in zip(made, expected, strict=True):
        # Newton stops at a residual of 1e-5; a gradient sums over T.
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * b.abs().max().item())
    return {name: functools.partial(step, run) for name, run in runs.items()}
