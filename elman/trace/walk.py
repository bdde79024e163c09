"""One walk over everything that a cell's step can read.

It starts at the cell and goes wherever names lead: attributes of the cell and of its modules, those in plain lists and
dicts too; methods and what they call, with their closures, defaults and the globals that they name; entries of classes
and of modules; and into containers, plain objects, numpy arrays. Numbers count by value, code by its content, tensors
of the cell by shape, dtype, device and which of them are tied, everything else by identity. What is installed (PyTorch,
Python's own, packages) counts as it is: its code is not read.
"""

from __future__ import annotations

import array
import collections
import contextlib
import contextvars
import enum
import functools
import gc
import operator
import os
import random
import sys
import types
import weakref
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from operator import is_
from typing import Any

import torch

from elman.trace.modules import HIDDEN, PLAIN, TABLES, joined, modules, slots_of
from elman.trace.names import is_library, names_of
from elman.trace.watch import GLOBAL_HOOKS, Watched, content_of, of_users

_VIEWS = tuple(map(type, ({}.keys(), {}.values(), {}.items())))
_OF_EVERY_MODULE = frozenset(torch.nn.Module().__dict__)
# What PyTorch and elman read without its name standing in the step's code.
_CALLED = ("hidden_size", "forward", "backward", "setup_context", "jvp", "vmap", "right_inverse")
_MAKING = {"__init__", "__new__", "__post_init__"}
_SILENT = _MAKING | {
    "__repr__", "__str__", "__setattr__", "__delattr__", "__getstate__", "__setstate__", "__reduce__", "__reduce_ex__",
    "__del__", "__copy__", "__deepcopy__", "__init_subclass__", "__class_getitem__", "__dir__", "__replace__",
}  # fmt: skip
_DATA = {
    "types",
    "collections",
    "argparse",
    "configparser",
}  # of Python's modules, whose objects are their attributes


class Same:
    """Something by identity, without keeping it alive; nothing else is ever equal to it, at the same address or not."""

    __slots__ = ("_hash", "_of")

    def __init__(self, value: Any) -> None:
        self._hash = id(value)
        try:
            self._of: Callable[[], Any] = weakref.ref(value)
        except TypeError:
            self._of = lambda: value

    def __eq__(self, other: object) -> bool:
        return type(other) is Same and (mine := self._of()) is not None and mine is other._of()

    def __hash__(self) -> int:
        return self._hash


@dataclass
class _Space:
    """Something whose entries count if code names them.

    counts: says which entries count unnamed. whole: every one may be read where code reads by other means.
    """

    path: str
    entries: Mapping[str, Any]
    holder: Any
    counts: Callable[[str, Any], bool] | None
    whole: bool
    done: set[str]


