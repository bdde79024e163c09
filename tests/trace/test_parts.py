"""Operations of PyTorch as what they are made of while a step is traced: the same numbers and derivatives."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

import elman
from elman.trace import parts, quantiles
from tests import eager

Tensor = torch.Tensor


def cell(gates: int, states: int) -> tuple[Any, ...]:
    torch.manual_seed(0)
    weights = [
        torch.randn(size).double().requires_grad_()
        for size in ((gates * 4, 3), (gates * 4, 4), (gates * 4,), (gates * 4,))
    ]
    hx = [torch.randn(2, 4).double().requires_grad_() for _ in range(states)]
    return torch.randn(2, 3).double().requires_grad_(), hx[0] if states == 1 else hx, *weights


POINTS = torch.tensor([0.0, -0.0, 1e-9, -1e-9, 3.0, -3.0, 40.0, -40.0, 800.0, -800.0], dtype=torch.float64)


@pytest.mark.parametrize(
    ("made", "right", "given"),
    [
        (parts.gru_cell, torch.gru_cell, cell(3, 1)),
        (parts.lstm_cell, torch.lstm_cell, cell(4, 2)),
        (parts.logsigmoid, F.logsigmoid, (POINTS.clone().requires_grad_(),)),
    ],
    ids=["gru_cell", "lstm_cell", "logsigmoid"],
)
def test_other_devices_see_these(
    made: Callable[..., Any], right: Callable[..., Any], given: tuple[Any, ...]
) -> None:
    """What stands for a kernel that CUDA alone has; CPUs compute with PyTorch's own function."""
    leaves = [leaf for one in given for leaf in (one if isinstance(one, list) else [one])]
    found = []
    for function in (made, right):
        values = function(*given)
        values = values if isinstance(values, tuple) else (values,)
        gradients = torch.autograd.grad(sum((v * v.detach().cos()).sum() for v in values), leaves)
        found.append([*values, *gradients])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


QS = [
    0.3,
    0.0,
    1.0,
    torch.tensor(0.4).double(),
    torch.tensor([0.1, 0.5, 0.8]).double(),
    torch.tensor([0.1]).double(),
]


@pytest.mark.parametrize("interpolation", ["linear", "midpoint", "nearest"])
@pytest.mark.parametrize("name", ["quantile", "nanquantile"])
def test_quantiles(name: str, interpolation: str) -> None:
    whole = torch.randn(3, 4, 5).double()
    holed = whole.clone()
    holed[0, 1, 2] = holed[1, :, 0] = holed[2, 2] = torch.nan
    made, right = getattr(quantiles, name), getattr(torch, name)
    for x, q, dim, keepdim in itertools.product((whole, holed), QS, (0, 1, -1, -2, None), (False, True)):
        given = {"dim": dim, "keepdim": keepdim, "interpolation": interpolation}
        torch.testing.assert_close(
            made(x, q, **given), right(x, q, **given), equal_nan=True, rtol=1e-14, atol=1e-14
        )


@pytest.mark.parametrize("sizes", [(2, 6), (2, 6, 3), (2, 6, 3, 2)], ids=str)
def test_group_norm(sizes: tuple[int, ...]) -> None:
    x, weight, bias = torch.randn(sizes).double(), torch.randn(6).double(), torch.randn(6).double()
    ours = parts._PARTS[F.group_norm]
    for groups in (1, 2, 3):
        for more in ((), (weight,), (None, bias), (weight, bias, 0.1)):
            torch.testing.assert_close(ours(x, groups, *more), F.group_norm(x, groups, *more))
    for wrong in (0, 4):
        with pytest.raises(Exception) as right:
            torch.group_norm(x, wrong)
        with pytest.raises(type(right.value), match=re.escape(str(right.value).split("\n")[0])):
            ours(x, wrong)


def test_they_are_taken_on_other_devices_alone() -> None:
    assert parts._PARTS[torch.gru_cell](*cell(3, 1)).equal(torch.gru_cell(*cell(3, 1)))
    meta = [t.to("meta") for t in cell(3, 1)]
    assert parts._PARTS[torch.gru_cell](*meta).shape == (2, 4)


class Einsum(torch.nn.Module):
    """Three operands, in an order that opt_einsum would choose by their sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.W = torch.nn.Linear(6, 6).double()

    def forward(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        return torch.einsum("bi,ij,bj->bi", h.sigmoid(), self.W.weight, torch.tanh(x + h))


class Checkpointed(Einsum):
    """Computes itself again in its backward pass, of the weights of then."""

    def forward(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        return checkpoint(lambda x, h: torch.tanh(self.W(h) + x), x, h, use_reentrant=False)  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", [Einsum, Checkpointed])
def test_what_pytorch_does_around_operations_is_none_of_the_steps(kind: type[torch.nn.Module]) -> None:
    cell, x, h = kind(), torch.randn(5, 3, 6).double(), torch.randn(3, 6).double()
    found = []
    for run in (elman.Recurrent(cell), lambda x, h: eager.unroll(cell, x, h)):
        outputs, _ = run(x, h)
        found.append((outputs, *torch.autograd.grad(outputs.square().sum(), cell.W.weight)))
    torch.testing.assert_close(*found)
