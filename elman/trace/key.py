"""The trace key: everything about a cell, besides the values of its tensors, that a trace depends on.

Attributes of every submodule by value (`cell.alpha = 0.9` between two calls is another key), the classes, the hooks,
where the tensors are and which of them are tied, their shapes, dtypes and devices. It holds at one call; `watch` says
at the next ones, in a few microseconds, whether it can have changed since.
"""

from __future__ import annotations

import enum
import functools
import types
from collections.abc import Callable, Hashable, Iterator
from itertools import chain
from operator import attrgetter, is_
from typing import Any

import torch
from torch._C._functorch import is_functorch_wrapped_tensor

from elman.trace.outside import is_plain

try:
    from elman import _native
except ImportError:  # no compiler was there when elman was installed
    _native: Any = None

_TABLES = ("_parameters", "_buffers")
_HIDDEN = {"_modules", "_non_persistent_buffers_set", "_version", *_TABLES}
_PLAIN = (bool, int, float, str, bytes, type(None), torch.dtype, torch.device, complex)
_AS_IT_IS = (type, types.ModuleType, types.BuiltinFunctionType, enum.Enum)
_CONTAINERS = (list, tuple, set, frozenset, dict, types.FunctionType, types.MethodType, functools.partial)
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
        frozen = (freeze(part, seen, depth + 1) for part in inner)
        return (_kind(value), frozenset(frozen) if isinstance(value, (set, frozenset)) else tuple(frozen))
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
    inner, slots = getattr(value, "__dict__", None), _slots(value)
    if not isinstance(inner, dict) and not slots:
        return None
    inner = inner if isinstance(inner, dict) else {}
    return (*inner.keys(), *inner.values(), *slots, *(getattr(value, name) for name in slots))


def _slots(value: Any) -> list[str]:
    return [
        name
        for base in type(value).__mro__[:-1]
        for name in (
            [base.__dict__["__slots__"]]
            if isinstance(base.__dict__.get("__slots__"), str)
            else base.__dict__.get("__slots__", ())
        )
        if hasattr(value, name) and not name.startswith("__")
    ]


# --- has it changed? ------------------------------------------------------------------------------------------------

_GLOBAL_HOOKS: tuple[dict[Any, Any], ...] = tuple(
    value
    for name, value in vars(torch.nn.modules.module).items()
    if name.startswith("_global_") and isinstance(value, dict)
)


_form = attrgetter("shape", "dtype", "device")


def watch(cell: torch.nn.Module) -> Callable[[], bool] | None:
    """A function that says whether everything the trace key depends on is as it was when `watch` was called.

    It compares by identity, so True is certain (1 and 1.0 are two things), and False may be a false alarm: then the key
    has to be worked out. None for a cell that keeps what cannot be watched so (a closure, a set, hooks): its key has
    to be worked out at every call.
    """
    watched = _Watched()
    try:
        if not watched.look(cell) or any(_GLOBAL_HOOKS):
            return None
    except RecursionError:
        return None
    tensors, forms = watched.tensors, list(map(_form, watched.tensors))
    flowing = [(t, t.requires_grad) for t in watched.flowing]
    same = _same(watched.objects, [*watched.empty, *_GLOBAL_HOOKS], watched.dicts, watched.lists)

    def unchanged() -> bool:
        if not same() or list(map(_form, tensors)) != forms:
            return False
        return all(tensor.requires_grad is flows for tensor, flows in flowing)

    return unchanged


def _same(
    objects: list[Any], empty: list[Any], dicts: list[dict[Any, Any]], lists: list[list[Any]]
) -> Callable[[], bool]:
    """Whether objects are of the classes that they are now of, and containers hold what they hold now."""
    if _native is not None:
        return _native.Watch(objects, empty, dicts, lists).unchanged
    types_ = tuple(map(type, objects))
    held = [(d, len(d), (*d, *d.values())) for d in dicts]
    rows = [(items, len(items), tuple(items)) for items in lists]

    def same() -> bool:
        if any(empty) or not all(map(is_, map(type, objects), types_)):
            return False
        for now, size, before in held:
            if len(now) != size or not all(map(is_, chain(now, now.values()), before)):
                return False
        return all(len(items) == size and all(map(is_, items, before)) for items, size, before in rows)

    return same


