"""What a call starts from: zeros, a learnt state, what a user hands over; single steps, and calls that are split."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import elman
from elman.errors import InputError, InputTypeError, StateError, TraceError
from tests import eager, zoo
from tests.cases import CASES
from tests.recurrent import compare
from tests.recurrent.compare import Inputs
from tests.recurrent.small import layer, random

Tensor = torch.Tensor
EXACT = {"rtol": 1e-10, "atol": 1e-10}


# --- step by step ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["elman", "lstm", "cat_rnn", "named_tuple_lstm", "dict_input_rnn", "context_rnn", "silent_rnn", "swing"],
)
def test_step_repeated_is_the_whole_call(name: str) -> None:
    rnn, case = layer(name), CASES[name]
    inputs = Inputs.of(case, 4, 3)
    outputs, final = compare.ours(rnn, inputs)
    state, made = inputs.state, []
    for t in range(4):
        output, state = rnn.step(eager.at(inputs.x, t), state, context=inputs.context)
        made.append(output)
    compare.assert_equal(compare.flat(eager.stack(made), state), compare.flat(outputs, final), 1e-12)


def test_step_begins_where_a_call_begins() -> None:
    for rnn in (layer("learned_start_rnn"), layer("lstm"), elman.Recurrent(nn.LSTMCell(5, 7).double())):
        x = random(1, 3, 5)
        outputs, final = rnn(x)
        output, state = rnn.step(x[0])
        compare.assert_equal(compare.flat(output.unsqueeze(0), state), compare.flat(outputs, final))


@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("name", ["elman", "gru", "lstm"])
def test_a_step_from_a_state_of_torchs_form_is_refused(name: str, grad: bool) -> None:
    """The plain cell would broadcast h_0 `[1, B, H]`, and a state of one row, and say nothing."""
    rnn = elman.Recurrent(CASES[name].make(3, 4))
    for size in ((1, 2, 4), (1, 4)):
        h: Any = torch.zeros(size)
        state = (h, h) if name == "lstm" else h
        with torch.set_grad_enabled(grad):
            for call in (
                lambda state: rnn.step(torch.zeros(2, 3), state),
                lambda state: rnn(torch.zeros(5, 2, 3), state),
                lambda state: rnn.stream(2, state=state),
                lambda state: elman.Online(rnn, state=state).step(
                    torch.zeros(2, 3), None, lambda o, _: o.sum()
                ),
            ):
                with pytest.raises(elman.ElmanError) as told:
                    call(state)
                assert isinstance(told.value, InputError)


@pytest.mark.grid(1)
@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("name", ["elman", "gru", "lstm"])
def test_a_step_of_one_row_from_a_state_of_torchs_form_is_refused(name: str, grad: bool) -> None:
    """With one row and one layer `[layers, B, H]` is broadcast to an output of three dimensions."""
    rnn, x = elman.Recurrent(CASES[name].make(3, 4)), torch.zeros(1, 3)

    def state(*size: int) -> Any:
        h = torch.zeros(size)
        return (h, h) if name == "lstm" else h

    with torch.set_grad_enabled(grad):
        rnn.step(x, state(1, 4))  # and what it has found out is not taken for all states
        for call in (
            lambda: rnn.step(x, state(1, 1, 4)),
            lambda: rnn.stream(state=state(1, 1, 4)).step(x),
            lambda: elman.Stack(rnn).step(x, [state(1, 1, 4)]),
        ):
            with pytest.raises(InputError, match=r"squeeze\(0\)"):
                call()
        assert rnn.step(torch.zeros(3), state(4))[0].shape == (4,)


def test_a_state_of_one_part_with_one_row_is_no_state_of_torchs_form() -> None:
    """A cell whose state is `[B, K, H]` where K is 1."""

    class Slots(nn.Module):
        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return torch.tanh(h + x.unsqueeze(1))

    assert elman.Recurrent(Slots()).step(torch.zeros(1, 4), torch.zeros(1, 1, 4))[0].shape == (1, 1, 4)


def test_a_step_of_symbols_from_a_state_of_torchs_form_is_refused() -> None:
    rnn = elman.Recurrent(Symbols())
    with pytest.raises(InputError, match=r"squeeze\(0\)"):
        rnn.step(torch.tensor([1, 2]), torch.zeros(1, 2, 4))
    rnn.step(torch.tensor([1, 2]), torch.zeros(2, 4))


class Symbols(nn.Module):
    hidden_size = 4

    def __init__(self) -> None:
        super().__init__()
        self.E = nn.Embedding(5, 4)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.E(x) + h)


def test_step_refuses_reverse() -> None:
    with pytest.raises(InputError, match="reverse"):
        layer(reverse=True).step(random(2, 5))


def test_a_split_call_is_the_whole_call() -> None:
    for name in ("gru", "lstm", "delayed_rnn"):
        rnn, case = layer(name), CASES[name]
        inputs = Inputs.of(case, 7, 3)
        outputs, final = compare.ours(rnn, inputs)
        first, state = rnn(inputs.x[:4], inputs.state)
        second, state = rnn(inputs.x[4:], state)
        torch.testing.assert_close(torch.cat([first, second]), outputs, **EXACT)
        compare.assert_equal(compare.flat(None, state), compare.flat(None, final))


def test_the_circuit_before_any_call() -> None:
    rnn = layer()
    with pytest.raises(StateError, match="call the layer once"):
        _ = rnn.circuit
    with pytest.raises(StateError, match="call the layer once"):
        rnn.explain()
    rnn(random(2, 1, 5))
    assert rnn.circuit.name == "GRU"
    assert "once" in str(rnn.explain())


# --- where a sequence starts ----------------------------------------------------------------------------------------


def test_a_learned_start_gets_its_gradient() -> None:
    rnn = layer("learned_start_rnn")
    x = random(4, 3, 5)
    rnn(x)[0].square().sum().backward()
    got, rnn.cell.start.grad = rnn.cell.start.grad, None
    eager.unroll(rnn.cell, x, rnn.cell.initial_state(3))[0].square().sum().backward()
    assert got is not None
    torch.testing.assert_close(got, rnn.cell.start.grad, **EXACT)


def test_zeros_by_hidden_size() -> None:
    rnn = layer("elman")
    x = random(4, 3, 5)
    assert torch.equal(rnn(x)[0], rnn(x, torch.zeros(3, 7, dtype=torch.float64))[0])


@pytest.mark.parametrize("make", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_zeros_as_the_cell_itself_has_them(make: type[nn.Module]) -> None:
    rnn = elman.Recurrent(make(5, 7).double())
    x = random(3, 2, 5)
    outputs, _ = rnn(x)
    first = rnn.cell(x[0])
    torch.testing.assert_close(outputs[0], first[0] if isinstance(first, tuple) else first, **EXACT)


class StartsAtOne(zoo.Base):
    def __init__(self, n_in: int, n_hidden: int) -> None:
        super().__init__(n_in, n_hidden)
        del self.hidden_size

    def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        h = x.new_ones(x.shape[0], self.W.in_features) if h is None else h
        return torch.tanh(self.U(x) + self.W(h))


class Ambiguous(StartsAtOne):
    """Both what it returns and the second half of that map to themselves."""

    def forward(self, x: Tensor, state: Any = None) -> Any:
        if isinstance(state, tuple):
            return state
        zero = x.new_zeros(x.shape[0], 2)
        return (zero, zero)

    def __init__(self, n_in: int, n_hidden: int) -> None:
        super().__init__(n_in, n_hidden)


class SaysNothing(StartsAtOne):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:  # type: ignore[override]
        return torch.tanh(self.U(x) + self.W(h))


@pytest.mark.parametrize(
    ("make", "words"),
    [(StartsAtOne, "other than zeros"), (SaysNothing, "does not say which state")],
)
def test_a_start_that_nobody_knows_is_refused(make: type[nn.Module], words: str) -> None:
    rnn = elman.Recurrent(make(5, 7))
    for _ in range(2):
        with pytest.raises(TraceError, match=words) as caught:
            rnn(torch.randn(3, 2, 5))
        assert "define initial_state(batch)" in str(caught.value)
    with pytest.raises(TraceError, match=words):
        rnn.step(torch.randn(2, 5))
    rnn(torch.randn(3, 2, 5), torch.zeros(2, 7))  # with a state it runs


def test_a_state_without_a_batch_dimension_is_refused() -> None:
    with pytest.raises(elman.ElmanError):
        layer()(random(3, 2, 5), torch.zeros((), dtype=torch.float64))


def test_the_start_follows_the_weights() -> None:
    """`cell(x)` against `cell(x, zeros)` is looked at again when the cell has changed."""
    rnn = elman.Recurrent(nn.GRUCell(5, 7))
    rnn(torch.randn(3, 2, 5))
    rnn.double()
    outputs, _ = rnn(random(3, 2, 5))
    assert outputs.dtype == torch.float64


@pytest.mark.parametrize("gradients", [True, False])
def test_one_tensor_is_no_state_of_a_cell_that_starts_from_several(gradients: bool) -> None:
    """The cell would take it apart by its rows, two of which look like (h, c)."""
    rnn, x = elman.Recurrent(elman.cells.LSTM(3, 4)), torch.randn(2, 3)
    both = torch.randn(2, 2, 4), torch.randn(2, 2, 4)
    stack = elman.Stack(rnn, elman.Recurrent(elman.cells.LSTM(4, 4)))
    with torch.set_grad_enabled(gradients):
        with pytest.raises(InputTypeError, match="one tensor"):
            rnn.step(x, torch.randn(2, 4))
        with pytest.raises(InputTypeError, match=r"zip\(h_0"):
            stack.step(x, both)
        right = stack.step(x, [*zip(*both, strict=True)])[0]
        assert torch.equal(stack.step(x, tuple(zip(*both, strict=True)))[0], right)
    with pytest.raises(InputTypeError, match="one tensor"):
        stack.stream(state=both)
    torch.testing.assert_close(stack.stream(state=[*zip(*both, strict=True)]).step(x), right.detach())


class Forgetting(nn.Module):
    """Reads nothing of its state."""

    hidden_size = 4

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return x.tanh()


@pytest.mark.parametrize("times", [1, 4])
def test_where_no_step_happens_the_gradient_of_the_final_state_is_that_of_the_state(times: int) -> None:
    taught = elman.Recurrent(CASES["jordan"].make().double())
    state = CASES["jordan"].state(3, dtype=torch.float64).requires_grad_()
    x, teacher = random(0, 3, 5), random(0, *state.shape)
    for _ in range(times):
        final = taught(x, state, teacher=teacher)[1]
        assert torch.equal(torch.autograd.grad(final.sum(), state)[0], torch.ones_like(state))
    forgetting, h = elman.Recurrent(Forgetting()), torch.randn(3, 4, requires_grad=True)
    for _ in range(times):
        forgetting(torch.randn(2, 3, 4), h)
        final = forgetting(torch.randn(0, 3, 4), h)[1]
        assert torch.equal(torch.autograd.grad(final.sum(), h)[0], torch.ones_like(h))
