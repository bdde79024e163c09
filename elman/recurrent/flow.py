"""What a model says of itself for its picture: which of its parts reads which."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Piece:
    """A part of a model. what: a module; or words, of what comes from outside, is computed, or comes out. reads: names
    of the pieces whose outputs it is given."""

    name: str
    what: torch.nn.Module | str
    reads: tuple[str, ...] = ()


class Flow:
    """A model that knows how its parts feed one another, which `elman.draw` cannot see in the order of its modules."""

    __slots__ = ()

    def flow(self) -> list[Piece]:
        """Its parts, sources first."""
        raise NotImplementedError
