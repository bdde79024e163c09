"""What a step reads by less usual ways is noticed when it changes."""

from __future__ import annotations

import contextvars
import enum
import functools
import operator
import types
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import elman
from tests import eager

Tensor = torch.Tensor
ALPHA = 0.5
get = operator.attrgetter("alpha")
deep = operator.attrgetter("kept.alpha")
variable: contextvars.ContextVar[float] = contextvars.ContextVar("variable", default=0.5)


class Plain:
    alpha: Any = 0.5


class Numbers(list):  # type: ignore[type-arg]
    alpha: Any = 0.5


class Pair(tuple):  # type: ignore[type-arg]
    alpha: Any = 0.5


class Bag(set):  # type: ignore[type-arg]
    alpha: Any = 0.5


class Rate(float):
    alpha: Any = 0.5


class Mode(enum.Enum):
    A = 1


class Meta(type):
    shared: Any = 0.5


class Base(nn.Module):
    """A cell that keeps something, and reads a number."""

    def __init__(self, kept: Any = None) -> None:
        super().__init__()
        self.hidden_size = 4
        self.kept, self.alpha = kept, 0.5

    def read(self) -> Any:
        raise NotImplementedError

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.read() * (x + h)  # little, because it is traced for every way, before and after


class OfMeta(Base, metaclass=Meta):
    def read(self) -> Any:
        return type(self).shared


class Partial(Base):
    def get(self, key: str) -> Any:
        return self.kept[key]

    read = functools.partialmethod(get, "z")


class Matched(Base):
    def read(self) -> Any:
        match self:
            case nn.Module(alpha=z):
                return z


class ByPlace(Base):
    __match_args__ = ("alpha",)

    def read(self) -> Any:
        match self:
            case ByPlace(z):
                return z


class Slots(Base):
    __slots__ = ("beta",)

    def __init__(self) -> None:
        super().__init__()
        self.beta = 0.5

    def read(self) -> Any:
        return self.beta


Way = tuple[Callable[[], Base], Callable[[Base], Any]]


def way(read: Callable[[Any], Any], kept: Any, change: Callable[[Any], Any]) -> Way:
    kind = type("Reads", (Base,), {"read": read})
    return lambda: kind(kept), change


def an_object(kept: Any, read: Callable[[Any], Any]) -> Way:
    """Whose attribute changes; it is there as long as the test."""
    return way(read, kept, lambda cell: setattr(alive, "alpha", 0.9))


def set_global(name: str) -> Callable[[Any], Any]:
    return lambda cell: globals().update({name: 0.9})


alive, entries = Plain(), {"a": 0.5}
memory = bytearray([5])
array = np.array([0.5], dtype=object)
WAYS: dict[str, Way] = {
    "a weak proxy": an_object(weakref.proxy(alive), lambda self: self.kept.alpha),
    "a weak reference": an_object(weakref.ref(alive), lambda self: self.kept().alpha),
    "a mapping proxy": way(
        lambda s: s.kept["a"], types.MappingProxyType(entries), lambda c: entries.update(a=0.9)
    ),
    "a view of a dict": way(lambda s: next(iter(s.kept)), entries.values(), lambda c: entries.update(a=0.9)),
    **{
        f"an attribute of a {type(kept).__mro__[1].__name__}": way(
            lambda self: self.kept.alpha, kept, lambda cell: setattr(cell.kept, "alpha", 0.9)
        )
        for kept in (Numbers(), Pair(), Bag(), Rate(1))
    },
    "an attribute of a member": way(lambda s: s.kept.alpha, Mode.A, lambda c: setattr(Mode.A, "alpha", 0.9)),
    "a metaclass": (OfMeta, lambda cell: setattr(Meta, "shared", 0.9)),
    "a partial method": (lambda: Partial({"z": 0.5}), lambda cell: cell.kept.update(z=0.9)),
    "a match": (Matched, lambda cell: setattr(cell, "alpha", 0.9)),
    "a match by place": (ByPlace, lambda cell: setattr(cell, "alpha", 0.9)),
    "an attrgetter": way(lambda self: get(self), None, lambda cell: setattr(cell, "alpha", 0.9)),
    "a longer attrgetter": an_object(alive, lambda self: deep(self)),
    "globals()": way(lambda self: globals()["ALPHA"], None, set_global("ALPHA")),
    "eval": way(lambda self: eval("2 * ALPHA"), None, set_global("ALPHA")),
    "a format": way(lambda s: float("{0.alpha}".format(s)), None, lambda c: setattr(c, "alpha", 0.9)),  # noqa: UP030, UP032
    "an array of objects": way(lambda self: self.kept[0], array, lambda cell: array.__setitem__(0, 0.9)),
    "bytes": way(lambda self: self.kept[0] / 10, memory, lambda cell: memory.__setitem__(0, 9)),
    "a view of bytes": way(lambda s: s.kept[0] / 10, memoryview(memory), lambda c: memory.__setitem__(0, 9)),
    "a context variable": way(lambda self: variable.get(), None, lambda cell: variable.set(0.9)),
    "a slot": (Slots, lambda cell: setattr(cell, "beta", 0.9)),
}


@pytest.fixture(autouse=True)
def _as_before() -> Any:
    yield
    globals().update(ALPHA=0.5)
    alive.alpha = Meta.shared = Mode.A.alpha = 0.5  # type: ignore[attr-defined]
    entries.update(a=0.5)
    array[0], memory[0] = 0.5, 5
    variable.set(0.5)


@pytest.mark.parametrize("name", WAYS)
def test_it_is_noticed(name: str) -> None:
    make, change = WAYS[name]
    Mode.A.alpha = 0.5  # type: ignore[attr-defined]
    cell = make()
    rnn, x, h = elman.Recurrent(cell), torch.randn(4, 2, 4).double(), torch.randn(2, 4).double()
    before = rnn(x, h)[0]
    torch.testing.assert_close(before, eager.unroll(cell, x, h)[0])
    assert rnn(x, h)[0].equal(before)
    change(cell)
    after = rnn(x, h)[0]
    torch.testing.assert_close(after, eager.unroll(cell, x, h)[0])
    assert not torch.allclose(before, after)
