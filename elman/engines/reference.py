"""The reference engine: a Python loop over PyTorch operations. It runs any loop on any device, and says what is right."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from elman.circuit.form import ROWS
from elman.engines.base import Engine, LoopResult
from elman.engines.codegen import function
from elman.plan.form import Loop

Tensor = torch.Tensor


class Reference(Engine):
    """Plain PyTorch, one step after the other."""

    name = "reference"

    def __init__(self) -> None:
        self._steps: weakref.WeakKeyDictionary[Loop, Callable[..., tuple[Any, ...]]] = (
            weakref.WeakKeyDictionary()
        )

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
        step = self._steps.get(loop)
        if step is None:
            step = self._steps[loop] = _compiled(loop)
        steps = len(batch_sizes)
        even = steps == 0 or batch_sizes[0] == batch_sizes[-1]
        constants = [values[name] for name in loop.constants]
        rowed = [i for i, name in enumerate(loop.constants) if name in loop.rowed]
        sequences = [_cut(values[name], batch_sizes, even, name in loop.stepped) for name in loop.sequences]
        starts = [values[state.name] for state in loop.states]
        finals = [start.clone() for start in starts] if not even else list(starts)
        kept: list[list[Tensor]] = [[] for _ in loop.emits]
        sums: list[Tensor | None] = [None] * len(loop.sums)
        fed, count = len(loop.states), len(loop.emits)

        running = batch_sizes[-1 if reverse else 0] if steps else 0
        states = [start[:running] for start in starts] if not even else list(starts)
        given = constants
        for t in range(steps - 1, -1, -1) if reverse else range(steps):
            size = batch_sizes[t]
            if size != running:
                states = _resize(states, starts, finals, running, size)
                running = size
            if rowed and not even:
                given = [c[:size] if i in rowed else c for i, c in enumerate(constants)]
            made = step(*given, *[sequence[t] for sequence in sequences], *states, size)
            states = list(made[:fed])
            for store, value in zip(kept, made[fed : fed + count], strict=True):
                store.append(value)
            for i, value in enumerate(made[fed + count :]):
                before = sums[i]
                sums[i] = value if before is None else before + value
        for name, store in zip(loop.emits, kept, strict=True):
            if store:
                _write(out[name], store[::-1] if reverse else store, name in loop.stepped)
        ended = _ended(states, finals, running, even)
        return LoopResult(
            {state.name: value for state, value in zip(loop.states, ended, strict=True)},
            {name: _sum(loop, name, value) for name, value in zip(loop.sums, sums, strict=True)},
        )


def _compiled(loop: Loop) -> Callable[..., tuple[Any, ...]]:
    """The step as a function of constants, sequences, states and rows; states that are fed by zero get zeros."""
    names = [*loop.constants, *loop.sequences, *(state.name for state in loop.states), ROWS]
    fed = [state.next for state in loop.states]
    results = [name for name in fed if name is not None] + [*loop.emits, *loop.sums]
    raw = function(loop.graph, names, results)
    if None not in fed:
        return raw
    first_state = len(loop.constants) + len(loop.sequences)

    def step(*arguments: Any) -> tuple[Any, ...]:
        made = iter(raw(*arguments))
        zeros = [
            torch.zeros_like(arguments[first_state + i]) if n is None else next(made)
            for i, n in enumerate(fed)
        ]
        return (*zeros, *made)

    return step


def _cut(value: Tensor, batch_sizes: Sequence[int], even: bool, stepped: bool) -> Sequence[Tensor]:
    """A packed sequence, step by step."""
    if stepped:
        return value.unbind(0)
    if not batch_sizes:
        return ()
    if even:
        return value.reshape(len(batch_sizes), batch_sizes[0], *value.shape[1:]).unbind(0)
    return value.split(list(batch_sizes))


def _write(out: Tensor, values: list[Tensor], stepped: bool) -> None:
    """Put the values of all steps into a packed sequence."""
    if stepped:
        torch.stack(values, out=out)
    else:
        torch.cat(values, out=out)


def _resize(
    states: list[Tensor], starts: Sequence[Tensor], finals: list[Tensor], running: int, size: int
) -> list[Tensor]:
    """Rows that have ended leave their states in `finals`; rows that begin take their starting values."""
    if size < running:
        for state, final in zip(states, finals, strict=True):
            final[size:running] = state[size:running]
        return [state[:size] for state in states]
    return [torch.cat([state, start[running:size]]) for state, start in zip(states, starts, strict=True)]


def _ended(states: list[Tensor], finals: list[Tensor], running: int, even: bool) -> list[Tensor]:
    if even:
        return states
    for state, final in zip(states, finals, strict=True):
        final[:running] = state
    return finals


def _sum(loop: Loop, name: str, value: Tensor | None) -> Tensor:
    """A sum over no steps is zero."""
    if value is not None:
        return value
    out = next(node for node in loop.graph.nodes if node.op == "output").args[0]
    like = out[name].meta["val"]  # type: ignore[index]
    return torch.zeros([int(size) for size in like.shape], dtype=like.dtype, device=like.device)
