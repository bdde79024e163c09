"""What an engine is: it runs the loop of a plan, forward in whatever direction it is given; it knows no gradients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import fx

from elman.circuit import graphs
from elman.circuit.form import Kind
from elman.engines import codegen
from elman.plan.form import Loop, Plan

Tensor = torch.Tensor


@dataclass(frozen=True)
class LoopResult:
    """finals: state -> its value after each row's last step, [B, …]. sums: result -> its sum over the steps."""

    finals: dict[str, Tensor]
    sums: dict[str, Tensor]


# (batch, batch_sizes, reverse, values, out) -> final states and sums, in the order of the loop.
#
# values: constants, sequences and starting states in the order of the loop; out: memory for the emits. Where every step
# has B rows, a sequence or an emit may have the shape [T, B, …] if it is contiguous: that is the same memory.
Runner = Callable[[int, Sequence[int], bool, Sequence[Tensor], Sequence[Tensor]], Sequence[Tensor]]


Kinds = tuple[Kind | None, ...]


class Laid(NamedTuple):
    """What of a plan comes, and goes, as users have it: of each input, noise left out, and of each output, whether it
    is one of their sequences or states; None for what lies as the plan has it."""

    inputs: Kinds
    outputs: Kinds


@dataclass
class Bundle:
    """What a forward pass keeps for a backward pass, in as few tensors as an engine can do with: see `Engine.passed`.

    kept: output of the one -> input of the other. tensors: those that the forward pass makes of these, and lies: where
    each input lies in them, in the engine's words.
    """

    kept: Mapping[str, str]
    tensors: list[Any] = field(default_factory=list)
    lies: dict[str, Any] = field(default_factory=dict)


class Stepper(Protocol):
    """A loop that runs one step after another: what is made of its constants is made once, and its states stay here."""

    def load(
        self,
        constants: Sequence[Tensor],
        sources: Sequence[tuple[Any, ...]],
        unchanged: Callable[[], bool],
    ) -> None:
        """Take the loop's constants, in its order, and make what is made of them.

        sources: what constants are made of, as (dict, key, tensor) where the dict may come to hold another one, else
        (None, None, tensor); or (dict, key, value) for another value that has to stay, (dict, key) where there is
        none, and (None, function, answer) for what a function has to say. unchanged: whether everything else is as it
        was.
        """
        ...

    def fresh(self) -> bool:
        """Whether all that `load` was given is as it was, as far as that can be seen."""
        ...

    def rows(self) -> int: ...

    def resize(self, rows: int) -> None:
        """Have so many rows: the first ones stay as they are, new ones have to be written."""
        ...

    def read(self, state: int, first: int, count: int, to: Tensor) -> None:
        """Copy rows of a state, by its number in the loop, into a contiguous tensor."""
        ...

    def write(self, state: int, first: int, count: int, source: Tensor) -> None:
        """Copy a contiguous tensor into rows of a state."""
        ...

    def drop(self, rows: Sequence[int]) -> None:
        """Go on without these rows, ascending; those behind them move up."""
        ...

    def step(self, xs: Any, out: Any) -> Any:
        """One step: the sequences' values as a tuple, or one by itself, tensors or arrays -> the emits, alike.

        out: memory for the emits, or None. Gives False, and has done nothing, where `fresh` is not true or anything is
        not of the form that the loop was made for. Raises what `elman.engines.lookups.failed` makes.
        """
        ...


# (steps, batch, seed, first, *inputs) -> outputs, of a plan: see `elman.execute.emit`.
PlanFunction = Callable[..., tuple[torch.Tensor, ...]]


# (graph, names of arguments, names of results) -> the function of a stage beside the loop.
StageMaker = Callable[[fx.Graph, Sequence[str], Sequence[str]], Callable[..., tuple[Any, ...]]]


# (M [B, blocks, units, columns], J [B, blocks, units, units], D [B, …]), all of which lie in order.
Carrier = Callable[[Tensor, Tensor, Tensor], None]


