"""Functions of square matrices whose second derivatives PyTorch has otherwise, or has not."""

from __future__ import annotations

import torch

Tensor = torch.Tensor


def trace(input: Tensor) -> Tensor:
    """PyTorch's own second derivative asks how many places its index has, in its numbers."""
    return input.diagonal().sum()


def det(input: Tensor) -> Tensor:
    """PyTorch's own derivative is by singular values, whose own are NaN where two are alike, as of a multiple of I.

    That of log |det A| is by A⁻¹; where there is none, PyTorch's is left.
    """
    if input.is_complex():
        return torch.linalg.det(input)
    value = torch.linalg.det(input).detach()
    singular = (value == 0)[..., None, None]
    width = torch.arange(1, input.shape[-1] + 1, dtype=input.dtype, device=input.device)
    size = torch.linalg.slogdet(torch.where(singular, torch.ones_like(width).diag(), input))[1]
    theirs = torch.linalg.det(torch.where(singular, input, width.diag()))
    return torch.where(value == 0, theirs, value * (size - size.detach()).exp())
