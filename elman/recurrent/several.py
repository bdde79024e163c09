"""What layers of layers do with the arguments of a call: a state and a context for each, errors that name the part."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import PackedSequence

from elman.errors import ElmanError, InputTypeError
from elman.recurrent.arguments import StepSelection
from elman.recurrent.compiled import layer_of
from elman.recurrent.surroundings import constant


def contexts_of(layers: Sequence[Any], context: Any) -> list[dict[str, Any]]:
    """For each layer, what it is given: the context, if it takes one."""
    if context is None:
        return [{} for _ in layers]
    takes = [layer.takes_context() for layer in layers]
    if not any(takes):
        raise InputTypeError(
            what="no cell takes a context",
            where="context=",
            mend="let a cell's forward have a third argument",
        )
    return [{"context": context} if each else {} for each in takes]


@constant
def has_third(handle: int) -> bool:
    """Whether the cell of a layer can be called with three arguments."""
    try:
        inspect.signature(layer_of(handle).cell.forward).bind(None, None, None)
    except TypeError:
        return False
    except ValueError:  # it does not say
        return True
    return True


def each_by_itself(x: Any, happens: StepSelection) -> bool:
    """Whether layers lay out their sequences themselves: there is nothing to lay out, or a compiler is looking, which
    has its own way of doing it."""
    return torch.compiler.is_compiling() or (not happens.said and not isinstance(x, PackedSequence))


def placed(error: ElmanError, part: str, state: Any = None, count: int = 0) -> None:
    """Say which layer it was. state: that of all `count` layers, which may be what is wrong."""
    error.where = part if error.where is None else f"{part}, {error.where}"
    error.mend = _of_torch(state, count) or error.mend


def states_of(state: Any, count: int) -> Sequence[Any]:
    if state is None:
        return (None,) * count
    if not isinstance(state, (tuple, list)) or len(state) != count:
        got = (
            f"{type(state).__name__} of {len(state)}"
            if isinstance(state, (tuple, list))
            else type(state).__name__
        )
        raise InputTypeError(
            what="there is one state for each part", where="state", got=got, expected=f"a tuple of {count}",
            mend=_of_torch(state, count),
        )  # fmt: skip
    return state


def _of_torch(state: Any, count: int) -> str | None:
    """What to do with a state of so many layers that looks like one of torch.nn's: `[L, B, H]`, of an LSTM two."""

    def one_tensor(value: Any) -> bool:
        return isinstance(value, torch.Tensor) and value.dim() == 3 and len(value) == count

    if one_tensor(state):
        return "if it is h_0 [layers, B, H] as of torch.nn, pass h_0.unbind(0), a state [B, H] for each"
    if isinstance(state, (tuple, list)) and len(state) == 2 and all(map(one_tensor, state)):
        return (
            "if they are h_0 and c_0 [layers, B, H] as of torch.nn, pass list(zip(h_0.unbind(0), c_0.unbind(0))), "
            "a pair (h, c) for each"
        )
    return None
