"""A language model step by step: embedding, layers and readout as one cell, whose step is one call of an engine."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from elman.models.language_network import LanguageNetwork
from elman.recurrent import Recurrent
from elman.recurrent.joined import JoinedCell, steps_of
from elman.recurrent.kept import Steps


class Reading(nn.Module):
    """(symbols int64 [B], states of the layers[, context]) -> (logits [B, V], new states)."""

    def __init__(self, model: LanguageNetwork, layers: JoinedCell) -> None:
        super().__init__()
        self.embedding, self.condition, self.layers = model.embedding, model.condition, layers
        self.dropout, self.readout = model.dropout, model.readout

    def initial_state(self, batch: int) -> tuple:
        return self.layers.initial_state(batch)

    def forward(self, x: Tensor, states: tuple, context: Tensor | None = None) -> tuple[Tensor, tuple]:
        e = self.embedding(x)
        if self.condition is not None:
            e = e + self.condition(context)
        h, after = self.layers(e, states)
        return self.readout(self.dropout(h)), after


def reading(model: LanguageNetwork) -> Steps:
    """What a stream of a language model runs."""
    below = steps_of(model.stack, "stream()")
    one = Recurrent(Reading(model, below.layer().cell), batch_first=False)

    def layer() -> Recurrent:
        model.stack.training = model.training
        cell: Any = one.cell
        layers = below.layer()
        parts = model.embedding, model.condition, model.dropout, model.readout, layers.cell
        if (cell.embedding, cell.condition, cell.dropout, cell.readout, cell.layers) != parts:
            one.cell = cell = Reading(model, layers.cell)
        cell.training, one.engine = model.training, layers.engine
        return one

    def begin(x: Any, context: Any) -> None:
        with torch.no_grad():
            e = model.embedded(x, context)
        below.begin(e, None)
        h = model.stack.step(e[:1])[0] if len(e) else None
        if h is not None:
            model.checked(h)

    def watched() -> list[tuple[Any, ...]]:
        names = ("embedding", "condition", "dropout", "readout")
        stores = [model._modules if name in model._modules else model.__dict__ for name in names]
        own = [(store, name, store[name]) for store, name in zip(stores, names, strict=True)]
        return [*below.watched(), (model.__dict__, "training", model.training), *own]

    return Steps(
        layer, watched, begin, lambda state: tuple(below.enter(state)), tuple,
        says=lambda cell: below.says(cell.layers),
    )  # fmt: skip
