"""A call that was bound serves no other: whatever changes about the cell between two calls is noticed."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import elman
from elman import cells
from elman.trace.fingerprint import watch
from tests import zoo
from tests.cases import CASES
from tests.recurrent.bound import WATCHING, B, H, I, T, data, right, warm
from tests.recurrent.test_trace_key import KEEPERS, Holder, Options

Tensor = torch.Tensor


def _hooked(cell: nn.Module) -> None:
    cell.register_forward_hook(lambda module, given, made: made * 0.5)


def _other_forward(cell: nn.Module) -> None:
    def forward(self: nn.Module, x: Tensor, h: Tensor) -> Tensor:
        return torch.sin(h) + nn.functional.linear(x, self.U)

    cell.forward = types.MethodType(forward, cell)


def _set(name: str, value: Any) -> Callable[[nn.Module], None]:
    return lambda cell: setattr(cell, name, value)


CHANGES: dict[str, Callable[[nn.Module], Any]] = {
    "a number": _set("alpha", 0.9),
    "a parameter": lambda c: setattr(c, "W", nn.Parameter(torch.randn_like(c.W))),
    "a parameter's data": lambda c: setattr(c.W, "data", torch.randn_like(c.W)),
    "a parameter in place": lambda c: c.W.data.mul_(0.5),
    "a parameter that is gone": _set("b", None),
    "another forward": _other_forward,
    "a hook": _hooked,
    "tied weights": lambda c: setattr(c, "U", c.W),
    "another class": lambda c: setattr(c, "__class__", Doubled),
}  # fmt: skip


class Doubled(cells.Leaky):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return 2 * super().forward(x, h)


@pytest.mark.grid(1)
@pytest.mark.usefixtures("watching")
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_between_two_calls(name: str, matched: list[bool]) -> None:
    rnn = elman.Recurrent(cells.Leaky(H, H).double())
    x, h = torch.randn(T, B, H, dtype=torch.float64), torch.randn(B, H, dtype=torch.float64)
    warm(rnn, x, h)
    assert matched[-1]
    right(rnn, x, h)
    CHANGES[name](rnn.cell)
    right(rnn, x, h)
    right(rnn, x, h)
    right(rnn, x, h)


def test_one_and_one_point_nought(matched: list[bool]) -> None:
    rnn, (x, h) = elman.Recurrent(cells.Leaky(I, H, alpha=1).double()), data()
    warm(rnn, x, h)
    rnn.cell.alpha = 1.0
    matched.clear()
    right(rnn, x, h)
    assert not matched[0]


class Little(Holder):
    """It is traced again after every change."""

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return (x[:, :1] + h) * self.read(self.kept)


TENSORS = [name for name in KEEPERS if name.startswith("tensor")]


@pytest.mark.filterwarnings("ignore::elman.errors.RetraceWarning")
@pytest.mark.parametrize(
    "names", [[name for name in KEEPERS if name not in TENSORS], TENSORS], ids=["objects", "tensors"]
)
def test_a_change_of_what_the_cell_keeps(names: list[str], matched: list[bool]) -> None:
    """Of everything that one cell keeps, one after the other. Both ways to watch it share what is traced of objects."""
    kept = {name: KEEPERS[name][0]() for name in names}
    reads = {name: KEEPERS[name][1] for name in names}
    cell = Little(kept, lambda kept: sum(read(kept[name]) for name, read in reads.items())).double()
    rnns, (x, h) = {way: elman.Recurrent(cell) for way in WATCHING}, data()

    def each(do: Callable[[elman.Recurrent, Tensor, Tensor], None], when: str) -> None:
        for way, rnn in rnns.items():
            try:
                with WATCHING[way]():
                    do(rnn, x, h)
            except AssertionError as error:
                raise AssertionError(f"{when}, {way}") from error

    each(warm, "first")
    for name in names:
        matched.clear()
        each(right, f"before {name}")
        assert len(matched) == 2 * len(rnns)
        assert all(matched), f"before {name}"
        KEEPERS[name][2](cell.kept[name])
        each(right, f"after {name}")
        each(warm, f"after {name}")


def test_a_change_of_a_submodule() -> None:
    class Nested(zoo.Base):
        def __init__(self) -> None:
            super().__init__(I, H)
            self.act = nn.Sequential(nn.LeakyReLU(0.1), nn.Softplus(beta=2.0))
            self.register_buffer("gain", torch.ones(H))

        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return torch.tanh(self.act(self.U(x) + self.W(h))) * self.gain

    rnn, (x, h) = elman.Recurrent(Nested().double()), data()
    changes: list[Callable[[], Any]] = [
        lambda: setattr(rnn.cell.act[0], "negative_slope", 0.9),
        lambda: rnn.cell.act.__setitem__(1, nn.Tanh()),
        lambda: rnn.cell.act.append(nn.Sigmoid()),
        lambda: setattr(rnn.cell, "gain", torch.full((H,), 0.5, dtype=torch.float64)),
        lambda: rnn.cell.gain.mul_(0.5),
        lambda: setattr(rnn, "cell", CASES["elman"].make().double()),
    ]
    for change in changes:
        warm(rnn, x, h)
        change()
        right(rnn, x, h)


def test_train_and_eval() -> None:
    rnn, (x, h) = elman.Recurrent(CASES["dropout_rnn"].make().double().eval()), data()
    warm(rnn, x, h)
    with torch.no_grad():
        assert torch.equal(rnn(x, h)[0], rnn(x, h)[0])
        rnn.train()
        for _ in range(3):
            assert not torch.equal(rnn(x, h)[0], rnn(x, h)[0])
            assert not torch.equal(rnn.step(x[0], h)[0], rnn.step(x[0], h)[0])


@pytest.mark.usefixtures("watching")
@pytest.mark.parametrize(
    "change",
    [
        lambda o: setattr(o, "gain", 2.0), lambda o: setattr(o, "inner", [1]), lambda o: o.inner.append(2),
        lambda o: o.inner.__setitem__(0, 1.0), lambda o: setattr(o, "more", None),
    ],
)  # fmt: skip
def test_watch(change: Callable[[Any], None]) -> None:
    cell = Holder(Options(0.7, [1]), lambda kept: kept.gain)
    cell.read = float  # a closure-free word for it
    unchanged = watch(cell)
    assert unchanged is not None
    assert unchanged()
    change(cell.kept)
    assert not unchanged()


@pytest.mark.usefixtures("watching")
def test_watch_sees_the_default_dtype() -> None:
    unchanged = watch(cells.Elman(I, H))
    assert unchanged is not None
    torch.set_default_dtype(torch.float64)
    try:
        assert not unchanged()
    finally:
        torch.set_default_dtype(torch.float32)
    assert unchanged()


@pytest.mark.usefixtures("watching")
def test_watch_sees_tensors_change_in_place() -> None:
    cell = CASES["dale_rnn"].make()
    for change in (
        lambda: cell.double(),
        lambda: cell.sign.requires_grad_(),
        lambda: setattr(next(cell.parameters()), "data", torch.zeros(1)),
        lambda: cell.register_forward_pre_hook(lambda *_: None),
    ):
        unchanged = watch(cell)
        assert unchanged is not None
        assert unchanged()
        change()
        assert not unchanged()
    assert watch(cell) is None, "it has a hook"
