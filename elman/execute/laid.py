"""Sequences and states that lie as users have them, packed for a circuit and put back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch

from elman.circuit.form import InPort, Kind, OutPort

if TYPE_CHECKING:
    from elman.execute.executable import Call
    from elman.execute.program import Program, TrainingPlans
    from elman.segments import Layout

Tensor = torch.Tensor


def packed(
    call: Call, ports: Sequence[InPort | OutPort], tensors: Sequence[Tensor | None],
    names: frozenset[str] | None = None,
) -> list[Tensor | None]:  # fmt: skip
    """With sequences packed, which lie as users have them, and states where their rows go: all, or those of these
    names."""
    layout, swaps = cast("Layout", call.layout), call.swaps
    return [
        t if t is None or (names is not None and port.name not in names)
        else layout.pack(t) if port.kind is Kind.SEQUENCE
        else swaps(t) if port.kind is Kind.STATE and swaps is not None
        else t
        for port, t in zip(ports, tensors, strict=True)
    ]  # fmt: skip


def unpacked(call: Call, ports: Sequence[InPort | OutPort], tensors: Sequence[Tensor | None]) -> list[Any]:
    """The inverse of `packed`, of all of them."""
    layout, swaps = cast("Layout", call.layout), call.swaps
    flat = len(layout.lead) == 1
    return [
        t if t is None
        else (t.flatten(0, 1) if flat else cast("Tensor", layout.unpack(t))) if port.kind is Kind.SEQUENCE
        else swaps.back(t) if port.kind is Kind.STATE and swaps is not None
        else t
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
