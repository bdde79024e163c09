"""Layers of recurrences: both directions side by side, and one on top of another, over one layout."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

from elman.errors import AmbiguityWarning, ElmanError, InputError, InputTypeError, expect
from elman.plan.explain import Explanation
from elman.recurrent.arguments import StepSelection, over_sequences, selection
from elman.recurrent.compiled import constant, layer_of
from elman.recurrent.dropout import locked as left_out
from elman.recurrent.layer import Recurrent
from elman.recurrent.order import run_batch_first, warn_if_unclear
from elman.recurrent.stacked import StackCell
from elman.recurrent.states import directions, layer_states
from elman.segments import Layout

Tensor = torch.Tensor


class Bidirectional(torch.nn.Module):
    """Two cells over the same sequences, one forward and one backward: outputs side by side on the last dimension.

        both = elman.Bidirectional(cells.GRU(8, 16), cells.GRU(8, 16))
        outputs, (forward, backward) = both(x, lengths=n)        # outputs [T, B, 32]

    Called as `Recurrent` is, without a teacher. The state is (forward, backward), as is the final state. The backward
    cell starts at the last step of each sequence that happens. forward_layer, backward_layer: the two, each a
    `Recurrent`. batch_first, engine: as of `Recurrent`.

    Warns (AmbiguityWarning) where both cells are one, which shares its weights between the directions.
    """

    batch_first = False
    order_is_said = False

    def __init__(
        self, forward_cell: torch.nn.Module, backward_cell: torch.nn.Module, *, batch_first: bool | None = None,
        engine: str = "auto",
    ) -> None:  # fmt: skip
        super().__init__()
        if forward_cell is backward_cell and isinstance(forward_cell, torch.nn.Module):
            warnings.warn(
                f"one {type(forward_cell).__name__} reads in both directions, with the same weights. If two were "
                "meant, construct two, or pass copy.deepcopy(cell)",
                AmbiguityWarning,
                stacklevel=2,
            )
        self.forward_layer = Recurrent(forward_cell, batch_first=False, engine=engine)
        self.backward_layer = Recurrent(backward_cell, reverse=True, batch_first=False, engine=engine)
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
        happens = selection(lengths, mask, reset)
        if _each_by_itself(x, happens):
            given = happens.given
            return self._both(
                lambda layer, start, **more: layer(x, start, **given, **more), state, context, 2
            )
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
        return self._both(
            lambda layer, start, **more: layer.run(layout, x, start, **more), state, context, leading
        )

    def _both(
        self, call: Callable[..., Any], state: Any, context: Any, leading: int
    ) -> tuple[Any, tuple[Any, Any]]:
        contexts = _contexts([self.forward_layer, self.backward_layer], context)
        ahead, back = _states(state, 2)
        try:
            one, first = call(self.forward_layer, ahead, **contexts[0])
        except ElmanError as error:
            _place(error, "forward")
            raise
        try:
            other, second = call(self.backward_layer, back, **contexts[1])
        except ElmanError as error:
            _place(error, "backward")
            raise
        return _side_by_side(one, other, leading), directions(first, second)

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


class Compound:
    """What is one module and several layers: in a stack it is the layer that it stands for."""

    __slots__ = ()

    def as_layer(self) -> Stack:
        """The layer, time-major, with the weights of now."""
        raise NotImplementedError


class Stack(torch.nn.Module):
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

    Called as `Recurrent` is; the state is a tuple over the layers (of a layer of `elman.nn`, again a tuple over its
    layers). Which steps happen is worked out once for all of them. `deep[0]`, `len(deep)` and iteration are over the
    layers, `deep[1:]` is a stack of those.
    """

    batch_first = False
    order_is_said = False
    residual: tuple[bool, ...] = ()
    locked = False

    def __init__(
        self, *layers: Recurrent | Bidirectional | Stack | Compound, dropout: float = 0.0, locked: bool = False,
        residual: bool | Sequence[bool] = False, norms: Sequence[torch.nn.Module] = (), batch_first: bool | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        for i, layer in enumerate(layers):
            _check_layer(layer, i)
        if not layers:
            raise InputError(what="a stack has at least one layer", where="Stack()")
        expect(dropout, (int, float), "dropout is a probability", "dropout=")
        if not 0 <= dropout <= 1:
            raise InputError(what="dropout is a probability", where="dropout=", got=dropout, expected="0 … 1")
        self.layers = torch.nn.ModuleList(cast(Any, layers))
        self.dropout, self.locked = dropout, locked
        self.residual = _residual(residual, len(layers))
        if norms:
            if len(norms) != len(layers) - 1:
                raise InputError(
                    what="there is one norm for each layer but the first", where="norms=", got=len(norms),
                    expected=len(layers) - 1,
                )  # fmt: skip
            self.norms = torch.nn.ModuleList(norms)
        self.batch_first, self.order_is_said = bool(batch_first), batch_first is not None

    def extra_repr(self) -> str:
        given = {"dropout": self.dropout, "residual": self.residual, "batch_first": self.batch_first}
        given["residual"] = any(self.residual) and self.residual
        return ", ".join(f"{name}={value}" for name, value in given.items() if value)

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.layers)

    def __getitem__(self, index: int | slice) -> Any:
        """A layer, or a stack of several, the same modules."""
        if not isinstance(index, slice):
            return self.layers[index]
        residual = [self._adds(i) for i in range(*index.indices(len(self.layers)))]
        first = self.batch_first if self.order_is_said else None
        layers = cast(Any, self.layers[index])
        norms = (
            [self.norms[i - 1] for i in range(*index.indices(len(self.layers)))[1:]] if self._norms() else ()
        )
        how = {"dropout": self.dropout, "locked": self.locked, "residual": residual, "norms": norms}
        part = Stack(*layers, **how, batch_first=first)
        part.training = self.training  # of itself alone: the layers are as they were
        return part

    def part(self, index: int) -> Recurrent | Bidirectional | Stack:
        """A layer as it runs: what a layer of `elman.nn` stands for."""
        layer: Any = self.layers[index]
        return layer.as_layer() if isinstance(layer, Compound) else layer

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
        if not _each_by_itself(x, happens):
            if not self.order_is_said:
                warn_if_unclear(self, x)
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
        return self._each(
            lambda layer, x, start, **more: layer.run(layout, x, start, **more),
            x,
            state,
            taught,
            context,
            layout,
        )

    def step(
        self, x: Any, state: Any = None, *, reset: Tensor | None = None, context: Any = None
    ) -> tuple[Any, tuple[Any, ...]]:
        """One step of all layers, for streaming: x `[B, …]` -> (output, new states). Every layer has to run forward.

        reset: `[B]` bools: rows that begin a new sequence, from the cells' initial states.
        """
        return self._each(
            lambda layer, x, start, **more: layer.step(x, start, reset=reset, **more), x, state, {}, context
        )

    def explain(self) -> Explanation:
        """What runs once, before, in and after the loop of each layer; after a call, as `Recurrent.explain`."""
        return Explanation.of({f"layer {i}": self.part(i).explain() for i in range(len(self))})

    def _each(
        self, call: Callable[..., Any], x: Any, state: Any, taught: dict[str, Any], context: Any,
        layout: Layout | None = None,
    ) -> tuple[Any, tuple[Any, ...]]:  # fmt: skip
        """Call one layer after another: (outputs of the last one, final states of all)."""
        layers: list[Any] = [
            layer.as_layer() if isinstance(layer, Compound) else layer for layer in self.layers
        ]
        more: list[dict[str, Any]] = _contexts(layers, context)
        taught = {name: value for name, value in taught.items() if value is not None}
        if taught:
            self._check_teacher(layers[-1])
            more[-1] = {**more[-1], **taught}
        starts, residual, finals = _states(state, len(layers)), self.residual, []
        between = bool(self.dropout or self._norms())
        for i, layer in enumerate(layers):
            try:
                outputs, final = call(
                    layer, self._between(x, i, layout) if i and between else x, starts[i], **more[i]
                )
                x = _summed(x, outputs) if residual and residual[i] else outputs
            except ElmanError as error:
                _place(error, f"layer {i}")
                raise
            finals.append(final)
        return x, layer_states(finals)

    def _adds(self, index: int) -> bool:
        return bool(self.residual) and self.residual[index]

    def _check_teacher(self, top: Any) -> None:
        if isinstance(top, Bidirectional) or self._adds(len(self.layers) - 1):
            raise InputError(
                what="the top layer of this stack cannot have a teacher: "
                + ("what it reads is added to its output" if self._adds(len(self.layers) - 1)
                   else "it runs in both directions"),
                where="teacher=", mend="put a Recurrent on top, whose output is an entry of its state",
            )  # fmt: skip

    def _between(self, outputs: Any, i: int, layout: Layout | None) -> Any:
        """What layer i reads of the outputs of the one below."""
        if self._norms():
            outputs = self.norms[i - 1](outputs)
        if not self.dropout or not self.training:
            return outputs

        def dropped(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
                return leaf
            return left_out(leaf, p, layout) if self.locked else torch.nn.functional.dropout(leaf, p)

        p = self.dropout
        return pytree.tree_map(dropped, outputs)

    def as_cell(self) -> StackCell:
        """One step of all layers as a cell, with the weights of now; every layer has to be a `Recurrent`."""
        cells = [cast(Any, layer).cell for layer in self.layers]
        return StackCell(cells, self.residual, self._norms())

    def _norms(self) -> Any:
        return self._modules.get("norms") or ()


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


def _residual(residual: bool | Sequence[bool], count: int) -> tuple[bool, ...]:
    """For each layer whether it is residual."""
    if isinstance(residual, bool):
        return tuple(residual and i > 0 for i in range(count))
    expect(residual, (list, tuple), "residual is a bool, or one for each layer", "residual=")
    if len(residual) != count or not all(isinstance(each, bool) for each in residual):
        raise InputError(
            what="residual is a bool, or one for each layer", where="residual=", got=list(residual),
            expected=f"{count} bools",
        )  # fmt: skip
    return tuple(residual)


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


def _contexts(layers: Sequence[Any], context: Any) -> list[dict[str, Any]]:
    """For each layer, what it is given: the context, if it takes one."""
    if context is None:
        return [{} for _ in layers]
    takes = [_takes_context(layer) for layer in layers]
    if not any(takes):
        raise InputTypeError(
            what="no cell takes a context",
            where="context=",
            mend="let a cell's forward have a third argument",
        )
    return [{"context": context} if each else {} for each in takes]


def _takes_context(layer: Any) -> bool:
    if isinstance(layer, Recurrent):
        return _has_third(layer._handle)
    if isinstance(layer, Bidirectional):
        return _takes_context(layer.forward_layer) or _takes_context(layer.backward_layer)
    return any(_takes_context(layer.part(i)) for i in range(len(layer)))


@constant
def _has_third(handle: int) -> bool:
    """Whether the cell of a layer can be called with three arguments."""
    try:
        inspect.signature(layer_of(handle).cell.forward).bind(None, None, None)
    except TypeError:
        return False
    except ValueError:  # it does not say
        return True
    return True


def _each_by_itself(x: Any, happens: StepSelection) -> bool:
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
