"""Measuring a language model on a whole text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from elman.errors import InputError
from elman.models.evaluating import evaluating


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


def evaluate_cold(
    model: Any, tokens: Any, length: int, *, lanes: int = 64, window: int = 1000,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:  # fmt: skip
    """The same text in blocks of `length` symbols, each predicted from the initial state and the symbol before it: how
    models of a fixed context are measured. Every symbol but the first is counted once; the last block may be shorter.

    lanes: blocks side by side; like `window`, it bounds memory and does not change the figure. progress: as `evaluate`.
    """
    total = len(tokens) - 1
    if total < 1 or length < 1:
        raise InputError(
            what="a block has at least a symbol, and one to predict it from", where="tokens, length",
            got=f"{len(tokens)} symbols, in blocks of {length}", mend="give more text, or longer blocks",
        )  # fmt: skip
    nats, done = 0.0, 0
    while done < total:
        blocks = min(lanes, (total - done) // length) or 1  # or what is left, alone
        steps = min(length, total - done)
        side_by_side = torch.stack(
            [tokens[at : at + steps + 1] for at in range(done, done + blocks * steps, steps)], 1
        )
        parts = (side_by_side[t : t + window + 1] for t in range(0, steps, window))
        nats += _read(model, parts) * blocks
        done += blocks * steps
        if progress is not None:
            progress(done, total)
    return Evaluation(nats, total)


def estimate(
    model: Any, tokens: Any, *, symbols: int = 16_384, lanes: int = 32, warm: int = 128, window: int = 256
) -> float:
    """Mean nats per symbol of pieces from all over a text, read side by side: an estimate that takes a moment.

    In front of each piece `warm` symbols are read and not counted, so that it agrees with the exact figure of
    `evaluate` as far as the pieces are like the rest of the text, and the past behind `warm` steps tells nothing.

    tokens: [N], N >= 2. symbols: that are counted, at most. lanes: B, pieces, fewer where a text is short; a single one
    is all of the text.
    """
    total = len(tokens) - 1
    lanes = max(min(lanes, total // (warm + 64)), 1)
    warm = warm if lanes > 1 else 0
    length = min(symbols // lanes, (total - warm) // lanes)
    room = total - warm - length  # the last place to begin at
    starts = [room * k // max(lanes - 1, 1) for k in range(lanes)]
    side_by_side = torch.stack([tokens[at : at + warm + length + 1] for at in starts], 1)
    cuts = [*range(0, warm, window), *range(warm, warm + length, window), warm + length]
    return _read(model, (side_by_side[a : b + 1] for a, b in pairwise(cuts)), warm) / length


def _read(model: Any, parts: Iterable[Tensor], warm: int = 0) -> float:
    """-log p summed over steps (the mean over lanes), with the state carried from part to part.

    parts: int64 [T + 1, B], the last symbol of each is the first of the next. warm: steps that are not counted; a part
    is counted whole or not.
    """
    device = next(model.parameters()).device
    nats, state = 0.0, None
    with evaluating(model), torch.no_grad():
        for part in parts:
            x, y = part[:-1].to(device), part[1:].to(device)
            loss, state = model.loss(x, y, state)
            nats += loss.item() * len(x) if warm <= 0 else 0.0
            warm -= len(x)
    return nats
