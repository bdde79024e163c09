"""Dynamics: Jacobians against torch.func, exponents and fixed points of systems whose values are known, pictures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch import nn
from torch.func import jacrev
from torch.utils import _pytree as pytree

import elman
from elman.dynamics import exponents, factors, fixed_points, gradient_flow, jacobian, lyapunov, trajectory
from elman.dynamics.pictures import portrait
from elman.errors import DataError, InputError, InputTypeError, NotSupported, StateError
from tests.zoo import Henon

Tensor = torch.Tensor
F64 = torch.float64


class Logistic(nn.Module):
    """May 1976."""

    def __init__(self, r: float = 4.0) -> None:
        super().__init__()
        self.r = r

    def forward(self, x: None, s: Tensor) -> Tensor:
        return self.r * s * (1 - s)


class Lorenz(nn.Module):
    """Lorenz 1963, a step of 0.01 by Runge and Kutta's method of fourth order."""

    dt = 0.01

    def forward(self, x: None, s: Tensor) -> Tensor:
        a = self.flow(s)
        b = self.flow(s + self.dt / 2 * a)
        c = self.flow(s + self.dt / 2 * b)
        d = self.flow(s + self.dt * c)
        return s + self.dt / 6 * (a + 2 * b + 2 * c + d)

    def flow(self, s: Tensor) -> Tensor:
        x, y, z = s.unbind(-1)
        return torch.stack([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z], -1)


