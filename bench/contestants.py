"""The cells of the benchmark, and every way to run each of them.

A contestant runs the same recurrence with the same weights over x `[T, B, I]` from a state. `weights` says where it
keeps the tensors that the cell has under the same names, so that every gradient can be compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import elman
from bench import hoisted, jaxed
from bench.form import COMPILED, HOISTED, LOOP, OURS, TORCH, Contestant, Eager, Run
from elman import cells
from tests.cases import CASES, Case

Tensor = torch.Tensor


@dataclass(frozen=True)
class Entry:
    """A cell of the benchmark: its case in tests/cases.py, and its peers besides the plain Python loop."""

    name: str
    case: Case
    torch: type[nn.RNNBase] | None = None
    hoisted: Callable[[nn.Module], Run] | None = None
    jax: jaxed.Step | None = None

    def contestants(self, cell: nn.Module, engine: str = "auto", compiled: bool = False) -> list[Contestant]:
        """Ours first, then the plain loop, then the others. compiled: torch.compile of the plain loop among them."""
        weights = dict(cell.named_parameters())
        found: list[Contestant] = [
            Eager(OURS, elman.Recurrent(cell, engine=engine), weights),
            Eager(LOOP, loop(cell), weights),
        ]
        if self.hoisted is not None:
            found.append(Eager(HOISTED, self.hoisted(cell), weights))
        if self.torch is not None:
            found.append(torchs(self.torch, cell))
        if self.jax is not None and jaxed.version() is not None:
            found.append(jaxed.Jaxed(self.jax, weights))
        if compiled:
            # All loops are one function to the compiler, which gives up on a function after eight compilations.
            torch.compiler.reset()
            found.append(Eager(COMPILED, torch.compile(loop(cell), dynamic=False), weights))
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


def torchs(kind: type[nn.RNNBase], cell: nn.Module) -> Eager:
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

    return Eager(TORCH, run, {name: weights[name] for name in own})


ENTRIES = {
    entry.name: entry
    for entry in (
        Entry("rnn", CASES["elman"], torch=nn.RNN, hoisted=hoisted.elman, jax=jaxed.tanh),
        Entry("gru", CASES["gru"], torch=nn.GRU, jax=jaxed.gru),
        Entry("lstm", CASES["lstm"], torch=nn.LSTM, jax=jaxed.lstm),
        Entry("leaky", CASES["leaky"], hoisted=hoisted.leaky),
        Entry("ln", CASES["layer_norm_rnn"], hoisted=hoisted.layer_norm),
        Entry("mgu", CASES["mgu"], hoisted=hoisted.mgu),
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
