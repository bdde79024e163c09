"""The trace key: everything about a cell, besides the values of its tensors, that a trace depends on.

Attributes of every submodule by value (`cell.alpha = 0.9` between two calls is another key), the classes, the hooks,
where the tensors are and which of them are tied, their shapes, dtypes and devices. Computed at every call.
"""

from __future__ import annotations

import enum
import functools
import types
from collections.abc import Hashable, Iterator
from typing import Any

import torch

_TABLES = ("_parameters", "_buffers")
_HIDDEN = {"_modules", "_non_persistent_buffers_set", "_version", *_TABLES}
_PLAIN = (bool, int, float, str, bytes, type(None), torch.dtype, torch.device, complex)
_AS_IT_IS = (type, types.ModuleType, types.BuiltinFunctionType, enum.Enum)
_DEEPEST = 8  # containers and objects within each other that are looked into


def fingerprint(cell: torch.nn.Module) -> tuple[Hashable, ...]:
    """The part of the trace key that belongs to the cell."""
    found: list[Hashable] = []
    seen: dict[int, int] = {}
    for path, module in cell.named_modules():
        found.append(path)
        _module(module, seen, found, 0)
    return tuple(found)


def _module(module: torch.nn.Module, seen: dict[int, int], found: list[Hashable], depth: int) -> None:
    """Append what one module keeps, its submodules left out."""
    seen.setdefault(id(module), len(seen))
    found.append(type(module))
    for table in _TABLES:
        for name, value in module.__dict__[table].items():
            if value is not None:
                found.append((name, _tensor(value, seen), table == "_buffers" and value.requires_grad))
    for name, value in module.__dict__.items():
        if name in _HIDDEN:
            continue
        if name[0] == "_" and isinstance(value, dict) and not value:
            continue  # the empty tables of hooks
        found.append((name, freeze(value, seen, depth)))


def _tensor(value: torch.Tensor, seen: dict[int, int]) -> Hashable:
    """A tensor counts by shape, dtype, device, and by which other entries are the same tensor."""
    number = seen.setdefault(id(value), len(seen))
    return (number, tuple(value.shape), value.dtype, value.device)


def freeze(value: Any, seen: dict[int, int], depth: int = 0) -> Hashable:
    """A hashable that changes when a value does: numbers, containers and plain objects by value, others by identity.

    seen: numbers for what was met before, by identity; it is not looked into again.
    """
    if isinstance(value, _PLAIN):
        return (type(value), value)
    if isinstance(value, torch.Tensor):
        if depth == 0:
            return (_tensor(value, seen), value.requires_grad)
        # Tensors in containers are used as they are, so they count by identity.
        return ("tensor", id(value), tuple(value.shape), value.dtype)
    if isinstance(value, _AS_IT_IS):
        return value
    if id(value) in seen:
        return ("again", seen[id(value)])
    if depth < _DEEPEST and (inner := _inside(value)) is not None:
        seen[id(value)] = len(seen)
        if isinstance(value, torch.nn.Module):
            found: list[Hashable] = []
            _module(value, seen, found, depth + 1)
            return (*found, tuple(freeze(child, seen, depth + 1) for child in value._modules.values()))
        kind = value.__code__ if isinstance(value, types.FunctionType) else type(value)
        frozen = (freeze(part, seen, depth + 1) for part in inner)
        return (kind, frozenset(frozen) if isinstance(value, (set, frozenset)) else tuple(frozen))
    try:
        hash(value)
    except TypeError:
        return ("object", id(value))
    return value  # type: ignore[no-any-return]


def _inside(value: Any) -> tuple[Any, ...] | None:
    """What a value consists of, if it counts by its content: containers, functions with a closure, plain objects."""
    if isinstance(value, (list, tuple, set, frozenset)):
        return tuple(value)
    if isinstance(value, dict):
        return (*value.keys(), *value.values())
    if isinstance(value, torch.nn.Module):
        return ()
    if isinstance(value, types.FunctionType):
        if value.__closure__ is None:
            return None
        return (*_cells(value), value.__defaults__, value.__kwdefaults__)
    if isinstance(value, types.MethodType):
        return value.__func__, value.__self__
    if isinstance(value, functools.partial):
        return value.func, value.args, value.keywords
    if type(value).__module__.partition(".")[0] == "torch":
        return None if callable(value) else _attributes(value)
    called = next(
        (base.__dict__["__call__"] for base in type(value).__mro__ if "__call__" in base.__dict__), None
    )
    return _attributes(value) if called is None or isinstance(called, types.FunctionType) else None


def _cells(function: types.FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not filled yet
            yield None


def _attributes(value: Any) -> tuple[Any, ...] | None:
    """Names and values of a plain object's attributes, those in slots too; None if it has none."""
    inner = getattr(value, "__dict__", None)
    slots = [
        name
        for base in type(value).__mro__[:-1]
        for name in (
            [base.__dict__["__slots__"]]
            if isinstance(base.__dict__.get("__slots__"), str)
            else base.__dict__.get("__slots__", ())
        )
        if hasattr(value, name) and not name.startswith("__")
    ]
    if not isinstance(inner, dict) and not slots:
        return None
    inner = inner if isinstance(inner, dict) else {}
    return (*inner.keys(), *inner.values(), *slots, *(getattr(value, name) for name in slots))


def loose_tensors(cell: torch.nn.Module) -> list[torch.Tensor]:
    """Tensors that a cell keeps in containers and objects rather than under a name of its own."""
    found: dict[int, torch.Tensor] = {}
    seen: set[int] = set()
    pending: list[tuple[Any, int]] = [
        (value, 1)
        for module in cell.modules()
        for name, value in module.__dict__.items()
        if name not in _HIDDEN and not isinstance(value, torch.Tensor)
    ]
    while pending:
        value, depth = pending.pop()
        if isinstance(value, torch.Tensor):
            found[id(value)] = value
        elif not isinstance(value, (*_PLAIN, *_AS_IT_IS)) and id(value) not in seen and depth <= _DEEPEST:
            seen.add(id(value))
            if isinstance(value, torch.nn.Module):
                continue
            pending += [(part, depth + 1) for part in _inside(value) or ()]
    return list(found.values())
