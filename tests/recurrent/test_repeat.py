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
from elman.errors import AmbiguityWarning, InputError, InputTypeError, NotSupported
from tests import eager
from tests.recurrent.bound import EXACT, B, H, I, T, data, same, warm

Tensor = torch.Tensor


class _Own(Tensor):
    """A class of tensors of somebody's own."""


def _negative(x: Tensor) -> Tensor:
    return torch.complex(torch.zeros_like(x), -x).conj().imag  # the same numbers, kept with the other sign


def _outliving(x: Tensor) -> Tensor:
    """The same numbers, in a tensor of a transform that is over."""
    seen: list[Tensor] = []
    torch.func.grad(lambda inside: seen.append(inside) or inside.sum())(x)
    return seen[0]


# What is another call than the one before, though all of its tensors have the same sizes.
OTHERS: dict[str, Callable[[elman.Recurrent, Tensor, Tensor], Any]] = {
    "x of a class of its own": lambda rnn, x, h: rnn(x.as_subclass(_Own), h),
    "x with the negative bit": lambda rnn, x, h: rnn(_negative(x), h),
    "x that does not lie in order": lambda rnn, x, h: rnn(x.mT.contiguous().mT, h),
    "x that has outlived a transform": lambda rnn, x, h: rnn(_outliving(x), h),
    "a state in a tuple that has outlived one": lambda rnn, x, h: rnn(x, (_outliving(h),)),
    "a state in a list that has outlived one": lambda rnn, x, h: rnn(x, [_outliving(h)]),
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


@pytest.mark.grid(1)
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
        assert rnn._calls._recent[False].repeats[gradients, False]
        got, right = OTHERS[name](rnn, x, h), OTHERS[name](fresh, x, h)
    mine, theirs = pytree.tree_flatten(got), pytree.tree_flatten(right)
    assert str(mine[1]) == str(theirs[1])
    for one, other in zip(mine[0], theirs[0], strict=True):
        torch.testing.assert_close(one, other, **EXACT)
        assert (type(one), one.requires_grad) == (type(other), other.requires_grad)
    assert rnn._calls.budget == fresh._calls.budget
    assert frozenset() not in rnn._calls.latest.program._training


@pytest.mark.parametrize("when", ["before the first call", "in the first call"])
@pytest.mark.parametrize("gradients", [False, True])
def test_a_cell_whose_own_tensor_has_outlived_a_transform(gradients: bool, when: str) -> None:
    """It is what it holds, as an argument is, in calls that are new and in those that have come before."""
    cell, (x, h) = cells.Elman(I, H).double(), data()
    rnn, W = elman.Recurrent(cell, batch_first=False), cell.W.detach().clone()
    del cell.W
    if when == "in the first call":
        torch.func.grad(lambda inside: setattr(cell, "W", inside) or rnn(x, h)[0].sum())(W)
    else:
        cell.W = _outliving(W)
    learns = [x.requires_grad_(), cell.U]
    for _ in range(4):
        with torch.set_grad_enabled(gradients):
            got, right = rnn(x, h), eager.unroll(cell, x, h)
            one, step = rnn.step(x[0], h)[0], rnn.step(x[0], h)[0]
        torch.testing.assert_close(got, right, **EXACT)
        torch.testing.assert_close((one, step), (right[0][0],) * 2, **EXACT)
        if gradients:
            mine, theirs = (torch.autograd.grad(outputs.sum(), learns) for outputs in (got[0], right[0]))
            torch.testing.assert_close(mine, theirs, **EXACT)


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
        assert bool(bound.repeats[gradients, False]) == (number >= 1)
    cell.more = 1
    with torch.set_grad_enabled(gradients), pytest.raises(InputError, match="batch size"):
        rnn(x)
    cell.more = 0
    same(rnn(x), eager.unroll(cell, x, cell.initial_state(B)))


KINDS: dict[str, Callable[[], nn.Module]] = {
    "gru": lambda: cells.GRU(H, H), "lstm": lambda: cells.LSTM(H, H), "begun": _Begun,
}  # fmt: skip


@pytest.mark.parametrize("lengths", [None, [1, 3, 2], [0, T, T]])
def test_a_cell_is_asked_once_whatever_comes_of_it(lengths: list[int] | None) -> None:
    """Also by a call that turns out to have to go the way of all calls: a row without a step, T as it was for long."""
    cell = _Begun().double()
    rnn = elman.Recurrent(cell, batch_first=False)
    for steps in (T, T + 1, T + 2, *[T] * 8):
        before = cell.asked
        rnn(torch.randn(steps, B, H, dtype=torch.float64), lengths=lengths)
        assert cell.asked == before + 1
    assert rnn._calls._recent[False].repeats[True, True]


def _bools(seed: int, share: float) -> Tensor:
    return torch.rand(T, B, generator=torch.Generator().manual_seed(seed)) < share


# Which steps happen, in calls on tensors of the same sizes one after another.
SAID: dict[str, dict[str, Any]] = {
    "lengths": {"lengths": torch.tensor([1, 3, 2])},  # rows go round
    "others": {"lengths": torch.tensor([T] + [2] * (B - 1))},
    "as a list": {"lengths": [T, *[1] * (B - 1)]},
    "all steps": {"lengths": torch.full((B,), T)},
    "as many for all": {"lengths": torch.full((B,), T - 1)},
    "a row without a step": {"lengths": torch.tensor([0] + [T] * (B - 1))},
    "no step at all": {"lengths": torch.zeros(B, dtype=torch.long)},
    "a mask": {"mask": _bools(1, 0.7)},
    "resets": {"reset": _bools(2, 0.3)},
    "both": {"mask": _bools(3, 0.8), "reset": _bools(4, 0.3)},
    "lengths once more": {"lengths": torch.arange(T, T - B, -1)},
}


@pytest.mark.grid
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("stateful", [False, True])
@pytest.mark.parametrize("cell", KINDS)
@pytest.mark.parametrize("reverse", [False, True])
def test_calls_of_which_other_steps_happen(cell: str, gradients: bool, stateful: bool, reverse: bool) -> None:
    """Each gives what a layer does that has never been called, and the bits of its gradients."""
    made = KINDS[cell]().double()
    rnn = elman.Recurrent(made, reverse=reverse, batch_first=False)
    g = torch.Generator().manual_seed(5)
    for turn in range(3):
        for name, said in SAID.items():
            x = torch.randn(T, B, H, dtype=torch.float64, generator=g).requires_grad_(gradients)
            h = torch.randn(2, B, H, dtype=torch.float64, generator=g).requires_grad_(gradients)
            state = None if not stateful else h[0] if cell == "gru" else (h[0], h[1])
            fresh = elman.Recurrent(made, reverse=reverse, batch_first=False)
            leaves = [x, *([h] if stateful else []), *made.parameters()]
            found = []
            for layer in (rnn, fresh):
                with torch.set_grad_enabled(gradients):
                    tensors = [t for t in pytree.tree_leaves(layer(x, state, **said)) if t is not None]
                if gradients:
                    total = sum((i + 1) * t.cos().sum() for i, t in enumerate(tensors))
                    tensors += torch.autograd.grad(total, leaves, allow_unused=True)
                found.append(tensors)
            for one, other in zip(*found, strict=True):
                assert (one is None and other is None) or torch.equal(one, other), (turn, name)
    assert rnn._calls._recent[False].repeats[gradients, True]


def test_a_repeated_call_checks_what_it_is_told() -> None:
    rnn, (x, h) = elman.Recurrent(cells.GRU(I, H).double(), batch_first=False), data()
    for _ in range(4):  # these go the way of all calls, and others after them need not
        rnn(x, h, lengths=[0, *[T] * (B - 1)])
    assert rnn._calls._recent[False].repeats[True, True]
    for said, words in (
        ({"lengths": [T + 1] * B}, "between none and all"), ({"lengths": [1] * (B + 1)}, "one length for each"),
        ({"lengths": [1] * B, "mask": torch.ones(T, B)}, "mask"), ({"reset": [True]}, "reset"),
    ):  # fmt: skip
        with pytest.raises((InputError, InputTypeError), match=words):
            rnn(x, h, **said)
    square = torch.randn(B, B, I, dtype=torch.float64)
    unclear = elman.Recurrent(cells.GRU(I, H).double(), batch_first=False)
    for _ in range(4):
        unclear(square, lengths=[1, *[B] * (B - 1)])
    unclear.order_is_said = False
    with pytest.warns(AmbiguityWarning):
        unclear(square, lengths=[1, *[B] * (B - 1)])
    rnn.reverse = True
    fresh = elman.Recurrent(rnn.cell, reverse=True, batch_first=False)
    lengths = torch.arange(1, B + 1)
    same(rnn(x, h, lengths=lengths), fresh(x, h, lengths=lengths))
    rnn.memory = elman.Segments(2)
    same(rnn(x, h, lengths=lengths), fresh(x, h, lengths=lengths))
    assert rnn._calls.budget is not None


@pytest.mark.grid(1)
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("cell", KINDS)
def test_calls_of_other_lengths(cell: str, gradients: bool) -> None:
    """T may be another at every call, dense or ragged, none at all among them."""
    made = KINDS[cell]().double()
    rnn = elman.Recurrent(made, batch_first=False)
    for turn, steps in enumerate([3, 4, 1, 6, 0, 2, 5, 5, 5, 5, 5, 5, 4, 7]):
        x = torch.randn(steps, B, H, dtype=torch.float64).requires_grad_(gradients)
        for said in ({}, {"lengths": [steps, *[min(1, steps)] * (B - 1)]}):
            fresh, found = elman.Recurrent(made, batch_first=False), []
            for layer in (rnn, fresh):
                with torch.set_grad_enabled(gradients):
                    tensors = pytree.tree_leaves(layer(x, **said))
                if gradients and steps:
                    total = sum((i + 1) * t.cos().sum() for i, t in enumerate(tensors))
                    tensors += torch.autograd.grad(total, [x, *made.parameters()], allow_unused=True)
                found.append(tensors)
            for one, other in zip(*found, strict=True):
                assert (one is None and other is None) or torch.equal(one, other), (turn, steps, said)
    bound = rnn._calls._recent[False]
    assert bound.repeats[gradients, True]
    assert bound.repeats[gradients, False]  # of the length that came some times in a row


def test_sequences_of_one_call_have_one_length() -> None:
    """Whatever T was before: two of them that disagree are refused in the words of all calls."""

    class Two(nn.Module):
        hidden_size = H

        def __init__(self) -> None:
            super().__init__()
            self.W = nn.Parameter(torch.randn(H, H))

        def forward(self, x: tuple[Tensor, Tensor], h: Tensor) -> Tensor:
            return torch.tanh((x[0] + x[1]) @ self.W + h)

    rnn = elman.Recurrent(Two(), batch_first=False)
    for steps in (3, 4, 5, 6):
        rnn((torch.randn(steps, B, H), torch.randn(steps, B, H)))
    assert rnn._calls._recent[False].repeats[True, True]
    with pytest.raises(InputError, match="disagree"):
        rnn((torch.randn(4, B, H), torch.randn(5, B, H)))
