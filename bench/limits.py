"""What the machine can do at all, measured in the run: multiply-adds a second, and bytes a second of a size.

With the threads that torch has or with one, whichever does more: beside other processes several threads that wait for
each other may do less than one, and a limit that is too low would flatter.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from elman.engines.native import why_not_built

SIDES = (192, 256, 384, 512)  # of square matrices: three of them fit the second or third cache


@dataclass(frozen=True)
class Work:
    """What a call cannot do without. flops: of the products, a multiply-add counting as two. read: bytes of weights
    that it reads, all times together, out of `weights` bytes that it goes through again and again."""

    flops: float
    read: float
    weights: float

    def seconds(self) -> float:
        """No call takes less: its products at the peak, or its weights at the bandwidth of where they lie."""
        return max(self.flops / peak(), self.read / bandwidth(round(self.weights)))


def one_step(gates: int, H: int, bytes_each: int = 4) -> Work:
    """One row through one step, I = H: every weight is read once."""
    weights = gates * H * 2 * H
    return Work(2 * weights, bytes_each * weights, bytes_each * weights)


def training(gates: int, T: float, B: int, H: int) -> Work:
    """A training step with the gradients of x and all weights, I = H: three products for each of the forward pass; W is
    read at every step forwards and backwards, U three times in all."""
    one = gates * H * H
    return Work(3 * 2 * T * B * 2 * one, 4 * one * (2 * T + 3), 4 * one)


@functools.cache
def peak() -> float:
    """Floating-point operations a second, a multiply-add counting as two, with the threads that torch has: of
    multiply-adds in registers on as many cores at once, or of torch.mm at its best."""
    found = _in_registers(torch.get_num_threads())
    for n in SIDES:
        a, b, out = torch.randn(n, n), torch.randn(n, n), torch.empty(n, n)
        found = max(found, 2 * n**3 / _least(lambda a=a, b=b, out=out: torch.mm(a, b, out=out)))
    return found


def _in_registers(cores: int, rounds: int = 2_000_000, times: int = 8) -> float:
    """0 without the compiled part."""
    if why_not_built() is not None:
        return 0.0
    from elman import _native

    found = 0.0
    with ThreadPoolExecutor(cores) as pool:
        for _ in range(times):
            begun = time.perf_counter()
            done = sum(pool.map(_native.multiply_adds, [rounds] * cores))
            found = max(found, done / (time.perf_counter() - begun))
    return found


@functools.cache
def bandwidth(size: int) -> float:
    """Bytes a second that a sum over `size` bytes reads, again and again: the bandwidth of the cache that they fit, or
    of memory. Many sums are one call, so that the call itself takes no part."""
    n = max(size // 4, 1)
    times = max(1, 16_000_000 // (4 * n))
    x = torch.ones(n).expand(times, n)
    return 4 * n * times / _least(lambda: x.sum(1))


def copied(size: int = 200_000_000) -> float:
    """Bytes a second, read and written, of a copy far larger than the caches."""
    x = torch.ones(size // 4)
    out = torch.empty_like(x)
    return 2 * size / _least(lambda: out.copy_(x))


def _least(call: Callable[[], Any], seconds: float = 0.4) -> float:
    """The least time of a call, over so many seconds for each number of threads."""
    found, threads = float("inf"), torch.get_num_threads()
    try:
        for count in {threads, 1}:
            torch.set_num_threads(count)
            call()
            end = time.perf_counter() + seconds
            while (begun := time.perf_counter()) < end:
                call()
                found = min(found, time.perf_counter() - begun)
    finally:
        torch.set_num_threads(threads)
    return found
