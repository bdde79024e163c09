"""The native engine among the threads, forks and signals of a process."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import elman
from elman.engines.native import why_not_built

pytestmark = pytest.mark.skipif(why_not_built() is not None, reason=f"native engine: {why_not_built()}")

Tensor = torch.Tensor
WAIT = 240
ROOT = Path(__file__).parents[2]


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], timeout=WAIT, capture_output=True, text=True, check=False
    )


@pytest.mark.grid(1)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("batch", "hidden"), [(8, 68), (1, 300)], ids=["rows", "columns"]
)  # what is shared out
@pytest.mark.parametrize("tiled", [False, True], ids=["", "tiles"])
def test_two_recurrences_at_once(batch: int, hidden: int, threads: int, tiled: bool) -> None:
    """Two Python threads, each with a layer of its own and the one that they share: the bits of each alone."""
    from elman import _native

    usual = _native.tiles(1, 1)
    _native.tiles(*((1, 1) if tiled else usual))
    shared = elman.Recurrent(elman.cells.LSTM(3, hidden), engine="native")
    own = [elman.Recurrent(cell(3, hidden), engine="native") for cell in (elman.cells.GRU, elman.cells.Elman)]
    x, lengths = torch.randn(40, batch, 3), torch.arange(batch) * 4 + 9
    start = threading.Barrier(2)

    def step(layer: torch.nn.Module) -> list[Tensor]:
        outputs, _ = layer(x, lengths=lengths) if batch > 1 else layer(x)
        return [outputs, *torch.autograd.grad(outputs.square().sum(), list(layer.parameters()))]

    def work(which: int) -> list[list[Tensor]]:
        start.wait(WAIT)
        return [step(layer) for _ in range(8) for layer in (own[which], shared)]

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        alone = [[step(layer) for layer in (mine, shared)] for mine in own]
        with ThreadPoolExecutor(2) as pool:
            together = list(pool.map(work, (0, 1), timeout=WAIT))
    finally:
        torch.set_num_threads(before)
        _native.tiles(*usual)
    for expected, found in zip(alone, together, strict=True):
        for i, tensors in enumerate(found):
            for one, other in zip(tensors, expected[i % 2], strict=True):
                assert torch.equal(one, other)


@pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("g++"), reason="this builds for Linux, with g++"
)
@pytest.mark.parametrize("runtime", [[], ["-Wl,--no-as-needed", "-fopenmp"]], ids=["own", "openmp"])
def test_a_team_that_waits_for_other_processes_goes_without_help(runtime: list[str], tmp_path: Path) -> None:
    program, native = tmp_path / "team", ROOT / "native"
    files = [str(native / "tests" / "team.cpp"), str(native / "team.cpp")]
    flags = ["-std=c++17", f"-I{native}", "-pthread", "-ldl", *runtime]
    subprocess.run(["g++", *files, *flags, "-o", str(program)], check=True, timeout=WAIT)
    done = subprocess.run([program], timeout=WAIT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert f"{'openmp' if runtime else 'own'}: two threads again" in done.stdout


@pytest.mark.conformance
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_training_step_in_a_forked_child() -> None:
    """After parallel work in the parent, and while another of its threads is in the middle of a loop."""
    done = run("""
import os, sys, threading, warnings, torch, elman
warnings.simplefilter("ignore", DeprecationWarning)  # of Python: a fork beside threads
torch.set_num_threads(2)
rnn = elman.Recurrent(elman.cells.GRU(3, 130), engine="native")
x = torch.randn(60, 8, 3)

def step():
    outputs, _ = rnn(x)
    return [outputs, *torch.autograd.grad(outputs.square().sum(), list(rnn.parameters()))]

expected, ended = step(), threading.Event()
def busy():
    with torch.no_grad():
        while not ended.is_set():
            rnn(x)
threading.Thread(target=busy).start()
wrong = 0
for _ in range(5):
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)  # PyTorch's own threads are gone, and it would wait for them
        os._exit(0 if all(torch.allclose(a, b, atol=1e-5) for a, b in zip(step(), expected)) else 3)
    wrong += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0
ended.set()
sys.exit(wrong)
""")
    assert done.returncode == 0, done.stderr


class Still(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.W = torch.nn.Linear(512, 512)

    def forward(self, x: None, h: Tensor) -> tuple[None, Tensor]:
        return None, torch.tanh(self.W(h))


@torch.no_grad()
def test_an_interrupt_ends_a_loop() -> None:
    """Ctrl-C in a loop of minutes, on one thread, with columns and with rows shared out: a handler that returns changes
    nothing, KeyboardInterrupt ends it, and the layer is as good as before."""
    came: list[float] = []

    def handler(*_: object) -> None:
        came.append(time.perf_counter())
        if len(came) > 1:
            raise KeyboardInterrupt

    rnn = elman.Recurrent(Still(), engine="native")
    rnn(None, torch.zeros(1, 512), steps=1)
    before, usual = torch.get_num_threads(), signal.signal(signal.SIGINT, handler)
    try:
        for batch, threads in ((1, 1), (1, 2), (2, 2)):
            torch.set_num_threads(threads)
            came.clear()
            h = torch.randn(batch, 512)
            expected = rnn(None, h, steps=50)[1]
            began = time.perf_counter()
            rnn(None, h, steps=100)
            each = (time.perf_counter() - began) / 100
            steps = int(60 / each)
            for seconds in (0.2, 0.5):  # it asks four times a second, and two signals at once are one
                threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT)).start()
            began = time.perf_counter()
            with pytest.raises(KeyboardInterrupt):
                rnn(None, h, steps=steps)
            assert len(came) == 2
            assert came[1] - began < steps * each / 2, (came, steps, each)
            for _ in range(3):
                assert torch.equal(rnn(None, h, steps=50)[1], expected)
    finally:
        signal.signal(signal.SIGINT, usual)
        torch.set_num_threads(before)
