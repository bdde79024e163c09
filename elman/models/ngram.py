"""Counting instead of learning: the n-gram models that a recurrent one has to beat."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class _Order:
    """Everything counted for contexts of k symbols. A context is a number; a gram is context · V + symbol.

    extended: int64 [C], sorted: (number of the context without its first symbol) · V + (that first symbol).
        Its index in here is the context's number. Empty for k = 0, where there is one context, 0.
    grams: int64 [G], sorted: those that were seen. share: [G], their discounted probability.
    rest: [C], what the discounts left over for the shorter context.
    """

    extended: np.ndarray
    grams: np.ndarray
    share: np.ndarray
    rest: np.ndarray


class NGram:
    """p(y(t) | x(t-n+2), …, x(t)) by interpolated Kneser-Ney smoothing with modified discounts.

        p_k(w | context) = (c(context w) - D(c)) / Σ_v c(context v) + rest(context) · p_{k-1}(w | shorter)

    c counts occurrences at the full order and different predecessors below it; D(1), D(2), D(3+) are
    estimated from the counts of counts; p_0 is uniform over the V symbols, so a symbol that was never seen
    costs a finite amount. With `order=1` this is the unigram model.

    Source: Chen and Goodman, An empirical study of smoothing techniques for language modeling, 1999,
    section 3.

    tokens: int64 [N], the text to count. order: n. vocabulary: V.
    """

    def __init__(self, tokens: Tensor, vocabulary: int, order: int = 5) -> None:
        x = tokens.numpy()
        self.vocabulary, self.order = vocabulary, min(order, len(x))  # a short text has no long grams
        context = np.zeros(len(x), dtype=np.int64)  # of x[i]; valid for i >= k
        self._orders = []
        for k in range(self.order):
            extended = np.empty(0, dtype=np.int64)
            if k:
                keys = context[k:] * vocabulary + x[:-k]
                extended, context[k:] = np.unique(keys, return_inverse=True)
            self._orders.append(self._count(context, x, k, extended))

    def _count(self, context: np.ndarray, x: np.ndarray, k: int, extended: np.ndarray) -> _Order:
        v = self.vocabulary
        grams, gram, counts = np.unique(context[k:] * v + x[k:], return_inverse=True, return_counts=True)
        if k < self.order - 1:
            # Below the full order, a gram counts once for every different symbol before it.
            kinds = np.unique(gram[1:] * v + x[: -k - 1]) // v
            counts = np.bincount(kinds, minlength=len(grams))
            counts = np.maximum(counts, 1)  # nothing stands before the first gram of the text
        owner, contexts = grams // v, max(len(extended), 1)
        total = np.maximum(np.bincount(owner, weights=counts, minlength=contexts), 1)
        discount = _discounts(counts)[np.minimum(counts, 3)]
        rest = np.bincount(owner, weights=discount, minlength=contexts) / total
        return _Order(extended, grams, (counts - discount) / total[owner], rest)

    def nats(self, tokens: Tensor) -> Tensor:
        """-log p of every symbol but the first, given what precedes it: float64 [N - 1]."""
        y, v = tokens.numpy(), self.vocabulary
        p = np.full(len(y) - 1, 1 / v)
        context = np.zeros(len(y), dtype=np.int64)  # -1: never seen, or too close to the beginning
        for k, order in enumerate(self._orders):
            if k:
                before = np.concatenate([np.zeros(k, dtype=np.int64), y[:-k]])[: len(y)]
                index, seen = _find(order.extended, context * v + before)
                seen &= (context >= 0) & (np.arange(len(y)) >= k)
                context = np.where(seen, index, -1)
            at = context[1:]
            index, seen = _find(order.grams, at * v + y[1:])
            longer = np.where(seen, order.share[index], 0.0) + order.rest[at] * p
            p = np.where(at >= 0, longer, p)
        return torch.from_numpy(-np.log(p))

    def bits_per_symbol(self, tokens: Tensor) -> float:
        """The mean of `nats` in bits: for symbols that are characters, bits per character."""
        return float(self.nats(tokens).mean()) / math.log(2)


def _find(table: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For every key an index into the sorted table, and whether it is really there."""
    at = np.minimum(np.searchsorted(table, keys), len(table) - 1)
    return at, table[at] == keys


def _discounts(counts: np.ndarray) -> np.ndarray:
    """What to take from counts of 0, 1, 2, and 3 or more: [4]."""
    n1, n2, n3, n4 = (max(int((counts == c).sum()), 1) for c in (1, 2, 3, 4))  # a tiny text may lack some
    y = n1 / (n1 + 2 * n2)
    estimate = np.array([0.0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
    # Never nothing, so that every symbol keeps some probability; never all of a count.
    return np.clip(estimate, [0.0, 0.05, 0.05, 0.05], [0.0, 0.95, 1.9, 2.85])
