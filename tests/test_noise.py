"""Noise: each random operation as arithmetic on standard draws, and the draws themselves."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import elman
from elman import noise
from elman.circuit.form import InPort, Kind
from elman.errors import TraceError
from elman.execute.executable import Call, run
from elman.plan import plan
from elman.plan.cut import pair
from elman.trace import trace
from tests import eager
from tests.cases import CASES
from tests.circuits import assert_close, plan_of, problem, training_of

Tensor = torch.Tensor
N = 100_000
P = torch.full((N,), 0.3, dtype=torch.float64)

# Name -> the random operation on something of N numbers, the kind of draw, what it is of a draw z.
OPERATIONS: dict[str, tuple[Callable[[Tensor], Tensor], str, Callable[[Tensor], Tensor]]] = {
    "rand": (lambda x: torch.rand(N, dtype=x.dtype), "uniform", lambda u: u),
    "rand_like": (torch.rand_like, "uniform", lambda u: u),
    "randn": (lambda x: torch.randn(N, dtype=x.dtype), "normal", lambda z: z),
    "randn_like": (torch.randn_like, "normal", lambda z: z),
    "dropout": (lambda x: F.dropout(x, 0.3), "uniform", lambda u: 2.0 * (u < 0.7).double() / 0.7),
    "dropout_0": (
        lambda x: torch.native_dropout(x, 0.0, True)[0],
        "uniform",
        lambda u: torch.full_like(u, 2.0),
    ),
    "dropout_1": (lambda x: torch.native_dropout(x, 1.0, True)[0], "uniform", torch.zeros_like),
    "bernoulli": (lambda x: torch.bernoulli(P), "uniform", lambda u: (u < 0.3).double()),
    "bernoulli_p": (lambda x: torch.bernoulli(x, 0.3), "uniform", lambda u: (u < 0.3).double()),
    "bernoulli_": (lambda x: torch.empty_like(x).bernoulli_(0.3), "uniform", lambda u: (u < 0.3).double()),
    "bernoulli_tensor_": (
        lambda x: torch.empty_like(x).bernoulli_(P),
        "uniform",
        lambda u: (u < 0.3).double(),
    ),
    "uniform_": (lambda x: torch.empty_like(x).uniform_(-1, 3), "uniform", lambda u: 4 * u - 1),
    "normal_": (lambda x: torch.empty_like(x).normal_(1, 2), "normal", lambda z: 2 * z + 1),
    "normal_mean": (lambda x: torch.normal(P, 2.0), "normal", lambda z: 2 * z + 0.3),
    "normal_std": (lambda x: torch.normal(1.0, P), "normal", lambda z: 0.3 * z + 1),
    "normal_both": (lambda x: torch.normal(P, P), "normal", lambda z: 0.3 * z + 0.3),
    "exponential_": (
        lambda x: torch.empty_like(x).exponential_(2.0),
        "uniform",
        lambda u: -torch.log1p(-u) / 2,
    ),
    "randint": (lambda x: torch.randint(5, (N,)), "uniform", lambda u: (5 * u).floor().long()),
    "randint_low": (lambda x: torch.randint(-2, 5, (N,)), "uniform", lambda u: (7 * u - 2).floor().long()),
    "randint_like": (lambda x: torch.randint_like(x, 5), "uniform", lambda u: (5 * u).floor()),
    "randint_like_low": (lambda x: torch.randint_like(x, -2, 5), "uniform", lambda u: (7 * u - 2).floor()),
}


def numbers(draw: str, index: int = 0, seed: int = 7, dtype: torch.dtype = torch.float64) -> Tensor:
    port = port_of(draw, (N,), dtype=dtype)
    return noise.draw(port, index, seed, 0, 1, 1)[0]


def port_of(
    draw: str, shape: tuple[int, ...], *, rows: bool = False, dtype: torch.dtype = torch.float64
) -> InPort:
    return InPort("noise_0", Kind.NOISE, shape, dtype, torch.device("cpu"), rows, "noise_0", draw=draw)


@pytest.mark.parametrize("name", OPERATIONS)
def test_replayed_numbers_give_the_formula(name: str) -> None:
    operation, draw, formula = OPERATIONS[name]
    z = numbers(draw)
    with noise.Replay([z]):
        got = operation(torch.full((N,), 2.0, dtype=torch.float64))
    expected = formula(z)
    assert got.dtype == expected.dtype
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_distribution_is_torchs_own(name: str) -> None:
    """Mean, variance and, where it is a choice among few, frequencies, within five standard deviations."""
    operation, draw, _ = OPERATIONS[name]
    two = torch.full((N,), 2.0, dtype=torch.float64)
    with noise.Replay([numbers(draw)]):
        ours = operation(two).double()
    theirs = operation(two).double()
    for mine, other in ((ours, theirs), (ours.square(), theirs.square())):
        sigma = float((mine.var() / N + other.var() / N).sqrt())
        assert abs(float(mine.mean() - other.mean())) <= 5 * sigma
    values = theirs.unique()
    assert (len(values) < 20) == (len(ours.unique()) < 20)
    if len(values) < 20:
        assert torch.equal(ours.unique(), values)
        for value in values:
            p = float((theirs == value).double().mean())
            assert abs(float((ours == value).double().mean()) - p) <= 5 * (2 * p * (1 - p) / N) ** 0.5
    else:
        # Kolmogorov and Smirnov's distance of two samples; beyond 2.7 with probability 1e-6.
        both = torch.cat([ours, theirs]).sort().values
        apart = (
            torch.searchsorted(ours.sort().values, both, right=True)
            - torch.searchsorted(theirs.sort().values, both, right=True)
        ).abs().max() / N
        assert float(apart) * (N / 2) ** 0.5 < 2.7


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_exponential_numbers_are_above_zero(dtype: torch.dtype) -> None:
    """A uniform number is 0 now and then, of which gumbel_softmax would make NaN."""
    with noise.Replay([torch.tensor([0.0, 0.5], dtype=dtype)]):
        drawn = torch.empty(2, dtype=dtype).exponential_()
    assert 0 < drawn[0] < 1e-2
    assert drawn.log().isfinite().all()
    logits = torch.randn(1, 8)
    with noise.Replay([torch.zeros(1, 8)]):
        assert F.gumbel_softmax(logits).isfinite().all()


@pytest.mark.grid(1)
@pytest.mark.parametrize("low", [0, 1, 1000, 100_000, 1 << 22, -5])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 10, 1000, 4096])
def test_whole_numbers_stay_below_their_end(low: int, size: int) -> None:
    for dtype, below in ((torch.float32, 2.0**-24), (torch.float64, 2.0**-53)):
        with noise.Replay([torch.tensor([0, 1 - below], dtype=dtype)] * 2):
            drawn = torch.randint(low, low + size, (2,))
            like = torch.randint_like(torch.empty(2, dtype=dtype), low, low + size)
        assert drawn.tolist() == [low, low + size - 1]
        assert like.tolist() == [low, low + size - 1]


class Chooses(torch.nn.Module):
    def __init__(self, low: int, high: int) -> None:
        super().__init__()
        self.low, self.high = low, high

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return x + 0 * h + torch.randint(self.low, self.high, (x.shape[0], 1))


@pytest.mark.parametrize(("low", "high"), [(100_000, 100_003), (0, 1 << 26), (0, 6000)])
def test_every_whole_number_comes_up(low: int, high: int) -> None:
    """Also of more than a float can tell apart, half of them odd, and as often."""
    rnn = elman.Recurrent(Chooses(low, high))
    with torch.no_grad():
        drawn = rnn(torch.zeros(50, 2000, 1, dtype=torch.float64), torch.zeros(2000, 1, dtype=torch.float64))[
            0
        ].long()
    assert low <= drawn.min()
    assert drawn.max() < high
    odd = float((drawn % 2).double().mean())
    expected = sum(k % 2 for k in range(low, high)) / (high - low) if high - low < 10 else 0.5
    assert abs(odd - expected) < 5 * 0.5 / drawn.numel() ** 0.5
    if high - low < 10:
        assert drawn.unique().tolist() == list(range(low, high))


# The others say N themselves, which is no shape of a state.
SHAPED = [name for name in OPERATIONS if name.endswith(("_like", "_", "_p", "_low")) or "dropout" in name]


@pytest.mark.parametrize("name", [n for n in SHAPED if n not in ("randint_low", "bernoulli_tensor_")])
def test_a_cell_with_the_operation_draws_it_ahead(name: str) -> None:
    """The lifted graph computes what the eager cell computes from the same numbers."""
    operation = OPERATIONS[name][0]

    class Cell(torch.nn.Module):
        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return 0.5 * h + 0 * x + operation(torch.full_like(h, 2.0)).to(h.dtype)

    cell, h = Cell(), torch.ones(3, 4, dtype=torch.float64)
    circuit = trace(cell, h, h.clone(), check=False)
    (port,) = circuit.inputs_of(Kind.NOISE)
    assert port.draw == OPERATIONS[name][1]
    assert port.rows
    made = run(plan(circuit), Call(4, 3, 9, "auto"), {"x": torch.zeros(4, 3, 4, dtype=torch.float64), "h": h})
    drawn = noise.draw(port, port.number, 9, 0, 4, 3)
    with torch.no_grad():
        expected, _ = eager.unroll(
            cell, torch.zeros(4, 3, 4, dtype=torch.float64), h, replay=lambda t: noise.Replay([drawn[t]])
        )
    torch.testing.assert_close(made["output"], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("draw", ["uniform", "normal"])
@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])  # ours, torch's
def test_numbers_do_not_depend_on_where_a_sequence_is_cut(draw: str, rows: bool, dtype: torch.dtype) -> None:
    port = port_of(draw, (3,), rows=rows, dtype=dtype)
    whole = noise.draw(port, 2, 5, 0, 70, 4)
    assert whole.shape == ((70, 4, 3) if rows else (70, 3))
    for a, b in ((0, 1), (0, 16), (16, 32), (15, 17), (31, 70), (64, 65), (5, 5), (0, 0), (69, 70)):
        assert torch.equal(noise.draw(port, 2, 5, a, b, 4), whole[a:b])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])  # ours, torch's
def test_two_ports_two_seeds_and_two_blocks_differ(dtype: torch.dtype) -> None:
    port = port_of("normal", (50,), dtype=dtype)
    draws = [noise.draw(port, index, seed, 0, 48, 1) for index in range(3) for seed in (0, 1, 2)]
    blocks = [draw[b : b + 16] for draw in draws for b in (0, 16, 32)]
    for i, one in enumerate(blocks):
        for other in blocks[i + 1 :]:
            assert (one == other).float().mean() < 0.01  # halves have few numbers to be
            correlation = float((one * other).mean())
            assert abs(correlation) < 5 / one.numel() ** 0.5


def test_uniform_numbers_lie_below_one() -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        u = noise.draw(port_of("uniform", (5000,), dtype=dtype), 0, 1, 0, 32, 1)
        assert u.dtype is dtype
        assert u.min() >= 0
        assert u.max() < 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normal_numbers_are_normal(dtype: torch.dtype) -> None:
    """By their distribution, and by what neighbours and the two of a pair have to do with each other."""
    z = noise.draw(port_of("normal", (4000,), dtype=dtype), 0, 1, 0, 250, 1).squeeze(1).double()
    count, flat = z.numel(), z.reshape(-1)
    places = torch.linspace(-4, 4, 17, dtype=torch.float64)
    below = torch.searchsorted(flat.sort().values.contiguous(), places).double() / count
    expected = torch.special.ndtr(places)
    assert ((below - expected).abs() < 5 * (expected * (1 - expected) / count).sqrt() + 1 / count).all()
    assert 4.5 < float(flat.abs().max()) < 6.5
    for power, part in ((1, z), (2, z.square() - 1)):
        for apart in (1, 16, 32, 4000):
            one, other = part.reshape(-1)[:-apart], part.reshape(-1)[apart:]
            assert abs(float((one * other).mean())) < 5 * power / len(one) ** 0.5


def test_every_instruction_set_draws_the_same() -> None:
    native = pytest.importorskip("elman._native")
    for kind, dtype in itertools.product(("uniform", "normal"), (torch.float32, torch.float64)):
        draws = []
        for isa in native.instruction_sets():
            to = torch.empty(3, 101, dtype=dtype)
            native.draw(kind, to, dtype is torch.float64, 7, 2, 3, 101, 1, isa)
            draws.append(to)
        close = {"rtol": 0, "atol": 0 if kind == "uniform" else 16 * torch.finfo(dtype).eps}
        for one in draws:
            torch.testing.assert_close(one, draws[0], **close)


def test_drawing_does_not_touch_the_default_generator() -> None:
    before = torch.get_rng_state()
    noise.draw(port_of("normal", (3,)), 0, 1, 0, 5, 2)
    assert torch.equal(torch.get_rng_state(), before)


# --- the same numbers again in the backward pass ------------------------------------------------------------


class FirstIsNotNeeded(torch.nn.Module):
    """Two draws, of which the backward pass needs the second only."""

    hidden_size = 4

    def __init__(self) -> None:
        super().__init__()
        self.W = torch.nn.Linear(4, 4, dtype=torch.float64)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(x + self.W(h) + 0.3 * torch.randn_like(h))
        return F.dropout(h, 0.5), h


class AddedOutside(FirstIsNotNeeded):
    """The first draw has no part in any derivative."""

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        seen = torch.randn_like(h)
        h = torch.tanh(x + self.W(h * (torch.rand_like(h) < 0.5)))
        return h + seen, h


class DrawnInVain(FirstIsNotNeeded):
    """A draw that nobody reads, before one that counts."""

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        torch.rand_like(h)
        h = torch.tanh(x + self.W(h) + 0.3 * torch.randn_like(h))
        return F.dropout(h, 0.5), h


@pytest.mark.parametrize("kind", [FirstIsNotNeeded, AddedOutside, DrawnInVain])
def test_a_draw_is_the_same_in_every_derivative(kind: type[torch.nn.Module]) -> None:
    cell = kind()
    rnn = elman.Recurrent(cell)
    x = torch.randn(5, 2, 4, dtype=torch.float64, requires_grad=True)
    h = torch.zeros(2, 4, dtype=torch.float64)
    torch.manual_seed(5)
    got, _ = rnn(x, h)
    torch.manual_seed(5)
    seed = int(torch.randint(2**62, ()).item())
    ports = {port.number: port for port in rnn.circuit.inputs_of(Kind.NOISE)}
    drawn = [
        noise.draw(ports.get(i, port_of("uniform", (4,), rows=True)), i, seed, 0, 5, 2)
        for i in range(max(ports) + 1)
    ]
    expected, _ = eager.unroll(cell, x, h, replay=lambda t: noise.Replay([z[t] for z in drawn]))
    torch.testing.assert_close(got, expected)
    weight = torch.randn_like(got)
    leaves = [x, *cell.parameters()]
    first = [torch.autograd.grad((o * weight).sum(), leaves, create_graph=True) for o in (got, expected)]
    plain = torch.autograd.grad((rnn_again(rnn, x, h) * weight).sum(), leaves)
    for mine, cut, other in zip(first[0], plain, first[1], strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(cut, other, rtol=1e-10, atol=1e-10)
    second = [torch.autograd.grad(sum(g.square().sum() for g in found), leaves) for found in first]
    for mine, other in zip(*second, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-10)


def rnn_again(rnn: elman.Recurrent, x: Tensor, h: Tensor) -> Tensor:
    torch.manual_seed(5)
    return rnn(x, h)[0]


def test_the_backward_plan_of_a_cell_may_lack_a_draw() -> None:
    """What the test above is about: the second port is the backward plan's only one."""
    x = torch.randn(2, 4, dtype=torch.float64)
    both = pair(trace(FirstIsNotNeeded(), x, x.clone()))
    assert [port.name for port in both.forward.inputs_of(Kind.NOISE)] == ["noise_0", "noise_1"]
    assert [port.name for port in both.backward.inputs_of(Kind.NOISE)] == ["noise_1"]


