"""The state that a cell starts from when the user gives none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from elman import noise
from elman.circuit.signature import Tree, flatten
from elman.errors import TraceError
from elman.trace.call import places, skeleton, store_of, swapped, understand
from elman.trace.outside import is_plain, outside, readable

Tensor = torch.Tensor
# Rows to probe with: a number that no state has entries, since a tensor of two rows can be mistaken for a pair.
PROBED = 7
MEND = "define initial_state(batch) on the cell, or pass a state"


@dataclass(frozen=True)
class Zeros:
    """A starting state of zeros: its structure, and each tensor's widths, dtype and device."""

    tree: Tree
    leaves: tuple[tuple[tuple[int, ...], torch.dtype, torch.device], ...]

    def make(self, batch: int) -> Any:
        return self.tree.fill(
            [torch.zeros((batch, *shape), dtype=d, device=v) for shape, d, v in self.leaves]
        )


def initial_state(cell: torch.nn.Module, x: Any, context: Any = None) -> Any:
    """The state a cell starts from, for the batch of `x` (one step, `[B, …]`).

    `cell.initial_state(batch)` if there is one; else zeros, shaped by `cell.hidden_size` or by what `cell(x)` returns
    without a state. Raises TraceError where neither is clear.
    """
    tensors = flatten(x, "x")[0] + (flatten(context, "context")[0] if context is not None else [])
    if not tensors:
        raise TraceError(
            what="without x and without a state nobody knows the batch size", where=_name(cell), mend=MEND
        )
    return starting_state(cell, x, context)(int(tensors[0].shape[0]))


def starting_state(cell: torch.nn.Module, x: Any, context: Any = None) -> Callable[[int], Any]:
    """A function from the batch size to the starting state, found out once for a cell and the shapes of its inputs."""
    own = getattr(cell, "initial_state", None)
    return own if callable(own) else find_zeros(cell, x, context).make


def find_zeros(cell: torch.nn.Module, x: Any, context: Any = None) -> Zeros:
    """The zeros that a cell without `initial_state` starts from (see `initial_state`)."""
    with outside():
        return _search(cell, x, context)


def _search(cell: torch.nn.Module, x: Any, context: Any) -> Zeros:
    bones = skeleton(cell)
    weights = {entry: readable(store_of(cell, entry[0])[entry[0].key]) for entry in places(cell)}
    some_x, some_context = _small(x), None if context is None else _small(context)

    def call(*state: Any) -> Any:
        draws = noise.Replay(torch.Generator().manual_seed(0))  # the same at every call
        with draws, swapped(bones, weights), torch.no_grad():
            if context is None:
                return bones(some_x, *state)
            return bones(some_x, *(state or (None,)), some_context)

    tried, hidden = "", getattr(cell, "hidden_size", None)
    if isinstance(hidden, int) and not isinstance(hidden, bool):
        dtype, device = _kind(cell, x)
        zeros = torch.zeros((PROBED, hidden), dtype=dtype, device=device)
        fault = _fault(call, zeros, _name(cell))
        if fault is None:
            return _zeros(zeros)
        tried = f"cell(x, zeros [B, {hidden}]): {fault}; "
    try:
        alone = call()
    except Exception as error:
        raise TraceError(
            what="the cell does not say which state it starts from",
            where=_name(cell),
            got=f"{tried}cell(x) without a state: {_first_line(error)}",
            mend=MEND if tried else f"{MEND}, or give it the attribute hidden_size",
        ) from error
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
    return _zeros(fitting[0])


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
            return (
                torch.randn(size, generator=generator, dtype=torch.float64).to(tensor.dtype).to(tensor.device)
            )
        if tensor.shape[0] == 0 or not is_plain(tensor):
            return torch.zeros(size, dtype=tensor.dtype, device=tensor.device)
        return tensor.detach()[torch.arange(PROBED, device=tensor.device) % tensor.shape[0]]

    return pytree.tree_map(leaf, value)


def _zeros_like(leaf: Any) -> Any:
    return torch.zeros_like(leaf) if isinstance(leaf, Tensor) else leaf


def _fault(call: Callable[..., Any], state: Any, name: str) -> str | None:
    """Why a cell does not map this state to one of the same structure, shapes and dtypes; None if it does."""
    try:
        tensors, tree = flatten(state, "state")
        new = flatten(understand(call(state), tree, name)[1], "state")[0]
    except Exception as error:
        return _first_line(error)
    if not tensors:
        return "no tensor in it"
    fits = all(a.shape == b.shape and a.dtype == b.dtype for a, b in zip(tensors, new, strict=True))
    return None if fits else "the new state has another shape or dtype"


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _zeros(state: Any) -> Zeros:
    tensors, tree = flatten(state, "state")
    return Zeros(tree, tuple((tuple(t.shape[1:]), t.dtype, t.device) for t in tensors))


def _equal(a: Any, b: Any) -> bool:
    left, right = pytree.tree_leaves(a), pytree.tree_leaves(b)
    return len(left) == len(right) and all(
        torch.allclose(x, y, equal_nan=True) if isinstance(x, Tensor) and isinstance(y, Tensor) else x == y
        for x, y in zip(left, right, strict=True)
    )
