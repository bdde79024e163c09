"""Every cell of the table, run whole: outputs, final state and every gradient are those of the eager loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

import elman
from tests import eager
from tests.cases import CASES, Case
from tests.recurrent import compare
from tests.recurrent.compare import Inputs

Tensor = torch.Tensor
SIZES = ((1, 1), (5, 3), (18, 1), (2, 13))  # 18 steps are more than one block of noise
every_case = pytest.mark.parametrize("case", CASES.values(), ids=str)


@every_case
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_a_call_equals_the_eager_loop(case: Case, reverse: bool) -> None:
    rnn = elman.Recurrent(case.make().double(), reverse=reverse)
    for T, B in SIZES:
        got, expected = compare.both(rnn, Inputs.of(case, T, B, seed=T))
        compare.assert_equal(got.values, expected.values)
        compare.assert_equal(got.gradients, expected.gradients)
