"""Batch-first calls against time-major ones, a step's reset against a whole call's, and what is said once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils import _pytree as pytree

import elman
from elman import Bidirectional, Recurrent, Stack
from elman.errors import AmbiguityWarning, InputError, InputTypeError
from tests.cases import CASES
from tests.recurrent import ragged
from tests.recurrent.small import random

Tensor = torch.Tensor
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def cell(name: str, *sizes: int) -> torch.nn.Module:
    return CASES[name].make(*sizes).double()


def layers(kind: str) -> Callable[..., Any]:
    """What makes a layer of the same cells again, in another order of dimensions."""
    one, other, top = cell("gru"), cell("gru"), cell("lstm", 14, 3)
    if kind == "Recurrent":
        return lambda **said: Recurrent(one, reverse=True, **said)
    if kind == "Bidirectional":
        return lambda **said: Bidirectional(one, other, **said)
    return lambda **said: Stack(Bidirectional(one, other), Recurrent(top), **said)


@pytest.mark.parametrize("kind", ["Recurrent", "Bidirectional", "Stack"])
def test_batch_first_is_time_first_turned(kind: str) -> None:
    make = layers(kind)
    ours, plain = make(batch_first=True), make()
    assert "batch_first=True" in repr(ours)
    x = random(4, 6, 5, requires_grad=True)
    said = ragged.said(6, 4)
    turned = {k: v if k == "lengths" else v.T for k, v in said.items()}
    turned["mask"] = turned.get("mask", torch.ones(4, 6, dtype=torch.bool)).numpy()
    said.setdefault("mask", torch.ones(6, 4, dtype=torch.bool))
    for mine, theirs in (({}, {}), (turned, said)):
        outputs, state = ours(x, **mine)
        expected, final = plain(x.transpose(0, 1), **theirs)
        torch.testing.assert_close(outputs, expected.transpose(0, 1), **EXACT)
        torch.testing.assert_close(pytree.tree_leaves(state), pytree.tree_leaves(final), **EXACT)
        weights = torch.randn_like(outputs)
        (one,), (two,) = (
            torch.autograd.grad((outputs * weights).sum(), x),
            torch.autograd.grad((expected * weights.transpose(0, 1)).sum(), x),
        )
        torch.testing.assert_close(one, two, **EXACT)
    packed = pack_padded_sequence(x.detach(), [6, 3, 2, 1], batch_first=True)
    torch.testing.assert_close(ours(packed)[0].data, plain(packed)[0].data, **EXACT)
    with pytest.raises(InputError, match="their shapes are told here as"):
        ours(x, lengths=[1, 2])
    with pytest.raises(InputError, match=r"mask, reset and teacher are \[B, T, …\]"):
        ours(x, mask=torch.ones(6, 4, dtype=torch.bool))


def test_batch_first_as_torch_does_it() -> None:
    theirs = torch.nn.GRU(5, 7, batch_first=True).double()
    own = torch.nn.GRUCell(5, 7).double()
    own.load_state_dict({name.removesuffix("_l0"): value for name, value in theirs.state_dict().items()})
    x = random(4, 6, 5)
    outputs, h = Recurrent(own, batch_first=True)(x)
    torch.testing.assert_close(outputs, theirs(x)[0], **EXACT)
    torch.testing.assert_close(h, theirs(x)[1][0], **EXACT)


def test_a_teacher_is_in_the_order_of_x() -> None:
    own = cell("jordan")
    width = own.initial_state(1).shape[-1]
    x, teacher, weight = random(4, 6, 5), random(4, 6, width), torch.rand(4, 6) < 0.5
    outputs, _ = Recurrent(own, batch_first=True)(x, teacher=teacher, teacher_weight=weight)
    x, teacher, weight = x.transpose(0, 1), teacher.transpose(0, 1), weight.T
    expected, _ = Recurrent(own)(x, teacher=teacher, teacher_weight=weight)
    torch.testing.assert_close(outputs, expected.transpose(0, 1), **EXACT)


def test_order_is_said_of_the_stack() -> None:
    with pytest.raises(InputError, match=r"Stack\(…, batch_first=True\)"):
        Stack(Recurrent(cell("gru"), batch_first=True))


def test_as_many_steps_as_sequences_is_said_once() -> None:
    x, lengths = random(4, 4, 5), torch.tensor([4, 1, 2, 3])
    make = layers("Stack")
    deep = make()

    def call() -> None:
        deep(x, lengths=lengths)
        deep(x, lengths=lengths)
        deep[0](x, lengths=lengths)  # a layer by itself
        Recurrent(deep[0].forward_layer.cell)(x, lengths=lengths)

    with pytest.warns(AmbiguityWarning, match="batch_first=True or batch_first=False") as said:
        call()
    assert [str(warning.message).split("Construct ")[1].split(" ")[0] for warning in said] == [
        "Stack",
        "Bidirectional",
        "Recurrent",
    ]
    assert all(warning.filename == __file__ for warning in said)


@pytest.mark.filterwarnings("error::elman.errors.AmbiguityWarning")
def test_who_has_said_the_order_is_not_warned() -> None:
    x, lengths = random(4, 4, 5), torch.tensor([4, 1, 2, 3])
    make = layers("Recurrent")
    make(batch_first=False)(x, lengths=lengths)
    make(batch_first=True)(x, lengths=lengths)
    make()(x)
    make()(x[:3], lengths=lengths.clamp(max=3))


def test_one_cell_in_both_directions_is_said() -> None:
    own = cell("gru")
    with pytest.warns(AmbiguityWarning, match="one GRU reads in both directions"):
        Bidirectional(own, own)


class Learned(torch.nn.Module):
    """A cell with a start of its own, and a context."""

    def __init__(self) -> None:
        super().__init__()
        self.W = torch.nn.Linear(7, 7)
        self.start = torch.nn.Parameter(torch.randn(7))

    def initial_state(self, batch: int) -> Tensor:
        return self.start.expand(batch, 7)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(x + self.W(h))


@pytest.mark.parametrize("graded", [False, True])
def test_a_step_that_resets_is_as_in_a_whole_call(graded: bool) -> None:
    deep = Stack(Recurrent(cell("gru")), Recurrent(Learned().double()))
    x, reset = random(5, 3, 5), torch.rand(5, 3) < 0.4
    reset[3] = torch.tensor([True, False, True])
    with torch.set_grad_enabled(graded):
        start = (random(3, 7), random(3, 7))
        outputs, final = deep(x, start, reset=reset)
        state: Any = start
        for t in range(5):
            output, state = deep.step(x[t], state, reset=reset[t].numpy() if t else reset[t])
            torch.testing.assert_close(output, outputs[t], **EXACT)
    torch.testing.assert_close(state, final, **EXACT)
    if graded:
        one, two = (torch.autograd.grad(o.sum(), deep[1].cell.start)[0] for o in (output, outputs[-1]))
        torch.testing.assert_close(one, two, **EXACT)
    torch.testing.assert_close(deep.step(x[0], reset=reset[0]), deep.step(x[0]), **EXACT)


def test_a_reset_of_a_step_that_does_not_fit_is_refused() -> None:
    rnn, x, h = Recurrent(cell("gru")), random(3, 5), random(3, 7)
    with pytest.raises(InputError, match=r"expected: \[3\]"):
        rnn.step(x, h, reset=torch.zeros(2, dtype=torch.bool))
    with pytest.raises(InputTypeError, match="yes or no"):
        rnn.step(x, h, reset=torch.zeros(3))
    with pytest.raises(InputError, match="does not look like"):
        rnn.step(x, random(3, 6), reset=np.array([True, False, False]))


def test_an_autonomous_step_resets() -> None:
    class Turning(torch.nn.Module):
        def initial_state(self, batch: int) -> Tensor:
            return torch.ones(batch, 1)

        def forward(self, x: None, h: Tensor) -> Tensor:
            return h * 2

    _, h = elman.Recurrent(Turning()).step(None, torch.zeros(2, 1), reset=torch.tensor([False, True]))
    assert h.tolist() == [[0], [2]]
