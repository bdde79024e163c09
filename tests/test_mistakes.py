"""First mistakes, and what is said about them: the user's own exception, its line, what came and what was wanted."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import elman
from elman.errors import InputError, InputTypeError, StateError, TraceError
from elman.models import LanguageModel

LINE = r"test_mistakes\.py:\d+ `"
LOST = "does not say which state"  # what all of them used to be told
R = elman.Recurrent


class Cell(nn.Module):
    hidden_size = 4

    def __init__(self) -> None:
        super().__init__()
        self.W, self.U = nn.Linear(4, 4), nn.Linear(3, 4)

    def forward(self, x: Any, h: Any) -> Any:
        return torch.tanh(self.W(h) + self.U(x))


class Products(Cell):
    def __init__(self) -> None:
        super().__init__()
        self.A, self.B = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(3, 4))

    def forward(self, x: Any, h: Any) -> Any:
        return torch.tanh(h @ self.A + x @ self.B)


class Table(Cell):
    def __init__(self) -> None:
        super().__init__()
        self.E = nn.Embedding(5, 4)

    def forward(self, x: Any, h: Any) -> Any:
        return torch.tanh(self.W(h) + self.E(x))


class Told(Cell):
    def forward(self, x: Any, h: Any, told: Any) -> Any:
        return torch.tanh(self.W(h) + self.U(x) + told)


class MayBeTold(Cell):
    def forward(self, x: Any, h: Any, told: Any = None) -> Any:
        return torch.tanh(self.W(h) + self.U(x) + told[:, :4])


class Forgotten(Cell):
    def forward(self, x: Any, h: Any) -> Any:
        return torch.tanh(self.W(h) + self.V(x))


class Raises(Cell):
    def forward(self, x: Any, h: Any) -> Any:
        raise ValueError("words of my own")


class Pair(Cell):
    def forward(self, x: Any, h: Any) -> Any:
        a, b = h
        return a, (a, b)


class Wider(Cell):
    def forward(self, x: Any, h: Any) -> Any:
        return torch.cat([super().forward(x, h), self.U(x)], -1)


class BadStart(Cell):
    def initial_state(self, batch: int) -> Any:
        return self.start.expand(batch, -1)


def x(*shape: int) -> torch.Tensor:
    return torch.zeros(*(shape or (5, 2, 3)))


h = torch.zeros(2, 4)
whole = torch.zeros(5, 2, 3, dtype=torch.int64)


@dataclass(frozen=True)
class Mistake:
    """call: what somebody does. kind: the error's class. words: patterns that its text has; never: what it has not."""

    name: str
    call: Callable[[], Any]
    kind: type[Exception]
    words: tuple[str, ...]
    never: tuple[str, ...] = (LOST,)

    def __str__(self) -> str:
        return self.name


def again(layer: elman.Recurrent, *wrong: Any) -> Any:
    """A call that goes wrong after two that are known."""
    for _ in range(3):
        layer(x())
    return layer(*wrong)


def quietly(call: Callable[[], Any]) -> Any:
    with torch.no_grad():
        return call()


