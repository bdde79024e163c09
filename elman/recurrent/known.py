"""What a layer knows of calls that have come before: what they were bound to, and the native comparison of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch._C._functorch import peek_interpreter_stack
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.autograd import forward_ad

from elman.caches import Recent, listed_in
from elman.circuit.structure import Structure, fill, flatten, paths, specs
from elman.errors import InputError, InputTypeError
from elman.execute import Call, apply, apply_again
from elman.recurrent.arguments import EVERY, StepSelection
from elman.recurrent.bound import Arguments, BoundCall
from elman.recurrent.programs import Binding, Programs, Shapes
from elman.segments.segment import Memory
from elman.trace.batches import unbatched
from elman.trace.call import in_order

Tensor = torch.Tensor

_counted = listed_in("calls that layers are bound to", lambda known: len(known._bound), 8)


class KnownCalls:
    """latest: what the latest call was bound to. budget: what memory it had."""

    def __init__(self) -> None:
        self.programs = Programs()
        self.latest: Binding | None = None
        self.budget: Memory = None
        self._bound = Recent(8)
        self._recent: dict[bool, BoundCall] = {}  # the latest of them, of a call (False) and of a step (True)
        _counted(self)

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

    def like(self, key: Any) -> BoundCall | None:
        """A call that was made with the same structures."""
        single = key[2]
        bound = self._recent.get(single)
        if bound is not None and bound.key == key:
            return bound
        if (bound := self._bound.get(key)) is not None:
            self._recent[single] = bound
        return bound

    def keep(self, bound: BoundCall) -> None:
        known = [*self._bound.values(), *self._recent.values()]
        if [other for other in known if other.let_go()]:
            self._bound.clear()
            self._recent.clear()
        bound.hold_accumulators()
        self._bound.keep(bound.key, bound)
        self._recent[bound.single] = bound

    def recent(self, single: bool) -> BoundCall | None:
        """What the latest call was bound to, or the latest step."""
        return self._recent.get(single)


def _of_any_length(
    bound: BoundCall, inputs: Sequence[Any], happens: StepSelection
) -> Sequence[Tensor] | None:
    """A call that has come before with another T, or other steps that happen. None where rows are cut into pieces,
    there is no step, or T has been the same for some time."""
    x, *others = [inputs[slot] for slot in bound.xs]
    if not len(x) or any(len(other) != len(x) for other in others):
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


def has_start(cell: torch.nn.Module) -> bool:
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


def seed_of(layer: Any, binding: Binding) -> int:
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
