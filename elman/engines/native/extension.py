"""The part that is compiled from native/, with the names and sizes that it was compiled with (native/program.hpp)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch._C._dynamo import guards

from elman.precision import of_products

try:
    from elman import _native as compiled
except ImportError:  # no compiler was there when elman was installed: nothing is lowered, nothing is run
    compiled: Any = None
else:
    compiled.ask_precision(of_products["mkldnn"])


def why_not_built() -> str | None:
    """None if the compiled part is there, else why not."""
    if compiled is not None:
        return None
    return "its compiled part is missing: install elman where a C++ compiler is at hand"


def isa() -> str | None:
    """The best instruction set of this machine: "avx512", "avx2" or "plain"; None without the compiled part."""
    return None if compiled is None else compiled.instruction_sets()[0]


def in_halves() -> bool:
    """Whether products of float32 are in bfloat16 now: PyTorch was told that they may be, and this machine has AMX."""
    return compiled is not None and of_products["mkldnn"]() == "bf16" and compiled.has_tiles()


def empty_by_torch(sizes: Sequence[int], strides: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Memory on the CPU by PyTorch's public function. sizes, strides: in elements."""
    return torch.empty_strided(sizes, strides, dtype=dtype, device="cpu")


# What PyTorch's own compiled code asks for tensors, in a third of `new_empty`'s time. Its name is PyTorch's business.
empty_strided: Callable[[Sequence[int], Sequence[int], torch.dtype], torch.Tensor] = getattr(
    guards, "_empty_strided_cpu", empty_by_torch
)


@contextmanager
def keeping_memory() -> Iterator[None]:
    """Inside, passes of this thread hand the memory between their pieces to each other (native/pass.hpp)."""
    if compiled is None:
        yield
        return
    compiled.keep_memory(True)
    try:
        yield
    finally:
        compiled.keep_memory(False)
