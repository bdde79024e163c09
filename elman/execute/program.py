"""A circuit made ready to run: its plans, each made when it is first needed and kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from elman import engines
from elman.adjoint import adjoint, carrying_on, expose
from elman.caches import Recent, listed_in
from elman.circuit.form import Circuit, InPort, Kind, OutPort, Wire
from elman.circuit.rows import carries
from elman.circuit.verdict import ROWWISE, verdict
from elman.engines.base import Laid
from elman.errors import ElmanError, NotSupported
from elman.execute.executable import Call, Executable
from elman.execute.laid import kinds_of
from elman.execute.training_plans import TrainingPlans, sharing, training_plans
from elman.plan import Plan, plan
from elman.plan.stepwise import stepwise
from elman.tangent import tangent
from elman.trace.outside import LOCK, derived, locked, outside
from elman.vmapped import differing, vmapped

Tensor = torch.Tensor


class Examples(NamedTuple):
    """What a program for several examples is made of: see `elman.vmapped`."""

    program: Program
    size: int
    over: frozenset[str]
    noise: bool
    summed: frozenset[str] = frozenset()


def _derived(program: Program) -> int:
    """What was made out of a program when it was first needed."""
    kept = program._training, program._adjoints, program._tangents, program._vmapped, program.schedules
    return sum(map(len, kept))


_counted = listed_in("plans and programs derived from programs", _derived)


class Program:
    """A circuit and its plans. Tensors are listed in the order of `inputs` and `outputs`.

    bare: outputs come as they are, which may share memory: for whoever puts them elsewhere. examples: where it is the
    program of another one for several examples.
    """

    def __init__(
        self, circuit: Circuit, is_adjoint: bool = False, bare: bool = False, examples: Examples | None = None
    ):
        self.circuit, self._is_adjoint, self._bare, self._examples = circuit, is_adjoint, bare, examples
        self.inputs: tuple[InPort, ...] = tuple(p for p in circuit.inputs if p.kind is not Kind.NOISE)
        self.outputs: tuple[OutPort, ...] = circuit.outputs
        self._training: dict[frozenset[str], TrainingPlans] = {}
        self._needed: dict[tuple[bool, ...], TrainingPlans] = {}
        self._stepping: dict[str | engines.Engine, bool] = {}
        self._adjoints: dict[frozenset[str], Program] = {}
        self._vmapped = Recent(8)
        self._tangents: dict[frozenset[str], Program] = {}
        self.schedules = Recent(16)  # of calls under a budget: see `elman.execute.segmented`
        _counted(self)
        self.entries: dict[
            tuple[frozenset[str], bool], Any
        ] = {}  # names for compiled graphs: see `elman.execute.operator`
        self.derived: dict[str, Any] = {}  # entries of what was derived from it for compiled graphs

    @derived
    def plan(self) -> Plan:
        """The plan for a call that wants no gradient."""
        with outside():
            return plan(self.circuit)

    @derived
    def has_noise(self) -> bool:
        return any(port.kind is Kind.NOISE for port in self.circuit.inputs)

    @derived
    def carrying(self) -> tuple[bool, ...]:
        """For each output, whether gradients flow through it."""
        if self._examples is not None:
            return self._examples.program.carrying
        if (
            self.circuit.recorded().dual
        ):  # to say it exactly would take the trace of a backward that few ask for
            return tuple(
                self.circuit.wire(out.wire).meta["val"].dtype.is_floating_point for out in self.outputs
            )
        joint = self.circuit.recorded().joint
        flowing = {Wire.input(port.name) for port in self.inputs if port.differentiable}
        flowing |= {Wire.result(name) for name in joint.cotangents}
        return tuple(out.wire in flowing for out in self.outputs)

    @derived
    def carries_all(self) -> bool:
        return all(self.carrying)

    def _carrying(self, wants: frozenset[str]) -> tuple[bool, ...]:
        """For each output, whether gradients flow through it where the inputs `wants` alone want one."""
        if self._is_adjoint or wants >= {port.name for port in self.inputs if port.differentiable}:
            return self.carrying
        circuit, reached = self.circuit, wants
        while True:
            results = {name for name, leads in circuit.recorded().joint.flowing.items() if leads & reached}
            open_ = {Wire.input(name) for name in reached} | {Wire.result(name) for name in results}
            fed = {
                p.name
                for p in circuit.inputs
                if p.kind is Kind.STATE and p.differentiable and p.next in open_
            }
            if fed <= reached:
                break
            reached |= fed  # at the next step, this state brings a gradient with it
        return tuple(
            flows and out.wire in open_ for out, flows in zip(self.outputs, self.carrying, strict=True)
        )

    def training(self, wants: frozenset[str]) -> TrainingPlans:
        """The plans for a call in which the inputs `wants` require gradients."""
        training = self._training.get(wants)
        if training is None:
            with LOCK:
                training = self._training.get(wants)
                if training is None:
                    silent = (i for i, flows in enumerate(self._carrying(wants)) if not flows)
                    training = training_plans(self.circuit, wants, self.ends, self.laid, self._bare, silent)
                self._training[wants] = training
        return training

    def training_for(self, needed: Sequence[bool]) -> TrainingPlans:
        """The same, given for every input whether its gradient is needed."""
        training = self._needed.get(needed)  # type: ignore[call-overload]
        if training is None:
            names = (p.name for p, need in zip(self.inputs, needed, strict=True) if need and p.differentiable)
            training = self._needed[tuple(needed)] = self.training(frozenset(names))
        return training

    @derived
    def carrying_on(self) -> Program:
        """The same with what every delay hands on as outputs, to be run a segment at a time."""
        return Program(carrying_on(self.circuit), self._is_adjoint, bare=True)

    @derived
    def exposed(self) -> Program:
        """The same with h(t-1) of every state as outputs, for derivatives of the gradient."""
        with outside():
            if self._examples is not None:
                return self._examples.program.exposed._for(self._examples)
            return Program(expose(self.circuit))

    def adjoint(self, wants: frozenset[str]) -> Program:
        """The program of the adjoint circuit."""
        program = self._adjoints.get(wants)
        if program is None:
            with outside():
                program = self._adjoints.get(wants)
                if program is None:
                    program = self._adjoints[wants] = self._adjoint(wants)
        return program

    def _adjoint(self, wants: frozenset[str]) -> Program:
        if self._examples is None:
            program = Program(adjoint(self.circuit, wants), is_adjoint=True)
            _expect_linear(program, self.circuit.name)
            return program
        # The gradient of what all examples share is a sum over them, and the cotangent of such a sum is shared.
        of = self._examples
        program = of.program.adjoint(wants)
        given = {port.name for port in program.inputs if port.cotangent_of not in {None, *of.summed}}
        summed = {out.name for out in program.outputs if out.gradient_of not in self.differing}
        return program._for(of._replace(over=self.differing | given, summed=frozenset(summed)))

    def tangent(self, changing: frozenset[str]) -> Program:
        """The program of the tangent circuit. changing: the inputs that have a direction."""
        program = self._tangents.get(changing)
        if program is None:
            with outside():
                program = self._tangents.get(changing)
                if program is None:
                    program = self._tangents[changing] = self._tangent(changing)
        return program

    def _tangent(self, changing: frozenset[str]) -> Program:
        of = self._examples
        if of is None:
            return Program(tangent(self.circuit, changing))
        program = of.program.tangent(changing)
        along = {port.name for port in program.inputs if port.tangent_of in self.differing}
        summed = {out.name for out in program.outputs if out.tangent_of in of.summed}
        return program._for(of._replace(over=self.differing | along, summed=frozenset(summed)))

    # --- several examples at once -------------------------------------------------------------------------------------

    @derived
    def differing(self) -> frozenset[str]:
        """The inputs that differ between examples, where it is a program for several."""
        of = self._examples
        return frozenset() if of is None else differing(of.program.circuit, of.over, of.noise)

    @derived
    def rowed(self) -> tuple[bool, ...]:
        """For each output, whether it has rows."""
        return tuple(carries(self.circuit.wire(out.wire).meta["val"]) for out in self.outputs)

    @derived
    def rows_apart(self) -> bool:
        """Whether what comes out for a row is made of what goes in for it alone, and without random numbers: whether
        examples may be rows."""
        nodes = [node for node in self.circuit.graph.nodes if node.op == "call_function"]
        return not self.has_noise and all(self.rowed) and all(verdict(node) == ROWWISE for node in nodes)

    def vmapped(self, size: int, over: frozenset[str], noise: bool) -> Program | NotSupported:
        """The program for several examples, of which the inputs `over` are one each; or why there is none.

        noise: whether each example draws its own random numbers.
        """
        key = size, over, noise
        program = self._vmapped.get(key)
        if program is None:
            with outside():
                program = self._vmapped.get(key)
                if program is None:
                    try:
                        program = self._for(Examples(self, size, over, noise))
                    except NotSupported as reason:
                        program = reason.with_traceback(None)
                    self._vmapped.keep(key, program)
        return program

    def _for(self, examples: Examples) -> Program:
        of = examples._replace(program=self)
        circuit = vmapped(self.circuit, of.size, of.over, of.noise, of.summed)
        return Program(circuit, self._is_adjoint, examples=of)

    # --- running without gradients ------------------------------------------------------------------------------------

    def run(self, call: Call, tensors: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        """Outputs for inputs, without gradients (see `Executable.run`)."""
        return self.executable(call).run(call, tensors)

    def executable(self, call: Call) -> Executable:
        """The plan that such a call runs by."""
        return self._single if call.steps == 1 and self.steps_by_loop(call.engine) else self.whole

    def step(self, call: Call, tensors: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        """The same for a single step, whose sequences are `[B, …]`."""
        return self.single.run(call, tensors)

    def steps_by_loop(self, engine: str | engines.Engine) -> bool:
        """Whether a single step is to be run as a loop that everything stands in.

        That is one call of an engine whose operations cost nothing to start; with another it would be calls of PyTorch
        all the same.
        """
        by_loop = self._stepping.get(engine)
        if by_loop is None:
            by_loop = self._stepping[engine] = self._can_step_by_loop(engine)
        return by_loop

    @locked
    def _can_step_by_loop(self, wanted: str | engines.Engine) -> bool:
        try:
            usual = self.whole.engine(wanted)
            if usual is None or not usual.cheap_to_start:
                return False
            chosen = self._single.engine(wanted)
        except NotSupported:  # it runs the usual loop; or says why not, when it is asked to
            return False
        return chosen is not None and chosen.cheap_to_start

    @derived
    def whole(self) -> Executable:
        """The plan for a call that wants no gradient, ready to run."""
        return Executable(self.plan, self.ends, laid=self.laid)

    @derived
    def laid(self) -> Laid:
        """What comes and goes as users have it in calls with a layout."""
        return Laid(kinds_of(self.inputs), kinds_of(self.outputs))

    @derived
    def _single(self) -> Executable:
        return Executable(stepwise(self.circuit), self.ends, laid=self.laid)

    @derived
    def single(self) -> Executable:
        """The plan of one step that everything stands in the loop of, ready to run."""
        return Executable(self._single.plan, self.ends, single=True)

    @derived
    def ends(self) -> tuple[str, ...]:
        """What `Executable` has to do to each output before users get it."""
        if self._bare:
            return ("",) * len(self.outputs)
        return tuple("copy" if shared else "own" for shared in sharing(self.circuit))


_SCALE = 2.0**13  # a power of two: what is linear scales with it to the last bit


def _expect_linear(program: Program, name: str) -> None:
    """Refuse an adjoint that is not linear in the gradients that come in, before it is differentiated.

    A custom backward may clip them. Then a step's gradient is not the sum of what each of its results brings, of which
    second derivatives are made. One step on random numbers tells; where they are none that it works on, nothing does.
    """
    if any(port.device.type == "meta" for port in program.inputs):
        return
    generator = torch.Generator().manual_seed(0)
    results: list[tuple[Tensor, ...]] = []
    tensors: list[Tensor] = []
    for port in program.inputs:
        lead = ([1] if port.kind is Kind.SEQUENCE else []) + ([2] if port.rows else [])
        size = (*lead, *port.shape)
        if port.dtype.is_floating_point or port.dtype.is_complex:
            tensors.append(torch.randn(size, generator=generator, dtype=port.dtype).to(port.device))
        else:
            tensors.append(torch.zeros(size, dtype=port.dtype, device=port.device))
    with torch.no_grad():
        for scale in (1.0, _SCALE):
            given = [
                t * scale if port.kind is Kind.STATE or port.cotangent_of is not None else t
                for port, t in zip(program.inputs, tensors, strict=True)
            ]
            try:
                results.append(program.run(Call(1, 2, 0, "reference"), given))
            except (ElmanError, RuntimeError):  # an index made of floats, a matrix that has to be definite
                return
    for once, scaled in zip(*results, strict=True):
        finite = bool(once.isfinite().all() and scaled.isfinite().all())
        if finite and not torch.allclose(scaled, once * _SCALE, rtol=1e-3, atol=0):
            raise NotSupported(
                what="the backward pass of the cell is not linear in the gradient that comes in (it may clip it)",
                where=name, expected="for derivatives of the gradient, one that scales with what it is given",
                mend="leave create_graph=True away, or clip the gradient after backward()",
            )  # fmt: skip