class Counting(nn.Module):
    """A state that is a number of steps, one nothing of before reaches, and one that is smooth."""

    def __init__(self) -> None:
        super().__init__()
        self.W = nn.Linear(3, 3)

    def forward(self, x: Tensor, s: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        h = torch.tanh(self.W(s["h"]) + x + s["last"] / (1 + s["steps"].unsqueeze(-1)))
        return h, {"h": h, "steps": s["steps"] + 1, "last": x}


def henon() -> elman.Recurrent:
    cell = Henon(0, 0)
    with torch.no_grad():
        cell.a.fill_(1.4)
    return elman.Recurrent(cell.double())


def by_hand(cell: nn.Module, x: Tensor, state: Any) -> Tensor:
    """∂s(t)/∂s(t-1), `[B, n, n]`, a row at a time by reverse mode."""
    leaves, spec = pytree.tree_flatten(state)
    real = [i for i, leaf in enumerate(leaves) if leaf.is_floating_point()]

    def step(b: int, s: Tensor) -> Tensor:
        parts = s.split([leaves[i][b].numel() for i in real])
        own = [leaf[b : b + 1] for leaf in leaves]
        for i, part in zip(real, parts, strict=True):
            own[i] = part.reshape(own[i].shape)
        made = cell(x[b : b + 1], pytree.tree_unflatten(own, spec))
        made = made if isinstance(made, Tensor) or len(made) != 2 or spec.type is tuple else made[1]
        after = pytree.tree_leaves(made)[-len(leaves) :]
        return torch.cat([after[i].flatten() for i in real])

    starts = [torch.cat([leaves[i][b].flatten() for i in real]) for b in range(len(x))]
    return torch.stack([jacrev(lambda s, b=b: step(b, s))(start) for b, start in enumerate(starts)])


# --- Jacobians -----------------------------------------------------------------------------------------------------

LSTM = elman.cells.LSTM(3, 4).double()
COUNTING = Counting().double()


def random_state(cell: nn.Module, batch: int) -> Any:
    def draw(width: int) -> Tensor:
        return torch.randn(batch, width, dtype=F64)

    if isinstance(cell, Counting):
        return {"h": draw(3), "steps": torch.tensor([2, 5])[:batch], "last": draw(3)}
    return draw(4), draw(4)


@pytest.mark.parametrize("cell", [LSTM, COUNTING], ids=["lstm", "counting"])
def test_a_jacobian_is_that_of_torch_func(cell: nn.Module) -> None:
    x, state = torch.randn(2, 3, dtype=F64), random_state(cell, 2)
    found = jacobian(elman.Recurrent(cell), x, state)
    torch.testing.assert_close(found, by_hand(cell, x, state), rtol=0, atol=1e-12)
    assert found.shape == (2, *[{LSTM: 8, COUNTING: 6}[cell]] * 2)


def test_a_stack_is_one_map() -> None:
    torch.manual_seed(0)
    stack = elman.Stack(*map(elman.Recurrent, (elman.cells.Elman(3, 4), elman.cells.LSTM(4, 2)))).double()
    x = torch.randn(2, 3, dtype=F64)
    state = (torch.randn(2, 4, dtype=F64), (torch.randn(2, 2, dtype=F64), torch.randn(2, 2, dtype=F64)))
    found = jacobian(stack, x, state)
    assert found.shape == (2, 8, 8)
    assert not found[:, :4, 4:].any(), "nothing of an upper layer reaches a lower one"
    lower = jacobian(elman.Recurrent(stack.part(0).cell), x, state[0])
    torch.testing.assert_close(found[:, :4, :4], lower)


def test_a_trajectory_is_every_state() -> None:
    rnn = elman.Recurrent(LSTM, batch_first=True)
    x = torch.randn(2, 5, 3, dtype=F64)
    h, c = trajectory(rnn, x)
    outputs, final = rnn(x)
    torch.testing.assert_close(h.transpose(0, 1), outputs)
    torch.testing.assert_close((h[-1], c[-1]), final)


# --- exponents -----------------------------------------------------------------------------------------------------


def test_the_logistic_map_has_ln_2() -> None:
    starts = torch.linspace(0.1, 0.87, 16, dtype=F64).unsqueeze(-1)
    found = lyapunov(elman.Recurrent(Logistic()), None, starts, steps=2000)
    assert found.exponents.tolist() == pytest.approx([math.log(2)], rel=0.01)
    assert found.each.shape == (16, 1)
    assert 0 < found.error[0] < 0.01
    assert found.dimension == 1.0
    assert found.entropy == pytest.approx(math.log(2), rel=0.01)


class Turned(nn.Module):
    """An orthogonal map, or what else W is, without input."""

    def __init__(self, W: torch.Tensor) -> None:
        super().__init__()
        self.W, self.hidden_size = nn.Parameter(W), len(W)

    def forward(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        return h @ self.W.T + x


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("n", [2, 16])
def test_a_rotation_keeps_all_directions(n: int, dtype: torch.dtype) -> None:
    """Its exponents are zero, with the sign of rounding."""
    Q = torch.linalg.qr(torch.randn(n, n, dtype=F64)).Q.to(dtype)
    found = lyapunov(
        elman.Recurrent(Turned(Q)), torch.zeros(100, 3, n, dtype=dtype), torch.randn(3, n, dtype=dtype)
    )
    assert found.exponents.abs().max() < found.rounding < 1e-5
    assert found.dimension == n
    shrinking = Turned((1 - 1e-4) * Q)
    assert lyapunov(elman.Recurrent(shrinking), torch.zeros(100, 1, n, dtype=dtype)).dimension == 0


@pytest.mark.parametrize("every", [None, 3])
def test_the_henon_map(every: int | None) -> None:
    starts = torch.linspace(-0.1, 0.1, 16, dtype=F64).unsqueeze(-1)
    found = lyapunov(henon(), None, (starts, starts.flip(0)), steps=2000, every=every)
    assert found.exponents.tolist() == pytest.approx([0.419, -1.623], rel=0.01)
    assert found.exponents.sum().item() == pytest.approx(
        math.log(0.3), abs=1e-6
    )  # |det J| is b at every step
    assert found.dimension == pytest.approx(1.258, rel=0.01)


@pytest.mark.conformance
def test_lorenz_has_a_zero_exponent() -> None:
    starts = torch.tensor([1.0, 1.0, 20.0], dtype=F64) + torch.randn(16, 3, dtype=F64)
    found = lyapunov(elman.Recurrent(Lorenz()), None, starts, steps=6000)
    first, zero, last = (found.exponents / Lorenz.dt).tolist()
    assert first == pytest.approx(0.906, rel=0.02)  # to 1 % with 20 000 steps: docs/dynamics.md
    assert abs(zero) < 0.01
    assert last == pytest.approx(-14.57, rel=0.01)


def test_exponents_are_those_of_a_loop_over_jacobians() -> None:
    torch.manual_seed(0)
    cell = elman.cells.GRU(3, 6)
    x, h = torch.randn(40, 2, 3), torch.randn(2, 6)
    found = lyapunov(elman.Recurrent(cell), x, h, k=2, warm=0, dtype=F64)
    rnn = elman.Recurrent(cell.double())
    s, q, total = h.double(), None, torch.zeros(2, 2, dtype=F64)
    generator = torch.Generator().manual_seed(0)
    q = torch.linalg.qr(torch.randn(2, 6, 2, generator=generator, dtype=F64)).Q
    for x_t in x.double():
        q, r = torch.linalg.qr(jacobian(rnn, x_t, s) @ q)
        total += r.diagonal(dim1=-2, dim2=-1).abs().log()
        s = cell(x_t, s)
    torch.testing.assert_close(found.each, total / 40)


def test_what_no_stretch_can_hold_is_cut() -> None:
    """Directions that part by e^40 a step are lost in a longer stretch; every is 1 of itself."""
    cell = elman.cells.Elman(1, 2).double()
    with torch.no_grad():
        cell.W.copy_(torch.tensor([[1e8, 0.0], [0.0, 1e-8]]))
        cell.U.zero_()
        cell.b.zero_()
    found = lyapunov(elman.Recurrent(cell), torch.zeros(8, 1, 1, dtype=F64), warm=2)
    assert found.every == 1
    assert found.exponents.tolist() == pytest.approx([math.log(1e8), math.log(1e-8)])


class Narrow(nn.Module):
    """A cell that knows float32 alone."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.cell(x.float(), h.float())


def parting(n: int = 12) -> nn.Module:
    """A tanh network whose directions part by about e^7 a step."""
    torch.manual_seed(0)
    cell = elman.cells.Elman(3, n)
    with torch.no_grad():
        cell.W.copy_(torch.linalg.qr(torch.randn(n, n)).Q @ torch.diag(torch.linspace(1, -11, n).exp()))
    return cell


def test_elimination_between_qrs_is_as_right_as_qrs_alone(monkeypatch: Any) -> None:
    x, h = torch.randn(160, 2, 3, dtype=F64), torch.randn(2, 12, dtype=F64)
    rnn, bases = elman.Recurrent(parting().double()), []

    def eliminated(pushed: Tensor, probes: Tensor) -> Any:
        bases.append(factors.eliminated(pushed, probes))
        return bases[-1]

    for k in (12, 7):
        exact, by_qr = (lyapunov(rnn, x, h, k, every=every).each for every in (1, None))
        with monkeypatch.context() as patch:
            patch.setattr(exponents, "_WIDE", 2)
            patch.setattr(exponents, "_QRS", 4)
            patch.setattr(exponents, "eliminated", eliminated)
            found = lyapunov(rnn, x, h, k)
        assert sum(basis is not None for basis in bases) > 10
        assert 2 < found.every < 8
        assert (found.each - exact).abs().max() < 3 * (by_qr - exact).abs().max() < 3e-4


def test_a_basis_that_elimination_leaves_flat_is_not_gone_on_with(monkeypatch: Any) -> None:
    """Wilkinson's triangle: no exchange of rows mends it, and L⁻¹ grows as 2^n."""
    flat = torch.eye(24, dtype=F64) - torch.ones(24, 24, dtype=F64).tril(-1)
    assert factors.eliminated(flat[None], torch.ones(24, 1, dtype=F64)) is None
    found = factors.eliminated(torch.randn(3, 24, 9, dtype=F64), torch.randn(9, 2, dtype=F64) / 3)
    assert found is not None
    assert 1 <= found.flat < 30
    monkeypatch.setattr(factors, "_FLAT", 0.0)
    x, h = torch.randn(60, 1, 3, dtype=F64), torch.randn(1, 12, dtype=F64)
    by_qr = lyapunov(elman.Recurrent(parting().double()), x, h)
    monkeypatch.setattr(exponents, "_WIDE", 2)
    monkeypatch.setattr(exponents, "_QRS", 4)
    torch.testing.assert_close(lyapunov(elman.Recurrent(parting().double()), x, h).each, by_qr.each)


def test_directions_that_part_too_fast_for_float32_are_pushed_in_float64() -> None:
    cell, x, h = parting(), torch.randn(60, 1, 3), torch.randn(1, 12)
    by_itself = lyapunov(elman.Recurrent(cell), x, h)
    assert torch.equal(by_itself.each, lyapunov(elman.Recurrent(cell), x, h, dtype=F64).each)
    narrow = lyapunov(elman.Recurrent(cell), x, h, dtype=torch.float32)
    assert narrow.every < by_itself.every
    stays = lyapunov(elman.Recurrent(Narrow(cell)), x, h)
    assert torch.equal(stays.each, narrow.each)


# --- fixed points --------------------------------------------------------------------------------------------------


def test_the_fixed_points_of_the_henon_map() -> None:
    torch.manual_seed(0)
    found = fixed_points(henon(), None, (torch.randn(30, 1), torch.randn(30, 1)))
    root = math.sqrt(0.7**2 + 4 * 1.4)
    expected = sorted([(-0.7 - root) / 2.8, (-0.7 + root) / 2.8])
    assert sorted(found.points[:, 0].tolist()) == pytest.approx(expected)
    assert found.kinds() == ["saddle", "saddle"]
    assert int(found.count.sum()) + found.lost == 30
    assert float(found.residual.max()) < 1e-8
    torch.testing.assert_close(
        found.eigenvalues.prod(-1).real, torch.full((2,), -0.3, dtype=F64), atol=1e-7, rtol=0
    )
    assert "saddle" in str(found)


def test_points_about_which_nothing_moves_are_neutral() -> None:
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=F64)
    half = torch.diag(torch.tensor([1.0, 0.5], dtype=F64))
    for W, kind in (
        (torch.eye(2, dtype=F64), "neutral"), (turn, "neutral"), (half, "neutral"), (0.99 * turn, "stable"),
        (1.01 * turn, "unstable"), (half + torch.diag(torch.tensor([0.1, 0.0])), "saddle"),
    ):  # fmt: skip
        found = fixed_points(
            elman.Recurrent(Turned(W)), torch.zeros(2, dtype=F64), torch.randn(5, 2, dtype=F64)
        )
        assert set(found.kinds()) == {kind}
        assert portrait(found).title


def test_a_slow_point_is_a_minimum_that_is_not_zero() -> None:
    class Ghost(nn.Module):
        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return h + 0.1 * h.square() + 1e-3 + x

    found = fixed_points(elman.Recurrent(Ghost()), torch.zeros(1), torch.randn(20, 1))
    assert found.slow.tolist() == [True]
    assert found.residual.tolist() == pytest.approx([1e-3], rel=1e-3)
    assert abs(float(found.points[0, 0])) < 0.01
    pinned = fixed_points(elman.Recurrent(Ghost()), torch.full((1,), -0.101), torch.randn(20, 1))
    assert sorted(pinned.points[:, 0].tolist()) == pytest.approx([-1.0, 1.0])
    assert sorted(pinned.kinds()) == ["stable", "unstable"]


def test_starts_are_drawn_from_trajectories() -> None:
    torch.manual_seed(0)
    rnn = elman.Recurrent(elman.cells.LSTM(3, 4))
    states = trajectory(rnn, torch.randn(10, 2, 3))
    found = fixed_points(rnn, torch.zeros(3), states, count=30, noise=0.1)
    assert int(found.count.sum()) + found.lost == 30
    h, c = found.points[:1].split(4, 1)
    _, after = rnn.double().step(torch.zeros(1, 3, dtype=F64), (h, c))
    torch.testing.assert_close(torch.cat(after, 1), found.points[:1], atol=1e-7, rtol=0)


# --- gradient flow -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["rms", "spectral"])
def test_gradient_flow_is_the_norm_of_products(norm: str) -> None:
    torch.manual_seed(0)
    rnn = elman.Recurrent(LSTM)
    x = torch.randn(9, 2, 3, dtype=F64)
    found = gradient_flow(rnn, x, k=4, places=3, norm=norm)
    assert found.norms.shape == (6, 4)
    h, c = (torch.cat([torch.zeros_like(s[:1]), s]) for s in trajectory(rnn, x))
    first, row, product = 2, 1, torch.eye(8, dtype=F64)  # the second of the places 0, 2, 5
    for t in range(first, first + 4):
        product = jacobian(rnn, x[t], (h[t], c[t]))[row] @ product
        size = torch.linalg.matrix_norm(product, 2) if norm == "spectral" else product.norm() / math.sqrt(8)
        torch.testing.assert_close(found.norms[2 * 1 + row, t - first], size)
    assert found.rate < 0


# --- pictures ------------------------------------------------------------------------------------------------------


def test_everything_has_a_picture(tmp_path: Path) -> None:
    torch.manual_seed(0)
    rnn = elman.Recurrent(LSTM)
    x = torch.randn(20, 3, 3, dtype=F64)
    states = trajectory(rnn, x)
    points = fixed_points(rnn, torch.zeros(3), states, count=10)
    pictures = [
        elman.draw(points, states),
        elman.draw(points),
        elman.draw(lyapunov(rnn, x)),
        elman.draw(gradient_flow(rnn, x)),
    ]
    pictures.append(
        elman.draw(lyapunov(henon(), None, (torch.zeros(1, 1), torch.zeros(1, 1)), steps=60, dtype=F64))
    )
    for picture in pictures:
        root = ElementTree.fromstring(picture._repr_svg_())
        words = "".join(root.itertext())
        assert "nan" not in picture.svg
        assert picture.title in words
    assert pictures[0].save(tmp_path / "a.svg").read_text("utf-8").startswith("<svg")
    with pytest.raises(InputError, match="no picture"):
        pictures[0].save(tmp_path / "a.html")
    with pytest.raises(DataError, match="cannot be written"):
        pictures[0].save(tmp_path / "none" / "a.svg")
    with pytest.raises(DataError, match="cannot be written"):
        pictures[0].save(tmp_path / "none" / "a.svg")
    with pytest.raises(InputError, match="another state"):
        elman.draw(points, torch.zeros(3, 2, 5))


# --- what is refused -----------------------------------------------------------------------------------------------


def test_what_has_no_dynamics_is_refused() -> None:
    x = torch.zeros(4, 1, 3, dtype=F64)
    with pytest.raises(InputTypeError, match="of a layer"):
        jacobian(LSTM, x[0], None)
    with pytest.raises(NotSupported, match="reversed"):
        lyapunov(elman.Recurrent(LSTM, reverse=True), x)
    with pytest.raises(NotSupported, match="layers of this stack"):
        lyapunov(elman.Stack(elman.Bidirectional(LSTM, elman.cells.LSTM(3, 4).double())), x)
    with pytest.raises(InputError, match="says how many rows"):
        lyapunov(elman.Recurrent(Logistic()), steps=3)
    with pytest.raises(InputError, match="number of steps"):
        lyapunov(elman.Recurrent(Logistic()), None, torch.zeros(1, 1))
    with pytest.raises(InputError, match=r"k="):
        lyapunov(elman.Recurrent(LSTM), x, k=9)
    with pytest.raises(InputError, match="no such norm"):
        gradient_flow(elman.Recurrent(LSTM), x, norm="nuclear")
    with pytest.raises(InputError, match="neither time nor rows"):
        fixed_points(elman.Recurrent(elman.cells.Elman(3, 4)), torch.zeros(1, 3), torch.zeros(5, 4))
    with pytest.raises(InputError, match="nowhere to start"):
        fixed_points(elman.Recurrent(LSTM), x[0, 0])


def test_what_is_drawn_at_random_is_no_map() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return nn.functional.dropout(torch.tanh(h + x), 0.5, self.training)

    rnn, x, h = elman.Recurrent(Noisy()), torch.zeros(1, 2), torch.zeros(1, 2)
    with pytest.raises(NotSupported, match="random numbers"):
        jacobian(rnn, x, h)
    torch.testing.assert_close(jacobian(rnn.eval(), x, h), torch.eye(2)[None])
    rnn.train().cell.eval()  # the cell says it, as in a call, and stays as it is
    torch.testing.assert_close(jacobian(rnn, x, h), torch.eye(2)[None])
    assert not rnn.cell.training


def test_a_trajectory_that_diverges_is_said() -> None:
    with pytest.raises(StateError, match="diverges"):
        lyapunov(elman.Recurrent(Logistic()), None, torch.full((1, 1), 3.0, dtype=F64), steps=60)
