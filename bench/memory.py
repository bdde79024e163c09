"""A long sequence in little memory: gradients under a budget, beside what one does without elman.

Every way runs in a process of its own, since what counts is the highest mark of memory that the operating system saw
during the run. The recurrence is the book's, with the loss of each step inside of it; x and y are 4 bytes a step.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import elman
from elman import cells

H = 128
OURS, STATES = "ours", "ours, Segments(√T)"
LOOP, CHECKPOINT = "a loop in Python", "a loop, checkpointed every √T steps"
SCAN, NESTED = "JAX, scan", "JAX, scan of a checkpointed scan"
FEW = 20_000  # steps, of the ways that need a hundred times as long for one


@dataclass(frozen=True)
class Run:
    """What one way took: microseconds for each step, and bytes above what was there before. steps: T."""

    way: str
    steps: int
    microseconds: float
    bytes: int
    norm: float  # of the gradient of W, to be compared


class Model(nn.Module):
    """(x, y), h -> (y - c - V h(t))², h(t)."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_size = H
        self.cell, self.V = cells.Elman(1, H), nn.Linear(H, 1)

    def forward(self, xy: tuple[Tensor, Tensor], h: Tensor) -> tuple[Tensor, Tensor]:
        x, y = xy
        h = self.cell(x, h)
        return (y - self.V(h)).square().squeeze(-1), h


def ways(steps: int) -> list[tuple[str, int, str]]:
    """(name, T, how) of everything that is run."""
    found = [(OURS, steps, ""), (STATES, steps, f"segments {round(steps**0.5)}")]
    found += [(f"{OURS}, {budget}", steps, budget) for budget in ("64 MB", "8 MB", "2 MB")]
    found += [(LOOP, min(FEW, steps), "loop"), (CHECKPOINT, min(FEW, steps), "checkpoint")]
    return found + [(SCAN, steps, "scan"), (NESTED, steps, "nested")]


def runs(steps: int) -> list[Run]:
    """Every way once; those whose package is not there are left out."""
    found = []
    for way, T, how in ways(steps):
        command = [sys.executable, "-m", "bench.memory", way, str(T), how]
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        if done.returncode == 3:  # not installed
            continue
        if done.returncode:
            raise RuntimeError(f"{way}: {done.stderr[-2000:]}")
        found.append(Run(**json.loads(done.stdout.splitlines()[-1])))
    return found


# --- in the process of one way ----------------------------------------------------------------------------------------


def _data(steps: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(steps, 1, 1, generator=generator)
    return x, torch.sin(0.1 * torch.arange(steps)).reshape(steps, 1, 1)


def _ours(model: Model, how: str) -> Any:
    rnn = elman.Recurrent(model, batch_first=False)
    memory: Any = elman.Segments(int(how.split()[1])) if how.startswith("segments") else how or None

    def run(x: Tensor, y: Tensor) -> Tensor:
        rnn((x, y))[0].mean().backward()
        return model.cell.W.grad

    # Everything is traced, planned and loaded before memory is looked at.
    for rnn.memory in (None, elman.Segments(10), memory):
        run(*_data(35))
    return run


def _loop(model: Model, how: str) -> Any:
    from torch.utils.checkpoint import checkpoint

    def piece(x: Tensor, y: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(())
        for t in range(len(x)):
            loss, h = model((x[t], y[t]), h)
            total = total + loss.sum()
        return total, h

    def run(x: Tensor, y: Tensor) -> Tensor:
        h, total = x.new_zeros(1, H), x.new_zeros(())
        each = len(x) if how == "loop" else max(1, round(len(x) ** 0.5))
        for start in range(0, len(x), each):
            given = x[start : start + each], y[start : start + each], h
            loss, h = piece(*given) if how == "loop" else checkpoint(piece, *given, use_reentrant=False)
            total = total + loss
        (total / len(x)).backward()
        return model.cell.W.grad

    run(*_data(35))
    return run


def _jax(model: Model, how: str) -> Any:
    try:
        import jax
        from jax import numpy as jnp
    except ImportError:
        raise SystemExit(3) from None
    weights = {name: jnp.asarray(p.detach().numpy()) for name, p in model.named_parameters()}

    def step(w: Any, h: Any, xy: Any) -> Any:
        x, y = xy
        h = jnp.tanh(x @ w["cell.U"].T + h @ w["cell.W"].T + w["cell.b"])
        return h, jnp.square(y - (h @ w["V.weight"].T + w["V.bias"]))[:, 0]

    def loss(w: Any, x: Any, y: Any) -> Any:
        def one(h: Any, xy: Any) -> Any:
            return step(w, h, xy)

        h = jnp.zeros((1, H))
        if how == "scan":
            return jax.lax.scan(one, h, (x, y))[1].mean()
        each = max(1, round(len(x) ** 0.5))
        cut = len(x) // each * each
        inner = jax.checkpoint(lambda h, xy: jax.lax.scan(one, h, xy))
        parts = jax.tree.map(lambda a: a[:cut].reshape(-1, each, 1, 1), (x, y))
        h, found = jax.lax.scan(inner, h, parts)
        rest = jax.lax.scan(one, h, (x[cut:], y[cut:]))[1]
        return (found.sum() + rest.sum()) / len(x)

    gradient = jax.jit(jax.grad(loss))
    compiled: dict[int, Any] = {}

    def prepare(x: Tensor, y: Tensor) -> tuple[Any, Any]:
        given = jnp.asarray(x.numpy()), jnp.asarray(y.numpy())
        if len(x) not in compiled:
            compiled[len(x)] = gradient.lower(weights, *given).compile()
        return given

    def run(x: Tensor, y: Tensor) -> Tensor:
        given = prepare(x, y)
        return torch.tensor(jax.device_get(compiled[len(x)](weights, *given)["cell.W"]))

    run.prepare = prepare  # type: ignore[attr-defined]
    run(*_data(35))
    return run


def _high_mark() -> int:
    """Bytes: the most that this process has had."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def main(way: str, steps: int, how: str) -> None:
    """Run one way; the last line of what is printed is a `Run`."""
    torch.manual_seed(0)
    model = Model()
    make = _loop if how in ("loop", "checkpoint") else _jax if how in ("scan", "nested") else _ours
    run = make(model, how)
    x, y = _data(steps)
    if hasattr(run, "prepare"):
        run.prepare(x, y)
    model.zero_grad()
    with open("/proc/self/clear_refs", "w") as marks:
        marks.write("5")  # the high mark is what there is now
    before, began = _high_mark(), time.perf_counter()
    gradient = run(x, y)
    seconds = time.perf_counter() - began
    made = Run(way, steps, 1e6 * seconds / steps, _high_mark() - before, float(gradient.norm()))
    print(json.dumps(made.__dict__))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
