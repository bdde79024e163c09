"""Whether everything that a trace key was worked out from is as it was: a comparison by identity, in microseconds."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from operator import attrgetter, is_
from typing import Any

import torch
from torch._C._functorch import is_functorch_wrapped_tensor

from elman.trace.modes import has_no_memory

try:
    from elman import _native
except ImportError:  # no compiler was there when elman was installed
    _native: Any = None

GLOBAL_HOOKS: tuple[dict[Any, Any], ...] = tuple(
    value
    for name, value in vars(torch.nn.modules.module).items()
    if name.startswith("_global_") and isinstance(value, dict)
)


def of_users(hooks: Mapping[Any, Any]) -> dict[Any, Any]:
    """Global hooks without those of PyTorch's own trackers (of FlopCounterMode), which look on and change nothing."""
    return {
        key: hook for key, hook in hooks.items() if not getattr(hook, "__module__", "").startswith("torch.")
    }


_form = attrgetter("shape", "dtype", "device")
_ALL: frozenset[str] = frozenset()


class Watched:
    """What a walk has met that can change, by the way in which it can.

    objects: they may change their class. dicts, classes: their entries, besides those of the keys beside them. lists,
    others: their items. cells: of closures. functions: their code and defaults. names: single entries of dicts, as
    (dict, key, value), or (dict, key) where there is none. empty: dicts that have to stay empty. tensors: shape, dtype
    and device. flowing: tensors that count by whether they want a gradient, too. asked: functions, and what they
    returned.
    """

    def __init__(self) -> None:
        self.objects: list[Any] = []
        self.dicts: list[tuple[dict[Any, Any], frozenset[str]]] = []
        self.classes: list[tuple[type, frozenset[str]]] = []
        self.lists: list[list[Any]] = []
        self.others: list[Iterable[Any]] = []
        self.cells: list[types.CellType] = []
        self.functions: list[types.FunctionType] = []
        self.names: list[tuple[Any, ...]] = []
        self.empty: list[dict[Any, Any]] = []
        self.tensors: list[torch.Tensor] = []
        self.flowing: list[torch.Tensor] = []
        self.asked: list[tuple[Callable[[], Any], Any]] = []
        self.same: Callable[[], bool] | None = None  # made by `unchanged`
        self.hooked = False  # what hooks do, they may do with something that is not looked at

    def dict(self, entries: dict[Any, Any], passed: frozenset[str] = _ALL) -> None:
        self.dicts.append((entries, passed))

    def unchanged(self) -> Callable[[], bool] | None:
        """A function that says whether everything is as it is now; None where that cannot be said."""
        if self.hooked or any(GLOBAL_HOOKS):
            return None
        tensors, forms = self.tensors, list(map(_form, self.tensors))
        if any(t.grad_fn is not None or is_functorch_wrapped_tensor(t) for t in tensors):
            return None  # it belongs to a graph or a transform, and must not be held on to
        dtype, default = torch.get_default_dtype(), torch.get_default_dtype
        every = *tensors, *self.flowing
        if _native is not None and not any(map(has_no_memory, every)) and all(map(_native.describes, every)):
            watch = self._watch(tensors, self.flowing, [(default, dtype), *self.asked])
            self.same = watch.same
            return watch.unchanged
        flowing, asked = [(t, t.requires_grad) for t in self.flowing], self.asked
        same = self._same()

        def unchanged() -> bool:
            if not same() or list(map(_form, tensors)) != forms or default() is not dtype:
                return False
            for tensor, flows in flowing:
                if tensor.requires_grad is not flows:
                    return False
            return not asked or all(ask() == answer for ask, answer in asked)

        self.same = unchanged
        return unchanged

    def _watch(self, tensors: list[Any], flowing: list[Any], asked: list[Any]) -> Any:
        return _native.Watch(
            self.objects, [*self.empty, *GLOBAL_HOOKS], self.dicts, self.classes, self.lists, self.names, self.cells,
            self.functions, self.others, tensors, flowing, asked,
        )  # fmt: skip

    def _same(self) -> Callable[[], bool]:
        """Whether objects are of the classes that they are now of, and containers hold what they hold now."""
        if _native is not None:
            return self._watch([], [], []).same
        empty = [*self.empty, *GLOBAL_HOOKS]
        types_ = [type(value) for value in self.objects]
        spaces: list[tuple[Mapping[Any, Any], frozenset[str]]] = [
            *self.dicts, *((kind.__dict__, passed) for kind, passed in self.classes)
        ]  # fmt: skip
        held = [
            (space, [*space], [(k, v) for k, v in space.items() if k not in passed])
            for space, passed in spaces
        ]
        items = [(one, [*one]) for one in chain(self.lists, self.others)]
        contents = [(cell, content_of(cell)) for cell in self.cells]
        codes = [(one, one.__code__, one.__defaults__, one.__kwdefaults__) for one in self.functions]

        def same() -> bool:
            return (
                not any(empty)
                and all(map(is_, map(type, self.objects), types_))
                and all(
                    len(space) == len(keys)
                    and all(map(is_, space, keys))
                    and all(space[k] is v for k, v in entries)
                    for space, keys, entries in held
                )
                and all(_alike([*one], then) for one, then in items)
                and all(
                    dict_.get(key, _ALL) is (rest[0] if rest else _ALL) for dict_, key, *rest in self.names
                )
                and all(content_of(cell) is content for cell, content in contents)
                and all(
                    one.__code__ is code and one.__defaults__ is defaults and one.__kwdefaults__ is keywords
                    for one, code, defaults, keywords in codes
                )
            )

        return same

    def save(self) -> Callable[[], None]:
        """A function that puts everything back: what containers, closures, globals and classes hold now."""
        copies: list[tuple[Any, list[Any]]] = [
            (one, [*one]) for one in chain(self.lists, self.others) if not isinstance(one, (dict, frozenset))
        ]
        dicts = [(one, dict(one)) for one, _ in self.dicts]
        contents = [(cell, content_of(cell)) for cell in self.cells]
        entries = [(kind, dict(kind.__dict__), passed) for kind, passed in self.classes]

        def restore() -> None:
            for one, before in copies:
                if not _alike([*one], before):
                    one.clear()
                    (one.update if isinstance(one, set) else one.extend)(before)
            for one, before in dicts:
                if not _alike([*one, *one.values()], [*before, *before.values()]):
                    one.clear()
                    one.update(before)
            for cell, content in contents:
                if content is not types.CellType and content_of(cell) is not content:
                    cell.cell_contents = content
            for one, key, *value in self.names:
                if value:
                    one[key] = value[0]
                else:
                    one.pop(key, None)
            for kind, before, passed in entries:
                for name, value in before.items():
                    if name not in passed and kind.__dict__.get(name) is not value:
                        setattr(kind, name, value)

        return restore


def _alike(now: list[Any], before: list[Any]) -> bool:
    return len(now) == len(before) and all(map(is_, now, before))


def content_of(cell: types.CellType) -> Any:
    """What a cell of a closure holds; CellType itself for one that holds nothing yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return types.CellType
