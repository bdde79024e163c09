"""The short way of a call that is like one before it.

A call has to find out what it is: structures, shapes, the trace key, where each tensor goes. `Known` keeps what one
call has found out, and with it everything that must be the same for that to hold at another; comparing takes a few
microseconds. Whatever differs, the call goes the long way, so nothing here decides what is right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch._C._functorch import peek_interpreter_stack

from elman.circuit.signature import Place, Tree
from elman.pieces import Layout
from elman.recurrent.prepare import Prepared, indivisible
from elman.trace.call import store_of

Tensor = torch.Tensor
_form = attrgetter("shape", "dtype", "device")


class Known:
    """A call that has been made.

    prepared: what it found; None for a step that has to be the cell's own. unchanged: whether the cell is as it was
    (see `fingerprint.watch`). xs, states: widths, dtype and device of every tensor, in the structures x and state.
    leading: dimensions before the widths of x, [T, B] or, for a step and for packed rows, [B] or [N]. starts: what a
    state that is not given is, "zeros", "own" or "" for unknown.
    """

    def __init__(
        self, layer: Any, prepared: Prepared | None, unchanged: Callable[[], bool], x: Any, state: Any, leading: int,
        starts: str,
    ) -> None:  # fmt: skip
        self.cell, self.reverse, self.engine = layer.cell, layer.reverse, layer.engine
        self.prepared, self.unchanged = prepared, unchanged
        self.starts = starts
        xs: list[Tensor] = []
        states: list[Tensor] = []
        self.x, self.state = structure(x, xs), structure(state, states)
        self.xs = [(x.shape[leading:], x.dtype, x.device) for x in xs]
        self.states = [(s.shape[1:], s.dtype, s.device) for s in states]
        # All shapes of the latest call, and its T and B.
        self.latest: tuple[Any, tuple[int, int]] = None, (0, 0)
        self.device = xs[0].device.type if xs else "cpu"
        if prepared is None:
            return
        # The program's inputs with the cell's own tensors in their places, and where those of x and state go.
        self.inputs = [
            store_of(self.cell, source)[source.key] if isinstance(source, Place) else source
            for source in prepared.sources
        ]
        self.x_slots = [i for i, source in enumerate(prepared.sources) if source == "x"]
        self.state_slots = [i for i, source in enumerate(prepared.sources) if source == "state"]
        self.output = _filling(prepared.output, prepared.output_slots)
        self.final = _filling(prepared.state, prepared.state_slots)
        # Whether rows may have steps of their own, and whether one may be cut into several.
        self.divisible = indivisible(prepared, cuts=False) is None
        self.cuttable = indivisible(prepared, cuts=True) is None

    def fits(
        self, layer: Any, x: Any, state: Any, leading: int = 2, batch: int | None = None
    ) -> tuple[int, int, list[Any]] | None:
        """(T, B, inputs of the program) of a call with these arguments; None if it is not like the known one.

        leading: dimensions before the widths of x: [T, B], of a step [B], or, where B is told, of packed rows [N].
        """
        if (
            layer._modules.get("cell") is not self.cell
            or layer.reverse is not self.reverse
            or layer.engine != self.engine
            or peek_interpreter_stack() is not None
            or torch.is_autocast_enabled(self.device)
        ):
            return None
        xs: list[Tensor] = []
        states: list[Any] = []
        if structure(x, xs) != self.x:
            return None
        if state is None and self.starts == "own":
            lead = xs[0].shape[:leading] if xs else ()
            rows = lead[-1] if batch is None and lead else batch
            state = self.cell.initial_state(rows) if rows is not None else None  # type: ignore[operator]
        if state is None and self.starts == "zeros":
            states = [None] * len(self.states)
        elif structure(state, states) != self.state:
            return None
        forms = [*map(_form, xs), *map(_form, states)] if state is not None else list(map(_form, xs))
        if forms == self.latest[0] and batch is None:
            sizes = self.latest[1]
        else:
            sizes = self._sizes(xs, states if state is not None else [], leading, batch)
            if sizes is None:
                return None
            if batch is None:
                self.latest = forms, sizes
        if not self.unchanged():
            return None
        if self.prepared is None:
            return *sizes, []
        inputs = self.inputs.copy()
        for slot, tensor in zip(self.x_slots, xs, strict=True):
            inputs[slot] = tensor
        for slot, tensor in zip(self.state_slots, states, strict=True):
            inputs[slot] = tensor
        return *sizes, inputs

    def _sizes(
        self, xs: list[Tensor], states: list[Tensor], leading: int, batch: int | None
    ) -> tuple[int, int] | None:
        """(T, B), T being 1 for a step; None if the tensors are not like the known ones, or disagree."""
        if not xs or xs[0].dim() < leading:
            return None
        lead = xs[0].shape[:leading]
        rows = lead[-1] if batch is None else batch
        for tensor, (widths, dtype, device) in zip(xs, self.xs, strict=True):
            if tensor.shape != (*lead, *widths) or tensor.dtype is not dtype or tensor.device != device:
                return None
        for tensor, (widths, dtype, device) in zip(states, self.states if states else [], strict=True):
            if tensor.shape != (rows, *widths) or tensor.dtype is not dtype or tensor.device != device:
                return None
        return (lead[0] if leading == 2 else 1), rows

    def laid_out(self, inputs: list[Any], layout: Layout) -> tuple[list[Any], list[Tensor | None]] | None:
        """(the inputs of a program as its circuit runs them on pieces, the states of the rows); None if that is not
        known."""
        if not (self.cuttable if layout.cuts else self.divisible):
            return None
        states = [inputs[slot] for slot in self.state_slots]
        if any(state is not None for state in states):
            if self.starts == "" and layout.starts_anew(self.reverse):
                return None
            for slot, start in zip(
                self.state_slots, layout.start(states, self.reverse, self._initial), strict=True
            ):
                inputs[slot] = start
        for slot in self.x_slots:
            inputs[slot] = layout.pack(inputs[slot])
        return inputs, states

    def _initial(self, batch: int) -> list[Tensor]:
        """The cell's initial states."""
        if self.starts == "zeros":
            return [torch.zeros((batch, *form[0]), dtype=form[1], device=form[2]) for form in self.states]
        found: list[Tensor] = []
        structure(self.cell.initial_state(batch), found)  # type: ignore[operator]
        return found


def structure(value: Any, found: list[Tensor]) -> Any:
    """How tensors lie in a value, to be compared with ==; they are put into `found`. What is unknown equals nothing."""
    kind = type(value)
    if kind is Tensor:
        found.append(value)
        return 0
    if kind in (tuple, list) or (isinstance(value, tuple) and hasattr(value, "_fields")):
        return (kind, *[structure(part, found) for part in value])
    if isinstance(value, dict) and kind is dict:
        return (kind, *value, *[structure(part, found) for part in value.values()])
    return None if value is None else object()


def plain(form: Any) -> bool:
    """Whether nothing in a structure is unknown."""
    return all(map(plain, form)) if type(form) is tuple else type(form) is not object


def _filling(tree: Tree | None, slots: Sequence[int]) -> Callable[[Sequence[Tensor]], Any]:
    """A function from a program's outputs to the structure that the user gets."""
    if tree is None:
        return lambda made: None
    form = structure(tree.fill([_MARK] * len(slots)), [])
    if form == 0:
        (slot,) = slots
        return lambda made: made[slot]
    if form == (tuple, *[0] * len(slots)):
        return lambda made: tuple([made[slot] for slot in slots])
    return lambda made: tree.fill([made[slot] for slot in slots])


_MARK = torch.empty(0)
