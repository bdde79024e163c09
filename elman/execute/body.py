"""Run one plan: draw the noise, pack the rows, go through the stages."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from elman import noise
from elman.circuit import graphs
from elman.circuit.form import ROWS, Kind
from elman.engines import choose
from elman.engines.codegen import function
from elman.layout import Timeline
from elman.plan.form import TIMELINE, Loop, Plan, Stage

Tensor = torch.Tensor


@dataclass(frozen=True)
class Call:
    """What one call of a circuit shares between its forward and its backward passes.

    steps, batch: T and B. seed: of the noise; drawn once per call from torch's default generator. engine: by name.
    """

    steps: int
    batch: int
    seed: int
    engine: str


@torch.no_grad()
def run(plan: Plan, call: Call, inputs: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """Run a plan without recording gradients.

    inputs: input port -> constant, sequence `[T, B, …]`, or starting state `[B, …]` (None for
        zeros); noise is drawn here.
    Returns output port -> sum, sequence `[T, B, …]`, or final state `[B, …]`.
    """
    circuit = plan.circuit
    timeline = Timeline(call.steps, call.batch, circuit.reverse)
    values: dict[str, Any] = {}
    for port in circuit.inputs:
        if port.kind is Kind.NOISE:
            drawn = noise.draw(port, noise.number(port), call.seed, 0, call.steps, call.batch)
            values[port.name] = timeline.pack(drawn) if port.rows else drawn
            continue
        value = inputs[port.name]
        if value is None:
            size = ((call.batch,) if port.rows else ()) + port.shape
            if port.kind is Kind.SEQUENCE:
                values[port.name] = torch.zeros((), dtype=port.dtype, device=port.device).expand(
                    (timeline.rows if port.rows else call.steps, *port.shape)
                )
                continue
            value = torch.zeros(size, dtype=port.dtype, device=port.device)
        elif port.kind is Kind.SEQUENCE and port.rows:
            value = timeline.pack(value)
        values[port.name] = value
    _stage(plan.once, values, call.batch, timeline)
    _stage(plan.before, values, timeline.rows, timeline)
    if plan.loop is not None:
        _loop(plan, plan.loop, call, timeline, values)
    _stage(plan.after, values, timeline.rows, timeline)
    outputs: dict[str, Tensor] = {}
    for out in circuit.outputs:
        value = values[plan.outputs[out.name]]
        packed = out.kind is Kind.SEQUENCE and plan.outputs[out.name] not in (
            plan.loop.stepped if plan.loop else ()
        )
        outputs[out.name] = timeline.unpack(value) if packed else value
    return outputs


def _stage(stage: Stage, values: dict[str, Any], rows: int, timeline: Timeline) -> None:
    compiled = _STAGES.get(stage)
    if compiled is None:
        inputs, outputs = stage.inputs(), stage.outputs()
        compiled = _STAGES[stage] = (
            function(stage.graph, (*inputs, ROWS, TIMELINE), outputs),
            inputs,
            outputs,
        )
    run_stage, inputs, outputs = compiled
    if outputs:
        made = run_stage(*[values[name] for name in inputs], rows, timeline)
        values.update(zip(outputs, made, strict=True))


_STAGES: weakref.WeakKeyDictionary[Stage, tuple[Callable[..., Any], tuple[str, ...], tuple[str, ...]]] = (
    weakref.WeakKeyDictionary()
)


@dataclass(frozen=True)
class _Kept:
    """A sequence that a loop writes: its width, and the state whose next values it holds, if it is one's."""

    name: str
    stepped: bool
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    state: str | None


_KEPT: weakref.WeakKeyDictionary[Loop, list[_Kept]] = weakref.WeakKeyDictionary()


def _kept(loop: Loop) -> list[_Kept]:
    """What a loop writes, worked out once."""
    found = _KEPT.get(loop)
    if found is None:
        results = graphs.results_of(loop.graph)
        delayed = {results[state.next]: state.name for state in loop.states if state.next is not None}
        found = _KEPT[loop] = []
        for name in loop.emits:
            like, stepped = results[name].meta["val"], name in loop.stepped
            shape = tuple(int(size) for size in (like.shape if stepped else like.shape[1:]))
            found.append(_Kept(name, stepped, shape, like.dtype, like.device, delayed.get(results[name])))
    return found


def _loop(plan: Plan, loop: Loop, call: Call, timeline: Timeline, values: dict[str, Any]) -> None:
    out: dict[str, Tensor] = {}
    for kept in _kept(loop):
        if kept.stepped:
            out[kept.name] = torch.empty((call.steps, *kept.shape), dtype=kept.dtype, device=kept.device)
        else:
            # A state's sequence gets room for the starting value beside it: its delay is then a view.
            start = values[kept.state] if kept.state is not None else None
            out[kept.name] = timeline.allocate(kept.shape, kept.dtype, kept.device, start)
    engine = choose(call.engine, loop, plan.circuit.inputs[0].device)
    result = engine.run(loop, values, timeline.batch_sizes, timeline.reverse, out)
    values.update(out)
    values.update({f"{name} final": value for name, value in result.finals.items()})
    values.update(result.sums)
