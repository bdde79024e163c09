"""From a sequence to one vector: the last hidden state, or what is pooled over the steps that happened."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence
from torch.utils import _pytree as pytree

from elman.errors import InputError, InputTypeError
from elman.recurrent.bidirectional import Bidirectional
from elman.recurrent.order import turned
from elman.recurrent.stack import Stack
from elman.recurrent.states import Directions, LayerStates
from elman.segments.check import read_bools, read_lengths
from elman.segments.padded import check_happens

Tensor = torch.Tensor


def last(state: Any, layer: torch.nn.Module | None = None) -> Tensor:
    """The final hidden state of whatever layer: of a stack its top layer's, of both directions side by side.

        outputs, state = layer(x, lengths=n)
        elman.last(state)                            # [B, H], of a bidirectional layer [B, 2 H]

    state: a final state, as a `Recurrent`, `Bidirectional` or `Stack` returned it, or mapped over its tensors. Of a
    cell's own state it is the first tensor, an LSTM's h. layer: whose state it is; needed where the state does not say
    so: of `torch.nn`'s and `elman.nn`'s layers (`[layers · directions, B, H]`), and of plain tuples.
    Raises InputError for a state without a tensor, InputTypeError for one that is not the layer's.
    """
    if isinstance(layer, torch.nn.RNNBase):
        h = state[0] if isinstance(state, tuple) else state
        return torch.cat(list(h[-2:]), -1) if layer.bidirectional else h[-1]
    parts = None
    if isinstance(state, LayerStates) or isinstance(layer, Stack):
        parts = _parts(state, len(layer) if isinstance(layer, Stack) else len(state))
        return last(parts[-1], layer.part(len(layer) - 1) if isinstance(layer, Stack) else None)
    if isinstance(state, Directions) or isinstance(layer, Bidirectional):
        return torch.cat([last(part) for part in _parts(state, 2)], -1)
    tensors = [leaf for leaf in pytree.tree_leaves(state) if isinstance(leaf, Tensor)]
    if not tensors:
        raise InputError(what="there is no tensor in the state", where="last(state)", got=repr(state))
    return tensors[0]


def _parts(state: Any, count: int) -> Sequence[Any]:
    if not isinstance(state, (tuple, list)) or len(state) != count:
        raise InputTypeError(
            what="this is not a state of the layer", where="last(state, layer)", got=type(state).__name__,
            expected=f"a tuple of {count}",
        )  # fmt: skip
    return state


def pool(
    outputs: Tensor | PackedSequence, lengths: Tensor | Sequence[int] | None = None, how: str = "max", *,
    mask: Tensor | None = None, batch_first: bool = False,
) -> Tensor:  # fmt: skip
    """The maximum or the mean over the steps that happened, for each feature of each sequence.

        y[b] = max_t outputs[t, b],  or  Σ_t outputs[t, b] / lengths[b],  over t < lengths[b]

    outputs: `[T, B, …]`, `[B, T, …]` if `batch_first`, or a PackedSequence, which knows its lengths. lengths: `[B]`.
    how: "max" or "mean". mask: as of `Recurrent.forward`, in the order of the outputs. Without either all steps count.
    Returns `[B, …]`, zero for a sequence without a step. What stands at other steps is not looked at.
    Raises InputError or InputTypeError for what does not fit.
    """
    if how not in ("max", "mean"):
        raise InputError(
            what="there is no such pooling", where="pool(how=)", got=how, expected='"max" or "mean"'
        )
    if isinstance(outputs, PackedSequence):
        if lengths is not None or mask is not None:
            raise InputError(
                what="a PackedSequence says itself which steps happen", where="pool(lengths=, mask=)"
            )
        outputs, lengths = pad_packed_sequence(outputs)
    elif batch_first:
        outputs, mask = turned(outputs), turned(mask)
    if not isinstance(outputs, Tensor) or outputs.dim() < 2 or not outputs.is_floating_point():
        raise InputTypeError(
            what="what is pooled is a sequence of numbers", where="pool(outputs)",
            got=f"{outputs.dtype} {list(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__,
            expected="a tensor of floats [T, B, …]",
        )  # fmt: skip
    happens = _happens(lengths, mask, *outputs.shape[:2])
    steps, batch = outputs.shape[:2]
    happens = happens.to(outputs.device).reshape(steps, batch, *[1] * (outputs.dim() - 2))
    count = happens.sum(0)
    if how == "mean":
        return torch.where(happens, outputs, 0).sum(0) / count.clamp(min=1)
    if not steps:
        return outputs.sum(0)
    return torch.where(count > 0, torch.where(happens, outputs, -torch.inf).amax(0), 0)


def _happens(lengths: Any, mask: Any, steps: int, batch: int) -> Tensor:
    """[T, B]: which steps happen."""
    happens = torch.ones(steps, batch, dtype=torch.bool)
    if isinstance(lengths, (list, tuple)):
        lengths = torch.tensor(lengths)
    if torch.compiler.is_compiling():  # values are not looked at then
        check_happens(lengths, mask, None, steps, batch)
    elif lengths is not None:
        lengths = read_lengths(lengths, steps, batch)
    if lengths is not None:
        happens = happens & (torch.arange(steps, device=lengths.device)[:, None] < lengths).to(happens.device)
    if mask is not None:
        mask = mask if torch.compiler.is_compiling() else read_bools(mask, "mask", steps, batch)
        happens = happens & mask.to(happens.device)
    return happens
