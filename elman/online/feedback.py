"""A readout whose errors come back through numbers of their own."""

from __future__ import annotations

from typing import Any

import torch

Tensor = torch.Tensor


class RandomFeedback(torch.nn.Linear):
    """y = V h + c, through which errors come back by a fixed random matrix B instead of Vᵀ (feedback alignment:
    Lillicrap et al. 2016, "Random synaptic feedback weights support error backpropagation for deep learning"). V and c
    learn as ever.

    h: `[…, in_features]`. Returns `[…, out_features]`. B is the buffer `feedback` `[out_features, in_features]`.
    """

    feedback: Tensor

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, device: Any = None, dtype: Any = None
    ):
        super().__init__(in_features, out_features, bias, device, dtype)
        self.register_buffer("feedback", torch.empty_like(self.weight.detach()))
        torch.nn.init.kaiming_uniform_(self.feedback, a=5**0.5)

    def forward(self, input: Tensor) -> Tensor:
        # What is forward V h is backward B to h, and h to V.
        learns = torch.nn.functional.linear(input.detach(), self.weight, self.bias)
        errors = torch.nn.functional.linear(input, self.feedback)
        return learns + (errors - errors.detach())
