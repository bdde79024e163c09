"""Recurrent: any cell, run over whole sequences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._C._functorch import peek_interpreter_stack
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

from elman.circuit.form import Circuit
from elman.circuit.signature import Place, Tree, flatten
from elman.engines import report
from elman.errors import ElmanError, InputError, InputTypeError, NotSupported, NotYet, TraceError
from elman.execute import Call, apply
from elman.forcing import WEIGHT
from elman.pieces import Layout
from elman.plan.explain import Explanation
from elman.recurrent.again import Known, plain, structure
from elman.recurrent.arguments import (
    EVERY,
    Happens,
    batch_of,
    is_recorded,
    not_recorded,
    over_sequences,
    rows_of_reset,
    weight_of,
)
from elman.recurrent.compiled import refuse_compiled, register, run_compiled
from elman.recurrent.exported import run_exported, starting
from elman.recurrent.order import run_batch_first, warn_if_unclear
from elman.recurrent.prepare import (
    Kept,
    Prepared,
    Shapes,
    check_teacher,
    first_step,
    indivisible,
    look_up,
    meta,
)
from elman.trace.call import call_cell, in_order, store_of, understand
from elman.trace.initial import own_state, starting_state
from elman.trace.mistakes import check_cell, of_step

Tensor = torch.Tensor
_PATIENCE = 16  # steps in a row that may differ from one another before the cell itself runs them all


class Recurrent(torch.nn.Module):
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
    memory: None stores for the backward pass what a minimum cut says (budgets come later).
    engine: "auto", or the name of the one engine that has to run the loop ("native", "reference").

    Raises TraceError at the first call for a cell that cannot be a circuit, naming the line and the mend.
    """

    batch_first = False
    order_is_said = False  # whether nobody needs to be warned where T = B

    def __init__(
        self, cell: torch.nn.Module, *, reverse: bool = False, batch_first: bool | None = None, memory: Any = None,
        engine: str = "auto",
    ) -> None:  # fmt: skip
        super().__init__()
        check_cell(cell, "Recurrent(cell)")
        if memory is not None:
            raise NotSupported(
                what="memory budgets are not available yet", where="memory=", mend="leave memory=None"
            )
        self.cell = cell
        self.reverse = reverse
        self.batch_first, self.order_is_said = bool(batch_first), batch_first is not None
        self.engine = engine
        self._forget()

    def _forget(self) -> None:
        self._own = Kept()
        self._latest: Prepared | None = None
        self._start: tuple[Any, Callable[[int], Any]] | None = None
        self._known: Known | None = None  # a call, and a step, that the next one may be like
        self._known_step: Known | None = None
        self._misses = 0  # steps in a row that were not like the known one
        self._draws: torch.Generator | None = (
            None  # where seeds of noise come from, if not torch's default generator
        )
        self._handle = register(self)

    def __getstate__(self) -> dict[str, Any]:
        forgotten = (
            "_draws",
            "_own",
            "_latest",
            "_start",
            "_known",
            "_known_step",
            "_misses",
            "_handle",
        )
        return {k: v for k, v in self.__dict__.items() if k not in forgotten}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget()

    def __prepare_scriptable__(self) -> None:
        raise not_recorded()

    def extra_repr(self) -> str:
        return ", ".join(
            (["reverse=True"] if self.reverse else [])
            + (["batch_first=True"] if self.batch_first else [])
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
        teacher_weight: `[T, B]`, bools, or numbers in [0, 1]: the step after t sees w teacher[t] + (1 - w) output[t].
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
            if torch.compiler.is_exporting():
                said = lengths, mask, reset
                return run_exported(self, x, state, steps, said, teacher, teacher_weight, context)
            if isinstance(x, PackedSequence):
                refuse_compiled("a PackedSequence", "unpack it before, and pass lengths=")
            if isinstance(lengths, (list, tuple)):
                lengths = torch.tensor(lengths)
            said = lengths, mask, reset
            return run_compiled(self, x, state, steps, said, teacher, teacher_weight, context)
        happens = EVERY
        if lengths is not None or mask is not None or reset is not None:
            happens = Happens(lengths, mask, reset)
            if not self.order_is_said:
                warn_if_unclear(self, x)
        if steps is not None or teacher is not None or context is not None or teacher_weight is not None:
            return self._long_way(x, state, steps, happens, teacher, teacher_weight, context)
        known = None if is_recorded() else self._known  # read once: another thread may put another there
        if known is not None and (made := self._again(known, x, state, happens)) is not None:
            return made
        before = self._latest
        outputs, final = self._long_way(x, state, None, happens)
        if self._latest is before:  # it was needed twice
            self._known = self._learn(x, state is None, final)
        return outputs, final

    def _again(self, known: Known, x: Any, state: Any, happens: Happens) -> tuple[Any, Any] | None:
        """A call that is like a known one; None if it is not."""
        layout = None
        if type(x) is PackedSequence:
            if happens is not EVERY:
                return None
            layout = Layout.of_packed(x)
            found = known.fits(self, x.data, state, 1, layout.batch)
        else:
            found = known.fits(self, x, state)
        if found is None:
            return None
        steps, batch, tensors = found
        prepared = known.prepared
        assert prepared is not None
        if happens is not EVERY:
            layout = happens.layout(steps, batch, prepared.program.inputs[0].device)
        if layout is not None:
            return self._again_on(known, layout, tensors)
        self.__dict__["_latest"] = prepared  # torch.nn.Module's own way of setting it takes a microsecond
        seed = _seed(self._draws) if prepared.program.has_noise else 0
        made = apply(prepared.program, Call(steps, batch, seed, self.engine), tensors)
        return known.output(made), known.final(made)

    def _again_on(self, known: Known, layout: Layout, tensors: list[Any]) -> tuple[Any, Any] | None:
        """The same on the pieces of a layout."""
        found = known.laid_out(tensors, layout)
        if found is None:
            return None
        prepared = known.prepared
        assert prepared is not None
        self.__dict__["_latest"] = prepared
        seed = _seed(self._draws) if prepared.program.has_noise else 0
        call = Call(layout.steps, layout.pieces, seed, self.engine, layout.packing)
        made: list[Any] = list(apply(prepared.program, call, found[0]))
        slots = prepared.state_slots
        ended = layout.final([made[slot] for slot in slots], found[1], self.reverse)
        for slot, value in zip(slots, ended, strict=True):
            made[slot] = value
        for slot in prepared.output_slots:
            made[slot] = layout.unpack(made[slot])
        return known.output(made), known.final(made)

    def _learn(self, x: Any, starts: bool, state: Any) -> Known | None:
        """What a call has found out, if that can be said to hold for another; a state like the one it had."""
        leading = 2
        if type(x) is PackedSequence:
            x, leading = x.data, 1
        if peek_interpreter_stack() is not None or not plain((structure(x, []), structure(state, []))):
            return None
        unchanged = self._own.unchanged(self.cell)
        xs, x_tree = flatten(x, "x")
        device = xs[0].device.type if xs else "cpu"
        if unchanged is None or device == "meta" or torch.is_autocast_enabled(device):
            return None
        # Looked up again: the latest call may be another thread's by now.
        states, state_tree = flatten(state, "state")
        shapes = Shapes(x_tree, state_tree, None, None, (meta(xs, leading), meta(states, 1), ()))
        examples = xs if leading == 2 else [x.unsqueeze(0) for x in xs]
        prepared = look_up(self.cell, self.reverse, shapes, self._own, examples, states, [])
        return Known(self, prepared, unchanged, x, state, leading, self._starts(starts))

    def _starts(self, missing: bool) -> str:
        """Where a state comes from that is not given, if that is known: it has been `missing`."""
        own = callable(getattr(self.cell, "initial_state", None))
        return "own" if own else "zeros" if missing else ""

    def _long_way(
        self, x: Any, state: Any, steps: int | None = None, happens: Happens = EVERY, teacher: Any = None,
        weight: Any = None, context: Any = None,
    ) -> tuple[Any, Any]:  # fmt: skip
        return over_sequences(
            self.run, x, state, happens, steps=steps, teacher=teacher, weight=weight, context=context
        )

    def run(
        self,
        layout: Layout,
        x: Any,
        state: Any = None,
        teacher: Any = None,
        weight: Any = None,
        context: Any = None,
    ) -> tuple[Any, Any]:
        """Run on sequences that a layout has packed: (packed outputs, final state of each row).

        x: packed, `[*layout.inner, …]`. Everything else is as users give it, `teacher` and `weight` with the leading
        dimensions `layout.lead`.
        """
        device = "cpu" if layout.device.type == "meta" else layout.device.type
        if torch.is_autocast_enabled(device):
            # A recurrence adds up small changes over many steps: it runs in the precision of its parameters.
            dtype = self._dtype()
            x, state, teacher, context = (
                None if value is None else _recast(value, dtype) for value in (x, state, teacher, context)
            )
            with torch.autocast(device, enabled=False):
                return self._run(layout, x, state, teacher, weight, context)
        return self._run(layout, x, state, teacher, weight, context)

    def _run(
        self, layout: Layout, x: Any, state: Any, teacher: Any, weight: Any, context: Any
    ) -> tuple[Any, Any]:
        xs, x_tree = flatten(x, "x")
        contexts, context_tree = flatten(context, "context") if context is not None else ([], None)
        forced, teacher_tree = flatten(teacher, "teacher") if teacher is not None else ([], None)
        weight = weight_of(weight, teacher, layout.lead)
        batch_of((), None, contexts, context_tree, layout.batch)
        examples = [layout.example(x) for x in xs]
        some = [layout.spread(value) for value in contexts]

        def initial(batch: int) -> Any:
            return self._initial(batch, examples, x_tree, some, context_tree)

        states, state_tree = flatten(initial(layout.batch) if state is None else state, "state")
        batch_of(states, state_tree, contexts, context_tree, layout.batch)
        starts = layout.start(states, self.reverse, lambda batch: _like(initial(batch), states, state_tree))
        metas = (meta(examples, 2), meta(starts, 1), meta(some, 1))
        dtype = None if weight is None else weight.dtype
        shapes = Shapes(x_tree, state_tree, context_tree, teacher_tree, metas, dtype)
        prepared = look_up(self.cell, self.reverse, shapes, self._own, examples, starts, some)
        self._latest = prepared
        program = prepared.program
        if layout.is_cut and (reason := indivisible(prepared, layout.cuts)) is not None:
            raise reason
        taught = dict(zip(teacher_tree.paths, forced, strict=True)) if teacher_tree is not None else {}
        check_teacher(program, taught, layout.lead)
        if weight is not None:
            taught[WEIGHT] = weight
        given = {"x": iter(xs), "state": iter(starts), "context": iter(some)}
        tensors: list[Tensor | None] = []
        for source in prepared.sources:
            if isinstance(source, Place):
                tensors.append(store_of(self.cell, source)[source.key])
            elif isinstance(source, Tensor) or source is None:
                tensors.append(source)
            elif source in given:
                tensors.append(next(given[source]))
            else:
                tensors.append(layout.pack(taught[source]))
        seed = _seed(self._draws) if program.has_noise else 0
        call = Call(layout.steps, layout.pieces, seed, self.engine, layout.packing)
        made = apply(program, call, tensors)
        ended = layout.final([made[slot] for slot in prepared.state_slots], states, self.reverse)
        final = prepared.state.fill(ended)
        if prepared.output is None:
            return None, final
        return prepared.output.fill([made[slot] for slot in prepared.output_slots]), final

    def _dtype(self) -> torch.dtype:
        return next((p.dtype for p in self.cell.parameters() if p.dtype.is_floating_point), torch.float32)

    def _initial(
        self, batch: int, xs: list[Tensor], x_tree: Tree, contexts: list[Tensor], context_tree: Tree | None
    ) -> Any:
        if callable(getattr(self.cell, "initial_state", None)):
            return own_state(self.cell, batch)
        key = (self._own.seen(self.cell).mark, meta(xs, 2), meta(contexts, 1))
        start = self._start
        if start is None or start[0] != key:
            x = x_tree.fill(first_step(xs))
            context = context_tree.fill(contexts) if context_tree is not None else None
            start = self._start = (key, starting_state(self.cell, x, context))
        return start[1](batch)

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
            raise InputError(
                what="a reversed layer cannot run step by step: its first step is the sequence's last", where="step()",
                mend="call the layer on the whole sequence",
            )  # fmt: skip
        if reset is not None:
            state = self._restarted(x, state, reset, context)
        engine = context is None and not torch.is_grad_enabled()
        if engine and not torch.compiler.is_compiling() and not is_recorded():
            known = self._known_step
            found = known.fits(self, x, state, 1) if known is not None else None
            if found is None and self._misses < _PATIENCE:
                self._misses += 1
                known = self._known_step = self._learn_step(x, state)
                found = known.fits(self, x, state, 1) if known is not None else None
            elif self._misses and found is not None:
                self._misses = 0
            if known is not None and found is not None and known.prepared is not None:
                program = known.prepared.program
                call = Call(1, found[1], _seed(self._draws) if program.has_noise else 0, self.engine)
                made = program.step(call, found[2])
                return known.output(made), known.final(made)
        if state is None:
            state = self._start_of_step(x, context)
        try:
            returned = call_cell(self.cell, x, state, context, context is not None)
        except Exception as error:
            if isinstance(error, ElmanError) or torch.compiler.is_compiling():
                raise
            raise of_step(self.cell, x, state, context, error) from error
        return understand(returned, flatten(state, "state")[1], type(self.cell).__name__)

    def _restarted(self, x: Any, state: Any, reset: Any, context: Any) -> Any:
        """The state, with that which the cell starts from in the rows that are reset."""
        xs, _ = flatten(x, "x")
        states, tree = flatten(state, "state")
        batch = batch_of(states, tree, (), None, int(xs[0].shape[0]) if xs and xs[0].dim() else None)
        rows = rows_of_reset(reset, batch)
        if state is None:
            return None  # all rows start there
        initial = in_order(self._start_of_step(x, context, batch), state)
        if not torch.compiler.is_compiling():  # it is of the cell's own structure there, or the step fails
            _like(initial, states, tree)

        def choose(start: Any, old: Any) -> Any:
            if not isinstance(old, Tensor):
                return old
            return torch.where(rows.to(old.device).reshape(-1, *[1] * (old.dim() - 1)), start, old)

        return pytree.tree_map(choose, initial, state)

    def _start_of_step(self, x: Any, context: Any, batch: int | None = None) -> Any:
        if torch.compiler.is_exporting():
            return starting(self, x, context)
        xs, x_tree = flatten(x, "x")
        contexts, context_tree = flatten(context, "context") if context is not None else ([], None)
        if not xs and batch is None:
            raise InputError(
                what="an autonomous system needs a state, which says the batch size", where="state"
            )
        batched = [tensor.unsqueeze(0) for tensor in xs]
        batch = int(xs[0].shape[0]) if batch is None else batch
        return self._initial(batch, batched, x_tree, contexts, context_tree)

    def _learn_step(self, x: Any, state: Any) -> Known | None:
        """How a step without gradients is run: by the engine if the cell is a circuit, and the engine has it; else the
        cell itself. None if that cannot be said to hold for another step."""
        if peek_interpreter_stack() is not None or torch.is_autocast_enabled("cpu"):
            return None
        if not plain((structure(x, []), structure(state, []))):
            return None
        unchanged = self._own.seen(self.cell).unchanged
        if unchanged is None:
            return None
        prepared, starts = None, self._starts(state is None)
        xs, x_tree = flatten(x, "x")
        if not xs or not all(tensor.dim() for tensor in xs):
            return None
        try:
            xs = [tensor.unsqueeze(0) for tensor in xs]
            state = self._start_of_step(x, None) if state is None else state
            states, state_tree = flatten(state, "state")
            batch_of(states, state_tree, (), None, int(xs[0].shape[1]))
            shapes = Shapes(x_tree, state_tree, None, None, (meta(xs, 2), meta(states, 1), ()))
            found = look_up(self.cell, False, shapes, self._own, xs, states, [])
            if found.program.steps_by_loop(self.engine):
                prepared = found
        except (TraceError, InputError, InputTypeError, NotSupported):
            if state is None:  # the cell itself runs, or says what is wrong in its own words
                return None
        return Known(self, prepared, unchanged, x, state, 1, starts)

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

    def explain(self) -> Explanation:
        """What runs once, before, in and after the loop, forward and backward, and on which engine."""
        program = self._of_latest_call().program
        wants = frozenset(p.name for p in program.inputs if p.differentiable)
        training = program.training(wants)
        plans = {"forward": training.forward, "backward": training.backward}
        loops = {what: plan.loop for what, plan in plans.items() if plan.loop is not None}
        engines = report(self.engine, loops, program.inputs[0].device) if loops else None
        return Explanation(tuple(plans.values()), engines)

    def _of_latest_call(self) -> Prepared:
        if self._latest is None:
            raise NotYet(
                what="the circuit is not known yet", where="Recurrent",
                mend="call the layer once on an example, or use elman.trace(cell, x, state)",
            )  # fmt: skip
        return self._latest


def _seed(generator: torch.Generator | None) -> int:
    """One draw from a generator, by default torch's own; a transform around the call does not batch it."""
    if peek_interpreter_stack() is not None:
        with temporarily_clear_interpreter_stack():
            return int(torch.randint(2**62, (), generator=generator).item())
    return int(torch.randint(2**62, (), generator=generator).item())


def _like(initial: Any, states: Sequence[Tensor], tree: Tree) -> list[Tensor]:
    """The tensors of the cell's initial state, which must look like the state that was given."""
    found, own = flatten(in_order(initial, tree.fill(states)), "state")
    if own != tree:
        raise InputTypeError(
            what="the state is not built like the cell's initial state, from which a reset starts", where="state",
            got=str(list(tree.paths)), expected=str(list(own.paths)),
        )  # fmt: skip
    for given, mine, path in zip(states, found, tree.paths, strict=True):
        if (given.shape[1:], given.dtype, given.device) != (mine.shape[1:], mine.dtype, mine.device):
            raise InputError(
                what="the state does not look like the cell's initial state, from which a reset starts", where=path,
                got=f"{list(given.shape)} {given.dtype} on {given.device}",
                expected=f"[B, {', '.join(map(str, mine.shape[1:]))}] {mine.dtype} on {mine.device}",
            )  # fmt: skip
    return found


def _cast(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    return [t.to(dtype) if t.dtype.is_floating_point else t for t in tensors]


def _recast(state: Any, dtype: torch.dtype) -> Any:
    tensors, tree = flatten(state, "state")
    return tree.fill(_cast(tensors, dtype))
