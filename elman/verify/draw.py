"""What a cell is verified on: a copy of it in another precision, and random sequences that look like the example."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from elman.noise import normal
from elman.trace.call import places, skeleton_of, store_of
from elman.verify.loop import Said

Tensor = torch.Tensor
_WIDE = {torch.float64: torch.complex128, torch.float32: torch.complex64}


def copy_of(cell: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """The cell with copies of its tensors, those that are real or complex in another precision."""
    copied = skeleton_of(cell)
    for entry in places(cell):
        tensor = store_of(cell, entry[0])[entry[0].key]
        value: Tensor = as_dtype(tensor.detach(), dtype).clone()
        if isinstance(tensor, torch.nn.Parameter):
            value = torch.nn.Parameter(value, tensor.requires_grad)
        else:
            value.requires_grad_(tensor.requires_grad)
        for place in entry:
            store_of(copied, place)[place.key] = value
    return copied


def as_dtype(value: Tensor, dtype: torch.dtype) -> Tensor:
    if value.is_complex():
        return value.to(_WIDE.get(dtype, torch.complex64))
    return value.to(dtype) if value.is_floating_point() else value


def converted(tree: Any, dtype: torch.dtype) -> Any:
    """A tree whose real and complex tensors are leaves of another precision that want gradients."""

    def leaf(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        tensor = as_dtype(value.detach(), dtype).clone()
        return tensor.requires_grad_(tensor.is_floating_point() or tensor.is_complex())

    return pytree.tree_map(leaf, tree)


@dataclass(frozen=True)
class Drawn:
    """The arguments of one call; x, state, context `[T, B, …]` or `[B, …]`, in float64."""

    T: int
    B: int
    x: Any
    state: Any
    context: Any
    said: Said

    def to(self, dtype: torch.dtype) -> Drawn:
        return Drawn(
            self.T,
            self.B,
            converted(self.x, dtype),
            converted(self.state, dtype),
            converted(self.context, dtype),
            self.said,
        )

    @property
    def steps(self) -> int | None:
        """T where x says nothing of it."""
        return None if any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(self.x)) else self.T

    def poisoned(self) -> Any:
        """x with NaN, and indices that are none, in the steps that do not happen."""
        if not self.said.given():
            return self.x
        nowhere = ~self.said.happens(self.T, self.B)

        def leaf(value: Any) -> Any:
            if not isinstance(value, Tensor) or value.dtype == torch.bool:
                return value
            bad = (
                float("nan")
                if value.is_floating_point() or value.is_complex()
                else torch.iinfo(value.dtype).max
            )
            where = nowhere.to(value.device).reshape(self.T, self.B, *[1] * (value.dim() - 2))
            return value.masked_fill(where, bad)

        return pytree.tree_map(leaf, self.x)


@dataclass(frozen=True)
class Example:
    """The user's example, one step `[B, …]`, and what is drawn by it."""

    x: Any
    state: Any
    context: Any

    def draw(self, T: int, B: int, said: tuple[str, ...], seed: int, rows: bool) -> Drawn:
        """A batch of sequences. rows: the example's own rows, in any order, and no random numbers."""
        generator = torch.Generator().manual_seed(seed)
        if rows:
            x = _tree(self.x, _rows(T * B, generator), (T, B))
            state, context = (_tree(tree, _rows(B, generator), (B,)) for tree in (self.state, self.context))
        else:
            x = _tree(self.x, _alike(T * B, 1.0, generator), (T, B))
            state = _tree(self.state, _alike(B, 0.5, generator), (B,))
            context = _tree(self.context, _alike(B, 1.0, generator), (B,))
        return Drawn(T, B, x, state, context, _said(T, B, said, generator))


def _tree(tree: Any, make: Callable[[Tensor], Tensor], lead: tuple[int, ...]) -> Any:
    def leaf(value: Any) -> Any:
        return make(value).unflatten(0, lead) if isinstance(value, Tensor) else value

    return pytree.tree_map(leaf, tree)


def _rows(count: int, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """Rows of a tensor; the same for all tensors of a tree."""
    chance = torch.rand(count, generator=generator)

    def rows(value: Tensor) -> Tensor:
        chosen = (chance * value.shape[0]).long().clamp_max(value.shape[0] - 1)
        return as_dtype(value.detach()[chosen.to(value.device)], torch.float64)

    return rows


def _alike(count: int, size: float, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """Random numbers with the mean and spread of a tensor, of which whole numbers and bools stay among its own. Where
    all numbers are the same, they tell nothing: normal ones of the given size."""

    def alike(value: Tensor) -> Tensor:
        value = value.detach()
        shape = (count, *value.shape[1:])
        if not (value.is_floating_point() or value.is_complex()):
            own = value.flatten()
            if not own.numel():
                return torch.zeros(shape, dtype=value.dtype, device=value.device)
            return own[torch.randint(own.numel(), shape, generator=generator).to(own.device)]
        wide = as_dtype(value, torch.float64)
        spread = float(wide.std()) if wide.numel() > 1 else 0.0
        numbers = normal(shape, wide.dtype, value.device, generator)
        return numbers * spread + wide.mean() if 0 < spread < float("inf") else numbers * size

    return alike


def _said(T: int, B: int, said: tuple[str, ...], generator: torch.Generator) -> Said:
    """Lengths, a mask, resets: rows of every kind are among them where there are rows enough."""
    lengths = torch.randint(0, T + 1, (B,), generator=generator)
    mask = torch.rand(T, B, generator=generator) < 0.7
    reset = torch.rand(T, B, generator=generator) < 0.3
    lengths[-1], mask[0, -1] = T, True  # one step at least
    if B > 2:
        mask[:, 0] = False
        reset[0, 1], reset[-1, 1], reset[T // 2, -1] = True, True, True
    return Said(
        *(value if name in said else None for name, value in zip(_WORDS, (lengths, mask, reset), strict=True))
    )


_WORDS = ("lengths", "mask", "reset")