@pytest.mark.parametrize("name", ["zoneout_lstm", "dropout_rnn", "noisy_rnn", "bernoulli_rnn"])
def test_numbers_do_not_depend_on_the_number_of_steps(name: str) -> None:
    long, short = problem(name, 20, 2), problem(name, 9, 2)
    timed = {port.name for port in long.circuit.inputs_of(Kind.SEQUENCE)}
    given = {key: value[:9] if key in timed else value for key, value in long.inputs.items()}
    with torch.no_grad():
        whole = run(plan_of(name), long.call(), long.inputs)["output"]
        start = run(plan_of(name), short.call(), given)["output"]
        training = run(training_of(name)[0], long.call(), long.inputs)["output"]
    torch.testing.assert_close(whole[:9], start, rtol=1e-12, atol=1e-12)
    assert_close({"output": training}, {"output": whole})


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_dropout_of_nothing_and_of_all(p: float) -> None:
    class Cell(torch.nn.Module):
        hidden_size = 3

        def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            h = torch.tanh(x + h)
            return F.dropout(h, p), h

    rnn = elman.Recurrent(Cell())
    x = torch.randn(4, 2, 3, requires_grad=True)
    got, _ = rnn(x, torch.zeros(2, 3))
    h, expected = torch.zeros(2, 3), []
    for t in range(4):
        h = torch.tanh(x[t] + h)
        expected.append(h * (1 - p))
    torch.testing.assert_close(got, torch.stack(expected))
    (gradient,) = torch.autograd.grad(got.sum(), x)
    (other,) = torch.autograd.grad(torch.stack(expected).sum(), x)
    torch.testing.assert_close(gradient, other)


