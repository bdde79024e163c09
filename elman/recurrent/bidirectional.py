"""Both directions side by side, over one layout."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from elman.errors import AmbiguityWarning, ElmanError, InputError, InputTypeError
from elman.plan.explain import Explanation
from elman.recurrent.arguments import over_sequences, selection
from elman.recurrent.budget import Budget, granted
from elman.recurrent.compiled import refuse_compiled
from elman.recurrent.layer import Recurrent
from elman.recurrent.order import run_batch_first, warn_if_unclear
from elman.recurrent.several import contexts_of, each_by_itself, placed, states_of
from elman.recurrent.shares import first_of, rows_of, shares
from elman.recurrent.states import directions
from elman.recurrent.surroundings import not_compiled, watched
from elman.segments import Layout
from elman.segments.segment import Memory

Tensor = torch.Tensor


class Bidirectional(Budget, torch.nn.Module):
    """Two cells over the same sequences, one forward and one backward: outputs side by side on the last dimension.

        both = elman.Bidirectional(cells.GRU(8, 16), cells.GRU(8, 16))
        outputs, (forward, backward) = both(x, lengths=n)        # outputs [T, B, 32]

    Called as `Recurrent` is, without a teacher. The state is (forward, backward), as is the final state. The backward
    cell starts at the last step of each sequence that happens. forward_layer, backward_layer: the two, each a
    `Recurrent`. batch_first, engine, generator: as of `Recurrent`. memory: as of `Recurrent`, for both together; the
    outputs of each direction count, since what is returned is made of them.

    Warns (AmbiguityWarning) where both cells are one, which shares its weights between the directions.
    """

    batch_first = False
    order_is_said = False

    def __init__(
        self, forward_cell: torch.nn.Module, backward_cell: torch.nn.Module, *, batch_first: bool | None = None,
        engine: str = "auto", memory: str | Memory = None, generator: torch.Generator | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.memory = memory
        if forward_cell is backward_cell and isinstance(forward_cell, torch.nn.Module):
            warnings.warn(
                f"one {type(forward_cell).__name__} reads in both directions, with the same weights. If two were "
                "meant, construct two, or pass copy.deepcopy(cell)",
                AmbiguityWarning,
                stacklevel=2,
            )
        self.forward_layer, self.backward_layer = (
            Recurrent(cell, reverse=reverse, batch_first=False, engine=engine, generator=generator)
            for cell, reverse in ((forward_cell, False), (backward_cell, True))
        )
        self.batch_first, self.order_is_said = bool(batch_first), batch_first is not None

    def extra_repr(self) -> str:
        return "batch_first=True" if self.batch_first else ""

    def forward(
        self,
        x: Any,
        state: Any = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
        context: Any = None,
    ) -> tuple[Any, tuple[Any, Any]]:
        """(outputs `[T, B, …]`, (final state forward, final state backward)); arguments as of `Recurrent.forward`.

        context: handed to those cells that take one.
        Raises InputError where an output has no dimension behind the batch, or the two do not fit side by side.
        """
        if self.batch_first:
            return run_batch_first(
                self._time_major, x, state, lengths=lengths, mask=mask, reset=reset, context=context
            )
        return self._time_major(x, state, lengths, mask, reset, context)

    def _time_major(
        self, x: Any, state: Any, lengths: Any, mask: Any, reset: Any, context: Any
    ) -> tuple[Any, tuple[Any, Any]]:
        if not torch.compiler.is_compiling() and watched():
            return not_compiled(self._time_major, x, state, lengths, mask, reset, context)
        happens = selection(lengths, mask, reset)
        if each_by_itself(x, happens):
            given = happens.given

            def both() -> tuple[Any, tuple[Any, Any]]:
                return self._both(
                    lambda layer, start, **more: layer(x, start, **given, **more), state, context, 2
                )

            if torch.compiler.is_compiling():
                if self.memory_number:
                    mend = "give each direction its own, or do not compile the layer"
                    refuse_compiled("memory= of several layers", mend)
                return both()
            if self.memory is None or (first := first_of(x)) is None:
                return both()
            with granted(self._shares(first, rows_of(x), context)):
                return both()
        if not self.order_is_said:
            warn_if_unclear(self, x)
        return over_sequences(self.run, x, state, happens, context=context)

    def step(self, x: Any, state: Any = None, **more: Any) -> tuple[Any, Any]:
        """Refused, with InputError: half of the output depends on what comes later."""
        raise InputError(
            what="a layer that reads backward cannot run step by step", where="Bidirectional.step()",
            mend="call the layer on the whole sequence",
        )  # fmt: skip

    def run(
        self, layout: Layout, x: Any, state: Any = None, context: Any = None
    ) -> tuple[Any, tuple[Any, Any]]:
        """The same on sequences that a layout has packed."""
        leading = len(layout.inner)

        def both() -> tuple[Any, tuple[Any, Any]]:
            return self._both(
                lambda layer, start, **more: layer.run(layout, x, start, **more), state, context, leading
            )

        if self.memory is None or not layout.steps:
            return both()
        with granted(self._shares(pytree.tree_map(layout.first, x), layout.rows, context)):
            return both()

    def _both(
        self, call: Callable[..., Any], state: Any, context: Any, leading: int
    ) -> tuple[Any, tuple[Any, Any]]:
        contexts = contexts_of([self.forward_layer, self.backward_layer], context)
        ahead, back = states_of(state, 2)
        try:
            one, first = call(self.forward_layer, ahead, **contexts[0])
        except ElmanError as error:
            placed(error, "forward", state, 2)
            raise
        try:
            other, second = call(self.backward_layer, back, **contexts[1])
        except ElmanError as error:
            placed(error, "backward", state, 2)
            raise
        return _side_by_side(one, other, leading), directions(first, second)

    def _shares(self, first: Any, rows: int, context: Any) -> dict[Any, Memory]:
        layers = [self.forward_layer, self.backward_layer]
        return shares(layers, self.memory, first, rows, contexts_of(layers, context), chained=False)

    def takes_context(self) -> bool:
        """Whether one of the cells takes a context."""
        return self.forward_layer.takes_context() or self.backward_layer.takes_context()

    def explain(self) -> Explanation:
        """What runs once, before, in and after the loops of both directions; after a call, as `Recurrent.explain`."""
        return Explanation.of({
            "forward": self.forward_layer.explain(), "backward": self.backward_layer.explain(),
        })  # fmt: skip

    def _load_from_state_dict(  # type: ignore[override]
        self, state_dict: dict[str, Any], prefix: str, *args: Any
    ) -> None:
        for before, now in _RENAMED.items():  # what was written by versions that called them otherwise
            for name in [name for name in state_dict if name.startswith(f"{prefix}{before}.")]:
                state_dict[f"{prefix}{now}." + name.removeprefix(f"{prefix}{before}.")] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def __setstate__(self, state: dict[str, Any]) -> None:
        modules = state["_modules"]
        super().__setstate__(
            {**state, "_modules": {_RENAMED.get(name, name): modules[name] for name in modules}}
        )


_RENAMED = {"ahead": "forward_layer", "back": "backward_layer"}


def _side_by_side(one: Any, other: Any, leading: int) -> Any:
    """Two outputs of the same structure, concatenated on the last dimension."""

    def join(a: Any, b: Any) -> Any:
        if not isinstance(a, Tensor):
            return a
        if a.dim() <= leading or a.shape[:-1] != b.shape[:-1]:
            raise InputError(
                what="the outputs of the two directions do not fit side by side", where="Bidirectional",
                got=f"{list(a.shape[leading:])} and {list(b.shape[leading:])} at each step",
                expected="the same dimensions but for the last",
            )  # fmt: skip
        return torch.cat([a, b], -1)

    if pytree.tree_structure(one) != pytree.tree_structure(other):
        raise InputTypeError(
            what="the outputs of the two directions have different structures", where="Bidirectional"
        )
    return pytree.tree_map(join, one, other)
