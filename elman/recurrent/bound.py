"""A call as a value: a program bound to one cell, and all that must be the same for it to serve another call.

What a call is, is found out once (structures, what its tensors are like, the trace key, where each tensor goes);
comparing takes a few microseconds. Whatever differs, the call is bound anew, so nothing here decides what is right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
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

    leading: dimensions of x before its widths. packed: whether x lies as circuits run it, and outputs shall.
    weight: of the teacher.
    """

    leading: int
    packed: bool
    xs: list[Tensor]
    states: list[Tensor]
    contexts: list[Tensor]
    taught: list[Tensor]
    structures: tuple[Structure, Structure, Structure, Structure]
    weight: Tensor | None

    @classmethod
    def of(
        cls, leading: int, x: Any, state: Any, context: Any = None, teacher: Any = None, weight: Any = None,
        packed: bool = False,
    ) -> Arguments:  # fmt: skip
        try:
            (xs, of_x), (states, of_state), (contexts, of_context) = _part(x), _part(state), _part(context)
            taught, of_teacher = _part(teacher)
        except InputTypeError:
            for name, value in (("x", x), ("state", state), ("context", context), ("teacher", teacher)):
                flatten(value, name)  # which says where
            raise
        structures = of_x, of_state, of_context, of_teacher
        return cls(leading, packed, xs, states, contexts, taught, structures, weight)

    @property
    def key(self) -> tuple[Any, ...]:
        """What calls that are like one another have in common, besides what their tensors are like."""
        return self.structures, self.leading, None if self.weight is None else self.weight.dtype

    @property
    def forms(self) -> list[Any]:
        """Shape, dtype and device of every tensor, to be compared."""
        return [*map(_form, (*self.xs, *self.states, *self.contexts, *self.taught))]

    def cast(self, dtype: torch.dtype) -> Arguments:
        """With floats in another dtype."""
        parts = self.xs, self.states, self.contexts, self.taught
        xs, states, contexts, taught = ([_cast(t, dtype) for t in part] for part in parts)
        return self._replace(xs=xs, states=states, contexts=contexts, taught=taught)

    def starting(self, states: list[Tensor], structure: Structure) -> Arguments:
        """With another state."""
        x, _, context, teacher = self.structures
        return self._replace(states=states, structures=(x, structure, context, teacher))


def _part(value: Any) -> tuple[list[Tensor], Structure]:
    """`flatten` without a name; most arguments are a tensor or nothing."""
    if type(value) is Tensor:
        return [value], TENSOR
    if value is None:
        return [], NOTHING
    tensors: list[Tensor] = []
    return tensors, take(value, tensors)


_form = attrgetter("shape", "dtype", "device")


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.dtype.is_floating_point else tensor


class BoundCall:
    """A call that has been made on a cell.

    key: of the arguments that it serves. binding: the program; None for a step that has to be the cell's own.
    unchanged: whether the cell is as it was; None where nobody can tell, and the call has to be bound every time.
    """

    def __init__(
        self, key: Any, cell: torch.nn.Module, reverse: bool, binding: Binding | None, args: Arguments,
        unchanged: Callable[[], bool] | None,
    ) -> None:  # fmt: skip
        self.key, self.cell, self.reverse, self.binding = key, cell, reverse, binding
        self.unchanged = unchanged
        self.specs = [
            (leading, *spec)
            for leading, part in ((args.leading, args.xs), (1, args.states), (1, args.contexts))
            for spec in specs(part, leading)
        ]
        # The forms of the latest call that had every step, and its layout: the same ones need no look.
        self.latest: tuple[list[Any], Any] = [], None
        self.device = next((t.device.type for t in (*args.xs, *args.states)), "cpu")
        if binding is None:
            return
        # The program's inputs with the cell's own tensors in their places, and where those of the call go.
        self._inputs = [
            store_of(cell, source.place)[source.place.key] if isinstance(source, Owned)
            else source.tensor if isinstance(source, Captured)
            else None
            for source in binding.sources
        ]  # fmt: skip
        self._given = [slot for name in ("x", "state", "context") for slot in binding.slots(name)]
        self._taught = [(i, s.index) for i, s in enumerate(binding.sources) if isinstance(s, Teacher)]
        self._output = _filling(binding.output)
        self._final = _filling(binding.state)
        self._whole, self._cut = indivisible(binding, cuts=False), indivisible(binding, cuts=True)

    def holds(self, layer: Any) -> bool:
        """Whether it still is what the layer's cell says."""
        return (
            layer._modules["cell"] is self.cell
            and layer.reverse is self.reverse
            and self.unchanged is not None
            and self.unchanged()
        )

    def holds_for(self, layer: Any, args: Arguments) -> bool:
        """Whether it serves a call with the same key that has every step, because its tensors are like the latest."""
        return (
            self.latest[0] == args.forms
            and args.weight is None
            and not torch.is_autocast_enabled(self.device)
            and self.holds(layer)
        )

    def note(self, args: Arguments, layout: Layout) -> None:
        """Remember what the tensors of a call that has every step are like."""
        if args.xs and not layout.is_cut and not args.packed:
            self.latest = args.forms, layout

    def fits(self, args: Arguments) -> bool:
        """Whether the tensors of a call with the same key are like those of this one."""
        tensors = (*args.xs, *args.states, *args.contexts)
        return all(
            tensor.dtype is dtype and tensor.device == device and tensor.dim() >= leading
            and tensor.shape[leading:] == widths
            for tensor, (leading, widths, dtype, device) in zip(tensors, self.specs, strict=True)
        )  # fmt: skip

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
        given: tuple[Tensor | None, ...] = *args.xs, *starts, *args.contexts
        if layout is not None and layout.is_cut:
            xs = args.xs if args.packed else map(layout.pack, args.xs)
            given = *xs, *starts, *map(layout.spread, args.contexts)
        for slot, value in zip(self._given, given, strict=True):
            inputs[slot] = value
        if self._taught and layout is not None:
            taught = args.taught if args.weight is None else [*args.taught, args.weight]
            for slot, index in self._taught:
                inputs[slot] = layout.pack(taught[index])
        return inputs

    def result(
        self, made: Sequence[Tensor], states: Sequence[Tensor | None], layout: Layout | None, packed: bool
    ) -> tuple[Any, Any]:
        """(outputs, final state of each row), of the program's outputs. states: of the rows. packed: of Arguments."""
        assert self.binding is not None
        ended = [made[slot] for slot in self.binding.finals]
        outputs: list[Any] = [made[slot] for slot in self.binding.outputs]
        if layout is not None and layout.is_cut:
            ended = layout.final(ended, states, self.reverse)
            outputs = outputs if packed else [layout.unpack(value) for value in outputs]
        return self._output(outputs), self._final(ended)


def _filling(structure: Structure) -> Callable[[Sequence[Tensor]], Any]:
    """`fill`, worked out beforehand."""
    if structure == TENSOR:
        return lambda tensors: tensors[0]
    if structure == NOTHING:
        return lambda tensors: None
    if structure[0] == "tuple" and all(part == TENSOR for part in structure[1:]):
        return tuple
    return lambda tensors: fill(structure, tensors)
