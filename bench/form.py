"""What a contest is made of: a shape, what all contestants are given, and a contestant."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

Tensor = torch.Tensor
Run = Callable[[Tensor, Any], tuple[Tensor, Any]]
Made = tuple[list[Any], tuple[Any, ...]]  # outputs and final state; gradients of x, the state, every weight

OURS, LOOP, HOISTED, TORCH = "elman", "Python loop", "hoisted loop", "torch.nn"
JAX, COMPILED = "JAX scan", "compiled loop"
FLAX, FLAX_FAST, EQUINOX, EQUINOX_FAST = "flax nnx", "flax nnx, fast", "equinox", "equinox, fast"
KERAS, ONNX, CELL = "Keras on torch", "ONNX Runtime", "torch.nn.GRUCell"
PACKED, PADDED, NEWTON = "PackedSequence", "padded dense", "pararnn, Newton"


@dataclass(frozen=True)
class Shape:
    """B rows, I = H wide."""

    B: int
    H: int

    @staticmethod
    def parse(text: str) -> Shape:
        """`B16H64` -> Shape(16, 64)."""
        batch, _, hidden = text.strip().upper().removeprefix("B").partition("H")
        return Shape(int(batch), int(hidden))

    def __str__(self) -> str:
        return f"B{self.B} H{self.H}"


@dataclass(frozen=True)
class Problem:
    """What all contestants are given: x, the starting state, and the cotangents of outputs and final state."""

    x: Tensor
    state: Any
    cotangents: list[Tensor]

    def to(self, dtype: torch.dtype) -> Problem:
        def convert(tensor: Tensor) -> Tensor:
            return tensor.detach().to(dtype).requires_grad_(tensor.requires_grad)

        return Problem(
            convert(self.x), pytree.tree_map(convert, self.state), [convert(c) for c in self.cotangents]
        )

    def leaves(self) -> dict[str, Tensor]:
        return {"x": self.x, **{f"state {i}": s for i, s in enumerate(pytree.tree_leaves(self.state))}}


class Contestant(ABC):
    """One way to run a cell. weights: the cell's name of a parameter -> the tensor that this way computes with. lacks:
    the cell's parameters that this way has not; its results are compared without their gradients."""

    name: str
    weights: dict[str, Tensor]
    lacks: frozenset[str] = frozenset()

    @abstractmethod
    def training(self, problem: Problem) -> Callable[[], Made]:
        """A training step, ready to be timed: outputs, and gradients that are returned, not accumulated."""

    def results(self, problem: Problem) -> Made:
        """What a training step gives, to be compared: in the order of the cell's weights."""
        return self.training(problem)()

    @abstractmethod
    def inference(self, problem: Problem) -> Callable[[], Any]:
        """Outputs and final state without gradients, ready to be timed."""


@dataclass(frozen=True)
class Eager(Contestant):
    """A way that torch's autograd differentiates: `run(x [T, B, I], state) -> (outputs [T, B, H], final state)`."""

    name: str
    run: Run
    weights: dict[str, Tensor]

    def training(self, problem: Problem) -> Callable[[], Made]:
        leaves = [*problem.leaves().values(), *self.weights.values()]

        def step() -> Made:
            outputs, final = self.run(problem.x, problem.state)
            made = [outputs, *pytree.tree_leaves(final)]
            return made, torch.autograd.grad(made, leaves, problem.cotangents)

        return step

    def inference(self, problem: Problem) -> Callable[[], Any]:
        def call() -> Any:
            with torch.no_grad():
                return self.run(problem.x, problem.state)

        return call
