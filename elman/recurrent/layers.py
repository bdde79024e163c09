"""Layers of recurrences: both directions side by side, and one on top of another, over one layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

from elman.errors import ElmanError, InputError, InputTypeError, expect
from elman.pieces import Layout
from elman.recurrent.arguments import Happens, over_sequences
from elman.recurrent.layer import Recurrent

Tensor = torch.Tensor


class Bidirectional(torch.nn.Module):
    """Two cells over the same sequences, one forward and one backward: outputs side by side on the last dimension.

        both = elman.Bidirectional(cells.GRU(8, 16), cells.GRU(8, 16))
        outputs, (forward, backward) = both(x, lengths=n)        # outputs [T, B, 32]

    Called as `Recurrent` is, without a teacher. The state is (forward, backward), as is the final state. The backward
    cell starts at the last step of each sequence that happens. engine: as of `Recurrent`.
    """

    def __init__(
        self, forward_cell: torch.nn.Module, backward_cell: torch.nn.Module, *, engine: str = "auto"
    ) -> None:
        super().__init__()
        self.ahead = Recurrent(forward_cell, engine=engine)
        self.back = Recurrent(backward_cell, reverse=True, engine=engine)

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

        Raises InputError where an output has no dimension behind the batch, or the two do not fit side by side.
        """
        happens = Happens(lengths, mask, reset)
        if _each_by_itself(x, happens):
            ahead, back = _states(state, 2)
            try:
                one, first = self.ahead(x, ahead, context=context, **happens.given)
            except ElmanError as error:
                _place(error, "forward")
                raise
            try:
                other, second = self.back(x, back, context=context, **happens.given)
            except ElmanError as error:
                _place(error, "backward")
                raise
            return _side_by_side(one, other, 2), (first, second)
        return over_sequences(self.run, x, state, happens, context=context)

    def run(
        self, layout: Layout, x: Any, state: Any = None, context: Any = None
    ) -> tuple[Any, tuple[Any, Any]]:
        """The same on sequences that a layout has packed."""
        ahead, back = _states(state, 2)
        try:
            one, first = self.ahead.run(layout, x, ahead, context=context)
        except ElmanError as error:
            _place(error, "forward")
            raise
        try:
            other, second = self.back.run(layout, x, back, context=context)
        except ElmanError as error:
            _place(error, "backward")
            raise
        return _side_by_side(one, other, len(layout.inner)), (first, second)


class Stack(torch.nn.Module):
    """Layers one on top of another: each reads the outputs of the one below.

        deep = elman.Stack(elman.Recurrent(cells.GRU(8, 16)), elman.Recurrent(cells.LSTM(16, 16)), dropout=0.1)
        outputs, (first, second) = deep(x, lengths=n)

    layers: `Recurrent`, `Bidirectional` or `Stack`, each with cells of its own. dropout: the part of a layer's outputs
    that the next one does not see in training. Called as `Recurrent` is, without a teacher; the state is a tuple over
    the layers. Which steps happen is worked out once for all of them.
    """

    def __init__(self, *layers: Recurrent | Bidirectional | Stack, dropout: float = 0.0) -> None:
        super().__init__()
        for i, layer in enumerate(layers):
            if not isinstance(layer, (Recurrent, Bidirectional, Stack)):
                several = isinstance(layer, (list, tuple, torch.nn.ModuleList, torch.nn.Sequential))
                mend = (
                    "pass them one by one: elman.Stack(*layers)"
                    if several
                    else "wrap a cell: elman.Recurrent(cell)"
                )
                raise InputTypeError(
                    what="a stack is made of layers", where=f"Stack(…), argument {i}", got=type(layer).__name__,
                    expected="Recurrent, Bidirectional or Stack", mend=mend,
                )  # fmt: skip
        if not layers:
            raise InputError(what="a stack has at least one layer", where="Stack()")
        expect(dropout, (int, float), "dropout is a probability", "dropout=")
        if not 0 <= dropout <= 1:
            raise InputError(what="dropout is a probability", where="dropout=", got=dropout, expected="0 … 1")
        self.layers = torch.nn.ModuleList(layers)
        self.dropout = dropout

    def extra_repr(self) -> str:
        return f"dropout={self.dropout}" if self.dropout else ""

    def forward(
        self,
        x: Any,
        state: Any = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
        context: Any = None,
    ) -> tuple[Any, tuple[Any, ...]]:
        """(outputs of the last layer, final states of all layers); arguments as of `Recurrent.forward`.

        context: handed to every cell.
        """
        happens = Happens(lengths, mask, reset)
        if _each_by_itself(x, happens):
            finals = []
            for i, (layer, start) in enumerate(self._layers(state)):
                try:
                    x, final = layer(self._dropped(x) if i else x, start, context=context, **happens.given)
                except ElmanError as error:
                    _place(error, f"layer {i}")
                    raise
                finals.append(final)
            return x, tuple(finals)
        return over_sequences(self.run, x, state, happens, context=context)

    def run(
        self, layout: Layout, x: Any, state: Any = None, context: Any = None
    ) -> tuple[Any, tuple[Any, ...]]:
        """The same on sequences that a layout has packed."""
        finals = []
        for i, (layer, start) in enumerate(self._layers(state)):
            try:
                x, final = layer.run(layout, self._dropped(x) if i else x, start, context=context)
            except ElmanError as error:
                _place(error, f"layer {i}")
                raise
            finals.append(final)
        return x, tuple(finals)

    def step(self, x: Any, state: Any = None, *, context: Any = None) -> tuple[Any, tuple[Any, ...]]:
        """One step of all layers, for streaming: x `[B, …]` -> (output, new states). Every layer has to run forward."""
        finals = []
        for i, (layer, start) in enumerate(self._layers(state)):
            if isinstance(layer, Bidirectional):
                raise InputError(
                    what="a layer that reads backward cannot run step by step", where=f"Stack.step(), layer {i}",
                    mend="call the stack on the whole sequence",
                )  # fmt: skip
            try:
                x, final = layer.step(self._dropped(x) if i else x, start, context=context)
            except ElmanError as error:
                _place(error, f"layer {i}")
                raise
            finals.append(final)
        return x, tuple(finals)

    def _layers(self, state: Any) -> list[tuple[Any, Any]]:
        """Each layer with what it starts from."""
        return list(zip(self.layers, _states(state, len(self.layers)), strict=True))

    def _dropped(self, outputs: Any) -> Any:
        if not self.dropout or not self.training:
            return outputs
        return pytree.tree_map(
            lambda leaf: torch.nn.functional.dropout(leaf, self.dropout)
            if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf,
            outputs,
        )  # fmt: skip


def _each_by_itself(x: Any, happens: Happens) -> bool:
    """Whether layers lay out their sequences themselves: there is nothing to lay out, or a compiler is looking, which
    has its own way of doing it."""
    return torch.compiler.is_compiling() or (not happens.said and not isinstance(x, PackedSequence))


def _place(error: ElmanError, part: str) -> None:
    """Say which layer it was."""
    error.where = part if error.where is None else f"{part}, {error.where}"


def _states(state: Any, count: int) -> Sequence[Any]:
    if state is None:
        return (None,) * count
    if not isinstance(state, (tuple, list)) or len(state) != count:
        got = (
            f"{type(state).__name__} of {len(state)}"
            if isinstance(state, (tuple, list))
            else type(state).__name__
        )
        raise InputTypeError(
            what="there is one state for each part", where="state", got=got, expected=f"a tuple of {count}",
        )  # fmt: skip
    return state


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
