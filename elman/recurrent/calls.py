"""The calls of one layer: find what a call is bound to, run it, put the results back.

A call on sequences crosses, in this order: `Recurrent.forward`, `arguments.over_sequences` (which lays it out),
`Recurrent.run`, `Calls.run`, `BoundCall.matches` (the first time `Calls._bind`, which asks `Programs.find`),
`BoundCall.tensors`, `execute.apply`, `BoundCall.result`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch._C._functorch import peek_interpreter_stack
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from elman.caches import Recent
from elman.circuit.structure import NOTHING, Structure, fill, flatten, paths, specs
from elman.errors import ElmanError, InputError, InputTypeError, NotSupported, TraceError
from elman.execute import Call, apply
from elman.recurrent.arguments import batch_of, is_recorded, rows_of_reset, weight_of
from elman.recurrent.bound import Arguments, BoundCall
from elman.recurrent.programs import Binding, Programs, Shapes, check_teacher
from elman.segments import Layout
from elman.trace.call import call_cell, in_order, understand
from elman.trace.initial import own_state
from elman.trace.mistakes import of_step

Tensor = torch.Tensor
_PATIENCE = 16  # steps in a row that may differ from one another before the cell itself runs them all


class Calls:
    """latest: what the latest call was bound to."""

    def __init__(self) -> None:
        self.programs = Programs()
        self.latest: Binding | None = None
        self._bound = Recent(8)
        self._misses = 0  # steps in a row that were like none before

    # --- over whole sequences -------------------------------------------------------------------------------------

    def run(self, layer: Any, layout: Layout, args: Arguments) -> tuple[Any, Any]:
        """(packed outputs, final state of each row) of a call on packed sequences."""
        device = "cpu" if layout.device.type == "meta" else layout.device.type
        if torch.is_autocast_enabled(device):
            # A recurrence adds up small changes over many steps: it runs in the precision of its parameters.
            with torch.autocast(device, enabled=False):
                return self._run(layer, layout, args.cast(_dtype(layer.cell)))
        return self._run(layer, layout, args)

    def _run(self, layer: Any, layout: Layout, args: Arguments) -> tuple[Any, Any]:
        cell, _, teacher = layer._modules["cell"], *args.structures[2:]
        if teacher != NOTHING or args.weight is not None:
            given = None if teacher == NOTHING else args.taught
            args = args._replace(weight=weight_of(args.weight, given, layout.lead))
        args = _with_own_state(cell, args, layout.batch)
        batch_of(args.states, args.structures[1], args.contexts, args.structures[2], layout.batch)
        bound = self._bound.get(args.key)
        if bound is None or not bound.matches(cell, layer.reverse, args):
            bound = self._bind(layer, layout, args)
        binding = self.latest = bound.program_of(layout)
        if args.taught:
            check_teacher(binding, teacher, args.taught, layout.lead)
        # A state that is not given is zeros, for every piece.
        states: Sequence[Tensor | None] = args.states or [None] * len(binding.finals)
        starts = self._starts(layer, layout, args, args.states) if args.states else states
        call = Call(layout.steps, layout.pieces, _seed(layer, binding), layer.engine, layout.packing)
        made = apply(binding.program, call, bound.tensors(args, starts, layout))
        return bound.result(made, states, layout)

    def _bind(self, layer: Any, layout: Layout, args: Arguments) -> BoundCall:
        """What a call is like, found out; kept for those that are like it."""
        seen = self.programs.seen(layer.cell)
        state, own = args.structures[1], args.states
        if state == NOTHING:
            own, state = flatten(self._initial(layer, layout, args, layout.batch), "state")
        starts = self._starts(layer, layout, args._replace(structures=_stateful(args, state)), own)
        shapes = _shapes(layer.reverse, args, state, starts)
        xs, contexts = _first(layout, args), [layout.spread(context) for context in args.contexts]
        binding = self.programs.find(layer.cell, shapes, xs, starts, contexts)
        bound = BoundCall(layer.cell, layer.reverse, binding, args, seen.unchanged)
        if peek_interpreter_stack() is None and layout.device.type != "meta":
            self._bound.keep(args.key, bound)
        return bound

    def _starts(self, layer: Any, layout: Layout, args: Arguments, states: Sequence[Tensor]) -> list[Tensor]:
        """What each piece starts from: the state of its row, or the cell's own after a reset."""

        def initial(count: int) -> list[Tensor]:
            return _alike(self._initial(layer, layout, args, count), states, args.structures[1])

        return layout.start(states, layer.reverse, initial)

    def _initial(self, layer: Any, layout: Layout, args: Arguments, batch: int) -> Any:
        x, _, context, _ = args.structures
        contexts = [layout.spread(context) for context in args.contexts]
        return self.programs.initial(layer.cell, batch, (x, _first(layout, args)), (context, contexts))

    # --- one step -------------------------------------------------------------------------------------------------

    def step(self, layer: Any, args: Arguments) -> tuple[Any, Any] | None:
        """(output, new state) of one step by the engine; None where the cell itself has to run."""
        if (
            args.contexts
            or torch.is_grad_enabled()
            or torch.compiler.is_compiling()
            or not args.xs
            or is_recorded()
        ):
            return None
        if peek_interpreter_stack() is not None or torch.is_autocast_enabled("cpu"):
            return None
        batch = _rows(args)
        if batch is None:
            return None
        cell = layer._modules["cell"]
        args = _with_own_state(cell, args, batch)
        key = layer.engine, args.structures
        bound = self._bound.get(key)
        if bound is not None and bound.matches(cell, False, args):
            self._misses = 0
        elif self._misses >= _PATIENCE:
            return None
        else:
            self._misses += 1
            if (bound := self._bind_step(layer, args, batch)) is None:
                return None
            self._bound.keep(key, bound)
        binding = bound.binding
        if binding is None:
            return None
        states: Sequence[Tensor | None] = args.states or [None] * len(binding.finals)
        call = Call(1, batch, _seed(layer, binding), layer.engine)
        return bound.result(binding.program.step(call, bound.tensors(args, states, None)), states, None)

    def _bind_step(self, layer: Any, args: Arguments, batch: int) -> BoundCall | None:
        """How such a step is run: by the engine if the cell is a circuit, and the engine has it; else by the cell.
        None if that cannot be said to hold for another step."""
        seen = self.programs.seen(layer.cell)
        if seen.unchanged is None:
            return None
        state, states, binding = args.structures[1], args.states, None
        try:
            if state == NOTHING:
                states, state = flatten(self.start_of_step(layer, args, batch), "state")
            found = self.programs.find(layer.cell, _shapes(False, args, state, states), args.xs, states, [])
            binding = found if found.program.steps_by_loop(layer.engine) else None
        except (TraceError, InputError, InputTypeError, NotSupported):
            if state == NOTHING:  # the cell itself runs, or says what is wrong in its own words
                return None
        return BoundCall(layer.cell, False, binding, args, seen.unchanged)

    def start_of_step(self, layer: Any, args: Arguments, batch: int | None = None) -> Any:
        """The state that the cell starts from, at one step."""
        if batch is None:
            batch = batch_of(args.xs, args.structures[0], args.contexts, args.structures[2], None)
        x, _, context, _ = args.structures
        return self.programs.initial(layer.cell, batch, (x, args.xs), (context, args.contexts))

    def restarted(self, layer: Any, args: Arguments, reset: Any) -> Arguments:
        """With that which the cell starts from, in the rows that are reset."""
        batch = batch_of(args.states, args.structures[1], (), NOTHING, _rows(args))
        rows = rows_of_reset(reset, batch)
        if args.structures[1] == NOTHING:
            return args  # all rows start there
        initial = self.start_of_step(layer, args, batch)
        chosen = [
            torch.where(rows.to(old.device).reshape(-1, *[1] * (old.dim() - 1)), start, old)
            for old, start in zip(args.states, _alike(initial, args.states, args.structures[1]), strict=True)
        ]
        return args._replace(states=chosen)

    def step_by_cell(self, layer: Any, args: Arguments) -> tuple[Any, Any]:
        """The same by the cell itself."""
        x, state, context = (
            fill(structure, tensors) for structure, tensors in zip(args.structures, args[1:4], strict=False)
        )
        if state is None:
            state = self.start_of_step(layer, args)
        try:
            returned = call_cell(layer.cell, x, state, context, context is not None)
        except Exception as error:
            if isinstance(error, ElmanError) or torch.compiler.is_compiling():
                raise
            raise of_step(layer.cell, x, state, context, error) from error
        return understand(returned, flatten(state, "state")[1], type(layer.cell).__name__)


