"""A call as a value: a program bound to one cell, and all that must be the same for it to serve another call.

What a call is, is found out once (structures, what its tensors are like, the trace key, where each tensor goes);
comparing takes a few microseconds. Whatever differs, the call is bound anew, so nothing here decides what is right.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple

import torch
from torch._C import _is_any_autocast_enabled
from torch._C._functorch import peek_interpreter_stack, unwrap_if_dead
from torch.autograd import forward_ad
from torch.overrides import _get_current_function_mode_stack

from elman.caches import listed, listed_in
from elman.circuit.structure import NOTHING, TENSOR, Structure, fill, flatten, paths, specs, take
from elman.errors import InputTypeError, NotSupported
from elman.execute import Call
from elman.recurrent.programs import Binding, Teacher, indivisible
from elman.recurrent.repeat import NO_LEVEL, never, repeat
from elman.segments import Layout
from elman.trace.initial import own_state
from elman.trace.modes import changes_operations

Tensor = torch.Tensor
_CAME = 8  # calls of which it is known that they have come before
_counted = listed_in("calls that have come before", lambda bound: len(bound._came), _CAME)
# No WeakSet: other threads may not add to it while one reads it.
_HOLDING: set[weakref.ref[BoundCall]] = set()
listed("calls that hold places where gradients are added up", _HOLDING)
_OFTEN = 3  # calls of one T in a row
_REPEATED = 4  # calls that are told apart without Python, with gradients and without


class Arguments(NamedTuple):
    """The arguments of a call, taken apart: tensors in order, and how they lie in x, state, context and teacher.

    leading: dimensions of x before its widths. packed: whether x lies as circuits run it, and outputs shall.
    weight: of the teacher. key: what calls that are like one another have in common, besides what their tensors are
    like; of the arguments as the user gave them. from_cell: whether the state is the cell's own, since none was given.
    """

    leading: int
    packed: bool
    xs: list[Tensor]
    states: list[Tensor]
    contexts: list[Tensor]
    taught: list[Tensor]
    structures: tuple[Structure, Structure, Structure, Structure]
    weight: Tensor | None
    key: tuple[Any, ...]
    from_cell: bool = False

    @classmethod
    def of(
        cls, leading: int, x: Any, state: Any, context: Any = None, teacher: Any = None, weight: Any = None,
        packed: bool = False, step: bool = False,
    ) -> Arguments:  # fmt: skip
        try:
            (xs, of_x), (states, of_state), (contexts, of_context) = _part(x), _part(state), _part(context)
            taught, of_teacher = _part(teacher)
        except InputTypeError:
            for name, value in (("x", x), ("state", state), ("context", context), ("teacher", teacher)):
                flatten(value, name)  # which says where
            raise
        structures = of_x, of_state, of_context, of_teacher
        key = structures, leading, step, weight.dtype if isinstance(weight, Tensor) else type(weight)
        if not all(map(_is_dense, (*xs, *states, *contexts, *taught))):
            raise _not_dense(x=x, state=state, context=context, teacher=teacher)
        return cls(leading, packed, xs, states, contexts, taught, structures, weight, key)

    @property
    def forms(self) -> list[Any]:
        """Shape, dtype and device of every tensor, to be compared."""
        return [*map(form, (*self.xs, *self.states, *self.contexts, *self.taught))]

    def cast(self, dtype: torch.dtype) -> Arguments:
        """With floats in another dtype."""
        parts = self.xs, self.states, self.contexts, self.taught
        xs, states, contexts, taught = ([_cast(t, dtype) for t in part] for part in parts)
        return self._replace(xs=xs, states=states, contexts=contexts, taught=taught)

    def starting(self, states: list[Tensor], structure: Structure, from_cell: bool = False) -> Arguments:
        """With another state."""
        leading, packed, xs, _, contexts, taught, (x, _, context, teacher), weight, key, _ = self
        structures = x, structure, context, teacher
        return Arguments(leading, packed, xs, states, contexts, taught, structures, weight, key, from_cell)

    def self_started(self, cell: torch.nn.Module, batch: int) -> Arguments:
        """With the state that a cell says it starts from."""
        state = own_state(cell, batch)
        try:
            return self.starting(*_part(state), from_cell=True)
        except InputTypeError:
            return self.starting(*flatten(state, "state"), from_cell=True)  # which says where


def _part(value: Any) -> tuple[list[Tensor], Structure]:
    """`flatten` without a name; most arguments are a tensor, nothing, or a few tensors.

    Those that have outlived a transform of torch.func are what they hold, as for every operation of PyTorch's.
    """
    if type(value) is Tensor:
        tensors, structure = [value], TENSOR
    elif value is None:
        return [], NOTHING
    elif type(value) is tuple and {*map(type, value)} == {Tensor} and len(value) < len(_TENSORS):
        tensors, structure = value, _TENSORS[len(value)]
    else:
        tensors = []
        structure = take(value, tensors)
    return [*map(unwrap_if_dead, tensors)], structure


def _is_dense(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_nested


def _not_dense(**given: Any) -> NotSupported:
    """What is said of the first sparse, nested or oneDNN tensor among arguments."""
    parts = [(flatten(value, name), name) for name, value in given.items() if value is not None]
    path, tensor = next(
        (path, tensor)
        for (tensors, structure), name in parts
        for path, tensor in zip(paths(structure, name), tensors, strict=True)
        if not _is_dense(tensor)
    )
    kind = "nested" if tensor.is_nested else str(tensor.layout)
    return NotSupported(
        what="a recurrence runs on dense tensors", where=path, got=f"a tensor that is {kind}",
        mend="use .to_dense(); sequences of different lengths are padded, with lengths=, or a PackedSequence",
    )  # fmt: skip


_TENSORS = [("tuple", *[TENSOR] * count) for count in range(5)]
form = attrgetter("shape", "dtype", "device")


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.dtype.is_floating_point else tensor


class Noted(NamedTuple):
    """A call that was. One value, read once by whoever goes by it: other threads note theirs meanwhile.

    forms: of its arguments as users gave them. started: of the state, the cell's own where none was given. layout: how
    its sequences lie, None for a step. call: what it handed down.
    """

    forms: list[Any]
    started: list[Any]
    layout: Layout | None
    call: Call


class BoundCall:
    """A call that has been made on a cell.

    key: of the arguments that it serves. binding: the program; None for a step that has to be the cell's own.
    unchanged: whether the cell is as it was. from_cell: whether the cell says itself where it starts from. latest: the
    latest call that it has served, of those that had every step.
    """

    def __init__(
        self,
        layer: Any,
        binding: Binding | None,
        args: Arguments,
        unchanged: Callable[[], bool] = lambda: True,
    ) -> None:
        self.key, self.binding = args.key, binding
        self.cell, self.reverse, self.engine = layer._modules["cell"], layer.reverse, layer.engine
        self.memory = layer.memory
        self.unchanged = unchanged
        self.state, self.from_cell = args.structures[1], args.from_cell
        self.specs = [
            (leading, *spec)
            for leading, part in ((args.leading, args.xs), (1, args.states), (1, args.contexts))
            for spec in specs(part, leading)
        ]
        self.latest: Noted | None = None
        self.single = args.key[2]  # whether it is of one step
        # (whether gradients are recorded, whether T may be another) -> `repeat` of calls that have come twice; and that
        # of each call, None where it came once.
        self.repeats: dict[tuple[bool, bool], list[Any]] = {
            (g, c): [] for g in (False, True) for c in (False, True)
        }
        self._came: dict[Any, Any] = {}
        # T of the latest calls that were recognised whatever T they have, and how many had it.
        self._lately = 0, 0
        _counted(self)
        self._inputs: list[Any] = []
        self._accumulators: list[Any] = []
        if binding is None:
            return
        # The program's inputs with the cell's own tensors in their places, and where those of the call go.
        self._inputs = binding.fixed(self.cell)
        self._given = [slot for name in ("x", "state", "context") for slot in binding.slots(name)]
        self.xs = tuple(binding.slots("x"))
        self._taught = [(i, s.index) for i, s in enumerate(binding.sources) if isinstance(s, Teacher)]
        self.output = _filling(binding.output, binding.outputs)
        self.final = _filling(binding.state, binding.finals)
        self._cut = indivisible(binding)
        self.has_noise = binding.program.has_noise
        self.zeros: tuple[None, ...] = (None,) * len(binding.finals)  # a state that is not given

    def hold_accumulators(self) -> None:
        """Keep where the gradients of the cell's own tensors are added up.

        PyTorch makes such a place when a tensor is used, if there is none, under a lock of the tensor's, and needs
        Python's for it. A Function is entered with Python's lock and asks for the tensor's: where another thread uses
        the tensor at that moment, both wait for ever (seen with 2.13).
        """
        own = [
            tensor for tensor in self._inputs
            if tensor is not None and tensor.requires_grad and tensor.is_leaf and tensor.device.type == "cpu"
            and not tensor.is_inference()
        ]  # fmt: skip
        places = _places(own)
        if any(map(_is_of_another_size, places)):  # another layer over the same tensors holds them
            del places
            for holder in _HOLDING.copy():
                if (other := holder()) is not None:
                    other.let_go()
            places = _places(own)
        self._accumulators = places
        _HOLDING.add(weakref.ref(self, _HOLDING.discard))

    def let_go(self) -> bool:
        """Give these places up if one of the tensors has got another size, through `.data`: as long as its place is
        there, gradients of the old one are expected. Whether it has."""
        resized = any(map(_is_of_another_size, self._accumulators))
        if resized:
            self._accumulators = []
        return resized

    def holds(self, layer: Any) -> bool:
        """Whether it still is what the layer's cell says."""
        return (
            layer._modules["cell"] is self.cell and layer.reverse is self.reverse and layer.engine == self.engine
            and layer.memory == self.memory and self.unchanged() and not changes_operations()
        )  # fmt: skip

    def serving(self, layer: Any, args: Arguments) -> Noted | None:
        """The latest call, if one with the same key that has every step is that one again, on other numbers."""
        latest = self.latest
        same = latest is not None and latest.forms == args.forms
        return latest if same and not _is_any_autocast_enabled() and self.holds(layer) else None

    def note(self, forms: list[Any], args: Arguments, layout: Layout | None, call: Call) -> Noted:
        """What a call was, remembered if it has every step. forms: of what the user gave; args: with a state."""
        noted = Noted(forms, [*map(form, args.states)], layout, call)
        if layout is None or not layout.is_cut:
            self.latest = noted
        return noted

    def expect_again(self, layer: Any, args: Arguments, noted: Noted) -> None:
        """Get ready for a call that was noted, if it has come twice now, and for one of another T, if that has."""
        if peek_interpreter_stack() is not None or forward_ad._current_level != NO_LEVEL:
            return
        if noted.layout is None or not noted.layout.is_cut:
            self._expect(layer, args, noted, False, noted.forms)
        if noted.layout is not None:
            widths = [(shape[1:], *more) for shape, *more in noted.forms[: len(args.xs)]]
            self._expect(layer, args, noted, True, [*widths, *noted.forms[len(args.xs) :]])

    def often(self, steps: int) -> bool:
        """Whether T has been the same so often that it is worth a `repeat` of its own."""
        latest, times = self._lately
        self._lately = steps, times + 1 if steps == latest else 1
        return self._lately[1] > _OFTEN

    def _expect(self, layer: Any, args: Arguments, noted: Noted, any_length: bool, forms: list[Any]) -> None:
        kind = torch.is_grad_enabled(), any_length
        key = *kind, *forms, *_get_current_function_mode_stack()
        if key not in self._came:
            if len(self._came) >= _CAME:
                self._came.clear()  # at once, as other threads may be reading it
            self._came[key] = None
            return
        repeated = self._came.get(key) or repeat(layer, self, noted, args, self.single, any_length)
        self._came[key] = repeated
        kept = self.repeats[kind]
        if repeated is not never and repeated not in kept:
            kept.insert(0, repeated)
            del kept[_REPEATED:]

    def _own(self) -> list[Any]:
        """The inputs of the program with the cell's own tensors in their places; those that have outlived a transform
        of torch.func since are what they hold."""
        return [value if value is None else unwrap_if_dead(value) for value in self._inputs]

    def numbered(self, args: Arguments) -> list[Any]:
        """The inputs of the program, with numbers in the places of tensors of x and of the state, None for no state."""
        inputs = self._own()
        given = range(len(args.xs) + len(args.states))
        for number, slot in zip(given, self._given, strict=False):
            inputs[slot] = number
        return inputs

    def started(self, inputs: Sequence[Any], batch: int) -> list[Any] | None:
        """The inputs of the program with the state that the cell says it starts from; None where it looks different."""
        states, structure = _part(own_state(self.cell, batch))
        if structure != self.state:
            return None
        found, first = list(inputs), len(self.xs)
        for slot, state, (_, widths, dtype, device) in zip(
            self._given[first:], states, self.specs[first:], strict=True
        ):
            if (
                state.shape[:1] != (batch,) or state.shape[1:] != widths or state.dtype is not dtype
                or state.device != device
            ):  # fmt: skip
                return None
            found[slot] = state
        return found

    def starts_like(self, args: Arguments, noted: Noted) -> bool:
        """Whether the cell's own state is what it was at a call that was noted."""
        return args.structures[1] == self.state and [*map(form, args.states)] == noted.started

    def fits(self, args: Arguments) -> bool:
        """Whether the tensors of a call with the same key, which has its state now, are like those of this one."""
        if args.structures[1] != self.state:
            return False
        tensors = (*args.xs, *args.states, *args.contexts)
        for tensor, (leading, widths, dtype, device) in zip(tensors, self.specs, strict=True):
            if tensor.dtype is not dtype or tensor.device != device or tensor.shape[leading:] != widths:
                return False
        return True

    def expect_divisible(self, layout: Layout) -> None:
        """Refuse a layout that cuts rows which belong together."""
        if self._cut is not None and layout.is_cut and layout.cuts:
            raise self._cut

    def tensors(
        self, args: Arguments, starts: Sequence[Tensor | None], layout: Layout | None, in_place: bool = False
    ) -> list[Any]:
        """The inputs of the program, as its circuit runs them on the pieces of a layout, which start from `starts`.

        layout: None for one step. in_place: whether sequences stay as users have them, for whoever packs them by parts.
        """
        inputs = self._own()
        given: tuple[Tensor | None, ...] = *args.xs, *starts, *args.contexts
        if layout is not None and layout.is_cut:
            xs = args.xs if args.packed or in_place else map(layout.pack, args.xs)
            given = *xs, *starts, *map(layout.spread, args.contexts)
        for slot, value in zip(self._given, given, strict=True):
            inputs[slot] = value
        if self._taught and layout is not None:
            taught = args.taught if args.weight is None else [*args.taught, args.weight]
            for slot, index in self._taught:
                inputs[slot] = taught[index] if in_place else layout.pack(taught[index])
        return inputs

    def result(
        self, results: Sequence[Tensor], states: Sequence[Tensor | None], layout: Layout | None, packed: bool,
        call: Call,
    ) -> tuple[Any, Any]:  # fmt: skip
        """(outputs, final state of each row), of the program's outputs. states: of the rows. packed: of Arguments.

        call: what was run; with its layout sequences lie as users have them, where it swaps states those as well.
        """
        if layout is None or not (layout.is_cut or layout.steps == 0):
            return self.output(results), self.final(results)
        assert self.binding is not None
        results = list(results)
        if not layout.is_cut:  # no step: whatever a step does with a state, it ends as it begins
            for slot, state in zip(self.binding.finals, states, strict=True):
                results[slot] = results[slot] if state is None else state.clone()
            return self.output(results), self.final(results)
        if not call.swaps:
            finals = self.binding.finals
            ended = layout.final([results[slot] for slot in finals], states, self.reverse)
            for slot, value in zip(finals, ended, strict=True):
                results[slot] = value
        if not packed:
            for slot in self.binding.outputs:
                results[slot] = (layout.unpack if call.layout is None else layout.as_given)(results[slot])  # type: ignore[assignment]
        return self.output(results), self.final(results)


def _places(tensors: Sequence[Tensor]) -> list[Any]:
    """Where the gradients of tensors are added up, each behind a view of the tensor."""
    with torch.inference_mode(False), torch.enable_grad():
        return [tensor.view_as(tensor).grad_fn for tensor in tensors]


def _is_of_another_size(view: Any) -> bool:
    place = view.next_functions[0][0]
    return tuple(place._input_metadata[0].shape) != place.variable.shape


def _filling(structure: Structure, slots: Sequence[int]) -> Callable[[Sequence[Tensor]], Any]:
    """`fill`, worked out beforehand, with what stands at certain places of a sequence."""
    if structure == TENSOR or (len(slots) > 1 and structure == ("tuple", *[TENSOR] * len(slots))):
        return itemgetter(*slots)
    return lambda results: fill(structure, [results[slot] for slot in slots])
