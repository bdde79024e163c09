"""What a type checker says of elman's functions: `make types` reads this file with the package, and nobody runs it."""

from __future__ import annotations

from typing import assert_type

import torch

import elman
from elman.draw import Drawing
from elman.draw.picture import Picture
from elman.draw.scene import Scene
from elman.dynamics import FixedPoints, GradientFlow, Lyapunov


def recurrences_are_drawings(
    layer: elman.Recurrent, stack: elman.Stack, cell: torch.nn.Module, circuit: elman.Circuit, x: torch.Tensor
) -> None:
    assert_type(elman.draw(layer), Drawing)
    assert_type(elman.draw(stack, x, level="ops"), Drawing)
    assert_type(elman.draw(cell, x, unfold=3), Drawing)
    assert_type(elman.draw(elman.adjoint(circuit)), Drawing)
    assert_type(elman.draw(elman.unfold(circuit, 3)), Drawing)
    assert_type(elman.draw(circuit).scene, Scene)


def what_was_found_out_is_a_picture(points: FixedPoints, spectrum: Lyapunov, flow: GradientFlow) -> None:
    assert_type(elman.draw(points), Picture)
    assert_type(elman.draw(spectrum), Picture)
    assert_type(elman.draw(flow), Picture)
