"""What is said to want a gradient is what the plain loop says, whichever inputs want one."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import elman
from tests.pairwise import with_more


class Two(nn.Module):
    """Two outputs, of which one hangs on W alone, and a state that brings U's gradient only from the second step on."""

    def __init__(self) -> None:
        super().__init__()
        self.W, self.U = nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(3))

    def forward(
        self, x: torch.Tensor, h: torch.Tensor
    ) -> tuple[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
        new = torch.tanh(h + self.U).floor() + x
        return (x * self.W, h * 0.5, new.detach(), (x > 0).to(x.dtype)), new


WANTS = list(itertools.product((False, True), repeat=4))
FEW = [wants for wants in WANTS if sum(wants) in (0, 1, 4)]  # every two values meet


@pytest.mark.parametrize("wants", with_more(FEW, [wants for wants in WANTS if wants not in FEW]))
def test_requires_grad_is_the_loops(wants: tuple[bool, ...]) -> None:
    cell = Two()
    x, h = torch.randn(4, 2, 3), torch.zeros(2, 3)
    for tensor, wanted in zip((x, h, cell.W, cell.U), wants, strict=True):
        tensor.requires_grad_(wanted)
    steps, state = [], h
    for t in range(4):
        outputs, state = cell(x[t], state)
        steps.append(outputs)
    expected = [torch.stack(each).requires_grad for each in zip(*steps, strict=True)]
    layer = elman.Recurrent(cell)
    for _ in range(3):  # the third goes the short way
        outputs, final = layer(x, h)
        assert [o.requires_grad for o in outputs] == expected
        assert final.requires_grad == state.requires_grad
    if sum(wants) == 1:
        outputs, final = torch.compile(layer, backend="eager", fullgraph=True)(x, h)
        assert [o.requires_grad for o in outputs] == expected
        assert final.requires_grad == state.requires_grad
