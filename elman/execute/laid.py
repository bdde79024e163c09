"""Sequences and states that lie as users have them, packed for a circuit and put back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from elman.circuit.form import InPort, Kind, OutPort
from elman.engines.base import Kinds
from elman.segments import Layout

Tensor = torch.Tensor


def kinds_of(ports: Sequence[InPort | OutPort]) -> Kinds:
    """What is packed: sequences, and states where they change places with their rows."""
    return tuple(port.kind if port.kind in (Kind.SEQUENCE, Kind.STATE) else None for port in ports)


def packed(
    layout: Layout, swaps: bool, kinds: Kinds, tensors: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """With sequences packed, which lie as users have them, and states where their rows go, if they change places."""
    swap = layout.swap if swaps else None
    return [
        t if t is None
        else layout.pack(t) if kind is Kind.SEQUENCE
        else swap(t) if kind is Kind.STATE and swap is not None
        else t
        for kind, t in zip(kinds, tensors, strict=True)
    ]  # fmt: skip


def unpacked(layout: Layout, swaps: bool, kinds: Kinds, tensors: Sequence[Tensor | None]) -> list[Any]:
    """The inverse of `packed`."""
    swap = layout.swap if swaps else None
    return [
        t if t is None
        else layout.put_back(t) if kind is Kind.SEQUENCE
        else swap.back(t) if kind is Kind.STATE and swap is not None
        else t
        for kind, t in zip(kinds, tensors, strict=True)
    ]  # fmt: skip
