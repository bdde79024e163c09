"""What may change between two calls is honoured; what has not changed is not traced again."""

from __future__ import annotations

import collections
import copy
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import elman
from elman import cells
from tests import eager, zoo
from tests.cases import CASES
from tests.pairwise import with_more

Tensor = torch.Tensor
EXACT = {"rtol": 1e-10, "atol": 1e-10}
T, B, I, H = 4, 3, 5, 7


def data() -> tuple[Tensor, Tensor]:
    return torch.randn(T, B, I, dtype=torch.float64), torch.randn(B, H, dtype=torch.float64)


def agrees(rnn: elman.Recurrent, x: Tensor, h: Tensor) -> Tensor:
    """Outputs and gradients are those of the eager loop now; returns the outputs."""
    x = x.detach().requires_grad_()
    wanted = [x, *(p for p in rnn.cell.parameters() if p.requires_grad)]
    found = []
    for run in (lambda: rnn(x, h), lambda: eager.unroll(rnn.cell, x, h, reverse=rnn.reverse)):
        outputs, final = run()
        loss = outputs.square().sum() + final.sum()
        found.append((outputs, final, *torch.autograd.grad(loss, wanted, allow_unused=True)))
    for mine, right in zip(*found, strict=True):
        assert (mine is None) == (right is None)
        if mine is not None:
            torch.testing.assert_close(mine, right, **EXACT)
    return found[0][0].detach()


# --- attributes -----------------------------------------------------------------------------------------------------


def test_alpha_changed_between_two_calls(traces: list[str]) -> None:
    rnn, (x, h) = elman.Recurrent(cells.Leaky(I, H, alpha=0.2).double()), data()
    first = agrees(rnn, x, h)
    rnn.cell.alpha = 0.9
    second = agrees(rnn, x, h)
    assert not torch.allclose(first, second)
    rnn.cell.alpha = 0.2
    assert torch.equal(agrees(rnn, x, h), first)
    assert traces == ["Leaky", "Leaky"], "the first program is still known"


@dataclass
class Options:
    gain: float
    inner: Any = None


class Table:
    def __init__(self, gain: float) -> None:
        self.gain = gain


class Slotted:
    __slots__ = ("gain",)

    def __init__(self, gain: float) -> None:
        self.gain = gain


