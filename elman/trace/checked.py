"""Functions that look at their numbers before they compute, written so that a trace keeps the look."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class Checked(TorchFunctionMode):
    """Numbers that are none of one_hot's classes are an error in PyTorch; on fake tensors it is a comparison, which has
    none. A scatter says so in every engine."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.one_hot:
            return _one_hot(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _one_hot(tensor: torch.Tensor, num_classes: int = -1) -> torch.Tensor:
    if num_classes < 1:
        return F.one_hot(tensor, num_classes)
    room = torch.zeros((*tensor.shape, num_classes), dtype=tensor.dtype, device=tensor.device)
    return room.scatter(-1, tensor.unsqueeze(-1), 1)
