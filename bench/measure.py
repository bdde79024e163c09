"""Time contestants in turns, so that whatever else the machine does meets all of them alike; compare by medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch.utils import _pytree as pytree

import elman
from bench.agree import check
from bench.bound import BOUND, products_of
from bench.contestants import Entry
from bench.form import COMPILED, OURS, Contestant, Eager, Problem, Shape

Tensor = torch.Tensor
Ways = dict[str, Callable[[], Any]]
TRAINING, INFERENCE = "training step", "inference"


@dataclass
class Row:
    """One cell at one shape: seconds of every round, by contestant. first_call: of the compiled loop, in seconds."""

    cell: str
    shape: str
    what: str  # TRAINING or INFERENCE
    steps: int
    seconds: dict[str, list[float]] = field(default_factory=dict)
    first_call: float | None = None

    def per_step(self, name: str) -> float:
        """Microseconds per time step, the median of the rounds."""
        return 1e6 * statistics.median(self.seconds[name]) / self.steps

    def ratio(self, name: str) -> float:
        """How many times longer than ours a contestant takes: the median over rounds of the ratio within a round. For
        the bound it is the fraction of torch.mm's speed that a whole call of ours reaches."""
        rounds = zip(self.seconds[name], self.seconds[OURS], strict=True)
        return statistics.median(theirs / ours for theirs, ours in rounds)

    def as_json(self) -> dict[str, Any]:
        names = list(self.seconds)
        return asdict(self) | {
            "us_per_step": {name: self.per_step(name) for name in names},
            "ratio": {name: self.ratio(name) for name in names if name != OURS},
        }


@dataclass(frozen=True)
class Contest:
    """A cell at a shape: contestants that agree, and what they are given."""

    entry: Entry
    shape: Shape
    T: int
    contestants: list[Contestant]
    given: Problem
    first_call: float | None = None

    def ways(self, what: str, names: Collection[str] | None = None) -> Ways:
        """Ours, the others called so (None: all) and the bound, ready to be timed."""
        chosen = [c for c in self.contestants if names is None or c.name == OURS or c.name in names]
        ways = {
            c.name: c.training(self.given) if what == TRAINING else c.inference(self.given) for c in chosen
        }
        return ways | {BOUND: self.bound(what)}

    def bound(self, what: str) -> Callable[[], None]:
        """The products of what ours runs."""
        ours = self.contestants[0]
        assert isinstance(ours, Eager)
        assert isinstance(ours.run, elman.Recurrent)
        program = ours.run._of_latest_call().program
        if what == INFERENCE:
            return products_of(self.T, self.shape.B, program.plan)
        wants = frozenset(port.name for port in program.inputs if port.differentiable)
        plans = program.training(wants)
        return products_of(self.T, self.shape.B, plans.forward, plans.backward)

    def row(self, what: str, seconds: dict[str, list[float]]) -> Row:
        return Row(self.entry.name, str(self.shape), what, self.T, seconds, self.first_call)


def problem(entry: Entry, shape: Shape, T: int, dtype: torch.dtype = torch.float32) -> Problem:
    """Random x, state and cotangents. I = H."""
    g = torch.Generator().manual_seed(0)
    B, H = shape.B, shape.H
    x = entry.case.x(T, B, g, dtype, H, H)
    state = entry.case.state(B, g, dtype, H, H)
    leaves = pytree.tree_leaves((x, state))
    for leaf in leaves:
        leaf.requires_grad_()
    sizes = [(T, B, H), *(leaf.shape for leaf in leaves[1:])]
    return Problem(x, state, [torch.randn(size, generator=g, dtype=dtype) for size in sizes])


def contest(
    entry: Entry,
    shape: Shape,
    T: int,
    *,
    engine: str = "auto",
    dtype: torch.dtype = torch.float32,
    compiled: bool = False,
) -> Contest:
    """One cell at one shape, after the check. compiled: torch.compile of the plain loop takes part; its first training
    step is timed, which compiles it. Raises Disagreement if any contestant is wrong."""
    cell = entry.case.make(shape.H, shape.H).to(dtype)
    contestants = entry.contestants(cell, engine, compiled)
    given = problem(entry, shape, T, dtype)
    first = None
    for contestant in contestants:
        if contestant.name == COMPILED:
            first = seconds_of(contestant.training(given))
    check(contestants, cell, given)
    return Contest(entry, shape, T, contestants, given, first)


def run(entry: Entry, shape: Shape, T: int, repeats: int, seconds: float, **options: Any) -> list[Row]:
    """Check one cell at one shape, then time a training step and inference: two rows.

    repeats: rounds. seconds: no new round begins after this time, once there are three. options: of `contest`.
    """
    found = contest(entry, shape, T, **options)
    return [found.row(what, in_turns(found.ways(what), repeats, seconds)) for what in (TRAINING, INFERENCE)]


def alone(entry: Entry, shape: Shape, T: int, seconds: float, **options: Any) -> list[Row]:
    """Ours again and again with nobody between, then the bound: what a loop over batches gets, whose caches and threads
    no peer has touched. Two rows."""
    found = contest(entry, shape, T, **options)
    rows = []
    for what in (TRAINING, INFERENCE):
        times: dict[str, list[float]] = {}
        for name, way in found.ways(what, ()).items():
            times |= in_turns({name: way}, 1000, seconds)
        rounds = min(map(len, times.values()))
        rows.append(found.row(what, {name: values[:rounds] for name, values in times.items()}))
    return rows


def in_turns(ways: Ways, repeats: int, seconds: float) -> dict[str, list[float]]:
    """Seconds of every call: one round without measuring, then rounds that begin with a different way each.

    In its turn every way makes one call without measuring: what the one before it left behind (its data in the caches;
    threads that spin and wait for more work, which are torch's for some and JAX's own for others) is nobody's fault.
    """
    found: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for name in names:
        ways[name]()
    begin = time.perf_counter()
    for number in range(repeats):
        if number >= 3 and time.perf_counter() - begin > seconds:
            break
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            if len(names) > 1:
                ways[name]()
            found[name].append(seconds_of(ways[name]))
    return found


def seconds_of(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
