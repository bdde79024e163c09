"""What a step may compute within itself: complex numbers of its own, gradients of energies; as in the loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import jacfwd, jacrev

import elman
from elman.errors import TraceError
from tests import eager
from tests.pairwise import with_more

Tensor = torch.Tensor
EXACT = {"rtol": 1e-10, "atol": 1e-10}


class Within(nn.Module):
    """A step with a weight, an input and an angle; what it computes of them is given."""

    hidden_size = 4

    def __init__(self, compute: Callable[[Any, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.U, self.W = nn.Linear(3, 4, dtype=torch.float64), nn.Linear(4, 4, dtype=torch.float64)
        self.angle = nn.Parameter(torch.rand(4, dtype=torch.float64))
        self.compute = compute

    def energy(self, h: Tensor, u: Tensor) -> Tensor:
        return (torch.tanh(self.W(h)) * u * self.angle).sum(-1) + h.square().square().sum(-1)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.compute(self, self.U(x), self.W(h))


def agrees(cell: nn.Module, state: Tensor | None = None) -> None:
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    start = torch.zeros(2, 4, dtype=torch.float64) if state is None else state
    expected, got = eager.unroll(cell, x, start)[0], elman.Recurrent(cell)(x, state)[0]
    torch.testing.assert_close(got, expected, **EXACT)
    ours, right = (
        torch.autograd.grad(o.square().sum(), list(cell.parameters()), allow_unused=True)
        for o in (got, expected)
    )
    torch.testing.assert_close(ours, right, **EXACT)


COMPLEX: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "turned": lambda cell, u, h: (torch.exp(1j * cell.angle) * h).real + u,
    "the number last": lambda cell, u, h: (torch.exp(cell.angle * 1j) * torch.complex(h, u)).imag,
    "of the state": lambda cell, u, h: torch.exp(1j * (cell.angle * h)).real + u,
    "absolute": lambda cell, u, h: (torch.exp(1j * cell.angle) * h + (2 - 0.5j)).abs() - u,
    "as real numbers": lambda cell, u, h: (
        torch.view_as_real(torch.exp(1j * cell.angle) * (h + 0j)).sum(-1) + u
    ),
}


@pytest.mark.parametrize("name", with_more(["turned"], [name for name in COMPLEX if name != "turned"]))
def test_complex_numbers_of_a_step(name: str) -> None:
    agrees(Within(COMPLEX[name]))


class LinearUnit(nn.Module):
    """h(t) = λ h(t-1) + B x(t), o(t) = Re C h(t), all complex, as linear recurrent units have it."""

    def __init__(self) -> None:
        super().__init__()
        self.size, self.angle = (nn.Parameter(torch.rand(4, dtype=torch.float64)) for _ in range(2))
        self.B = nn.Parameter(torch.randn(4, 3, dtype=torch.complex128))
        self.C = nn.Parameter(torch.randn(2, 4, dtype=torch.complex128))

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        turn = torch.exp(-torch.exp(self.size) + 1j * torch.exp(self.angle))
        h = turn * h + x.to(self.B.dtype) @ self.B.T
        return (h @ self.C.T).real, h


def test_a_complex_state_that_is_turned() -> None:
    agrees(LinearUnit(), torch.zeros(2, 4, dtype=torch.complex128))


def _recorded(cell: Any, u: Tensor, h: Tensor) -> Tensor:
    with torch.enable_grad():
        point = h if h.requires_grad else h.detach().requires_grad_()
        return h - 0.1 * torch.autograd.grad(cell.energy(point, u).sum(), point, create_graph=True)[0]


def _curved(outer: Callable[..., Any], inner: Callable[..., Any], cell: Any, h: Tensor) -> Tensor:
    """Second derivatives [B, 4, 4, 4] of a function of each row, summed over two of them."""
    return torch.func.vmap(outer(inner(lambda h: cell.W(h).tanh() * h.sum())))(h).sum((1, 2))


ENERGIES: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "torch.func.grad": lambda cell, u, h: h - 0.1 * torch.func.grad(lambda h: cell.energy(h, u).sum())(h),
    "autograd.grad": _recorded,
    "a row at a time": lambda cell, u, h: h - 0.1 * torch.func.vmap(torch.func.grad(cell.energy))(h, u),
    "Jacobians of rows": lambda cell, u, h: (
        u + 0.1 * torch.func.vmap(torch.func.jacrev(lambda h: cell.W(h).tanh() * h.sum()))(h).sum(1)
    ),
    "Jacobians of rows, forward": lambda cell, u, h: (
        u + 0.1 * torch.func.vmap(torch.func.jacfwd(lambda h: cell.W(h).tanh()))(h).sum(1)
    ),
    "second derivatives of rows": lambda cell, u, h: u + 0.1 * _curved(jacfwd, jacrev, cell, h),
    "Hessians of rows": lambda cell, u, h: (
        u - 0.1 * torch.func.vmap(torch.func.hessian(cell.energy))(h, u).mul(0.1).tanh().sum(-1)
    ),
}


@pytest.mark.parametrize(
    "name", with_more(few := ["torch.func.grad", "Jacobians of rows"], sorted(ENERGIES.keys() - few))
)
def test_a_step_along_the_gradient_of_an_energy(name: str) -> None:
    """Summed over all rows: of the sum itself nothing is left, so no rows meet. And by others of its derivatives."""
    agrees(Within(ENERGIES[name]))


@pytest.mark.parametrize("inner", [jacrev, jacfwd])
def test_reverse_derivatives_of_derivatives_of_rows_are_refused_with_a_mend(
    inner: Callable[..., Any],
) -> None:
    """The mend is tested above, as second derivatives of rows."""
    step = Within(lambda cell, u, h: u + 0.1 * _curved(jacrev, inner, cell, h))
    with pytest.raises(TraceError, match="PyTorch's grad asks how large the batch is") as caught:
        agrees(step)
    assert "torch.func.vmap(outer(inner(" in str(caught.value.where)
    assert "jacfwd(jacrev(f))" in str(caught.value.mend)


def _pushed(function: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor, Tensor], Tensor]:
    """A step that takes the derivative of a function along u forward."""

    def compute(cell: Any, u: Tensor, h: Tensor) -> Tensor:
        value, slope = torch.func.jvp(lambda h: function(cell, h), (h,), (u,))
        return torch.tanh(value) + 0.1 * slope

    return compute


FORWARD: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "linear": _pushed(lambda cell, h: cell.W(h)),
    "no bias": _pushed(lambda cell, h: nn.functional.linear(h, cell.W.weight)),
    "a network": _pushed(lambda cell, h: cell.W(torch.sigmoid(cell.W(h)))),
    "numbers and weights": _pushed(lambda cell, h: 2 * h / (1 + h.square() * cell.angle) - cell.angle),
    "abs": _pushed(lambda cell, h: cell.W(h).abs() + 1),
    "group norm": _pushed(lambda cell, h: nn.functional.group_norm(h, 2, cell.angle)),
    "attention": _pushed(
        lambda cell, h: nn.functional.scaled_dot_product_attention(*(3 * [cell.W(h).unsqueeze(1)])).squeeze(1)
    ),
    "convolution": _pushed(
        lambda cell, h: nn.functional.conv1d(h.unsqueeze(1), cell.W.weight[:1, None, :3], padding=1).squeeze(1)
    ),
    "of a derivative": _pushed(
        lambda cell, h: torch.func.jvp(lambda h: torch.tanh(cell.W(h)), (h,), (h.cos(),))[1]
    ),
    "along a weight": lambda cell, u, h: torch.func.jvp(
        lambda W: torch.tanh(nn.functional.linear(h, W, cell.W.bias)), (cell.W.weight,), (cell.W.weight.cos(),)
    )[1] + u,
}  # fmt: skip


@pytest.mark.parametrize(
    "name", with_more(few := ["linear", "numbers and weights"], sorted(FORWARD.keys() - few))
)
def test_a_step_that_takes_derivatives_forward(name: str) -> None:
    """torch.func.jvp within the step: the zeros that PyTorch has for what does not change want no batch size."""
    agrees(Within(FORWARD[name]))


def test_a_derivative_forward_costs_no_products_with_zeros() -> None:
    """What does not change is left away: the layer runs on h and on the direction, and x enters."""
    step = Within(FORWARD["linear"])
    circuit = elman.trace(
        step, torch.zeros(2, 3, dtype=torch.float64), torch.zeros(2, 4, dtype=torch.float64)
    )
    products = [str(node.target) for node in circuit.graph.nodes if "mm" in str(node.target)]
    assert len(products) == 4, circuit


def test_layer_norm_pushed_forward_is_refused_by_name() -> None:
    """PyTorch's gradient of its derivative forward is wrong, so that a circuit of it and the cell would differ."""
    norm, step = nn.functional.layer_norm, torch.zeros(5, 2, 3, dtype=torch.float64)
    with pytest.raises(elman.ElmanError, match="layer_norm asks how large the batch is") as told:
        elman.Recurrent(Within(_pushed(lambda cell, h: norm(h, (4,), cell.angle, None, 1e-5))))(step)
    assert told.value.mend is not None
    assert "rsqrt()" in told.value.mend
    agrees(
        Within(
            _pushed(
                lambda cell, x: (
                    (x - x.mean(-1, True))
                    * (x.var(-1, correction=0, keepdim=True) + 1e-5).rsqrt()
                    * cell.angle
                )
            )
        )
    )


