"""What is drawn in tests: circuits that are hard to draw, each traced once."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

import elman
from elman import cells
from elman.circuit import Circuit
from tests.circuits import circuit_of

Tensor = torch.Tensor


class NormedGates(nn.Module):
    """Three gates, each with a layer norm of its own."""

    def __init__(self, n: int, m: int) -> None:
        super().__init__()
        self.hidden_size = m
        self.U_r, self.U_z, self.U_n = (nn.Linear(n, m) for _ in range(3))
        self.W_r, self.W_z, self.W_n = (nn.Linear(m, m, bias=False) for _ in range(3))
        self.norm_r, self.norm_z, self.norm_n = (nn.LayerNorm(m) for _ in range(3))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        r = torch.sigmoid(self.norm_r(self.U_r(x) + self.W_r(h)))
        z = torch.sigmoid(self.norm_z(self.U_z(x) + self.W_z(h)))
        n = torch.tanh(
            self.norm_n(
                self.U_n(x) + self.W_n(r * h),
            )
        )
        return (1 - z) * n + z * h


class Attends(nn.Module):
    """A cell that attends over its context, through a module's cell."""

    def __init__(self, n: int, m: int, k: int) -> None:
        super().__init__()
        self.hidden_size = m
        self.cell, self.query, self.readout = nn.GRUCell(n + k, m), nn.Linear(m, k), nn.Linear(m + k, 5)

    def forward(self, x: Tensor, h: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        scores = torch.einsum("bk,bsk->bs", self.query(h), context)
        weights = torch.softmax(scores, -1)
        summary = torch.einsum("bs,bsk->bk", weights, context)
        h = self.cell(torch.cat([x, summary], -1), h)
        return self.readout(torch.cat([h, summary], -1)), h


class Autonomous(nn.Module):
    def __init__(self, m: int) -> None:
        super().__init__()
        self.hidden_size, self.W = m, nn.Parameter(torch.randn(m, m) / m)

    def forward(self, x: None, s: Tensor) -> Tensor:
        return torch.tanh(s @ self.W.T)


class LongNames(nn.Module):
    def __init__(self, n: int, m: int) -> None:
        super().__init__()
        self.hidden_size = m
        self.input_to_hidden_projection = nn.Linear(n, m)
        self.recurrent_hidden_projection = nn.Linear(m, m)
        self.gate_of_everything_that_enters = nn.Linear(n + m, m)

    def forward(self, observation_at_this_step: Tensor, membrane_potential: Tensor) -> Tensor:
        both = torch.cat([observation_at_this_step, membrane_potential], -1)
        openness_of_the_gate = torch.sigmoid(self.gate_of_everything_that_enters(both))
        candidate_membrane_potential = torch.tanh(
            self.input_to_hidden_projection(observation_at_this_step)
            + self.recurrent_hidden_projection(membrane_potential)
        )
        return (
            openness_of_the_gate * candidate_membrane_potential
            + (1 - openness_of_the_gate) * membrane_potential
        )


class Readout(nn.Module):
    """Figure 10.3 of the book, letter by letter."""

    def __init__(self, n: int, m: int, k: int) -> None:
        super().__init__()
        self.hidden_size = m
        self.U, self.W, self.V = nn.Linear(n, m), nn.Linear(m, m, bias=False), nn.Linear(m, k)

    def forward(self, inputs: tuple[Tensor, Tensor], h: Tensor) -> tuple[Tensor, Tensor]:
        x, y = inputs
        a = self.W(h) + self.U(x)
        h = torch.tanh(a)
        o = self.V(h)
        L = nn.functional.cross_entropy(o, y, reduction="none")
        return L, h


class Both(Readout):
    """The same, which gives out o as well: what it is trained on is L alone."""

    def forward(self, inputs: tuple[Tensor, Tensor], h: Tensor) -> tuple[Any, Tensor]:
        x, y = inputs
        a = self.W(h) + self.U(x)
        h = torch.tanh(a)
        o = self.V(h)
        L = nn.functional.cross_entropy(o, y, reduction="none")
        return (o, L), h


@functools.cache
def thing(name: str) -> Circuit:
    x = torch.zeros(2, 3)
    if name == "jordan_forced":
        return elman.force(thing("jordan"))
    if name == "attends":
        return elman.trace(Attends(3, 4, 5), x, None, torch.zeros(2, 7, 5), check=False)
    if name == "autonomous":
        return elman.trace(Autonomous(4), None, torch.zeros(2, 4), check=False)
    if name in ("readout", "both"):
        cell = {"readout": Readout, "both": Both}[name](3, 4, 5)
        return elman.trace(cell, (x, torch.zeros(2, dtype=torch.long)), check=False)
    made = {
        "elman": cells.Elman, "gru": cells.GRU, "lstm": cells.LSTM, "leaky": cells.Leaky, "normed": NormedGates,
        "long": LongNames,
    }  # fmt: skip
    if name == "jordan":
        return elman.trace(cells.Jordan(3, 4, 2), x, check=False)
    if name in made:
        return elman.trace(made[name](3, 4), x, check=False)
    return circuit_of(name)


SHIPPED = ("elman", "jordan", "gru", "lstm", "leaky")
THINGS = (
    *SHIPPED, "torch_lstm", "torch_gru", "normed", "long", "readout", "attends", "autonomous", "jordan_forced",
)  # fmt: skip
