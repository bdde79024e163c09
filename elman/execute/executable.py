"""Run one plan: a function written for it takes the tensors of a call through the stages."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from elman import engines, noise
from elman.caches import cached
from elman.circuit.form import InPort, Kind
from elman.engines import codegen
from elman.engines.base import Bundle, Laid, PlanFunction, Runner, StageMaker
from elman.execute.emit import emit
from elman.execute.laid import packed, unpacked
from elman.plan.footprint import Counted, Footprint, footprint, handed
from elman.plan.form import Plan
from elman.plan.sink import sunk
from elman.plan.stepwise import with_views
from elman.segments import Layout
from elman.segments.segment import Memory
from elman.segments.timeline import Packing
from elman.trace.modes import constants_among
from elman.trace.outside import locked

Tensor = torch.Tensor


class Call(NamedTuple):
    """What one call of a circuit shares between its forward and its backward passes.

    steps, batch: T and B. seed: of the noise; drawn once per call, from the layer's generator. engine: see
    `elman.engines.choose`.
    packing: for rows of different lengths; sequences are then packed rows, `[N, …]` for `[T, B, …]` everywhere.
    level: how many vmaps of torch.func were going on when the seed was drawn; None until a door has asked.
    first: the number of its first step, where it is a segment of a call; with a packing, that knows it.
    memory: the budget of the call in bytes, or how long its segments are.
    layout: where users' sequences lie, if they are to be packed here, as a whole or a segment at a time. swaps: whether
        states change places with their rows.
    owner: under torch.compile, the program that the compiled graph keeps: what runs is then a registered operator.
    """

    steps: int
    batch: int
    seed: int
    engine: str | engines.Engine
    packing: Packing | None = None
    level: int | None = None
    first: int = 0
    memory: Memory = None
    layout: Layout | None = None
    swaps: bool = False
    owner: Any = None


class Executable:
    """A plan and, for each choice of an engine, the function that runs it.

    ends: for each output, "own" for a tensor of its own rather than a view, so that users may write into it where
        autograd can tell; "copy" for one in memory of its own; "" for whatever comes. By default "".
    single: for one step alone, whose sequences go in and come out as `[B, …]`.
    laid: what comes and goes as users have it in calls with a layout; by default nothing.
    keeps, reads: what goes out, or comes in, bundled; such a plan is run by what `as_pass` has made.
    """

    def __init__(
        self, plan: Plan, ends: Sequence[str] = (), single: bool = False, laid: Laid | None = None,
        keeps: Bundle | None = None, reads: Bundle | None = None,
    ):  # fmt: skip
        self.plan, self.single, self.laid, self.keeps, self.reads = plan, single, laid, keeps, reads
        self.ends = tuple(ends) or ("",) * len(plan.circuit.outputs)
        self._made: dict[tuple[str | engines.Engine, bool], PlanFunction] = {}
        self._packing: dict[str | engines.Engine, PlanFunction | None] = {}
        self._bytes: dict[tuple[str | engines.Engine, bool], Callable[[int, int, int], int]] = {}
        self._prepared: dict[str | engines.Engine, tuple[Plan, StageMaker, Runner | None]] = {}
        self._plain: dict[str | engines.Engine, PlanFunction] = {}  # what an engine's own takes the place of

    def run(self, call: Call, tensors: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        """Outputs in the order of the circuit's, for inputs in the order of the circuit's, noise left out.

        tensors: constants, sequences `[T, B, …]`, starting states `[B, …]`; None for zeros. Where the call has a
        layout, sequences are packed here and put back. What comes out has no history: the caller sees to it that
        autograd is off, or that no tensor wants a gradient.
        """
        if torch._C._len_torch_function_stack():  # a mode that changed the step has done so in its trace
            with torch._C.DisableTorchFunction():
                return self._run(call, tensors)
        if not isinstance(call.engine, str):  # an engine, as `engines.by_operations` says it
            with constants_among(tensors):
                return self._run(call, tensors)
        return self._run(call, tensors)

    def _run(self, call: Call, tensors: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        steps, batch, seed, engine, packing, _, first, _, layout, _, _ = call
        if layout is not None:
            return self._run_laid(call, layout, tensors)
        function = self._made.get((engine, packing is not None)) or self._function(
            engine, packing is not None
        )
        if packing is None:
            return function(steps, batch, seed, first, *tensors)
        return function(packing, seed, *tensors)

    def _run_laid(self, call: Call, layout: Layout, tensors: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        """The same on sequences as users have them."""
        assert self.laid is not None
        itself = self._packs_itself(call.engine) if call.packing is not None else None
        if itself is not None:
            return itself(layout, call.swaps, call.seed, *tensors)
        given = packed(layout, call.swaps, self.laid.inputs, tensors)
        put_back = unpacked(
            layout, call.swaps, self.laid.outputs, self._run(call._replace(layout=None), given)
        )
        # Not as views of what moved them: PyTorch lets nobody write into these.
        return tuple([t.detach() if t._is_view() else t for t in put_back])

    def function(self, engine: str | engines.Engine, ragged: bool = False) -> PlanFunction:
        """What runs the plan, made when it is first needed."""
        return self._made.get((engine, ragged)) or self._function(engine, ragged)

    @locked
    def _function(self, engine: str | engines.Engine, ragged: bool) -> PlanFunction:
        if (engine, ragged) not in self._made:
            passed = self._passed(engine, ragged)
            self._made[engine, ragged] = self._emitted(engine, ragged) if isinstance(passed, str) else passed
        return self._made[engine, ragged]

    @locked
    def as_pass(self, engine: str | engines.Engine) -> PlanFunction | None:
        """What runs the plan, made, as one function of its engine's own; None where it has none."""
        passed = self._passed(engine)
        if isinstance(passed, str):
            return None
        self._made[engine, False] = passed
        return passed

    def _packs_itself(self, engine: str | engines.Engine) -> PlanFunction | None:
        """What runs the plan, packs sequences and puts them back, as one function; None where there is none."""
        if engine in self._packing:
            return self._packing[engine]
        return self._find_packing(engine)

    @locked
    def _find_packing(self, engine: str | engines.Engine) -> PlanFunction | None:
        passed = self._passed(engine, True, self.laid)
        self._packing[engine] = None if isinstance(passed, str) else passed
        return self._packing[engine]

    def needs(self, call: Call) -> Footprint | Counted:
        """The bytes of the plan in calls like this one."""
        chosen = call.engine, call.packing is not None
        self.function(*chosen)
        counted = self._bytes.get(chosen)
        return footprint(self.plan) if counted is None else Counted(handed(self.plan.circuit), counted)

    @locked
    def _emitted(self, engine: str | engines.Engine, ragged: bool, drawn: bool = False) -> PlanFunction:
        return emit(*self.prepared(engine), self.ends, self.single, ragged, drawn)

    def _passed(
        self, wanted: str | engines.Engine, ragged: bool = False, laid: Laid | None = None
    ) -> PlanFunction | str:
        """The plan as its engine's own function, or why it is one of Python."""
        engine = self.engine(wanted)
        if engine is None:
            return "there is no loop"

        this = weakref.ref(self)  # the garbage collector does not look into what is compiled

        def plain(*args: Any) -> tuple[Tensor, ...]:
            executable = this()
            assert executable is not None
            if (function := executable._plain.get(wanted)) is None:
                function = executable._plain.setdefault(
                    wanted, executable._emitted(wanted, False, drawn=True)
                )
            return function(*args)

        prepared = self.prepared(wanted)[0]
        passed = engine.passed(prepared, self.ends, self.single, plain, ragged, laid, self.keeps, self.reads)
        if (counted := getattr(passed, "bytes", None)) is not None:
            self._bytes[wanted, ragged] = counted
        ports = self.plan.circuit.inputs_of(Kind.NOISE)
        if isinstance(passed, str) or not ports:
            return passed
        if laid is not None:
            return _drawing_laid(passed, ports)
        return _drawing_packed(passed, ports) if ragged else _drawing(passed, ports, self.single)

    def split(self, wanted: str | engines.Engine) -> str | None:
        """Why an engine that could run the plan in one call does not; None where it does, or where none could."""
        engine = self.engine(wanted)
        passed = None if engine is None or not engine.has_passes else self._passed(wanted)
        return passed if isinstance(passed, str) else None

    def engine(self, wanted: str | engines.Engine) -> engines.Engine | None:
        """The engine that runs the loop, None if there is no loop. Raises as `elman.engines.choose` does."""
        loop = self.plan.loop
        return None if loop is None else engines.choose(wanted, loop, self.plan.circuit.inputs[0].device)

    def prepared(self, wanted: str | engines.Engine) -> tuple[Plan, StageMaker, Runner | None]:
        """The plan as its engine likes it, and what runs its stages and its loop."""
        if wanted not in self._prepared:
            self._prepared[wanted] = self._prepare(wanted)
        return self._prepared[wanted]

    def _prepare(self, wanted: str | engines.Engine) -> tuple[Plan, StageMaker, Runner | None]:
        engine, plan = self.engine(wanted), self.plan
        if engine is None or plan.loop is None:
            return plan, codegen.function, None
        if engine.cheap_to_start:
            viewing = with_views(sunk(plan))
            assert viewing.loop is not None
            if engine.supports(viewing.loop, plan.circuit.inputs[0].device) is None:
                return viewing, engine.stage, engine.runner(viewing.loop)
        return plan, engine.stage, engine.runner(plan.loop)