WIDTH = ("U.weight", "x has width 7", r"\[4, 3\] wants 3", "make the cell for width 7", LINE)
MISTAKES = (
    Mistake("width", lambda: R(Cell())(x(5, 2, 7)), TraceError, WIDTH),
    Mistake("width, state given", lambda: R(Cell())(x(5, 2, 7), h), TraceError, WIDTH),
    Mistake("width, in a known layer", lambda: again(R(Cell()), x(5, 2, 7)), TraceError, WIDTH),
    Mistake("width, ragged", lambda: R(Cell())(x(5, 2, 7), lengths=[3, 2]), TraceError, WIDTH),
    Mistake("width, step", lambda: R(Cell()).step(x(2, 7), h), TraceError, WIDTH),
    Mistake("width, step without a state", lambda: R(Cell()).step(x(2, 7)), TraceError, WIDTH),
    Mistake("width, quiet step", lambda: quietly(lambda: R(Cell()).step(x(2, 7), h)), TraceError, WIDTH),
    Mistake(
        "width, packed",
        lambda: R(Cell())(nn.utils.rnn.pack_padded_sequence(x(5, 2, 7), [5, 2])),
        TraceError,
        WIDTH,
    ),
    Mistake(
        "width of state",
        lambda: R(Cell())(x(), x(2, 5)),
        TraceError,
        ("state has width 5", "W.weight", "wants 4", LINE),
    ),
    Mistake(
        "width, product",
        lambda: R(Products())(x(5, 2, 7)),
        TraceError,
        ("x has width 7", r"B \[3, 4\] wants 3"),
    ),
    Mistake(
        "width, shipped cell",
        lambda: R(elman.cells.GRU(3, 4))(x(5, 2, 7)),
        TraceError,
        ("x has width 7", "wants 3", r"cells\.py:\d+"),
    ),
    Mistake(
        "width, second layer",
        lambda: elman.Stack(R(Cell()), R(Cell()))(x()),
        TraceError,
        ("layer 1", "x has width 4"),
    ),
    Mistake(
        "width, second layer, ragged",
        lambda: elman.Stack(R(Cell()), R(Cell()))(x(), lengths=[2, 3]),
        TraceError,
        ("layer 1",),
    ),
    Mistake(
        "width, second layer, step",
        lambda: elman.Stack(R(Cell()), R(Cell())).step(x(2, 3)),
        TraceError,
        ("layer 1",),
    ),
    Mistake(
        "one direction",
        lambda: elman.Bidirectional(Cell(), Raises())(x()),
        TraceError,
        ("backward", "words of my own"),
    ),
    Mistake(
        "the other, ragged",
        lambda: elman.Bidirectional(Raises(), Cell())(x(), lengths=[2, 3]),
        TraceError,
        ("forward", "words of my own"),
    ),
    Mistake(
        "torch.nn's dimension of layers",
        lambda: R(Cell())(x(), x(1, 2, 4)),
        InputError,
        (r"got: shape \[1, 2, 4\]", r"state\.squeeze\(0\)", r"elman\.nn"),
    ),
    Mistake(
        "torch.nn's dimension of layers, one row",
        lambda: R(Cell())(x(5, 1, 3), x(1, 1, 4)),
        TraceError,
        (r"h_0\.squeeze\(0\)", r"elman\.nn"),
    ),
    Mistake(
        "torch.nn's dimension of layers, as many as rows",
        lambda: R(Cell())(x(), x(2, 2, 4)),
        TraceError,
        (r"h_0\[i\]", r"elman\.nn"),
    ),
    Mistake(
        "float64",
        lambda: R(Cell())(x().double()),
        TraceError,
        ("x is torch.float64", "U.weight is torch.float32", LINE),
    ),
    Mistake(
        "float64, state too",
        lambda: R(Cell())(x().double(), h.double()),
        TraceError,
        ("is torch.float64", "is torch.float32", LINE),
    ),
    Mistake(
        "whole numbers", lambda: R(Cell())(whole, h), TraceError, ("x is torch.int64", "embedding", LINE)
    ),
    Mistake("tokens", lambda: R(Cell())(whole[:, :, 0]), TraceError, ("x is torch.int64", "embedding", LINE)),
    Mistake(
        "floats for tokens",
        lambda: R(Table())(x(5, 2)),
        TraceError,
        ("x is torch.float32", r"x\.long\(\)", LINE),
    ),
    Mistake(
        "a token out of range",
        lambda: R(Table())(whole[:, :, 0] + 7, h),
        TraceError,
        ("7 … 7", "rows 0 … 4", LINE),
    ),
    Mistake(
        "no batch", lambda: R(Cell())(x(5, 3)), TraceError, ("no batch dimension", r"x\.unsqueeze\(1\)", LINE)
    ),
    Mistake(
        "no batch, state given",
        lambda: R(Cell())(x(5, 3), x(3, 4)),
        TraceError,
        ("no batch dimension", r"x\.unsqueeze\(1\)"),
    ),
    Mistake(
        "one dimension",
        lambda: R(Cell())(x(5)),
        InputError,
        ("a time and a batch dimension", r"x\.unsqueeze\(1\)"),
    ),
    Mistake("no context", lambda: R(Told())(x()), InputError, ("'told'", "pass context=")),
    Mistake("no context, state given", lambda: R(Told())(x(), h), InputError, ("'told'", "pass context=")),
    Mistake("no context, step", lambda: R(Told()).step(x(2, 3), h), InputError, ("'told'", "pass context=")),
    Mistake(
        "no context where there may be none",
        lambda: R(MayBeTold())(x()),
        TraceError,
        ("'told'", "pass context=", "NoneType", LINE),
    ),
    Mistake(
        "a context too many",
        lambda: R(Cell())(x(), context=h),
        InputError,
        ("takes no context", "leave context= away"),
    ),
    Mistake(
        "an attribute forgotten",
        lambda: R(Forgotten())(x()),
        TraceError,
        ("'Forgotten' object has no attribute 'V'", LINE),
    ),
    Mistake(
        "an attribute forgotten, state given",
        lambda: R(Forgotten())(x(), h),
        TraceError,
        ("has no attribute 'V'", LINE),
    ),
    Mistake(
        "an error of my own", lambda: R(Raises())(x()), TraceError, ("ValueError: words of my own", LINE)
    ),
    Mistake(
        "an error of my own, step",
        lambda: R(Raises()).step(x(2, 3), h),
        TraceError,
        ("ValueError: words of my own", LINE),
    ),
    Mistake(
        "another state than hidden_size says",
        lambda: R(Pair())(x()),
        TraceError,
        (r"\[B, 4\], by hidden_size", "initial_state", LINE),
    ),
    Mistake(
        "a state of another width comes out",
        lambda: R(Wider())(x()),
        TraceError,
        (r"the new state is \[B, 8\]",),
        (),
    ),
    Mistake(
        "a structure for a tensor",
        lambda: R(Cell())(x(), (h, h)),
        TraceError,
        (r"state \(tensor, tensor\)", LINE),
    ),
    Mistake(
        "a start that fails",
        lambda: R(BadStart())(x()),
        TraceError,
        ("initial_state", "no attribute 'start'", LINE),
    ),
    Mistake("a layer for a cell", lambda: R(nn.GRU(3, 4)), InputTypeError, ("nn.GRUCell", "elman.nn.GRU")),
    Mistake("a layer in a layer", lambda: R(R(Cell())), InputTypeError, ("already", "elman.Stack")),
    Mistake("a class", lambda: R(Cell), InputTypeError, (r"Cell\(…\)",)),
    Mistake("lazy", lambda: R(nn.LazyLinear(4)), InputTypeError, ("lazy", "run the cell once")),
    Mistake(
        "scripted",
        lambda: elman.trace(torch.jit.script(nn.Linear(3, 3)), x(2, 3), x(2, 3)),
        InputTypeError,
        ("scripted",),
    ),
    Mistake("a list of layers", lambda: elman.Stack([R(Cell())]), InputTypeError, (r"Stack\(\*layers\)",)),
    Mistake("plan(cell)", lambda: elman.plan(Cell()), InputTypeError, ("circuit", r"elman\.trace")),
    Mistake(
        "cost(circuit)",
        lambda: elman.cost(elman.trace(Cell(), x(2, 3), h), 3, 2),
        InputTypeError,
        (r"elman\.plan",),
    ),
    Mistake("adjoint(cell)", lambda: elman.adjoint(Cell()), InputTypeError, (r"elman\.trace",)),
    Mistake("unfold(cell)", lambda: elman.unfold(Cell(), 3), InputTypeError, (r"elman\.trace",)),
    Mistake(
        "unfold by half",
        lambda: elman.unfold(elman.trace(Cell(), x(2, 3), h), 1.5),
        InputTypeError,
        ("whole number",),
    ),
    Mistake("trace(3)", lambda: elman.trace(3, x(2, 3), h), InputTypeError, ("a cell is",)),
    Mistake("verify(3)", lambda: elman.verify(3, x(2, 3)), InputTypeError, ("a cell is",)),
    Mistake("a model's cell", lambda: LanguageModel(10, 5), InputTypeError, ("nothing that makes one",)),
    Mistake("a model's vocabulary", lambda: LanguageModel("abc"), InputTypeError, ("vocabulary",)),
    Mistake(
        "floats for a model",
        lambda: LanguageModel(10, hidden=4)(x(3, 2)),
        InputTypeError,
        ("numbers of symbols",),
    ),
    Mistake("circuit too early", lambda: R(Cell()).circuit, StateError, ("not known yet",)),
    Mistake(
        "bools of a list",
        lambda: R(Cell())(x(), mask=[[True] * 2] * 5),
        InputTypeError,
        (r"torch\.as_tensor\(mask",),
    ),
)


