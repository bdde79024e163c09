"""CUDA graphs of a layer's passes: that they replay what is meant, for many threads, and what is none. Checks of
`python -m tests.devices cuda`.
"""

from __future__ import annotations

import threading
import warnings

import torch

import elman
from elman.engines import cuda
from tests.cases import CASES, Case
from tests.moved import B, T, moved_to, results
from tests.recurrent import compare, ragged
from tests.recurrent.compare import Inputs

Tensor = torch.Tensor


def recorded(case: Case, device: torch.device) -> None:
    """The first call runs as it comes, the second is recorded, the third and fourth replay; weights change between, and
    so do lengths in every other call."""
    inputs = Inputs.of(case, T, B)
    here, there = elman.Recurrent(case.make().double()), elman.Recurrent(case.make().double().to(device))
    for turn in range(4):
        with torch.no_grad():
            for rnn in (here, there):
                for parameter in rnn.parameters():
                    parameter.mul_(1 - 0.1 * turn)
        lengths = torch.tensor([T, 1 + turn, 1 + turn // 2])
        for said in ({}, {"lengths": lengths}) if case.starts else ({},):
            moved = {name: value.to(device) for name, value in said.items()}
            if case.noise:
                again = elman.Recurrent(there.cell, engine="reference")
                right = results(again, moved_to(inputs, device), ragged.ours, **moved)
            else:
                right = results(here, inputs, ragged.theirs, **said)
            got = results(there, moved_to(inputs, device), ragged.ours, **moved)
            for some, expected in zip(got, right, strict=True):
                compare.assert_equal(some, expected, 1e-6)


def recorded_by_many(device: torch.device) -> None:
    """Threads that share a layer, half of them on streams of their own."""
    rnn, plain = elman.Recurrent(elman.cells.GRU(5, 7).double().to(device)), elman.cells.GRU(5, 7).double()
    plain.load_state_dict({name: value.cpu() for name, value in rnn.cell.state_dict().items()})
    right, wrong = elman.Recurrent(plain), []
    xs = [torch.randn(T, B, 5, dtype=torch.float64) for _ in range(8)]
    expected = [right(x)[0].detach() for x in xs]

    def run(number: int) -> None:
        try:
            call(number)
        except Exception as error:
            wrong.append(error)

    def call(number: int) -> None:
        stream = torch.cuda.Stream() if number % 2 else torch.cuda.current_stream()
        with torch.cuda.stream(stream):
            for turn in range(40):
                k = (number + turn) % len(xs)
                got = rnn(xs[k].to(device))[0].detach().cpu()
                if not torch.allclose(got, expected[k], atol=1e-9):
                    wrong.append((number, turn))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, wrong[:5]
    assert elman.caches()["CUDA graphs"].entries


class _Solves(torch.nn.Module):
    """Its step makes the host wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.A = torch.nn.Parameter(torch.eye(4) + 0.1)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.linalg.solve(self.A, (x + h).mT).mT


def not_recorded(device: torch.device) -> None:
    rnn, x = elman.Recurrent(_Solves().double().to(device)), torch.randn(T, B, 4, device=device).double()
    plain = elman.Recurrent(_Solves().double())
    for _ in range(4):
        got = rnn(x, torch.zeros_like(x[0]))[0]
        torch.testing.assert_close(got.cpu(), plain(x.cpu(), torch.zeros_like(x[0]).cpu())[0])
        torch.rand(3, device=device)
    assert "linalg" in str(rnn.explain()), rnn.explain()


def recording_fails(device: torch.device) -> None:
    """An operation that waits, and is taken for one that does not: the pass runs, and so does all that follows."""
    for loud in (True, False):
        kernels = cuda._STARTS_KERNELS
        cuda._STARTS_KERNELS = {*kernels, "_linalg_solve_ex"} if loud else kernels
        try:
            rnn, x = (
                elman.Recurrent(_Solves().double().to(device)),
                torch.randn(T, B, 4, device=device).double(),
            )
            plain, start = elman.Recurrent(_Solves().double()), torch.zeros(B, 4).double()
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                for _ in range(4):
                    got = rnn(x, start.to(device))[0]
                    torch.testing.assert_close(got.cpu(), plain(x.cpu(), start)[0])
                    torch.rand(3, device=device)
            print([str(one.message)[:150] for one in said])
        finally:
            cuda._STARTS_KERNELS = kernels
    recorded(CASES["gru"], device)
    torch.cuda.empty_cache()
