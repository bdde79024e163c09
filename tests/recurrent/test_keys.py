"""What a trace key is made of, a part each: changed between two calls, each is honoured."""

from __future__ import annotations

import enum
import itertools
import math
import types
from typing import Any

import numpy
import pytest
import torch
from torch import nn

import elman
from tests.recurrent.test_trace_key import B, H, T, agrees

Tensor = torch.Tensor


class Rounding(nn.Module):
    """States rounded to the default dtype."""

    hidden_size = H

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(x + h.to(torch.get_default_dtype()).to(h.dtype) / 3)


def test_the_default_dtype() -> None:
    rnn, x, h = elman.Recurrent(Rounding()), torch.randn(T, B, H).double(), torch.randn(B, H).double()
    for dtype in (torch.float32, torch.float64, torch.float32):
        torch.set_default_dtype(dtype)
        try:
            agrees(rnn, x, h)
        finally:
            torch.set_default_dtype(torch.float32)


class Mode(enum.Enum):
    SOFT = "soft"
    HARD = "hard"


class Word(str):
    """A string of somebody's own."""


class Count(int):
    pass


class Kept(nn.Module):
    """What it keeps says how it squashes."""

    hidden_size = H

    def __init__(self, kept: Any) -> None:
        super().__init__()
        self.kept = kept

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        soft = self.kept in (Mode.SOFT, "soft", 1)
        return torch.tanh(x + h) if soft else (x + h).clamp(-1, 1)


@pytest.mark.parametrize(
    ("one", "other"), [(Mode.SOFT, Mode.HARD), (Word("soft"), Word("hard")), (Count(1), Count(2))], ids=str
)
def test_values_of_classes_of_ones_own(one: Any, other: Any) -> None:
    rnn, x, h = elman.Recurrent(Kept(one)), torch.randn(T, B, H).double(), torch.randn(B, H).double()
    first = agrees(rnn, x, h)
    rnn.cell.kept = other
    assert not torch.allclose(agrees(rnn, x, h), first)
    rnn.cell.kept = one
    assert torch.equal(agrees(rnn, x, h), first)


class Using(nn.Module):
    """Makes something of a class, or calls something in a module, that it keeps."""

    hidden_size = H

    def __init__(self, used: Any) -> None:
        super().__init__()
        self.used = used

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        if isinstance(self.used, type):
            return self.used()(x + h)
        return torch.tanh(x + float(self.used.remainder(5.0, 3.0)) * h)


@pytest.mark.parametrize(
    ("one", "other"), [(nn.Tanh, nn.Hardtanh), (math, numpy)], ids=["classes", "modules"]
)
def test_which_class_or_module_of_a_library_it_is(one: Any, other: Any) -> None:
    rnn, x, h = elman.Recurrent(Using(one)), torch.randn(T, B, H).double(), torch.randn(B, H).double()
    first = agrees(rnn, x, h)
    rnn.cell.used = other
    assert not torch.allclose(agrees(rnn, x, h), first)


class Choosing(nn.Module):
    hidden_size = H

    def __init__(self) -> None:
        super().__init__()
        self.scales = [types.SimpleNamespace(of=0.5), types.SimpleNamespace(of=2.0)]
        self.chosen = [[self.scales[0]]]  # found after them

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        total = sum(scale.of for scale in self.scales)
        return torch.tanh(x + self.chosen[0][0].of * h + total)


def test_which_of_several_it_is() -> None:
    """What was met before, by another path, is met again: by which one counts."""
    rnn, x, h = elman.Recurrent(Choosing()), torch.randn(T, B, H).double(), torch.randn(B, H).double()
    first = agrees(rnn, x, h)
    rnn.cell.chosen[0][0] = rnn.cell.scales[1]
    assert not torch.allclose(agrees(rnn, x, h), first)


class Gained(nn.Module):
    """tanh(x + gain · h), where the gain is any attribute."""

    hidden_size = H

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(x + self.gain * h)


GAINS: dict[str, Any] = {
    "a buffer": lambda cell, gain: cell.register_buffer("gain", gain),
    "a parameter": lambda cell, gain: cell.register_parameter("gain", nn.Parameter(gain)),
    "one that does not learn": lambda cell, gain: cell.register_parameter("gain", nn.Parameter(gain, False)),
    "an attribute": lambda cell, gain: setattr(cell, "gain", gain),
    "a number": lambda cell, gain: setattr(cell, "gain", 0.5),
}


@pytest.mark.parametrize("names", [*itertools.permutations(GAINS, 2)], ids="; ".join)
def test_as_what_a_tensor_is_kept(names: tuple[str, str]) -> None:
    """Of two cells of one class, one after the other, and of one cell that changes."""
    x, h, changing = torch.randn(T, B, H).double(), torch.randn(B, H).double(), elman.Recurrent(Gained())
    for name in (*names, *names):
        gain, rnn = torch.rand(H).double(), elman.Recurrent(Gained())
        GAINS[name](rnn.cell, gain)
        agrees(rnn, x, h)
        if hasattr(changing.cell, "gain"):
            del changing.cell.gain
        GAINS[name](changing.cell, gain)
        agrees(changing, x, h)
