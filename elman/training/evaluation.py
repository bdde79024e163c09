"""Measuring a model on a whole text."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from elman.data import Counts, Tokens
from elman.errors import InputError, StateError


@dataclass(frozen=True)
class Evaluation:
    """What a model makes of a text. nats: -log p summed over `symbols`, which are all of the text but the first.

    counts: what these symbols stand for; None if nobody knows it.
    """

    nats: float
    symbols: int
    counts: Counts | None = None

    @property
    def nats_per_symbol(self) -> float:
        return self.nats / self.symbols

    @property
    def bits_per_symbol(self) -> float:
        return self.nats_per_symbol / math.log(2)

    @property
    def perplexity(self) -> float:
        """Per symbol: among so many equally likely ones it was as hard to choose."""
        return _exp(self.nats_per_symbol)

    @property
    def bits_per_character(self) -> float:
        return self.nats / math.log(2) / max(self._counts.characters, 1)

    @property
    def bits_per_byte(self) -> float:
        """Of UTF-8."""
        return self.nats / math.log(2) / max(self._counts.bytes, 1)

    @property
    def word_perplexity(self) -> float:
        """Per word of the raw text, which is a stretch without white space: whatever the symbols, the same words."""
        return _exp(self.nats / max(self._counts.words, 1))

    @property
    def _counts(self) -> Counts:
        if self.counts is None:
            raise StateError(
                what="the text that was measured is not known, only its symbols", where="tokens",
                mend="evaluate what elman.data.tokenise returns",
            )  # fmt: skip
        return self.counts


def evaluate(
    model: Any, tokens: Any, *, window: int = 1000, progress: Callable[[int, int], None] | None = None
) -> Evaluation:
    """-log p(x(2), …, x(N) | x(1)) of a whole text, as one stream with the state carried: exact.

    tokens: [N], N >= 2, a tensor or elman.data.Tokens, of any size. window: steps per call; it bounds memory and does
    not change the figure. progress: called with (symbols done, symbols in all) after each window.
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
    device = next(model.parameters()).device
    nats, state, training = 0.0, None, model.training
    model.eval()
    try:
        with torch.no_grad():
            for t in range(0, total, window):
                end = min(t + window, total)
                part = tokens[t : end + 1][:, None].to(device)
                loss, state = model.loss(part[:-1], part[1:], state)
                nats += loss.item() * (end - t)
                if progress is not None:
                    progress(end, total)
    finally:
        model.train(training)
    return Evaluation(nats, total, tokens.counts if isinstance(tokens, Tokens) else None)


def _exp(nats: float) -> float:
    return math.exp(nats) if nats < 700 else math.inf


def glance(model: Any, tokens: Any, *, symbols: int = 16_384, lanes: int = 32, window: int = 256) -> float:
    """Mean nats per symbol of the first part of a text, read in lanes side by side: an estimate that takes a moment.

    Each lane starts without a past, so that it is a little above the exact figure of `evaluate`.

    tokens: [N], N >= 2. symbols: of the text that are looked at, at most. lanes: B, fewer where a text is short.
    """
    part = tokens[: min(symbols, len(tokens))]
    lanes = max(min(lanes, (len(part) - 1) // 64), 1)
    length = (len(part) - 1) // lanes
    x = part[: lanes * length].view(lanes, length).T
    y = part[1 : lanes * length + 1].view(lanes, length).T
    device = next(model.parameters()).device
    nats, state, training = 0.0, None, model.training
    model.eval()
    try:
        with torch.no_grad():
            for t in range(0, length, window):
                end = min(t + window, length)
                loss, state = model.loss(x[t:end].to(device), y[t:end].to(device), state)
                nats += loss.item() * (end - t)
    finally:
        model.train(training)
    return nats / length
