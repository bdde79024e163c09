"""Whether contestants compute the same: outputs, final state and every gradient, for random cotangents.

The truth is the plain loop in float64. A contestant in float32 may be wrong by four times what the plain loop in
float32 is, or by 1e-5 of the largest entry: after a hundred steps two right ways differ by 1e-6. The tests are
stricter.
"""

from __future__ import annotations

import contextlib
import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

import elman
from bench.contestants import LOOP, OURS, Contestant, loop
from elman import noise
from elman.circuit.form import Kind

Tensor = torch.Tensor
FLOOR, TIMES = 1e-5, 4.0
SEED = 1234


class Disagreement(Exception):
    """A contestant computes something else: there is nothing to time."""


@dataclass(frozen=True)
class Problem:
    """What all contestants are given: x, the starting state, and the cotangents of outputs and final state."""

    x: Tensor
    state: Any
    cotangents: list[Tensor]

    def to(self, dtype: torch.dtype) -> Problem:
        def convert(tensor: Tensor) -> Tensor:
            return tensor.detach().to(dtype).requires_grad_(tensor.requires_grad)

        return Problem(
            convert(self.x), pytree.tree_map(convert, self.state), [convert(c) for c in self.cotangents]
        )

    def leaves(self) -> dict[str, Tensor]:
        return {"x": self.x, **{f"state {i}": s for i, s in enumerate(pytree.tree_leaves(self.state))}}


def train(contestant: Contestant, problem: Problem) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    """A training step: (outputs and final state, the gradients of x, the state and every weight)."""
    outputs, final = contestant.run(problem.x, problem.state)
    made = [outputs, *pytree.tree_leaves(final)]
    leaves = [*problem.leaves().values(), *contestant.weights.values()]
    return made, torch.autograd.grad(made, leaves, problem.cotangents)


def check(contestants: list[Contestant], cell: nn.Module, problem: Problem) -> dict[str, float]:
    """Contestant -> its largest error, in units of the error it may have. Raises Disagreement above 1.

    A cell that draws random numbers is compared with ours alone: the loop is given the numbers that ours drew.
    """
    random = _noise_of(contestants, problem)
    exact = copy.deepcopy(cell).double()
    with _replayed(random, torch.float64):
        truth = _results(
            Contestant(LOOP, loop(exact), dict(exact.named_parameters())), problem.to(torch.float64)
        )
    found = {}
    with _replayed(random, problem.x.dtype):
        plain = _results(next(c for c in contestants if c.name == LOOP), problem)
    for contestant in contestants:
        if random and contestant.name != OURS:
            continue
        torch.manual_seed(SEED)
        made = _results(contestant, problem)
        if made.keys() != truth.keys():
            raise Disagreement(f"{contestant.name}: it gives {list(made)} where {list(truth)} is wanted")
        allowed = {name: max(TIMES * _error(plain[name], truth[name]), FLOOR) for name in truth}
        errors = {name: _error(made[name], truth[name]) / allowed[name] for name in truth}
        worst = max(errors, key=lambda name: errors[name])
        found[contestant.name] = errors[worst]
        if not errors[worst] <= 1:
            raise Disagreement(
                f"{contestant.name} is wrong in {worst}: {_error(made[worst], truth[worst]):.1e} of the largest entry, "
                f"where {allowed[worst]:.1e} would do; it is not timed"
            )
    return found


def _results(contestant: Contestant, problem: Problem) -> dict[str, Tensor]:
    made, gradients = train(contestant, problem)
    with torch.no_grad():
        names = ["outputs", *(f"final state {i}" for i in range(len(made) - 1))]
        names += [f"gradient of {name}" for name in (*problem.leaves(), *contestant.weights)]
        return {name: value.detach().double() for name, value in zip(names, [*made, *gradients], strict=True)}


def _error(made: Tensor, truth: Tensor) -> float:
    """The largest error, in units of the largest entry. Infinite for another shape, NaN stays NaN."""
    if made.shape != truth.shape:
        return float("inf")
    return ((made - truth).abs().max() / truth.abs().max().clamp_min(1e-30)).item()


def _noise_of(contestants: list[Contestant], problem: Problem) -> list[Tensor]:
    """The random numbers that ours draws after `torch.manual_seed(SEED)`, one tensor [T, B, …] per draw."""
    layer = contestants[0].run
    if not isinstance(layer, elman.Recurrent):
        return []
    with torch.no_grad():
        layer(problem.x, problem.state)
    torch.manual_seed(SEED)
    seed = int(torch.randint(2**62, ()).item())
    T, B = problem.x.shape[:2]
    ports = layer.circuit.inputs_of(Kind.NOISE)
    return [noise.draw(port, i, seed, 0, T, B) for i, port in enumerate(ports)]


def _replayed(random: list[Tensor], dtype: torch.dtype) -> contextlib.AbstractContextManager[Any]:
    """Inside, eager code draws these numbers, step by step."""
    if not random:
        return contextlib.nullcontext()
    return noise.Replay([numbers[t].to(dtype) for t in range(len(random[0])) for numbers in random])
