"""Dropout for recurrences: what is left out stays out for a whole sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._C._functorch import is_legacy_batchedtensor, peek_interpreter_stack
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.autograd import forward_ad

from elman import noise
from elman.segments import Layout


def locked(
    x: Tensor, p: float, layout: Layout | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """x with a share of its units left out, the same ones at every step of a sequence, others in each sequence.

        y(t) = x(t) ⊙ m / (1 - p),  m ~ Bernoulli(1 - p), drawn once per call

    Against a fresh draw at each step it costs nothing to speak of, and a unit that is out cannot come back a step later
    through the state.

    x: [T, B, …], or [B, …] for one step; packed by a layout, [N, …]. generator: that draws, by default torch's own.
    Source: Gal and Ghahramani, A theoretically grounded application of dropout in recurrent neural networks, 2016.
    """
    if layout is None or layout.packing is None:
        return x * dropout_mask(x, x.shape[-2:], p, generator)
    return x * dropout_mask(x, (layout.pieces, *x.shape[1:]), p, generator)[layout.packing.sequence]


def fresh(x: Tensor, p: float, generator: torch.Generator | None = None) -> Tensor:
    """The same with other units at every step, as by torch.nn.functional.dropout, which takes no generator."""
    if _is_plain(x) and (generator is None or generator.device.type == "cpu"):
        seed = int(torch.randint(2**62, (), generator=generator).item())
        return cast(Tensor, _Dropped.apply(x, p, seed))
    if generator is None:
        return nn.functional.dropout(x, p)
    return x * dropout_mask(x, x.shape, p, generator)


def _is_plain(x: Tensor) -> bool:
    """Whether x is nothing but numbers in memory, which nobody is recording."""
    return (
        not torch.compiler.is_compiling()
        and type(x) in (Tensor, nn.Parameter)
        and noise.drops(x)
        and peek_interpreter_stack() is None
        and not torch._C._len_torch_dispatch_stack()
        and forward_ad._current_level < 0
        and not torch._C._get_tracing_state()
    )


class _Dropped(torch.autograd.Function):
    """`noise.drop`, whose derivatives draw what was left out again instead of keeping it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float, seed: int) -> Tensor:
        ctx.p, ctx.seed = p, seed
        return noise.drop(x, p, seed)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        (g,) = grad_outputs
        if _is_plain(g) and not is_legacy_batchedtensor(g):
            return _Dropped.apply(g, ctx.p, ctx.seed), None, None
        with temporarily_clear_interpreter_stack():  # in a transform, ones would be its own
            mask = noise.drop(torch.ones(g.shape, dtype=g.dtype), ctx.p, ctx.seed)
        return g * mask, None, None


def dropout_mask(x: Tensor, size: Sequence[int], p: float, generator: torch.Generator | None) -> Tensor:
    """m / (1 - p); zeros where everything is left out."""
    mask = x.new_empty(tuple(size)).bernoulli_(1 - p, generator=generator)
    return mask / (1 - p) if p < 1 else mask


class LockedDropout(nn.Module):
    """`locked` as a module, which leaves out nothing in evaluation."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return locked(x, self.p) if self.training and self.p else x

    def extra_repr(self) -> str:
        return f"p={self.p}"
