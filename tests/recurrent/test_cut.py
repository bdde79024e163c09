"""Cutting a batch into pieces: in C++ as in numpy, and what numpy says."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import forward_ad

from elman.engines.native import why_not_built
from elman.segments import move as moving
from elman.segments import pieces as cutting
from elman.segments.move import Move
from elman.segments.timeline import Packing


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
    for name in cutting.Pieces._fields:
        one, other = getattr(fast, name), getattr(slow, name)
        assert np.asarray(one).dtype == np.asarray(other).dtype, name
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
    assert made.rows.tolist() == packed.tolist()
    assert made.in_order == (packed.tolist() == [*range(len(packed))])
    befores = Packing(made.sizes, CPU).before.tolist() if len(packed) else []
    for row, (at, before) in enumerate(zip(packed, befores, strict=True)):
        if before != row:
            assert packed[before] < at
            assert packed[before] % rows == at % rows


CPU = torch.device("cpu")


def test_rows_go_there_and_back() -> None:
    move = Move(np.array([3, 0]), np.array([1, 2, 2, 0]), (4,), CPU)
    value = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.equal(move(value), value[[3, 0]])
    assert torch.equal(move.back(value[:2]), torch.stack([value[1], value[0] * 0, value[0] * 0, value[0]]))
    torch.autograd.gradcheck(move, value, check_forward_ad=True)
    torch.autograd.gradcheck(move.back, value[:2].detach().requires_grad_(), check_forward_ad=True)
    torch.autograd.gradgradcheck(move, value)
    nowhere = torch.full((2, 5), torch.inf)
    assert torch.equal(move.back(nowhere)[1:3], torch.zeros(2, 5))


# (sequence [3, 2, …] -> the same as it may lie in memory, whether the compiled part moves it)
LAID: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], bool]] = {
    "in order": (lambda x: x, True),
    "batch first": (lambda x: x.transpose(0, 1).contiguous().transpose(0, 1), True),
    "one number everywhere": (lambda x: x.flatten()[0].expand(x.shape), True),
    "one row for all": (lambda x: x[:1, :1].expand(x.shape), True),
    "every other feature": (lambda x: torch.stack([x, -x], -1)[..., 0], True),
    "features turned": (lambda x: x.mT.contiguous().mT, False),
    "a part": (lambda x: torch.cat([x, x], 1)[:, 1:-1], True),
    "of the other sign": (lambda x: torch._neg_view(-x), False),
    "zeros that are nowhere": (lambda x: torch._efficientzerotensor(x.shape, dtype=x.dtype), False),
    "of a class of its own": (lambda x: torch.nn.Parameter(x, False), False),
}
TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("how", LAID)
def test_rows_move_however_they_lie(how: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """In C++ and by PyTorch; what C++ does not read right goes to PyTorch."""
    lay, _ = LAID[how]
    if how in ("of the other sign", "every other feature") and not dtype.is_floating_point:
        pytest.skip("has no sign")
    move = Move(np.array([4, 1, 2]), np.array([3, 1, 2, 3, 0, 3]), (3, 2), CPU)
    value = lay((8 * torch.randn(3, 2, 4, 3)).to(dtype))
    right = torch.stack([value[2, 0], value[0, 1], value[1, 0]])
    zeros = torch.zeros_like(right[0])
    there = torch.stack([zeros, right[1], right[2], zeros, right[0], zeros]).unflatten(0, (3, 2))
    for _ in range(2):  # with the compiled part, if it is there, and without
        assert torch.equal(move(value), right)
        assert torch.equal(move.back(right), there)
        assert torch.equal(move.back(right.mT.contiguous().mT), there)
        monkeypatch.setattr(moving, "_native", None)


@pytest.mark.skipif(why_not_built() is not None, reason="the compiled part is not there")
def test_what_the_compiled_part_moves() -> None:
    from elman import _native

    index = np.array([4, 1, 2])
    for how, (lay, ours) in LAID.items():
        made = torch.empty(3, 4, 3)
        assert _native.move(lay(torch.randn(3, 2, 4, 3)), index, made, 2) is ours, how
    value = torch.randn(3, 2, 4, 3)
    for into in (made.double(), torch.empty(3, 4, 4)[..., :3], made.to("meta")):
        assert not _native.move(value, index, into, 2)
    assert not _native.move(value.to(torch.complex64), index, made.to(torch.complex64), 2)
    assert not _native.move(value[0, 0, 0], index, torch.empty(3, 3), 2)
    halves = [torch.empty(n, 3, dtype=torch.float4_e2m1fn_x2) for n in (6, 3)]  # two numbers in a byte
    assert not _native.move(halves[0], index, halves[1], 1)
    large = torch.randn(600, 500)
    assert not _native.move(large, np.arange(600), torch.empty_like(large), 1)


def test_rows_move_inside_of_transforms_and_with_directions() -> None:
    move = Move(np.array([3, 0]), np.array([1, 2, 2, 0]), (2, 2), CPU)
    many, way = torch.randn(2, 5, 2, 2, 3)
    assert torch.equal(torch.func.vmap(move)(many), many.flatten(1, 2)[:, [3, 0]])
    made, moved = torch.func.jvp(move, (many[0],), (way[0],))
    assert torch.equal(made, move(many[0]))
    assert torch.equal(moved, move(way[0]))
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(move.back(move(forward_ad.make_dual(many[0], way[0]))))
        assert dual.tangent is not None
        assert torch.equal(dual.tangent, move.back(move(way[0])))
