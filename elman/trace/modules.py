"""What a cell keeps and PyTorch does not list: modules in plain lists and dicts, tensors and functions in objects."""

from __future__ import annotations

import ast
import collections
import functools
import re
import types
from collections.abc import Iterator
from typing import Any

import torch

from elman.trace.watch import content_of

TABLES = ("_parameters", "_buffers")
HIDDEN = {"_modules", "_non_persistent_buffers_set", "_version", *TABLES}
PLAIN = (bool, int, float, str, bytes, type(None), torch.dtype, torch.device, complex)


def modules(cell: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """A cell and its submodules by path, those too that it keeps where PyTorch does not look: `target[0]`."""
    queue = list(cell.named_modules())
    met = {id(module) for _, module in queue}
    for path, module in queue:  # it grows
        yield path, module
        for name, value in module.__dict__.items():
            if name not in HIDDEN and not isinstance(value, PLAIN):
                for inner, hidden in _kept_modules(value, joined(path, name), 0):
                    more = [
                        (joined(inner, n) if n else inner, m)
                        for n, m in hidden.named_modules()
                        if id(m) not in met
                    ]
                    met.update(id(m) for _, m in more)
                    queue += more


def _kept_modules(value: Any, path: str, depth: int) -> Iterator[tuple[str, torch.nn.Module]]:
    if isinstance(value, torch.nn.Module):
        yield path, value
    elif depth < 4 and isinstance(value, (list, tuple)):
        for i, part in enumerate(value):
            yield from _kept_modules(part, f"{path}[{i}]", depth + 1)
    elif depth < 4 and isinstance(value, dict):
        for key, part in value.items():
            yield from _kept_modules(part, f"{path}[{key!r}]", depth + 1)


def module_at(cell: torch.nn.Module, path: str) -> torch.nn.Module:
    """The module of a path that `modules` has given."""
    return dict(modules(cell))[path] if "[" in path else cell.get_submodule(path)


def steps_to(path: str) -> tuple[tuple[str, Any], ...]:
    """How to get to the module of a path, in steps that a compiler can follow: ("attribute", name), ("item", key)."""
    steps = re.findall(r"\[(-?\d+|'[^']*')\]|([^.\[\]]+)", path)
    return tuple(("attribute", name) if name else ("item", ast.literal_eval(item)) for item, name in steps)


def kept_values(cell: torch.nn.Module) -> Iterator[Any]:
    """Tensors, and functions with a closure, that a cell keeps in containers and objects rather than in its modules."""
    own = {id(module) for _, module in modules(cell)}
    seen: set[int] = set()
    pending = [
        value
        for _, module in modules(cell)
        for name, value in module.__dict__.items()
        if name not in HIDDEN and not isinstance(value, torch.Tensor)
    ]
    while pending:
        value = pending.pop()
        if (
            isinstance(value, (*PLAIN, type, types.ModuleType, types.BuiltinFunctionType))
            or id(value) in seen
        ):
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, torch.nn.Module):
            if id(value) not in own:
                pending += [*value.parameters(), *value.buffers()]
        elif isinstance(value, (list, tuple, set, frozenset, collections.deque)):
            pending += value
        elif isinstance(value, dict):
            pending += (*value, *value.values())
        elif isinstance(value, types.FunctionType):
            if value.__closure__ is not None:
                yield value
                contents = map(content_of, value.__closure__)
                pending += (c for c in contents if isinstance(c, (types.FunctionType, types.MethodType)))
        elif isinstance(value, types.MethodType):
            pending += (value.__func__, value.__self__)
        elif isinstance(value, functools.partial):
            pending += (value.func, value.args, value.keywords)
        else:
            inner = getattr(value, "__dict__", None)
            pending += inner.values() if type(inner) is dict else ()
            pending += (getattr(value, name) for name in slots_of(value))


def slots_of(value: Any) -> list[str]:
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


def joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
