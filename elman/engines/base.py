"""What an engine is: it runs the loop of a plan, forward in whatever direction it is given; it knows no gradients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from elman.plan.form import Loop

Tensor = torch.Tensor


@dataclass(frozen=True)
class LoopResult:
    """finals: state -> its value after each row's last step, [B, …]. sums: result -> its sum over the steps."""

    finals: dict[str, Tensor]
    sums: dict[str, Tensor]


class Engine(ABC):
    """Runs loops. Engines are stateless for the user: the same loop and values give the same bits."""

    name: str

    @abstractmethod
    def supports(self, loop: Loop, device: torch.device) -> str | None:
        """None if the engine can run this loop on this device, else the reason why not."""

    @abstractmethod
    def run(
        self,
        loop: Loop,
        values: Mapping[str, Tensor],
        batch_sizes: Sequence[int],
        reverse: bool,
        out: Mapping[str, Tensor],
    ) -> LoopResult:
        """Run all steps.

        values: constants; sequences, packed `[N, …]` (or `[T, …]` without rows); starting values of states `[B, …]`.
        batch_sizes: rows at each step, never growing: rows 0 … batch_sizes[t]-1 run at step t.
        reverse: from the last step to the first. A row then starts, from its starting value, at its last step.
        out: one tensor for each of `loop.emits`, packed, to write every step's value into.
        """