class Walk:
    """Everything that a cell's step can read.

    found: (path, what counts about it). drawn: states of random number generators, which count for `changes` only.
    """

    def __init__(self, cell: torch.nn.Module) -> None:
        self.found: list[tuple[Hashable, ...]] = []
        self.drawn: list[tuple[str, Hashable]] = []
        self.watched = Watched()
        self._names: dict[str, None] = dict.fromkeys(_CALLED)
        self._by_other_means = False
        self._spaces: list[_Space] = []
        self._pending: collections.deque[tuple[str, Any]] = collections.deque()
        self._seen: dict[int, tuple[str, Any]] = {}
        self._ports: dict[int, int] = {}
        self._classes: dict[tuple[type, bool], None] = {}
        own = list(modules(cell))
        for path, module in own:
            self._seen[id(module)] = (path, module)
        for path, module in own:
            self._module(path, module, True)
        for hooks in GLOBAL_HOOKS:
            if mine := tuple(of_users(hooks).values()):
                self._pending.append(("torch.nn.modules.module", mine))
        self._everything()
        self.found.append(("torch.get_default_dtype()", torch.get_default_dtype()))
        for space in self._spaces:
            passed = frozenset(name for name in space.entries if name not in space.done)
            if isinstance(space.holder, type):
                self.watched.classes.append((space.holder, passed))
            elif isinstance(space.holder, torch.nn.Module):
                self.watched.dict(space.holder.__dict__, passed - HIDDEN)

    def _everything(self) -> None:
        """Follow names until no more are found."""
        while True:
            while self._pending:
                self._value(*self._pending.popleft())
            for space in self._spaces:
                for name in self._news(space):
                    space.done.add(name)
                    value = space.entries[name]
                    if isinstance(space.holder, types.ModuleType):
                        self.watched.names.append((space.entries, name, value))
                    self._pending.append((joined(space.path, name), value))
            if not self._pending:
                return

    def _news(self, space: _Space) -> list[str]:
        if space.counts is not None or (space.whole and self._by_other_means):
            every, counts = space.whole and self._by_other_means, space.counts
            return [
                name
                for name, value in space.entries.items()
                if name not in space.done
                and name not in HIDDEN
                and (
                    (every and name not in _SILENT)
                    or name in self._names
                    or (counts is not None and counts(name, value))
                )
            ]
        return [name for name in self._names if name in space.entries and name not in space.done]

    # --- kinds of values ---

    def _value(self, path: str, value: Any) -> None:
        kind = type(value)
        if kind in weakref.ProxyTypes:
            with contextlib.suppress(ReferenceError):
                self._value(path, value.__init__.__self__)
        elif kind in PLAIN:
            self.found.append((path, kind, _by_value(value)))
        elif isinstance(value, torch.Tensor):
            self._loose(path, value)
        elif isinstance(value, (*PLAIN, enum.Enum)):
            self.found.append((path, kind, value))
            if id(value) not in self._seen:
                self._seen[id(value)] = (path, value)
                self._attributes(path, value)
        elif id(value) in self._seen:
            self.found.append((path, "again", self._seen[id(value)][0]))
        else:
            self._seen[id(value)] = (path, value)
            self._inside(path, kind, value)

    def _inside(self, path: str, kind: type, value: Any) -> None:
        """Something met for the first time."""
        push, watched = self._pending.append, self.watched
        if isinstance(value, type):
            self.found.append((path, value))
            self._class(value, True)
        elif isinstance(value, types.ModuleType):
            self.found.append((path, value))
            self._spaces.append(
                _Space(path, value.__dict__, value, None, not is_library(value.__name__), set())
            )
        elif isinstance(value, torch.nn.Module):
            self._module(path, value, False)
        elif kind is types.FunctionType:
            self._function(path, value)
        elif kind is types.MethodType:
            self.found.append((path, kind))
            push((f"{path}()", value.__func__))
            push((f"{path}.__self__", value.__self__))
        elif kind is types.BuiltinFunctionType:
            if value.__self__ is None or isinstance(value.__self__, (types.ModuleType, type)):
                self.found.append((path, value))
            else:
                self.found.append((path, kind, value.__name__))
                push((f"{path}.__self__", value.__self__))
        elif isinstance(value, (functools.partial, functools.partialmethod)):
            self.found.append((path, kind))
            push((f"{path}.func", value.func))
            push((f"{path}.args", value.args))
            push((f"{path}.keywords", value.keywords))
        elif isinstance(value, (property, staticmethod, classmethod, functools.cached_property)):
            self.found.append((path, kind))
            push(
                (
                    path,
                    next(filter(None, (getattr(value, name, None) for name in ("fget", "__func__", "func")))),
                )
            )
        elif isinstance(value, operator.attrgetter):
            self.found.append((path, kind, names := value.__reduce__()[1]))
            self._names |= dict.fromkeys(part for name in names for part in name.split("."))
        elif isinstance(value, (weakref.ref, contextvars.ContextVar)):
            ask = functools.partial(value.get, None) if isinstance(value, contextvars.ContextVar) else value
            self.found.append((path, kind))
            watched.asked.append((lambda: _Row((ask(),)), _Row((ask(),))))
            push((f"{path}()", ask()))
        elif isinstance(value, (bytearray, memoryview, array.array)):
            self.found.append((path, kind, bytes(value)))
            watched.asked.append((lambda: bytes(value), bytes(value)))
        elif isinstance(value, (types.MappingProxyType, *_VIEWS)):
            self.found.append((path, kind))
            push((path, gc.get_referents(value)[0]))
        elif isinstance(value, (list, tuple, collections.deque)):
            self._row(path, value)
            self._attributes(path, value)
        elif isinstance(value, (set, frozenset)):
            self.found.append(
                (path, kind, frozenset(_by_value(v) if isinstance(v, PLAIN) else v for v in value))
            )
            watched.others.append(value)
            self._objects(path, value)
            self._attributes(path, value)
        elif isinstance(value, dict):
            self.found.append((path, kind))
            watched.dict(value)
            if kind is not dict:
                watched.others.append(value)  # in which order
                self._attributes(path, value)
            self._objects(path, value)
            for key, part in value.items():
                push((f"{path}[{key!r}]", part))
        elif isinstance(value, os._Environ):
            self.found.append((path, tuple(value.items())))
            watched.dict(value._data)  # type: ignore[attr-defined]
        elif not self._array(path, value) and not self._attributes(path, value):
            self.found.append((path, *_by_identity(value)))
            if isinstance(value, functools._lru_cache_wrapper):
                push((path, value.__wrapped__))

    def _objects(self, path: str, values: Iterable[Any]) -> None:
        """What keys of a dict or members of a set keep themselves."""
        for i, value in enumerate(values):
            if not isinstance(value, PLAIN):
                self._pending.append((f"{path}, {i}", value))

    def _row(self, path: str, value: Any) -> None:
        kind = type(value)
        if kind is list:
            self.watched.lists.append(value)
        elif isinstance(value, (list, collections.deque)):
            self.watched.others.append(value)
        if all(type(part) in PLAIN for part in value):
            self.found.append((path, kind, tuple((type(part), _by_value(part)) for part in value)))
        else:
            self.found.append((path, kind))
            for i, part in enumerate(value):
                self._pending.append((f"{path}[{i}]", part))

    def _array(self, path: str, value: Any) -> bool:
        """What numpy makes: arrays by their content; and random number generators of whatever make."""
        if isinstance(value, random.Random):
            self.drawn.append((path, value.getstate()))
            self.found.append((path, *_by_identity(value)))
            return True
        numpy = sys.modules.get("numpy")
        if numpy is None or type(value).__module__.partition(".")[0] != "numpy":
            return False
        if isinstance(value, numpy.ndarray) and value.dtype.hasobject:
            self.found.append((path, value.shape, value.dtype.str))
            self.watched.asked.append((lambda: _Row(value.flat), _Row(value.flat)))
            for i, part in enumerate(value.flat):
                self._pending.append((f"{path}.flat[{i}]", part))
            return True
        if isinstance(value, numpy.ndarray):

            def content() -> tuple[Any, ...]:
                return value.shape, value.dtype.str, value.tobytes()

            self.found.append((path, *content()))
            self.watched.asked.append((content, content()))
            return True
        if isinstance(value, (numpy.random.Generator, numpy.random.RandomState)):
            of = value.bit_generator if isinstance(value, numpy.random.Generator) else value._bit_generator
            self.drawn.append((path, repr(of.state)))
            self.found.append((path, *_by_identity(value)))
            return True
        return False

    def _attributes(self, path: str, value: Any) -> bool:
        """A plain object: its class and its attributes, those in slots too. False where it is none."""
        kind = type(value)
        home = kind.__module__.partition(".")[0]
        if home in sys.stdlib_module_names and is_library(kind.__module__) and home not in _DATA:
            return False
        if home in ("torch", "elman") and callable(value):
            return False
        call = next((base.__dict__["__call__"] for base in kind.__mro__ if "__call__" in base.__dict__), None)
        inner, slots = getattr(value, "__dict__", None), slots_of(value)
        if (call is not None and not isinstance(call, types.FunctionType)) or (
            type(inner) is not dict and not slots
        ):
            return False
        self.found.append((path, kind))
        self._class(kind, False)
        self.watched.objects.append(value)
        if type(inner) is dict:
            self.watched.dict(inner)
            for name, part in inner.items():
                self._pending.append((f"{path}.{name}", part))
        self._slots(path, value, slots)
        return True

    def _slots(self, path: str, value: Any, slots: list[str]) -> None:
        if slots:
            kept = [getattr(value, name, None) for name in slots]
            self.watched.asked.append(
                (lambda: _Row(getattr(value, name, None) for name in slots), _Row(kept))
            )
            for name, part in zip(slots, kept, strict=True):
                self._pending.append((f"{path}.{name}", part))

    def _function(self, path: str, function: types.FunctionType) -> None:
        home = function.__globals__
        if is_library(home.get("__name__")):
            self.found.append((path, Same(function)))
            if (wrapped := function.__dict__.get("__wrapped__")) is not None:
                self._pending.append((path, wrapped))
            return
        code = function.__code__
        self.found.append((path, code))
        self.watched.functions.append(function)
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            self.watched.cells.append(cell)
            self._pending.append((f"{name} of {function.__qualname__}", content_of(cell)))
        for part in (function.__defaults__, function.__kwdefaults__, function.__dict__ or None):
            if part:
                self._pending.append((f"{path}()", part))
        names = names_of(code)
        self._by_other_means |= names.by_other_means
        for name in names.attributes:
            self._names[name] = None
        for name in names.globals:
            if name in home:
                self.watched.names.append((home, name, home[name]))
                self._pending.append((f"{home.get('__name__')}.{name}", home[name]))
            else:
                self.watched.names.append((home, name))
        for name in names.modules:
            if name in sys.modules:
                self._pending.append((name, sys.modules[name]))
        if "getenv" in names.attributes:
            self._pending.append(("os.environ", os.environ))

    def _class(self, kind: type, made: bool) -> None:
        """The entries of a class and its bases. made: the step may make instances of it."""
        meta: type = type(kind)
        for base in (*kind.__mro__, *meta.__mro__):
            if (base, made) in self._classes or is_library(base.__module__):
                continue
            self._classes[base, made] = None
            silent = _SILENT - _MAKING if made else _SILENT

            def counts(name: str, value: Any, silent: set[str] = silent) -> bool:
                return name[:2] == "__" and name not in silent and isinstance(value, types.FunctionType)

            self._spaces.append(_Space(base.__qualname__, base.__dict__, base, counts, True, set()))

    def _module(self, path: str, module: torch.nn.Module, own: bool) -> None:
        """What one module keeps, its submodules left out where they are the cell's own. own: so is the module."""
        kind, watched, entries = type(module), self.watched, module.__dict__
        self.found.append((path, kind))
        self._class(kind, False)
        watched.objects.append(module)
        for table in ("_modules", *TABLES):
            if entries[table]:
                watched.dict(entries[table])
            else:
                watched.empty.append(entries[table])
        for table in TABLES:
            for name, value in entries[table].items():
                if value is None:
                    self.found.append((joined(path, name), None))
                elif own:
                    wants = table == "_buffers" and value.requires_grad
                    self.found.append((joined(path, name), table, *self._port(value), wants))
                    watched.tensors.append(value)
                    if (
                        table == "_buffers"
                    ):  # whether a parameter wants a gradient is none of the trace's business
                        watched.flowing.append(value)
                else:
                    self._loose(joined(path, name), value)
        for name, value in entries["_modules"].items():
            if value is None or not own:
                self._pending.append((joined(path, name), value))
        self._slots(path, module, slots_of(module))
        space = _Space(path, entries, module, None, True, set())
        self._spaces.append(space)
        for name, value in entries.items():
            if (
                name in _OF_EVERY_MODULE and isinstance(value, dict) and name not in HIDDEN
            ):  # the tables of hooks
                space.done.add(name)
                if not value:
                    watched.empty.append(value)
                else:
                    watched.hooked = True
                    self._pending.append((joined(path, name), value))
            elif isinstance(value, torch.Tensor) and own:
                space.done.add(name)
                self.found.append((joined(path, name), *self._port(value), value.requires_grad))
                watched.tensors.append(value)
                watched.flowing.append(value)
        by_name = all(
            base is torch.nn.Module or base is object or not is_library(base.__module__)
            or base.__module__ in ("abc", "typing")
            for base in kind.__mro__
        )  # fmt: skip

        def counts(name: str, value: Any) -> bool:
            return name not in HIDDEN and (
                not by_name or name in _OF_EVERY_MODULE or isinstance(value, torch.nn.Module)
            )

        space.counts = counts

    def _port(self, value: torch.Tensor) -> tuple[Hashable, ...]:
        """A tensor of the cell's own: shape, dtype, device, and which others are the same tensor."""
        number = self._ports.setdefault(id(value), len(self._ports))
        return ("tensor", number, tuple(value.shape), value.dtype, value.device)

    def _loose(self, path: str, value: torch.Tensor) -> None:
        """A tensor that is not the cell's own: the trace uses this very one."""
        self.found.append((path, "tensor", Same(value), tuple(value.shape), value.dtype, value.requires_grad))
        self.watched.tensors.append(value)
        self.watched.flowing.append(value)


class _Row(tuple):  # type: ignore[type-arg]
    """Values that are equal if they are the same."""

    __slots__ = ()
    __hash__ = tuple.__hash__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, tuple) and len(self) == len(other) and all(map(is_, self, other))


def _by_value(value: Any) -> Hashable:
    """A number that equals no other: -0.0 is not 0.0, and what is no number is itself."""
    return repr(value) if isinstance(value, (float, complex)) else value


def _by_identity(value: Any) -> tuple[Hashable, ...]:
    """What is not looked into: by what its class calls equal if that cannot change, else by identity."""
    kind = type(value)
    if (
        kind.__eq__ is not object.__eq__
        and is_library(kind.__module__)
        and kind.__module__ not in ("torch", "numpy")
    ):
        try:
            hash(value)
        except TypeError:
            pass
        else:
            return kind, value
    return kind, Same(value)
