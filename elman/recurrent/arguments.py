"""What a call is given, sorted out: how long it is, which of its steps happen, and whether it fits together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.nn.utils.rnn import PackedSequence

from elman.circuit.structure import NOTHING, Structure, fill, flatten, paths, takes_apart
from elman.errors import InputError, InputTypeError, NotSupported
from elman.forcing import WEIGHT
from elman.segments import Layout
from elman.trace.outside import is_plain
from elman.trace.record import recorder

Tensor = torch.Tensor


@dataclass(frozen=True)
class StepSelection:
    """What a call says about the steps that happen, as users say it."""

    lengths: Tensor | Sequence[int] | None = None
    mask: Tensor | None = None
    reset: Tensor | None = None

    @property
    def said(self) -> list[str]:
        """The names of what is given."""
        return [name for name in ("lengths", "mask", "reset") if getattr(self, name) is not None]

    @property
    def given(self) -> dict[str, Any]:
        """As the arguments of a call."""
        return {"lengths": self.lengths, "mask": self.mask, "reset": self.reset}

    def layout(self, steps: int, batch: int, device: torch.device) -> Layout:
        if self is EVERY:
            return Layout.whole(steps, batch, device)
        return Layout.of(steps, batch, device, lengths=self.lengths, mask=self.mask, reset=self.reset)


EVERY = StepSelection()


def selection(lengths: Any, mask: Any, reset: Any) -> StepSelection:
    nothing = lengths is None and mask is None and reset is None
    return EVERY if nothing else StepSelection(lengths, mask, reset)


def is_recorded() -> bool:
    """Whether somebody records every operation: torch.jit.trace, make_fx, or the trace of a cell."""
    if torch._C._len_torch_dispatch_stack() and (get_proxy_mode() is not None or recorder() is not None):
        return True
    return torch._C._is_tracing()


def not_recorded() -> NotSupported:
    if forward_ad._current_level >= 0:
        return NotSupported(
            what="a recurrence is no sequence of PyTorch operations, as which torch.func.linearize records a function",
            where="torch.func.linearize (or make_fx within a level of dual numbers)",
            mend="use torch.func.jvp, once for each direction: torch.func.jvp(f, (x,), (direction,))",
        )  # fmt: skip
    return NotSupported(
        what="a recurrence is no sequence of PyTorch operations that could be recorded",
        where="torch.jit.trace, torch.jit.script, make_fx, or inside of another cell",
        mend="use torch.export.export; in a cell, call the cell instead",
    )


def over_sequences(
    run: Callable[..., tuple[Any, Any]], x: Any, state: Any, happens: StepSelection, *, steps: int | None = None,
    teacher: Any = None, weight: Any = None, **more: Any,
) -> tuple[Any, Any]:  # fmt: skip
    """Lay out a call, run it on packed sequences, and put the outputs back in place.

    run: `(layout, x, state, …)` -> (packed outputs, final state); teacher and weight are handed to it if there are any.
    """
    if is_recorded():
        raise not_recorded()
    layout = None
    if isinstance(x, PackedSequence):
        x, layout, teacher, weight = unwrap(x, steps, happens, teacher, weight)
    xs, structure = flatten(x, "x")
    if layout is None:
        states, of_state = ([], NOTHING) if xs else flatten(state, "state")
        layout = lay_out(xs, states, (structure, of_state), steps, happens)
    if teacher is not None or weight is not None:
        more |= {"teacher": teacher, "weight": weight}
    if layout.is_packed:
        return run(layout, x, state, **more)
    outputs, final = run(layout, fill(structure, [layout.pack(x) for x in xs]), state, **more)
    values, structure = flatten(outputs, "output")
    return fill(structure, [layout.unpack(value) for value in values]), final


def lay_out(
    xs: Sequence[Tensor], states: Sequence[Tensor], structures: Sequence[Structure], steps: int | None,
    happens: StepSelection,
) -> Layout:  # fmt: skip
    """Where the steps of a call lie; structures: of x and state. Raises InputError for what does not fit together."""
    steps, batch = sizes(xs, structures[0], steps)
    if batch is None:
        batch = batch_of(states, structures[1], (), NOTHING, None)
    return happens.layout(steps, batch, (xs or states)[0].device)


def sizes(xs: Sequence[Tensor], structure: Structure, steps: int | None) -> tuple[int, int | None]:
    """T and B, or an error that says which tensor does not fit. B is None where only a state can say it."""
    if not xs:
        if steps is None and structure != NOTHING:
            raise InputTypeError(
                what="x holds no tensor", where="x", expected="tensors [T, B, …]",
                mend="pass torch.tensor(x), or None and steps=T for an autonomous system",
            )  # fmt: skip
        if steps is None:
            raise InputError(
                what="nobody says how many steps to run", where="x", got="no tensor with a time dimension",
                mend="pass steps=T",
            )  # fmt: skip
        if steps < 0:
            raise InputError(what="the number of steps is negative", where="steps=", got=steps)
        return steps if isinstance(steps, torch.SymInt) else int(steps), None
    if steps is not None:
        raise InputError(
            what="the number of steps is given twice", where="steps=",
            got=f"steps={steps} and {paths(structure, 'x')[0]} {list(xs[0].shape)}",
            mend="leave steps= to autonomous systems, whose x is None",
        )  # fmt: skip
    for i, tensor in enumerate(xs):
        if tensor.dim() < 2:
            path = paths(structure, "x")[i]
            raise InputError(
                what="a sequence needs a time and a batch dimension", where=path, got=f"shape {list(tensor.shape)}",
                expected="[T, B, …]", mend=f"one sequence without a batch is {path}.unsqueeze(1), [T, 1]",
            )  # fmt: skip
        if i and tensor.shape[:2] != xs[0].shape[:2]:
            first, *rest = paths(structure, "x")
            raise InputError(
                what="the sequences disagree about T or B", where=rest[i - 1], got=f"shape {list(tensor.shape)}",
                expected=f"[{xs[0].shape[0]}, {xs[0].shape[1]}, …] as {first}",
            )  # fmt: skip
    return xs[0].shape[0], xs[0].shape[1]


def batch_of(
    states: Sequence[Tensor], state: Structure, contexts: Sequence[Tensor], context: Structure, batch: int | None
) -> int:  # fmt: skip
    """The batch size that x, state and context agree on."""
    for i, tensor in enumerate((*states, *contexts)):
        size = tensor.shape[0] if tensor.dim() else None
        if batch is None:
            batch = size
        if size is None or size != batch:
            path = [*paths(state, "state"), *paths(context, "context")][i]
            raise InputError(
                what="it does not have the batch size of the sequences", where=path, got=f"shape {list(tensor.shape)}",
                expected=f"[{batch}, …]", mend=_of_layers(path, tensor) if i < len(states) else None,
            )  # fmt: skip
    if batch is None:
        raise InputError(what="an autonomous system needs a state, which says the batch size", where="state")
    return batch


def expect_rows(xs: Sequence[Tensor], states: Sequence[Tensor], state: Structure) -> None:
    """Refuse a step's state that has other rows than its x: a cell would broadcast it.

    One row alone, x `[I]`, goes to the cell as it is; x `[B]` of symbols with a state `[1, B, …]` is none.
    """
    if not xs or not states or not xs[0].dim():
        return
    rows = len(xs[0])
    if xs[0].dim() > 1 or any(s.dim() > 2 and s.shape[:2] == (1, rows) for s in states):
        batch_of(states, state, (), NOTHING, rows)


def expect_like(states: Sequence[Tensor], structure: Structure, own: Any) -> None:
    """Refuse a state that the cell's own code would take for another: a tensor where there are several, which it would
    take apart by its rows, or more dimensions, which it would broadcast. own: what the cell starts from."""
    parts, mine = flatten(own, "state")
    if takes_apart(structure, mine):
        raise InputTypeError(
            what="there is one tensor in the state where the cell starts from several", where="state",
            got=", ".join(paths(structure, "state")), expected=", ".join(paths(mine, "state")),
            mend="build it as the cell's initial_state(B) is built",
        )  # fmt: skip
    if structure != mine:
        return
    for path, given, part in zip(paths(structure, "state"), states, parts, strict=True):
        if given.dim() > part.dim():
            raise InputError(
                what="it has more dimensions than what the cell starts from", where=path,
                got=f"shape {list(given.shape)}", expected=f"[B, {', '.join(map(str, part.shape[1:]))}]",
                mend=_of_layers(path, given),
            )  # fmt: skip


def _of_layers(path: str, state: Tensor) -> str | None:
    """What to do with a state that looks like one of torch.nn's, which begin with a dimension of layers."""
    if state.dim() < 3:
        return None
    if len(state) == 1:
        return (
            f"if it is [layers, B, …] as of torch.nn, drop the dimension, {path}.squeeze(0), or use elman.nn"
        )
    return f"if it is [layers, B, …] as of torch.nn, each layer of a Stack takes its own, {path}[i]; or use elman.nn"


