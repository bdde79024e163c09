"""How much another process that keeps a core busy slows our training step down, and torch.mm beside it."""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from bench import measure
from bench.bound import BOUND
from bench.contestants import ENTRIES
from bench.form import OURS, Shape

SHAPES = ("B16H64", "B32H256", "B1H256")
# It ends with the process that began it, even if that is killed.
_SPIN = """
import os
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(100_000):
        pass
"""


@dataclass(frozen=True)
class Slowed:
    """Seconds of every call, by (contestant, busy or not)."""

    cell: str
    shape: str
    steps: int
    seconds: dict[tuple[str, bool], list[float]]

    def per_step(self, name: str, busy: bool) -> float:
        """Microseconds, the median."""
        return 1e6 * statistics.median(self.seconds[name, busy]) / self.steps

    def factor(self, name: str, mean: bool = False) -> float:
        """Busy / quiet. mean: of the means, which see the calls that waited long for a core; else of the medians."""
        middle = statistics.fmean if mean else statistics.median
        return middle(self.seconds[name, True]) / middle(self.seconds[name, False])

    def as_json(self) -> dict[str, Any]:
        seconds = {f"{name}, {'busy' if busy else 'quiet'}": s for (name, busy), s in self.seconds.items()}
        factors = {name: [self.factor(name), self.factor(name, mean=True)] for name in (OURS, BOUND)}
        return asdict(self) | {"seconds": seconds, "factors of median and mean": factors}


def run(cell: str, shape: str, T: int = 100, seconds: float = 2.0, blocks: int = 3, **options: Any) -> Slowed:
    """One cell at one shape: blocks of calls, by turns quiet and beside one spinning process; within a block ours and
    the products of torch.mm take turns. seconds: for one block. options: of `measure.contest`."""
    found = measure.contest(ENTRIES[cell], Shape.parse(shape), T, **options)
    ways = found.ways(measure.TRAINING, ())
    times: dict[tuple[str, bool], list[float]] = {
        (name, busy): [] for name in (OURS, BOUND) for busy in (False, True)
    }
    for _ in range(blocks):
        for busy in (False, True):
            with spinning() if busy else contextlib.nullcontext():
                for name, values in measure.in_turns(ways, 100_000, seconds).items():
                    times[name, busy] += values
    return Slowed(cell, str(found.shape), T, times)


@contextlib.contextmanager
def spinning() -> Iterator[None]:
    """Inside, one foreign process keeps a core busy."""
    with subprocess.Popen([sys.executable, "-S", "-c", _SPIN]) as process:
        try:
            time.sleep(0.3)  # until Python has started
            if process.poll() is not None:
                raise RuntimeError(f"the busy process ended at once, with {process.returncode}")
            yield
        finally:
            process.kill()
