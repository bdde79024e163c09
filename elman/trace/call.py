"""What a cell takes and returns at one step, as flat tensors with names, and the cell's step as a function of them."""

from __future__ import annotations

import contextlib
import copy
import operator
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from elman.circuit.signature import Place
from elman.circuit.structure import NOTHING, Structure, fill, flatten, leaves, nested_alike, paths, take
from elman.errors import InputTypeError, TraceError
from elman.trace.modules import kept_values, module_at, modules, slots_of
from elman.trace.watch import content_of

Tensor = torch.Tensor


# --- the cell's own tensors ---------------------------------------------------------------------------------------


def places(cell: torch.nn.Module) -> list[tuple[Place, ...]]:
    """Every tensor that a cell keeps: parameters, buffers, plain attributes, those of modules in plain lists and dicts
    too; tied ones are one entry of many places."""
    places_of: dict[int, list[Place]] = {}
    computed_ids = {id(module.__dict__[name]) for module, name in computed(cell)}
    for path, module in modules(cell):
        for store in ("_parameters", "_buffers", "__dict__"):
            entries = module.__dict__ if store == "__dict__" else module.__dict__[store]
            for key, value in entries.items():
                if isinstance(value, Tensor) and not (store == "__dict__" and id(value) in computed_ids):
                    places_of.setdefault(id(value), []).append(Place(path, store, key))
    return [tuple(entry) for entry in places_of.values()]


_WEIGHTS = {  # hooks that make a weight out of others before each step, and the attribute with its name
    ("torch.nn.utils.weight_norm", "WeightNorm"): "name",
    ("torch.nn.utils.spectral_norm", "SpectralNorm"): "name",
    ("torch.nn.utils.prune", "BasePruningMethod"): "_tensor_name",
}


def computed(cell: torch.nn.Module) -> list[tuple[torch.nn.Module, str]]:
    """Plain attributes that a hook of PyTorch's computes before each step: values, and no tensors that a cell keeps."""
    derived = []
    for module in cell.modules():
        hooks: list[Any] = list(module._forward_pre_hooks.values())
        for hook in hooks:
            for base in type(hook).__mro__:
                name = getattr(hook, _WEIGHTS.get((base.__module__, base.__name__), ""), None)
                if isinstance(name, str) and isinstance(module.__dict__.get(name), Tensor):
                    derived.append((module, name))
    return derived


def store_of(cell: torch.nn.Module, place: Place) -> dict[str, Any]:
    """The dict that holds a place's tensor."""
    module = module_at(cell, place.module) if place.module else cell
    return module.__dict__ if place.store == "__dict__" else module.__dict__[place.store]


def skeleton_of(cell: torch.nn.Module) -> torch.nn.Module:
    """A copy of a cell without its weights, which keeps the attributes as they are now and can be run by `swapped`.

    Its modules are never the cell's own, which another thread may be using meanwhile.
    """
    memo: dict[int, Any] = {}
    functions: list[tuple[types.FunctionType, types.FunctionType]] = []
    for value in kept_values(cell):
        if isinstance(value, Tensor):  # the step uses this very one
            memo[id(value)] = value
        else:
            functions.append((value, _with_own_closure(value)))
            memo[id(value)] = functions[-1][1]
    for module, name in computed(cell):
        memo[id(module.__dict__[name])] = module.__dict__[name]
    for entry in places(cell):
        value = store_of(cell, entry[0])[entry[0].key]
        empty = torch.empty(value.shape, dtype=value.dtype, device="meta")
        memo[id(value)] = (
            torch.nn.Parameter(empty, value.requires_grad) if isinstance(value, torch.nn.Parameter) else empty
        )
    met = dict(memo)  # what a copy has met that fails must not be met again
    try:
        skeleton = None if any(map(slots_of, cell.modules())) else copy.deepcopy(cell, met)
    except Exception:
        skeleton = None
    if skeleton is None:
        met, skeleton = memo, _taken_apart(cell, memo)
    for function, copied in functions:  # a lambda over `self` is one over the copy
        for old, new in zip(function.__closure__ or (), copied.__closure__ or (), strict=True):
            content = content_of(old)
            if isinstance(content, (torch.nn.Module, types.FunctionType)):
                new.cell_contents = met.get(id(content), content)
            elif content is not types.CellType:
                new.cell_contents = content
    return skeleton


def _with_own_closure(function: types.FunctionType) -> types.FunctionType:
    """The same function with a closure of its own, empty as yet."""
    closure = tuple(types.CellType() for _ in function.__closure__ or ())
    copied = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, closure
    )
    copied.__kwdefaults__ = function.__kwdefaults__
    copied.__dict__.update(function.__dict__)
    return copied


def _taken_apart(cell: torch.nn.Module, memo: dict[int, Any]) -> torch.nn.Module:
    """The copy of a cell that keeps what cannot be copied (a lock, an open file), which is then shared;
    and what is in slots, which copying leaves out."""
    modules = list(cell.modules())
    for module in modules:
        memo[id(module)] = object.__new__(type(module))
    for module in modules:
        kept = module.__dict__ | {name: getattr(module, name) for name in slots_of(module)}
        for key, value in kept.items():
            met = dict(memo)  # what a copy has met that fails must not be met again
            try:
                made = copy.deepcopy(value, met)
                memo.update(met)
            except Exception:
                made = value
            object.__setattr__(memo[id(module)], key, made)
    return memo[id(cell)]


