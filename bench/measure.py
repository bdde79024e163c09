"""Time contestants in turns, so that whatever else the machine does meets all of them alike; compare by medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch.utils import _pytree as pytree

import elman
from bench.agree import Problem, check, train
from bench.contestants import OURS, Entry, Shape
from elman.circuit.rows import factor
from elman.plan.form import Plan

Tensor = torch.Tensor
BOUND = "torch.mm"
aten = torch.ops.aten


@dataclass
class Row:
    """One cell at one shape: seconds of every round, by contestant."""

    cell: str
    shape: str
    what: str  # "training step" or "inference"
    steps: int
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def per_step(self, name: str) -> float:
        """Microseconds per time step, the median of the rounds."""
        return 1e6 * statistics.median(self.seconds[name]) / self.steps

    def ratio(self, name: str) -> float:
        """How many times longer than ours a contestant takes: the median over rounds of the ratio within a round."""
        rounds = zip(self.seconds[name], self.seconds[OURS], strict=True)
        return statistics.median(theirs / ours for theirs, ours in rounds)

    def as_json(self) -> dict[str, Any]:
        names = list(self.seconds)
        return asdict(self) | {
            "us_per_step": {name: self.per_step(name) for name in names},
            "ratio": {name: self.ratio(name) for name in names if name != OURS},
        }


def problem(entry: Entry, shape: Shape, T: int) -> Problem:
    """Random x, state and cotangents in float32. I = H."""
    g = torch.Generator().manual_seed(0)
    B, H = shape.B, shape.H
    x = entry.case.x(T, B, g, torch.float32, H, H)
    state = entry.case.state(B, g, torch.float32, H, H)
    leaves = pytree.tree_leaves((x, state))
    for leaf in leaves:
        leaf.requires_grad_()
    sizes = [(T, B, H), *(leaf.shape for leaf in leaves[1:])]
    return Problem(x, state, [torch.randn(size, generator=g) for size in sizes])


def run(entry: Entry, shape: Shape, T: int, repeats: int, seconds: float, engine: str = "auto") -> list[Row]:
    """Check one cell at one shape, then time a training step and inference: two rows.

    repeats: rounds. seconds: no new round begins after this time, once there are three.
    Raises Disagreement if any contestant is wrong.
    """
    cell = entry.case.make(shape.H, shape.H)
    contestants = entry.contestants(cell, engine)
    given = problem(entry, shape, T)
    check(contestants, cell, given)
    layer = contestants[0].run
    assert isinstance(layer, elman.Recurrent)
    program = layer._of_latest_call().program
    wants = frozenset(port.name for port in program.inputs if port.differentiable)
    plans = program.training(wants)

    def training(contestant: Any) -> Callable[[], Any]:
        return lambda: train(contestant, given)

    def inference(contestant: Any) -> Callable[[], Any]:
        def call() -> Any:
            with torch.no_grad():
                return contestant.run(given.x, given.state)

        return call

    rows = []
    for what, make, products in (
        ("training step", training, products_of(T, shape.B, plans.forward, plans.backward)),
        ("inference", inference, products_of(T, shape.B, program.plan)),
    ):
        ways = {contestant.name: make(contestant) for contestant in contestants} | {BOUND: products}
        rows.append(Row(entry.name, str(shape), what, T, in_turns(ways, repeats, seconds)))
    return rows


def in_turns(ways: dict[str, Callable[[], Any]], repeats: int, seconds: float) -> dict[str, list[float]]:
    """Seconds of every call: one round without measuring, then rounds that begin with a different way each."""
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
            start = time.perf_counter()
            ways[name]()
            found[name].append(time.perf_counter() - start)
    return found


# --- the bound --------------------------------------------------------------------------------------------------------


def products_of(T: int, B: int, *plans: Plan) -> Callable[[], None]:
    """The matrix products of plans and nothing else, each into memory that is there: what no engine can do without."""
    work: list[tuple[int, list[tuple[Tensor, ...]]]] = []
    for plan in plans:
        stages = ((plan.once, 1, B), (plan.before, 1, T * B), (plan.loop, T, B), (plan.after, 1, T * B))
        for stage, times, rows in stages:
            found = (
                []
                if stage is None
                else [p for node in stage.nodes() if (p := _product(node, rows)) is not None]
            )
            if found:
                work.append((times, found))

    def run() -> None:
        with torch.no_grad():
            for times, found in work:
                for _ in range(times):
                    for a, b, out in found:
                        torch.matmul(a, b, out=out)

    return run


def _product(node: Any, rows: int) -> tuple[Tensor, ...] | None:
    """Operands and result for the product that a node is, as they lie in memory; None if it is none."""
    if node.target in (aten.mm.default, aten.bmm.default):
        a, b = node.args[0], node.args[1]
    elif node.target is aten.addmm.default:
        a, b = node.args[1], node.args[2]
    else:
        return None
    left, right = (_like(operand.meta["val"], rows) for operand in (a, b))
    return left, right, torch.matmul(left, right)


def _like(value: Tensor, rows: int) -> Tensor:
    """A tensor of ones with the layout of a traced value."""
    size = [s if isinstance(s, int) else rows * factor(s) for s in value.shape]
    last = value.stride()[-1]
    transposed = value.dim() == 2 and not (isinstance(last, int) and last == 1)
    return torch.ones(size[::-1]).t() if transposed else torch.ones(size)