def _with_own_state(cell: torch.nn.Module, args: Arguments, batch: int) -> Arguments:
    """With the cell's own initial state where none is given; zeros are not made."""
    if args.structures[1] == NOTHING and callable(getattr(cell, "initial_state", None)):
        states, state = flatten(own_state(cell, batch), "state")
        return args._replace(states=states, structures=_stateful(args, state))
    return args


def _stateful(args: Arguments, state: Structure) -> Any:
    x, _, *rest = args.structures
    return (x, state, *rest)


def _shapes(reverse: bool, args: Arguments, state: Structure, starts: Sequence[Tensor]) -> Shapes:
    x, _, context, teacher = args.structures
    like = specs(args.xs, args.leading), specs(starts, 1), specs(args.contexts, 1)
    return Shapes(
        reverse, x, state, context, teacher, like, None if args.weight is None else args.weight.dtype
    )


def _first(layout: Layout, args: Arguments) -> list[Tensor]:
    """x at the first step of each piece."""
    return [layout.first(x) for x in args.xs]


def _rows(args: Arguments) -> int | None:
    """The batch size that x and state of a step agree on; None if they do not."""
    sizes = {tensor.shape[0] if tensor.dim() else None for tensor in (*args.xs, *args.states)}
    return sizes.pop() if len(sizes) == 1 else None


