"""The trace key: everything about a cell, besides the values of its tensors, that a trace depends on.

Attributes of every submodule by value (`cell.alpha = 0.9` between two calls is another key), the classes, the hooks,
where the tensors are and which of them are tied, their shapes, dtypes and devices. Computed at every call.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch

_TABLES = ("_parameters", "_buffers")
_HIDDEN = {"_modules", "_non_persistent_buffers_set", "_version", *_TABLES}
_PLAIN = (bool, int, float, str, bytes, type(None), torch.dtype, torch.device, complex)


def fingerprint(cell: torch.nn.Module) -> tuple[Hashable, ...]:
    """The part of the trace key that belongs to the cell."""
    found: list[Hashable] = []
    seen: dict[int, int] = {}
    for path, module in cell.named_modules():
        found.append((path, type(module)))
        for table in _TABLES:
            for name, value in module.__dict__[table].items():
                if value is not None:
                    found.append((name, _tensor(value, seen), table == "_buffers" and value.requires_grad))
        for name, value in module.__dict__.items():
            if name in _HIDDEN:
                continue
            if name[0] == "_" and isinstance(value, dict) and not value:
                continue  # the empty tables of hooks
            found.append((name, freeze(value, seen)))
    return tuple(found)


def _tensor(value: torch.Tensor, seen: dict[int, int]) -> Hashable:
    """A tensor counts by shape, dtype, device, and by which other entries are the same tensor."""
    number = seen.setdefault(id(value), len(seen))
    return (number, tuple(value.shape), value.dtype, value.device)


def freeze(value: Any, seen: dict[int, int], depth: int = 0) -> Hashable:
    """A hashable that changes when a value does: numbers, containers and plain objects by value, others by identity."""
    if isinstance(value, _PLAIN):
        return (type(value), value)
    if isinstance(value, torch.Tensor):
        # Tensors in containers are used as they are, so they count by identity.
        return _tensor(value, seen) if depth == 0 else ("tensor", id(value))
    if depth < 4:
        if isinstance(value, (list, tuple)):
            return (type(value), tuple(freeze(v, seen, depth + 1) for v in value))
        if isinstance(value, dict):
            return (
                type(value),
                tuple((freeze(k, seen, depth + 1), freeze(v, seen, depth + 1)) for k, v in value.items()),
            )
        if isinstance(value, (set, frozenset)):
            return (type(value), frozenset(freeze(v, seen, depth + 1) for v in value))
        inner = getattr(value, "__dict__", None)
        if isinstance(inner, dict) and not isinstance(value, (type, torch.nn.Module)) and not callable(value):
            return (type(value), tuple((k, freeze(v, seen, depth + 1)) for k, v in inner.items()))
    try:
        hash(value)
    except TypeError:
        return ("object", id(value))
    return value  # type: ignore[no-any-return]
