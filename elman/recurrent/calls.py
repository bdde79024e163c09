"""The calls of one layer: find what a call is bound to, run it, put the results back.

A call that has come before crosses `Recurrent.forward` and `Calls.again`; one with another T, or of which other steps
happen, `_of_any_length` besides. Any other on sequences crosses, in
this order: `Recurrent.forward`, `Arguments.of`, `Calls.whole`, `BoundCall.serving` (what is not like the latest call:
`arguments.lay_out`, `Calls.run`, and the first time `Calls._bind`, which asks `Programs.find`), `BoundCall.tensors`,
`execute.apply`, `BoundCall.result`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch._C import _is_any_autocast_enabled
from torch._C._functorch import peek_interpreter_stack
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.autograd import forward_ad

from elman.caches import Recent, listed_in
from elman.circuit.structure import NOTHING, Structure, fill, flatten, paths, specs
from elman.errors import ElmanError, InputError, InputTypeError, NotSupported, TraceError
from elman.execute import Call, apply, apply_again
from elman.noise import Replay
from elman.recurrent.arguments import (
    EVERY,
    StepSelection,
    as_outputs,
    batch_of,
    expect_parts,
    expect_weights,
    is_recorded,
    lay_out,
    rows_of_reset,
    weight_of,
)
from elman.recurrent.bound import Arguments, BoundCall, Noted
from elman.recurrent.programs import Binding, Programs, Shapes, check_teacher
from elman.segments import Layout
from elman.segments.segment import Memory
from elman.trace.batches import unbatched
from elman.trace.call import call_cell, in_order, understand
from elman.trace.initial import own_state
from elman.trace.mistakes import of_step
from elman.trace.modes import changes_operations, has_no_memory, looks_at_operations

Tensor = torch.Tensor
_PATIENCE = 16  # steps in a row that may differ from one another before the cell itself runs them all


_counted = listed_in("calls that layers are bound to", lambda calls: len(calls._bound), 8)


class Calls:
    """latest: what the latest call was bound to. budget: what memory it had."""

    def __init__(self) -> None:
        self.programs = Programs()
        self.latest: Binding | None = None
        self.budget: Memory = None
        self._bound = Recent(8)
        self._recent: dict[bool, BoundCall] = {}  # the latest of them, of a call (False) and of a step (True)
        _counted(self)
        self._misses = 0  # steps in a row that were like none before
        self._stepped: Any = None  # the cell of the latest step, and how its state is built

    def again(
        self, x: Any, state: Any, single: bool, happens: StepSelection = EVERY
    ) -> tuple[Any, Any] | None:
        """What a call, or a step, gives that has come before; None where it is another, and nothing was done."""
        bound = self._recent.get(single)
        if bound is None:
            return None
        gradients, results = torch.is_grad_enabled(), None
        if happens is EVERY:
            for repeat in bound.repeats[gradients, False]:
                if (results := repeat(x, state)) is not None:
                    break
        if results is None and not single:
            for repeat in bound.repeats[gradients, True]:
                if (inputs := repeat(x, state)) is not None:
                    results = _of_any_length(bound, inputs, happens)
                    break
        if results is None:
            return None
        if not single:
            self.latest, self.budget = bound.binding, None
        return bound.output(results), bound.final(results)

    # --- over whole sequences -------------------------------------------------------------------------------------

    def whole(
        self, layer: Any, args: Arguments, steps: int | None, happens: StepSelection
    ) -> tuple[Any, Any]:
        """(outputs, final state of each row) of a call on users' sequences."""
        bound = self._recent.get(False)
        if bound is not None and bound.key == args.key and happens is EVERY and steps is None:
            latest = bound.serving(layer, args)
            if latest is not None and (layout := latest.layout) is not None:
                if bound.from_cell:
                    args = args.self_started(layer.cell, layout.batch)
                if not bound.from_cell or bound.starts_like(args, latest):
                    self.programs.settle()
                    results = self._apply(layer, layout, args, bound, latest.call)
                    bound.expect_again(layer, args, latest)
                    return results
        return self.run(layer, lay_out(args.xs, args.states, args.structures, steps, happens), args)

    def run(self, layer: Any, layout: Layout, args: Arguments) -> tuple[Any, Any]:
        """The same where it is known how the sequences lie."""
        device = "cpu" if layout.device.type == "meta" else layout.device.type
        if torch.is_autocast_enabled(device):
            # A recurrence adds up small changes over many steps: it runs in the precision of its parameters.
            with torch.autocast(device, enabled=False):
                return self._run(layer, layout, args.cast(dtype_of(layer.cell)))
        return self._run(layer, layout, args)

    def _run(self, layer: Any, layout: Layout, args: Arguments) -> tuple[Any, Any]:
        cell = layer._modules["cell"]
        plain = bool(args.xs) and not (layout.is_cut or args.packed or args.taught)
        again = plain or (bool(args.xs) and layout.moves and not (args.packed or args.taught))
        forms = args.forms if again else []
        if args.taught:

            def clean(symbols: Tensor) -> Tensor:
                whole = layout.is_packed or len(layout.lead) == 1
                return symbols if whole else layout.unpack(layout.pack(symbols))  # type: ignore[return-value]

            args = args._replace(taught=as_outputs(cell, args.taught, clean))
        if args.weight is not None:
            weight = weight_of(args.weight, args.taught, layout.lead)
            if weight is not None and not looks_at_operations():
                expect_weights(layout.pack(weight))
            args = args._replace(weight=weight)
        bound = self._like(args.key)
        known = bound is not None and bound.holds(layer)
        if not args.states and (bound.from_cell if bound is not None and known else _has_start(cell)):
            args = args.self_started(cell, layout.batch)
        batch_of(args.states, args.structures[1], args.contexts, args.structures[2], layout.batch)
        if bound is not None and known and bound.fits(args):
            self.programs.settle()
        else:
            bound = self._bind(layer, layout, args)
        bound.expect_divisible(layout)
        if args.taught:
            assert bound.binding is not None
            check_teacher(bound.binding, args.structures[3], args.taught, layout.lead)
        call = Call(layout.steps, layout.pieces, 0, layer.engine, layout.packing, memory=layer.memory)
        noted = bound.note(forms, args, layout, call) if again else None
        results = self._apply(layer, layout, args, bound, call)
        if noted is not None:
            bound.expect_again(layer, args, noted)
        return results

    def _apply(
        self, layer: Any, layout: Layout, args: Arguments, bound: BoundCall, call: Call
    ) -> tuple[Any, Any]:
        binding = self.latest = bound.binding
        assert binding is not None
        states: Sequence[Tensor | None] = args.states or bound.zeros
        if bound.has_noise:
            call = call._replace(seed=_seed(layer, binding))
        self.budget = call.memory
        in_place = not args.packed and (call.memory is not None or layout.moves)
        if in_place := in_place and peek_interpreter_stack() is None:
            call = call._replace(layout=layout, swaps=layout.alone and call.memory is None)
        starts = states
        if args.states and layout.is_cut and not call.swaps:
            starts = self._starts(layer, layout, args, args.states)
        results = apply(binding.program, call, bound.tensors(args, starts, layout, in_place))
        return bound.result(results, states, layout, args.packed, call)

    def _like(self, key: Any) -> BoundCall | None:
        """A call that was made with the same structures."""
        single = key[2]
        bound = self._recent.get(single)
        if bound is not None and bound.key == key:
            return bound
        if (bound := self._bound.get(key)) is not None:
            self._recent[single] = bound
        return bound

    def _keep(self, bound: BoundCall) -> None:
        known = [*self._bound.values(), *self._recent.values()]
        if [other for other in known if other.let_go()]:
            self._bound.clear()
            self._recent.clear()
        bound.hold_accumulators()
        self._bound.keep(bound.key, bound)
        self._recent[bound.single] = bound

    def _bind(self, layer: Any, layout: Layout, args: Arguments) -> BoundCall:
        """What a call is like, found out; kept for those that are like it."""
        seen = self.programs.seen(layer.cell)
        state, own = args.structures[1], args.states
        if not own:
            own, state = flatten(self._initial(layer, layout, args, layout.batch), "state")
        starts = self._starts(layer, layout, args.starting(own, state), own)
        xs, contexts = _first(layout, args), [layout.spread(context) for context in args.contexts]
        binding = self.programs.find(
            layer.cell, shapes_of(layer.reverse, args, state, starts), xs, starts, contexts
        )
        unchanged = seen.unchanged
        if (
            unchanged is None or peek_interpreter_stack() is not None or layout.device.type == "meta"
            or changes_operations()
        ):  # fmt: skip
            return BoundCall(layer, binding, args)  # for this call alone
        bound = BoundCall(layer, binding, args, unchanged)
        self._keep(bound)
        return bound

    def _starts(self, layer: Any, layout: Layout, args: Arguments, states: Sequence[Tensor]) -> list[Tensor]:
        """What each piece starts from: the state of its row, or the cell's own after a reset."""

        def initial(count: int) -> list[Tensor]:
            return alike(self._initial(layer, layout, args, count), states, args.structures[1])

        return layout.start(states, layer.reverse, initial)

    def _initial(self, layer: Any, layout: Layout, args: Arguments, batch: int) -> Any:
        x, _, context, _ = args.structures
        contexts = [layout.spread(context) for context in args.contexts]
        return self.programs.initial(layer.cell, batch, (x, _first(layout, args)), (context, contexts))

    # --- one step -------------------------------------------------------------------------------------------------

    def step(self, layer: Any, args: Arguments) -> tuple[Any, Any]:
        """(output, new state) of one step, by the engine or by the cell itself."""
        if args.structures[1] != NOTHING and self._stepped != (like := (layer.cell, args.structures[1])):
            if _has_start(layer.cell):
                expect_parts(args.structures[1], flatten(own_state(layer.cell, 1), "state")[1])
            self._stepped = like
        if (
            args.contexts or not args.xs or torch.is_grad_enabled() or is_recorded()
            or torch.compiler.is_compiling() or peek_interpreter_stack() is not None or _is_any_autocast_enabled()
            or forward_ad._current_level >= 0 or changes_operations() or looks_at_operations()
        ):  # fmt: skip
            return self._by_cell(layer, args)
        bound, noted = self._recent.get(True), None
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
            call = call._replace(seed=_seed(layer, binding))
        tensors = bound.tensors(args, states, None)
        if any(map(has_no_memory, tensors)):
            return self._by_cell(layer, args)
        results = binding.program.step(call, tensors)
        bound.expect_again(layer, args, noted)
        return bound.result(results, states, None, True, call)

    def _bound_step(self, layer: Any, args: Arguments) -> tuple[BoundCall | None, Noted | None, Arguments]:
        """What a step is bound to that is not like the latest one, None if nothing can be said; and where it starts."""
        batch, forms = _rows(args), args.forms
        if batch is None:
            return None, None, args
        if not args.states and _has_start(layer.cell):
            args = args.self_started(layer.cell, batch)
        bound = self._like(args.key)
        if bound is not None and bound.fits(args) and bound.holds(layer):
            self._misses = 0
        elif self._misses >= _PATIENCE:
            return None, None, args
        else:
            self._misses += 1
            if (bound := self._bind_step(layer, args, batch)) is None:
                return None, None, args
            self._keep(bound)
        return bound, bound.note(forms, args, None, Call(1, batch, 0, layer.engine)), args

    def _bind_step(self, layer: Any, args: Arguments, batch: int) -> BoundCall | None:
        """How such a step is run: by the engine if the cell is a circuit, and the engine has it; else by the cell.
        None if that cannot be said to hold for another step."""
        unchanged = self.programs.seen(layer.cell).unchanged
        if unchanged is None:
            return None
        state, states, binding = args.structures[1], args.states, None
        try:
            if not states:
                states, state = flatten(self.start_of_step(layer, args, batch), "state")
            candidate = self.programs.find(
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
        return self.programs.find(
            layer.cell, shapes_of(False, args, state, states), args.xs, states, args.contexts
        )

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
        return understand(returned, flatten(state, "state")[1], type(layer.cell).__name__)


def _of_any_length(
    bound: BoundCall, inputs: Sequence[Any], happens: StepSelection
) -> Sequence[Tensor] | None:
    """A call that has come before with another T, or other steps that happen. None where rows are cut into pieces, or T
    has been the same for some time."""
    x, *others = [inputs[slot] for slot in bound.xs]
    if any(len(other) != len(x) for other in others):
        return None
    layout = happens.layout(x.shape[0], x.shape[1], x.device)
    cut = layout.is_cut
    if cut:
        if not layout.alone:
            return None
        bound.expect_divisible(layout)
    elif bound.often(layout.steps):
        return None
    laid = layout if cut else None
    call = Call(layout.steps, layout.pieces, 0, bound.engine, layout.packing, None, 0, None, laid, swaps=cut)
    assert bound.binding is not None
    if not bound.from_cell:
        return apply_again(bound.binding.program, call, inputs)
    given = bound.started(inputs, layout.batch)
    return None if given is None else apply(bound.binding.program, call, given)


def _has_start(cell: torch.nn.Module) -> bool:
    """`callable(getattr(cell, "initial_state", None))`; a module needs two microseconds to say that it has none."""
    kind = type(cell)
    if kind.__getattr__ is not torch.nn.Module.__getattr__:
        return callable(getattr(cell, "initial_state", None))
    start = getattr(kind, "initial_state", None) or cell.__dict__.get("initial_state")
    return callable(start or cell._modules.get("initial_state"))


def shapes_of(reverse: bool, args: Arguments, state: Structure, starts: Sequence[Tensor]) -> Shapes:
    x, _, context, teacher = args.structures
    like = specs(args.xs, args.leading), specs(starts, 1), specs(args.contexts, 1)
    return Shapes(
        reverse, x, state, context, teacher, like, None if args.weight is None else args.weight.dtype
    )


def _first(layout: Layout, args: Arguments) -> list[Tensor]:
    """x at the first step of each piece."""
    return [layout.first(x if args.packed else layout.pack(x)) for x in args.xs]


def _rows(args: Arguments) -> int | None:
    """The batch size that x and state of a step agree on; None if they do not."""
    sizes = {tensor.shape[0] if tensor.dim() else None for tensor in (*args.xs, *args.states)}
    return sizes.pop() if len(sizes) == 1 else None


def alike(initial: Any, states: Sequence[Tensor], structure: Structure) -> list[Tensor]:
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


def dtype_of(cell: torch.nn.Module) -> torch.dtype:
    return next((p.dtype for p in cell.parameters() if p.dtype.is_floating_point), torch.float32)


def _draws(layer: Any) -> contextlib.AbstractContextManager[Any]:
    """Inside, a cell draws from its layer's generator."""
    if layer.generator is None or torch.compiler.is_compiling():
        return contextlib.nullcontext()
    return Replay(layer.generator)


def _seed(layer: Any, binding: Binding) -> int:
    """One draw from the layer's generator, by default torch's own; a transform around the call does not batch it."""
    if not binding.program.has_noise:
        return 0
    if peek_interpreter_stack() is not None:
        with temporarily_clear_interpreter_stack():
            return int(torch.randint(2**62, (), generator=layer.generator).item())
    if forward_ad._current_level >= 0:
        with unbatched():
            return int(torch.randint(2**62, (), generator=layer.generator).item())
    return int(torch.randint(2**62, (), generator=layer.generator).item())