def _alike(initial: Any, states: Sequence[Tensor], structure: Structure) -> list[Tensor]:
    """The tensors of the cell's initial state, which must look like the state that was given."""
    mine, own = flatten(in_order(initial, fill(structure, states)), "state")
    if own != structure:
        raise InputTypeError(
            what="the state is not built like the cell's initial state, from which a reset starts", where="state",
            got=str(paths(structure, "state")), expected=str(paths(own, "state")),
        )  # fmt: skip
    for i, (given, start) in enumerate(zip(states, mine, strict=True)):
        if (given.shape[1:], given.dtype, given.device) != (start.shape[1:], start.dtype, start.device):
            raise InputError(
                what="the state does not look like the cell's initial state, from which a reset starts",
                where=paths(structure, "state")[i], got=f"{list(given.shape)} {given.dtype} on {given.device}",
                expected=f"[B, {', '.join(map(str, start.shape[1:]))}] {start.dtype} on {start.device}",
            )  # fmt: skip
    return mine


def _dtype(cell: torch.nn.Module) -> torch.dtype:
    return next((p.dtype for p in cell.parameters() if p.dtype.is_floating_point), torch.float32)


def _seed(layer: Any, binding: Binding) -> int:
    """One draw from the layer's generator, by default torch's own; a transform around the call does not batch it."""
    if not binding.program.has_noise:
        return 0
    if peek_interpreter_stack() is not None:
        with temporarily_clear_interpreter_stack():
            return int(torch.randint(2**62, (), generator=layer.generator).item())
    return int(torch.randint(2**62, (), generator=layer.generator).item())
