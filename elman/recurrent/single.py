"""The steps of one layer, one at a time: by the engine where it can, else by the cell itself."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad

from elman.circuit.form import Kind
from elman.circuit.structure import NOTHING, fill, flatten, take
from elman.errors import ElmanError, InputError, InputTypeError, NotSupported, TraceError
from elman.execute import Call
from elman.noise import Replay
from elman.recurrent.arguments import batch_of, expect_like, is_recorded, rows_of_reset
from elman.recurrent.bound import Arguments, BoundCall, Noted
from elman.recurrent.compiled import fits_start, output_dimensions, specs_of, zeros_of
from elman.recurrent.kept import device_of
from elman.recurrent.known import KnownCalls, alike, dtype_of, has_start, seed_of, shapes_of
from elman.recurrent.programs import Binding
from elman.recurrent.surroundings import not_compiled
from elman.trace.call import call_cell, understand
from elman.trace.initial import own_state
from elman.trace.mistakes import of_step
from elman.trace.modes import changes_operations, has_no_memory, looks_at_operations

Tensor = torch.Tensor
_PATIENCE = 16  # steps in a row that may differ from one another before the cell itself runs them all


class SingleSteps:
    """Steps are kept among the calls of their layer."""

    def __init__(self, known: KnownCalls) -> None:
        self.known = known
        self._misses = 0  # steps in a row that were like none before
        self._stepped: Any = (
            None  # the latest step's cell, how its state is built, how many dimensions it has
        )
        # What the latest step by the cell was like, and how many dimensions its circuit's outputs have, if it is one.
        self._circuit: tuple[Any, Any, list[int] | None] = None, None, None

    def step(self, layer: Any, args: Arguments) -> tuple[Any, Any]:
        """(output, new state) of one step, by the engine or by the cell itself; under autocast in the precision of the
        cell's parameters, as of calls."""
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device) and device == device_of(layer.cell):
                with torch.autocast(device, enabled=False):
                    return self.step(layer, args.cast(dtype_of(layer.cell)))
        if torch.compiler.is_dynamo_compiling():  # a note would be a guard that the next step fails
            self._expect_like_compiled(layer, args)
        elif args.states:
            like = (layer.cell, args.structures[1], [state.dim() for state in args.states])
            if self._stepped != like:
                self.expect_like(layer, args)
                self._stepped = like
        if (
            args.contexts or not args.xs or torch.is_grad_enabled() or torch.compiler.is_compiling()
            or is_recorded() or peek_interpreter_stack() is not None
            or forward_ad._current_level >= 0 or changes_operations() or looks_at_operations()
        ):  # fmt: skip
            return self._by_cell(layer, args)
        bound, noted = self.known.recent(True), None
        if bound is not None and bound.key == args.key:
            noted = bound.serving(layer, args)
        if bound is not None and noted is not None and bound.from_cell:
            args = args.self_started(layer.cell, noted.call.batch)
            noted = noted if bound.starts_like(args, noted) else None
        if bound is None or noted is None:
            bound, noted, args = self._bound_step(layer, args)
        if bound is None or noted is None or (binding := bound.binding) is None:
            return self._by_cell(layer, args)
        states: Sequence[Tensor | None] = args.states or bound.zeros
        call = noted.call
        if bound.has_noise:
            call = call._replace(seed=seed_of(layer, binding))
        tensors = bound.tensors(args, states, None)
        if any(map(has_no_memory, tensors)):
            return self._by_cell(layer, args)
        results = binding.program.step(call, tensors)
        bound.expect_again(layer, args, noted)
        return bound.result(results, states, None, True, call)

    def expect_like(self, layer: Any, args: Arguments) -> None:
        """Refuse a step's state that the cell would take for another. Where only a search says what the cell starts
        from, that is of what looks like a state of torch.nn's, `[layers, B, …]`, with one row."""
        if has_start(layer.cell):
            expect_like(args.states, args.structures[1], own_state(layer.cell, 1))
        elif any(state.dim() > 2 and state.shape[:2] == (1, 1) for state in args.states):
            own = None
            with contextlib.suppress(ElmanError):
                own = self.start_of_step(layer, args, 1)
            if own is not None:
                expect_like(args.states, args.structures[1], own)

    def _expect_like_compiled(self, layer: Any, args: Arguments) -> None:
        """The same as a constant of a compilation, which holds for any B unless the state is refused."""
        if not args.states:
            return
        for rows in (1 if args.states[0].shape[0] == 1 else 2, 0):
            specs = specs_of(args.xs, 1), specs_of(args.states, min(rows, 1)), specs_of(args.contexts, 1)
            if fits_start(layer._handle, args.structures[:3], specs, rows):
                return
        not_compiled(self.expect_like, layer, args)  # which raises

    def _bound_step(self, layer: Any, args: Arguments) -> tuple[BoundCall | None, Noted | None, Arguments]:
        """What a step is bound to that is not like the latest one, None if nothing can be said; and where it starts."""
        batch, forms = _rows(args), args.forms
        if batch is None:
            return None, None, args
        if not args.states and has_start(layer.cell):
            args = args.self_started(layer.cell, batch)
        bound = self.known.like(args.key)
        if bound is not None and bound.fits(args) and bound.holds(layer):
            self._misses = 0
        elif self._misses >= _PATIENCE:
            return None, None, args
        else:
            self._misses += 1
            if (bound := self._bind_step(layer, args, batch)) is None:
                return None, None, args
            self.known.keep(bound)
        return bound, bound.note(forms, args, None, Call(1, batch, 0, layer.engine)), args

    def _bind_step(self, layer: Any, args: Arguments, batch: int) -> BoundCall | None:
        """How such a step is run: by the engine if the cell is a circuit, and the engine has it; else by the cell.
        None if that cannot be said to hold for another step."""
        unchanged = self.known.programs.seen(layer.cell).unchanged
        if unchanged is None:
            return None
        state, states, binding = args.structures[1], args.states, None
        try:
            if not states:
                states, state = flatten(self.start_of_step(layer, args, batch), "state")
            candidate = self.known.programs.find(
                layer.cell, shapes_of(False, args, state, states), args.xs, states, []
            )
            binding = candidate if candidate.program.steps_by_loop(layer.engine) else None
        except (TraceError, InputError, InputTypeError, NotSupported):
            if not args.states:  # the cell itself runs, or says what is wrong in its own words
                return None
        return BoundCall(layer, binding, args, unchanged)

    def binding_of_step(self, layer: Any, args: Arguments) -> Binding:
        """The program of a cell for arguments of one step, with a state."""
        state, states = args.structures[1], args.states
        return self.known.programs.find(
            layer.cell, shapes_of(False, args, state, states), args.xs, states, args.contexts
        )

    def start_of_step(self, layer: Any, args: Arguments, batch: int | None = None) -> Any:
        """The state that the cell starts from, at one step."""
        if batch is None:
            batch = batch_of(args.xs, args.structures[0], args.contexts, args.structures[2], None)
        x, _, context, _ = args.structures
        if torch.compiler.is_dynamo_compiling() and not has_start(layer.cell):
            return fill(*zeros_of(layer, x, specs_of(args.xs, 1), context, specs_of(args.contexts, 1), batch))
        return self.known.programs.initial(layer.cell, batch, (x, args.xs), (context, args.contexts))

    def restarted(self, layer: Any, args: Arguments, reset: Any) -> Arguments:
        """With that which the cell starts from, in the rows that are reset."""
        batch = batch_of(args.states, args.structures[1], (), NOTHING, _rows(args))
        rows = rows_of_reset(reset, batch)
        if args.structures[1] == NOTHING:
            return args  # all rows start there
        initial = self.start_of_step(layer, args, batch)
        chosen = [
            torch.where(rows.to(old.device).reshape(-1, *[1] * (old.dim() - 1)), start, old)
            for old, start in zip(args.states, alike(initial, args.states, args.structures[1]), strict=True)
        ]
        return args._replace(states=chosen)

    def _by_cell(self, layer: Any, args: Arguments) -> tuple[Any, Any]:
        """A step by the cell itself."""
        x, state, context = (
            fill(structure, tensors)
            for structure, tensors in zip(
                args.structures, (args.xs, args.states, args.contexts), strict=False
            )
        )
        if state is None:
            state = self.start_of_step(layer, args)
        try:
            with _draws(layer):
                returned = call_cell(layer.cell, x, state, context, context is not None)
        except Exception as error:
            if isinstance(error, ElmanError) or torch.compiler.is_compiling():
                raise
            raise of_step(layer.cell, x, state, context, error) from error
        output, new = understand(returned, flatten(state, "state")[1], type(layer.cell).__name__)
        return self._for_each_row(layer, args, state, output, new), new

    def _for_each_row(self, layer: Any, args: Arguments, state: Any, output: Any, new: Any) -> Any:
        """The output of a step by the cell itself, with a row for each sequence of what all have alike, as calls have
        it. Which that is only a circuit says: where a layer is as wide as the batch, no shape does."""
        kept, structure = flatten(output, "output")
        states = flatten(new, "state")[0]
        if all(any(value is other for other in states) for value in kept):
            return output
        batch = states[0].shape[0]
        if torch.compiler.is_compiling():
            given = self._compiled_dimensions(layer, args, state) or [value.dim() for value in kept]
        else:
            given = self._dimensions(layer, args, state) or [value.dim() for value in kept]
        if len(given) != len(kept) or all(
            value.dim() == count for value, count in zip(kept, given, strict=True)
        ):
            return output
        rows = [
            value.expand(batch, *value.shape) if count == value.dim() + 1 else value
            for value, count in zip(kept, given, strict=True)
        ]
        return fill(structure, rows)

    def _compiled_dimensions(self, layer: Any, args: Arguments, state: Any) -> tuple[int, ...] | None:
        """The same as a constant of a compilation."""
        states: list[Tensor] = []
        x, _, context, _ = args.structures
        structures = x, take(state, states), context
        specs = specs_of(args.xs, 1), specs_of(states, 1), specs_of(args.contexts, 1)
        return output_dimensions(layer._handle, structures, specs)

    def _dimensions(self, layer: Any, args: Arguments, state: Any) -> list[int] | None:
        """How many dimensions the outputs of the cell's circuit have; None where it is none."""
        like, forms = (self.known.programs.seen(layer.cell).mark, args.key), args.forms
        before, shapes, dimensions = self._circuit
        if before == like and shapes == forms:
            return dimensions
        if before != like and self._misses >= _PATIENCE:
            return dimensions  # another cell at every step, with outputs like these
        self._misses += before != like
        states, structure = flatten(state, "state")
        dimensions = None
        with contextlib.suppress(ElmanError):
            circuit = self.binding_of_step(layer, args.starting(states, structure)).program.circuit
            dimensions = [circuit.wire(o.wire).meta["val"].dim() for o in circuit.outputs_of(Kind.SEQUENCE)]
        self._circuit = like, forms, dimensions
        return dimensions


def _rows(args: Arguments) -> int | None:
    """The batch size that x and state of a step agree on; None if they do not."""
    sizes = {tensor.shape[0] if tensor.dim() else None for tensor in (*args.xs, *args.states)}
    return sizes.pop() if len(sizes) == 1 else None


def _draws(layer: Any) -> contextlib.AbstractContextManager[Any]:
    """Inside, a cell draws from its layer's generator."""
    if layer.generator is None or torch.compiler.is_compiling():
        return contextlib.nullcontext()
    return Replay(layer.generator)
