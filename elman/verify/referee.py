"""Who is right where a second derivative is another than the loop's.

PyTorch's own second derivatives are not all right, and some are wrong without an error. Central differences of the
loop's first ones know nothing of either.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from elman.verify.compare import Distance, Named

Tensor = torch.Tensor
BOUND = 1e-6  # as a share of the largest: what differences with a step of 1e-5 can tell in float64
_STEP = 1e-5
WORDS = "the loop's own is wrong: central differences of its first derivatives say so"


def settled(
    got: Named, expected: Named, leaves: dict[str, Tensor], total: Callable[[], Tensor], bound: float
) -> Distance | None:
    """How far ours are from central differences, where these are far from the loop's and near to ours; else None.

    got, expected: second derivatives, ours and the loop's, of leaves. total: what they are derivatives of, computed
    from the leaves as they are now: a projection of the loop's first derivatives. bound: what rounding may do.
    """
    worst = Distance(0.0, "")
    for name, leaf in leaves.items():
        ours, theirs = (
            torch.zeros_like(leaf) if v is None else v.detach() for v in (got.get(name), expected.get(name))
        )
        apart = ours - theirs
        if leaf.dtype != torch.float64 or not bool((ours.isfinite() & theirs.isfinite()).all()):
            return None
        size = max(float(theirs.abs().max()), float(ours.abs().max())) if leaf.numel() else 0.0
        if not size or float(apart.abs().max()) <= bound * size:
            continue
        way = torch.sign(apart)  # the direction in which they part most
        along = _along(leaf, way, total)
        mine, other = (
            abs(float((v * way).sum()) - along) / (size * float(way.abs().sum())) for v in (ours, theirs)
        )
        if not mine <= BOUND <= other / 10:
            return None
        worst = max(worst, Distance(mine, name))
    return worst if worst.where else None


def _along(leaf: Tensor, way: Tensor, total: Callable[[], Tensor]) -> float:
    kept, ends = leaf.detach().clone(), []
    try:
        for far in (_STEP, -_STEP):
            with torch.no_grad():
                leaf.copy_(kept + far * way)
            ends.append(float(total().detach()))
    finally:
        with torch.no_grad():
            leaf.copy_(kept)
    return (ends[0] - ends[1]) / (2 * _STEP)
