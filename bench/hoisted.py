"""Python loops as a careful user writes them: U x + b of all time steps in one product before the loop.

Each takes a cell and gives the loop over `(x [T, B, I], h [B, H])`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from bench.form import Run

Tensor = torch.Tensor


def elman(cell: nn.Module) -> Run:
    """`cells.Elman`."""

    def run(x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        W = cell.W.t()
        return _loop(F.linear(x, cell.U, cell.b), h, lambda a, h: torch.tanh(torch.addmm(a, h, W)))

    return run


def leaky(cell: nn.Module) -> Run:
    """`cells.Leaky`."""

    def run(x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        W, alpha = cell.W.t(), cell.alpha

        def step(a: Tensor, h: Tensor) -> Tensor:
            return (1 - alpha) * h + alpha * torch.tanh(torch.addmm(a, h, W))

        return _loop(F.linear(x, cell.U, cell.b), h, step)

    return run


def layer_norm(cell: nn.Module) -> Run:
    """The tests' LayerNormRNN."""

    def run(x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        W, norm = cell.W.weight.t(), cell.norm
        return _loop(cell.U(x), h, lambda a, h: torch.tanh(norm(torch.addmm(a, h, W))))

    return run


def mgu(cell: nn.Module) -> Run:
    """The tests' MGU: two weights for x, stacked into one product."""

    def run(x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        W_f, W_h = cell.W_f.weight.t(), cell.W_h.weight.t()
        U = torch.cat([cell.U_f.weight, cell.U_h.weight])
        b = torch.cat([cell.U_f.bias, cell.U_h.bias])

        def step(a: tuple[Tensor, Tensor], h: Tensor) -> Tensor:
            f = torch.sigmoid(torch.addmm(a[0], h, W_f))
            return (1 - f) * h + f * torch.tanh(torch.addmm(a[1], f * h, W_h))

        of_f, of_h = F.linear(x, U, b).chunk(2, dim=-1)
        return _loop(zip(of_f, of_h, strict=True), h, step)

    return run


def _loop(inputs: Any, h: Tensor, step: Callable[[Any, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    outputs = []
    for a in inputs:
        h = step(a, h)
        outputs.append(h)
    return torch.stack(outputs), h
