"""Cells of other people's packages run unchanged: outputs, final state and gradients are those of their own loop."""

from __future__ import annotations

import pytest
import torch
from torch.utils import _pytree as pytree

import elman
from bench.others import OTHERS, Other, loop


@pytest.mark.parametrize("other", OTHERS, ids=lambda other: other.name)
def test_a_cell_of_another_package(other: Other) -> None:
    pytest.importorskip(other.package.partition(".")[0])
    cell = other.cell(5, 7).double()
    x, state = other.problem(6, 3, 5, 7, torch.float64)
    leaves = pytree.tree_leaves((x, state))
    for leaf in leaves:
        leaf.requires_grad_()
    wanted, found = [*leaves, *(p for p in cell.parameters() if p.requires_grad)], []
    for run in (elman.Recurrent(cell), lambda x, state: loop(cell, x, state)):
        outputs, final = run(x, state)
        total = outputs.sin().sum() + sum(part.cos().sum() for part in pytree.tree_leaves(final))
        gradients = torch.autograd.grad(total, wanted, allow_unused=True, materialize_grads=True)
        found.append([outputs, *pytree.tree_leaves(final), *gradients])
    for mine, right in zip(*found, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-10, atol=1e-10)


def test_a_neuron_that_keeps_its_state_to_itself_is_refused() -> None:
    snntorch = pytest.importorskip("snntorch")

    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.U, self.neuron = torch.nn.Linear(5, 7), snntorch.Leaky(beta=0.9)

        def forward(self, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            return self.neuron(self.U(x), v)

    with pytest.raises(elman.ElmanError, match="keep what changes from step to step in the state"):
        elman.Recurrent(Layer())(torch.randn(4, 2, 5), torch.zeros(2, 7))