def test_a_random_operation_without_a_formula_is_refused() -> None:
    class Cell(torch.nn.Module):
        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return torch.tanh(x + h) + torch.poisson(torch.ones_like(h))

    x = torch.randn(2, 3)
    with pytest.raises(TraceError, match="cannot be drawn ahead of the loop"):
        trace(Cell(), x, x.clone())


D = torch.distributions
DRAWN: dict[str, tuple[Any, tuple[str, ...]]] = {
    "random_": (lambda x: torch.empty_like(x).random_(0, 5), ("random_(from, to)", "randint")),
    "relaxed": (
        lambda x: D.RelaxedOneHotCategorical(x.new_tensor(0.5), logits=x, validate_args=False).rsample(),
        ("set_default_validate_args(False)",),
    ),
    "normal, checked": (lambda x: D.Normal(x, x.abs() + 1).rsample(), ("pass validate_args=False",)),
    "gamma, checked": (
        lambda x: D.Gamma(x.abs() + 1, 1).rsample(),
        ("validate_args=False", "before the call"),
    ),
    "gamma": (
        lambda x: D.Gamma(x.abs() + 1, 1.0, validate_args=False).rsample(),
        ("gamma", "before the call"),
    ),
    "dirichlet": (
        lambda x: D.Dirichlet(x.abs() + 1, validate_args=False).rsample(),
        ("gamma", "before the call"),
    ),
}


