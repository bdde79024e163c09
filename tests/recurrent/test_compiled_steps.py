"""Under torch.compile: single steps, with a state and without one, and what one compilation does for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import nn
from torch.utils import _pytree as pytree

import elman

Tensor = torch.Tensor


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Alone(nn.Module):
    """A cell that says by what it does without a state where it starts from."""

    def __init__(self) -> None:
        super().__init__()
        self.U, self.size = nn.Linear(3, 4), 4

    def forward(self, x: Tensor, state: Any = None, c: Tensor | float = 0.0) -> Any:
        a, b = state or (x.new_zeros(len(x), self.size), x.new_zeros(len(x), 1))
        a = torch.tanh(self.U(x) + a + c)
        return a * b, (a, b + 1)


class Bias(nn.Module):
    """A cell whose new state is as wide as its old one, however wide that is."""

    hidden_size = 4

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.scale * h + x[:, :1])


class Learned(elman.cells.GRU):
    def __init__(self) -> None:
        super().__init__(3, 4)
        self.start = nn.Parameter(torch.randn(4))

    def initial_state(self, batch: int) -> Tensor:
        return self.start.expand(batch, 4)


CELLS: dict[str, Callable[[], nn.Module]] = {
    "Elman": lambda: elman.cells.Elman(3, 4),
    "GRU": lambda: elman.cells.GRU(3, 4),
    "LSTM": lambda: elman.cells.LSTM(3, 4),
    "Jordan": lambda: elman.cells.Jordan(3, 4, 2),
    "alone": Alone,
    "learned": Learned,
}


def compiled(run: Callable[..., Any], **more: Any) -> tuple[Callable[..., Any], Any]:
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    return torch.compile(run, backend=counter, fullgraph=True, **more), counter


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor"
)  # Dynamo looks at inputs that are no leaves
@pytest.mark.parametrize("recording", [True, False])
@pytest.mark.parametrize("name", CELLS)
def test_a_first_step_needs_no_state_and_steps_compile_once(name: str, recording: bool) -> None:
    rnn = elman.Recurrent(CELLS[name]()).double()
    run, counter = compiled(rnn.step)
    x, found = torch.randn(4, 2, 3).double().requires_grad_(recording), []
    with torch.set_grad_enabled(recording):
        for step in (run, rnn.step):
            output, state = step(x[0])
            outputs = [output]
            for x_t in x[1:]:
                output, state = step(x_t, state)
                outputs.append(output)
            values = [torch.stack(outputs), *pytree.tree_leaves(state)]
            if recording:
                total = sum(value.square().sum() for value in values)
                values += torch.autograd.grad(total, [x, *rnn.parameters()], allow_unused=True)
            found.append(values)
        assert counter.frame_count == 2, "without a state, and with one"
        run(x[0])
        assert counter.frame_count == 2
    for mine, right in zip(*found, strict=True):
        assert (mine is None) == (right is None)
        torch.testing.assert_close(mine, right)


@pytest.mark.parametrize("name", ["GRU", "LSTM"])
def test_one_compilation_does_for_all_batches(name: str) -> None:
    rnn = elman.Recurrent(CELLS[name]())
    run, counter = compiled(rnn.step, dynamic=True)
    for rows in (2, 5, 3):
        x = torch.randn(rows, 3)
        torch.testing.assert_close(run(x), rnn.step(x))
    assert counter.frame_count == 1


def test_a_reset_starts_anew() -> None:
    rnn, x, h = elman.Recurrent(elman.cells.GRU(3, 4)), torch.randn(2, 3), torch.randn(2, 4)
    run, counter = compiled(rnn.step)
    for rows in ([True, False], [False, True]):
        reset = torch.tensor(rows)
        torch.testing.assert_close(run(x, h, reset=reset), rnn.step(x, h, reset=reset))
    assert counter.frame_count == 1


def test_a_context_and_no_state() -> None:
    rnn, x, c = elman.Recurrent(Alone()), torch.randn(2, 3), torch.randn(2, 4)
    run, _ = compiled(rnn.step)
    torch.testing.assert_close(run(x, context=c), rnn.step(x, context=c))


def test_a_stack() -> None:
    rnn = elman.Stack(elman.Recurrent(elman.cells.GRU(3, 4)), elman.Recurrent(elman.cells.LSTM(4, 2)))
    run, counter = compiled(rnn.step)
    x = torch.randn(2, 3)
    for step in range(3):
        torch.testing.assert_close(run(x), rnn.step(x), msg=lambda m, step=step: f"{step}: {m}")
    assert counter.frame_count == 1


def test_where_a_cell_starts_from_is_looked_at_again() -> None:
    """hidden_size says it, which the step itself does not read."""
    rnn, x = elman.Recurrent(Bias()), torch.randn(2, 3)
    run, _ = compiled(rnn.step)
    assert run(x)[0].shape == (2, 4)
    rnn.cell.hidden_size = 6
    assert run(x)[0].shape == rnn.step(x)[0].shape == (2, 6)


@pytest.mark.parametrize("rows", [1, 2])
def test_a_state_that_the_cell_would_take_for_another(rows: int) -> None:
    """In words of ours, in one graph and in pieces, at a first step and at a later one."""
    rnn, x = elman.Recurrent(elman.cells.LSTM(3, 4)), torch.randn(rows, 3)
    right = torch.zeros(rows, 4), torch.zeros(rows, 4)
    for whole in (True, False):
        torch._dynamo.reset()
        run = torch.compile(rnn.step, backend="eager", fullgraph=whole)
        for state, words in (
            (torch.zeros(rows, 4), "one tensor in the state where the cell starts from several"),
            ((torch.zeros(rows, 1, 4), right[1]), rf"got: shape \[{rows}, 1, 4\]"),
        ):
            with pytest.raises(RuntimeError if whole else elman.ElmanError, match=words):
                run(x, state)
            run(x, right)
    gru = elman.Recurrent(elman.cells.GRU(3, 4))
    with pytest.raises(RuntimeError, match=r"state.squeeze\(0\)"):
        compiled(gru.step)[0](x[:1], torch.zeros(1, 1, 4))


def test_a_cell_that_does_not_say_where_it_starts_from() -> None:
    rnn = elman.Recurrent(nn.Bilinear(3, 4, 4))
    with pytest.raises(RuntimeError, match="does not say which state it starts from"):
        compiled(rnn.step)[0](torch.randn(2, 3))
