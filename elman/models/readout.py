"""The output layer and its loss in one piece, which never holds the logits of a whole window."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from elman.errors import InputError, NotSupported

GROUPS = 1000  # at most
# Of cutoffs that are chosen: the least of the first, groups, the cost of one more.
_FIRST, _MOST, _MORE = 200, 4, 50
_NUMBERS = (
    2**20
)  # of logits at a time: 4 MB in float32, which stay in cache on the way from one product to the next


class Adaptive(nn.Linear):
    """A softmax of two levels, for a large vocabulary in which the frequent symbols come first; exact.

        p(y) = p_0(y)                                         for y < cutoffs[0]
        p(y) = p_0(group k) p_k(y)                            for cutoffs[k-1] <= y < cutoffs[k], the last group to V
        p_0 = softmax(c + V h, d + G h) over the first symbols and the groups,  p_k = softmax(c + V h) within group k

    The loss computes p_0, and p_k where the symbol is of group k: for most symbols a small part of V. G and d are
    `groups`. `forward`: h [..., H] -> log p [..., vocabulary], whose softmax is p; it computes all.

    Source: Grave et al., Efficient softmax approximation for GPUs, 2017; here without their projections.
    """

    def __init__(self, hidden: int, vocabulary: int, cutoffs: tuple[int, ...]) -> None:
        super().__init__(hidden, vocabulary)
        self.cutoffs = cutoffs
        self.groups = nn.Linear(hidden, len(cutoffs))

    def begin(self) -> None:
        """Groups as likely as the symbols in them, whatever h."""
        nn.init.zeros_(self.groups.weight)
        with torch.no_grad():
            self.groups.bias.copy_(torch.tensor([stop - start for start, stop in self.ranges]).log())

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """(first, last + 1) of the symbols of each group."""
        return list(zip(self.cutoffs, (*self.cutoffs[1:], self.out_features), strict=True))

    def forward(self, input: Tensor) -> Tensor:
        o, first = nn.functional.linear(input, self.weight, self.bias), self.cutoffs[0]
        log_p = torch.log_softmax(torch.cat([o[..., :first], self.groups(input)], -1), -1)
        parts = [
            log_p[..., first + k : first + k + 1] + torch.log_softmax(o[..., a:b], -1)
            for k, (a, b) in enumerate(self.ranges)
        ]
        return torch.cat([log_p[..., :first], *parts], -1)


def choose_cutoffs(counts: np.ndarray) -> tuple[int, ...]:
    """Cutoffs with which a step of training computes least, of symbols that come so often each, [vocabulary].

    Each softmax costs the product of its rows and its columns; one more of them costs what `_MORE` columns do, for all
    rows. Of all with up to `_MOST` groups the cheapest is found, on a grid of places that lie a sixth apart; () where
    one softmax is.
    """
    size = len(counts)
    shares = np.concatenate([[0.0], np.cumsum(counts) / max(counts.sum(), 1)])
    grid = sorted({min(int(_FIRST * (7 / 6) ** k), size) for k in range(200)})
    # least[i]: cost of the groups from grid[i] on, where they are k; cuts[i]: where these begin.
    least, cuts = [0.0 if place == size else math.inf for place in grid], [() for _ in grid]
    best: tuple[float, tuple[int, ...]] = (float(size), ())
    for k in range(1, _MOST + 1):
        rows = []
        for i, a in enumerate(grid):
            costs = (
                (shares[b] - shares[a]) * (b - a) + _MORE + least[j] for j, b in enumerate(grid) if b > a
            )
            rows.append(min(((cost, i + 1 + j) for j, cost in enumerate(costs)), default=(math.inf, 0)))
        cuts = [(a, *cuts[j]) if cost < math.inf else () for a, (cost, j) in zip(grid, rows, strict=True)]
        least = [cost for cost, _ in rows]
        best = min([best, *((a + k + least[i], cuts[i]) for i, a in enumerate(grid) if least[i] < math.inf)])
    return best[1]


def expect_cutoffs(cutoffs: Sequence[int], vocabulary: int) -> tuple[int, ...]:
    """Raise InputError for what are no cutoffs of a vocabulary."""
    listed = tuple(cutoffs)
    rising = all(a < b for a, b in pairwise((0, *listed, vocabulary)))
    if not rising or not all(type(one) is int for one in listed) or len(listed) > GROUPS:
        raise InputError(
            what="cutoffs are rising numbers of symbols, at which a group of rarer ones begins", where="cutoffs",
            got=str(list(listed))[:100], expected=f"at most {GROUPS}, each of 1 … {vocabulary - 1}",
            mend="leave them out: they are chosen by how often each symbol comes",
        )  # fmt: skip
    return listed


def loss(readout: nn.Linear, h: Tensor, y: Tensor) -> Tensor:
    """Mean of -log p(y | h) in nats. h: [N, H]. y: int64 [N]. First derivatives only."""
    if not isinstance(readout, Adaptive):
        return cross_entropy(h, readout.weight, readout.bias, y)
    return _mean(
        h, readout.weight, readout.bias, readout.groups.weight, readout.groups.bias, y, readout.ranges
    )


def cross_entropy(h: Tensor, V: Tensor, c: Tensor, y: Tensor) -> Tensor:
    """Mean of -log softmax(c + V h)[y] in nats, as

        torch.nn.functional.cross_entropy(torch.nn.functional.linear(h, V, c), y)

    A part of the rows at a time: its logits are computed, become their own gradient, and are gone. So memory does not
    grow with rows times vocabulary, and the backward pass has nothing left to do but to scale.

    h: [N, H]. V: [vocabulary, H]. c: [vocabulary]. y: int64 [N]. First derivatives only.
    """
    return _mean(h, V, c, None, None, y, [])


def _mean(
    h: Tensor, V: Tensor, c: Tensor, G: Tensor | None, d: Tensor | None, y: Tensor, ranges: list[tuple[int, int]]
) -> Tensor:  # fmt: skip
    given = (h, V, c, G, d)
    if (
        torch.is_grad_enabled()
    ):  # views, as two threads that hand a Function one parameter can wait for each other
        given = tuple(None if one is None else one.view_as(one) for one in given)
    else:  # which a Function does not look at
        given = tuple(None if one is None else one.detach() for one in given)
    return _Loss.apply(*given, y, ranges)


class _Loss(torch.autograd.Function):
    """ranges: of the groups; without any, there is one softmax."""

    @staticmethod
    def forward(
        ctx: Any, h: Tensor, V: Tensor, c: Tensor, G: Tensor | None, d: Tensor | None, y: Tensor,
        ranges: list[tuple[int, int]],
    ) -> Tensor:  # fmt: skip
        given = (h, V, c, G, d)
        gradients = [
            torch.empty_like(of) if of is not None and wanted else None
            for of, wanted in zip(given, ctx.needs_input_grad, strict=False)
        ]
        dh, dV, dc, dG, dd = gradients
        scale = 1 / len(h)
        if G is None:
            total = _nats(h, V, c, y, scale, dh, dV, dc)
        else:
            assert d is not None
            total = _nats_of_groups(h, V, c, G, d, y, ranges, scale, (dh, dV, dc, dG, dd))
        ctx.save_for_backward(*[one for one in gradients if one is not None])
        ctx.wants = [one is not None for one in gradients]
        return total * scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (cotangent,) = cotangents
        saved = iter(ctx.saved_tensors)
        # Elsewhere than on a CPU, asking costs more than it saves.
        as_it_is = cotangent.device.type == "cpu" and cotangent.item() == 1
        gradients = [next(saved) if wanted else None for wanted in ctx.wants]
        return (*[one if one is None or as_it_is else one * cotangent for one in gradients], None, None)

    @staticmethod
    def jvp(ctx: Any, *directions: Any) -> Any:
        raise NotSupported(
            what="the loss of a language model has no derivative forward", where="loss",
            mend="differentiate torch.nn.functional.cross_entropy of what the model returns",
        )  # fmt: skip


def _nats(
    h: Tensor, V: Tensor, c: Tensor, y: Tensor, scale: float, dh: Tensor | None, dV: Tensor | None, dc: Tensor | None
) -> Tensor:  # fmt: skip
    """-log softmax(c + V h)[y], summed; its gradients times `scale` are written where there is a place for them."""
    total, size = h.new_zeros(()), max(_NUMBERS // len(V), 64)
    for start in range(0, len(h), size):
        rows = slice(start, start + size)
        mine, target = h[rows], y[rows].unsqueeze(1)
        log_p = torch.log_softmax(torch.addmm(c, mine, V.T), 1)
        right = log_p.gather(1, target)
        total -= right.sum()
        if dh is None and dV is None and dc is None:
            continue
        # d(-log p[y]) / d logits = p - [y]
        g = torch.exp(log_p, out=log_p).scatter_(1, target, right.exp() - 1)
        g *= scale
        if dh is not None:
            _multiply(g, V, dh[rows])
        if dV is not None:
            _multiply(g.T, mine, dV, more=start > 0)
        if dc is not None:
            dc.add_(g.sum(0)) if start else torch.sum(g, 0, out=dc)
    return total


def _multiply(a: Tensor, b: Tensor, into: Tensor, more: bool = False) -> None:
    """into = a b; with `more`, into + a b."""
    if torch.is_autocast_enabled(into.device.type):  # which takes no place of another precision
        into.copy_(into + a @ b if more else a @ b)
    elif more:
        into.addmm_(a, b)
    else:
        torch.mm(a, b, out=into)


def _nats_of_groups(
    h: Tensor, V: Tensor, c: Tensor, G: Tensor, d: Tensor, y: Tensor, ranges: list[tuple[int, int]], scale: float,
    into: tuple[Tensor | None, ...],
) -> Tensor:  # fmt: skip
    dh, dV, dc, dG, dd = into
    first = ranges[0][0]
    y = y.contiguous()  # bucketize warns of others
    group = torch.bucketize(y, y.new_tensor([a for a, _ in ranges]), right=True)  # 0: none
    order = group.argsort(stable=True)  # so that the rows of a group stand together
    h, y, group = h[order], y[order], group[order]
    W, b = torch.cat([V[:first], G]), torch.cat([c[:first], d])
    dW = torch.empty_like(W) if dV is not None or dG is not None else None
    db = torch.empty_like(b) if dc is not None or dd is not None else None
    sorted_dh = None if dh is None else torch.empty_like(h)
    total = _nats(h, W, b, torch.where(group > 0, first - 1 + group, y), scale, sorted_dh, dW, db)
    for whole, part in ((dV, dW), (dc, db)):
        if whole is not None and part is not None:
            whole[:first] = part[:first]
    for whole, part in ((dG, dW), (dd, db)):
        if whole is not None and part is not None:
            whole.copy_(part[first:])
    ends = torch.bincount(group, minlength=len(ranges) + 1).cumsum(0).tolist()
    for (start, stop), rows in zip(ranges, map(slice, ends, ends[1:]), strict=True):
        here = [None if one is None else one[start:stop] for one in (dV, dc)]
        if rows.start == rows.stop:
            for one in here:
                None if one is None else one.zero_()
            continue
        own = None if sorted_dh is None else torch.empty_like(h[rows])
        total += _nats(h[rows], V[start:stop], c[start:stop], y[rows] - start, scale, own, *here)
        if sorted_dh is not None and own is not None:
            sorted_dh[rows] += own
    if dh is not None and sorted_dh is not None:
        dh[order] = sorted_dh
    return total
