"""Learning while it runs: the exact rule against back-propagation through time, what reaches what, and errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import elman
from elman import cells, engines
from elman.errors import InputError, InputTypeError, NotSupported
from elman.online import Online, cost
from tests.cases import CASES
from tests.learning import B, T, at, learned, loss_fn, make, same, taken, through_time
from tests.pairwise import with_more
from tests.recurrent.compare import Inputs

Tensor = torch.Tensor
EACH = ["jordan", "ind_rnn", "noisy_rnn", "token_rnn"]
MORE = [
    "gru", "elman", "lstm", "layer_norm_rnn", "leaky",
    "dict_output_rnn", "learned_start_rnn", "delayed_rnn", "kinked_rnn", "context_rnn", "nodes_rnn",
    "fast_weights_rnn", "layer_norm_lstm", "columns_rnn", "attention_rnn", "named_tuple_lstm", "dropout_rnn",
    "counting_rnn", "slots_rnn", "cat_rnn", "tied_rnn", "dale_rnn", "weight_norm_rnn", "convolutional_rnn",
    "linear_rnn", "competing_rnn", "addressing_rnn", "straight_through_rnn", "detached_rnn",
]  # fmt: skip


# --- exact ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", with_more(EACH, MORE))
def test_the_exact_rule_is_back_propagation_through_time(name: str) -> None:
    online, inputs, state, weights = make(name)
    same(learned(online, inputs, weights), through_time(online, inputs, weights, state))


def test_a_start_that_learns_and_rows_that_begin_anew() -> None:
    case = CASES["learned_start_rnn"]
    inputs, weights = Inputs.of(case, T, B), torch.linspace(0.3, 1.2, T, dtype=torch.float64)
    online = Online(elman.Recurrent(case.make().double()))
    reset = torch.rand(T, B, generator=torch.Generator().manual_seed(0)) < 0.4
    got = learned(online, inputs, weights, reset=reset)
    reset[0] = True
    same(got, through_time(online, inputs, weights, online.rnn.cell.initial_state(B), reset))
    for rows in (torch.tensor([True, False, True]), None):
        online.reset(rows)
        online.step(at(inputs.x, 0), weights[0], loss_fn)
    taken(online.rnn.cell)
    assert online.state.shape == (B, 7)


@pytest.mark.parametrize("rows", [None, [False, False, True]])
def test_rows_begin_anew_with_the_first_step(rows: list[bool] | None) -> None:
    """The others go on from the state that was given."""
    online, inputs, state, weights = make("learned_start_rnn")
    reset = torch.zeros(T, B, dtype=torch.bool)
    reset[0, 0] = True
    if rows is not None:
        online.reset(rows)
    got = learned(online, inputs, weights, reset=reset)
    reset[0] |= torch.tensor(rows or [False] * B)
    same(got, through_time(online, inputs, weights, state, reset))


@pytest.mark.grid(1)
@pytest.mark.parametrize("starts", [True, False], ids=["from a state", "from its own start"])
@pytest.mark.parametrize("reset", ["nonsense", 5, [True] * (B + 1), torch.zeros(B)])
def test_a_wrong_reset_is_refused_also_before_the_first_step(reset: Any, starts: bool) -> None:
    online, inputs, state, weights = make("learned_start_rnn")
    online.state = state if starts else None

    def step(reset: Any = None) -> Tensor:
        return online.step(at(inputs.x, 0), weights[0], loss_fn, reset=reset)

    with pytest.raises((InputError, InputTypeError), match="reset says"):
        step(reset)
    with pytest.raises((InputError, InputTypeError), match="reset says"):
        _ = online.reset(reset), step()
    online.reset([False] * B)
    step()


def test_a_readout_in_the_loss_learns_too() -> None:
    torch.manual_seed(0)
    readout, rnn = nn.Linear(4, 2).double(), elman.Recurrent(cells.Elman(3, 4).double())
    x, y = torch.randn(T, B, 3).double(), torch.randn(T, B, 2).double()

    def error(h: Tensor, target: Tensor) -> Tensor:
        return (readout(h) - target).square().mean()

    online = Online(rnn)
    losses = [online.step(x[t], y[t], error) for t in range(T)]
    got = [*taken(rnn), *taken(readout)]
    hs, _ = rnn(x)
    per_step = [error(h, target) for h, target in zip(hs, y, strict=True)]
    torch.stack(per_step).sum().backward()
    same(got, [*taken(rnn), *taken(readout)])
    torch.testing.assert_close(torch.stack(losses), torch.stack(per_step).detach())


# --- what reaches what ------------------------------------------------------------------------------------------------


class Islands(nn.Module):
    """Two networks of two units side by side, and one unit that looks at both."""

    def __init__(self) -> None:
        super().__init__()
        self.A, self.C, self.v = (nn.Parameter(torch.randn(*s)) for s in ((2, 2), (2, 2), (4,)))

    def forward(self, x: Tensor, s: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        a, c, d = s
        return (
            torch.tanh(a @ self.A + x),
            torch.relu(c @ self.C + x),
            d * 0.5 + torch.cat([a, c], 1) @ self.v[:, None],
        )


def test_blocks_are_found() -> None:
    torch.manual_seed(0)
    rnn = elman.Recurrent(Islands().double())
    x = torch.randn(T, B, 2).double()
    state = (torch.randn(B, 2).double(), torch.randn(B, 2).double(), torch.randn(B, 1).double())
    inputs, weights = Inputs(T, B, x, state, None, None), torch.ones(T, dtype=torch.float64)
    online = Online(rnn, state=state)
    same(learned(online, inputs, weights), through_time(online, inputs, weights, state))
    blocks = {block.shape for block in online._known.pattern.blocks}
    # Four weights reach their own two units and the last; those of the last one reach it alone.
    assert blocks == {(1, 1, 4), (2, 3, 4)}


def test_a_diagonal_recurrence_is_cheap() -> None:
    rnn = elman.Recurrent(CASES["ind_rnn"].make().double())
    assert cost(rnn, torch.zeros(B, 5).double()).numbers == sum(p.numel() for p in rnn.parameters())
    whole = cost(elman.Recurrent(cells.Elman(5, 7)), torch.zeros(B, 5))
    assert (whole.numbers, whole.products) == (7 * 91, 7 * 7 * 91)
    assert "rtrl" in str(whole)


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_engine_carries_an_influence_in_place(dtype: torch.dtype, threads: int) -> None:
    """M = J M + D, of more and of fewer rows than threads, and units and columns that fill no vector."""
    engine, before = engines.Native(), torch.get_num_threads()
    if not engine.carries(torch.zeros((), dtype=dtype)):
        pytest.skip("there is no compiled part")
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    for sizes in ((2, 1, 19, 3001), (5, 3, 7, 85), (1, 1, 300, 300), (3, 2, 2, 1)):
        (batch, G, u, q), many = sizes, 11
        M, J = torch.randn(sizes, dtype=dtype), torch.randn(batch, G, u, u, dtype=dtype) / u
        D, at = torch.randn(batch, many, dtype=dtype), torch.randperm(G * u * q)[:4].sort().values
        for of in (None, torch.tensor([7, 7, 0, 10])):
            expected = (J @ M).view(batch, -1).index_add(1, at, D[:, :4] if of is None else D[:, of])
            got = M.clone()
            engine.carrier(got, at, of, (*sizes, many))(got, J, D)
            torch.testing.assert_close(got.view(batch, -1), expected)
    torch.set_num_threads(before)


def test_gradients_add_up_wherever_they_lie() -> None:
    """Those of two steps, though a `.grad` is there before, or is replaced or taken away in between."""
    cell, x = cells.Elman(2, 3).double(), torch.randn(2, 2, 2).double()
    online, each = Online(elman.Recurrent(cell)), []
    for now in x:
        online.step(now, None, lambda h, _: h.square().sum())
        each.append(taken(cell))
    one, other, *_ = cell.parameters()
    for before, change in (
        (None, torch.clone),
        (None, lambda g: None),
        (torch.ones_like(other), torch.clone),
    ):
        online.reset()
        other.grad = before
        expected = [a + b for a, b in zip(*each, strict=True)]
        for t, now in enumerate(x):
            online.step(now, None, lambda h, _: h.square().sum())
            if t == 0:
                one.grad = change(one.grad)
        if change is not torch.clone:
            expected[0] = each[1][0]
        expected[1] = expected[1] + (0 if before is None else 1)
        same(taken(cell), expected)


# --- errors ---------------------------------------------------------------------------------------------------------


def test_what_does_not_go() -> None:
    rnn, x = elman.Recurrent(cells.Elman(3, 8)), torch.zeros(2, 3)
    with pytest.raises(InputError, match=r"no rule 'bptt'"):
        Online(rnn, "bptt")
    with pytest.raises(InputTypeError, match="is a Recurrent"):
        Online(cells.GRU(3, 4))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="seen its end"):
        Online(elman.Recurrent(cells.GRU(3, 4), reverse=True))
    with pytest.raises(InputError, match=r"does not fit into the budget"):
        Online(rnn, memory="1 kB").step(x, None, lambda o, _: o.sum())
    with pytest.raises(InputTypeError, match="returns one number"):
        Online(rnn).step(x, None, lambda o, _: o)
    with pytest.raises(NotSupported, match="state that is learned"):
        Online(elman.Recurrent(CASES["learned_start_rnn"].make()), "uoro").step(
            torch.zeros(2, 5), None, lambda o, _: o.sum()
        )
    online = Online(rnn)
    online.step(x, None, lambda o, _: o.sum())
    with pytest.raises(InputError):
        online.step(torch.zeros(3, 3), None, lambda o, _: o.sum())
    with pytest.raises(InputTypeError, match="reset"):
        online.step(x, None, lambda o, _: o.sum(), reset=torch.zeros(2))


def test_weights_may_change_between_steps_and_so_may_the_cell() -> None:
    rnn = elman.Recurrent(CASES["leaky"].make().double())
    online, optimizer = Online(rnn), torch.optim.SGD(rnn.parameters(), 0.1)
    x = torch.randn(6, 2, 5).double()
    first = [online.step(x_t, None, lambda o, _: o.square().mean()) for x_t in x]
    optimizer.step()
    rnn.cell.alpha = 0.5  # traced anew; the influence goes on
    online.step(x[0], None, lambda o, _: o.square().mean())
    assert len(first) == 6


class WrittenOnly(nn.Module):
    """A state that nothing reads, and an output that has to do with no weight where `plain`."""

    def __init__(self, plain: bool) -> None:
        super().__init__()
        self.plain, self.W = plain, nn.Parameter(torch.eye(3, dtype=torch.float64))

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> Any:
        _, h = state
        return (x if self.plain else h), (torch.tanh(x), torch.tanh(x + h @ self.W))

    def initial_state(self, batch: int) -> tuple[Tensor, Tensor]:
        return torch.zeros(batch, 3, dtype=torch.float64), torch.zeros(batch, 3, dtype=torch.float64)


def test_a_state_that_nothing_reads_and_a_loss_of_nothing_learnt() -> None:
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    online = elman.Online(elman.Recurrent(WrittenOnly(plain=False)))
    for now in x:
        online.step(now, None, lambda h, _: h.square().sum())
    (expected,) = torch.autograd.grad(online.rnn(x)[0].square().sum(), [*online.rnn.parameters()])
    torch.testing.assert_close(online.rnn.cell.W.grad, expected)
    plain = elman.Online(elman.Recurrent(WrittenOnly(plain=True)))
    assert plain.step(x[0], None, lambda o, _: o.square().sum()) == x[0].square().sum()
    assert plain.rnn.cell.W.grad is None or not plain.rnn.cell.W.grad.any()
    with pytest.raises(InputError, match="carries no gradient, though the output does"):
        online.step(x[0], None, lambda h, _: h.detach().square().sum())


@pytest.mark.parametrize("rule", elman.online.RULES)
def test_a_reservoir_learns_its_readout_alone(rule: str) -> None:
    rnn, V = elman.Recurrent(cells.Elman(3, 4).requires_grad_(False)), nn.Linear(4, 1)
    x, online = torch.randn(4, 2, 3), Online(rnn, rule)
    for now in x:
        online.step(now, None, lambda h, _: V(h).square().sum())
    expected = torch.autograd.grad(V(rnn(x)[0]).square().sum(), [V.weight])[0]
    torch.testing.assert_close(V.weight.grad, expected)
    assert cost(rnn, x[0], rule).bytes == 0


def test_only_a_start_learns() -> None:
    cell = CASES["learned_start_rnn"].make()
    for name, parameter in cell.named_parameters():
        parameter.requires_grad_(name == "start")
    x, online = torch.randn(4, 2, 5), Online(elman.Recurrent(cell))
    for now in x:
        online.step(now, None, lambda h, _: h.square().sum())
    torch.testing.assert_close(
        cell.start.grad, torch.autograd.grad(online.rnn(x)[0].square().sum(), cell.start)[0]
    )


@pytest.mark.parametrize("rule", with_more(["rtrl", "uoro"], ["snap-1", "rflo", "e-prop"]))
def test_attention_over_slots_of_the_state(rule: str) -> None:
    """PyTorch's attention hands gradients on in another order of memory."""

    class Slots(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.W = nn.Linear(4, 4)

        def initial_state(self, batch: int) -> Any:
            return torch.zeros(batch, 4), torch.zeros(batch, 3, 4)

        def forward(self, x: Tensor, state: Any) -> Any:
            h, m = state
            read = nn.functional.scaled_dot_product_attention(h[:, None], m, m)[:, 0]
            h = torch.tanh(self.W(h) + x + read)
            return h, (h, 0.9 * m + 0.1 * h[:, None])

    rnn, x = elman.Recurrent(Slots()), torch.randn(4, 2, 4)
    online = Online(rnn, rule)
    for now in x:
        online.step(now, None, lambda h, _: h.sin().sum())
    learnt = rnn.cell.W.weight.grad
    assert learnt is not None
    if rule == "rtrl":
        right = torch.autograd.grad(rnn(x)[0].sin().sum(), rnn.cell.W.weight)[0]
        torch.testing.assert_close(learnt, right)


@pytest.mark.parametrize("rule", with_more(["rtrl", "e-prop"], ["snap-1", "rflo"]))
def test_an_orthogonal_recurrence(rule: str) -> None:
    """Its exponential comes in batches, of directions, that do not lie in one piece."""
    cell = cells.Elman(4, 5).double()
    nn.utils.parametrizations.orthogonal(cell, "W")
    rnn, x = elman.Recurrent(cell), torch.randn(T, B, 4).double()
    online = Online(rnn, rule)
    for now in x:
        online.step(now, None, lambda h, _: h.sin().sum())
    found, h, outputs = taken(cell), torch.zeros(B, 5).double(), []
    assert all(gradient.isfinite().all() for gradient in found)
    if rule == "rtrl":
        for now in x:
            h = cell(now, h)
            outputs.append(h)
        torch.stack(outputs).sin().sum().backward()
        torch.testing.assert_close(found, taken(cell), rtol=1e-10, atol=1e-10)
