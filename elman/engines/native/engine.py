"""The engine that runs lowered programs."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from elman.caches import cached, listed
from elman.circuit import graphs
from elman.engines.base import Bundle, Carrier, Engine, Laid, LoopResult, PlanFunction, Runner, Stepper
from elman.engines.lookups import failed
from elman.engines.native import grouped, passes, stepping
from elman.engines.native.builder import Op
from elman.engines.native.extension import compiled, in_halves, isa, why_not_built
from elman.engines.native.lower import Lowered, lower
from elman.engines.native.stepping import in_order
from elman.engines.native.values import Unsupported, row_sizes
from elman.plan.form import Loop, LoopState, Plan

Tensor = torch.Tensor
_REAL = (torch.float32, torch.float64)
_threads = torch.get_num_threads
_like = torch.empty_like


@cached("products between stages, by instruction set and dtype", 16)
def _multiplier(name: str, dtype: torch.dtype) -> Any:
    return compiled.Multiplier(name, dtype is torch.float64)


@dataclass(frozen=True, eq=False)
class _Ready:
    """A loop that can run. widths: elements in a row of every constant, sequence and state; 0 for what has no rows."""

    interpreter: Any
    widths: tuple[int, ...]


class Native(Engine):
    """C++ on CPUs: float32 and float64, most operations; `supports()` says which not.

    instructions: the instruction set, by default the best of this machine.
    """

    name = "native"
    kind = "cpu"
    cheap_to_start = True
    has_passes = True

    def __init__(self, instructions: str | None = None) -> None:
        self.instructions = instructions or isa()
        self._loops: weakref.WeakKeyDictionary[Loop, _Ready | str] = weakref.WeakKeyDictionary()
        listed(f"loops of {self.name} ({self.instructions})", self._loops)

    def describe(self) -> str:
        halved = ", products of float32 in bfloat16" if self.instructions == "avx512" and in_halves() else ""
        return f"{self.name} ({self.instructions}{halved})"

    def supports(self, loop: Loop, device: torch.device) -> str | None:
        if device.type != "cpu":
            return f"it runs on CPUs, not on {device.type}"
        ready = self._ready(loop)
        return ready if isinstance(ready, str) else None

    def _ready(self, loop: Loop) -> _Ready | str:
        """The loop as a program, or why it cannot be one."""
        name = self.instructions
        if name is None:
            return why_not_built() or ""
        ready = self._loops.get(loop)
        if ready is None:
            try:
                ready = _made(loop, name)
            except Unsupported as reason:
                ready = f"it has no form for {reason}"
            self._loops[loop] = ready
        return ready

    def run(
        self,
        loop: Loop,
        values: Mapping[str, Tensor],
        batch_sizes: Sequence[int],
        reverse: bool,
        out: Mapping[str, Tensor],
    ) -> LoopResult:
        starts = [values[state.name] for state in loop.states]
        inputs = (*[values[name] for name in (*loop.constants, *loop.sequences)], *starts)
        batch = int(starts[0].shape[0]) if starts else max(batch_sizes, default=0)
        finals = self.runner(loop)(batch, batch_sizes, reverse, inputs, [out[name] for name in loop.emits])
        return LoopResult({state.name: final for state, final in zip(loop.states, finals, strict=True)}, {})

    def stage(
        self, graph: fx.Graph, arguments: Sequence[str], results: Sequence[str]
    ) -> Callable[..., tuple[Any, ...]]:
        real = [
            v.dtype
            for n in graph.nodes
            if isinstance(v := n.meta.get("val"), Tensor) and v.dtype.is_floating_point
        ]
        name = self.instructions
        if name is None or not real or any(dtype != real[0] for dtype in real) or real[0] not in _REAL:
            return super().stage(graph, arguments, results)
        return grouped.function(graph, arguments, results, _multiplier(name, real[0]), real[0])

    def stepper(self, loop: Loop, weights: str | None) -> Stepper | str:
        ready = self._ready(loop)
        if isinstance(ready, str):
            return ready
        return stepping.stepper(ready.interpreter, ready.widths, loop, weights)

    def carries(self, like: Tensor) -> bool:
        return self.instructions is not None and like.device.type == "cpu" and like.dtype in _REAL

    def carrier(self, like: Tensor, at: Tensor, of: Tensor | None, sizes: Sequence[int]) -> Carrier:
        run = compiled.Carrier(self.instructions or "", like.dtype is torch.float64, at, of, [*sizes])
        return lambda influence, jacobian, added: run(influence, jacobian, added, _threads())

    def passed(
        self, plan: Plan, ends: Sequence[str], single: bool, plain: PlanFunction, ragged: bool = False,
        laid: Laid | None = None, keeps: Bundle | None = None, reads: Bundle | None = None,
    ) -> PlanFunction | str:  # fmt: skip
        name = self.instructions
        assert name is not None

        def ready(loop: Loop) -> Any:
            program = self._ready(loop) if loop is plan.loop else _made(loop, name)
            if isinstance(program, str):
                raise Unsupported(program)
            return program.interpreter

        try:
            return passes.passed(plan, ends, single, name, ready, plain, ragged, laid, keeps, reads)
        except Unsupported as reason:
            return f"it has no form for {reason}"

    def runner(self, loop: Loop) -> Runner:
        ready, first_state = self._ready(loop), len(loop.constants) + len(loop.sequences)
        assert type(ready) is _Ready, ready
        run_loop, widths = ready.interpreter.run, ready.widths

        def run(
            batch: int, sizes: Sequence[int], reverse: bool, values: Sequence[Tensor], out: Sequence[Tensor]
        ) -> Sequence[Tensor]:
            steps = len(sizes)
            if steps and (sizes[0] != batch or sizes[-1] != batch):
                rows: list[int] | None = list(sizes)
            else:
                rows = None
            values, out, threads = tuple(values), tuple(out), _threads()
            finals = list(map(_like, values[first_state:]))
            error = run_loop(steps, batch, rows, reverse, values, None, out, finals, threads)
            if error is False:
                ordered, strides = in_order(values, widths)
                finals = [
                    torch.empty_like(v, memory_format=torch.contiguous_format) for v in ordered[first_state:]
                ]
                error = run_loop(steps, batch, rows, reverse, ordered, strides, out, finals, threads)
            if error:
                raise failed(*error)  # type: ignore[misc]
            return finals

        return run


def _made(loop: Loop, name: str) -> _Ready:
    return _prepared(loop, lower(loop, *compiled.panels(name)), name)


def _prepared(loop: Loop, program: Lowered, name: str) -> _Ready:
    numbers = {buffer: i for i, buffer in enumerate(program.buffers)}
    nothing = [-1] + [0] * (1 + compiled.DIMENSIONS)  # in the place of an operand
    width = {"real": 8 if program.real is torch.float64 else 4, "int": 8, "bool": 1}

    def flat(op: Op) -> list[int]:
        numbered = [compiled.CODES[op.code], int(op.wait), int(op.split), op.together, *op.size, op.k]
        for view, strides in zip(op.operands, op.strides, strict=True):
            if view is None:
                numbered += nothing
                continue
            root, inner = view.buffer.root()
            numbered += [numbers[root], inner + view.offset, *strides]
        return numbered + nothing * (compiled.OPERANDS - len(op.operands))

    inputs = {str(node.target): node.meta["val"] for node in loop.graph.nodes if node.op == "placeholder"}
    results = graphs.results_of(loop.graph)
    like = [inputs[name] if name in loop.rowed else None for name in loop.constants]
    like += [inputs[name] for name in loop.sequences]
    like += [inputs[s.name] if s.name in inputs else _fed(s, results) for s in loop.states]
    widths = tuple(0 if value is None else math.prod(row_sizes(value)) for value in like)
    interpreter = compiled.Interpreter(
        name, program.real is torch.float64,
        [flat(op) for op in program.prepare], [op.number for op in program.prepare],
        [flat(op) for op in program.ops], [op.number for op in program.ops],
        [[compiled.KINDS[b.kind], b.index, b.width, width[b.type], b.offset] for b in program.buffers],
        [list(state) for state in program.states], program.scratch_bytes, program.prepared_bytes, program.work,
        program.widest, len(loop.constants), len(loop.sequences), len(loop.emits), widths,
    )  # fmt: skip
    return _Ready(interpreter, widths)


def _fed(state: LoopState, results: Mapping[str, Any]) -> Any:
    """What a state that nobody reads looks like."""
    return results[state.next].meta["val"] if state.next is not None else None
