"""The bound: the matrix products of a plan at torch.mm's speed, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from elman.circuit.rows import factor
from elman.plan.form import Plan

Tensor = torch.Tensor
BOUND = "torch.mm"
aten = torch.ops.aten


def products_of(T: int, B: int, *plans: Plan) -> Callable[[], None]:
    """The matrix products of plans and nothing else, each into memory that is there: what no engine can do without."""
    work: list[tuple[int, list[tuple[Tensor, ...]]]] = []
    for plan in plans:
        stages = ((plan.once, 1, B), (plan.before, 1, T * B), (plan.loop, T, B), (plan.after, 1, T * B))
        for stage, times, rows in stages:
            found = (
                []
                if stage is None
                else [p for node in stage.nodes() if (p := _product(node, rows)) is not None]
            )
            if found:
                work.append((times, found))

    def run() -> None:
        with torch.no_grad():
            for times, found in work:
                for _ in range(times):
                    for a, b, out in found:
                        torch.matmul(a, b, out=out)

    return run


def _product(node: Any, rows: int) -> tuple[Tensor, ...] | None:
    """Operands and result for the product that a node is, as they lie in memory; None if it is none."""
    if node.target in (aten.mm.default, aten.bmm.default):
        a, b = node.args[0], node.args[1]
    elif node.target is aten.addmm.default:
        a, b = node.args[1], node.args[2]
    else:
        return None
    left, right = (_like(operand.meta["val"], rows) for operand in (a, b))
    return left, right, torch.matmul(left, right)


def _like(value: Tensor, rows: int) -> Tensor:
    """A tensor of ones with the dtype and the layout of a traced value."""
    size = [s if isinstance(s, int) else rows * factor(s) for s in value.shape]
    last = value.stride()[-1]
    transposed = value.dim() == 2 and not (isinstance(last, int) and last == 1)
    return (
        torch.ones(size[::-1], dtype=value.dtype).t() if transposed else torch.ones(size, dtype=value.dtype)
    )
