"""The state that a cell starts from when the user gives none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.utils import _pytree as pytree

from elman import noise
from elman.circuit.structure import Structure, TensorSpec, fill, flatten, specs
from elman.errors import ElmanError, TraceError
from elman.trace import mistakes, refuse
from elman.trace.call import places, skeleton_of, store_of, swapped, understand
from elman.trace.changes import Changes
from elman.trace.mistakes import PROBED
from elman.trace.outside import is_plain, outside, readable

Tensor = torch.Tensor
MEND = "define initial_state(batch) on the cell, or pass a state"


@dataclass(frozen=True)
class Zeros:
    """A starting state of zeros: its structure, and what each tensor is like."""

    structure: Structure
    specs: tuple[TensorSpec, ...]

    def make(self, batch: int) -> Any:
        return fill(self.structure, [spec.zeros(batch) for spec in self.specs])


class _Fault(NamedTuple):
    """Why a cell does not start from a state. error: what it has raised, if it has."""

    reason: str
    error: Exception | None = None


def initial_state(cell: torch.nn.Module, x: Any, context: Any = None) -> Any:
    """The state a cell starts from, for the batch of `x` (one step, `[B, …]`).

    `cell.initial_state(batch)` if there is one; else zeros, shaped by `cell.hidden_size` or by what `cell(x)` returns
    without a state. Raises TraceError where neither is clear.
    """
    tensors = flatten(x, "x")[0] + flatten(context, "context")[0]
    if not tensors:
        raise TraceError(
            what="without x and without a state nobody knows the batch size", where=_name(cell), mend=MEND
        )
    return starting_state(cell, x, context)(int(tensors[0].shape[0]))


def starting_state(cell: torch.nn.Module, x: Any, context: Any = None) -> Callable[[int], Any]:
    """A function from the batch size to the starting state, found out once for a cell and the shapes of its inputs."""
    if callable(getattr(cell, "initial_state", None)):
        return lambda batch: own_state(cell, batch)
    return find_zeros(cell, x, context).make


def own_state(cell: Any, batch: int) -> Any:
    """`cell.initial_state(batch)`; TraceError for what it raises."""
    try:
        return cell.initial_state(batch)
    except ElmanError:
        raise
    except Exception as error:
        raise TraceError(
            what=f"initial_state(batch) of the cell fails: {refuse.message(error)}",
            where=refuse.raised_at(_name(cell), error), expected="a function from the batch size to a state [B, …]",
        ) from error  # fmt: skip


def find_zeros(cell: torch.nn.Module, x: Any, context: Any = None) -> Zeros:
    """The zeros that a cell without `initial_state` starts from (see `initial_state`)."""
    with outside():
        lasting = Changes(cell)
        try:
            return _search(cell, x, context)
        finally:
            lasting.undo()  # what a hook has noted of steps that never were


def _search(cell: torch.nn.Module, x: Any, context: Any) -> Zeros:
    skeleton = skeleton_of(cell)
    weights = {entry: readable(store_of(cell, entry[0])[entry[0].key]) for entry in places(cell)}
    some_x, some_context = _small(x), None if context is None else _small(context)

    def call(*state: Any) -> Any:
        draws = noise.Replay(torch.Generator().manual_seed(0))  # the same at every call
        with draws, swapped(skeleton, weights), torch.no_grad():
            if context is None:
                return skeleton(some_x, *state)
            return skeleton(some_x, *(state or (None,)), some_context)

    zeros, fault, hidden = None, None, getattr(cell, "hidden_size", None)
    dtype, device = _kind(cell, x)
    if isinstance(hidden, int) and not isinstance(hidden, bool):
        zeros = torch.zeros((PROBED, hidden), dtype=dtype, device=_with_numbers(device))
        fault = _fault(call, zeros, _name(cell))
        if fault is None:
            return _zeros(zeros, device)
    try:
        alone = call()
    except Exception as error:
        told = _no_start(cell, x, context, zeros, fault, error)
        raise told from told.__cause__
    candidates = [alone]
    if isinstance(alone, (tuple, list)) and len(alone) == 2:
        candidates.append(alone[1])
    fitting = [
        c
        for c in (pytree.tree_map(_zeros_like, c) for c in candidates)
        if _fault(call, c, _name(cell)) is None
    ]
    if len(fitting) != 1:
        raise TraceError(
            what="what cell(x) returns without a state can be read as a state in "
            + ("two ways" if fitting else "no way"),
            where=_name(cell),
            mend=MEND,
        )
    if not _equal(alone, call(fitting[0])):
        raise TraceError(
            what="the cell starts from something other than zeros: cell(x) differs from cell(x, zeros)",
            where=_name(cell),
            mend=MEND,
        )
    return _zeros(fitting[0], device)


def _no_start(
    cell: torch.nn.Module,
    x: Any,
    context: Any,
    zeros: Tensor | None,
    fault: _Fault | None,
    alone: Exception,
) -> ElmanError:
    """Why nobody knows what a cell starts from. fault: of cell(x, zeros), where that was tried; alone: of cell(x)."""
    told: ElmanError | None = None
    error = fault.error if fault is not None else None
    if zeros is not None and error is not None:
        size = f"[B, {zeros.shape[1]}]"
        mend = f"the state was taken to be {size}, by hidden_size; where it is another one, {MEND}"
        if isinstance(error, ElmanError):
            return TraceError(
                error.what, where=error.where, got=error.got, expected=error.expected, mend=mend
            )
        told = mistakes.find(cell, x, zeros, context, mend)
    elif zeros is None and mistakes.starts_alone(cell):
        told = mistakes.find(cell, x, None, context, f"{MEND}, or give it the attribute hidden_size")
    if told is None:
        tried = (
            ""
            if fault is None or zeros is None
            else f"cell(x, zeros [B, {zeros.shape[1]}]): {fault.reason}; "
        )
        told = TraceError(
            what="the cell does not say which state it starts from",
            where=_name(cell),
            got=f"{tried}cell(x) without a state: {refuse.message(alone)}",
            mend=MEND if tried else f"{MEND}, or give it the attribute hidden_size",
        )
        told.__cause__ = error or alone
    return told


def _name(cell: torch.nn.Module) -> str:
    return type(cell).__name__


def _kind(cell: torch.nn.Module, x: Any) -> tuple[torch.dtype, torch.device]:
    """dtype and device of a cell's state: those of its parameters, else of its input."""
    for tensor in [*cell.parameters(), *flatten(x, "x")[0]]:
        if tensor.dtype.is_floating_point or tensor.dtype.is_complex:
            return tensor.dtype, tensor.device
    return torch.get_default_dtype(), torch.device("cpu")


