"""Calls of one layer that take turns: none of them is served as another one was."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import elman
from elman.errors import InputError
from tests import eager
from tests.cases import CASES

Tensor = torch.Tensor
EXACT = {"rtol": 1e-12, "atol": 1e-12}
T, B, I = 4, 3, 3


class Mean(nn.Module):
    """tanh(the mean of x + h), for x of any width or of none."""

    hidden_size = 1

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(x.reshape(x.shape[0], -1).mean(1, keepdim=True) + h)


def drawn(*sizes: int) -> Tensor:
    return torch.randn(sizes, dtype=torch.float64)


def sequence(layer: elman.Recurrent, width: tuple[int, ...] = (I,)) -> None:
    x, h = drawn(T, B, *width), drawn(B, 1)
    torch.testing.assert_close(layer(x, h), eager.unroll(layer.cell, x, h), **EXACT)


def numbers(layer: elman.Recurrent) -> None:
    sequence(layer, ())


def packed(layer: elman.Recurrent) -> None:
    x, h, lengths = drawn(T, B, I), drawn(B, 1), torch.tensor([4, 3, 1])
    _, final = layer(pack_padded_sequence(x, lengths), h)
    for row, length in enumerate(lengths.tolist()):
        expected = eager.unroll(layer.cell, x[:length, row : row + 1], h[row : row + 1])[1]
        torch.testing.assert_close(final[row : row + 1], expected, **EXACT)


def ragged(layer: elman.Recurrent) -> None:
    x, h = drawn(T, B, I), drawn(B, 1)
    out, _ = layer(x, h, lengths=torch.tensor([4, 3, 1]))
    torch.testing.assert_close(out[:, 0], eager.unroll(layer.cell, x, h)[0][:, 0], **EXACT)


def one_step(layer: elman.Recurrent) -> None:
    x, h = drawn(B, I), drawn(B, 1)
    torch.testing.assert_close(layer.step(x, h)[1], layer.cell(x, h), **EXACT)


def some_steps(layer: elman.Recurrent) -> None:
    """A step on [B, 3, 3], which looks like a sequence."""
    x, h = drawn(B, B, I), drawn(B, 1)
    torch.testing.assert_close(layer.step(x, h)[1], layer.cell(x, h), **EXACT)


def wider(layer: elman.Recurrent) -> None:
    sequence(layer, (I + 2,))


def without_memory(layer: elman.Recurrent) -> None:
    x, h = drawn(T, B, I).to("meta"), drawn(B, 1).to("meta")
    out, final = layer(x, h)
    assert (out.device, out.shape, final.shape) == (torch.device("meta"), (T, B, 1), (B, 1))


KINDS = (sequence, numbers, packed, ragged, one_step, some_steps, wider, without_memory)


@pytest.mark.parametrize("gradients", [False, True])
def test_kinds_of_calls(gradients: bool) -> None:
    with torch.set_grad_enabled(gradients):
        for one, other in itertools.permutations(KINDS, 2):
            layer = elman.Recurrent(Mean())
            for kind in (one, one, other, one, other, other, one):
                kind(layer)


def test_another_device_and_back() -> None:
    """Of those that every machine has: one whose tensors have no numbers."""
    layer, x = elman.Recurrent(CASES["gru"].make().double()), drawn(T, B, 5)
    here = [p.detach().clone() for p in layer.parameters()]
    expected = layer(x)
    for _ in range(3):
        for _ in range(3):
            torch.testing.assert_close(layer(x), expected, **EXACT)
        layer.to("meta")
        assert [t.device.type for t in layer(x.to("meta"))] == ["meta", "meta"]
        layer.to_empty(device="cpu")
        with torch.no_grad():
            for parameter, value in zip(layer.parameters(), here, strict=True):
                parameter.copy_(value)


def test_a_batch_that_is_missing() -> None:
    for ready in range(4):
        layer = elman.Recurrent(Mean())
        for _ in range(ready):
            numbers(layer)
        with pytest.raises(InputError, match=r"\[T, B"):
            layer(drawn(T), drawn(B, 1))
        numbers(layer)


SETTINGS: dict[str, tuple[Any, Any]] = {
    "reverse": (False, True), "engine": ("auto", "reference"), "memory": (None, elman.Segments(2))
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("said", [{}, {"lengths": torch.tensor([4, 3, 1])}], ids=["dense", "ragged"])
def test_settings_of_the_layer(name: str, said: dict[str, Tensor]) -> None:
    cell, x, h = CASES["gru"].make().double(), drawn(T, B, 5), drawn(B, 7)
    layer = elman.Recurrent(cell)
    for value in (*SETTINGS[name], *SETTINGS[name]):
        setattr(layer, name, value)
        for _ in range(3):
            expected = elman.Recurrent(cell, **{name: value})(x, h, **said)
            torch.testing.assert_close(layer(x, h, **said), expected, **EXACT)
            assert layer._calls.budget == layer.memory


def test_a_budget_that_is_too_small_after_none() -> None:
    layer, x, h = elman.Recurrent(CASES["gru"].make().double()), drawn(T, B, 5), drawn(B, 7)
    for said in ({}, {"lengths": torch.tensor([4, 3, 1])}):
        layer.memory = None
        for _ in range(3):
            layer(x, h, **said)
        layer.memory = "10 B"
        with pytest.raises(InputError, match="too small"):
            layer(x, h, **said)


# --- where it starts from -------------------------------------------------------------------------------------------


class Starting(nn.Module):
    """Starts from zeros whose width comes from the cell, from x and from the context."""

    def __init__(self) -> None:
        super().__init__()
        self.more = 1

    def forward(self, x: Any, h: Tensor | None = None, context: Any = None) -> Tensor:
        kinds = {tuple: 1, dict: 2}
        xs, contexts = _tensors(x), _tensors(context)
        size = self.more + kinds.get(type(x), 0) + 3 * kinds.get(type(context), 0)
        size += sum(t.shape[1] for t in (*xs, *contexts))
        h = xs[0].new_zeros(xs[0].shape[0], size) if h is None else h
        return torch.tanh(h + sum(t.mean(1, keepdim=True) for t in (*xs, *contexts)))


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, dict):
        return [*value.values()]
    return [] if value is None else [*value] if isinstance(value, tuple) else [value]


def _start(layer: elman.Recurrent, x: Tensor, context: Tensor, kind: Callable[[Tensor], Any] = lambda t: t,
           of_context: Callable[[Tensor], Any] = lambda t: t) -> None:  # fmt: skip
    out, final = layer(kind(x), context=of_context(context))
    h = None
    for t in range(T):
        h = layer.cell(kind(x[t]), h, of_context(context))
        torch.testing.assert_close(out[t], h)
    assert h is not None
    torch.testing.assert_close(final, h)


def test_where_it_starts_from() -> None:
    layer, x, context = elman.Recurrent(Starting()), drawn(T, B, I), drawn(B, I)
    changes: list[Callable[[], Any]] = [
        lambda: _start(layer, x, context, lambda t: (t,)),
        lambda: _start(layer, x, context, lambda t: {"x": t}),
        lambda: _start(layer, x, context, lambda t: t, lambda t: (t,)),
        lambda: _start(layer, x, context, lambda t: t, lambda t: {"c": t}),
        lambda: _start(layer, drawn(T, B, I + 1), context),
        lambda: _start(layer, x, drawn(B, I + 1)),
        lambda: _start(layer, x.float(), context.float()),
        lambda: (setattr(layer.cell, "more", 2), _start(layer, x, context), setattr(layer.cell, "more", 1)),
    ]
    for change in changes:
        for _ in range(3):
            _start(layer, x, context)
        change()
        change()


@pytest.mark.parametrize("other", ["width", "dtype"])
def test_a_cell_that_says_it_starts_from_another(other: str) -> None:
    class Said(Mean):
        made: Tensor

        def initial_state(self, batch: int) -> Tensor:
            return self.made.expand(batch, -1)

    layer, x = elman.Recurrent(Said()), torch.randn(T, B, I)
    Said.made = torch.randn(1)
    another = torch.randn(5) if other == "width" else drawn(1)
    for start in (Said.made, another, Said.made, another):
        Said.made = start
        for _ in range(3):
            expected = eager.unroll(layer.cell, x, layer.cell.initial_state(B))
            for got, right in zip(layer(x), expected, strict=True):
                torch.testing.assert_close(got, right)


TWO = {"tuple": lambda a, b: (a, b), "dict": lambda a, b: {"a": a, "b": b}}


@pytest.mark.parametrize("as_one", TWO.values(), ids=TWO)
def test_how_arguments_are_built(as_one: Callable[[Tensor, Tensor], Any]) -> None:
    """The same tensors, in lists: another cell, by what it makes of them."""

    class Built(nn.Module):
        def forward(self, x: Any, h: Tensor, context: Any) -> Tensor:
            a, b = x.values() if isinstance(x, dict) else x
            c, d = context.values() if isinstance(context, dict) else context
            return torch.tanh(h + a * (1 + isinstance(x, list)) - b + c * (1 + isinstance(context, list)) - d)

    layer, (a, b), (c, d), h = elman.Recurrent(Built()), drawn(2, T, B, I), drawn(2, B, I), drawn(B, I)
    for x, context in itertools.product((as_one, lambda *two: [*two]), repeat=2):
        state = h
        with torch.no_grad():
            for _ in range(3):
                out, _ = layer(x(a, b), h, context=context(c, d))
        for t in range(T):
            state = layer.cell(x(a[t], b[t]), state, context(c, d))
            torch.testing.assert_close(out[t], state, **EXACT)


def understood(returned: Any) -> tuple[Tensor, Tensor]:
    return returned if isinstance(returned, tuple) else (returned, returned)


def test_weights_of_a_teacher() -> None:
    layer, x = elman.Recurrent(CASES["jordan"].make().double()), drawn(7, B, 5)
    teacher, weight = torch.randn_like(layer(x)[0]), torch.rand(7, B, dtype=torch.float64)
    weights = None, weight > 0.5, weight, weight.float()
    for w in (*weights, *weights[::-1]):
        for _ in range(3):
            expected = elman.Recurrent(layer.cell)(x, teacher=teacher, teacher_weight=w)
            torch.testing.assert_close(layer(x, teacher=teacher, teacher_weight=w), expected, **EXACT)
            fed = teacher if w is None else torch.lerp(expected[0], teacher, w.double()[..., None])
            for t in range(1, 7):
                seen, _ = understood(layer.cell(x[t], fed[t - 1]))
                torch.testing.assert_close(seen, expected[0][t], **EXACT)
