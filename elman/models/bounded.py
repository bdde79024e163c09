"""The loss of a language model under a budget: all of a step is one cell, so that no logits exist for all steps."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from elman.models.language_network import LanguageNetwork
from elman.models.padded import Lengths
from elman.recurrent import Recurrent
from elman.recurrent.dropout import dropout_mask
from elman.recurrent.joined import JoinedCell, joined, start


class LossCell(nn.Module):
    """((x, y), states[, context]) -> (-log p(y | …) `[B]`, new states): from a symbol to the loss of the next one.

    context: as of `JoinedCell`, with "last", the mask of what the readout sees.
    """

    def __init__(self, model: LanguageNetwork, stack: JoinedCell) -> None:
        super().__init__()
        self.embedding, self.condition, self.stack, self.readout = (
            model.embedding, model.condition, stack, model.readout,
        )  # fmt: skip

    def forward(self, xy: tuple[Tensor, Tensor], states: tuple, context: Any = None) -> tuple[Tensor, tuple]:
        x, y = xy
        e = self.embedding(x)
        if self.condition is not None:
            e = e + self.condition(context["own"])
        h, after = self.stack(e, states, context)
        if context is not None and "last" in context:
            h = h * context["last"]
        return F.cross_entropy(self.readout(h), y.long(), reduction="none"), after


def bounded_loss(
    model: LanguageNetwork,
    x: Tensor,
    y: Tensor,
    state: Any,
    context: Tensor | None,
    lengths: Lengths | None = None,
) -> tuple[Tensor, tuple] | None:
    """Losses `[T, B]`, 0 behind the end of a sequence, and the final state; None where the model is none that one cell
    could be."""
    stack = model.stack
    stack.memory, stack.training = model.memory, model.training
    inner = joined(stack)
    if inner is None or not isinstance(model.readout, nn.Linear) or not len(x):
        return None
    cell: Any = inner.cell
    one: Recurrent | None = model.__dict__.get("_loss")
    if one is None or one.cell.stack is not cell:
        one = Recurrent(LossCell(model, cell), batch_first=False)
        model.__dict__["_loss"] = one  # no submodule: its parts are the model's
    one.engine, one.memory, one.generator = inner.engine, model.memory, inner.generator
    one.cell.training = model.training
    begin, told = start(stack, inner, model.embedding(x[0]), x.shape[1], state, None, False)
    told = told or {}
    if context is not None:
        told["own"] = context
    p = model.dropout.p
    if p and model.training:
        weight = model.readout.weight
        told["last"] = dropout_mask(weight, (x.shape[1], weight.shape[1]), p, None)
    return one((x, y), begin, lengths=lengths, context=told or None)
