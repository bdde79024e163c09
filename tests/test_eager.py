"""The loop that defines what a sequence means, on cells small enough to follow by hand."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from elman import cells
from tests import eager

Tensor = torch.Tensor


class Sum(nn.Module):
    """s(t) = 10 s(t-1) + x(t): the digits of x in the order in which they were read."""

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        return 10 * s + x


class Twice(nn.Module):
    """The output is twice the state, and not in it."""

    def forward(self, x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        s = 10 * s + x
        return 2 * s, s


DIGITS = torch.tensor([[1.0], [2.0], [3.0]])
ZERO = torch.zeros(1)


def test_it_reads_forward_and_backward() -> None:
    outputs, final = eager.unroll(Sum(), DIGITS, ZERO)
    assert outputs.flatten().tolist() == [1, 12, 123]
    assert final.tolist() == [123]
    outputs, final = eager.unroll(Sum(), DIGITS, ZERO, reverse=True)
    assert outputs.flatten().tolist() == [321, 32, 3]
    assert final.tolist() == [321]


@pytest.mark.parametrize(("reverse", "expected"), [(False, [1, 72, 83]), (True, [81, 92, 3])])
def test_the_next_step_sees_the_teacher(reverse: bool, expected: list[float]) -> None:
    teacher = torch.tensor([[7.0], [8.0], [9.0]])
    outputs, final = eager.unroll(Sum(), DIGITS, ZERO, teacher=teacher, reverse=reverse)
    assert outputs.flatten().tolist() == expected
    assert final.tolist() == [expected[0 if reverse else -1]], "the final state is the model's own"


def test_a_teacher_needs_an_output_in_the_state() -> None:
    with pytest.raises(AssertionError, match="no entry of the state"):
        eager.unroll(Twice(), DIGITS, ZERO, teacher=DIGITS)


def test_an_output_beside_the_state_is_kept() -> None:
    outputs, final = eager.unroll(Twice(), DIGITS, ZERO)
    assert outputs.flatten().tolist() == [2, 24, 246]
    assert final.tolist() == [123]


def test_no_step_gives_no_output_and_the_state_itself() -> None:
    cell = cells.LSTM(3, 4)
    state = cell.initial_state(2)
    before = torch.get_rng_state()
    outputs, final = eager.unroll(cell, torch.zeros(0, 2, 3), state)
    assert outputs.shape == (0, 2, 4)
    assert final is state
    assert torch.equal(before, torch.get_rng_state())


def test_steps_are_for_cells_without_x() -> None:
    with pytest.raises(AssertionError, match="steps"):
        eager.unroll(Sum(), DIGITS, ZERO, steps=3)
    with pytest.raises(AssertionError, match="steps"):
        eager.unroll(Sum(), None, ZERO)


def test_each_step_runs_inside_its_replay() -> None:
    entered = []

    @contextlib.contextmanager
    def replay(t: int) -> Iterator[None]:
        entered.append(t)
        yield

    eager.unroll(Sum(), DIGITS, ZERO, reverse=True, replay=replay)
    assert entered == [2, 1, 0]


def test_what_is_no_state_is_refused() -> None:
    class Forgetful(Sum):
        def forward(self, x: Tensor, s: dict[str, Tensor]) -> Tensor:
            return super().forward(x, s["s"])

    with pytest.raises(TypeError, match="Forgetful returned neither its new state nor"):
        eager.unroll(Forgetful(), DIGITS, {"s": ZERO})
