"""What there is to know of the vmaps around a call: those of torch.func, and the older one of batches of gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._C._functorch import (
    CVmapInterpreterPtr,
    RandomnessType,
    TransformType,
    _add_batch_dim,
    _unwrap_batched,
    get_interpreter_stack,
    is_legacy_batchedtensor,
)
from torch._functorch.pyfunctorch import (
    retrieve_current_functorch_interpreter,
    temporarily_clear_interpreter_stack,
)
from torch._functorch.utils import unwrap_dead_wrappers

from elman.errors import NotSupported

Tensor = torch.Tensor


def is_batch(tensor: Tensor | None) -> bool:
    return tensor is not None and is_legacy_batchedtensor(tensor)


def of_a_batch(
    gradients: Callable[[Sequence[Tensor | None]], list[Tensor | None]], given: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """The gradients of cotangents that may be a batch of them, as `is_grads_batched=True` gives them: for those PyTorch
    has a vmap of its own, older than that of torch.func."""
    if not any(map(is_batch, given)):
        return gradients(given)
    level = torch._C._vmapmode_increment_nesting() - 1
    # Of what is no batch at this level, nothing would be left: it becomes a batch of size 0.
    many = [torch._remove_batch_dim(c, level, 0, 0) if c is not None and is_batch(c) else c for c in given]
    torch._C._vmapmode_decrement_nesting()
    if any(map(is_batch, many)) or any(
        is_batch(c) and m is not None and m.shape[0] == 0 for c, m in zip(given, many, strict=True)
    ):
        raise NotSupported(
            what="a batch of batches of gradients is not available", where="elman.Recurrent",
            mend="use torch.func.jacrev and torch.func.vmap",
        )  # fmt: skip
    there: list[bool] = []

    def one(*given: Tensor | None) -> list[Tensor]:
        results = gradients(given)
        there[:] = [g is not None for g in results]
        return [g for g in results if g is not None]

    dims = tuple(0 if is_batch(c) else None for c in given)
    while torch._C._vmapmode_decrement_nesting():
        pass  # with it on, nothing may draw random numbers, nor what is traced meanwhile
    try:
        batched = iter(torch.func.vmap(one, dims)(*many))
    finally:
        while torch._C._vmapmode_increment_nesting() < level:
            pass
    return [torch._add_batch_dim(next(batched), 0, level) if has else None for has in there]


def drawing_each(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The same numbers, differing between the examples of every vmap in which each draws its own: what is alike for all
    would run once, and draw once."""
    given = list(tensors)
    place = next(i for i, t in enumerate(given) if t is not None)
    for one in get_interpreter_stack() or ():
        if one.key() == TransformType.Vmap:
            vmap = CVmapInterpreterPtr(one)
            if vmap.randomness() == RandomnessType.Different:
                with temporarily_clear_interpreter_stack():
                    zeros = torch.zeros(vmap.batchSize(), dtype=torch.bool)
                given[place] = given[place] + _add_batch_dim(zeros, 0, one.level())  # type: ignore[operator]
    return given


def by_rule(
    rule: Callable[..., tuple[Sequence[Tensor], Sequence[int]]],
    alike: Callable[[Sequence[Tensor | None]], Sequence[Tensor]],
    tensors: Sequence[Tensor | None],
) -> Sequence[Tensor] | None:
    """What a Function's rule for vmap gives where the innermost transform is one; None where that is another.

    It is what PyTorch does between `Function.apply` and the rule, less what takes as long as a small plan. rule: given
    (tensors, where the examples stand in each, how many, randomness), as `torch.autograd.Function.vmap` describes it.
    alike: what runs where no tensor differs between examples.
    """
    one: Any = retrieve_current_functorch_interpreter()
    if one.key() != TransformType.Vmap:
        return None
    level = one.level()
    parts = [
        (t, None) if t is None else _unwrap_batched(t, level) for t in unwrap_dead_wrappers(tuple(tensors))
    ]
    given, dims = [tensor for tensor, _ in parts], [dim for _, dim in parts]
    with one.lower():
        if all(dim is None for dim in dims):
            return alike(given)
        results, places = rule(given, dims, one.batch_size(), one.randomness())
    return [_add_batch_dim(result, place, level) for result, place in zip(results, places, strict=True)]


def vmaps() -> int:
    """How many vmaps are going on around the one that asks."""
    return sum(one.key() == TransformType.Vmap for one in get_interpreter_stack() or ())
