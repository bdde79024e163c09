"""What a cell takes and returns at one step, as flat tensors with names, and the cell's step as a function of them."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from elman.circuit.signature import Place, Tree, flatten
from elman.errors import TraceError
from elman.trace.key import loose_tensors

Tensor = torch.Tensor


# --- the cell's own tensors ---------------------------------------------------------------------------------------


def places(cell: torch.nn.Module) -> list[tuple[Place, ...]]:
    """Every tensor that a cell keeps: parameters, buffers, plain attributes; tied ones are one entry of many places."""
    found: dict[int, list[Place]] = {}
    for path, module in cell.named_modules():
        for store in ("_parameters", "_buffers", "__dict__"):
            entries = module.__dict__ if store == "__dict__" else module.__dict__[store]
            for key, value in entries.items():
                if isinstance(value, Tensor):
                    found.setdefault(id(value), []).append(Place(path, store, key))
    return [tuple(entry) for entry in found.values()]


def store_of(cell: torch.nn.Module, place: Place) -> dict[str, Any]:
    """The dict that holds a place's tensor."""
    module = cell.get_submodule(place.module) if place.module else cell
    return module.__dict__ if place.store == "__dict__" else module.__dict__[place.store]


def skeleton(cell: torch.nn.Module) -> torch.nn.Module:
    """A copy of a cell without its weights, which keeps the attributes as they are now and can be run by `swapped`.

    Its modules are never the cell's own, which another thread may be using meanwhile.
    """
    memo: dict[int, Any] = {id(value): value for value in loose_tensors(cell)}
    for entry in places(cell):
        value = store_of(cell, entry[0])[entry[0].key]
        empty = torch.empty(value.shape, dtype=value.dtype, device="meta")
        memo[id(value)] = (
            torch.nn.Parameter(empty, value.requires_grad) if isinstance(value, torch.nn.Parameter) else empty
        )
    try:
        return copy.deepcopy(cell, dict(memo))
    except Exception:
        return _taken_apart(cell, memo)


def _taken_apart(cell: torch.nn.Module, memo: dict[int, Any]) -> torch.nn.Module:
    """The copy of a cell that keeps what cannot be copied (a lock, an open file), which is then shared."""
    modules = list(cell.modules())
    for module in modules:
        memo[id(module)] = object.__new__(type(module))
    for module in modules:
        entries = memo[id(module)].__dict__
        for key, value in module.__dict__.items():
            met = dict(memo)  # what a copy has met that fails must not be met again
            try:
                entries[key] = copy.deepcopy(value, met)
                memo.update(met)
            except Exception:
                entries[key] = value
    return memo[id(cell)]


@contextlib.contextmanager
def swapped(cell: torch.nn.Module, tensors: Mapping[tuple[Place, ...], Tensor]) -> Iterator[None]:
    """Inside, the cell computes with the given tensors in the given places."""
    stores = [
        (store_of(cell, place), place.key, value) for entry, value in tensors.items() for place in entry
    ]
    before = [store[key] for store, key, _ in stores]
    try:
        for store, key, value in stores:
            store[key] = value
        yield
    finally:
        for (store, key, _), old in zip(stores, before, strict=True):
            store[key] = old


def rebound(cell: torch.nn.Module, tensors: Mapping[tuple[Place, ...], Tensor]) -> str | None:
    """Inside `swapped`: the path of a tensor that the cell has replaced by another, or None."""
    for entry, value in tensors.items():
        for place in entry:
            if store_of(cell, place).get(place.key) is not value:
                return place.path
    return None


def attributes(cell: torch.nn.Module) -> dict[str, Any]:
    """What a cell's modules keep besides parameters, buffers and submodules, to see whether a step changed it."""
    hidden = {"_parameters", "_buffers", "_modules"}
    return {
        f"{path}.{key}" if path else key: _noted(value)
        for path, module in cell.named_modules()
        for key, value in module.__dict__.items()
        if key not in hidden
    }


def _noted(value: Any) -> Any:
    """Containers by their content now; that there is a tensor is all that counts about one (see `rebound`)."""
    return (
        Tensor
        if isinstance(value, Tensor)
        else copy.copy(value)
        if isinstance(value, (list, dict, set))
        else value
    )


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> str | None:
    """The first attribute that a step added or changed."""
    for name, value in after.items():
        if name not in before:
            return name
        old = before[name]
        if old is not value and (type(old) is not type(value) or not _equal(old, value)):
            return name
    return None


