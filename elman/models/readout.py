"""The output layer and its loss in one piece, which never holds the logits of a whole window."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_NUMBERS = (
    2**20
)  # of logits at a time: 4 MB in float32, which stay in cache on the way from one product to the next


def cross_entropy(h: Tensor, V: Tensor, c: Tensor, y: Tensor) -> Tensor:
    """Mean of -log softmax(c + V h)[y] in nats, as

        torch.nn.functional.cross_entropy(torch.nn.functional.linear(h, V, c), y)

    A part of the rows at a time: its logits are computed, become their own gradient, and are gone. So memory does not
    grow with rows times vocabulary, and the backward pass has nothing left to do but to scale.

    h: [N, H]. V: [vocabulary, H]. c: [vocabulary]. y: int64 [N]. First derivatives only.
    """
    if torch.is_grad_enabled() and (h.requires_grad or V.requires_grad or c.requires_grad):
        return _CrossEntropy.apply(h, V, c, y)
    total = h.new_zeros(())
    for rows in _parts(h, V):
        total += torch.nn.functional.cross_entropy(torch.addmm(c, h[rows], V.T), y[rows], reduction="sum")
    return total / len(h)


def _parts(h: Tensor, V: Tensor) -> list[slice]:
    size = max(_NUMBERS // len(V), 64)
    return [slice(start, start + size) for start in range(0, len(h), size)]


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, V: Tensor, c: Tensor, y: Tensor) -> Tensor:
        wants_h, wants_V, wants_c, _ = ctx.needs_input_grad
        parts, scale = _parts(h, V), 1 / len(h)
        dh = torch.empty_like(h) if wants_h and len(parts) > 1 else None
        dV = torch.zeros_like(V) if wants_V and len(parts) > 1 else None
        dc = torch.zeros_like(c) if wants_c and len(parts) > 1 else None
        total = h.new_zeros(())
        for rows in parts:
            mine, target = h[rows], y[rows].unsqueeze(1)
            logits = torch.addmm(c, mine, V.T)
            log_p = torch.log_softmax(logits, 1)
            total -= log_p.gather(1, target).sum()
            # d(-log p[y]) / d logits = p - [y]
            g = torch.exp(log_p, out=log_p).scatter_add_(
                1, target, log_p.new_full((1, 1), -1.0).expand_as(target)
            )
            g *= scale
            if dh is not None:
                torch.mm(g, V, out=dh[rows])
            elif wants_h:
                dh = torch.mm(g, V)
            if wants_V:
                dV = torch.mm(g.T, mine) if dV is None else dV.addmm_(g.T, mine)
            if wants_c:
                dc = g.sum(0) if dc is None else dc.add_(g.sum(0))
        ctx.save_for_backward(*[t for t in (dh, dV, dc) if t is not None])
        ctx.wants = wants_h, wants_V, wants_c
        return total * scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (cotangent,) = cotangents
        made = iter(ctx.saved_tensors)
        if (
            cotangent.device.type == "cpu" and cotangent.item() == 1
        ):  # elsewhere, asking costs more than it saves
            return (*[next(made) if wanted else None for wanted in ctx.wants], None)
        return (*[next(made) * cotangent if wanted else None for wanted in ctx.wants], None)
