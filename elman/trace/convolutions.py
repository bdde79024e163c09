"""Convolutions as views and one product, which have derivatives of any order.

PyTorch's second derivatives of a convolution ask how large the batch is; nobody knows while a step is traced.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

Tensor = torch.Tensor
Whole = int | Sequence[int]


def convolution(dims: int) -> Callable[..., Tensor]:
    """torch.nn.functional.conv1d, conv2d or conv3d: [B, C, …] and a weight [O, C / groups, …] -> [B, O, …]."""

    def conv(
        input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Whole = 1, padding: str | Whole = 0,
        dilation: Whole = 1, groups: int = 1,
    ) -> Tensor:  # fmt: skip
        steps, apart = _each(stride, dims), _each(dilation, dims)
        if isinstance(padding, str):
            spans = [d * (k - 1) for d, k in zip(apart, weight.shape[2:], strict=True)]
            edges = [(span // 2, span - span // 2) if padding == "same" else (0, 0) for span in spans]
        else:
            edges = [(p, p) for p in _each(padding, dims)]
        return _correlated(input, weight, bias, steps, edges, apart, groups)

    return conv


def transposed(dims: int) -> Callable[..., Tensor]:
    """torch.nn.functional.conv_transpose1d, …: [B, C, …] and a weight [C, O / groups, …] -> [B, O, …]."""

    def conv(
        input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Whole = 1, padding: Whole = 0,
        output_padding: Whole = 0, groups: int = 1, dilation: Whole = 1,
    ) -> Tensor:  # fmt: skip
        steps, apart, behind = _each(stride, dims), _each(dilation, dims), _each(output_padding, dims)
        for axis, step in zip(range(-dims, 0), steps, strict=True):
            input = _spread(input, axis, step)
        spans = [
            d * (k - 1) - p for d, k, p in zip(apart, weight.shape[2:], _each(padding, dims), strict=True)
        ]
        edges = [(span, span + more) for span, more in zip(spans, behind, strict=True)]
        turned = (
            weight.flip(tuple(range(2, 2 + dims))).unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
        )
        return _correlated(input, turned, bias, [1] * dims, edges, apart, groups)

    return conv


def _each(value: Whole, dims: int) -> list[int]:
    several = [value] if isinstance(value, int) else list(value)
    return several * dims if len(several) == 1 else several


def _spread(x: Tensor, axis: int, step: int) -> Tensor:
    """With step - 1 zeros between its neighbours along an axis."""
    if step == 1:
        return x
    wide = F.pad(x.movedim(axis, -1).unsqueeze(-1), (0, step - 1)).flatten(-2)
    return wide[..., : wide.shape[-1] - step + 1].movedim(-1, axis)


def _correlated(
    x: Tensor, weight: Tensor, bias: Tensor | None, steps: list[int], edges: list[tuple[int, int]], apart: list[int],
    groups: int,
) -> Tensor:  # fmt: skip
    """Every tap of the weight sees a view of x; one product sums over taps and channels."""
    dims = len(steps)
    alone = x.dim() == dims + 1  # without a batch
    x = F.pad(x.unsqueeze(0) if alone else x, [edge for pair in reversed(edges) for edge in pair])
    taps = weight.shape[2:]
    out = [
        (size - d * (k - 1) - 1) // s + 1
        for size, d, k, s in zip(x.shape[2:], apart, taps, steps, strict=True)
    ]
    seen = []
    for tap in itertools.product(*(range(k) for k in taps)):
        view = x
        for axis, (i, d, s, n) in enumerate(zip(tap, apart, steps, out, strict=True)):
            view = view.narrow(2 + axis, i * d, (n - 1) * s + 1)[
                (slice(None),) * (2 + axis) + (slice(None, None, s),)
            ]
        seen.append(view.flatten(2).unflatten(1, (groups, -1)))
    columns = torch.stack(seen, 3).flatten(2, 3)  # [B, G, C / G · taps, …]
    rows = weight.flatten(1).unflatten(0, (groups, -1))  # [G, O / G, C / G · taps]
    result = (rows @ columns).flatten(1, 2).unflatten(2, out)
    if bias is not None:
        result = result + bias.view(-1, *[1] * dims)
    return result.squeeze(0) if alone else result