@pytest.mark.parametrize("name", list(DRAWN))
def test_what_cannot_be_drawn_is_said_with_a_mend_that_helps(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(D.Distribution, "_validate_args", True)  # torch.compile, once used, has turned it off
    draw, says = DRAWN[name]

    class Cell(torch.nn.Module):
        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return torch.tanh(h + draw(x + h))

    x = torch.randn(2, 3)
    with pytest.raises(TraceError) as told:
        trace(Cell(), x, x.clone())
    assert all(word in str(told.value) for word in says)


def test_distributions_that_check_nothing_are_drawn_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the error says of those that are made of others."""
    monkeypatch.setattr(D.Distribution, "_validate_args", True)

    class Cell(torch.nn.Module):
        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return torch.tanh(h + D.RelaxedOneHotCategorical(x.new_tensor(0.5), logits=x).rsample())

    x = torch.randn(2, 3)
    D.Distribution.set_default_validate_args(False)
    trace(Cell(), x, x.clone()).check()


def test_random_numbers_of_a_layer_s_own_generator() -> None:
    cell, x = CASES["noisy_rnn"].make(), torch.zeros(4, 2, CASES["noisy_rnn"].x(1, 1).shape[-1])
    before = torch.get_rng_state()
    drawn = []
    for seed in (3, 3, 4):
        layer = elman.Recurrent(cell, generator=torch.Generator().manual_seed(seed))
        drawn.append([layer(x)[0], layer(x)[0], pickle.loads(pickle.dumps(layer))(x)[0], layer(x)[0]])
    assert torch.equal(torch.get_rng_state(), before)
    for first, again in zip(drawn[0], drawn[1], strict=True):
        assert torch.equal(first, again)
    assert not torch.equal(drawn[0][0], drawn[0][1])
    assert not torch.equal(drawn[0][0], drawn[2][0])
    assert torch.equal(drawn[0][2], drawn[0][3])  # a copy goes on where the layer was
    with pytest.raises(elman.ElmanError, match="Generator"):
        elman.Recurrent(cell, generator=3)  # type: ignore[arg-type]


class NoisyReading(torch.nn.Module):
    """Draws twice; of the first numbers the derivative of the state knows nothing."""

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        reading = h + 0.1 * torch.randn_like(h)
        return reading, torch.tanh(torch.dropout(x, 0.5, True) + 0.5 * h)

    def initial_state(self, batch: int) -> Tensor:
        return torch.zeros(batch, 3, dtype=torch.float64)


@pytest.mark.parametrize("way", ["forward", "second order"])
def test_a_draw_that_a_derivative_does_not_need_has_its_number_all_the_same(way: str) -> None:
    """Else the next one would draw the numbers of that one."""
    generator, x, v = torch.Generator(), *(torch.randn(4, 2, 3, dtype=torch.float64) for _ in range(2))
    rnn = elman.Recurrent(NoisyReading(), generator=generator)

    def final(x: Tensor) -> Tensor:
        generator.manual_seed(0)
        return rnn(x)[1]

    def slope(x: Tensor) -> Tensor:
        return torch.func.grad(lambda x: final(x).square().sum())(x)

    f = final if way == "forward" else slope
    moved = [f(x + 1e-6 * sign * v) for sign in (1, -1)]
    torch.testing.assert_close(
        torch.func.jvp(f, (x,), (v,))[1], (moved[0] - moved[1]) / 2e-6, rtol=1e-6, atol=1e-8
    )
