"""The benchmark's runner: it compares before it times, and refuses to time what is wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bench import agree, measure
from bench.bound import BOUND
from bench.contestants import ENTRIES
from bench.form import LOOP, OURS, TORCH, Shape
from tests.cases import CASES
from tests.pairwise import with_more

T, SHAPE = 4, Shape(2, 5)


@pytest.mark.parametrize("name", with_more(["lstm", "zoneout"], ["rnn"]))
def test_a_case_runs(name: str) -> None:
    training, inference = measure.run(ENTRIES[name], SHAPE, T, repeats=1, seconds=1)
    assert (training.what, inference.what) == ("training step", "inference")
    for row in (training, inference):
        expected = {OURS, LOOP, BOUND} | ({TORCH} if ENTRIES[name].torch else set())
        assert expected <= set(row.seconds)
        assert all(len(times) == 1 and times[0] > 0 for times in row.seconds.values())
        assert row.ratio(LOOP) > 0


def wrong_state(run):  # type: ignore[no-untyped-def]
    return lambda x, state: (run(x, state)[0], 1.0001 * run(x, state)[1])


def wrong_gradient(run):  # type: ignore[no-untyped-def]
    """The right values, and the gradient of another function."""

    def changed(x, state):  # type: ignore[no-untyped-def]
        outputs, final = run(x, state)
        return outputs + 0.001 * (x.sum() - x.sum().detach()), final

    return changed


def not_a_number(run):  # type: ignore[no-untyped-def]
    return lambda x, state: (run(x, state)[0] * float("nan"), run(x, state)[1])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (wrong_state, "final state 0"),
        (wrong_gradient, "gradient of x"),
        (not_a_number, "wrong in outputs"),
    ],
)
def test_what_is_wrong_is_not_timed(change, words: str) -> None:  # type: ignore[no-untyped-def]
    entry = ENTRIES["rnn"]
    cell = entry.case.make(SHAPE.H, SHAPE.H)
    ours, loop, *_ = entry.contestants(cell)
    given = measure.problem(entry, SHAPE, T)
    assert agree.check([ours, loop], cell, given)[OURS] <= 1
    with pytest.raises(agree.Disagreement, match=words):
        agree.check([replace(ours, run=change(ours.run)), loop], cell, given)


def test_other_noise_is_not_timed() -> None:
    """A zoneout whose loop drew numbers of its own would not agree, and the comparison sees that."""
    entry = ENTRIES["zoneout"]
    cell = entry.case.make(SHAPE.H, SHAPE.H)
    contestants = entry.contestants(cell)
    given = measure.problem(entry, SHAPE, 20)
    other = replace(contestants[0], run=lambda x, s: (torch.rand(1), contestants[0].run(x, s))[1])
    with pytest.raises(agree.Disagreement):
        agree.check([other, contestants[1]], cell, given)


def test_its_cells_are_the_tests_cells() -> None:
    assert all(entry.case in CASES.values() for entry in ENTRIES.values())
    assert Shape.parse("B16H64") == Shape(16, 64)
