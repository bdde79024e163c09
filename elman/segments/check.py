"""What users say of the steps that happen, read and checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch._C._functorch import is_functorch_wrapped_tensor, peek_interpreter_stack
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily

from elman.errors import InputError, InputTypeError, NotSupported

try:
    from elman import _native
except ImportError:
    _native: Any = None

Tensor = torch.Tensor


def read_lengths(lengths: Tensor | Sequence[int], steps: int, batch: int) -> Tensor:
    """Lengths `[B]` in 0 … T as int64 on the CPU. Raises InputError or InputTypeError for what they cannot be."""
    plain = type(lengths) is Tensor and peek_interpreter_stack() is None
    if plain and _native is not None and _native.are_lengths(lengths, steps, batch):
        return lengths  # type: ignore[return-value]
    given = lengths if isinstance(lengths, Tensor) else _outside(torch.tensor, lengths)
    if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
        raise InputTypeError(
            what="lengths are whole numbers", where="lengths=", got=str(given.dtype), expected="int64 or int32",
            mend="use lengths.long()",
        )  # fmt: skip
    if given.shape != (batch,):
        raise InputError(
            what="there is one length for each sequence", where="lengths=", got=f"shape {list(given.shape)}",
            expected=f"[{batch}]",
        )  # fmt: skip
    numbers = _read(given, "lengths", torch.int64)
    for row, length in enumerate(numbers.tolist()):
        if not 0 <= length <= steps:
            raise InputError(
                what="a length is not between none and all of the steps", where=f"lengths=, at [{row}]", got=length,
                expected=f"0 … {steps}",
            )  # fmt: skip
    return numbers


def read_bools(value: Tensor | np.ndarray, name: str, steps: int, batch: int) -> Tensor:
    """Bools `[T, B]` on the CPU. Raises InputError or InputTypeError for anything else."""
    if isinstance(value, np.ndarray) and value.dtype == np.bool_:
        value = _outside(torch.from_numpy, np.ascontiguousarray(value))
    if not isinstance(value, Tensor) or value.dtype != torch.bool:
        tensor = isinstance(value, Tensor)
        raise InputTypeError(
            what=f"{name} says yes or no for each step", where=f"{name}=",
            got=str(value.dtype) if tensor else type(value).__name__, expected="a tensor of bools",
            mend=f"use {name}.bool()" if tensor else f"use torch.as_tensor({name}, dtype=torch.bool)",
        )  # fmt: skip
    if value.shape != (steps, batch):
        mend = (
            "it looks transposed: x says which dimension is time" if value.shape == (batch, steps) else None
        )
        raise InputError(
            what=f"{name} says it for each step of each sequence", where=f"{name}=",
            got=f"shape {list(value.shape)}", expected=f"[{steps}, {batch}]", mend=mend,
        )  # fmt: skip
    return _read(value, name, torch.bool)


def _read(value: Tensor, name: str, dtype: torch.dtype) -> Tensor:
    """The numbers of a tensor, from wherever it lies and whatever transform is going on around."""
    if isinstance(value, FakeTensor) or value.is_meta:
        kind = "a fake tensor" if isinstance(value, FakeTensor) else "on the device meta"
        raise NotSupported(
            what=f"{name} is {kind}, which has no numbers, and where steps lie depends on them",
            where=f"{name}=", mend="pass a real tensor, made outside of the FakeTensorMode; lengths may be a list",
        )  # fmt: skip
    if is_functorch_wrapped_tensor(value):
        raise NotSupported(
            what=f"{name} is an argument of a transform of torch.func, so that nobody knows its numbers",
            where=f"{name}=", mend="let the function that is transformed take it from outside",
        )  # fmt: skip
    return _outside(lambda: value.detach().to("cpu", dtype).resolve_neg().contiguous())


def _outside(make: Callable[..., Tensor], *args: Any) -> Tensor:
    """A tensor of plain numbers, that a transform which is going on has no part in."""
    if torch._C._len_torch_dispatch_stack():
        with unset_fake_temporarily():
            return _outside_of_transforms(make, *args)
    return _outside_of_transforms(make, *args)


def _outside_of_transforms(make: Callable[..., Tensor], *args: Any) -> Tensor:
    if peek_interpreter_stack() is None:
        return make(*args)
    with temporarily_clear_interpreter_stack():
        return make(*args)