class _Watched:
    """What `watch` has to compare: everything that `fingerprint` looks at, and that can change in place.

    objects: they may change their class. dicts, lists: their entries. empty: dicts that have to stay empty. tensors:
    shape, dtype and device. flowing: tensors that count by whether they want a gradient, too.
    """

    def __init__(self) -> None:
        self.objects: list[Any] = []
        self.dicts: list[dict[Any, Any]] = []
        self.lists: list[list[Any]] = []
        self.empty: list[dict[Any, Any]] = []
        self.tensors: list[torch.Tensor] = []
        self.flowing: list[torch.Tensor] = []
        self.seen: dict[int, Any] = {}

    def look(self, value: Any) -> bool:
        """Take in a value and everything in it; False if something in it cannot be watched."""
        kind = type(value)
        if kind in _PLAIN or isinstance(value, _AS_IT_IS) or id(value) in self.seen:
            return True
        self.seen[id(value)] = value
        if isinstance(value, torch.nn.Module):
            return self._module(value)
        if isinstance(value, torch.Tensor):
            self.flowing.append(value)
            return self._tensor(value)
        if isinstance(value, types.FunctionType):
            return value.__closure__ is None
        if isinstance(value, (tuple, frozenset)):
            return all(map(self.look, value))
        if kind is list:
            self.lists.append(value)
            return all(map(self.look, value))
        if kind is dict:
            self.dicts.append(value)
            return all(map(self.look, (*value, *value.values())))
        if _inside(value) is None:
            return True  # it counts by identity
        attributes = getattr(value, "__dict__", None)
        if isinstance(value, _CONTAINERS) or type(attributes) is not dict or _slots(value):
            return False
        self.objects.append(value)
        return self.look(attributes)

    def _tensor(self, value: torch.Tensor) -> bool:
        """A tensor; not one that belongs to a graph or a transform, which must not be held on to."""
        self.tensors.append(value)
        return value.grad_fn is None and not is_functorch_wrapped_tensor(value)

    def _module(self, module: torch.nn.Module) -> bool:
        self.objects.append(module)
        self.dicts.append(module.__dict__)
        for name, value in module.__dict__.items():
            if name[0] == "_" and isinstance(value, dict):
                if not value:
                    self.empty.append(value)
                    continue
                if name not in (*_TABLES, "_modules"):
                    return False  # hooks: what they do, they may do with something that is not looked at
                self.dicts.append(value)
                if name == "_parameters":  # whether they want a gradient is none of the trace's business
                    if not all(self._tensor(p) for p in value.values() if p is not None):
                        return False
                elif not all(map(self.look, value.values())):
                    return False
            elif name not in _HIDDEN and not self.look(value):
                return False
        return True


# --- whether anything has changed ---------------------------------------------------------------------------------


class Watch:
    """The fingerprint of a layer's cell, worked out again only where something may have changed."""

    def __init__(self) -> None:
        self.seen: Seen | None = None

    def mark(self, cell: torch.nn.Module) -> tuple[Hashable, ...]:
        """`fingerprint(cell)`."""
        seen = self.seen
        if seen is not None and seen.cell is cell and seen.holds():
            return seen.mark
        mark = fingerprint(cell)
        self.seen = Seen.of(cell, mark)
        return mark


