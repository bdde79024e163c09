"""An average of the weights that training goes through, which does better than the last of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

_WARMUP = 10  # steps; until then the first weights, which are random, would weigh too much


class Average:
    """Exponential moving average of parameters.

        a(k) = d(k) a(k-1) + (1 - d(k)) θ(k),  d(k) = min(decay, (1 + k) / (10 + k))

    parameters: by name, as training changes them. decay: in (0, 1); the mean is over about the last 1 / (1 - decay)
    steps. values: the average, by name. Source: Polyak and Juditsky, Acceleration of stochastic approximation by
    averaging, 1992.
    """

    def __init__(self, parameters: Mapping[str, Tensor], decay: float) -> None:
        self.parameters, self.decay = parameters, decay
        self.values = {name: p.detach().clone() for name, p in parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after a step, counted from 1."""
        share = 1 - min(self.decay, (1 + step) / (_WARMUP + step))
        torch._foreach_lerp_(list(self.values.values()), list(self.parameters.values()), share)

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Inside, the model has the averaged weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, p in self.parameters.items():
            p.data, self.values[name] = self.values[name], p.data
