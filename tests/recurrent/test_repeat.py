"""A call that has come before is handed on natively; what only looks like it goes the way of all calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

import elman
from elman import cells
from elman.errors import InputError, NotSupported
from tests import eager
from tests.recurrent.test_bound import EXACT, B, H, I, T, data, same, warm

Tensor = torch.Tensor


class _Own(Tensor):
    """A class of tensors of somebody's own."""


def _negative(x: Tensor) -> Tensor:
    return torch.complex(torch.zeros_like(x), -x).conj().imag  # the same numbers, kept with the other sign


# What is another call than the one before, though all of its tensors have the same sizes.
OTHERS: dict[str, Callable[[elman.Recurrent, Tensor, Tensor], Any]] = {
    "x of a class of its own": lambda rnn, x, h: rnn(x.as_subclass(_Own), h),
    "x with the negative bit": lambda rnn, x, h: rnn(_negative(x), h),
    "x that does not lie in order": lambda rnn, x, h: rnn(x.mT.contiguous().mT, h),
    "a state in a list": lambda rnn, x, h: rnn(x, [h]),
    "a state in a tuple": lambda rnn, x, h: rnn(x, (h,)),
    "backwards": lambda rnn, x, h: setattr(rnn, "reverse", True) or rnn(x, h),
    "a budget": lambda rnn, x, h: setattr(rnn, "memory", elman.Segments(2)) or rnn(x, h),
    "an engine": lambda rnn, x, h: setattr(rnn, "engine", "reference") or rnn(x, h),
    "a recorded gradient": lambda rnn, x, h: torch.enable_grad()(rnn)(x, h),
    "no recorded gradient": lambda rnn, x, h: torch.no_grad()(rnn)(x, h),
    "a dual number": lambda rnn, x, h: _of_dual(rnn, x, h),
    "a map over examples": lambda rnn, x, h: torch.func.vmap(rnn, (2, 1), (2, 1))(x.unsqueeze(2), h.unsqueeze(1)),
    "a direction": lambda rnn, x, h: torch.func.jvp(lambda x: rnn(x, h), (x,), (x,)),
    "parameters without gradients": lambda rnn, x, h: rnn.requires_grad_(False)(x, h),
    "a default dtype": lambda rnn, x, h: _by_default(torch.float64, rnn, x, h),
}  # fmt: skip


def _of_dual(rnn: elman.Recurrent, x: Tensor, h: Tensor) -> Any:
    with forward_ad.dual_level():
        outputs, final = rnn(forward_ad.make_dual(x, x), h)
        return *forward_ad.unpack_dual(outputs), *forward_ad.unpack_dual(final)


def _by_default(dtype: torch.dtype, rnn: elman.Recurrent, x: Tensor, h: Tensor) -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return rnn(x, h)
    finally:
        torch.set_default_dtype(before)


class _Shaped(nn.Module):
    """Any structure of the state is served, and it is told apart by what comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(H, H, dtype=torch.float64))

    def forward(self, x: Tensor, state: Any) -> Any:
        h = state if isinstance(state, Tensor) else state[0]
        new = torch.tanh(x @ self.W + h)
        return new, (new if isinstance(state, Tensor) else type(state)([new]))


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("name", OTHERS)
def test_what_looks_like_the_call_before(name: str, gradients: bool) -> None:
    """A layer that has got used to a call gives what one does that has never been called."""
    rnn, fresh = (elman.Recurrent(_Shaped(), batch_first=False) for _ in range(2))
    fresh.load_state_dict(rnn.state_dict())
    x, h = torch.randn(T, B, H, dtype=torch.float64), torch.randn(B, H, dtype=torch.float64)
    with torch.set_grad_enabled(gradients):
        for _ in range(3):
            rnn(x, h)
        assert rnn._calls._recent[False].repeats[gradients]
        got, right = OTHERS[name](rnn, x, h), OTHERS[name](fresh, x, h)
    mine, theirs = pytree.tree_flatten(got), pytree.tree_flatten(right)
    assert str(mine[1]) == str(theirs[1])
    for one, other in zip(mine[0], theirs[0], strict=True):
        torch.testing.assert_close(one, other, **EXACT)
        assert (type(one), one.requires_grad) == (type(other), other.requires_grad)
    assert rnn._calls.budget == fresh._calls.budget
    assert frozenset() not in rnn._calls.latest.program._training


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of torch.jit
@pytest.mark.parametrize(
    "record", [torch.jit.trace, lambda rnn, given: make_fx(rnn)(*given)], ids=["jit", "fx"]
)
def test_whoever_records_operations_is_refused(record: Callable[..., Any]) -> None:
    rnn, (x, h) = elman.Recurrent(cells.Elman(I, H).double()), data()
    warm(rnn, x, h)
    rnn.requires_grad_(False)
    with torch.no_grad(), pytest.raises(NotSupported, match="recorded"):
        record(rnn, (x, h))


def test_calls_and_steps_in_turns() -> None:
    """Each has its latest one, with gradients and without; where x may be both, they are not taken for one another."""

    class Scalar(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.W = nn.Parameter(torch.randn(B, B))

        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return torch.tanh((x if x.dim() == 2 else x.unsqueeze(1)) @ self.W[: x[0].numel()] + h)

    rnn, x, h = elman.Recurrent(Scalar().double(), batch_first=False), *torch.randn(2, B, B).double()
    for gradients in (False, True, False, True):
        with torch.set_grad_enabled(gradients):
            for _ in range(4):
                same(rnn(x, h), eager.unroll(rnn.cell, x, h))
                same(rnn.step(x, h)[1], rnn.cell(x, h))


class _Begun(nn.Module):
    """Says itself where it starts from: from what it has learnt."""

    def __init__(self) -> None:
        super().__init__()
        self.W, self.h = nn.Parameter(torch.randn(H, H)), nn.Parameter(torch.randn(2, H))
        self.asked, self.more = 0, 0

    def initial_state(self, batch: int) -> tuple[Tensor, Tensor]:
        self.asked += 1
        a, b = self.h.unsqueeze(1).expand(2, batch + self.more, H).clone()
        return a, b

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        a, b = state
        return torch.tanh(x @ self.W + a), a * b


@pytest.mark.parametrize("gradients", [False, True])
def test_a_cell_that_starts_by_itself(gradients: bool) -> None:
    """It is asked once by each call that has come before, and what it says now is what counts."""
    cell = _Begun().double()
    rnn, x = elman.Recurrent(cell, batch_first=False), torch.randn(T, B, H, dtype=torch.float64)
    for number in range(6):
        with torch.no_grad():
            cell.h.normal_()
        with torch.set_grad_enabled(gradients):
            before = cell.asked
            got = rnn(x)
            assert cell.asked == before + 1
            right = eager.unroll(cell, x, cell.initial_state(B))
            same(got, right)
            if gradients:
                mine, theirs = (torch.autograd.grad(o.sum(), (cell.W, cell.h)) for o in (got[0], right[0]))
                same(mine, theirs)
            before = cell.asked
            same(rnn.step(x[0])[1], cell(x[0], cell.initial_state(B)))
            assert cell.asked == before + 2
        bound = rnn._calls._recent[False]
        assert bool(bound.repeats[gradients]) == (number >= 1)
    cell.more = 1
    with torch.set_grad_enabled(gradients), pytest.raises(InputError, match="batch size"):
        rnn(x)
    cell.more = 0
    same(rnn(x), eager.unroll(cell, x, cell.initial_state(B)))
