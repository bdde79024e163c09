"""How tensors lie in nested arguments: the one codec, for traces, calls and compiled graphs.

A structure is nested tuples of plain values, so it can be compared, hashed, and carried by a compiler as a constant:

    ("tensor",)                       a tensor
    ("static", type, value)           None, a bool, a number, a string: the same at every step, so part of the trace
    ("tuple", part, …), ("list", part, …), ("named", type, part, …)
    ("dict", name of its type, keys, part, …)   the type itself of a built-in class is no constant to torch.compile
    ("node", type, context, part, …)  whatever else torch.utils._pytree knows
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.utils import _pytree as pytree

from elman.errors import InputTypeError

Tensor = torch.Tensor
Structure = tuple[Any, ...]
TENSOR: Structure = ("tensor",)
NOTHING: Structure = ("static", type(None), None)
_FIRST = {"tuple": 1, "list": 1, "named": 2, "dict": 3, "node": 3}  # where the parts begin


class TensorSpec(NamedTuple):
    """What a trace depends on of a tensor: its sizes behind time and batch, dtype and device."""

    widths: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def zeros(self, *leading: int) -> Tensor:
        return torch.zeros((*leading, *self.widths), dtype=self.dtype, device=self.device)


def specs(tensors: Sequence[Tensor], leading: int) -> tuple[TensorSpec, ...]:
    """Of tensors whose first `leading` dimensions are time and batch."""
    return tuple([TensorSpec(tuple(t.shape[leading:]), t.dtype, t.device) for t in tensors])


def takes_apart(structure: Structure, own: Structure) -> bool:
    """Whether a tensor stands where another structure has several: code written for that one would take it apart."""
    if structure == TENSOR:
        return own[0] in _FIRST
    if structure[0] != own[0] or len(structure) != len(own) or own[0] not in _FIRST:
        return False
    first = _FIRST[own[0]]
    return any(map(takes_apart, structure[first:], own[first:]))


def flatten(value: Any, name: str) -> tuple[list[Tensor], Structure]:
    """The tensors of nested arguments in order, and the structure. Raises InputTypeError for what is neither a tensor
    nor static, under the user's word `name` for the whole."""
    tensors: list[Tensor] = []
    try:
        return tensors, take(value, tensors)
    except InputTypeError as error:
        keyed, _ = pytree.tree_flatten_with_path(value)
        error.where = name + next(pytree.keystr(path) for path, leaf in keyed if not _is_leaf(leaf))
        raise


def take(value: Any, tensors: list[Tensor]) -> Structure:
    """The structure of a value, whose tensors are put into a list."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return TENSOR
    if value is None:
        return NOTHING
    if isinstance(value, (bool, int, float, str)):
        return ("static", type(value), value)
    kind = type(value)
    if kind is tuple:
        return ("tuple", *[take(part, tensors) for part in value])
    if kind is list:
        return ("list", *[take(part, tensors) for part in value])
    if kind is dict or kind is OrderedDict:
        return ("dict", kind.__name__, tuple(value), *[take(part, tensors) for part in value.values()])
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return ("named", kind, *[take(part, tensors) for part in value])
    if (node := pytree.SUPPORTED_NODES.get(kind)) is None:
        raise InputTypeError(
            what=f"{kind.__name__} is no tensor",
            mend="pass tensors, or numbers and strings that stay the same at every step",
        )
    parts, context = node.flatten_fn(value)
    return ("node", kind, _Context(context), *[take(part, tensors) for part in parts])


def fill(structure: Structure, tensors: Sequence[Any]) -> Any:
    """The value of a structure, with tensors in their places."""
    return tensors[0] if structure == TENSOR else _fill(structure, iter(tensors))


def _fill(structure: Structure, tensors: Iterator[Any]) -> Any:
    kind = structure[0]
    if kind == "tensor":
        return next(tensors)
    if kind == "static":
        return structure[2]
    parts = [_fill(part, tensors) for part in structure[_FIRST[kind] :]]
    if kind == "list":
        return parts
    if kind == "tuple":
        return tuple(parts)
    if kind == "named":
        return structure[1](*parts)
    if kind == "dict":
        mapping = dict(zip(structure[2], parts, strict=True))
        return OrderedDict(mapping) if structure[1] == "OrderedDict" else mapping
    return pytree.SUPPORTED_NODES[structure[1]].unflatten_fn(parts, structure[2].value)


def paths(structure: Structure, name: str) -> list[str]:
    """What users call each tensor of a structure, if the whole is called `name`: `state[0]`, `x['a'].b`."""
    return [path for path, leaf in leaves(structure, name) if leaf == TENSOR]


def leaves(structure: Structure, name: str) -> Iterator[tuple[str, Structure]]:
    """(path, structure) of all that is not nested any further, tensors and statics."""
    kind = structure[0]
    if kind in ("tensor", "static"):
        yield name, structure
        return
    for i, part in enumerate(structure[_FIRST[kind] :]):
        if kind == "named":
            here = f"{name}.{structure[1]._fields[i]}"
        else:
            here = f"{name}[{structure[2][i]!r}]" if kind == "dict" else f"{name}[{i}]"
        yield from leaves(part, here)


def nested_alike(one: Structure, other: Structure) -> bool:
    """Whether two structures are the same but for the values of statics."""
    if one == other:
        return True
    if one[0] != other[0] or len(one) != len(other):
        return False
    first = _FIRST.get(one[0])
    if first is None:  # tensors would be the same
        return one[0] == "static"
    return one[:first] == other[:first] and all(map(nested_alike, one[first:], other[first:]))


def _is_leaf(value: Any) -> bool:
    return value is None or isinstance(value, (Tensor, bool, int, float, str))


@dataclass(frozen=True)
class _Context:
    """What a pytree node needs besides its parts (lists of keys, as a rule), made hashable."""

    value: Any

    def __hash__(self) -> int:
        return hash(type(self.value))


def side_by_side(tensors: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]) -> Tensor:
    """`[…, n]`, of tensors `[…, *shape]`: their numbers in order."""
    lead = tensors[0].dim() - len(shapes[0])
    return torch.cat([t.flatten(lead) if t.dim() > lead else t.unsqueeze(-1) for t in tensors], -1)


def apart(flat: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """The inverse of `side_by_side`."""
    pieces = flat.split([math.prod(shape) for shape in shapes], -1)
    return [piece.reshape(*flat.shape[:-1], *shape) for piece, shape in zip(pieces, shapes, strict=True)]
