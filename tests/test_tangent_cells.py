"""Forward mode of cells that are a case of their own: derivatives that a function says itself, names like those of
directions, states that are handed out, and what fails within PyTorch.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, jacfwd, jvp
from torch.utils import _pytree as pytree

import elman
from elman.errors import NotSupported
from tests import eager
from tests.cases import CASES
from tests.recurrent import compare
from tests.recurrent.along import directions, pushed
from tests.recurrent.compare import Inputs
from tests.recurrent.small import layer

Tensor = torch.Tensor


class Doubting(torch.autograd.Function):
    """tanh, whose derivative forward is half of what it is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = torch.tanh(x)
        ctx.save_for_forward(y)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return cotangents[0] * (1 - y * y)

    @staticmethod
    def jvp(ctx: Any, *ways: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return 0.5 * ways[0] * (1 - y * y)


class Doubter(nn.Module):
    hidden_size = 4

    def __init__(self) -> None:
        super().__init__()
        self.U, self.W = nn.Linear(3, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return 0.3 * h + Doubting.apply(self.U(x) + self.W(h) * torch.ones(4).to(h.dtype))


def test_a_function_keeps_its_own_derivative() -> None:
    torch.manual_seed(0)
    rnn = elman.Recurrent(Doubter().double())
    x, h = torch.randn(4, 2, 3).double().requires_grad_(), torch.randn(2, 4).double()
    inputs = Inputs(4, 2, x, h, None, None)
    way = directions(rnn, inputs)
    compare.assert_equal(*(pushed(run, rnn, inputs, way) for run in (compare.ours, compare.theirs)))


def test_one_without_is_said_by_name() -> None:
    rnn, inputs = layer("lying_rnn"), Inputs.of(CASES["lying_rnn"], 3, 2)
    with pytest.raises(NotSupported, match=r"Lie does not say its derivative forward"):
        pushed(compare.ours, rnn, inputs, directions(rnn, inputs))


def test_names_of_users_stay_apart() -> None:
    """A cell with parameters and states that are called like directions."""

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.W, self.t_W = nn.Parameter(torch.randn(3, 3)), nn.Parameter(torch.randn(3, 3))

        def initial_state(self, batch: int) -> dict[str, Tensor]:
            return {"t_h": torch.zeros(batch, 3), "h": torch.ones(batch, 3)}

        def forward(self, x: Tensor, s: dict[str, Tensor]) -> dict[str, Tensor]:
            return {"t_h": torch.tanh(s["h"] @ self.W + x), "h": torch.sin(s["t_h"] @ self.t_W)}

    torch.manual_seed(0)
    rnn = elman.Recurrent(Named())
    x = torch.randn(4, 2, 3)

    def loop(x: Tensor) -> Any:
        state, outputs = rnn.cell.initial_state(2), []
        for x_t in x:
            state = rnn.cell(x_t, state)
            outputs.append(state["t_h"])
        return torch.stack(outputs), state

    same_way = (torch.ones_like(x),)
    got, expected = jvp(rnn, (x,), same_way), jvp(loop, (x,), same_way)
    for mine, theirs in zip(pytree.tree_leaves(got), pytree.tree_leaves(expected), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_what_a_cell_ignores_changes_nothing() -> None:
    class Deaf(nn.Module):
        hidden_size = 3

        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return torch.tanh(0.5 * h + 0.1)

    rnn, x = elman.Recurrent(Deaf()), torch.randn(4, 2, 3)
    (outputs, final), (along, ended) = jvp(rnn, (x,), (torch.ones_like(x),))
    assert not along.any()
    assert not ended.any()
    torch.testing.assert_close(outputs[-1], final)


def test_a_buffer_may_change() -> None:
    class Scaled(nn.Module):
        hidden_size = 3

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", torch.tensor([0.5, 1.0, 2.0]))

        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return torch.tanh(self.scale * h + x)

    rnn, x = elman.Recurrent(Scaled()), torch.randn(4, 2, 3)

    def call(scale: Tensor) -> Tensor:
        return functional_call(rnn, {"cell.scale": scale}, (x,))[0]

    def loop(scale: Tensor) -> Tensor:
        h, outputs = torch.zeros(2, 3), []
        for x_t in x:
            outputs.append(h := torch.tanh(scale * h + x_t))
        return torch.stack(outputs)

    scale = torch.tensor([0.5, 1.0, 2.0])
    torch.testing.assert_close(jacfwd(call)(scale), jacfwd(loop)(scale))


class Before(nn.Module):
    """Hands out the state before, and the one after lies in the same memory; cut: that has no derivative."""

    def __init__(self, cut: bool) -> None:
        super().__init__()
        self.W, self.cut = nn.Linear(3, 3), cut

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        after = torch.tanh(self.W(h) + x)
        return h, after.detach() if self.cut else after


@pytest.mark.grid(1)
@pytest.mark.parametrize("memory", [None, elman.Segments(2)])
@pytest.mark.parametrize(("cut", "recorded"), [(True, False), (True, True), (False, True)])
def test_outputs_that_are_the_states_before(cut: bool, recorded: bool, memory: Any) -> None:
    cell = Before(cut)
    rnn, x, h, v, w = (elman.Recurrent(cell, memory=memory), *(torch.randn(n, 2, 3) for n in (4, 1, 1, 4)))
    with torch.set_grad_enabled(recorded), forward_ad.dual_level():
        state, expected = forward_ad.make_dual(h[0], v[0]), list[Tensor]()
        x = x if cut else forward_ad.make_dual(x, w)
        results = rnn(x, state)
        outputs, final = (forward_ad.unpack_dual(value).tangent for value in results)
        for x_t in x:
            before, state = cell(x_t, state)
            tangent = forward_ad.unpack_dual(before).tangent
            expected.append(torch.zeros(2, 3) if tangent is None else tangent)
        last = forward_ad.unpack_dual(state).tangent
    torch.testing.assert_close(outputs, torch.stack(expected))
    assert last is not None or final is None or not final.any()
    if last is not None:
        torch.testing.assert_close(final, last)


def test_an_output_that_is_the_same_at_every_step_has_no_direction() -> None:
    class Constant(nn.Module):
        hidden_size = 4

        def forward(self, x: Tensor, h: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
            h = torch.tanh(x + h)
            return (torch.ones(3), h), h

    rnn, x = elman.Recurrent(Constant()), torch.randn(2, 3, 4)
    (constant, _), (still, moved) = torch.func.jvp(lambda x: rnn(x)[0], (x,), (x,))
    assert constant.shape == still.shape == (2, 3, 3)
    assert not still.any()
    assert moved.any()


@pytest.mark.parametrize("function", [torch.sinc, lambda x: x.logit(eps=0.1)], ids=["sinc", "logit"])
def test_directions_where_a_derivative_divides_by_zero(function: Any) -> None:
    class Applied(nn.Module):
        hidden_size = 6

        def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            return function(x), h

    rnn = elman.Recurrent(Applied())
    x = torch.tensor([0.0, -0.0, 1e-5, 0.5, 0.95, -0.7], dtype=torch.float64)
    for made, right in zip(
        torch.func.jvp(lambda x: rnn(x.expand(1, 1, 6))[0].flatten(), (x,), (torch.ones_like(x),)),
        torch.func.jvp(function, (x,), (torch.ones_like(x),)),
        strict=True,
    ):
        torch.testing.assert_close(made, right)


class Quantiles(nn.Module):
    several: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.W = nn.Linear(4, 4)
        self.register_buffer("several", torch.tensor([0.1, 0.6]))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        z = torch.tanh(self.W(h) + x)
        middle = z.quantile(self.several, -1, True, interpolation="midpoint").sum(0)
        return (
            z * torch.quantile(z, 0.3, 1).unsqueeze(1) + torch.nanquantile(z, 0.7, -1, keepdim=True) + middle
        )


@pytest.mark.parametrize("called", [False, True])
def test_directions_of_quantiles(called: bool) -> None:
    cell, x, h = Quantiles().double(), torch.randn(3, 2, 4).double(), torch.randn(2, 4).double()
    rnn = elman.Recurrent(cell)
    if called:
        torch.testing.assert_close(rnn(x, h)[0], eager.unroll(cell, x, h)[0])
    found = []
    for run in (lambda h: rnn(x, h)[0], lambda h: eager.unroll(cell, x, h)[0]):
        once = torch.func.jvp(run, (h,), (h.sin(),))
        over = torch.func.grad(lambda h, run=run: torch.func.jvp(run, (h,), (h.sin(),))[1].square().sum())(h)
        found.append((once, over))
    torch.testing.assert_close(*found)


def test_what_fails_within_pytorch_is_an_error_of_ours_and_leaves_nothing_behind() -> None:
    class Quantile(nn.Module):
        hidden_size = 4

        def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            return torch.ops.aten.quantile.scalar(x, 0.3, -1, True), h

    rnn, x = elman.Recurrent(Quantile()), torch.randn(2, 3, 4)
    for called in (False, True):  # before it: then only the tangent is traced there
        if called:
            rnn(x)
        told = None
        try:
            torch.func.jvp(lambda x: rnn(x)[0], (x,), (x,))
        except elman.ElmanError as error:  # PyTorch 2.13 asserts there what does not hold
            told = str(error)
        assert told is None or "a fault of PyTorch's" in told
    assert elman.Recurrent(elman.cells.Elman(4, 4))(x)[0].shape == (2, 3, 4)
