"""Measuring a model on a whole text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from elman.errors import InputError


@dataclass(frozen=True)
class Evaluation:
    """nats: -log p summed over `symbols`, which are all of the text but the first."""

    nats: float
    symbols: int

    @property
    def nats_per_symbol(self) -> float:
        return self.nats / self.symbols

    @property
    def bits_per_symbol(self) -> float:
        """For symbols that are characters: bits per character."""
        return self.nats_per_symbol / math.log(2)


def evaluate(
    model: Any, tokens: Any, *, window: int = 1000, progress: Callable[[int, int], None] | None = None
) -> Evaluation:
    """-log p(x(2), …, x(N) | x(1)) of a whole text, as one stream with the state carried: exact.

    tokens: [N], N >= 2, a tensor or anything whose slices are int64 tensors, of any size. window: steps per call; it
    bounds memory and does not change the figure. progress: called with (symbols done, in all) after each window.
    """
    total = len(tokens) - 1
    if total < 1:
        raise InputError(
            what="the text is too short to predict a symbol from another",
            where="tokens",
            got=f"{len(tokens)} symbols",
            expected="at least 2",
            mend="give more text",
        )

    def parts() -> Iterator[Tensor]:
        for t in range(0, total, window):
            end = min(t + window, total)
            yield tokens[t : end + 1][:, None]
            if progress is not None:
                progress(end, total)

    return Evaluation(_read(model, parts()), total)


def glance(model: Any, tokens: Any, *, symbols: int = 16_384, lanes: int = 32, window: int = 256) -> float:
    """Mean nats per symbol of the first part of a text, read in lanes side by side: an estimate that takes a moment.

    Each lane starts without a past, so that it is a little above the exact figure of `evaluate`.

    tokens: [N], N >= 2. symbols: of the text that are looked at, at most. lanes: B, fewer where a text is short.
    """
    part = tokens[: min(symbols, len(tokens))]
    lanes = max(min(lanes, (len(part) - 1) // 64), 1)
    length = (len(part) - 1) // lanes
    side_by_side = torch.stack([part[k * length : (k + 1) * length + 1] for k in range(lanes)], 1)
    nats = _read(model, (side_by_side[t : t + window + 1] for t in range(0, length, window)))
    return nats / length


def _read(model: Any, parts: Iterable[Tensor]) -> float:
    """-log p summed over steps (the mean over lanes), with the state carried from part to part.

    parts: int64 [T + 1, B], the last symbol of each is the first of the next.
    """
    device = next(model.parameters()).device
    nats, state, training = 0.0, None, model.training
    model.eval()
    try:
        with torch.no_grad():
            for part in parts:
                x, y = part[:-1].to(device), part[1:].to(device)
                loss, state = model.loss(x, y, state)
                nats += loss.item() * len(x)
    finally:
        model.train(training)
    return nats
