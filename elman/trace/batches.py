"""Batches of gradients and directions, as PyTorch's older vmap makes them: `is_grads_batched=True`, and
`torch.autograd.functional` where it is asked to vectorize."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch._C._functorch import is_legacy_batchedtensor

from elman.errors import NotSupported

Tensor = torch.Tensor


def is_batch(tensor: Tensor | None) -> bool:
    return tensor is not None and is_legacy_batchedtensor(tensor)


def _level() -> int:
    """How many of these vmaps are going on."""
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    return level


@contextlib.contextmanager
def unbatched() -> Iterator[None]:
    """Inside, no such vmap is going on: with it on, nothing may draw random numbers, nor what is traced meanwhile."""
    level = _level()
    for _ in range(level):
        torch._C._vmapmode_decrement_nesting()
    try:
        yield
    finally:
        for _ in range(level):
            torch._C._vmapmode_increment_nesting()


def of_a_batch(
    derivatives: Callable[[Sequence[Tensor | None]], Sequence[Tensor | None]], given: Sequence[Tensor | None]
) -> Sequence[Tensor | None]:
    """What a linear function gives for cotangents, or directions, that may be a batch of them: a batch."""
    if not any(map(is_batch, given)):
        return derivatives(given)
    level = _level()
    # Of what is no batch at this level, nothing would be left: it becomes a batch of size 0.
    many = [torch._remove_batch_dim(c, level, 0, 0) if c is not None and is_batch(c) else c for c in given]
    if any(map(is_batch, many)) or any(
        is_batch(c) and m is not None and m.shape[0] == 0 for c, m in zip(given, many, strict=True)
    ):
        raise NotSupported(
            what="a batch of batches of gradients is not available", where="elman.Recurrent",
            mend="use torch.func.jacrev and torch.func.vmap",
        )  # fmt: skip
    there: list[bool] = []

    def one(*given: Tensor | None) -> list[Tensor]:
        results = derivatives(given)
        there[:] = [g is not None for g in results]
        return [g for g in results if g is not None]

    dims = tuple(0 if is_batch(c) else None for c in given)
    with unbatched():
        batched = iter(torch.func.vmap(one, dims)(*many))
    # In front in memory as well: forward mode asks for that.
    return [torch._add_batch_dim(next(batched).contiguous(), 0, level) if has else None for has in there]
