"""What whole numbers look up: where one is out of range, every engine and every stage says so in the same words."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from elman.circuit.operations import Lookup, operation_named
from elman.errors import InputError

Tensor = torch.Tensor


def failed(index: int, size: int, behind: bool) -> InputError:
    """The error for an index into a dimension of `size`; size 0: for a division of whole numbers by zero.

    behind: whether -1 would have been the last place.
    """
    if size == 0:
        return InputError(
            what="a whole number is divided by zero inside the recurrence", where="the cell",
            mend="keep the divisor from being 0, for example by clamp(min=1)",
        )  # fmt: skip
    return InputError(
        what="an index inside the recurrence is out of range", where="the cell", got=index,
        expected=f"{-size if behind else 0} … {size - 1}, for a dimension of size {size}",
        mend="look at the whole numbers that the cell is given, or that its state holds",
    )  # fmt: skip


def _first(source: Tensor, index: Tensor, *_: Any, **__: Any) -> Iterator[tuple[Tensor, int, bool]]:
    yield index, source.shape[0], False


def _along(source: Tensor, dim: int, index: Tensor, *_: Any, **__: Any) -> Iterator[tuple[Tensor, int, bool]]:
    yield index, source.shape[dim] if source.dim() else 1, False


def _each(
    source: Tensor, indices: list[Tensor | None], *_: Any, **__: Any
) -> Iterator[tuple[Tensor, int, bool]]:
    for dim, index in enumerate(indices):
        if index is not None and index.dtype == torch.int64:
            yield index, source.shape[dim], True


# Of an operation's arguments: indices, the size that they go into, and whether -1 is the last place.
LOOKUPS: dict[Lookup, Callable[..., Iterator[tuple[Tensor, int, bool]]]] = {
    Lookup.ROWS: _first,
    Lookup.ALONG: _along,
    Lookup.EACH: _each,
}


def telling(target: Any, call: Any) -> Any:
    """An operation, called as `call`, whose error about an index is ours."""
    which = operation_named(target).lookup
    if which is None:
        return call
    lookup = LOOKUPS[which]

    @functools.wraps(call)
    def told(*args: Any, **kwargs: Any) -> Any:
        try:
            return call(*args, **kwargs)
        except (IndexError, RuntimeError) as error:
            for index, size, behind in lookup(*args):
                wrong = index[(index >= size) | (index < (-size if behind else 0))]
                if wrong.numel():
                    raise failed(int(wrong[0]), size, behind) from error
            raise

    return told