TOGETHER: dict[str, Callable[[Tensor], Tensor]] = {
    "squared": lambda energies: energies.sum().square(),
    "of one row": lambda energies: energies[0],
    "of the first rows": lambda energies: energies[:2].sum(),
    "the largest": lambda energies: energies.max(),
}


@pytest.mark.parametrize(
    "name", with_more(["of one row"], [name for name in TOGETHER if name != "of one row"])
)
def test_an_energy_that_rows_have_together_is_refused(name: str) -> None:
    total = TOGETHER[name]
    cell = Within(lambda cell, u, h: h - torch.func.grad(lambda h: total(cell.energy(h, u)))(h))
    with pytest.raises(elman.ElmanError, match=r"of the batch|batch size"):
        elman.Recurrent(cell)(torch.randn(5, 2, 3, dtype=torch.float64))


def test_rows_that_are_made_of_one_differ_from_each_other() -> None:
    cell = Within(lambda cell, u, h: u + h * nn.functional.pad(torch.ones(1, 1), (0, 0, 0, h.shape[0] - 1)))
    with pytest.raises(elman.ElmanError, match="runs along the batch"):
        elman.Recurrent(cell)(torch.randn(5, 2, 3, dtype=torch.float64))


def test_an_energy_whose_sum_is_used_is_refused() -> None:
    cell = Within(lambda cell, u, h: h - cell.energy(h, u).sum())
    with pytest.raises(elman.ElmanError, match="mixes the rows"):
        elman.Recurrent(cell)(torch.randn(5, 2, 3, dtype=torch.float64))


def test_a_gradient_that_nobody_records_names_the_way_out() -> None:
    cell = Within(lambda cell, u, h: torch.autograd.grad(cell.energy(h, u).sum(), h)[0])
    with pytest.raises(elman.ElmanError, match="does not require grad") as told:
        elman.Recurrent(cell)(torch.randn(5, 2, 3, dtype=torch.float64))
    assert told.value.mend is not None
    assert "torch.func.grad" in told.value.mend
