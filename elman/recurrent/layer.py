"""Recurrent: any cell, run over whole sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import PackedSequence

from elman.circuit.form import Circuit
from elman.engines import report
from elman.errors import InputError, NotYet, expect
from elman.plan.explain import Explanation
from elman.recurrent.arguments import EVERY, expect_rows, is_recorded, not_recorded, selection, unwrap
from elman.recurrent.bound import Arguments
from elman.recurrent.budget import Budget
from elman.recurrent.calls import Calls
from elman.recurrent.compiled import register, run_compiled
from elman.recurrent.exported import run_exported
from elman.recurrent.kept import Steps
from elman.recurrent.order import run_batch_first, warn_if_unclear
from elman.recurrent.programs import Binding
from elman.recurrent.several import has_third
from elman.recurrent.single import SingleSteps
from elman.recurrent.stream import Stream
from elman.recurrent.surroundings import not_compiled, watched
from elman.segments import Layout
from elman.segments.segment import Memory
from elman.trace.mistakes import check_cell

Tensor = torch.Tensor


class Recurrent(Budget, torch.nn.Module):
    """A module over whole sequences, made of one step: h(t) = f(h(t-1), x(t); θ).

        rnn = elman.Recurrent(cell)
        outputs, final_state = rnn(x)                  # x [T, B, …] -> outputs [T, B, …], final state [B, …]

    equals, for every cell that it accepts,

        for t in range(T):
            state = cell(x[t], state)                  # or: output, state = cell(x[t], state)

    with the gradients of that loop, of any order.

    cell: a module whose `forward(x, state[, context])` computes one step on `[B, …]` and returns the new state, or
        (output, new state). The output may be None, or nested; a cell that returns its state alone has the first tensor
        of it as output.
    reverse: read the sequence from its last step to its first; outputs stay in their places.
    batch_first: x, outputs, mask, reset, teacher and its weight are `[B, T, …]`, as with torch.nn's; states, lengths
        and context are `[B, …]` either way, and so is what `step` takes and gives. A PackedSequence is as it is.
    memory: None stores for the backward pass what a minimum cut says. A budget, "64 MB" or a number of bytes: of all
        that a call allocates besides its inputs, what it returns and the gradients that it hands back; the sequence is
        run in segments of time, and what is not stored is computed again, exactly. Or `elman.Segments(k)`: segments of
        k steps, of each of which the state alone is stored.
    engine: "auto", or the name of the one engine that has to run the loop ("native", "cuda", "reference").
    generator: where the seeds of random numbers that the cell draws come from, by default torch's own.

    Raises TraceError at the first call for a cell that cannot be a circuit, naming the line and the mend.
    """

    batch_first = False
    order_is_said = False  # whether nobody needs to be warned where T = B
    generator: torch.Generator | None = None

    def __init__(
        self, cell: torch.nn.Module, *, reverse: bool = False, batch_first: bool | None = None,
        memory: str | Memory = None,
        engine: str = "auto", generator: torch.Generator | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        check_cell(cell, "Recurrent(cell)")
        self.memory = memory
        self.cell = cell
        self.reverse = reverse
        self.batch_first, self.order_is_said = bool(batch_first), batch_first is not None
        self.engine = engine
        if generator is not None:
            expect(generator, torch.Generator, "random numbers come from a torch.Generator", "generator=")
        self.generator = generator
        self._forget()

    def _forget(self) -> None:
        self._calls = Calls()
        self._single = SingleSteps(self._calls)
        self._handle = register(self)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_calls", "_single", "_handle")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget()

    def __prepare_scriptable__(self) -> None:
        raise not_recorded()

    def extra_repr(self) -> str:
        return ", ".join(
            (["reverse=True"] if self.reverse else [])
            + (["batch_first=True"] if self.batch_first else [])
            + ([f"memory={self.memory!r}"] if self.memory is not None else [])
            + ([f"engine={self.engine!r}"] if self.engine != "auto" else [])
        )

    # --- over whole sequences -------------------------------------------------------------------------------------

    def forward(
        self,
        x: Any,
        state: Any = None,
        *,
        steps: int | None = None,
        lengths: Tensor | Sequence[int] | None = None,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
        teacher: Any = None,
        teacher_weight: Tensor | None = None,
        context: Any = None,
    ) -> tuple[Any, Any]:
        """Run over a batch of sequences.

        x: tensors `[T, B, …]`, alone or nested; None for an autonomous system s(t) = f(s(t-1)). Or a PackedSequence:
            outputs, teacher and its weight are then PackedSequences as well, and states in the order before sorting.
        state: `[B, …]` in the cell's structure; by default `cell.initial_state(B)` if there is one, else zeros.
        steps: T, given if and only if no tensor of x has it.
        lengths: `[B]` whole numbers in 0 … T, in any order: sequence b has the steps t < lengths[b].
        mask: `[T, B]` bools: steps where it is false do not happen. What stands there is never looked at, outputs are
            zero, and the state waits.
        reset: `[T, B]` bools: step t begins a new sequence, from the cell's initial state rather than the one before
            it, or `state`; nothing flows across in either direction. It may stand at a masked step.
        teacher: targets of the output's structure `[T, B, …]`: each step sees the teacher's last output, not its own.
            Or symbols `[T, B]`, whole numbers, where the cell has `as_output(symbols)`: the output each stands for.
        teacher_weight: `[T, B]`, bools, or numbers in [0, 1], which is not checked on a GPU, where a look at them is a
            wait, nor under torch.compile: the step after t sees w teacher[t] + (1 - w) output[t].
        context: tensors `[B, …]`, the same at every step, handed to the cell as third argument.

        With `reverse`, each sequence runs from its last step that happens to its first; `state` starts the last
        sequence of a row, and the final state is that of its first. A row without a step keeps its state.

        Returns (outputs, final state): outputs `[T, B, …]` in the structure of the cell's output (None if it is None).
        Raises InputError or InputTypeError for tensors that do not fit together, TraceError for the cell. Warns once
        (AmbiguityWarning) where T = B and neither `batch_first=True` nor `False` was said, with lengths, mask or reset.
        """
        if self.batch_first:
            return run_batch_first(
                self._time_major, x, state, steps=steps, lengths=lengths, mask=mask, reset=reset, teacher=teacher,
                teacher_weight=teacher_weight, context=context,
            )  # fmt: skip
        return self._time_major(x, state, steps, lengths, mask, reset, teacher, teacher_weight, context)

    def _time_major(
        self, x: Any, state: Any, steps: Any, lengths: Any, mask: Any, reset: Any, teacher: Any, teacher_weight: Any,
        context: Any,
    ) -> tuple[Any, Any]:  # fmt: skip
        if torch.compiler.is_compiling():
            run = run_exported if torch.compiler.is_exporting() else run_compiled
            return run(self, x, state, steps, (lengths, mask, reset), teacher, teacher_weight, context)
        if watched():
            return not_compiled(
                self._time_major, x, state, steps, lengths, mask, reset, teacher, teacher_weight, context
            )
        happens = selection(lengths, mask, reset)
        if happens is not EVERY and not self.order_is_said:
            warn_if_unclear(self, x)
        plain = steps is teacher is teacher_weight is context is None
        if plain and (results := self._calls.again(x, state, False, happens)) is not None:
            return results
        if is_recorded():
            raise not_recorded()
        if isinstance(x, PackedSequence):
            x, layout, teacher, teacher_weight = unwrap(x, steps, happens, teacher, teacher_weight)
            return self._calls.run(self, layout, Arguments.of(1, x, state, context, teacher, teacher_weight))
        args = Arguments.of(2, x, state, context, teacher, teacher_weight)
        return self._calls.whole(self, args, steps, happens)

    def run(
        self, layout: Layout, x: Any, state: Any = None, teacher: Any = None, weight: Any = None, context: Any = None
    ) -> tuple[Any, Any]:  # fmt: skip
        """Run on sequences that a layout has packed: (packed outputs, final state of each row).

        x: packed, `[*layout.inner, …]`. Everything else is as users give it, `teacher` and `weight` with the leading
        dimensions `layout.lead`.
        """
        args = Arguments.of(len(layout.inner), x, state, context, teacher, weight, packed=True)
        return self._calls.run(self, layout, args)

    # --- one step -------------------------------------------------------------------------------------------------

    def step(
        self, x: Any, state: Any = None, *, reset: Tensor | None = None, context: Any = None
    ) -> tuple[Any, Any]:
        """One step, for streaming: x `[B, …]` -> (output, new state), always in this order.

        reset: `[B]` bools: rows that begin a new sequence, from the cell's initial state rather than from `state`.

        Calling it T times is the same as one call on T steps. Without gradients the engine runs it where it can; else,
        and where hooks want to see it, the cell itself does. Raises InputError under `reverse=True`.
        """
        if self.reverse:
            raise not_stepwise("step()")
        if not torch.compiler.is_compiling() and watched():
            return not_compiled(self.step, x, state, reset=reset, context=context)
        plain = reset is None and context is None and not torch.compiler.is_compiling()
        if plain and (results := self._calls.again(x, state, True)) is not None:
            return results
        args = Arguments.of(1, x, state, context, step=True)
        expect_rows(args.xs, args.states, args.structures[1])
        if reset is not None:
            args = self._single.restarted(self, args, reset)
        return self._single.step(self, args)

    def stream(self, batch: int | None = None, state: Any = None, weights: str | None = None) -> Stream:
        """A stream: `step` again and again without gradients, its weights packed once and its state kept inside.

        batch: B, how many sequences go side by side; by default as many as `state` has, or one. state: `[B, …]` that
            they go on from, by default the cell's initial one. weights: None, or "bfloat16" or "int8" for constant
            factors of products in fewer bits, for cells in float32: see docs/streams.md for what that costs.

        Raises InputError under `reverse=True`, NotSupported for `weights` that no engine has. What no engine keeps
        ready (another device than the CPU, an operation of one's own) streams by ordinary steps; `repr` says so.
        """
        if self.reverse:
            raise not_stepwise("stream()")
        return Stream(Steps(lambda: self), batch, state, weights)

    # --- looking inside -------------------------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        if (
            name == "circuit"
        ):  # the property has raised: torch.nn.Module would say that there is no such attribute
            self._of_latest_call()
        return super().__getattr__(name)

    @property
    def circuit(self) -> Circuit:
        """The circuit of the latest call. Raises StateError before any call."""
        return self._of_latest_call().program.circuit

    def takes_context(self) -> bool:
        """Whether the cell takes a context."""
        return has_third(self._handle)

    def explain(self) -> Explanation:
        """What runs once, before, in and after the loop, forward and backward, and on which engine."""
        program = self._of_latest_call().program
        wants = frozenset(p.name for p in program.inputs if p.differentiable)
        training = program.training(wants)
        plans = {"forward": training.forward, "backward": training.backward}
        loops = {what: plan.loop for what, plan in plans.items() if plan.loop is not None}
        engines = report(self.engine, loops, program.inputs[0].device) if loops else None
        for what, one in (("forward", training.forwards), ("backward", training.backwards)):
            if (why := one.split(self.engine)) is not None:
                engines = f"{engines}; the {what} pass is not one call: {why}"
        budget, memory = self._calls.budget, None
        if budget is not None:
            # Layers share programs: another one's latest call had another budget.
            kept = reversed([*program.carrying_on.schedules.items()])
            chosen = next((one for (_, _, allowed, *_), one in kept if allowed == budget), None)
            memory = None if chosen is None else chosen.said(budget)
        return Explanation(tuple(plans.values()), engines, memory=memory)

    def _of_latest_call(self) -> Binding:
        latest = self._calls.latest
        if latest is None:
            raise NotYet(
                what="the circuit is not known yet", where="Recurrent",
                mend="call the layer once on an example, or use elman.trace(cell, x, state)",
            )  # fmt: skip
        return latest


def not_stepwise(where: str) -> InputError:
    return InputError(
        what="a reversed layer cannot run step by step: its first step is the sequence's last", where=where,
        mend="call the layer on the whole sequence",
    )  # fmt: skip
