"""States that only change places, (a, b) -> (b, a): no operation feeds any of them, and their sequences are wanted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import elman
from tests import eager
from tests.cases import Case
from tests.recurrent import compare, ragged
from tests.recurrent.compare import Inputs
from tests.tensors import floats

Tensor = torch.Tensor
States = tuple[Tensor, ...]


class Begins(nn.Module):
    """A cell that starts from what it says, a number for each state."""

    starts: tuple[float, ...]

    def initial_state(self, batch: int) -> States:
        return tuple(torch.full((batch, 5), start).double() for start in self.starts)


class Swap(Begins):
    """The two change places: what is read is what the loop does not compute."""

    starts = (0.5, -0.25)

    def forward(self, x: Tensor, state: States) -> tuple[Tensor, States]:
        a, b = state
        return x * a + b, (b, a)


class Rotation(Begins):
    """Three go round, and one of them is read."""

    starts = (0.5, -0.25, 1.0)

    def forward(self, x: Tensor, state: States) -> tuple[Tensor, States]:
        a, b, c = state
        return x * b, (b, c, a)


class Follower(Begins):
    """d is fed by one of two that change places, and lies on no cycle itself."""

    starts = (0.5, -0.25, 1.0)

    def forward(self, x: Tensor, state: States) -> tuple[Tensor, States]:
        d, a, b = state
        return x + d * d, (a, b, a)


class Gated(Begins):
    """A recurrence that is gated by one of two that change places."""

    starts = (0.5, -0.25, 1.0)

    def __init__(self, width: int) -> None:
        super().__init__()
        self.U = nn.Linear(width, width)

    def forward(self, x: Tensor, state: States) -> tuple[Tensor, States]:
        a, b, h = state
        h = torch.tanh(self.U(x) + h * a)
        return h, (b, a, h)


X, A = floats("I"), floats("I", scale=0.5)
CASES = {
    "swap": Case("swap", lambda i, h: Swap(), X, (A, A)),
    "rotation": Case("rotation", lambda i, h: Rotation(), X, (A, A, A)),
    "follower": Case("follower", lambda i, h: Follower(), X, (A, A, A)),
    "gated": Case("gated", lambda i, h: Gated(i), X, (A, A, A)),
}
ENGINES = ["native", "reference"]
every_case = pytest.mark.parametrize("case", CASES.values(), ids=str)


@pytest.mark.grid
@every_case
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_a_call_is_the_loop(case: Case, engine: str, reverse: bool) -> None:
    rnn = elman.Recurrent(case.make().double(), reverse=reverse, engine=engine)
    for T, B in ((1, 1), (0, 2), (5, 3)):
        got, expected = compare.both(rnn, Inputs.of(case, T, B))
        compare.assert_equal(got.values, expected.values)
        compare.assert_equal(got.gradients, expected.gradients)
    ours, loop = compare.each_alone(rnn, Inputs.of(case, 4, 2))
    for name, gradients in loop.items():
        compare.assert_equal(ours[name], gradients)
    inputs = Inputs.of(case, 4, 2)
    with torch.no_grad():
        compare.assert_equal(*(compare.flat(*run(rnn, inputs)) for run in (compare.ours, compare.theirs)))


@pytest.mark.grid
@every_case
@pytest.mark.parametrize("memory", [None, elman.Segments(2)], ids=["whole", "segments"])
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_sequences_that_are_ragged_and_cut(case: Case, memory: Any, reverse: bool) -> None:
    rnn = elman.Recurrent(case.make().double(), reverse=reverse, memory=memory)
    inputs, said = Inputs.of(case, 7, 5), ragged.said(7, 5)
    ragged.agree(rnn, inputs)
    ragged.agree(rnn, inputs, lengths=said["lengths"])
    ragged.agree(rnn, inputs, mask=said["mask"], reset=said["reset"])


@every_case
def test_steps_and_streams(case: Case) -> None:
    rnn = elman.Recurrent(case.make().double())
    inputs = Inputs.of(case, 5, 2)
    expected, last = eager.unroll(rnn.cell, inputs.x, inputs.state)
    state, stream = inputs.state, rnn.stream(2, tuple(s.detach() for s in inputs.state))
    for t in range(5):
        o, state = rnn.step(inputs.x[t], state)
        torch.testing.assert_close(o, expected[t])
        torch.testing.assert_close(stream.step(inputs.x[t].detach()), expected[t].detach())
    torch.testing.assert_close(state, last)
    torch.testing.assert_close(stream.state, tuple(s.detach() for s in last))


@every_case
def test_second_derivatives(case: Case) -> None:
    rnn = elman.Recurrent(case.make().double())
    inputs = Inputs.of(case, 4, 2)
    wanted, found = compare.wanted_of(rnn, inputs), []
    for run in (compare.ours, compare.theirs):
        first = compare.gradients(compare.flat(*run(rnn, inputs)), wanted, create_graph=True)
        found.append(compare.gradients(first, wanted))
    compare.assert_equal(*found)


@every_case
def test_it_can_be_explained_and_drawn(case: Case) -> None:
    rnn = elman.Recurrent(case.make().double())
    inputs = Inputs.of(case, 4, 2)
    rnn(inputs.x, inputs.state)
    assert "waits for its own last value" in str(rnn.explain())
    for level in ("book", "ops"):
        assert elman.draw(rnn.circuit, level=level)._repr_svg_()
