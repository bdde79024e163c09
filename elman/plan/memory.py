"""What a call stores under a budget: all that its backward pass reads, or states to begin again from.

A call is cut into segments of time. The forward pass stores the state that each starts from, and of the last ones, as
far as the budget goes, what the backward pass reads (the residuals); the backward pass computes the others again.
Where not even all of those states fit, some are stored and the rest computed again from them, in the order that takes
the fewest steps (Griewank and Walther 2000, "Algorithm 799: revolve"; Gruslys et al. 2016).
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from elman.circuit.form import Kind
from elman.errors import InputError
from elman.plan.footprint import Counted, Footprint, footprint
from elman.plan.form import Plan
from elman.plan.work import told, work_of
from elman.segments.segment import Cuts, Memory, RaggedCuts, Segments

_CALL = 3e5  # operations that the hardware does in the time in which a segment is called
_USED = 0.85  # of a budget: what is freed in pieces is not always of use again


@dataclass(frozen=True)
class Needs:
    """What is known of a circuit's plans before they run.

    plain, forward, backward: the bytes of the pass that keeps nothing, of the one that keeps residuals, and of the
        backward pass; the last two None for a call without gradients.
    state: bytes that a row starts from. residuals: bytes kept for each row and step.
    extra: bytes that are needed whatever the segments are (rests of sums). gathered: bytes per row of what is put in
        order for a segment. work, again: operations per row and step of both passes of training, and of the plain one.
    viewed: see `Footprint.peak`.
    """

    plain: Footprint | Counted
    forward: Footprint | Counted | None
    backward: Footprint | Counted | None
    state: int
    residuals: int
    extra: int
    gathered: int
    work: float
    again: float
    viewed: float = 0.0


def needs(
    plain: Plan, forward: Plan | None = None, backward: Plan | None = None, residuals: int = 0, *,
    gathers: bool = False, viewed: float = 0.0, count: Callable[[Plan], Footprint | Counted] = footprint,
) -> Needs:  # fmt: skip
    """What is known of the plans of a circuit that carries on, and of those of its training, before they run.

    residuals: bytes per row and step. gathers: whether sequences are put in order for a segment. count: the bytes of a
        plan, by default from its graphs alone.
    """
    ports = {port.name: port for port in plain.circuit.inputs}
    sizes = {name: math.prod(port.shape) * port.dtype.itemsize for name, port in ports.items()}
    state = sum(sizes[port.name] for port in plain.circuit.inputs_of(Kind.STATE))
    sequences = sum(sizes[port.name] for port in plain.circuit.inputs_of(Kind.SEQUENCE))
    extra, again = 0, work_of(plain)
    work = again
    if forward is not None and backward is not None:
        sums = [str(out.gradient_of) for out in backward.circuit.outputs_of(Kind.SUM)]
        summed = [sizes[name] for name in sums if name in ports and not ports[name].rows]
        # What rounding has lost of each sum, and one sum that is being added to.
        extra = sum(summed) + 2 * max(summed, default=0)
        work = work_of(forward) + work_of(backward)
    return Needs(
        count(plain), None if forward is None else count(forward), None if backward is None else count(backward),
        state, residuals, extra, sequences if gathers else 0, work,
        again, viewed,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Schedule:
    """What a call under a budget stores.

    cuts: where its segments are. stored: how many of their states are there at once. kept: how many segments, the last
        to run, keep their residuals. peak: bytes needed at the worst moment. advances: how many segments are run once
        more than in a call without a budget.
    """

    cuts: Cuts
    stored: int
    kept: int
    peak: int
    advances: int

    def said(self, memory: Memory) -> str:
        """For people."""
        cuts = self.cuts
        budget = "segments" if isinstance(memory, Segments) or memory is None else told(memory)
        if not self.advances and cuts.count <= 1:
            return f"{budget}: all of the call fits, with {told(self.peak)} at once"
        words = [
            f"{budget}: {cuts.count} segments of up to {cuts.worst[1]:,} steps, with {told(self.peak)} at once"
        ]
        if self.kept:
            words.append(f"the last {self.kept} keep what the backward pass reads")
        if self.stored:
            words.append(f"up to {self.stored} states that segments start from are stored")
        if self.advances:
            words.append(f"{100 * self.advances / cuts.count:.0f} % of the forward pass is run again")
        return ", ".join(words)


def schedule(
    needs: Needs, memory: Memory, steps: int, batch: int, sizes: np.ndarray | None, where: str
) -> Schedule:
    """Choose the segments of a call: of those that fit, those that take the least time.

    sizes: rows at each step, where they differ. Raises InputError for a budget in which nothing fits, and says the
    smallest that does.
    """
    if isinstance(memory, Segments):
        return _stored(needs, _cuts(steps, batch, sizes, length=memory.steps), None)
    assert memory is not None
    best: Schedule | None = None
    smallest = math.inf
    total = steps * batch if sizes is None else int(sizes.sum())
    for rows in _candidates(max(batch, 1), total):
        cuts = _cuts(steps, batch, sizes, rows=rows)
        smallest = min(smallest, _least(needs, cuts) / _USED)
        candidate = _stored(needs, cuts, memory * _USED)
        if candidate.peak <= memory * _USED and (
            best is None or _time(needs, candidate, total) < _time(needs, best, total)
        ):
            best = candidate
    if best is None:
        raise InputError(
            what="the budget is too small for this call", where=where, got=told(memory),
            expected=f"at least {told(smallest)}",
            mend="give it more, or fewer rows at a time; elman.cost(plan, T, B, memory=…) says what is needed",
        )  # fmt: skip
    return best


def _cuts(steps: int, batch: int, sizes: np.ndarray | None, rows: int = 0, length: int = 0) -> Cuts:
    if sizes is None:
        return Cuts(steps, batch, length or max(1, rows // max(batch, 1)))
    return RaggedCuts(sizes, rows=rows, length=length)


def _candidates(least: int, total: int) -> list[int]:
    """Packed rows of a segment: from one step to all of them."""
    rows, sizes = float(least), []
    while rows < total:
        sizes.append(int(rows))
        rows *= 2**0.25
    return [*dict.fromkeys(sizes), max(total, 1)]


def _working(needs: Needs, cuts: Cuts) -> float:
    """Bytes at the worst moment of one segment, beside what is stored."""
    batch, _, rows = cuts.worst

    def peak(passed: Footprint | Counted) -> float:
        return passed.peak(*cuts.worst, needs.viewed) + needs.gathered * rows

    worst = peak(needs.plain)
    if needs.forward is not None and needs.backward is not None:
        worst = max(
            worst, peak(needs.forward), needs.residuals * rows + peak(needs.backward) + needs.gathered * rows
        )
    # The states that go from one segment to the next, the one that the forward pass ends with, and their gradients.
    return worst + 4 * needs.state * batch + needs.extra


def _least(needs: Needs, cuts: Cuts) -> float:
    """The smallest budget with these segments: none is then run more often than the logarithm of their number."""
    working = _working(needs, cuts)
    return working if needs.backward is None else working + _slots(cuts) * needs.state * cuts.worst[0]


def _slots(cuts: Cuts) -> int:
    """How many states have to be stored at least."""
    return min(cuts.count, math.ceil(math.log2(cuts.count + 1)))


def _stored(needs: Needs, cuts: Cuts, memory: float | None) -> Schedule:
    """The most that can be stored with these segments; a peak above `memory` where that is too little."""
    working, count = _working(needs, cuts), cuts.count
    if needs.backward is None or not count:
        return Schedule(cuts, 0, 0, int(working), 0)
    states = float(needs.state * cuts.entering)
    if memory is None:
        return Schedule(cuts, count, 0, int(working + states), count)
    left = memory - working
    if states > left:
        each = max(needs.state * cuts.worst[0], 1)
        slots = max(_slots(cuts), min(int(left // each), count))
        return Schedule(cuts, slots, 0, int(working + slots * each), advances(count, slots))
    kept, spent = cuts.last(needs.state, needs.residuals, left - states)
    return Schedule(cuts, count - kept, kept, int(working + states + spent), count - kept)


def _time(needs: Needs, candidate: Schedule, rows: int) -> float:
    """Operations of a call, those with which segments are called included."""
    count = max(candidate.cuts.count, 1)
    each = rows / count * needs.again + _CALL
    return rows * needs.work + 2 * count * _CALL + candidate.advances * each


def advances(count: int, slots: int) -> int:
    """How many segments are run once more where the states of `slots` of `count` are stored (Griewank and Walther)."""
    if count < 2:
        return count
    repeats = _repeats(count, slots)
    return repeats * count - math.comb(slots + repeats, repeats - 1) + 1


def _repeats(count: int, slots: int) -> int:
    """How often a segment has to be run at most: the smallest r with C(slots + r, slots) >= count."""
    repeats = 1
    while math.comb(slots + repeats, slots) < count:
        repeats += 1
    return repeats


def halfway(count: int, slots: int) -> int:
    """Of `count` segments, of which the first one's state is stored, the one whose state is best stored next: 1 …
    count - 1. slots: how many states there may be, that one included."""
    if slots < 2:
        return count - 1
    r = _repeats(count, slots)
    # The ends of a range of best places; one of them may lie outside of what is possible.
    ends = count - math.comb(slots + r - 2, slots - 1), math.comb(slots + r - 1, slots)
    choices = {min(max(end, 1), count - 1) for end in ends}
    return min(choices, key=lambda m: (m + advances(count - m, slots - 1) + advances(m, slots), m))


def marks(count: int, slots: int) -> list[int]:
    """The segments whose states the forward pass stores; that of the last one, with which it ends, is one more."""
    stored = [0] if count else []
    while stored and slots > 1 and count - stored[-1] > 1:
        stored.append(stored[-1] + halfway(count - stored[-1], slots))
        slots -= 1
    return stored if not count or stored[-1] == count - 1 else [*stored, count - 1]


def reversal(count: int, slots: int) -> Iterator[tuple[int, int]]:
    """Segments from the last to the first, each with the one whose stored state is nearest before it, as pairs
    (segment, begin): run forward from `begin`'s to have `segment`'s; if they are one, its backward pass is next.

    A state that was had on the way is stored until the backward pass of its segment.
    """
    there = marks(count, slots)
    pending = [(0, count, slots)] if count else []
    while pending:
        first, stop, slots = pending.pop()
        if stop - first == 1:
            yield first, first
            continue
        place = bisect.bisect_right(there, first)
        if place < len(there) and there[place] < stop:
            middle = there[place]
        else:
            middle = first + halfway(stop - first, slots)
            yield middle, first
        pending += [(first, middle, slots), (middle, stop, max(slots - 1, 1))]
