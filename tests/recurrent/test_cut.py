"""Cutting a batch into pieces: in C++ as in numpy, and what numpy says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elman.engines.native import why_not_built
from elman.segments import pieces as cutting
from elman.segments.move import Move


@st.composite
def batches(
    draw: st.DrawFn,
) -> tuple[int, int, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    steps, batch = draw(st.integers(0, 6)), draw(st.integers(0, 5))
    lengths = st.lists(st.integers(0, steps), min_size=batch, max_size=batch).map(
        lambda n: torch.tensor(n, dtype=torch.int64)
    )
    bools = st.lists(st.booleans(), min_size=steps * batch, max_size=steps * batch).map(
        lambda n: torch.tensor(n, dtype=torch.bool).reshape(steps, batch)
    )
    return steps, batch, *(draw(st.none() | kind) for kind in (lengths, bools, bools))


@settings(max_examples=60)
@given(batches())
@pytest.mark.skipif(why_not_built() is not None, reason="the compiled part is not there")
def test_the_compiled_cut_is_the_plain_one(batch: tuple) -> None:
    steps, rows, *said = batch
    fast = cutting.cut(steps, rows, *said)
    slow = cutting.plainly(steps, rows, *(None if t is None else t.numpy() for t in said))
    for name in fast._fields:
        one, other = getattr(fast, name), getattr(slow, name)
        assert (one is None) == (other is None), name
        if one is not None:
            assert one.dtype == other.dtype, name
            assert np.array_equal(one, other), name


@given(batches())
def test_every_step_that_happens_is_in_one_place(batch: tuple) -> None:
    steps, rows, lengths, happens, _ = batch
    made = cutting.plainly(steps, rows, *(None if t is None else t.numpy() for t in batch[2:]))
    expected = torch.ones(steps, rows, dtype=torch.bool) if happens is None else happens
    if lengths is not None:
        expected = expected & (torch.arange(steps)[:, None] < lengths)
    there = made.places < made.sizes.sum()
    assert there.tolist() == expected.flatten().tolist()
    packed = np.flatnonzero(there)[np.argsort(made.places[there])]  # in the order of the packed rows
    assert made.rows is None or made.rows.tolist() == packed.tolist()
    for row, (at, before) in enumerate(zip(packed, made.before, strict=True)):
        if before != row:
            assert packed[before] < at
            assert packed[before] % rows == at % rows


def test_rows_go_there_and_back() -> None:
    rows, places = torch.tensor([3, 0]), torch.tensor([1, 2, 2, 0])
    move, value = Move(rows, places), torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.equal(move(value), value[[3, 0]])
    assert torch.equal(move.back(value[:2]), torch.stack([value[1], value[0] * 0, value[0] * 0, value[0]]))
    torch.autograd.gradcheck(move, value)
    torch.autograd.gradcheck(move.back, value[:2].detach().requires_grad_())
    torch.autograd.gradgradcheck(move, value)
    nowhere = torch.full((2, 5), torch.inf)
    assert torch.equal(move.back(nowhere)[1:3], torch.zeros(2, 5))
