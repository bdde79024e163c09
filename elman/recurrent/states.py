"""The states of several layers: tuples that know what they are the states of."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch.utils import _pytree as pytree


class Directions(NamedTuple):
    """The state of a bidirectional layer."""

    forward: Any
    backward: Any


class LayerStates(tuple):
    """The states of a stack's layers, from the lowest to the top."""

    __slots__ = ()


def _with_keys(states: Any) -> tuple[list[tuple[Any, Any]], None]:
    return [(pytree.SequenceKey(i), state) for i, state in enumerate(states)], None


# So that whatever maps over the tensors of a state (detach, move, vmap) gives back a state of the same kind.
pytree.register_pytree_node(
    LayerStates,
    lambda states: (list(states), None),
    lambda states, _: LayerStates(states),
    flatten_with_keys_fn=_with_keys,
)


def directions(forward: Any, backward: Any) -> tuple[Any, Any]:
    # A file that is exported knows nothing of elman, and so has tuples.
    return (forward, backward) if torch.compiler.is_exporting() else Directions(forward, backward)


def layer_states(states: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(states) if torch.compiler.is_exporting() else LayerStates(states)
