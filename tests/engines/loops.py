"""The loops of the cases and of cells at odd sizes, and values to run them on, for comparing engines."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from elman.circuit import graphs
from elman.circuit.rows import factor
from elman.engines import Engine
from elman.execute.program import Program
from elman.plan.form import Loop
from elman.trace import trace
from tests import eager
from tests.cases import CASES
from tests.circuits import plan_of, training_of

Tensor = torch.Tensor
CPU = torch.device("cpu")


@functools.cache
def loops_of(name: str) -> dict[str, Loop]:
    """The loops of a case, in float64: of inference, of training's forward and backward pass."""
    plans = dict(zip(("inference", "forward", "backward"), (plan_of(name), *training_of(name)), strict=True))
    return {what: plan.loop for what, plan in plans.items() if plan.loop is not None}


@functools.cache
def loops_at(name: str, n_in: int, n_hidden: int, dtype: torch.dtype) -> dict[str, Loop]:
    """The same of a case with other widths, in another precision."""
    case, g = CASES[name], torch.Generator().manual_seed(0)
    cell = case.make(n_in, n_hidden).to(dtype)
    x = eager.at(case.x(1, 2, g, dtype, n_in, n_hidden), 0)
    context = case.context(2, g, dtype, n_in, n_hidden)
    program = Program(trace(cell, x, case.state(2, g, dtype, n_in, n_hidden), context, check=False))
    training = program.training(frozenset(p.name for p in program.inputs if p.differentiable))
    plans = {"inference": program.plan, "forward": training.forward, "backward": training.backward}
    return {what: plan.loop for what, plan in plans.items() if plan.loop is not None}


@dataclass
class Given:
    """What a loop is run on."""

    loop: Loop
    values: dict[str, Tensor]
    sizes: list[int]

    @property
    def rows(self) -> int:
        return sum(self.sizes)

    def run(self, engine: Engine, reverse: bool = False) -> dict[str, Tensor]:
        """All that the loop gives: what it emits, and final states."""
        out = {}
        for name in self.loop.emits:
            like = graphs.results_of(self.loop.graph)[name].meta["val"]
            lead = len(self.sizes) if name in self.loop.stepped else self.rows
            shape = [int(s) for s in (like.shape if name in self.loop.stepped else like.shape[1:])]
            out[name] = torch.zeros((lead, *shape), dtype=like.dtype)
            if like.dtype.is_floating_point:  # what is not written shows
                out[name].fill_(float("nan"))
        result = engine.run(self.loop, self.values, self.sizes, reverse, out)
        finals = {f"{name} final": value for name, value in result.finals.items()}
        return out | finals | {f"{name} summed": value for name, value in result.sums.items()}


def given(
    loop: Loop, sizes: Sequence[int], batch: int | None = None, seed: int = 1, scale: float = 1.0
) -> Given:
    """Random values for a loop; `batch` rows start, of which sizes[t] run at step t. scale: of the weights."""
    g = torch.Generator().manual_seed(seed)
    batch = max(sizes, default=0) if batch is None else batch
    inputs = {str(n.target): n.meta["val"] for n in loop.graph.nodes if n.op == "placeholder"}
    results = graphs.results_of(loop.graph)

    def value(like: Any, lead: int | None, factor_of: float = 1.0) -> Tensor:
        shape = [s if isinstance(s, int) else batch * factor(s) for s in like.shape]
        if lead is not None:
            shape = [lead, *(shape[1:] if any(not isinstance(s, int) for s in like.shape) else shape)]
        if like.dtype == torch.bool:
            return torch.rand(shape, generator=g) < 0.5
        if not like.dtype.is_floating_point:
            return torch.randint(0, 3, shape, generator=g)
        drawn = torch.rand(shape, generator=g, dtype=torch.float64) + 0.1
        signs = torch.randint(0, 2, shape, generator=g) * 2 - 1 if factor_of != 1.0 else 1
        return (drawn * signs * factor_of).to(like.dtype)

    values = {}
    for name in loop.constants:
        if name in inputs:
            values[name] = value(
                inputs[name], None, scale if inputs[name].dim() == 2 and name not in loop.rowed else 1.0
            )
    for name in loop.sequences:
        if name in inputs:
            values[name] = value(inputs[name], len(sizes) if name in loop.stepped else sum(sizes))
    for state in loop.states:
        values[state.name] = value(
            inputs.get(state.name, results[state.next or ""].meta["val"] if state.next else None), None
        )
    return Given(loop, values, list(sizes))
