"""Whether contestants compute the same: outputs, final state and every gradient, for random cotangents.

The truth is the plain loop in float64. A contestant in float32 may be wrong by four times what the plain loop in
float32 is, or by 1e-5 of the largest entry: after a hundred steps two right ways differ by 1e-6. In float64 it is
1e-10. Nobody may be wrong by 1e-3: there the plain loop itself tells nothing. The tests are stricter.
"""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import numpy as np
import torch
from torch import nn

import elman
from bench.contestants import loop
from bench.form import LOOP, OURS, Contestant, Eager, Problem
from elman import noise
from elman.circuit.form import Kind

Tensor = torch.Tensor
FLOOR, TIMES = {torch.float32: 1e-5, torch.float64: 1e-10}, 4.0
CEILING = 1e-3
SEED = 1234


class Disagreement(Exception):
    """A contestant computes something else: there is nothing to time."""


def check(contestants: list[Contestant], cell: nn.Module, problem: Problem) -> dict[str, float]:
    """Contestant -> its largest error, in units of the error it may have. Raises Disagreement above 1.

    A cell that draws random numbers is compared with ours alone: the loop is given the numbers that ours drew.
    """
    random = _noise_of(contestants, problem)
    exact = copy.deepcopy(cell).double()
    with _replayed(random, torch.float64):
        truth = _results(Eager(LOOP, loop(exact), dict(exact.named_parameters())), problem.to(torch.float64))
    found = {}
    with _replayed(random, problem.x.dtype):
        plain = _results(next(c for c in contestants if c.name == LOOP), problem)
    floor = FLOOR[problem.x.dtype]
    allowed = {name: min(max(TIMES * _error(plain[name], truth[name]), floor), CEILING) for name in truth}
    for contestant in contestants:
        if random and contestant.name != OURS:
            continue
        torch.manual_seed(SEED)
        made = plain if contestant.name == LOOP else _results(contestant, problem)
        lacks = {f"gradient of {name}" for name in contestant.lacks}
        wanted = [name for name in truth if name not in lacks]
        if made.keys() != set(wanted):
            raise Disagreement(f"{contestant.name}: it gives {list(made)} where {wanted} is wanted")
        errors = {name: _error(made[name], truth[name]) / allowed[name] for name in wanted}
        worst = max(errors, key=lambda name: errors[name] if errors[name] == errors[name] else float("inf"))
        found[contestant.name] = errors[worst]
        if not errors[worst] <= 1:
            raise Disagreement(
                f"{contestant.name} is wrong in {worst}: {_error(made[worst], truth[worst]):.1e} of the largest entry, "
                f"where {allowed[worst]:.1e} would do; it is not timed"
            )
    return found


def _results(contestant: Contestant, problem: Problem) -> dict[str, Tensor]:
    made, gradients = contestant.results(problem)
    names = ["outputs", *(f"final state {i}" for i in range(len(made) - 1))]
    names += [f"gradient of {name}" for name in (*problem.leaves(), *contestant.weights)]
    return {name: _exact(value) for name, value in zip(names, [*made, *gradients], strict=True)}


def _exact(value: Any) -> Tensor:
    """A result of torch's or of JAX's, in float64."""
    tensor = value.detach() if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
    return tensor.double()


def _error(made: Tensor, truth: Tensor) -> float:
    """The largest error, in units of the largest entry. Infinite for another shape, NaN stays NaN."""
    if made.shape != truth.shape:
        return float("inf")
    return ((made - truth).abs().max() / truth.abs().max().clamp_min(1e-30)).item()


def _noise_of(contestants: list[Contestant], problem: Problem) -> list[Tensor]:
    """The random numbers that ours draws after `torch.manual_seed(SEED)`, one tensor [T, B, …] per draw."""
    ours = contestants[0]
    if not (isinstance(ours, Eager) and isinstance(layer := ours.run, elman.Recurrent)):
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
