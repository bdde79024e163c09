"""What is stored under a budget, and in which order the rest is computed again: numbers only."""

from __future__ import annotations

import functools

import pytest
import torch

import elman
from elman import Segments, cells
from elman.errors import ElmanError, InputError
from elman.plan.memory import advances, marks, reversal
from elman.plan.work import told


@functools.cache
def fewest(count: int, slots: int) -> int:
    """Of all ways to go back through `count` segments with `slots` states stored, the first one's among them."""
    if count == 1:
        return 0
    if slots == 1:
        return count * (count - 1) // 2
    return min(m + fewest(count - m, slots - 1) + fewest(m, slots) for m in range(1, count))


@pytest.mark.parametrize("slots", [1, 2, 3, 5, 20])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 20, 37])
def test_states_are_there_when_they_are_needed(count: int, slots: int) -> None:
    slots = min(slots, count)
    have, most, run, order = set(marks(count, slots)), 0, count, []
    for segment, begin in reversal(count, slots):
        most = max(most, len(have))
        assert begin in have
        if segment == begin:
            order.append(segment)
            have.discard(segment)
        else:
            run += segment - begin
            have.add(segment)
    assert order == list(range(count))[::-1]
    assert most <= slots + 1  # the forward pass ends with one more
    # The forward pass, all of it, and what is run again; the best there is runs the last segment once.
    assert run == advances(count, slots) == fewest(count, slots) + 1


@pytest.mark.parametrize("make", [cells.Elman, cells.LSTM])
def test_cost_of_a_budget(make: type) -> None:
    net = elman.Recurrent(make(4, 32), batch_first=False)
    net(torch.zeros(3, 2, 4))
    plan = elman.plan(net.circuit)
    free = elman.cost(plan, T=10_000, B=2)
    before = None
    for memory in (120_000, 10**6, "5 MB", 10**9):
        bounded = elman.cost(plan, T=10_000, B=2, memory=memory)
        assert (bounded.once, bounded.before, bounded.loop) == (free.once, free.before, free.loop)
        assert bounded.segments * bounded.segment >= 10_000
        assert before is None or (bounded.again <= before.again and bounded.peak >= before.peak)
        before = bounded
    assert before is not None
    assert before.again == 0
    assert before.kept == free.kept
    assert "peak" in str(before)
    assert "peak" not in str(free)
    cut = elman.cost(plan, T=10_000, B=2, memory=Segments(100))
    assert (cut.segments, cut.segment) == (100, 100)


def test_a_budget_that_is_none() -> None:
    net = elman.Recurrent(cells.GRU(4, 32), batch_first=False)
    net(torch.zeros(3, 2, 4))
    plan = elman.plan(net.circuit)
    with pytest.raises(InputError, match="too small") as caught:
        elman.cost(plan, T=10_000, B=2, memory=100)
    least = str(caught.value.expected).removeprefix("at least ")
    assert elman.cost(plan, T=10_000, B=2, memory=least).again > 0
    number, unit = least.split()
    just_less = int(
        0.98 * float(number) * {"kB": 1e3, "MB": 1e6}[unit]
    )  # one segment fits, the states do not
    with pytest.raises(InputError, match="too small"):
        elman.cost(plan, T=10_000, B=2, memory=just_less)
    with pytest.raises(ElmanError, match="forward and backward"):
        elman.cost(elman.plan(elman.pair(net.circuit).forward), T=10, B=2, memory="1 MB")


def test_bytes_are_told_so_that_they_are_enough() -> None:
    assert told(999) == "999 B"
    assert told(1234) == "1.24 kB"
    assert told(54_259_912) == "54.26 MB"
