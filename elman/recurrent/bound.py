"""A call as a value: a program bound to one cell, and all that must be the same for it to serve another call.

What a call is, is found out once (structures, what its tensors are like, the trace key, where each tensor goes);
comparing takes a few microseconds. Whatever differs, the call is bound anew, so nothing here decides what is right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from elman.circuit.structure import NOTHING, TENSOR, Structure, fill, flatten, specs, take
from elman.errors import InputTypeError
from elman.recurrent.programs import Binding, Captured, Owned, Teacher, indivisible
from elman.segments import Layout
from elman.trace.call import store_of

Tensor = torch.Tensor


class Arguments(NamedTuple):
    """The arguments of a call, taken apart: tensors in order, and how they lie in x, state, context and teacher.

    xs: packed, with `leading` dimensions before their widths. weight: of the teacher.
    """

    leading: int
    xs: list[Tensor]
    states: list[Tensor]
    contexts: list[Tensor]
    taught: list[Tensor]
    structures: tuple[Structure, Structure, Structure, Structure]
    weight: Tensor | None

    @classmethod
    def of(
        cls, leading: int, x: Any, state: Any, context: Any = None, teacher: Any = None, weight: Any = None
    ) -> Arguments:
        xs: list[Tensor] = []
        states: list[Tensor] = []
        contexts: list[Tensor] = []
        taught: list[Tensor] = []
        try:
            structures = take(x, xs), take(state, states), take(context, contexts), take(teacher, taught)
        except InputTypeError:
            for name, value in (("x", x), ("state", state), ("context", context), ("teacher", teacher)):
                flatten(value, name)  # which says where
            raise
        return cls(leading, xs, states, contexts, taught, structures, weight)

    @property
    def key(self) -> tuple[Any, ...]:
        """What calls that are like one another have in common, besides what their tensors are like."""
        return self.structures, self.leading, None if self.weight is None else self.weight.dtype

    @property
    def device(self) -> torch.device | None:
        """Of the first tensor."""
        return next((t.device for t in (*self.xs, *self.states)), None)

    def cast(self, dtype: torch.dtype) -> Arguments:
        """With floats in another dtype."""
        xs, states, contexts, taught = ([_cast(t, dtype) for t in part] for part in self[1:5])
        return self._replace(xs=xs, states=states, contexts=contexts, taught=taught)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.dtype.is_floating_point else tensor


class BoundCall:
    """A call that has been made on a cell.

    binding: the program; None for a step that has to be the cell's own. unchanged: whether the cell is as it was; None
    where nobody can tell, and the call has to be bound every time.
    """

    def __init__(
        self, cell: torch.nn.Module, reverse: bool, binding: Binding | None, args: Arguments,
        unchanged: Callable[[], bool] | None,
    ) -> None:  # fmt: skip
        self.cell, self.reverse, self.binding, self.unchanged = cell, reverse, binding, unchanged
        self.specs = [
            *zip([args.leading] * len(args.xs), specs(args.xs, args.leading), strict=True),
            *zip([1] * len(args.states), specs(args.states, 1), strict=True),
            *zip([1] * len(args.contexts), specs(args.contexts, 1), strict=True),
        ]
        if binding is None:
            return
        # The program's inputs with the cell's own tensors in their places, and where those of the call go.
        self._inputs = [
            store_of(cell, source.place)[source.place.key] if isinstance(source, Owned)
            else source.tensor if isinstance(source, Captured)
            else None
            for source in binding.sources
        ]  # fmt: skip
        self._x, self._state, self._context = map(binding.slots, ("x", "state", "context"))
        self._taught = [(i, s.index) for i, s in enumerate(binding.sources) if isinstance(s, Teacher)]
        self._output = _filling(binding.output)
        self._final = _filling(binding.state)
        self._whole, self._cut = indivisible(binding, cuts=False), indivisible(binding, cuts=True)

    def matches(self, cell: Any, reverse: bool, args: Arguments) -> bool:
        """Whether a call with the same key is like this one."""
        if cell is not self.cell or reverse is not self.reverse or self.unchanged is None:
            return False
        tensors = (*args.xs, *args.states, *args.contexts)
        for tensor, (leading, (widths, dtype, device)) in zip(tensors, self.specs, strict=True):
            if (
                tensor.dtype is not dtype
                or tensor.shape[leading:] != widths
                or tensor.device != device
                or tensor.dim() < leading
            ):
                return False
        return self.unchanged()

    def program_of(self, layout: Layout) -> Binding:
        """The binding of a call that runs; refused where steps do not happen that the cell cannot do without."""
        assert self.binding is not None
        if layout.is_cut and (reason := self._cut if layout.cuts else self._whole) is not None:
            raise reason
        return self.binding

    def tensors(self, args: Arguments, starts: Sequence[Tensor | None], layout: Layout | None) -> list[Any]:
        """The inputs of the program, as its circuit runs them on the pieces of a layout, which start from `starts`.

        layout: None for one step.
        """
        inputs: list[Any] = self._inputs.copy()
        for slot, x in zip(self._x, args.xs, strict=True):
            inputs[slot] = x
        for slot, start in zip(self._state, starts, strict=True):
            inputs[slot] = start
        if layout is None:
            return inputs
        for slot, context in zip(self._context, args.contexts, strict=True):
            inputs[slot] = layout.spread(context)
        if self._taught:
            taught = args.taught if args.weight is None else [*args.taught, args.weight]
            for slot, index in self._taught:
                inputs[slot] = layout.pack(taught[index])
        return inputs

    def result(
        self, made: Sequence[Tensor], states: Sequence[Tensor | None], layout: Layout | None
    ) -> tuple[Any, Any]:
        """(packed outputs, final state of each row), of the program's outputs. states: of the rows."""
        assert self.binding is not None
        ended = [made[slot] for slot in self.binding.finals]
        if layout is not None:
            ended = layout.final(ended, states, self.reverse)
        return self._output([made[slot] for slot in self.binding.outputs]), self._final(ended)


def _filling(structure: Structure) -> Callable[[Sequence[Tensor]], Any]:
    """`fill`, worked out beforehand."""
    if structure == TENSOR:
        return lambda tensors: tensors[0]
    if structure == NOTHING:
        return lambda tensors: None
    if structure[0] == "tuple" and all(part == TENSOR for part in structure[1:]):
        return tuple
    return lambda tensors: fill(structure, tensors)
