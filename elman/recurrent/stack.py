"""One layer on top of another, over one layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch.utils import _pytree as pytree

from elman.errors import ElmanError, InputError, InputTypeError
from elman.plan.explain import Explanation
from elman.recurrent.arguments import StepSelection, over_sequences, selection
from elman.recurrent.bidirectional import Bidirectional
from elman.recurrent.budget import granted
from elman.recurrent.compiled import refuse_compiled
from elman.recurrent.dropout import fresh
from elman.recurrent.dropout import locked as left_out
from elman.recurrent.joined import joined, start, steps_of
from elman.recurrent.layer import Recurrent
from elman.recurrent.layers import Compound, Layers
from elman.recurrent.order import run_batch_first, warn_if_unclear
from elman.recurrent.several import contexts_of, each_by_itself, placed, states_of
from elman.recurrent.shares import batch_in, first_of, rows_of, shares
from elman.recurrent.stacked import StackCell
from elman.recurrent.states import layer_states
from elman.recurrent.stream import Stream
from elman.recurrent.surroundings import not_compiled, watched
from elman.segments import Layout
from elman.segments.segment import Memory

Tensor = torch.Tensor


class Stack(Layers):
    """Layers one on top of another: each reads the outputs of the one below.

        deep = elman.Stack(elman.Recurrent(cells.GRU(8, 16)), elman.Recurrent(cells.LSTM(16, 16)), dropout=0.1)
        outputs, (first, second) = deep(x, lengths=n)

    layers: `Recurrent`, `Bidirectional`, `Stack`, or a layer of `elman.nn`, each with cells of its own.
    dropout: the part of a layer's outputs that the next one does not see in training.
    locked: whether it is the same part at every step of a sequence (`elman.recurrent.dropout`), or drawn at each anew.
    residual: what a layer reads is added to its output, x + f(dropout(norm(x))); True for all but the first layer,
        whose width is another one as a rule, or a bool for each.
    norms: for each layer but the first a module that what it reads goes through, such as `torch.nn.LayerNorm(H)`.
    batch_first: as of `Recurrent`; it is said here, and not of the layers.
    memory: as of `Recurrent`, for all layers together. Where all of them read forward, a segment of time goes through
        the whole stack, and what one layer hands to the next never exists for all steps; hooks of layers are not called
        then, and a row that resets cut has one mask of locked dropout.
    generator: that draws the dropout, by default torch's own.

    Called as `Recurrent` is; the state is a tuple over the layers (of a layer of `elman.nn`, again a tuple over its
    layers). Which steps happen is worked out once for all of them. `deep[0]`, `len(deep)` and iteration are over the
    layers, `deep[1:]` is a stack of those.
    """

    batch_first = False
    order_is_said = False

    def __init__(
        self, *layers: Recurrent | Bidirectional | Stack | Compound, dropout: float = 0.0, locked: bool = False,
        residual: bool | Sequence[bool] = False, norms: Sequence[torch.nn.Module] = (), batch_first: bool | None = None,
        memory: str | Memory = None, generator: torch.Generator | None = None,
    ) -> None:  # fmt: skip
        for i, layer in enumerate(layers):
            _check_layer(layer, i)
        super().__init__(layers, dropout, locked, residual, norms, generator)
        self.batch_first, self.order_is_said = bool(batch_first), batch_first is not None
        self.memory = memory

    def extra_repr(self) -> str:
        given = {"dropout": self.dropout, "residual": self.residual, "batch_first": self.batch_first}
        given["memory"] = self.memory
        given["residual"] = any(self.residual) and self.residual
        return ", ".join(f"{name}={value}" for name, value in given.items() if value)

    def __getitem__(self, index: int | slice) -> Any:
        """A layer, or a stack of several, the same modules."""
        if not isinstance(index, slice):
            return self.layers[index]
        residual = [self.adds(i) for i in range(*index.indices(len(self.layers)))]
        first = self.batch_first if self.order_is_said else None
        layers = cast(Any, self.layers[index])
        norms = (
            [self.norms[i - 1] for i in range(*index.indices(len(self.layers)))[1:]]
            if self.norms_between()
            else ()
        )
        how = {"dropout": self.dropout, "locked": self.locked, "residual": residual, "norms": norms}
        part = Stack(*layers, **how, batch_first=first, generator=self.generator, memory=self.memory)
        part.training = self.training  # of itself alone: the layers are as they were
        return part

    def forward(
        self,
        x: Any,
        state: Any = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
        teacher: Any = None,
        teacher_weight: Tensor | None = None,
        context: Any = None,
    ) -> tuple[Any, tuple[Any, ...]]:
        """(outputs of the last layer, final states of all layers); arguments as of `Recurrent.forward`.

        teacher, teacher_weight: of the top layer. context: handed to every cell that takes one.
        Raises InputError where nobody takes them, or where a residual layer's output is not as wide as what it reads.
        """
        if self.batch_first:
            return run_batch_first(
                self._time_major, x, state, lengths=lengths, mask=mask, reset=reset, teacher=teacher,
                teacher_weight=teacher_weight, context=context,
            )  # fmt: skip
        return self._time_major(x, state, lengths, mask, reset, teacher, teacher_weight, context)

    def _time_major(
        self, x: Any, state: Any, lengths: Any, mask: Any, reset: Any, teacher: Any, teacher_weight: Any, context: Any
    ) -> tuple[Any, tuple[Any, ...]]:  # fmt: skip
        happens = selection(lengths, mask, reset)
        if torch.compiler.is_compiling():
            if self.memory_number and not torch.compiler.is_exporting():
                mend = "give each layer its own, or do not compile the stack"
                refuse_compiled("memory= of several layers", mend)
            return self._over(x, state, happens, teacher, teacher_weight, context)
        if watched():
            return not_compiled(
                self._time_major, x, state, lengths, mask, reset, teacher, teacher_weight, context
            )
        if not self.order_is_said and not each_by_itself(x, happens):
            warn_if_unclear(self, x)
        if self.memory is None or (first := first_of(x)) is None:
            return self._over(x, state, happens, teacher, teacher_weight, context)
        if (one := joined(self)) is None:
            # What `run` is to run, it shares out itself.
            alone = each_by_itself(x, happens)
            with granted(self._shares(first, rows_of(x), context) if alone else {}):
                return self._over(x, state, happens, teacher, teacher_weight, context)
        begin, told = start(self, one, first, batch_in(x), state, context, reset is not None)
        outputs, finals = one(
            x, begin, **happens.given, teacher=teacher, teacher_weight=teacher_weight, context=told
        )
        return outputs, layer_states(finals)

    def _over(
        self, x: Any, state: Any, happens: StepSelection, teacher: Any, teacher_weight: Any, context: Any
    ) -> tuple[Any, tuple[Any, ...]]:
        """One layer after another, over users' sequences."""
        if not each_by_itself(x, happens):
            return over_sequences(
                self.run, x, state, happens, teacher=teacher, weight=teacher_weight, context=context
            )
        taught, given = {"teacher": teacher, "teacher_weight": teacher_weight}, happens.given
        return self._each(
            lambda layer, x, start, **more: layer(x, start, **given, **more), x, state, taught, context
        )

    def run(
        self, layout: Layout, x: Any, state: Any = None, teacher: Any = None, weight: Any = None, context: Any = None
    ) -> tuple[Any, tuple[Any, ...]]:  # fmt: skip
        """The same on sequences that a layout has packed."""
        taught = {"teacher": teacher, "weight": weight}

        def each() -> tuple[Any, tuple[Any, ...]]:
            return self._each(
                lambda layer, x, start, **more: layer.run(layout, x, start, **more),
                x, state, taught, context, layout,
            )  # fmt: skip

        if self.memory is None or not layout.steps:
            return each()
        first = pytree.tree_map(layout.first, x)
        if (one := joined(self)) is None:
            with granted(self._shares(first, layout.rows, context)):
                return each()
        begin, told = start(self, one, first, layout.batch, state, context, layout.cuts)
        outputs, finals = one.run(layout, x, begin, teacher, weight, told)
        return outputs, layer_states(finals)

    def step(
        self, x: Any, state: Any = None, *, reset: Tensor | None = None, context: Any = None
    ) -> tuple[Any, tuple[Any, ...]]:
        """One step of all layers, for streaming: x `[B, …]` -> (output, new states). Every layer has to run forward.

        reset: `[B]` bools: rows that begin a new sequence, from the cells' initial states.
        """
        return self._each(
            lambda layer, x, start, **more: layer.step(x, start, reset=reset, **more), x, state, {}, context
        )

    def stream(self, batch: int | None = None, state: Any = None, weights: str | None = None) -> Stream:
        """A stream of all layers, a step of which is one call of an engine: as `Recurrent.stream`.

        Raises NotSupported where layers are not `Recurrent` all of them, or name different engines.
        """
        return Stream(steps_of(self, "stream()"), batch, state, weights)

    def takes_context(self) -> bool:
        """Whether one of the layers takes a context."""
        return any(self.part(i).takes_context() for i in range(len(self)))

    def explain(self) -> Explanation:
        """What runs once, before, in and after the loop of each layer; after a call, as `Recurrent.explain`."""
        if self.memory is not None and (one := joined(self)) is not None:
            return one.explain()
        return Explanation.of({f"layer {i}": self.part(i).explain() for i in range(len(self))})

    def _each(
        self, call: Callable[..., Any], x: Any, state: Any, taught: dict[str, Any], context: Any,
        layout: Layout | None = None,
    ) -> tuple[Any, tuple[Any, ...]]:  # fmt: skip
        """Call one layer after another: (outputs of the last one, final states of all)."""
        layers: list[Any] = [
            layer.as_layer() if isinstance(layer, Compound) else layer for layer in self.layers
        ]
        more: list[dict[str, Any]] = contexts_of(layers, context)
        taught = {name: value for name, value in taught.items() if value is not None}
        if taught:
            self._check_teacher(layers[-1])
            more[-1] = {**more[-1], **taught}
        starts, residual, finals = states_of(state, len(layers)), self.residual, []
        between = bool(self.dropout or self.norms_between())
        for i, layer in enumerate(layers):
            try:
                outputs, final = call(
                    layer, self._between(x, i, layout) if i and between else x, starts[i], **more[i]
                )
                x = _summed(x, outputs) if residual and residual[i] else outputs
            except ElmanError as error:
                placed(error, f"layer {i}", state, len(layers))
                raise
            finals.append(final)
        return x, layer_states(finals)

    def _shares(self, first: Any, rows: int, context: Any) -> dict[Any, Memory]:
        layers = [self.part(i) for i in range(len(self))]
        return shares(layers, self.memory, first, rows, contexts_of(layers, context), chained=True)

    def _check_teacher(self, top: Any) -> None:
        if isinstance(top, Bidirectional) or self.adds(len(self.layers) - 1):
            raise InputError(
                what="the top layer of this stack cannot have a teacher: "
                + ("what it reads is added to its output" if self.adds(len(self.layers) - 1)
                   else "it runs in both directions"),
                where="teacher=", mend="put a Recurrent on top, whose output is an entry of its state",
            )  # fmt: skip

    def _between(self, outputs: Any, i: int, layout: Layout | None) -> Any:
        """What layer i reads of the outputs of the one below."""
        if self.norms_between():
            outputs = self.norms[i - 1](outputs)
        if not self.dropout or not self.training:
            return outputs

        def dropped(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
                return leaf
            return (
                left_out(leaf, p, layout, self.generator) if self.locked else fresh(leaf, p, self.generator)
            )

        p = self.dropout
        return pytree.tree_map(dropped, outputs)

    def as_cell(self) -> StackCell:
        """One step of all layers as a cell, with the weights of now; every layer has to be a `Recurrent`."""
        cells = [cast(Any, layer).cell for layer in self.layers]
        return StackCell(cells, self.residual, self.norms_between())


def _check_layer(layer: Any, i: int) -> None:
    if isinstance(layer, (Recurrent, Bidirectional, Stack, Compound)):
        if getattr(layer, "batch_first", False):
            raise InputError(
                what="which dimension is time is said of the stack, not of its layers", where=f"Stack(…), argument {i}",
                got=f"{type(layer).__name__}(…, batch_first=True)", expected="Stack(…, batch_first=True)",
                mend="leave batch_first away from the layers",
            )  # fmt: skip
        return
    if isinstance(layer, torch.nn.RNNBase):
        mend = f"use elman.nn.{type(layer).__name__}(…), or elman.nn.swap(layer) first"
    elif isinstance(layer, (list, tuple, torch.nn.ModuleList, torch.nn.Sequential)):
        mend = "pass them one by one: elman.Stack(*layers)"
    else:
        mend = "wrap a cell: elman.Recurrent(cell)"
    raise InputTypeError(
        what="a stack is made of layers", where=f"Stack(…), argument {i}", got=type(layer).__name__,
        expected="Recurrent, Bidirectional, Stack, or a layer of elman.nn", mend=mend,
    )  # fmt: skip


def _summed(x: Any, outputs: Any) -> Any:
    """x + outputs, of the same structure."""

    def add(a: Any, b: Any) -> Any:
        if not isinstance(a, Tensor):
            return b
        if a.shape != b.shape:
            raise InputError(
                what="a residual layer's output is not as wide as what it reads", where="residual=",
                got=f"{list(b.shape)}", expected=f"{list(a.shape)}", mend="residual=[…] says which layers are residual",
            )  # fmt: skip
        return a + b

    if pytree.tree_structure(x) != pytree.tree_structure(outputs):
        raise InputTypeError(
            what="a residual layer's output has another structure than what it reads", where="residual="
        )
    return pytree.tree_map(add, x, outputs)
