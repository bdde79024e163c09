"""This machine in three numbers, for `elman.cost(plan, T, B, machine=)`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from elman.caches import cached
from elman.engines.native.extension import compiled, isa
from elman.plan.pace import NEAR, Machine

Tensor = torch.Tensor


def machine() -> Machine:
    """This machine, with the threads that torch has now; measured in a second, once in a process. Without the native
    engine products are PyTorch's, with all its threads."""
    return replace(_measured(), threads=torch.get_num_threads())


@cached("how fast this machine is", 1)
def _measured() -> Machine:
    n, real = 384, torch.float32  # three matrices that the second cache holds, or the third
    a, b = (torch.linspace(-1, 1, n * n, dtype=real).view(n, n) for _ in range(2))
    out, lines = torch.empty(n, n, dtype=real), torch.ones(NEAR // 1024, 128, dtype=real)
    x = torch.ones(1, requires_grad=True)
    if (name := isa()) is None:
        times, product, reading = 1, lambda: torch.mm(a, b, out=out), lambda: lines.sum(0)
    else:
        times, multiply = 16, compiled.Multiplier(name, False)  # so often in a call, which then takes no part
        sums = tuple((None, lines, None, torch.empty(1, 128, dtype=real)) for _ in range(times))
        product, reading = lambda: multiply(((a, b, None, out),), 1), lambda: multiply(sums, 1)
    with torch.no_grad():
        one_product, one_read = least(product), least(reading)
    with torch.enable_grad():
        one_call = least(lambda: torch.autograd.grad(_Empty.apply(x), x))
    return Machine(2 * n**3 / one_product, times * lines.numel() * 4 / one_read, one_call)


class _Empty(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


def least(call: Callable[[], Any], seconds: float = 0.25) -> float:
    """The least time of a call, in seconds, of so many seconds of calls."""
    found, end = math.inf, time.perf_counter() + seconds
    while (begun := time.perf_counter()) < end:
        call()
        found = min(found, time.perf_counter() - begun)
    return found
