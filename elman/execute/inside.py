"""The door of transforms inside torch.compile: what Dynamo puts into its graph as one call, and does not look into."""

from __future__ import annotations

from torch import Tensor

from elman.execute.autograd import apply
from elman.execute.executable import Call
from elman.execute.operator import program_of


def transformed(tensors: list[Tensor], name: str, steps: int, batch: int, engine: str) -> list[Tensor]:
    """What the program of a name gives out for all of its inputs in order, `[T, B, …]` or `[B, …]`; whatever transforms
    are about. steps, batch: T and B."""
    program = program_of(name)
    call = Call(steps, batch, 0, engine, owner=program)
    return list(apply(program, call, tensors))
