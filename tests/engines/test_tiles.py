"""Passes that run over some steps at a time: what rows have is the same to the last bit, sums over rows nearly."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest
import torch

import elman
from elman.circuit.form import Kind
from elman.execute import Call, training_plans
from tests.cases import CASES
from tests.engines.test_passes import inputs_of, plans, plans_of
from tests.pairwise import with_more

Tensor = torch.Tensor
native = pytest.importorskip("elman._native", reason="the compiled part is missing")
CELLS = with_more(
    ["elman", "gru", "lstm"], ["jordan", "leaky", "mgu", "dale_rnn", "dropout_rnn", "spiking_rnn"]
)


@pytest.fixture
def usual(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, int]]:
    """How much is computed at a time; as it was, afterwards. Small calls run as large ones do."""
    monkeypatch.setattr(training_plans, "SMALL", 0)
    before = native.tiles(1, 1)
    native.tiles(*before)
    yield before
    native.tiles(*before)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("name", CELLS)
def test_tiles_give_what_the_whole_gives(name: str, reverse: bool, usual: tuple[int, int]) -> None:
    """Of states that are given, and of zeros; tiles of one step and of three, the last one shorter."""
    tiled = 0
    for executable in plans_of(name, reverse, torch.float64):
        for T, B in ((7, 3), (2, 1), (30, 2)):
            given: list = inputs_of(executable, T, B, torch.Generator().manual_seed(0))
            states = [port.kind is Kind.STATE for port in executable.plan.circuit.inputs]
            for tensors in (given, [None if s else t for s, t in zip(states, given, strict=False)]):
                native.tiles(*usual)
                whole = executable.run(Call(T, B, 5, "auto"), tensors)
                for rows in (1, 3 * B):
                    native.tiles(1, rows)
                    tiled += executable.function("auto").tile(T, B) < T  # type: ignore[attr-defined]
                    for one, other in zip(executable.run(Call(T, B, 5, "auto"), tensors), whole, strict=True):
                        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
                        if one.dim() == 3:  # a sequence
                            assert torch.equal(one, other)
    assert tiled >= 10


@pytest.mark.parametrize("name", CELLS)
def test_gradients_of_parameters_alone(name: str, usual: tuple[int, int]) -> None:
    """Where nobody wants that of a state, what its loop ends with is not handed out."""
    rnn = elman.Recurrent(CASES[name].make().double())
    x, found = CASES[name].x(30, 2, dtype=torch.float64), []
    for how in (usual, (1, 1), (1, 8)):
        native.tiles(*how)
        torch.manual_seed(0)
        o, _ = rnn(x)
        found.append(torch.autograd.grad(o.square().sum(), [*rnn.parameters()]))
    for tiled in found[1:]:
        for one, other in zip(tiled, found[0], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_how_much_is_computed_at_a_time(usual: tuple[int, int]) -> None:
    bytes, rows = usual
    for executable in plans_of("gru"):
        tile = executable.function("auto").tile  # type: ignore[attr-defined]
        assert tile(0, 3) == 0
        assert tile(3, 0) == 3
        assert tile(400, 4) == 400  # what is small is computed as a whole
        many = tile(100_000, 4)
        assert 4 * many >= rows
        assert many < 100_000
        assert tile(100_000, 400_000) == 1  # a step is more than there should be
        native.tiles(bytes // 4, 1)
        assert many // 5 <= tile(100_000, 4) <= many // 3
        native.tiles(bytes, rows)


def test_the_bits_do_not_depend_on_threads(usual: tuple[int, int]) -> None:
    native.tiles(1, 64)
    for executable in plans_of("lstm"):
        given, before, found = (
            inputs_of(executable, 90, 8, torch.Generator().manual_seed(0)),
            torch.get_num_threads(),
            [],
        )
        try:
            for threads in (1, 2):
                torch.set_num_threads(threads)
                found.append(executable.run(Call(90, 8, 0, "auto"), given))
        finally:
            torch.set_num_threads(before)
        assert all(map(torch.equal, *found))


class Summed(torch.nn.Module):
    """The sum of a weight's products goes on into something else: W is normed."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_size = 4
        self.V, self.g = torch.nn.Parameter(torch.randn(4, 4)), torch.nn.Parameter(torch.ones(4, 1))

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        W = self.g * self.V / self.V.norm(dim=1, keepdim=True)
        h = torch.tanh(x + h @ W.T)
        return h, h


def test_what_is_made_of_a_sum_runs_as_a_whole(usual: tuple[int, int]) -> None:
    native.tiles(1, 1)
    forwards, backwards = plans(Summed(), torch.randn(2, 3, 4), None)
    assert forwards.split("auto") is backwards.split("auto") is None
    assert backwards.function("auto").tile(9, 3) == 9  # type: ignore[attr-defined]
    ours, theirs = (elman.Recurrent(Summed().double(), engine=engine) for engine in ("native", "reference"))
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(9, 3, 4, dtype=torch.float64)
    for one, other in zip(
        *(torch.autograd.grad(r(x)[0].sum(), [*r.parameters()]) for r in (ours, theirs)), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_an_interrupt_ends_it_between_two_tiles(usual: tuple[int, int]) -> None:
    came: list[float] = []

    def handler(*_: object) -> None:
        came.append(time.perf_counter())
        raise KeyboardInterrupt

    rnn, before = elman.Recurrent(CASES["gru"].make(), engine="native"), signal.signal(signal.SIGINT, handler)
    try:
        native.tiles(1, 1)
        x = CASES["gru"].x(20_000, 1, dtype=torch.float32)
        rnn(x)
        began = time.perf_counter()
        expected, _ = rnn(x)
        each = (time.perf_counter() - began) / len(x)
        steps = int(8 / each)
        more = x[:1].expand(steps, -1, -1).contiguous()
        rnn(more[:4])
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        began = time.perf_counter()
        with pytest.raises(KeyboardInterrupt):
            rnn(more)
        assert came[0] - began < steps * each / 2
        assert torch.equal(rnn(x)[0], expected)
    finally:
        signal.signal(signal.SIGINT, before)
