"""Convolutions as views and products, against PyTorch's kernels."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional as F

from elman.trace.convolutions import convolution, transposed

SIZES, TAPS = (7, 6, 5), (3, 2)
Tensor = torch.Tensor
every_width = pytest.mark.parametrize("dims", [1, 2, 3])


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@every_width
def test_a_convolution_is_pytorchs(dims: int) -> None:
    x, bias = drawn(2, 4, *SIZES[:dims]), drawn(6)
    paddings = (0, 1, (1,) * dims, "same", "valid")
    for stride, padding, dilation, groups, kernel in itertools.product(
        (1, 2), paddings, (1, 2), (1, 2), (2, 3)
    ):
        if padding == "same" and stride > 1:
            continue  # PyTorch refuses it
        weight = drawn(6, 4 // groups, *(kernel, 3, 1)[:dims])
        how = (stride, padding, dilation, groups)
        right = getattr(F, f"conv{dims}d")(x, weight, bias, *how)
        torch.testing.assert_close(convolution(dims)(x, weight, bias, *how), right)
        torch.testing.assert_close(
            convolution(dims)(x[0], weight, None, *how) + bias.view(-1, *[1] * dims), right[0]
        )


@every_width
def test_a_transposed_convolution_is_pytorchs(dims: int) -> None:
    x, bias = drawn(2, 4, *SIZES[:dims]), drawn(6)
    grid = itertools.product((1, 2, 3), (0, 1), (0, 1), (1, 2), (1, 2), (2, 3))
    for stride, padding, behind, groups, dilation, kernel in grid:
        if behind >= max(stride, dilation):
            continue  # PyTorch refuses it
        weight = drawn(4, 6 // groups, *(kernel, *TAPS)[:dims])
        how = (stride, padding, behind, groups, dilation)
        right = getattr(F, f"conv_transpose{dims}d")(x, weight, bias, *how)
        torch.testing.assert_close(transposed(dims)(x, weight, bias, *how), right)