@pytest.mark.parametrize("mistake", MISTAKES, ids=str)
def test_what_is_said(mistake: Mistake, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), pytest.raises(elman.ElmanError) as caught:
        mistake.call()
    text = str(caught.value)
    assert type(caught.value) is mistake.kind or issubclass(type(caught.value), mistake.kind)
    for words in mistake.words:
        assert re.search(words, text), (words, text)
    for words in mistake.never:
        assert words not in text
    assert not caplog.records, "what is raised is not logged as well"
    if "the step fails" in text:
        assert isinstance(caught.value.__cause__, Exception), "it comes from the user's exception"
        assert str(caught.value.__cause__).splitlines()[0] in text


@pytest.mark.parametrize("call", [lambda f: f(x(5, 2, 7)), lambda f: f(x(5, 2, 7), h)], ids=["", "state"])
def test_what_is_said_under_compile(call: Callable[[Any], Any]) -> None:
    with pytest.raises(Exception, match="x has width 7") as caught:
        call(torch.compile(R(Cell()), backend="eager", fullgraph=True))
    assert re.search(LINE, str(caught.value))


def test_the_log_speaks_again_and_for_others() -> None:
    """Only while a cell is traced, and only in that thread, are torch's tracers silent."""
    logs = [
        logging.getLogger(name)
        for name in ("torch._subclasses.fake_tensor", "torch.fx.experimental.symbolic_shapes")
    ]
    before = [(list(log.filters), log.level, log.disabled) for log in logs]
    with pytest.raises(elman.ElmanError):
        R(Cell())(x(), x(2, 5))
    assert [(list(log.filters), log.level, log.disabled) for log in logs] == before


