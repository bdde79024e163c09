"""Recordings of passes, without a GPU: on the CPU a recorder pretends. What a GPU makes of it: tests/devices.py."""

from __future__ import annotations

import gc
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

import elman
from elman import engines
from elman.engines import cuda
from elman.engines.cuda import Cuda, Recorded
from elman.engines.masked import rounded
from elman.errors import NotSupported
from tests.cases import CASES
from tests.recurrent import compare, ragged
from tests.recurrent.compare import Inputs

Tensor = torch.Tensor
# Cells whose step, or its adjoint, is not known not to wait.
WAITING = {"addressing_rnn"}
USUAL = {
    "elman", "gru", "lstm", "attention_rnn", "layer_norm_rnn", "two_level_gru", "addressing_rnn", "pointer_rnn",
    "counting_rnn", "clipped_rnn", "cat_rnn", "twin_rnn", "columns_rnn", "convolutional_rnn", "tied_rnn",
}  # fmt: skip


class Pretended:
    """A recorder on the CPU. What was recorded is computed again in a replay, into the same memory."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0
        self.engine = Cuda("cpu", self)

    def __call__(self, run: Callable[[], Sequence[Tensor]]) -> tuple[Sequence[Tensor], Callable[[], None]]:
        self.recorded += 1
        outputs = [value.clone().fill_(7) for value in run()]  # recording computes nothing

        def replay() -> None:
            self.replayed += 1
            for kept, value in zip(outputs, run(), strict=True):
                kept.copy_(value)

        return outputs, replay


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Pretended:
    monkeypatch.setattr(cuda, "KEPT", 10_000)  # other tests have some
    return Pretended()


def numbers(*size: int) -> Tensor:
    return torch.randn(*size, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("name", ["gru", "lstm", "attention_rnn", "layer_norm_rnn", "elman"])
def test_the_same_numbers_recorded(recorder: Pretended, name: str) -> None:
    case, g = CASES[name], torch.Generator().manual_seed(0)
    cell = case.make().double()
    context = case.context(3, g, torch.float64)
    ours, plain = elman.Recurrent(cell, engine=recorder.engine), elman.Recurrent(cell, engine="reference")
    for turn in range(4):
        x = case.x(5, 3, g, torch.float64)
        found = []
        for rnn in (ours, plain):
            out, final = rnn(x, context=context) if context is not None else rnn(x)
            outs = torch.utils._pytree.tree_leaves((out, final))
            weights = list(cell.parameters())
            grads = torch.autograd.grad(sum(o.sin().sum() for o in outs), weights, allow_unused=True)
            found.append([*outs, *[g for g in grads if g is not None]])
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
        assert recorder.recorded == (2 if turn else 0)  # forward and backward, in the second turn
    assert recorder.replayed == 6


def test_a_recording_is_of_its_own_engine(recorder: Pretended) -> None:
    """What another engine runs in place of its passes, where there is no row, is not what is recorded."""
    cell, x = elman.cells.Elman(5, 19).double(), torch.randn(40, 8, 5, dtype=torch.float64)
    elman.Recurrent(cell, engine="auto")(x[:, :0])
    ours, plain = elman.Recurrent(cell, engine=recorder.engine), elman.Recurrent(cell, engine="reference")
    assert torch.equal(ours(x)[0], plain(x)[0])


def test_results_are_the_callers(recorder: Pretended) -> None:
    """Neither the next call nor whoever writes into them changes what a call gave."""
    rnn = elman.Recurrent(elman.cells.Elman(3, 4).double(), engine=recorder.engine)
    xs = [torch.randn(5, 2, 3, dtype=torch.float64) for _ in range(4)]
    with torch.no_grad():
        given = [rnn(x)[0] for x in xs]
        before = [out.clone() for out in given]
        given[2].zero_()
        again = [rnn(x)[0] for x in xs]
    assert recorder.replayed == 7
    assert all(torch.equal(a, b) for a, b in zip(before, again, strict=True))
    assert torch.equal(given[1], before[1])


def test_two_calls_before_their_backward_passes(recorder: Pretended) -> None:
    cell = elman.cells.GRU(3, 4).double()
    ours, plain = elman.Recurrent(cell, engine=recorder.engine), elman.Recurrent(cell, engine="reference")
    for x, y in [(numbers(5, 2, 3), numbers(5, 2, 3)) for _ in range(3)]:
        expected = torch.autograd.grad(plain(x)[0].sum() + plain(y)[0].sin().sum(), [x, y])
        outs = ours(x)[0], ours(y)[0]
        got = torch.autograd.grad(outs[0].sum() + outs[1].sin().sum(), [x, y])
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_weights_that_change_are_read(recorder: Pretended) -> None:
    rnn = elman.Recurrent(elman.cells.Elman(3, 4), engine=recorder.engine)
    x = torch.randn(5, 2, 3)
    with torch.no_grad():
        outs = []
        for _ in range(4):
            outs.append(rnn(x)[0])
            for p in rnn.parameters():
                p.mul_(0.5)
        assert all(not torch.equal(a, b) for a, b in zip(outs, outs[1:], strict=False))


@pytest.mark.parametrize(
    ("name", "reverse"),
    [
        pytest.param(name, False, marks=() if name in USUAL else pytest.mark.conformance)
        for name, case in CASES.items()
        if not case.noise and case.starts
    ]
    + [(name, True) for name in ("gru", "lstm", "attention_rnn", "two_level_gru", "zoneout_lstm_eval")],
)
def test_rows_of_different_lengths(recorder: Pretended, name: str, reverse: bool) -> None:
    """The same numbers as on the reference engine, for batches of other lengths as well, by one recording."""
    case, inputs = CASES[name], Inputs.of(CASES[name], 7, 4)
    cell = case.make().double()
    ours = elman.Recurrent(cell, engine=recorder.engine, reverse=reverse)
    plain = elman.Recurrent(cell, engine="reference", reverse=reverse)
    for lengths in ([7, 2, 5, 1], [6, 7, 1, 3], [1, 1, 7, 2], [7, 2, 5, 1]):
        wanted = compare.wanted_of(plain, inputs)
        found = []
        for rnn in (ours, plain):
            try:
                values = compare.flat(*ragged.ours(rnn, inputs, lengths=torch.tensor(lengths)))
                found.append((values, compare.gradients(values, wanted)))
            except NotSupported:
                if name not in WAITING:
                    raise
                return
        for got, expected in zip(*found, strict=True):
            compare.assert_equal(got, expected, 1e-10)
    assert recorder.recorded


def test_resets_and_budgets_of_segments(recorder: Pretended) -> None:
    cell = elman.cells.LSTM(3, 4).double()
    g = torch.Generator().manual_seed(0)
    x, reset = numbers(9, 5, 3), torch.rand(9, 5, generator=g) < 0.3
    for options in ({}, {"memory": elman.Segments(4)}):
        ours = elman.Recurrent(cell, engine=recorder.engine, **options)
        plain = elman.Recurrent(cell, engine="reference")
        for _ in range(3):
            found = []
            for rnn in (ours, plain):
                out = rnn(x, reset=reset, lengths=torch.tensor([9, 3, 4, 9, 1]))[0]
                found.append([out, *torch.autograd.grad(out.sin().sum(), [x, *cell.parameters()])])
            for got, expected in zip(*found, strict=True):
                torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
        assert recorder.recorded


def test_few_numbers_come_up() -> None:
    assert [rounded(n) for n in (1, 7, 15, 16, 17, 31, 33, 100, 1000)] == [
        1,
        7,
        15,
        16,
        18,
        32,
        36,
        104,
        1024,
    ]
    assert all(n <= rounded(n) <= 1.125 * n for n in range(1, 5000))
    assert len({rounded(n) for n in range(1, 1000)}) < 70


def test_very_long_calls_are_not_recorded(recorder: Pretended, monkeypatch: pytest.MonkeyPatch) -> None:
    """But their segments are."""
    monkeypatch.setattr(cuda, "LONGEST", 50)
    cell, x = elman.cells.Elman(3, 4), torch.randn(40, 2, 3)
    for memory, recorded in ((None, False), (elman.Segments(10), True)):
        rnn = elman.Recurrent(cell, engine=recorder.engine, memory=memory)
        for _ in range(3):
            rnn(x)[0].sum().backward()
        assert (recorder.recorded > 0) == recorded


def test_calls_without_a_step_are_not_recorded(recorder: Pretended) -> None:
    rnn, x = elman.Recurrent(elman.cells.Elman(3, 4), engine=recorder.engine), torch.randn(5, 2, 3)
    for _ in range(3):
        rnn(x[:0])
    assert recorder.recorded == 0


def test_noise_is_drawn_for_every_call(recorder: Pretended) -> None:
    cell, x = CASES["dropout_rnn"].make().double(), numbers(5, 2, 5)
    ours, plain = elman.Recurrent(cell, engine=recorder.engine), elman.Recurrent(cell, engine="reference")
    outs = []
    for turn in range(4):
        found = []
        for rnn in (ours, plain):
            torch.manual_seed(turn)
            out = rnn(x)[0]
            found.append([out, *torch.autograd.grad(out.sin().sum(), [x, *cell.parameters()])])
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
        outs.append(found[0][0])
    assert (recorder.recorded, recorder.replayed) == (2, 6)
    assert not torch.equal(outs[2], outs[3])


def _plan(rnn: elman.Recurrent) -> tuple[Any, ...]:
    executable = rnn._of_latest_call().program.whole
    return executable.plan, executable.ends, False, lambda *_: ()


def test_sizes_are_recorded_by_themselves(recorder: Pretended) -> None:
    rnn, before = (
        elman.Recurrent(elman.cells.Elman(3, 4), engine=recorder.engine),
        elman.caches()["CUDA graphs"],
    )
    with torch.no_grad():
        for T in (3, 4, 3, 4, 3, 4):
            assert rnn(torch.randn(T, 2, 3))[0].shape == (T, 2, 4)
    assert (recorder.recorded, recorder.replayed) == (2, 4)
    assert elman.caches()["CUDA graphs"].entries == before.entries + 2


def test_without_room_nothing_is_recorded(recorder: Pretended, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_room", lambda device: 10)
    rnn = elman.Recurrent(elman.cells.Elman(3, 4), engine=recorder.engine)
    with torch.no_grad():
        for _ in range(4):
            rnn(torch.randn(5, 2, 3))
    assert recorder.recorded == 0


def adding(recorder: Pretended) -> Recorded:
    return Recorded(lambda steps, batch, seed, first, x: (x + 1,), 1, "cpu", recorder)


@pytest.mark.parametrize(("name", "value", "left"), [("_room", lambda device: 100, 3), ("KEPT", 2, 2)])
def test_the_oldest_goes(
    recorder: Pretended, monkeypatch: pytest.MonkeyPatch, name: str, value: Any, left: int
) -> None:
    """For want of room (each has 32 bytes), or where there are too many."""
    monkeypatch.setattr(cuda, name, value)
    passes = [adding(recorder) for _ in range(4)]
    for each in passes:
        for _ in range(2):
            assert each(1, 1, 0, 0, torch.zeros(4))[0].tolist() == [1, 1, 1, 1]
        passes[0](1, 1, 0, 0, torch.zeros(4))  # the first one is in use
    there = [bool(one.recordings) for one in passes]
    assert there == [True, *[number >= 5 - left for number in range(1, 4)]]
    assert recorder.recorded == 4


def test_more_sizes_than_are_kept(recorder: Pretended, monkeypatch: pytest.MonkeyPatch) -> None:
    """What had to make room is not recorded at each of its calls, which would take longer than to run it."""
    monkeypatch.setattr(cuda, "KEPT", 3)
    one, turns = adding(recorder), 30
    for _ in range(turns):
        for size in range(1, 6):
            assert one(1, 1, 0, 0, torch.zeros(size))[0].tolist() == [1] * size
    assert recorder.recorded < 5 * turns / 6
    assert recorder.replayed > turns


def test_a_pass_that_is_gone_leaves_nothing(recorder: Pretended) -> None:
    one, before = adding(recorder), elman.caches()["CUDA graphs"].entries
    for _ in range(2):
        one(1, 1, 0, 0, torch.zeros(4))
    assert elman.caches()["CUDA graphs"].entries == before + 1
    del one
    gc.collect()
    assert elman.caches()["CUDA graphs"].entries == before


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="of newer PyTorch")
def test_another_precision_is_recorded_by_itself(recorder: Pretended) -> None:
    one, matmul = adding(recorder), torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        for number, precision in enumerate(("ieee", "tf32", "ieee"), 1):
            matmul.fp32_precision = precision
            for _ in range(2):
                one(1, 1, 0, 0, torch.zeros(4))
            assert len(one.recordings) == min(number, 2)
    finally:
        matmul.fp32_precision = before


def test_recorded_in_inference_mode_and_run_outside(recorder: Pretended) -> None:
    rnn = elman.Recurrent(elman.cells.Elman(3, 4), engine=recorder.engine)
    x = torch.randn(5, 2, 3)
    with torch.inference_mode():
        expected = [rnn(x)[0] for _ in range(2)]
    with torch.no_grad():
        out = rnn(x)[0]
        out.add_(0)
    assert (recorder.recorded, recorder.replayed) == (1, 2)
    assert all(torch.equal(out, other) for other in expected)


def test_a_thread_records_what_it_has_run(recorder: Pretended) -> None:
    """What libraries set up for a thread, they set up in a call that is not recorded."""
    rnn = elman.Recurrent(elman.cells.Elman(3, 4), engine=recorder.engine)
    x, counts = torch.randn(5, 2, 3), []

    def run() -> None:
        with torch.no_grad():
            rnn(x)
        counts.append(recorder.recorded)

    for _ in range(3):
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    run()
    run()
    assert counts == [0, 0, 0, 0, 1]
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert (recorder.recorded, recorder.replayed) == (1, 2)


def test_a_recording_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said once, and the pass runs as it would without."""

    def failing(run: Callable[[], Sequence[Tensor]]) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    rnn = elman.Recurrent(elman.cells.Elman(3, 4), engine=Cuda("cpu", failing))
    x, plain = torch.randn(5, 2, 3), elman.Recurrent(rnn.cell, engine="reference")
    with torch.no_grad(), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(4):
            assert torch.equal(rnn(x)[0], plain(x)[0])
    assert [str(one.message) for one in said] == [
        "a pass could not be recorded as a CUDA graph, and runs operation by operation: operation not permitted when "
        "stream is capturing"
    ]


