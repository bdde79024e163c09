"""Random tensors by description, for the tables of cells: `floats("I")` is [B, I], or [T, B, I] for a sequence.

And the tensors of a tree.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

Tensor = torch.Tensor
Width = int | str


@dataclass(frozen=True)
class Leaf:
    """One tensor of a tree: its widths behind the batch ("I", "H", "2H", "3H" or a number) and how it is drawn."""

    widths: tuple[Width, ...]
    fill: Callable[[tuple[int, ...], torch.Generator | None], Tensor]

    def shape(self, n_in: int, n_hidden: int) -> tuple[int, ...]:
        names = {"I": n_in, "H": n_hidden, "2H": 2 * n_hidden, "3H": 3 * n_hidden}
        return tuple(names[width] if isinstance(width, str) else width for width in self.widths)


def floats(*widths: Width, scale: float = 1.0) -> Leaf:
    return Leaf(
        widths, lambda size, generator: scale * torch.randn(size, dtype=torch.float64, generator=generator)
    )


def integers(below: int, *widths: Width) -> Leaf:
    return Leaf(widths, lambda size, generator: torch.randint(below, size, generator=generator))


def bools(*widths: Width, below: float) -> Leaf:
    """True where a normal number lies below `below`."""
    return Leaf(widths, lambda size, generator: torch.randn(size, generator=generator) < below)


def zeros(*widths: Width) -> Leaf:
    return Leaf(widths, lambda size, generator: torch.zeros(size, dtype=torch.float64))


def draw(
    tree: Any,
    lead: tuple[int, ...],
    generator: torch.Generator | None,
    dtype: torch.dtype,
    n_in: int,
    n_hidden: int,
) -> Any:
    """A tree of tensors [*lead, …] for a tree of `Leaf`; numbers are drawn in float64 and rounded to `dtype`."""

    def leaf(spec: Any) -> Any:
        if not isinstance(spec, Leaf):
            return spec
        value = spec.fill((*lead, *spec.shape(n_in, n_hidden)), generator)
        return value.to(dtype) if value.is_floating_point() else value

    return pytree.tree_map(leaf, tree)


def tensors(*trees: object) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(trees) if isinstance(leaf, Tensor)]


def differentiable(*trees: object) -> list[Tensor]:
    """The floating-point tensors of trees, as leaves that want gradients."""
    return [leaf.requires_grad_() for leaf in tensors(*trees) if leaf.is_floating_point()]
