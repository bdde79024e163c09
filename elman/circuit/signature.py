"""What a cell takes and returns, as plain data, and the places of its own tensors."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import torch

from elman.circuit.structure import Structure

Tensor = torch.Tensor


def identifier(path: str, taken: set[str]) -> str:
    """A name for a graph made of the user's words, different from those taken."""
    base = re.sub(r"\W+", "_", path).strip("_") or "value"
    name, count = base, 1
    while name in taken:
        count += 1
        name = f"{base}_{count}"
    taken.add(name)
    return name


@dataclass(frozen=True)
class Place:
    """Where a cell keeps one of its tensors: submodule path, which dict of the module, key."""

    module: str
    store: str  # "_parameters", "_buffers" or "__dict__"
    key: str

    @property
    def path(self) -> str:
        return ".".join(part for part in ("cell", self.module, self.key) if part)


@dataclass(frozen=True)
class Signature:
    """How a cell is called and what it returns.

    x, state, context: structures of the arguments (context NOTHING: the cell takes two arguments).
    output: the structure of what is kept per step, NOTHING if nothing is; its wires are results of the step.
    owned: constant port -> the places where the cell keeps that tensor (several where it is tied).
    captured: constant port -> a tensor that the step uses and the cell does not own.
    """

    x: Structure
    state: Structure
    context: Structure
    output: Structure
    output_wires: tuple[str, ...]
    owned: dict[str, tuple[Place, ...]] = field(default_factory=dict)
    captured: dict[str, Tensor] = field(default_factory=dict)