@contextlib.contextmanager
def swapped(cell: torch.nn.Module, tensors: Mapping[tuple[Place, ...], Tensor]) -> Iterator[None]:
    """Inside, the cell computes with the given tensors in the given places."""
    stores = [
        (store_of(cell, place), place.key, value) for entry, value in tensors.items() for place in entry
    ]
    stores += [(module.__dict__, name, module.__dict__[name]) for module, name in computed(cell)]
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
        for path, module in modules(cell)
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


def understand(returned: Any, state: Structure, cell: str) -> tuple[Any, Any]:
    """(output, new state) of what a cell returned; the new state is recognised by the state's structure.

    A cell that returns the new state alone has its first tensor as output. Raises TraceError otherwise.
    """
    if _same(returned, state):
        return next(iter(flatten(returned, "state")[0]), None), returned
    if isinstance(returned, (tuple, list)) and len(returned) == 2 and _same(returned[1], state):
        return returned[0], returned[1]
    size = len(paths(state, "state"))
    like = fill(state, [None] * size)
    for ordered in (in_order(returned, like), in_order(returned, (None, like))):  # dicts in another order
        if ordered is not returned:
            return understand(ordered, state, cell)
    raise TraceError(
        what="the cell returned neither the new state nor (output, new state)",
        where=cell,
        got=shape_of(returned),
        expected=f"a state {shape_of(fill(state, ['tensor'] * size))}, alone or after an output",
        mend="return the state in the structure in which it comes in",
    )


def in_order(value: Any, like: Any) -> Any:
    """The value, its dicts in the order of those of `like`; the value itself if all are, or have other keys."""
    if isinstance(value, dict) and isinstance(like, dict) and type(value) in (dict, OrderedDict):
        if value.keys() != like.keys():
            return value
        parts = {key: in_order(value[key], like[key]) for key in like}
        same = list(value) == list(like) and all(parts[key] is value[key] for key in like)
        return value if same else type(value)(parts)
    if isinstance(value, (tuple, list)) and isinstance(like, (tuple, list)) and len(value) == len(like):
        ordered = [in_order(*pair) for pair in zip(value, like, strict=True)]
        if all(map(operator.is_, ordered, value)):
            return value
        return type(value)(*ordered) if hasattr(value, "_fields") else type(value)(ordered)
    return value


def _same(value: Any, structure: Structure) -> bool:
    try:
        return nested_alike(take(value, []), structure)
    except InputTypeError:  # something in it is no tensor
        return False


def shape_of(value: Any) -> str:
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


def next_result(state: str) -> str:
    """What a step's result is called that a state port holds one step later."""
    return f"{state}_next"


def call_cell(cell: torch.nn.Module, x: Any, state: Any, context: Any, with_context: bool) -> Any:
    """One step of a cell, as users write it."""
    return cell(x, state, context) if with_context else cell(x, state)


def step_of(
    cell: torch.nn.Module,
    owned: Mapping[str, tuple[Place, ...]],
    x: tuple[Sequence[str], Structure],
    state: tuple[Sequence[str], Structure],
    context: tuple[Sequence[str], Structure],
    name: str,
    wires: Sequence[str] | None = None,
) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """The cell as a function of named tensors: ports in, results out.

    Results are those of `next_result` for every tensor of the new state and `o`, `o_1`, … for the tensors of the output
    that are not themselves tensors of the new state. Which are is settled by `wires`, else by the first call (an
    operation may hand on its operand in one call and copy it in another); `.output` then is (structure, wires).
    """
    settled = [None if wires is None else tuple(wires)]

    def step(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        tensors = {entry: inputs[port] for port, entry in owned.items()}
        with swapped(cell, tensors):
            arguments = (fill(part[1], [inputs[port] for port in part[0]]) for part in (x, state, context))
            returned = call_cell(cell, *arguments, with_context=context[1] != NOTHING)
            replaced = rebound(cell, tensors)
        if replaced is not None:
            raise TraceError(
                what=f"the cell replaces its own tensor {replaced} while it steps",
                where=name,
                mend="keep what changes from step to step in the state",
            )
        output, new_state = understand(returned, state[1], name)
        new, structure = flatten(new_state, "state")
        _keep_numbers(state[1], structure, name)
        results = {next_result(port): value for port, value in zip(state[0], new, strict=True)}
        kept, structure = flatten(output, "output")
        if settled[0] is None:
            settled[0] = _wires(kept, results)
            step.output = (structure, settled[0])  # type: ignore[attr-defined]
        for wire, value in zip(settled[0], kept, strict=True):
            results.setdefault(wire, value)
        return results

    return step


def _keep_numbers(before: Structure, after: Structure, cell: str) -> None:
    """Refuse a step that changes a number in the state: a circuit carries tensors from step to step."""
    for (_, old), (_, new) in zip(leaves(before, ""), leaves(after, ""), strict=True):
        if old != new:
            raise TraceError(
                what="the step changes a Python number (or flag) in the state",
                where=cell,
                got=f"{old[2]!r}, and then {new[2]!r}",
                mend="make it a tensor [B] that starts as torch.zeros(B): t + 1 counts on, torch.where chooses by it",
            )


def _wires(kept: Sequence[Tensor], results: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Names for the tensors of an output: that of the state's result where it is the same tensor."""
    names = []
    for position, value in enumerate(kept):
        same = next((wire for wire, other in results.items() if other is value), None)
        names.append(same or (f"o_{position}" if len(kept) > 1 else "o"))
    return tuple(names)