def _equal(a: Any, b: Any) -> bool:
    try:
        return bool(a == b)
    except Exception:
        return False


# --- one step -----------------------------------------------------------------------------------------------------


def understand(returned: Any, state: Tree, cell: str) -> tuple[Any, Any]:
    """(output, new state) of what a cell returned; the new state is recognised by the state's structure.

    A cell that returns the new state alone has its first tensor as output. Raises TraceError otherwise.
    """
    if _same(returned, state):
        return next(iter(flatten(returned, "state")[0]), None), returned
    if isinstance(returned, (tuple, list)) and len(returned) == 2 and _same(returned[1], state):
        return returned[0], returned[1]
    raise TraceError(
        what="the cell returned neither the new state nor (output, new state)",
        where=cell,
        got=_shape_of(returned),
        expected=f"a state {_shape_of(state.fill(['tensor'] * len(state.paths)))}, alone or after an output",
        mend="return the state in the structure in which it comes in",
    )


def _same(value: Any, tree: Tree) -> bool:
    if tree.size == 1 and isinstance(value, Tensor):
        return tree.spec == pytree.tree_structure(value)
    leaves, spec = pytree.tree_flatten(value)
    if spec != tree.spec:
        return False
    statics = {position for position, _ in tree.statics}
    return all(isinstance(leaf, Tensor) != (i in statics) for i, leaf in enumerate(leaves))


def _shape_of(value: Any) -> str:
    """The nesting of a value in words: `(tensor, {'a': tensor})`."""
    return str(
        pytree.tree_map(
            lambda leaf: _Word("tensor" if isinstance(leaf, (Tensor, str)) else repr(leaf)), value
        )
    )


class _Word(str):
    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def call_cell(cell: torch.nn.Module, x: Any, state: Any, context: Any, with_context: bool) -> Any:
    """One step of a cell, as users write it."""
    return cell(x, state, context) if with_context else cell(x, state)


def step_of(
    cell: torch.nn.Module,
    owned: Mapping[str, tuple[Place, ...]],
    x: tuple[Sequence[str], Tree],
    state: tuple[Sequence[str], Tree],
    context: tuple[Sequence[str], Tree] | None,
    name: str,
    wires: Sequence[str] | None = None,
) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """The cell as a function of named tensors: ports in, results out.

    Results are `<state port>_next` for every tensor of the new state and `o`, `o_1`, … for the tensors of the output
    that are not themselves tensors of the new state. Which are is settled by `wires`, else by the first call (an
    operation may hand on its operand in one call and copy it in another); `.output` then is (structure, wires).
    """
    settled = [None if wires is None else tuple(wires)]

    def step(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        tensors = {entry: inputs[port] for port, entry in owned.items()}
        with swapped(cell, tensors):
            returned = call_cell(
                cell,
                x[1].fill([inputs[port] for port in x[0]]),
                state[1].fill([inputs[port] for port in state[0]]),
                None if context is None else context[1].fill([inputs[port] for port in context[0]]),
                context is not None,
            )
            replaced = rebound(cell, tensors)
        if replaced is not None:
            raise TraceError(
                what=f"the cell replaces its own tensor {replaced} while it steps",
                where=name,
                mend="keep what changes from step to step in the state",
            )
        output, new_state = understand(returned, state[1], name)
        new = flatten(new_state, "state")[0]
        results = {f"{port}_next": value for port, value in zip(state[0], new, strict=True)}
        kept, tree = flatten(output, "output")
        if settled[0] is None:
            settled[0] = _wires(kept, results)
            step.output = (tree if output is not None else None, settled[0])  # type: ignore[attr-defined]
        for wire, value in zip(settled[0], kept, strict=True):
            results.setdefault(wire, value)
        return results

    return step


def _wires(kept: Sequence[Tensor], results: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Names for the tensors of an output: that of the state's result where it is the same tensor."""
    names = []
    for position, value in enumerate(kept):
        same = next((wire for wire, other in results.items() if other is value), None)
        names.append(same or (f"o_{position}" if len(kept) > 1 else "o"))
    return tuple(names)
