"""Symbols -> batches: the windows that training walks through."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from elman.errors import InputError


@dataclass(frozen=True)
class Window:
    """T steps of B lanes. x, y: int64 [T, B], y(t) = x(t+1). fresh: the lanes begin, no state is carried in."""

    x: Tensor
    y: Tensor
    fresh: bool


def windows(tokens: Tensor, window: int, batch: int, seed: int = 0) -> Iterator[Window]:
    """Endless windows over a text for training with carried state (truncated back-propagation through time).

    The text is cut into `batch` lanes of equal length, each contiguous; window k holds the steps k·T … k·T +
    T - 1 of every lane, so the state at the end of one window is the one that the next begins with:

        lanes = tokens[: batch * L].view(batch, L)        # window k: lanes[:, k*T : (k+1)*T].T

    After the last whole window of the lanes they are cut anew from a random place in the first window of the
    text, so that no symbol is always left over and windows do not always end at the same ones.

    tokens: int64 [N]. window: T, steps. batch: B, lanes. Raises InputError if the text is too short for that.
    """
    needed = batch * window + 1
    for name, value in (("window", window), ("batch", batch)):
        if value < 1:
            raise InputError(
                what=f"{name} must be at least 1", where=name, got=value, mend="leave it out for the default"
            )
    if len(tokens) < needed:
        raise InputError(
            what="the text is too short for one window of every lane",
            where="tokens",
            got=f"{len(tokens)} symbols",
            expected=f"at least {needed} (batch {batch} · window {window} + 1)",
            mend="take a smaller batch or window, or more text",
        )
    return _windows(tokens, window, batch, seed)


def _windows(tokens: Tensor, window: int, batch: int, seed: int) -> Iterator[Window]:
    generator = torch.Generator().manual_seed(seed)
    start = 0
    while True:
        length = (len(tokens) - 1 - start) // batch
        end = start + batch * length
        x = tokens[start:end].view(batch, length).T
        y = tokens[start + 1 : end + 1].view(batch, length).T
        for t in range(0, length - window + 1, window):
            yield Window(x[t : t + window].contiguous(), y[t : t + window].contiguous(), fresh=t == 0)
        spare = min(window, len(tokens) - batch * window)  # starts that leave every lane a whole window
        start = int(torch.randint(spare, (), generator=generator))