@pytest.mark.parametrize("fails", [torch.OutOfMemoryError("no room")])
def test_no_memory_for_a_recording(fails: Exception) -> None:
    def failing(run: Callable[[], Sequence[Tensor]]) -> Any:
        raise fails

    rnn = elman.Recurrent(elman.cells.Elman(3, 4), engine=Cuda("cpu", failing))
    with torch.no_grad():
        outs = [rnn(torch.ones(5, 2, 3))[0] for _ in range(3)]
    assert torch.equal(outs[0], outs[2])


class Solves(torch.nn.Module):
    """Makes the host wait, for whether there is a solution."""

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.linalg.solve(torch.eye(3) + 0.1, (x + h).mT).mT


def test_what_waits_is_not_recorded(recorder: Pretended) -> None:
    x, h = torch.randn(5, 2, 3), torch.zeros(2, 3)
    with pytest.raises(
        NotSupported, match=r"_linalg_solve_ex\.default may have the host wait for the device"
    ):
        elman.Recurrent(Solves(), engine=recorder.engine)(x, h)


def test_under_a_budget_nothing_is_held(recorder: Pretended, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of memory that nobody counted; steps of segments are no budget."""
    monkeypatch.setattr(engines, "ENGINES", (recorder.engine, *engines.ENGINES))
    for size, (memory, recorded) in enumerate(
        (("4 MB", False), (elman.Segments(5), True), (None, True)), 203
    ):
        # No other test has these sizes: layers that are alike share what they run.
        rnn, recorder.recorded = elman.Recurrent(elman.cells.GRU(3, size), memory=memory), 0
        for _ in range(2):
            rnn(torch.randn(20, 2, 3))[0].sum().backward()
        assert (recorder.recorded > 0) == recorded, memory


def test_it_is_for_gpus() -> None:
    rnn = elman.Recurrent(elman.cells.Elman(3, 4), engine="cuda")
    with pytest.raises(NotSupported, match="it runs on cuda, not on cpu"):
        rnn(torch.randn(5, 2, 3))