class Engine(ABC):
    """Runs loops. Engines are stateless for the user: the same loop and values give the same bits."""

    name: str
    # The type of device that it runs on; None for any.
    kind: str | None = None
    # Whether it may have passes of its own: see `passed`. And whether these hold memory between calls.
    has_passes = False
    holds_memory = False
    # Whether an operation of a loop costs nothing to start: cheap ones then run there, not on all rows before it.
    cheap_to_start = False
    # Whether it computes by PyTorch's operations alone, which modes see and tensors of whatever class know.
    by_operations = False

    @abstractmethod
    def describe(self) -> str:
        """Its name, and what it makes use of on this machine."""

    @abstractmethod
    def supports(self, loop: Loop, device: torch.device) -> str | None:
        """None if the engine can run this loop on this device, else the reason why not."""

    @abstractmethod
    def run(
        self,
        loop: Loop,
        values: Mapping[str, Tensor],
        batch_sizes: Sequence[int],
        reverse: bool,
        out: Mapping[str, Tensor],
    ) -> LoopResult:
        """Run all steps.

        values: constants; sequences, packed `[N, …]` (or `[T, …]` without rows); starting values of states `[B, …]`.
        batch_sizes: rows at each step, never growing: rows 0 … batch_sizes[t]-1 run at step t.
        reverse: from the last step to the first. A row then starts, from its starting value, at its last step.
        out: one tensor for each of `loop.emits`, packed, to write every step's value into.
        """

    def stage(
        self, graph: fx.Graph, arguments: Sequence[str], results: Sequence[str]
    ) -> Callable[..., tuple[Any, ...]]:
        """A stage before or after the loop as a function of its arguments, both by name."""
        return codegen.function(graph, arguments, results)

    def stepper(self, loop: Loop, weights: str | None) -> Stepper | str:
        """The loop to be run one step after another; or why this engine has no such thing.

        weights: None, "bfloat16" or "int8": the numbers that constant factors of products are kept in.
        """
        return f"the {self.name} engine keeps nothing from one step to the next"

    def carries(self, like: Tensor) -> bool:
        """Whether it has `carrier` for numbers like these."""
        return False

    def carrier(self, like: Tensor, at: Tensor, of: Tensor | None, sizes: Sequence[int]) -> Carrier:
        """M = J M + D in place: what learning forward in time carries along.

        at, of: D is D[of[i]] at place at[i] of a row of M, and zero elsewhere; of None: i itself. sizes: (B, blocks,
        units, columns, numbers of a row of D).
        """
        raise NotImplementedError

    def passed(
        self, plan: Plan, ends: Sequence[str], single: bool, plain: PlanFunction, ragged: bool = False,
        laid: Laid | None = None, keeps: Bundle | None = None, reads: Bundle | None = None,
    ) -> PlanFunction | str:  # fmt: skip
        """A plan as one function of this engine's own, whose loop it supports; or why it cannot be one.

        ends, single, ragged: as `elman.execute.emit.emit` takes them, whose function it takes the place of; the
        numbers of noise are inputs behind all others. plain: that function for rows of one length.
        laid: what of a ragged plan comes and goes as users have it: `(layout, swaps, seed, *inputs) -> outputs`, see
        `elman.execute.executable.Call`.
        keeps: what of the outputs goes out bundled, behind all others; it is told where. reads: what comes in that way,
        behind all inputs but noise, once another plan has kept it. Both for calls that have a step and a row.
        The function may have `bytes`: `(steps, batch, rows) -> bytes` that a call has at once beside its inputs.
        """
        return "its stages are calls of PyTorch"

    def runner(self, loop: Loop) -> Runner:
        """`run` without names, for whoever runs the same loop again and again."""
        names = (*loop.constants, *loop.sequences, *(state.name for state in loop.states))
        results = graphs.results_of(loop.graph)
        inputs = {str(node.target): node for node in loop.graph.nodes if node.op == "placeholder"}
        # Dimensions of what is packed.
        depth = {name: inputs[name].meta["val"].dim() for name in loop.sequences if name not in loop.stepped}
        depth |= {name: results[name].meta["val"].dim() for name in loop.emits if name not in loop.stepped}

        def packed(name: str, value: Tensor) -> Tensor:
            return value.flatten(0, 1) if value.dim() > depth.get(name, value.dim()) else value

        def run(
            batch: int, sizes: Sequence[int], reverse: bool, values: Sequence[Tensor], out: Sequence[Tensor]
        ) -> Sequence[Tensor]:
            given = {name: packed(name, value) for name, value in zip(names, values, strict=True)}
            room = {name: packed(name, value) for name, value in zip(loop.emits, out, strict=True)}
            result = self.run(loop, given, sizes, reverse, room)
            return (
                *(result.finals[state.name] for state in loop.states),
                *(result.sums[name] for name in loop.sums),
            )

        return run