def _drawing(passed: PlanFunction, ports: Sequence[InPort], single: bool) -> PlanFunction:
    """A pass that is given its noise."""

    def drawing(steps: int, batch: int, seed: int, first: int, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        drawn = [noise.draw(port, port.number, seed, first, first + steps, batch) for port in ports]
        if single:
            drawn = [numbers[0] for numbers in drawn]
        return passed(steps, batch, seed, first, *tensors, *drawn)

    return drawing


def _drawing_packed(passed: PlanFunction, ports: Sequence[InPort]) -> PlanFunction:
    """The same on packed rows."""

    def drawing(packing: Packing, seed: int, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        return passed(packing, seed, *tensors, *_drawn(packing, ports, seed))

    return drawing


def _drawing_laid(passed: PlanFunction, ports: Sequence[InPort]) -> PlanFunction:
    """The same where sequences are packed on the way."""

    def drawing(layout: Layout, swaps: bool, seed: int, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        assert layout.packing is not None
        return passed(layout, swaps, seed, *tensors, *_drawn(layout.packing, ports, seed))

    return drawing


def _drawn(packing: Packing, ports: Sequence[InPort], seed: int) -> list[Tensor]:
    row, step = packing.first_row, packing.first_step
    return [
        noise.draw_rows(port, port.number, seed, row, row + packing.rows)
        if port.rows
        else noise.draw(port, port.number, seed, step, step + packing.steps, packing.batch)
        for port in ports
    ]


@cached("plans run by the names of their ports", 64)
def _executable(plan: Plan) -> Executable:
    return Executable(plan)


@torch.no_grad()
def run(plan: Plan, call: Call, inputs: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """Run a plan by the names of its ports, for whoever is in no hurry; gradients are not recorded.

    inputs: input port -> constant, sequence `[T, B, …]`, or starting state `[B, …]` (None for
        zeros); noise is drawn here.
    Returns output port -> sum, sequence `[T, B, …]`, or final state `[B, …]`.
    """
    tensors = [inputs[port.name] for port in plan.circuit.inputs if port.kind is not Kind.NOISE]
    outputs = _executable(plan).run(call, tensors)
    return {port.name: value for port, value in zip(plan.circuit.outputs, outputs, strict=True)}
