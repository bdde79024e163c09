"""Functions that are written while the library runs: what goes wrong in one shows where."""

from __future__ import annotations

import gc
import inspect
import linecache
import traceback

import pytest
import torch
from torch import nn

import elman
from elman.engines.python import PythonFunction, tuple_of
from elman.errors import InputError

Tensor = torch.Tensor


def lines_of(error: BaseException) -> list[str]:
    """The lines of generated functions in a traceback, outermost first."""
    frames = traceback.extract_tb(error.__traceback__)
    return [str(frame.line) for frame in frames if frame.filename.startswith("<elman ")]


def quotient() -> PythonFunction:
    python = PythonFunction("quotient", "test")
    a, b = python.argument(), python.argument("b")
    with python.block(f"if {b} is None:"):
        python.line(f"{b} = {python.constant(1.0, 'one')}")
    high, low = python.unpack(f"{python.constant(divmod)}({a}, {b})", 2)
    python.let(f"{high} + {low}")
    python.drop([high, low])
    return python


def test_a_function() -> None:
    divided = quotient().returning(["v2"])
    assert divided(7, 2) == (4,)
    assert divided(7, None) == (7.0,)


def test_a_traceback_shows_the_line() -> None:
    divided = quotient().returning(["v2"])
    with pytest.raises(ZeroDivisionError) as caught:
        divided(1, 0)
    assert lines_of(caught.value) == ["v0, v1, = divmod(a0, b)"]


def test_the_source_lives_as_long_as_the_function() -> None:
    divided = quotient().returning(["v2"])
    file = divided.__code__.co_filename
    assert inspect.getsource(divided).startswith("def quotient(a0, b):\n    if b is None:\n        b = one\n")
    linecache.checkcache()
    assert file in linecache.cache
    del divided
    gc.collect()
    assert file not in linecache.cache


def test_constants_have_names_of_their_own() -> None:
    python = PythonFunction("f", "test")
    assert [python.constant(c) for c in (abs, abs, torch.abs, 1.5)] == ["abs", "abs", "abs_2", "k"]
    assert python.constant(torch.add, "lambda") == "k_2"
    assert python.constant(torch.arange, "range") == "range_2"  # the head of a loop calls the other


@pytest.mark.parametrize(
    ("parts", "text"), [((), "()"), (("a",), "(a,)"), (("", 3), "(3,)"), (("a", "b"), "(a, b)")]
)
def test_a_tuple(parts: tuple, text: str) -> None:
    assert tuple_of(*parts) == text


class Drawn(nn.Module):
    """A state that looks the next one up, so that one bad number is met inside the loop."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(5, 4))

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, k = state
        return torch.tanh(h + self.table[k] + x), (k + 1)


def test_an_error_in_a_recurrence_shows_plan_and_loop() -> None:
    rnn = elman.Recurrent(Drawn(), engine="reference")
    with pytest.raises(InputError, match="out of range") as caught:
        rnn(torch.zeros(6, 2, 4), (torch.zeros(2, 4), torch.tensor([0, 0])))
    lines = lines_of(caught.value)
    assert " = loop(batch, (batch,) * steps, " in lines[0]
    assert " = index(" in lines[-1]
