"""The cells of the benchmark, and every way to run each of them.

A contestant runs the same recurrence with the same weights over x `[T, B, I]` from a state: it is called as
`run(x, state) -> (outputs [T, B, H], final state)`. `weights` says where it keeps the tensors that the cell has under
the same names, so that every gradient can be compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import elman
from elman import cells
from tests.cases import CASES, Case

Tensor = torch.Tensor
Run = Callable[[Tensor, Any], tuple[Tensor, Any]]

OURS, LOOP, HOISTED, TORCH = "elman", "Python loop", "hoisted loop", "torch.nn"


@dataclass(frozen=True)
class Shape:
    """B rows, I = H wide."""

    B: int
    H: int

    @staticmethod
    def parse(text: str) -> Shape:
        """`B16H64` -> Shape(16, 64)."""
        batch, _, hidden = text.strip().upper().removeprefix("B").partition("H")
        return Shape(int(batch), int(hidden))

    def __str__(self) -> str:
        return f"B{self.B} H{self.H}"


@dataclass(frozen=True)
class Contestant:
    """One way to run a cell. weights: the cell's name of a parameter -> the tensor that this way computes with."""

    name: str
    run: Run
    weights: dict[str, Tensor]


@dataclass(frozen=True)
class Entry:
    """A cell of the benchmark: its case in tests/cases.py, and its peers besides the plain Python loop."""

    name: str
    case: Case
    torch: type[nn.RNNBase] | None = None
    hoisted: Callable[[nn.Module], Run] | None = None

    def contestants(self, cell: nn.Module, engine: str = "auto") -> list[Contestant]:
        """Ours first, then the plain loop, then the others."""
        weights = dict(cell.named_parameters())
        found = [
            Contestant(OURS, elman.Recurrent(cell, engine=engine), weights),
            Contestant(LOOP, loop(cell), weights),
        ]
        if self.hoisted is not None:
            found.append(Contestant(HOISTED, self.hoisted(cell), weights))
        if self.torch is not None:
            found.append(torchs(self.torch, cell))
        return found


# --- ways to run a cell -----------------------------------------------------------------------------------------------


def loop(cell: nn.Module) -> Run:
    """The loop that everybody writes. Its cells return their new state; the output is the state's first tensor."""

    def run(x: Tensor, state: Any) -> tuple[Tensor, Any]:
        outputs = []
        for x_t in x:
            state = cell(x_t, state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(outputs), state

    return run


def hoisted_elman(cell: nn.Module) -> Run:
    """The same, with U x + b for all time steps before the loop."""

    def run(x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        outputs, W = [], cell.W.t()
        for a in F.linear(x, cell.U, cell.b):
            h = torch.tanh(torch.addmm(a, h, W))
            outputs.append(h)
        return torch.stack(outputs), h

    return run


def hoisted_leaky(cell: nn.Module) -> Run:
    """The same for leaky integrators."""

    def run(x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        outputs, W, alpha = [], cell.W.t(), cell.alpha
        for a in F.linear(x, cell.U, cell.b):
            h = (1 - alpha) * h + alpha * torch.tanh(torch.addmm(a, h, W))
            outputs.append(h)
        return torch.stack(outputs), h

    return run


def torchs(kind: type[nn.RNNBase], cell: nn.Module) -> Contestant:
    """torch.nn's layer with a shipped cell's weights. Where the cell has one bias and torch two, the second is zero."""
    layer = kind(cell.input_size, cell.hidden_size).to(cell.U.dtype)
    weights = {"U": layer.weight_ih_l0, "W": layer.weight_hh_l0, "b": layer.bias_ih_l0, "c": layer.bias_hh_l0}
    own = dict(cell.named_parameters())
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(own[name]) if name in own else weight.zero_()

    def run(x: Tensor, state: Any) -> tuple[Tensor, Any]:
        if isinstance(state, tuple):
            outputs, (h, c) = layer(x, (state[0].unsqueeze(0), state[1].unsqueeze(0)))
            return outputs, (h.squeeze(0), c.squeeze(0))
        outputs, h = layer(x, state.unsqueeze(0))
        return outputs, h.squeeze(0)

    return Contestant(TORCH, run, {name: weights[name] for name in own})


ENTRIES = {
    entry.name: entry
    for entry in (
        Entry("rnn", CASES["elman"], torch=nn.RNN, hoisted=hoisted_elman),
        Entry("gru", CASES["gru"], torch=nn.GRU),
        Entry("lstm", CASES["lstm"], torch=nn.LSTM),
        Entry("leaky", CASES["leaky"], hoisted=hoisted_leaky),
        Entry("ln", CASES["layer_norm_rnn"]),
        Entry("mgu", CASES["mgu"]),
        Entry("dale", CASES["dale_rnn"]),
        Entry("zoneout", CASES["zoneout_lstm"]),
    )
}
SHIPPED = {
    "elman": cells.Elman,
    "jordan": cells.Jordan,
    "gru": cells.GRU,
    "lstm": cells.LSTM,
    "leaky": cells.Leaky,
}
