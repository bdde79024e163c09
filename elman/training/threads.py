"""How many threads a training by the clock has: as many as train fastest, asked now and again.

PyTorch's threads wait for one another in every product, so where another program keeps a core busy, two threads can be
ten times slower than one. And such programs come and go. Only training by the clock asks: its result depends on the
speed anyway, and the number of threads changes the last bits of a product.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import torch

from elman.data.batches import Batches

_STEPS = 5  # that are compared with as many others
_SECONDS = 20.0  # of training between two trials at first …
_MOST_SECONDS = 80.0  # … and where one after the other changes nothing
_SLOWER = 1.5  # times what steps took when the number was chosen: something has come
_BETTER = 0.9  # of the time: what is about as fast is left as it is
_TOO_SLOW = 4.0  # times the time: such a trial ends


class Threads:
    """All that torch has, or one, by what steps of training take: they go on with the other number now and then.

    most: all. chosen: the number that the training begins with. change: sets it.
    """

    def __init__(self, most: int, chosen: int, change: Callable[[int], None] = torch.set_num_threads) -> None:
        self.chosen, self._most, self._change = chosen, most, change
        self._took: deque[float] = deque(maxlen=_STEPS)  # the latest steps
        self._usual: float | None = None  # what a step took when the number was chosen
        self._trial: list[float] | None = None  # steps with the other number; the first one may wake threads
        self._wait = self._left = _SECONDS

    def stepped(self, seconds: float) -> None:
        """A step of training took so long; sets the number for the next one."""
        if self._most == 1:
            return
        if self._trial is None:
            self._took.append(seconds)
            self._left -= seconds
            if len(self._took) == _STEPS and self._is_time():
                self._trial = []
                self._change(self._other)
            return
        self._trial.append(seconds)
        mine, theirs = statistics.median(self._took), statistics.median(self._trial[1:] or [0.0])
        if len(self._trial) > _STEPS or theirs > _TOO_SLOW * mine:
            self._end(mine, theirs)

    @property
    def _other(self) -> int:
        return self._most if self.chosen == 1 else 1

    def _is_time(self) -> bool:
        now = statistics.median(self._took)
        if self._usual is None:
            self._usual = now
        return self._left <= 0 or now > _SLOWER * self._usual

    def _end(self, mine: float, theirs: float) -> None:
        if better := theirs < _BETTER * mine:
            self.chosen = self._other
        self._wait = _SECONDS if better else min(2 * self._wait, _MOST_SECONDS)
        self._usual, self._left, self._trial = theirs if better else mine, self._wait, None
        self._took.clear()
        self._change(self.chosen)


def pick_threads(model: Any, batches: Batches, loss: Callable[..., Any]) -> int:
    """How many threads train fastest right now, all that torch has, or one: a few steps on a copy of the model tell."""
    most = torch.get_num_threads()
    if most == 1:
        return 1
    trial, place = copy.deepcopy(model), batches.position
    first = next(batches)
    batches.position = place
    took: dict[int, float] = {}
    try:
        for threads in (1, most):
            torch.set_num_threads(threads)
            times: list[float] = []
            while len(times) < 6 and (len(times) < 2 or sum(times) < 1.0):
                start = time.perf_counter()
                loss(trial, first, None)[0].backward()
                times.append(time.perf_counter() - start)
            took[threads] = statistics.median(times[1:])
    finally:
        torch.set_num_threads(most)
    return min(took, key=lambda threads: took[threads])