def rows_of_reset(reset: Any, batch: int) -> Tensor:
    """A step's reset, `[B]` bools, as a tensor. Raises InputError or InputTypeError for anything else."""
    rows = torch.as_tensor(reset) if isinstance(reset, (list, tuple, np.ndarray)) else reset
    if not isinstance(rows, Tensor) or rows.dtype != torch.bool:
        raise InputTypeError(
            what="reset says yes or no for each row", where="reset=",
            got=str(rows.dtype) if isinstance(rows, Tensor) else type(rows).__name__, expected="a tensor of bools",
        )  # fmt: skip
    if rows.shape != (batch,):
        raise InputError(
            what="reset says it for each row of the step", where="reset=", got=f"shape {list(rows.shape)}",
            expected=f"[{batch}]",
        )  # fmt: skip
    return rows


def as_outputs(
    cell: torch.nn.Module, taught: list[Tensor], clean: Callable[[Tensor], Tensor]
) -> list[Tensor]:
    """Tensors of a teacher; symbols `[T, B]` become the outputs that they stand for, if the cell has `as_output`.

    clean: puts zeros where steps do not happen, whose symbols may be any number.
    """
    spell: Any = getattr(cell, "as_output", None) if hasattr(type(cell), "as_output") else None
    if spell is None:
        return taught
    return [t if t.is_floating_point() or t.dim() > 2 else spell(clean(t)) for t in taught]


