"""What a layer has of a budget of memory: its own, or for the time of a call what a layer around it grants."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import nn

from elman.segments.segment import Memory, as_number, read_memory

# Layer -> what it has in the calls that are going on: of each thread its own, so nothing is left behind on a layer.
GRANTED: ContextVar[Mapping[Any, Memory] | None] = ContextVar("granted", default=None)


class Budget:
    """`memory`, of whatever runs over sequences: see `elman.Recurrent`."""

    _memory: Memory = None
    memory_number = 0  # the same for compiled graphs

    @property
    def memory(self) -> Memory:
        """The budget of a call in bytes, the length of its segments, or None."""
        granted = GRANTED.get()
        return self._memory if granted is None else granted.get(self, self._memory)

    @memory.setter
    def memory(self, memory: str | Memory) -> None:
        self._memory = read_memory(memory)
        self.memory_number = as_number(self._memory)


@contextmanager
def granted(budgets: Mapping[Any, Memory]) -> Iterator[None]:
    """Inside, these layers have these budgets, whatever their own are."""
    before = GRANTED.set({**(GRANTED.get() or {}), **budgets})
    try:
        yield
    finally:
        GRANTED.reset(before)


def set_memory(model: nn.Module, memory: str | Memory) -> None:
    """Give the recurrences of a model a budget each: those that are not parts of others."""
    if isinstance(model, Budget):
        model.memory = memory
        return
    for part in model.children():
        set_memory(part, memory)
