"""What a trace sees and does not honour: it is refused by name, and nothing of what a refused trace has done is left.
What a step never reads makes no new trace.
"""

from __future__ import annotations

import copy
import random
import re
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import elman
from elman.errors import RetraceWarning
from tests import eager
from tests.trace.test_sees import EXACT, Cell, H, data, ways

Tensor = torch.Tensor

KEPT: list[Any] = []
COUNT = 0
HERE = globals()


class Tanh(nn.Module):
    """A step, and what it does besides."""

    def __init__(self, besides: Callable[[Any, Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.W = nn.Linear(H, H).double()
        self.besides = besides

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        made = self.besides(self, x, h)
        return torch.tanh(x + self.W(h)) * (made if isinstance(made, float) else 1.0)


def counting(cell: Any, x: Tensor, h: Tensor) -> None:
    global COUNT
    COUNT += 1


def clamping(cell: Any, x: Tensor, h: Tensor) -> None:
    cell.W.weight.data.clamp_(min=0)


def assigning(cell: Any, x: Tensor, h: Tensor) -> None:
    cell.W.weight.data = cell.W.weight.data.clamp(min=-9)


def on_the_state(cell: Any, x: Tensor, h: Tensor) -> None:
    if h.requires_grad:
        h.register_hook(lambda g: g.clamp(-0.1, 0.1))


DICE, RNG = random.Random(1), np.random.default_rng(1)
REFUSED: dict[str, tuple[Callable[[Any, Tensor, Tensor], Any], str]] = {
    "whether gradients are wanted": (
        lambda c, x, h: 2.0 if torch.is_grad_enabled() else 1.0,
        r"is_grad_enabled\(\)",
    ),
    "the clock": (lambda c, x, h: time.time(), r"asks time\.time\(\)"),
    "Python's random numbers": (lambda c, x, h: random.random(), "draws from random"),
    "numpy's random numbers": (lambda c, x, h: float(np.random.rand()), "draws from numpy.random"),
    "a random.Random": (lambda c, x, h: DICE.random(), "draws from .*DICE"),
    "a numpy Generator": (lambda c, x, h: float(RNG.random()), "draws from .*RNG"),
    "writing into weights": (clamping, r"writes into cell\.W\.weight"),
    "replacing the data of weights": (assigning, r"replaces the data of cell\.W\.weight"),
    "a gradient hook on the state": (on_the_state, "gradient hook on state"),
    "a global counter": (counting, "changes .*COUNT"),
    "a global list": (lambda c, x, h: KEPT.append(h), "changes .*KEPT"),
    "a list in an attribute of the class": (
        lambda c, x, h: Cell.registry.update(h=h),
        "changes Cell.registry",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    besides, words = REFUSED[name]
    cell = Tanh(besides)
    before = COUNT, copy.copy(KEPT), dict(Cell.registry), cell.W.weight.detach().clone()
    with pytest.raises(elman.ElmanError, match=words) as told:
        elman.Recurrent(cell)(*data())
    assert told.value.mend
    assert (COUNT, KEPT, Cell.registry) == before[:3], "nothing is left of it"
    assert torch.equal(cell.W.weight, before[3])


def test_a_step_by_itself_runs_what_is_refused() -> None:
    rnn, (x, h) = elman.Recurrent(Tanh(lambda c, x, h: random.random())), data()
    random.seed(3)
    right = [rnn.cell(x[0], h) for _ in range(3)]
    random.seed(3)
    with torch.no_grad():
        for one in right:
            torch.testing.assert_close(rnn.step(x[0], h)[0], one.detach(), **EXACT)


def test_numbers_in_the_state() -> None:
    class Counts(nn.Module):
        def forward(self, x: Tensor, state: tuple[Tensor, Any]) -> Any:
            h, t = state
            return h, (torch.tanh(x + h) / (1 + t), t + 1)

    class First(nn.Module):
        def forward(self, x: Tensor, state: tuple[Tensor, Any]) -> Any:
            h, first = state
            return h, (x if first else torch.tanh(x + h), False)

    class Fixed(nn.Module):
        def forward(self, x: Tensor, state: tuple[Tensor, Any]) -> Any:
            h, scale = state
            return h, (torch.tanh(x + scale * h), scale)

    x, h = data()
    for cell, start in ((Counts(), 0), (First(), True)):
        with pytest.raises(elman.ElmanError, match="changes a Python number") as told:
            elman.Recurrent(cell)(x, (h, start))
        assert "tensor" in told.value.mend
    rnn = elman.Recurrent(Fixed())
    for scale in (0.5, 0.9, 0.5):
        o, (last, kept) = rnn(x, (h, scale))
        right, (final, _) = eager.unroll(rnn.cell, x, (h, scale))
        torch.testing.assert_close((o, last), (right, final), **EXACT)
        assert kept == scale


def recorders() -> dict[str, Callable[[nn.Module, list[Any]], Any]]:
    def keep(seen: list[Any]) -> Callable[..., None]:
        return lambda module, given, made: seen.append(made)

    return {
        "forward": lambda m, seen: m.register_forward_hook(keep(seen)),
        "before": lambda m, seen: m.register_forward_pre_hook(lambda module, given: seen.append(given)),
        "backward": lambda m, seen: m.register_full_backward_hook(keep(seen)),
        "counter": lambda m, seen: m.register_full_backward_hook(lambda *_: seen.append(1)),
    }


@pytest.mark.grid(1)
@pytest.mark.parametrize("name", recorders())
@pytest.mark.parametrize("starts", [False, True], ids=["", "without a state"])
def test_hooks_that_record(name: str, starts: bool) -> None:
    class Hidden(Tanh):
        hidden_size = H

    cell, seen = Hidden(lambda c, x, h: None), []
    recorders()[name](cell.W, seen)
    rnn, (x, h) = elman.Recurrent(cell), data()
    with pytest.raises(elman.ElmanError, match=r"changes .*seen") as told:
        rnn(x) if starts else rnn(x, h)
    assert "output" in told.value.mend
    assert seen == [], "numbers that are nobody's reach no list"
    rnn.step(x[0], h.requires_grad_())[0].sum().backward()
    assert len(seen) == 1, "one step is the cell's own"


def test_a_gradient_hook_on_a_value_of_the_step() -> None:
    def clipped(cell: Any, x: Tensor, h: Tensor) -> Tensor:
        h = h.clone()
        if h.requires_grad:
            h.register_hook(lambda g: g.clamp(-0.1, 0.1))
        return torch.tanh(x + h @ cell.W)

    class Clipped(Cell):
        forward = clipped

    ways(elman.Recurrent(Clipped(lambda c: 1.0)), *data())


# --- what does not count --------------------------------------------------------------------------------------------


def test_what_the_step_never_reads(traces: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cell, "epochs", 0, raising=False)
    rnn, (x, h) = elman.Recurrent(Cell(lambda c: c.gain, log=[])), data()
    for _ in range(4):
        rnn.cell.never += 1
        rnn.cell.log.append(0.5)
        Cell.epochs += 1  # type: ignore[attr-defined]
        monkeypatch.setitem(HERE, "COUNT", COUNT + 1)
        rnn(x, h)
    assert len(traces) == 1


def test_a_number_that_changes_at_every_call(traces: list[str]) -> None:
    rnn, (x, h) = elman.Recurrent(Cell(lambda c: c.sigma, sigma=1.0)), data()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for i in range(9):
            rnn.cell.sigma = 1.0 / (1 + i)
            rnn(x, h)
    assert [warning.category for warning in told] == [RetraceWarning]
    assert re.search(r"sigma .*buffer", str(told[0].message))
    assert len(traces) == 9
    steady = elman.Recurrent(Cell(lambda c: c.sigma, sigma=1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for i in range(7):
            steady.cell.sigma = 0.5 + (i % 2)
            steady(x, h)
            steady(x, h)


def test_kept_programs_are_bounded() -> None:
    rnn, (x, h) = elman.Recurrent(Cell(lambda c: c.gain)), data()
    rnn._calls.programs.kept.limit = 3
    for i in range(5):
        rnn.cell.gain = float(i)
        rnn(x, h), rnn(x, h)
    assert len(rnn._calls.programs.kept) == 3


def test_a_cell_is_traced_while_somebody_measures() -> None:
    """cProfile cannot be put aside and back; what is not looked for then is refused at any other time."""
    import cProfile

    measured = cProfile.Profile()
    made = measured.runcall(elman.Recurrent(torch.nn.GRUCell(2, 3)), torch.zeros(2, 1, 2))
    assert made[0].shape == (2, 1, 3)