def weight_of(weight: Any, taught: Sequence[Tensor], lead: tuple[int, ...]) -> Tensor | None:
    """The teacher's weight as a tensor that fits, numbers in the dtype of its tensors."""
    if weight is None:
        return None
    if not taught:
        raise InputError(
            what="there is a weight and no teacher", where=f"{WEIGHT}=", mend="pass teacher= as well"
        )
    if not isinstance(weight, Tensor) or not (weight.is_floating_point() or weight.dtype == torch.bool):
        raise InputTypeError(
            what="the teacher's weight is bools, or numbers in [0, 1]", where=f"{WEIGHT}=",
            got=str(weight.dtype) if isinstance(weight, Tensor) else type(weight).__name__,
            expected="a tensor of bools or floats",
        )  # fmt: skip
    if weight.shape != lead:
        raise InputError(
            what="the teacher has one weight at each step of each sequence", where=f"{WEIGHT}=",
            got=f"shape {list(weight.shape)}", expected=str(list(lead)),
        )  # fmt: skip
    if weight.dtype == torch.bool:
        return weight
    floats = [t.dtype for t in taught if t.is_floating_point()]
    return weight.to(floats[0]) if floats else weight


def expect_weights(weight: Tensor) -> None:
    """Refuse a teacher's weights that are no numbers in [0, 1], where they lie in this machine's memory: to look at
    those of a GPU is to wait for it. weight: of the steps that happen."""
    if (
        weight.dtype == torch.bool
        or weight.device.type != "cpu"
        or not weight.numel()
        or not is_plain(weight)
    ):
        return
    low, high = (end.item() for end in torch.aminmax(weight.detach()))
    if not (low >= 0 and high <= 1):  # so that NaN is none
        raise InputError(
            what="a teacher's weight is a share of what the next step sees", where=f"{WEIGHT}=",
            got=f"numbers in {low:.6g} … {high:.6g}", expected="numbers in 0 … 1", mend=f"use {WEIGHT}.clamp(0, 1)",
        )  # fmt: skip


def unwrap(
    x: PackedSequence, steps: int | None, happens: StepSelection, teacher: Any, weight: Any
) -> tuple[Tensor, Layout, Any, Any]:
    """(x, layout, teacher, its weight) of a call on a PackedSequence, as packed rows."""
    names = [*happens.said, *(["steps"] if steps is not None else [])]
    if names:
        raise InputError(
            what="a PackedSequence says which steps happen, and so does another argument", where=f"{names[0]}=",
            mend="unpack it with torch.nn.utils.rnn.pad_packed_sequence, and pass lengths= as well",
        )  # fmt: skip
    return x.data, Layout.of_packed(x), _rows(teacher, x, "teacher"), _rows(weight, x, WEIGHT)


def _rows(value: Any, like: PackedSequence, name: str) -> Any:
    if value is None:
        return None
    if isinstance(value, PackedSequence) and torch.equal(value.batch_sizes, like.batch_sizes):
        orders = [p.sorted_indices for p in (value, like) if p.sorted_indices is not None]
        if not orders or (len(orders) == 2 and torch.equal(*orders)):
            return value.data
    raise InputError(
        what=f"the {name.replace('_', ' ')} is not packed as x is", where=f"{name}=", got=type(value).__name__,
        expected="a PackedSequence with the batch sizes and the order of x",
    )  # fmt: skip
