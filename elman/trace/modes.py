"""Modes of PyTorch's that a call stands in: what they do to operations, no trace key can say."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import _get_current_function_mode_stack
from torch.utils import checkpoint
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

# Those of selective checkpointing keep what is computed, whatever computes it.
_KEEPING = (checkpoint._CachingTorchDispatchMode, checkpoint._CachedTorchDispatchMode)


def changes_operations() -> bool:
    """Whether a TorchFunctionMode is about that may make other operations of a step's; `torch.device` does not."""
    return bool(torch._C._len_torch_function_stack()) and any(
        not isinstance(mode, DeviceContext) for mode in _get_current_function_mode_stack()
    )


def looks_at_operations() -> bool:
    """Whether a TorchDispatchMode is about (FlopCounterMode, FakeTensorMode), which only sees PyTorch's operations."""
    return bool(torch._C._len_torch_dispatch_stack()) and any(
        not isinstance(mode, _KEEPING) for mode in _get_current_dispatch_mode_stack()
    )


def has_no_memory(tensor: torch.Tensor | None) -> bool:
    """Whether a tensor is of a class that computes by itself (`__torch_dispatch__`: FakeTensor), not in memory."""
    kind: Any = type(tensor)
    return (
        tensor is not None and kind is not torch.Tensor and kind is not torch.nn.Parameter
        and kind.__torch_dispatch__ is not torch._C._disabled_torch_dispatch_impl
    )  # fmt: skip


@contextlib.contextmanager
def constants_among(tensors: Sequence[torch.Tensor | None]) -> Iterator[None]:
    """Inside, constants of a program's may meet fake tensors, also those whose mode wants every tensor to be a fake."""
    mode = next((tensor.fake_mode for tensor in tensors if isinstance(tensor, FakeTensor)), None)
    if mode is None:
        yield
        return
    before, mode.allow_non_fake_inputs = mode.allow_non_fake_inputs, True
    try:
        yield
    finally:
        mode.allow_non_fake_inputs = before
