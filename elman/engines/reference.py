"""The reference engine: a Python loop over PyTorch operations, on any device. It defines what is right."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from elman.caches import listed
from elman.circuit.form import ROWS
from elman.engines.base import Engine, LoopResult
from elman.engines.codegen import repeated
from elman.plan.form import Loop

Tensor = torch.Tensor


class Reference(Engine):
    """Plain PyTorch, one step after the other."""

    name = "reference"
    by_operations = True

    def __init__(self) -> None:
        self._loops: weakref.WeakKeyDictionary[Loop, Callable[..., tuple[Any, ...]]] = (
            weakref.WeakKeyDictionary()
        )
        listed(f"loops of {self.name}", self._loops)

    def describe(self) -> str:
        return self.name

    def supports(self, loop: Loop, device: torch.device) -> str | None:
        return None

    def run(
        self,
        loop: Loop,
        values: Mapping[str, Tensor],
        batch_sizes: Sequence[int],
        reverse: bool,
        out: Mapping[str, Tensor],
    ) -> LoopResult:
        run_steps = self._loops.get(loop)
        if run_steps is None:
            run_steps = self._loops[loop] = _compiled(loop)
        even = not batch_sizes or batch_sizes[0] == batch_sizes[-1]
        constants = [values[name] for name in loop.constants]
        # What each step reads and writes, in the order in which the steps run.
        way = slice(None, None, -1 if reverse else 1)
        read = [_cut(values[name], batch_sizes, even, name in loop.stepped)[way] for name in loop.sequences]
        written = [_cut(out[name], batch_sizes, even, name in loop.stepped)[way] for name in loop.emits]
        starts = [values[state.name] for state in loop.states]
        sums: Sequence[Tensor | None] = [None] * len(loop.sums)

        if even:
            steps, rows = len(batch_sizes), batch_sizes[0] if batch_sizes else 0
            ends: tuple[Any, ...] = (*starts, *sums)
            if steps:
                ends = run_steps(steps, rows, *constants, *read, *written, *ends)
            ended = [value.clone() for value in ends[: len(starts)]]  # they may lie in `out`
            sums = ends[len(starts) :]
        else:
            ended = [start.clone() for start in starts]
            running = 0 if reverse else batch_sizes[0]
            states = [start[:running] for start in starts]
            for first, stop, rows in _stretches(batch_sizes[way]):
                states = _resize(states, starts, ended, running, rows)
                running = rows
                given = [
                    value[:rows] if name in loop.rowed else value
                    for name, value in zip(loop.constants, constants, strict=True)
                ]
                items = [sequence[first:stop] for sequence in (*read, *written)]
                ends = run_steps(stop - first, rows, *given, *items, *states, *sums)
                states, sums = list(ends[: len(states)]), ends[len(states) :]
            _resize(states, starts, ended, running, 0)
        return LoopResult(
            {state.name: value for state, value in zip(loop.states, ended, strict=True)},
            {name: _sum(loop, name, value) for name, value in zip(loop.sums, sums, strict=True)},
        )


def _compiled(loop: Loop) -> Callable[..., tuple[Any, ...]]:
    """The loop as a function that runs many steps of the same number of rows."""
    states = {state.name: state.next for state in loop.states}
    return repeated(loop.graph, loop.constants, loop.sequences, states, loop.emits, loop.sums, ROWS)


def _stretches(sizes: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """(first step, step after the last, rows) of every stretch of steps with the same number of rows."""
    first = 0
    for rows, stretch in itertools.groupby(sizes):
        stop = first + len(list(stretch))
        yield first, stop, rows
        first = stop


def _cut(value: Tensor, batch_sizes: Sequence[int], even: bool, stepped: bool) -> Sequence[Tensor]:
    """A packed sequence, step by step, as views."""
    if stepped:
        return value.unbind(0)
    if not batch_sizes:
        return ()
    if even:
        return value.view(len(batch_sizes), batch_sizes[0], *value.shape[1:]).unbind(0)
    return value.split(list(batch_sizes))


def _resize(
    states: list[Tensor], starts: Sequence[Tensor], finals: list[Tensor], running: int, size: int
) -> list[Tensor]:
    """Rows that have ended leave their states in `finals`; rows that begin take their starting values."""
    if size < running:
        for state, final in zip(states, finals, strict=True):
            final[size:running] = state[size:running]
        return [state[:size] for state in states]
    return [torch.cat([state, start[running:size]]) for state, start in zip(states, starts, strict=True)]


def _sum(loop: Loop, name: str, value: Tensor | None) -> Tensor:
    """A sum over no steps is zero."""
    if value is not None:
        return value
    out = next(node for node in loop.graph.nodes if node.op == "output").args[0]
    like = out[name].meta["val"]  # type: ignore[index]
    return torch.zeros([int(size) for size in like.shape], dtype=like.dtype, device=like.device)