class Seen:
    """A cell as it was when its fingerprint was `mark`: `holds` says that it is still the same, in 2 us.

    Everything that a fingerprint looks at is remembered and compared by identity (1 and 1.0 are equal and not the same
    trace). What cannot change but by being replaced is thereby settled;
    containers, plain objects and closures are looked into again, tensors asked for what `.to()` and `.data = ` change
    in place. It may say no where nothing counts has changed: then the fingerprint decides.
    """

    def __init__(self, cell: torch.nn.Module, mark: tuple[Hashable, ...]) -> None:
        self.cell, self.mark = cell, mark
        self._modules: list[tuple[torch.nn.Module, type, dict[str, Any]]] = []
        self._empty: list[Any] = []  # containers with nothing in them: tables of hooks above all
        self._tables: list[tuple[dict[str, Any], list[str], list[Any]]] = []
        self._tensors: list[tuple[torch.Tensor, torch.Size, torch.dtype, torch.device, bool | None]] = []
        self._inner: list[tuple[Any, Any, tuple[Any, ...]]] = []
        self._met: set[int] = set()

    @classmethod
    def of(cls, cell: torch.nn.Module, mark: tuple[Hashable, ...]) -> Seen | None:
        """A cell as it is now; None for one whose tensors nobody should hold on to: those with a history, or of a
        transform that is going on."""
        seen = cls(cell, mark)
        for module in cell.modules():
            seen._module(module)
        lasting = all(is_plain(entry[0]) and entry[0].grad_fn is None for entry in seen._tensors)
        return seen if lasting else None

    def holds(self) -> bool:
        """Whether the cell has the same fingerprint as then."""
        if any(self._empty):
            return False
        for table, names, values in self._tables:
            if [*table] != names or not all(map(is_, table.values(), values)):
                return False
        for module, kind, table in self._modules:
            if type(module) is not kind or module.__dict__ is not table:
                return False
        for tensor, shape, dtype, device, wants in self._tensors:
            if tensor.shape != shape or tensor.dtype is not dtype or tensor.device != device:
                return False
            if wants is not None and tensor.requires_grad is not wants:
                return False
        for value, kind, parts in self._inner:
            inner = _inside(value) if _kind(value) is kind else None
            if inner is None or len(inner) != len(parts) or not all(map(is_, inner, parts)):
                return False
        return True

    def _module(self, module: torch.nn.Module) -> None:
        table = module.__dict__
        self._met.add(id(module))
        self._modules.append((module, type(module), table))
        for entries in (table, table["_parameters"], table["_buffers"], table["_modules"]):
            if entries:
                self._tables.append((entries, [*entries], [*entries.values()]))
            else:
                self._empty.append(entries)
        for parameter in table["_parameters"].values():
            if parameter is not None:
                self._tensor(parameter, None)
        for buffer in table["_buffers"].values():
            if buffer is not None:
                self._tensor(buffer, buffer.requires_grad)
        for name, value in table.items():
            if name not in _HIDDEN:
                self._value(value, 0)

    def _tensor(self, value: torch.Tensor, wants: bool | None) -> None:
        self._tensors.append((value, value.shape, value.dtype, value.device, wants))

    def _value(self, value: Any, depth: int) -> None:
        """Remember what may change inside a value; goes where `freeze` goes."""
        if isinstance(value, torch.Tensor):
            self._tensor(value, value.requires_grad)
        if isinstance(value, (*_PLAIN, *_AS_IT_IS, torch.Tensor)) or id(value) in self._met:
            return
        self._met.add(id(value))
        if isinstance(value, (list, dict, set)) and not value:
            self._empty.append(value)
            return
        inner = _inside(value) if depth < _DEEPEST else None
        if inner is None:
            return
        if isinstance(value, torch.nn.Module):
            for module in value.modules():
                if module is value or id(module) not in self._met:
                    self._module(module)
            return
        if not isinstance(value, (tuple, frozenset)):
            self._inner.append((value, _kind(value), inner))
        for part in inner:
            self._value(part, depth + 1)


def _kind(value: Any) -> Any:
    """What else than its parts makes a value: its class, or its code."""
    return value.__code__ if isinstance(value, types.FunctionType) else type(value)


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
