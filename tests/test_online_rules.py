"""Approximate rules of learning while it runs, each against its paper's equations, written as a plain loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev

import elman
from elman import cells
from elman.online import Online, RandomFeedback
from tests.cases import CASES
from tests.learning import B, T, loss_fn, same, taken

Tensor = torch.Tensor


def derivatives(cell: nn.Module, x: Tensor, s: Tensor, parts: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """(s', ∂s'/∂s `[n, n]`, ∂s'/∂θ `[n, P]`) of one row, by jacrev through the cell itself."""
    weights = dict(cell.named_parameters())

    def step(weights: dict[str, Tensor], s: Tensor) -> Tensor:
        state = s.chunk(parts) if parts > 1 else s
        state = tuple(p[None] for p in state) if parts > 1 else state[None]
        made = functional_call(cell, weights, (x[None], state))
        made = made[1] if parts > 1 and isinstance(made[1], tuple) else made
        return torch.cat([p[0] for p in made]) if parts > 1 else made[0]

    direct = jacrev(step, argnums=0)(weights, s)
    return (
        step(weights, s).detach(),
        jacrev(step, argnums=1)(weights, s).detach(),
        torch.cat([d.flatten(1) for d in direct.values()], 1).detach(),
    )


def by_hand(
    cell: nn.Module, x: Tensor, s: Tensor, losses: list[Callable[[Tensor], Tensor]],
    carried: Callable[[Tensor, Tensor, Tensor], Tensor], parts: int = 1,
) -> Tensor:  # fmt: skip
    """Σ dL/ds(t) M(t) of one row, where M(t) = carried(J, ∂s/∂θ, M(t-1))."""
    total, M = 0.0, None
    for t in range(len(x)):
        s, J, direct = derivatives(cell, x[t], s, parts)
        M = carried(J, direct, torch.zeros_like(direct) if M is None else M)
        leaf = s.clone().requires_grad_()
        (g,) = torch.autograd.grad(losses[t](leaf), leaf)
        total = total + g @ M
    return total


def rows_learned(cell: nn.Module, rule: str, x: Tensor, state: Any, loss: Callable[..., Tensor]) -> Tensor:
    online = Online(elman.Recurrent(cell), rule, state=state)
    for t in range(len(x)):
        online.step(x[t], torch.tensor(float(t + 1)), loss)
    return torch.cat([g.flatten() for g in taken(cell)])


def test_snap_1() -> None:
    """M = P ⊙ (J M + ∂s/∂θ), P where a parameter reaches a unit in one step (Menick et al. 2020, eq. 5)."""
    torch.manual_seed(0)
    cell = CASES["lstm"].make(2, 3).double()
    x, s = torch.randn(T, B, 2).double(), torch.randn(B, 6).double()
    got = rows_learned(cell, "snap-1", x, tuple(s.chunk(2, 1)), lambda o, w: (o * w).sin().sum())
    P = torch.zeros(1)
    for _ in range(3):  # of what may be, not of what is
        P = P + derivatives(cell, torch.randn(2).double(), torch.randn(6).double(), 2)[2].abs()
    mask = (P > 0).double()
    losses = [lambda h, w=t + 1.0: (h[:3] * w).sin().sum() for t in range(T)]
    expected = sum(
        by_hand(cell, x[:, b], s[b], losses, lambda J, direct, M: mask * (J @ M + direct), 2)
        for b in range(B)
    )
    same([got], [expected])


def test_e_prop_of_an_lstm() -> None:
    """ε(t) = f ⊙ ε(t-1) + ∂c/∂θ, and what the output gate does at once (Bellec et al. 2020, eq. 14 and supplement)."""
    torch.manual_seed(0)
    cell = cells.LSTM(2, 3).double()
    x, state = torch.randn(T, B, 2).double(), (torch.randn(B, 3).double(), torch.randn(B, 3).double())
    got = rows_learned(cell, "e-prop", x, state, lambda o, w: (o * w).sin().sum())
    total = torch.zeros_like(got)
    for b in range(B):
        h, c = state[0][b], state[1][b]
        eligibility = torch.zeros(3, len(got)).double()
        for t in range(T):
            s, J, direct = derivatives(cell, x[t, b], torch.cat([h, c]), 2)
            f, slope = J[3:, 3:].diagonal(), J[:3, 3:].diagonal() / J[3:, 3:].diagonal()
            before, eligibility = eligibility, f[:, None] * eligibility + direct[3:]
            traces = (slope * f)[:, None] * before + direct[:3]
            h, c = s.chunk(2)
            total += (torch.cos(h * (t + 1.0)) * (t + 1.0)) @ traces
    same([got], [total])


def test_rflo() -> None:
    """p(t) = (1 - α) p(t-1) + α φ'(u) h(t-1), ΔW = (B e) p (Murray 2019, eq. 7 to 9), with its random feedback."""
    torch.manual_seed(0)
    cell, readout = cells.Leaky(2, 3, alpha=0.3).double(), RandomFeedback(3, 2).double()
    x, y, h = torch.randn(T, 2).double(), torch.randn(T, 2).double(), torch.zeros(3).double()
    online = Online(elman.Recurrent(cell), "rflo", state=h[None])
    for t in range(T):
        online.step(x[t : t + 1], y[t], lambda h, target: 0.5 * (readout(h)[0] - target).square().sum())
    names = [name for name, _ in cell.named_parameters()]
    got = dict(zip(names, taken(cell), strict=True))
    weights, dW = dict(cell.named_parameters()), torch.zeros(3, 3).double()
    p = torch.zeros(3, 3).double()
    U, W, b = (next(w.detach() for n, w in weights.items() if n.split(".")[0] == k) for k in ("U", "W", "b"))
    for t in range(T):
        u = U @ x[t] + W @ h + b
        p = 0.7 * p + 0.3 * (1 - torch.tanh(u) ** 2)[:, None] * h[None]
        h = 0.7 * h + 0.3 * torch.tanh(u)
        error = readout.weight @ h + readout.bias - y[t]
        dW += (readout.feedback.T @ error)[:, None] * p
    torch.testing.assert_close(got["W"], dW.detach(), rtol=1e-10, atol=1e-10)
    assert not torch.allclose(readout.weight, readout.feedback)
    torch.testing.assert_close(readout(h), torch.nn.functional.linear(h, readout.weight, readout.bias))


class SeenCells(cells.LSTM):
    """An LSTM whose output is c, of which h is a function without a product of weights."""

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> Any:
        after = super().forward(x, state)
        return after[1], after


def test_rflo_keeps_the_diagonal_alone() -> None:
    """M = diag(J) M + ∂s/∂θ where c goes to c by f, and to h as well, which is left away."""
    torch.manual_seed(0)
    cell = SeenCells(2, 3).double()
    x, s = torch.randn(T, B, 2).double(), torch.randn(B, 6).double()
    got = rows_learned(cell, "rflo", x, tuple(s.chunk(2, 1)), lambda c, w: (c * w).sin().sum())
    kept = torch.tensor([0.0, 0, 0, 1, 1, 1]).double().diag()
    losses = [lambda s, w=t + 1.0: (s[3:] * w).sin().sum() for t in range(T)]
    expected = sum(
        by_hand(cell, x[:, b], s[b], losses, lambda J, direct, M: (J * kept) @ M + direct, 2)
        for b in range(B)
    )
    same([got], [expected])


def test_uoro() -> None:
    """s̃ = ρ₀ J s̃ + ρ₁ ν, θ̃ = θ̃/ρ₀ + νᵀ ∂s/∂θ / ρ₁ (Tallec and Ollivier 2017, algorithm 1), for the same signs ν."""
    torch.manual_seed(0)
    cell = cells.Elman(2, 3).double()
    x, s, tiny = torch.randn(T, 1, 2).double(), torch.randn(1, 3).double(), 1e-7
    online = Online(elman.Recurrent(cell), "uoro", state=s, generator=torch.Generator().manual_seed(5))
    for t in range(T):
        online.step(x[t], torch.tensor(t + 1.0), lambda o, w: (o * w).sin().sum())
    got = torch.cat([g.flatten() for g in taken(cell)])
    generator, total = torch.Generator().manual_seed(5), torch.zeros_like(got)
    h, s_, theta = s[0], torch.zeros(3).double(), torch.zeros_like(got)
    for t in range(T):
        after, J, direct = derivatives(cell, x[t, 0], h)
        g = torch.cos(after * (t + 1.0)) * (t + 1.0)
        total += (g @ J @ s_) * theta + g @ direct
        signs = torch.randint(0, 2, (1, 3), generator=generator)[0].double() * 2 - 1
        moved, more = J @ s_, signs @ direct
        a = (theta.norm() / (moved.norm() + tiny)).sqrt() + tiny
        b = (more.norm() / (signs.norm() + tiny)).sqrt() + tiny
        s_, theta, h = a * moved + b * signs, theta / a + more / b, after
    same([got], [total])


@pytest.mark.conformance
def test_uoro_is_right_on_average() -> None:
    torch.manual_seed(0)
    cell = cells.Elman(2, 3).double()
    x, s = torch.randn(4, 2, 2).double(), torch.randn(2, 3).double()

    def run(rule: str, seed: int = 0) -> Tensor:
        online = Online(elman.Recurrent(cell), rule, state=s, generator=torch.Generator().manual_seed(seed))
        for t in range(4):
            online.step(x[t], torch.tensor(1.0), loss_fn)
        return torch.cat([g.flatten() for g in taken(cell)])

    right, found = run("rtrl"), torch.stack([run("uoro", seed) for seed in range(60)])
    error = found.std(0) / len(found) ** 0.5
    # Three standard errors, of which a few in a thousand are exceeded by chance.
    assert ((found.mean(0) - right).abs() <= 3 * error + 1e-12).double().mean() > 0.95
    assert (found.mean(0) - right).norm() < 3 * error.norm()