def _small(value: Any) -> Any:
    """A few rows that look like the user's: random where they are floats, their own values where they are integers."""
    generator = torch.Generator().manual_seed(0)

    def leaf(tensor: Any) -> Any:
        if not isinstance(tensor, Tensor):
            return tensor
        size = (PROBED, *tensor.shape[1:])
        if tensor.dtype.is_floating_point:
            drawn = torch.randn(size, generator=generator, dtype=torch.float64).to(tensor.dtype)
            return drawn.to(_with_numbers(tensor.device))
        if tensor.shape[0] == 0 or not is_plain(tensor):
            return torch.zeros(size, dtype=tensor.dtype, device=_with_numbers(tensor.device))
        return tensor.detach()[torch.arange(PROBED, device=tensor.device) % tensor.shape[0]]

    return pytree.tree_map(leaf, value)


def _zeros_like(leaf: Any) -> Any:
    return torch.zeros_like(leaf) if isinstance(leaf, Tensor) else leaf


def _fault(call: Callable[..., Any], state: Any, name: str) -> _Fault | None:
    """Why a cell does not map this state to one of the same structure, shapes and dtypes; None if it does."""
    try:
        tensors, structure = flatten(state, "state")
        new = flatten(understand(call(state), structure, name)[1], "state")[0]
    except Exception as error:
        return _Fault(str(error), error)
    if not tensors:
        return _Fault("no tensor in it")
    for a, b in zip(tensors, new, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            return _Fault(f"the new state is [B{''.join(f', {size}' for size in b.shape[1:])}] {b.dtype}")
    return None


def _zeros(state: Any, device: torch.device) -> Zeros:
    tensors, structure = flatten(state, "state")
    found = specs(tensors, 1)
    if device.type == "meta":  # it was tried with numbers that were made up
        found = tuple(spec._replace(device=device) for spec in found)
    return Zeros(structure, found)


def _with_numbers(device: torch.device) -> torch.device:
    """Where a cell is tried whose tensors may have no numbers: see `readable`."""
    return torch.device("cpu") if device.type == "meta" else device


def _equal(a: Any, b: Any) -> bool:
    left, right = pytree.tree_leaves(a), pytree.tree_leaves(b)
    return len(left) == len(right) and all(
        torch.allclose(x, y, equal_nan=True) if isinstance(x, Tensor) and isinstance(y, Tensor) else x == y
        for x, y in zip(left, right, strict=True)
    )
