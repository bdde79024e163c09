"""What a cell takes and returns, as plain data: nested structures with names, and the places of its own tensors."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils import _pytree as pytree

from elman.errors import InputTypeError

Tensor = torch.Tensor


@dataclass(frozen=True)
class Tree:
    """A nested structure with its tensors taken out: `fill` puts tensors back, `paths` names them.

    spec: the nesting. statics: the leaves that are not tensors, by position; they belong to the trace.
    """

    spec: pytree.TreeSpec
    paths: tuple[str, ...]
    statics: tuple[tuple[int, Any], ...]
    size: int

    @functools.cached_property
    def plain(self) -> str | None:
        """ "tensor" for one alone, "tuple" for a tuple of them, which need no pytree (10 us); else None."""
        if self.statics:
            return None
        for word, like in (("tensor", 0), ("tuple", (0,) * self.size)):
            if self.spec == pytree.tree_structure(like):
                return word
        return None

    def fill(self, tensors: Sequence[Any]) -> Any:
        if self.plain is not None:
            return tensors[0] if self.plain == "tensor" else tuple(tensors)
        if not self.statics:
            return pytree.tree_unflatten(list(tensors), self.spec)
        rest = iter(tensors)
        known = dict(self.statics)
        return pytree.tree_unflatten(
            [known[i] if i in known else next(rest) for i in range(self.size)], self.spec
        )


@functools.cache
def _alone(name: str) -> Tree:
    """The structure of a single tensor, one object for each name, so that comparing it takes no time."""
    return Tree(pytree.tree_structure(0), (name,), (), 1)


@functools.cache
def _row(name: str, size: int) -> Tree:
    """The structure of a tuple of tensors, likewise."""
    return Tree(pytree.tree_structure((0,) * size), tuple(f"{name}[{i}]" for i in range(size)), (), size)


def flatten(value: Any, name: str) -> tuple[list[Tensor], Tree]:
    """The tensors of a nested structure in order, and the structure. `name` is the user's word for the whole."""
    if isinstance(value, Tensor):
        return [value], _alone(name)
    if type(value) is tuple and value and all(isinstance(part, Tensor) for part in value):
        return list(value), _row(name, len(value))
    keyed, spec = pytree.tree_flatten_with_path(value)
    tensors, paths, statics = [], [], []
    for position, (path, leaf) in enumerate(keyed):
        if isinstance(leaf, Tensor):
            tensors.append(leaf)
            paths.append(name + pytree.keystr(path))
        elif leaf is None or isinstance(leaf, (bool, int, float, str)):
            statics.append((position, leaf))
        else:
            raise InputTypeError(
                what=f"{type(leaf).__name__} is no tensor",
                where=name + pytree.keystr(path),
                mend="pass tensors, or numbers and strings that stay the same at every step",
            )
    return tensors, Tree(spec, tuple(paths), tuple(statics), len(keyed))


def identifier(path: str, taken: set[str]) -> str:
    """A name for a graph made of the user's words, different from those taken."""
    base = re.sub(r"\W+", "_", path).strip("_") or "value"
    name, count = base, 1
    while name in taken:
        count += 1
        name = f"{base}_{count}"
    taken.add(name)
    return name


@dataclass(frozen=True)
class Place:
    """Where a cell keeps one of its tensors: submodule path, which dict of the module, key."""

    module: str
    store: str  # "_parameters", "_buffers" or "__dict__"
    key: str

    @property
    def path(self) -> str:
        return ".".join(part for part in ("cell", self.module, self.key) if part)


@dataclass(frozen=True)
class Signature:
    """How a cell is called and what it returns.

    x, state, context: structures of the arguments (context None: the cell takes two arguments).
    output: the structure of what is kept per step, None if nothing is; its wires are results of the step.
    owned: constant port -> the places where the cell keeps that tensor (several where it is tied).
    captured: constant port -> a tensor that the step uses and the cell does not own.
    """

    x: Tree
    state: Tree
    context: Tree | None
    output: Tree | None
    output_wires: tuple[str, ...]
    owned: dict[str, tuple[Place, ...]] = field(default_factory=dict)
    captured: dict[str, Tensor] = field(default_factory=dict)
