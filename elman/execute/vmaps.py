"""What there is to know of the vmaps of torch.func around a call."""

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
)
from torch._functorch.pyfunctorch import (
    retrieve_current_functorch_interpreter,
    temporarily_clear_interpreter_stack,
)
from torch._functorch.utils import unwrap_dead_wrappers

Tensor = torch.Tensor


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
