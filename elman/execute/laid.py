"""Sequences that lie as users have them, packed for a circuit and put back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch

from elman.circuit.form import InPort, Kind, OutPort
from elman.segments import Layout

if TYPE_CHECKING:
    from elman.execute.program import Program, TrainingPlans

Tensor = torch.Tensor


def packed(
    layout: Layout, ports: Sequence[InPort | OutPort], tensors: Sequence[Tensor | None],
    names: frozenset[str] | None = None,
) -> list[Tensor | None]:  # fmt: skip
    """With sequences, which lie as users have them, packed: all of them, or those of these names."""
    return [
        t if t is None or port.kind is not Kind.SEQUENCE or (names is not None and port.name not in names)
        else layout.pack(t)
        for port, t in zip(ports, tensors, strict=True)
    ]  # fmt: skip


def unpacked(
    layout: Layout, ports: Sequence[InPort | OutPort], tensors: Sequence[Tensor | None]
) -> list[Any]:
    """The inverse of `packed`, of all of them."""
    flat = len(layout.lead) == 1
    return [
        t if t is None or port.kind is not Kind.SEQUENCE
        else t.flatten(0, 1) if flat
        else cast("Tensor", layout.unpack(t))
        for port, t in zip(ports, tensors, strict=True)
    ]  # fmt: skip


def as_kept(
    program: Program,
    training: TrainingPlans,
    tensors: Sequence[Tensor | None],
    packed: Sequence[Tensor | None],
) -> tuple[Tensor | None, ...]:
    """What the backward pass is given of a call: what wants a gradient as it came, which second derivatives go through,
    and the rest packed."""
    three = zip(program.inputs, tensors, packed, strict=True)
    return tuple([t if port.name in training.wants else p for port, t, p in three])