class Scale:
    """A plain object that can be called."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, a: Tensor) -> Tensor:
        return self.factor * a


class Squared(Scale):
    def __call__(self, a: Tensor) -> Tensor:
        return self.factor * self.factor * a


class Named(Table):
    """One looks like another."""

    def __repr__(self) -> str:
        return "Named"


class Row(list):  # type: ignore[type-arg]
    pass


class Holder(zoo.Base):
    """A cell that reads its gain from wherever it is kept."""

    def __init__(self, kept: Any, read: Callable[[Any], Any]) -> None:
        super().__init__(I, H)
        self.kept, self.read = kept, read

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.U(x) + self.W(h)) * self.read(self.kept)


def set_item(kept: Any, key: Any) -> None:
    kept[key] = 0.3


KEEPERS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any], Callable[[Any], None]]] = {
    "object": (lambda: Table(0.7), lambda k: k.gain, lambda k: setattr(k, "gain", 0.3)),
    "dataclass": (lambda: Options(0.7), lambda k: k.gain, lambda k: setattr(k, "gain", 0.3)),
    "object in an object": (
        lambda: Options(0.0, Table(0.7)), lambda k: k.inner.gain, lambda k: setattr(k.inner, "gain", 0.3)
    ),
    "list": (lambda: [0.7], lambda k: k[0], lambda k: set_item(k, 0)),
    "dict": (lambda: {"gain": 0.7}, lambda k: k["gain"], lambda k: set_item(k, "gain")),
    "list of dicts of lists": (lambda: [{"a": [0.7]}], lambda k: k[0]["a"][0], lambda k: set_item(k[0]["a"], 0)),
    "set": (lambda: {0.7}, lambda k: max(k), lambda k: (k.clear(), k.add(0.3))),
    "slots": (lambda: Slotted(0.7), lambda k: k.gain, lambda k: setattr(k, "gain", 0.3)),
    "callable": (lambda: Scale(0.7), lambda k: k(1.0), lambda k: setattr(k, "factor", 0.3)),
    "deep": (lambda: [[[[[[0.7]]]]]], lambda k: k[0][0][0][0][0][0], lambda k: set_item(k[0][0][0][0][0], 0)),
    "tensor in a list": (
        lambda: [torch.tensor(0.7)], lambda k: k[0].double(), lambda k: k.__setitem__(0, torch.tensor(0.3))
    ),
    "tensor in a list, in place": (lambda: [torch.tensor(0.7)], lambda k: k[0].double(), lambda k: k[0].fill_(0.3)),
    "module in a list": (
        lambda: [nn.LeakyReLU(0.7)], lambda k: k[0](torch.full((1,), -1.0, dtype=torch.float64)),
        lambda k: setattr(k[0], "negative_slope", 0.3),
    ),
    "a closure": (
        lambda: (lambda box: lambda: box)([0.7]), lambda k: k()[0], lambda k: set_item(k(), 0)
    ),
    "a dict's keys": (
        lambda: {Table(0.7): 1.0}, lambda k: next(iter(k)).gain, lambda k: setattr(next(iter(k)), "gain", 0.3)
    ),
    "objects in a set": (
        lambda: {Table(0.7)}, lambda k: next(iter(k)).gain, lambda k: setattr(next(iter(k)), "gain", 0.3)
    ),
    "keys of one name": (
        lambda: {Named(0.7): 1.0}, lambda k: next(iter(k)).gain, lambda k: (k.clear(), k.update({Named(0.3): 1.0}))
    ),
    "the order of a dict of another class": (
        lambda: collections.OrderedDict(a=0.7, b=0.3), lambda k: next(iter(k.values())), lambda k: k.move_to_end("a")
    ),
    "deque": (lambda: collections.deque([0.7]), lambda k: k[0], lambda k: k.appendleft(0.3)),
    "list of one's own class": (lambda: Row([0.7]), lambda k: k[0], lambda k: set_item(k, 0)),
    "the class of an object": (lambda: Scale(0.7), lambda k: k(1.0), lambda k: setattr(k, "__class__", Squared)),
    "a function of a library": (
        lambda: [F.relu], lambda k: k[0](torch.full((1,), -0.7, dtype=torch.float64)) + 1,
        lambda k: k.__setitem__(0, F.elu),
    ),
    "a function of PyTorch": (
        lambda: [torch.sin], lambda k: k[0](torch.full((1,), 0.7, dtype=torch.float64)),
        lambda k: k.__setitem__(0, torch.cos),
    ),
    "a method of a number": (lambda: [(5).bit_length], lambda k: k[0](), lambda k: k.__setitem__(0, (5).conjugate)),
    "a decorated function": (
        lambda: (lambda box: torch.no_grad()(lambda: box[0]))([0.7]), lambda k: k(),
        lambda k: set_item(k.__wrapped__.__closure__[0].cell_contents, 0),
    ),
    "modules of a module in an object": (
        lambda: Table(nn.Sequential(nn.LeakyReLU(0.7))), lambda k: k.gain(torch.full((1,), -1.0, dtype=torch.float64)),
        lambda k: setattr(k.gain[0], "negative_slope", 0.3),
    ),
}  # fmt: skip


# tests/recurrent/test_bound.py changes every one of them between two calls.
@pytest.mark.parametrize("name", with_more(list(KEEPERS)[-1:], list(KEEPERS)[:-1]))
def test_what_the_cell_keeps_in_objects(name: str, traces: list[str]) -> None:
    make, read, change = KEEPERS[name]
    rnn, (x, h) = elman.Recurrent(Holder(make(), read).double()), data()
    first = agrees(rnn, x, h)
    agrees(rnn, x, h)
    assert len(traces) == 1, "nothing has changed"
    change(rnn.cell.kept)
    assert not torch.allclose(first, agrees(rnn, x, h))


@pytest.mark.conformance  # tests/recurrent/test_bound.py has the same changes and more, without gradients
def test_a_number_changed_in_a_submodule() -> None:
    class Nested(zoo.Base):
        def __init__(self) -> None:
            super().__init__(I, H)
            self.act = nn.Sequential(nn.LeakyReLU(0.1), nn.Softplus(beta=2.0))

        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return torch.tanh(self.act(self.U(x) + self.W(h)))

    rnn, (x, h) = elman.Recurrent(Nested().double()), data()
    agrees(rnn, x, h)
    rnn.cell.act[0].negative_slope = 0.9
    agrees(rnn, x, h)
    rnn.cell.act[1] = nn.Tanh()
    agrees(rnn, x, h)
    rnn.cell.act.append(nn.Sigmoid())
    agrees(rnn, x, h)


def test_train_and_eval(traces: list[str]) -> None:
    rnn, (x, h) = elman.Recurrent(CASES["dropout_rnn"].make().double()), data()
    assert not torch.equal(rnn(x, h)[0], rnn(x, h)[0])
    rnn.eval()
    assert torch.equal(rnn(x, h)[0], rnn(x, h)[0])
    agrees(rnn, x, h)
    rnn.train()
    assert not torch.equal(rnn(x, h)[0], rnn(x, h)[0])
    assert len(traces) == 2


def test_the_probability_of_dropout() -> None:
    class Dropped(zoo.Base):
        def __init__(self) -> None:
            super().__init__(I, H)
            self.drop = nn.Dropout(0.5)

        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return self.drop(torch.tanh(self.U(x) + self.W(h)))

    rnn, (x, h) = elman.Recurrent(Dropped().double()), data()
    rnn(x, h)
    rnn.cell.drop.p = 1.0
    assert not rnn(x, h)[0].any()
    rnn.cell.drop.p = 0.0
    agrees(rnn, x, h)


def test_another_forward() -> None:
    rnn, (x, h) = elman.Recurrent(cells.Elman(I, H).double()), data()
    first = agrees(rnn, x, h)

    def other(self: nn.Module, x: Tensor, h: Tensor) -> Tensor:
        return torch.sin(nn.functional.linear(x, self.U) + h)

    rnn.cell.forward = types.MethodType(other, rnn.cell)
    assert not torch.allclose(first, agrees(rnn, x, h))


# --- tensors --------------------------------------------------------------------------------------------------------


class Plain(zoo.Base):
    """A tensor that is neither a parameter nor a buffer."""

    def __init__(self) -> None:
        super().__init__(I, H)
        self.gain = torch.linspace(0.5, 1.5, H, dtype=torch.float64)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.gain * torch.tanh(self.U(x) + self.W(h))


def test_a_plain_tensor_changed_and_replaced(traces: list[str]) -> None:
    rnn, (x, h) = elman.Recurrent(Plain().double()), data()
    agrees(rnn, x, h)
    rnn.cell.gain.mul_(0.5)
    agrees(rnn, x, h)
    rnn.cell.gain = torch.rand(H, dtype=torch.float64)
    agrees(rnn, x, h)
    assert len(traces) == 1, "values of tensors are not a part of the key"
    rnn.cell.gain = torch.rand(1, dtype=torch.float64)  # another shape
    agrees(rnn, x, h)
    assert len(traces) == 2


def test_a_plain_tensor_that_begins_to_want_a_gradient() -> None:
    rnn, (x, h) = elman.Recurrent(Plain().double()), data()
    rnn(x, h)[0].sum().backward()
    gain = rnn.cell.gain.requires_grad_()
    found = []
    for run in (rnn, lambda x, h: eager.unroll(rnn.cell, x, h)):
        found.append(torch.autograd.grad(run(x, h)[0].sum(), gain)[0])
    torch.testing.assert_close(*found, **EXACT)
    rnn.cell.gain = gain.detach()
    agrees(rnn, x, h)


def test_a_buffer_that_begins_to_want_a_gradient() -> None:
    rnn, (x, h) = elman.Recurrent(CASES["dale_rnn"].make().double()), data()
    agrees(rnn, x, h)
    rnn.cell.sign.requires_grad_()
    found = [
        torch.autograd.grad(run(x, h)[0].sum(), rnn.cell.sign)[0]
        for run in (rnn, lambda x, h: eager.unroll(rnn.cell, x, h))
    ]
    torch.testing.assert_close(*found, **EXACT)


ELSEWHERE = torch.full((H,), 0.5, dtype=torch.float64)


class Captures(zoo.Base):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return ELSEWHERE * torch.tanh(self.U(x) + self.W(h))


def test_a_captured_tensor_changed_in_place(traces: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ELSEWHERE", ELSEWHERE.clone())
    rnn, (x, h) = elman.Recurrent(Captures(I, H).double()), data()
    agrees(rnn, x, h)
    ELSEWHERE.mul_(1.5)
    agrees(rnn, x, h)
    assert len(traces) == 1


def test_requires_grad_may_change(traces: list[str]) -> None:
    rnn, (x, h) = elman.Recurrent(cells.GRU(I, H).double()), data()
    agrees(rnn, x, h)
    rnn.cell.W.requires_grad_(False)
    agrees(rnn, x, h)
    rnn.requires_grad_(False)
    agrees(rnn, x, h)
    rnn.requires_grad_(True)
    agrees(rnn, x, h)
    assert len(traces) == 1


def test_dtype_and_width_and_structure_are_traced_anew(traces: list[str]) -> None:
    rnn = elman.Recurrent(cells.Elman(I, H))
    rnn(torch.randn(T, B, I))
    rnn(torch.randn(2 * T, B + 1, I))
    rnn(torch.randn(1, 1, I))
    assert len(traces) == 1, "one trace serves every T and B"
    rnn.double()
    rnn(torch.randn(T, B, I, dtype=torch.float64))
    assert len(traces) == 2
    rnn.float()
    rnn(torch.randn(T, B, I))
    assert len(traces) == 2
    elman.Recurrent(cells.Elman(I, H + 1))(torch.randn(T, B, I))
    assert len(traces) == 3


def test_two_instances_share_a_program(traces: list[str]) -> None:
    first, second = (elman.Recurrent(cells.GRU(I, H).double()) for _ in range(2))
    x, h = data()
    agrees(first, x, h)
    agrees(second, x, h)
    agrees(copy.deepcopy(first), x, h)
    agrees(elman.Recurrent(cells.GRU(I, H).double(), reverse=True), x, h)
    assert len(traces) == 1
    assert first._calls.latest is second._calls.latest


def test_tied_weights_are_not_those_that_are_not_tied(traces: list[str]) -> None:
    rnn, (x, h) = elman.Recurrent(CASES["tied_rnn"].make().double()), data()
    rnn(x, h)
    rnn.cell.again.weight = nn.Parameter(rnn.cell.again.weight.detach().clone())
    agrees(rnn, x, h)
    assert len(traces) == 2
    rnn.cell.W.weight = rnn.cell.again.weight
    agrees(rnn, x, h)
    assert len(traces) == 2
