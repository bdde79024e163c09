"""The calls of one layer: find what a call is bound to, run it, put the results back.

A call that has come before crosses `Recurrent.forward` and `KnownCalls.again`; one with another T, or of which other
steps happen, `_of_any_length` besides. Any other on sequences crosses, in this order: `Recurrent.forward`,
`Arguments.of`, `Calls.whole`, `BoundCall.serving` (what is not like the latest call: `arguments.lay_out`, `Calls.run`,
and the first time `Calls._bind`, which asks `Programs.find`), `BoundCall.tensors`, `execute.apply`, `BoundCall.result`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch._C._functorch import peek_interpreter_stack

from elman.circuit.structure import flatten
from elman.execute import Call, apply
from elman.recurrent.arguments import (
    EVERY,
    StepSelection,
    as_outputs,
    batch_of,
    expect_weights,
    lay_out,
    weight_of,
)
from elman.recurrent.bound import Arguments, BoundCall
from elman.recurrent.known import KnownCalls, alike, dtype_of, has_start, seed_of, shapes_of
from elman.recurrent.programs import check_teacher
from elman.segments import Layout
from elman.trace.modes import changes_operations, looks_at_operations

Tensor = torch.Tensor


class Calls(KnownCalls):
    """The calls of a layer on whole sequences."""

    def whole(
        self, layer: Any, args: Arguments, steps: int | None, happens: StepSelection
    ) -> tuple[Any, Any]:
        """(outputs, final state of each row) of a call on users' sequences."""
        bound = self.recent(False)
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
        again = again and layout.steps != 0
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
        bound = self.like(args.key)
        known = bound is not None and bound.holds(layer)
        if not args.states and (bound.from_cell if bound is not None and known else has_start(cell)):
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
            call = call._replace(seed=seed_of(layer, binding))
        self.budget = call.memory
        in_place = not args.packed and (call.memory is not None or layout.moves)
        if in_place := in_place and peek_interpreter_stack() is None:
            call = call._replace(layout=layout, swaps=layout.alone and call.memory is None)
        starts = states
        if args.states and layout.is_cut and not call.swaps:
            starts = self._starts(layer, layout, args, args.states)
        results = apply(binding.program, call, bound.tensors(args, starts, layout, in_place))
        return bound.result(results, states, layout, args.packed, call)

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
        self.keep(bound)
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


def _first(layout: Layout, args: Arguments) -> list[Tensor]:
    """x at the first step of each piece."""
    return [layout.first(x if args.packed else layout.pack(x)) for x in args.xs]
