"""Teachers over sequences: with all of the output or a part, weighed step by step, on ragged and cut rows."""

from __future__ import annotations

import pytest
import torch

from tests.cases import CASES
from tests.recurrent import compare, ragged
from tests.recurrent.compare import Inputs
from tests.recurrent.small import layer, random
from tests.recurrent.test_sequences import EXACT, WHOLE, engines, ways

teachable = pytest.mark.parametrize(("name", "width"), [("jordan", 4), ("lstm", 7)])


@ways
@teachable
def test_a_teacher_with_all_of_it(name: str, width: int, reverse: bool) -> None:
    rnn, T, B = layer(name, reverse=reverse), 8, 4
    for seed, names in enumerate(WHOLE):
        told = {key: value for key, value in ragged.said(T, B, seed).items() if key in names}
        teacher = ragged.poisoned(random(T, B, width), ragged.happens(T, B, **told))
        got = ragged.agree(rnn, Inputs.of(CASES[name], T, B), teacher=teacher, **told)
        assert not got.gradients["teacher"].isnan().any()


@pytest.mark.grid(1)
@ways
@teachable
@engines
def test_a_weighed_teacher(name: str, width: int, reverse: bool, engine: str) -> None:
    rnn, T, B = layer(name, reverse=reverse, engine=engine), 7, 4
    told = ragged.said(T, B)
    for given in ({}, told):
        for weight in (torch.rand(T, B) < 0.5, torch.rand(T, B, dtype=torch.float64, requires_grad=True)):
            teacher = random(T, B, width, requires_grad=True)
            got = ragged.agree(
                rnn, Inputs.of(CASES[name], T, B), teacher=teacher, teacher_weight=weight, **given
            )
            assert got.gradients["teacher"].any()


def test_weights_at_their_ends() -> None:
    """All true or one is the teacher alone, and nothing of the rest gets in; all false or zero is no teacher."""
    rnn, x, y = layer("jordan"), random(6, 3, 5), random(6, 3, 4)
    for kind in (torch.bool, torch.float64, torch.float32):
        ones = torch.ones(6, 3, dtype=kind)
        torch.testing.assert_close(rnn(x, teacher=y, teacher_weight=ones), rnn(x, teacher=y), **EXACT)
        torch.testing.assert_close(rnn(x, teacher=y, teacher_weight=torch.zeros_like(ones)), rnn(x), **EXACT)


def test_weights_of_steps_that_do_not_happen_may_be_anything() -> None:
    rnn, x, y = layer("jordan"), random(6, 3, 5), random(6, 3, 4)
    weight, lengths = torch.rand(6, 3, dtype=torch.float64), torch.tensor([2, 6, 4])
    expected = rnn(x, lengths=lengths, teacher=y, teacher_weight=weight)
    weight[torch.arange(6)[:, None] >= lengths] = torch.nan
    torch.testing.assert_close(rnn(x, lengths=lengths, teacher=y, teacher_weight=weight), expected, **EXACT)


def test_scheduled_sampling_does_not_look_at_what_it_does_not_show() -> None:
    rnn, x, weight = layer("jordan"), random(6, 3, 5), torch.rand(6, 3) < 0.5
    y = random(6, 3, 4)
    y[~weight] = torch.nan
    outputs, _ = rnn(x, teacher=y.requires_grad_(), teacher_weight=weight)
    outputs.sum().backward()
    assert not outputs.isnan().any()
    assert not y.grad.isnan().any()
    assert not any(p.grad.isnan().any() for p in rnn.parameters())


def test_second_derivatives_through_a_weighed_teacher() -> None:
    rnn, inputs, told = layer("jordan"), Inputs.of(CASES["jordan"], 4, 3), ragged.said(4, 3)
    more = {
        "teacher": random(4, 3, 4, requires_grad=True),
        "teacher_weight": torch.rand(4, 3, dtype=torch.float64, requires_grad=True),
    }
    found = []
    for run in (ragged.ours, ragged.theirs):
        wanted = compare.wanted_of(rnn, inputs) | more
        values = compare.flat(*run(rnn, inputs, **told, **more))
        first = compare.gradients(values, wanted, create_graph=True)
        found.append(compare.gradients(first, wanted))
    compare.assert_equal(*found)
