"""A stack as one recurrence: layers that all read forward are one cell, whose step is a step of each.

Under a budget a segment of time goes through all of them, and what one hands to the next never exists for all steps;
a stream runs them in one call. Where one reads backward, what it reads has to be there as a whole: see `shares`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from elman.circuit.structure import flatten, specs
from elman.errors import NotSupported
from elman.recurrent.bidirectional import Bidirectional
from elman.recurrent.dropout import dropout_mask
from elman.recurrent.kept import Steps
from elman.recurrent.known import has_start
from elman.recurrent.layer import Recurrent, not_stepwise
from elman.recurrent.layers import Layers
from elman.recurrent.several import states_of
from elman.recurrent.shares import row_of
from elman.recurrent.stacked import StackCell
from elman.recurrent.states import layer_states
from elman.trace.call import call_cell, understand
from elman.trace.initial import Zeros, own_state

Tensor = torch.Tensor


class JoinedCell(StackCell):
    """A step of all layers of a stack, with what lies between them.

    context: {"masks": of locked dropout, one `[B, …]` for each layer but the first; "own": for cells that take one}.
    """

    def __init__(self, stack: Layers) -> None:
        layers: list[Any] = [stack.part(i) for i in range(len(stack))]
        super().__init__([layer.cell for layer in layers], stack.residual, stack.norms_between())
        self.takes = tuple(layer.takes_context() for layer in layers)
        self.p, self.locked = stack.dropout, stack.locked
        self.starts: dict[int, Zeros] = {}  # of layers that start from zeros

    def initial_state(self, batch: int) -> tuple:
        """What each layer starts from after a reset; `start` has found out where it is zeros."""
        return tuple(
            self.starts[i].make(batch) if i in self.starts else own_state(cell, batch)
            for i, cell in enumerate(self.cells)
        )

    def says(self) -> bool:
        """Whether what each layer starts from is known: before a step, of cells that say it themselves."""
        return all(i in self.starts or has_start(cell) for i, cell in enumerate(self.cells))

    def forward(self, x: Any, states: tuple, context: Any = None) -> tuple[Any, tuple]:
        context, after = context or {}, []
        for i, (cell, own) in enumerate(zip(self.cells, states, strict=True)):
            given = self.between(x, i, context) if i else x
            told = context.get("own") if self.takes[i] else None
            returned = call_cell(cell, given, own, told, told is not None)
            output, new = understand(returned, flatten(own, "state")[1], type(cell).__name__)
            x = pytree.tree_map(torch.add, x, output) if self.residual and self.residual[i] else output
            after.append(new)
        return x, tuple(after)

    def between(self, x: Any, i: int, context: dict[str, Any]) -> Any:
        """What layer i reads of the output of the one below."""
        if len(self.norms):
            x = self.norms[i - 1](x)
        if not (self.p and self.training):
            return x
        if self.locked:
            return x * context["masks"][i - 1]
        return pytree.tree_map(
            lambda leaf: nn.functional.dropout(leaf, self.p) if leaf.is_floating_point() else leaf, x
        )


def _bring_up_to_date(stack: Layers, one: Recurrent, locked: bool) -> None:
    """Have the one layer be what the stack is now."""
    cells, norms = [stack.part(i).cell for i in range(len(stack))], [*stack.norms_between()]  # type: ignore[union-attr]
    cell: Any = one.cell
    if [*cell.cells] != cells or [*cell.norms] != norms:
        one.cell = cell = JoinedCell(stack)
    cell.p, cell.locked, cell.residual = stack.dropout, locked, stack.residual
    cell.training = stack.training
    one.engine, one.generator = stack.part(0).engine, stack.generator  # type: ignore[union-attr]


def joined(stack: Layers) -> Recurrent | None:
    """The stack as one recurrence, if it can be; kept with it."""
    layers: list[Any] = [stack.part(i) for i in range(len(stack))]
    if any(type(layer) is not Recurrent or layer.reverse or layer.generator is not None for layer in layers):
        return None
    if len({str(layer.engine) for layer in layers}) > 1:
        return None
    one: Recurrent | None = stack.__dict__.get("_joined")
    if one is None:
        one = Recurrent(JoinedCell(stack), batch_first=False)
        stack.__dict__["_joined"] = one  # no submodule: the cells are those of the layers
    _bring_up_to_date(stack, one, stack.locked)
    one.memory = stack.memory
    return one


def steps_of(stack: Layers, where: str) -> Steps:
    """What a stream of all layers runs: one step of all of them. Raises as their `step` does."""
    for i in range(len(stack)):
        layer: Any = stack.part(i)
        if getattr(layer, "reverse", False) or isinstance(layer, Bidirectional):
            raise not_stepwise(f"layer {i}, {where}")
        if (
            type(layer) is not Recurrent
            or layer.generator is not None
            or layer.engine != stack.part(0).engine
        ):
            raise NotSupported(
                what="a stream runs all layers as one: a `Recurrent` each, alike in engine= and without generator=",
                where=f"layer {i}, {where}", mend="use step(), or a stream for each layer",
            )  # fmt: skip
    one = Recurrent(JoinedCell(stack), batch_first=False)

    def watched() -> list[tuple[Any, ...]]:
        settings = "training", "dropout", "residual", "generator"
        found: list[tuple[Any, ...]] = [(stack.__dict__, name, stack.__dict__[name]) for name in settings]
        for layer in stack.layers:
            found += [(layer._modules, "cell", layer.cell), (layer.__dict__, "engine", layer.engine)]
            found.append((layer.__dict__, "generator", layer.generator))
        for name in ("layers", "norms"):
            modules: Any = stack._modules.get(name)
            found.append((stack._modules, name, *([] if modules is None else [modules])))
            if modules is not None:
                found += [(modules._modules, key, one) for key, one in modules._modules.items()]
                found.append((modules._modules, str(len(modules))))  # one that is appended
        return found

    def begin(x: Any, context: Any) -> None:
        _bring_up_to_date(stack, one, locked=False)  # each step draws anew
        start(stack, one, x, 1, None, (context or {}).get("own"), True)

    _bring_up_to_date(stack, one, locked=False)
    return Steps(
        lambda: one, watched, begin, lambda state: tuple(states_of(state, len(stack))), layer_states,
        lambda context: None if context is None else {"own": context}, JoinedCell.says,
    )  # fmt: skip


def start(
    stack: Layers, one: Recurrent, x: Any, batch: int, state: Any, context: Any, anew: bool
) -> tuple[tuple, Any]:
    """(the state of each layer, the context of all of them), of `batch` rows.

    x: a first step, of which a row is tried: one step of every layer says how wide what it hands on is, and what a
    layer without a state starts from. anew: whether sequences begin within the call.
    """
    layers: list[Any] = [stack.part(i) for i in range(len(stack))]
    cell: Any = one.cell
    states, masks = list(states_of(state, len(layers))), []
    told: dict[str, Any] = {} if context is None else {"own": context}
    locked = bool(stack.dropout) and stack.training and stack.locked
    if not locked and not anew and all(own is not None for own in states):
        return tuple(states), told or None
    x = row_of(x)
    for i, layer in enumerate(layers):
        own_context = row_of(context) if cell.takes[i] else None
        x = _read(stack, x, i, batch, masks if locked else None)
        initial = None
        if states[i] is None or anew:
            initial = _initial(layer, x, own_context)
            if isinstance(initial, Zeros):
                cell.starts[i] = initial
        if states[i] is None:
            states[i] = initial.make(batch) if isinstance(initial, Zeros) else own_state(layer.cell, batch)
        if i < len(layers) - 1:
            with torch.no_grad():
                own = row_of(states[i])
                returned = call_cell(layer.cell, x, own, own_context, own_context is not None)
            output, _ = understand(returned, flatten(own, "state")[1], type(layer.cell).__name__)
            x = pytree.tree_map(torch.add, x, output) if stack.adds(i) else output
    if masks:
        told["masks"] = tuple(masks)
    return tuple(states), told or None


def _read(stack: Layers, x: Any, i: int, batch: int, masks: list[Tensor] | None) -> Any:
    """What layer i reads, as far as its form goes; its mask is drawn."""
    if not i:
        return x
    with torch.no_grad():
        x = stack.norms_between()[i - 1](x) if len(stack.norms_between()) else x
    if masks is not None:
        if not isinstance(x, Tensor):
            raise NotSupported(
                what="dropout that stays the same for a sequence is that of a tensor", where=f"layer {i}, memory=",
                mend="leave locked=True away, or the budget",
            )  # fmt: skip
        masks.append(dropout_mask(x, (batch, *x.shape[1:]), stack.dropout, stack.generator))
    return x


def _initial(layer: Recurrent, x: Any, context: Any) -> Zeros | None:
    """The zeros that a layer starts from; None for a cell that says itself what it starts from."""
    if callable(getattr(layer.cell, "initial_state", None)):
        return None
    (xs, of_x), (contexts, of_context) = flatten(x, "x"), flatten(context, "context")
    state = layer._calls.programs.initial(layer.cell, 1, (of_x, xs), (of_context, contexts))
    tensors, structure = flatten(state, "state")
    return Zeros(structure, tuple(specs(tensors, 1)))
