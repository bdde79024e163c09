"""A program whose steps run one by one, as an engine keeps it ready: weights packed once, states where they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from elman import engines
from elman.circuit import graphs
from elman.circuit.form import ROWS, InPort, Kind
from elman.engines.base import StageMaker, Stepper
from elman.errors import NotSupported
from elman.execute.program import Program
from elman.plan.form import TIMELINE, Plan, Stage, final_of
from elman.trace.outside import locked

Tensor = torch.Tensor


@dataclass(frozen=True, eq=False)
class Stepping:
    """A program's steps. Tensors are listed in the order of its `inputs`.

    stepper: what runs them. sequences: for each sequence of its loop, the place of its input, or its port if it is
    noise. states: the places of the inputs that its states are. emits: for each output, which of the emits it is.
    """

    stepper: Stepper
    sequences: tuple[int | InPort, ...]
    states: tuple[int, ...]
    emits: dict[int, int]
    _constants: tuple[str, ...]
    _names: tuple[str, ...]
    _once: Callable[..., tuple[Any, ...]] | None
    _read: tuple[str, ...]
    _made: tuple[str, ...]

    def load(
        self, tensors: Sequence[Tensor | None], rows: int, sources: Sequence[tuple[Any, ...]],
        unchanged: Callable[[], bool],
    ) -> None:  # fmt: skip
        """Take the program's constants, for as many rows: what depends on them alone is computed now."""
        values: dict[str, Any] = dict(zip(self._names, tensors, strict=True))
        if self._once is not None:
            results = self._once(*[values[name] for name in self._read], rows, None)
            values.update(zip(self._made, results, strict=True))
        self.stepper.load([values[name] for name in self._constants], sources, unchanged)


@locked
def stepping(program: Program, wanted: str | engines.Engine, weights: str | None) -> Stepping | str:
    """A program's steps as an engine keeps them ready, or why there is nothing of that kind.

    Raises InputError for an engine that there is not, NotSupported for one that cannot run the loop.
    """
    executable = program.single
    engine = executable.engine(wanted)
    plan, make, _ = executable.prepared(wanted)
    if engine is None or plan.loop is None:
        return "the step has no loop"
    aliases, computed = {}, []
    for stage in plan.stages():
        for name, node in graphs.results_of(stage.graph).items():
            if node.op == "placeholder":
                if name != str(node.target):
                    aliases[name] = str(node.target)
            elif stage is plan.once:
                computed.append(name)
            else:
                return f"'{name}' is computed {stage.name} the loop"
    stepper = engine.stepper(plan.loop, weights)
    if isinstance(stepper, str):
        return stepper
    return _joined(program, plan, make, stepper, aliases, tuple(computed))


def _joined(
    program: Program, plan: Plan, make: StageMaker, stepper: Stepper, aliases: dict[str, str], computed: tuple[str, ...]
) -> Stepping | str:  # fmt: skip
    loop, names = plan.loop, tuple(port.name for port in program.inputs)
    assert loop is not None

    def source(name: str) -> str:
        while name in aliases:
            name = aliases[name]
        return name

    noises = {port.name: port for port in program.circuit.inputs if port.kind is Kind.NOISE}
    try:
        sequences = tuple(noises.get(source(n)) or names.index(source(n)) for n in loop.sequences)
        states = tuple(names.index(state.name) for state in loop.states)
    except ValueError as error:
        return f"something that the loop reads is no input of the step: {error}"
    wanted = [i for i, port in enumerate(program.inputs) if port.kind is Kind.STATE]
    if sorted(states) != wanted:
        return "a state is no delay of the loop"
    emits: dict[int, int] = {}
    for i, port in enumerate(program.outputs):
        value = source(plan.outputs[port.name])
        if port.kind is Kind.SEQUENCE:
            if value not in loop.emits or loop.emits.index(value) in emits.values():
                return f"'{port.path}' is nothing of its own that the loop makes"
            emits[i] = loop.emits.index(value)
        elif value != final_of(str(port.state)):
            return f"'{port.path}' is not made by the loop"
    if len(emits) != len(loop.emits):
        return "the loop makes more than the step gives out"
    once, read = None, _reads(plan.once)
    if computed:
        once = make(plan.once.graph, (*read, ROWS, TIMELINE), computed)
    constants, read = tuple(map(source, loop.constants)), tuple(map(source, read))
    return Stepping(stepper, sequences, states, emits, constants, names, once, read, computed)


def _reads(stage: Stage) -> tuple[str, ...]:
    """The inputs that an operation of a stage reads."""
    read = {
        str(node.target) for node in stage.graph.nodes if node.op == "placeholder"
        if any(user.op != "output" for user in node.users)
    }  # fmt: skip
    return tuple(name for name in stage.inputs() if name in read)


def draw(port: InPort, rows: int, generator: torch.Generator | None) -> Tensor:
    """The noise of a step."""
    make = torch.rand if port.draw == "uniform" else torch.randn
    size = (rows, *port.shape) if port.rows else port.shape
    return make(size, dtype=port.dtype, device=port.device, generator=generator)


def expect_narrow(dtype: torch.dtype, weights: str | None) -> None:
    """Raise NotSupported for weights that a cell of this dtype cannot have."""
    if weights is not None and dtype is not torch.float32:
        raise NotSupported(
            what="weights in fewer bits are those of cells in float32", where="weights=",
            got=f"{weights!r} and {dtype}", mend="convert the cell with .float(), or leave weights= away",
        )  # fmt: skip
