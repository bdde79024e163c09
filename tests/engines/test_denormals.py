"""Numbers below the least normal one: the loop computes with them as the reference does, in the mode that it finds."""

from __future__ import annotations

import ctypes
import platform
import sys

import pytest
import torch

import elman
from elman.engines.native import why_not_built
from tests.engines.loops import given, loops_at
from tests.engines.test_native import ENGINES, REFERENCE
from tests.pairwise import with_more

pytestmark = pytest.mark.skipif(why_not_built() is not None, reason=f"native engine: {why_not_built()}")

Tensor = torch.Tensor


class Fading(torch.nn.Module):
    """h halves at every step, exactly, until it is less than the least number."""

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return 0.5 * h + x


@pytest.mark.parametrize(("dtype", "steps"), [(torch.float32, 160), (torch.float64, 1090)], ids=str)
def test_a_state_that_fades_away(dtype: torch.dtype, steps: int) -> None:
    rnn = elman.Recurrent(Fading(), engine="native")
    outputs, _ = rnn(torch.zeros(steps, 2, 5, dtype=dtype), torch.ones(2, 5, dtype=dtype))
    expected = 0.5 ** torch.arange(1, steps + 1, dtype=torch.float64)
    least = torch.finfo(dtype).smallest_normal
    assert ((outputs > 0) & (outputs < least)).any(0).all()
    torch.testing.assert_close(outputs, expected.to(dtype)[:, None, None].expand_as(outputs), rtol=0, atol=0)


@pytest.mark.grid
@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("cell", with_more(["lstm"], ["gru", "elman", "leaky"]))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_loops_on_denormals(cell: str, dtype: torch.dtype, name: str) -> None:
    """All but the weights is denormal, and so are sums and products."""
    least = torch.finfo(dtype).smallest_normal
    for what, loop in loops_at(cell, 5, 17, dtype).items():
        at = given(loop, [3] * 6)
        for key in (*loop.sequences, *(state.name for state in loop.states)):
            if at.values[key].is_floating_point():
                at.values[key] = at.values[key] * least / 8
        got, expected = at.run(ENGINES[name]), at.run(REFERENCE)
        for key, value in expected.items():
            torch.testing.assert_close(
                got[key], value, rtol=1e-5, atol=8 * least * torch.finfo(dtype).eps, equal_nan=True,
                msg=lambda m, where=f"{what}, {key}": f"{where}: {m}",
            )  # fmt: skip


def mode() -> int:
    """The control bits of this thread's MXCSR: denormals as zero, flush to zero, rounding, masks."""
    environment = (ctypes.c_uint32 * 8)()
    ctypes.CDLL(None).fegetenv(environment)
    return environment[7] & 0xFFC0


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64",
    reason="the register is read as glibc lays it out",
)
@pytest.mark.parametrize("flush", [False, True])
def test_the_floating_point_mode_is_nobodys_business(flush: bool) -> None:
    """It is what it was, whatever it was."""
    rnn = elman.Recurrent(elman.cells.GRU(3, 68), engine="native")
    x = torch.randn(40, 8, 3)
    if not torch.set_flush_denormal(flush):
        pytest.skip("this processor cannot flush denormals")
    try:
        before = mode()
        assert bool(before & 0x8040) is flush
        rnn(x)[0].square().sum().backward()
        assert mode() == before
        assert bool(torch.tensor([1e-39]) * 0.5 > 0) is not flush
    finally:
        torch.set_flush_denormal(False)