def test_a_circuit_is_not_there_before_a_call() -> None:
    layer = R(Cell())
    assert not hasattr(layer, "circuit")
    layer(x())
    assert layer.circuit.name == "Cell"
    with pytest.raises(AttributeError, match="nothing"):
        layer.nothing  # noqa: B018


class OtherOrder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(3, 4)

    def forward(self, x: Any, state: Any) -> Any:
        h, c = self.cell(x, (state["h"], state["c"]))
        return {"out": h, "twice": 2 * h}, {"h": h, "c": c}


def test_dicts_are_taken_in_any_order() -> None:
    layer, given = R(OtherOrder()), torch.randn(5, 2, 3)
    a, b = torch.randn(2, 4), torch.randn(2, 4)
    outputs, final = layer(given, {"h": a, "c": b})
    for start in ({"c": b, "h": a}, {"h": a, "c": b}):
        again, ended = layer(given, start)
        torch.testing.assert_close(again["out"], outputs["out"])
        torch.testing.assert_close(ended["c"], final["c"])
        out, stepped = layer.step(given[0], start)
        torch.testing.assert_close(out["out"], outputs["out"][0])
        assert set(stepped) == {"h", "c"}


def test_numpy_masks_are_taken() -> None:
    layer, given = R(Cell()), torch.randn(5, 2, 3)
    mask = torch.rand(5, 2) > 0.3
    for name in ("mask", "reset"):
        expected, _ = layer(given, **{name: mask})
        made, _ = layer(given, **{name: np.asfortranarray(mask.numpy())})
        torch.testing.assert_close(made, expected)


class Noisy(Cell):
    def forward(self, x: Any, h: Any) -> Any:
        return super().forward(x, h) + torch.randn_like(h)


@pytest.mark.parametrize("randomness", ["error", "different", "same"])
def test_the_noise_of_a_jacobian_is_that_of_its_forward_pass(randomness: str) -> None:
    """A vmap over cotangents begins after the noise was drawn: all of them see the same."""
    layer, given = R(Noisy()), torch.randn(4, 2, 3)
    start = torch.randn(2, 4)

    def final(h: torch.Tensor) -> torch.Tensor:
        return layer(given, h)[1]

    torch.manual_seed(3)
    made, back = torch.func.vjp(final, start)
    directions = torch.eye(8).view(8, 2, 4)
    together = torch.func.vmap(back, randomness=randomness)(directions)[0]
    one_by_one = torch.stack([back(direction)[0] for direction in directions])
    torch.testing.assert_close(together, one_by_one)
    torch.manual_seed(3)
    assert torch.equal(final(start), made)
    if randomness == "error":
        torch.manual_seed(3)
        torch.testing.assert_close(torch.func.jacrev(final)(start).view(8, 2, 4), one_by_one)


def test_losses_compare_symbols_with_as_many_targets() -> None:
    model = LanguageModel(10, hidden=4)
    text, targets = torch.randint(10, (6, 4)), torch.randint(10, (6, 4))
    assert model.loss(text, targets)[0].isfinite()
    for wrong in (targets[1:], targets[:1], targets.T, targets[:, :1], targets.flatten()):
        with pytest.raises(InputError, match="one target for each symbol"):
            model.loss(text, wrong)


class Covariance(nn.Module):
    """A state that has to be positive definite: random numbers are none."""

    def forward(self, x: Any, P: Any) -> Any:
        L = torch.linalg.cholesky(P)
        return L.diagonal(dim1=1, dim2=2), 0.9 * P + x[:, :, None] * x[:, None]


def test_a_cell_that_fails_on_random_numbers_is_checked_on_the_users() -> None:
    given, P = torch.randn(5, 2, 3), torch.eye(3).expand(2, 3, 3)
    outputs, _ = R(Covariance())(given, P)
    for t in range(5):
        expected, P = Covariance()(given[t], P)
        torch.testing.assert_close(outputs[t], expected)
