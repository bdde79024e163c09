"""Cells that nobody has thought of: what eager PyTorch runs, `Recurrent` runs, with the same numbers and gradients."""

from __future__ import annotations

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

import elman
from tests.pairwise import examples
from tests.random_cells import Instruction, Next, Program, RandomCell
from tests.recurrent import compare
from tests.recurrent.compare import Inputs
from tests.strategies import random_cells
from tests.tensors import differentiable


def _inputs(cell: RandomCell, T: int, B: int) -> Inputs:
    generator = torch.Generator().manual_seed(T)
    trees = [cell.sequence(T, B, generator), cell.start(B, generator)]
    differentiable(trees)
    return Inputs(T, B, trees[0], trees[1], None, cell.steps(T))


# A value that goes into the loop had the name of another one's node, and a bias got its gradient.
NAMESAKES = Program(
    inputs=1,
    states=(1, 2, 6),
    lines=tuple(
        Instruction(rule, operands, size)
        for rule, operands, size in (
            ("last", (2,), 0), ("hard_gate", (2, 4), 0), ("heads", (3,), 0), ("slice", (6,), 2), ("detach", (5,), 0),
            ("merged", (6,), 0), ("linear", (9,), 1),
        )
    ),
    nexts=(Next(10, 0.3333), Next(5, 0.5), Next(9, 0.5)),
    output=10,
    seed=0,
)  # fmt: skip


@examples(3, 200)
@hypothesis.example(RandomCell(NAMESAKES).double(), False, (4, 3))
@hypothesis.given(random_cells(), st.booleans(), st.sampled_from([(1, 1), (4, 3), (3, 1), (2, 5)]))
def test_a_random_cell_equals_its_eager_loop(cell: RandomCell, reverse: bool, size: tuple[int, int]) -> None:
    rnn = elman.Recurrent(cell, reverse=reverse)
    got, expected = compare.both(rnn, _inputs(cell, *size))
    compare.assert_equal(got.values, expected.values, 1e-9)
    compare.assert_equal(got.gradients, expected.gradients, 1e-8)


@pytest.mark.conformance  # it traces all of them
@pytest.mark.filterwarnings("ignore::hypothesis.errors.NonInteractiveExampleWarning")
def test_few_random_cells_are_refused() -> None:
    """Everything that eager PyTorch runs should be a circuit; 20 % refused would hide a class of cells."""
    refused, draws = [], 60

    @hypothesis.settings(
        max_examples=draws, derandomize=True, database=None, phases=[hypothesis.Phase.generate]
    )
    @hypothesis.given(random_cells())
    def look(cell: RandomCell) -> None:
        inputs = _inputs(cell, 1, 2)
        x = None if inputs.x is None else inputs.x[0]
        try:
            elman.trace(cell, x, inputs.state)
        except elman.ElmanError as error:
            refused.append(f"{cell!r}: {error}")

    look()
    assert len(refused) < 0.2 * draws, "\n\n".join(refused)
