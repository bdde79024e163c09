"""Symbols drawn for all rows of a batch together, each by its own settings and its own random numbers.

A row's random numbers are counted, not carried along: the k-th is a function of the row's key and of k (SplitMix64:
Steele, Lea and Flood, Fast splittable pseudorandom number generators, 2014). So nothing is kept for a row but its
key, and what it draws does not depend on the rows beside it. All arithmetic runs along rows, for the same reason.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np

GREEDY = 1e-6  # temperatures below take the likeliest symbol
_STEP, _FIRST, _SECOND = map(np.uint64, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def key(seed: int, choice: int) -> int:
    """The key of a request's choice, 64 bits."""
    return int.from_bytes(blake2b(f"{seed} {choice}".encode(), digest_size=8).digest(), "little")


def uniform(keys: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """float64 [B] in [0, 1) for keys uint64 [B] and counts int64 [B]."""
    z = keys + (counts.astype(np.uint64) + np.uint64(1)) * _STEP
    z = (z ^ (z >> np.uint64(30))) * _FIRST
    z = (z ^ (z >> np.uint64(27))) * _SECOND
    z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)) * 2.0**-53


def drawn(logits: np.ndarray, temperature: np.ndarray, top_p: np.ndarray, u: np.ndarray) -> np.ndarray:
    """int64 [B]: in each row the first symbol at which the sum of the probabilities up to it passes u; -1 where logits
    are no numbers.

    logits: [B, V], float32 or float64; minus infinity for what is never drawn. temperature, top_p, u: [B]; a
    temperature below `GREEDY` takes the likeliest symbol, top_p is drawn from the likeliest symbols that together
    have it.
    """
    greedy = temperature < GREEDY
    z = logits - logits.max(1, keepdims=True)
    z /= np.where(greedy, 1, temperature).astype(logits.dtype)[:, None]
    p = np.exp(z, out=z)
    cut = np.flatnonzero((top_p < 1) & ~greedy)
    if len(cut):
        p[cut] = _likeliest(p[cut], top_p[cut])
    passed = np.cumsum(p, 1, dtype=np.float64)
    total = passed[:, -1]
    symbols = (passed > (u * total)[:, None]).argmax(1)
    if greedy.any():
        symbols[greedy] = logits[greedy].argmax(1)
    symbols[~np.isfinite(total)] = -1
    return symbols


def _likeliest(p: np.ndarray, top_p: np.ndarray) -> np.ndarray:
    """p, and 0 for all but the likeliest symbols that together have a share."""
    order = np.argsort(-p, axis=1, kind="stable")
    ranked = np.take_along_axis(p, order, 1)
    before = np.cumsum(ranked, 1, dtype=np.float64)
    share = top_p * before[:, -1]
    ranked[:, 1:][before[:, :-1] >= share[:, None]] = 0
    kept = np.zeros_like(p)
    np.put_along_axis(kept, order, ranked, 1)
    return kept


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """log softmax of rows [B, V], float64."""
    z = logits.astype(np.float64)
    z -= z.max(1, keepdims=True)
    return z - np.log(np.exp(z).sum(1, keepdims=True))
