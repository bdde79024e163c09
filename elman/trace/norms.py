"""Batch, instance, layer and group norm as what they are made of.

PyTorch's own second derivatives ask how large the batch is, and those of layer norm are wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

Tensor = torch.Tensor


def batch_norm(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
    bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    if training or running_mean is None or running_var is None:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    channels = [-1, *[1] * (input.dim() - 2)]
    mean, variance = running_mean.view(channels), running_var.view(channels)
    return _normed(input, mean, variance, weight, bias, eps)


def instance_norm(
    input: Tensor, running_mean: Tensor | None = None, running_var: Tensor | None = None,
    weight: Tensor | None = None, bias: Tensor | None = None, use_input_stats: bool = True, momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    if not use_input_stats:
        return batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    if running_mean is not None or running_var is not None or input.dim() < 3:
        return F.instance_norm(input, running_mean, running_var, weight, bias, True, momentum, eps)
    variance, mean = torch.var_mean(input, tuple(range(2, input.dim())), correction=0, keepdim=True)
    return _normed(input, mean, variance, weight, bias, eps)


def _normed(
    x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """x [B, C, …]; weight and bias [C]."""
    channels = [-1, *[1] * (x.dim() - 2)]
    out = (x - mean) * (variance + eps).rsqrt()
    out = out if weight is None else out * weight.view(channels)
    return out if bias is None else out + bias.view(channels)


def layer_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None,
    eps: float = 1e-5, cudnn_enable: bool = True,
) -> Tensor:  # fmt: skip
    """PyTorch's own derivatives beyond the second, of its forward mode beyond the first, take mean and variance for
    constants (2.13), without an error."""
    return native_layer_norm(input, normalized_shape, weight, bias, eps)[0]


def native_layer_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    variance, mean = torch.var_mean(
        input, tuple(range(-len(normalized_shape), 0)), correction=0, keepdim=True
    )
    scale = (variance + eps).rsqrt()
    out = (input - mean) * scale
    out = out if weight is None else out * weight
    return out if bias is None else out + bias, mean, scale


def group_norm(norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """As `norm`, a layer norm, of the groups."""

    def groups_of(
        input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5,
        cudnn_enabled: bool = True,
    ) -> Tensor:  # fmt: skip
        if input.dim() < 2 or num_groups < 1 or input.shape[1] % num_groups:
            return torch.group_norm(input, num_groups, weight, bias, eps)  # which says what is wrong
        groups = input.reshape(input.shape[0], num_groups, -1)
        out = norm(groups, groups.shape[2:], None, None, eps).reshape(input.shape)
        channels = [-1, *[1] * (input.dim() - 2)]
        out = out if weight is None else out * weight.view(channels)
        return out if bias is None else out + bias.view(channels)

    return groups_of
