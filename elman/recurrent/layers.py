"""What a stack consists of: layers, and what lies between one and the next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from elman.errors import InputError, expect
from elman.recurrent.budget import Budget


class Compound:
    """What is one module and several layers: in a stack it is the layer that it stands for."""

    __slots__ = ()

    def as_layer(self) -> Any:
        """The layer, time-major, with the weights of now."""
        raise NotImplementedError


class Layers(Budget, torch.nn.Module):
    """The parts of a `Stack`, which says what each of them means; how they are called is said there too."""

    residual: tuple[bool, ...] = ()
    locked = False
    generator: torch.Generator | None = None

    def __init__(
        self, layers: Sequence[Any], dropout: float, locked: bool, residual: bool | Sequence[bool],
        norms: Sequence[torch.nn.Module], generator: torch.Generator | None,
    ) -> None:  # fmt: skip
        super().__init__()
        if not layers:
            raise InputError(what="a stack has at least one layer", where="Stack()")
        expect(dropout, (int, float), "dropout is a probability", "dropout=")
        if not 0 <= dropout <= 1:
            raise InputError(what="dropout is a probability", where="dropout=", got=dropout, expected="0 … 1")
        self.layers = torch.nn.ModuleList(layers)
        if generator is not None:
            expect(generator, torch.Generator, "random numbers come from a torch.Generator", "generator=")
        self.dropout, self.locked, self.generator = dropout, locked, generator
        self.residual = _residual(residual, len(layers))
        if norms:
            if len(norms) != len(layers) - 1:
                raise InputError(
                    what="there is one norm for each layer but the first", where="norms=", got=len(norms),
                    expected=len(layers) - 1,
                )  # fmt: skip
            self.norms = torch.nn.ModuleList(norms)

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.layers)

    def part(self, index: int) -> Any:
        """A layer as it runs: what a layer of `elman.nn` stands for."""
        layer: Any = self.layers[index]
        return layer.as_layer() if isinstance(layer, Compound) else layer

    def adds(self, index: int) -> bool:
        """Whether what a layer reads is added to its output."""
        return bool(self.residual) and self.residual[index]

    def norms_between(self) -> Any:
        """For each layer but the first the norm of what it reads; nothing where there are none."""
        return self._modules.get("norms") or ()


def _residual(residual: bool | Sequence[bool], count: int) -> tuple[bool, ...]:
    """For each layer whether it is residual."""
    if isinstance(residual, bool):
        return tuple(residual and i > 0 for i in range(count))
    expect(residual, (list, tuple), "residual is a bool, or one for each layer", "residual=")
    if len(residual) != count or not all(isinstance(each, bool) for each in residual):
        raise InputError(
            what="residual is a bool, or one for each layer", where="residual=", got=list(residual),
            expected=f"{count} bools",
        )  # fmt: skip
    return tuple(residual)
