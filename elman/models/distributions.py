"""What may happen at a step, as a network says it: log-likelihood, mean, and a draw made of uniform and normal numbers.

A draw is arithmetic on standard draws, so that it can stand inside of a cell whose loop an engine runs.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

QUANTILES = (0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.975)  # that forecasts are given with
_EDGES = (0.0, *((a + b) / 2 for a, b in zip(QUANTILES, QUANTILES[1:], strict=False)), 1.0)
SHARES = tuple(b - a for a, b in zip(_EDGES, _EDGES[1:], strict=False))  # of all levels, that each stands for
_LEAST = 1e-4  # of a scale, in that of the series
_TRIES, _COUNTED = 4, 96  # proposals of a gamma draw; the largest count that is found by adding up


class Distribution(nn.Module, ABC):
    """Of one number, by `raw` [..., P], in which the first is what a linear forecast adds to.

    z: numbers, scaled as the series is: y = loc + scale · z. scale: [...], of the series; counts need it.
    """

    parameters_count: int

    @abstractmethod
    def nats(self, raw: Tensor, z: Tensor, scale: Tensor) -> Tensor:
        """-log p(z) [...]; of counts, of z · scale."""

    @abstractmethod
    def mean(self, raw: Tensor, scale: Tensor) -> Tensor:
        """[...]"""

    @abstractmethod
    def draw(self, raw: Tensor, scale: Tensor) -> Tensor:
        """z [...]"""


class Gaussian(Distribution):
    """Normal, with mean and standard deviation softplus(raw)."""

    parameters_count = 2

    def nats(self, raw: Tensor, z: Tensor, scale: Tensor) -> Tensor:
        deviation = softplus(raw[..., 1]) + _LEAST
        return 0.5 * ((z - raw[..., 0]) / deviation).square() + deviation.log() + 0.5 * math.log(2 * math.pi)

    def mean(self, raw: Tensor, scale: Tensor) -> Tensor:
        return raw[..., 0]

    def draw(self, raw: Tensor, scale: Tensor) -> Tensor:
        return raw[..., 0] + (softplus(raw[..., 1]) + _LEAST) * torch.randn_like(raw[..., 0])


class StudentT(Distribution):
    """Student's t, for odd values that are more often than a normal distribution has them.

    Degrees of freedom are above 2, so that there is a variance. A draw is Bailey's: with u, v uniform,
    (ν (u^(-2/ν) - 1))^½ cos 2πv is one of ν degrees.
    Source: Bailey, Polar generation of random variates with the t-distribution, 1994.
    """

    parameters_count = 3

    def nats(self, raw: Tensor, z: Tensor, scale: Tensor) -> Tensor:
        spread, freedom = softplus(raw[..., 1]) + _LEAST, _freedom(raw)
        far = torch.log1p(((z - raw[..., 0]) / spread).square() / freedom)
        norm = (
            torch.lgamma((freedom + 1) / 2) - torch.lgamma(freedom / 2) - 0.5 * torch.log(math.pi * freedom)
        )
        return 0.5 * (freedom + 1) * far + spread.log() - norm

    def mean(self, raw: Tensor, scale: Tensor) -> Tensor:
        return raw[..., 0]

    def draw(self, raw: Tensor, scale: Tensor) -> Tensor:
        freedom, middle = _freedom(raw), raw[..., 0]
        u, v = torch.rand_like(middle).clamp(min=1e-7), torch.rand_like(middle)
        t = torch.sqrt(freedom * torch.expm1(-2 / freedom * torch.log(u))) * torch.cos(2 * math.pi * v)
        return middle + (softplus(raw[..., 1]) + _LEAST) * t


class NegativeBinomial(Distribution):
    """Counts whose variance is larger than their mean: μ + α μ².

    A draw is a Poisson one whose mean is drawn from a gamma distribution: of Marsaglia's and Tsang's proposals the
    first of four that they accept, which leaves out less than one in 10⁵; a count is found by adding up probabilities,
    or, where some 60 and more are expected, from a normal number by Cornish and Fisher.
    Source: Marsaglia and Tsang, A simple method for generating gamma variables, 2000.
    """

    parameters_count = 2
    logs: Tensor
    numbers: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("logs", torch.lgamma(torch.arange(_COUNTED + 1.0) + 1), persistent=False)
        self.register_buffer("numbers", torch.arange(_COUNTED + 1.0), persistent=False)

    def nats(self, raw: Tensor, z: Tensor, scale: Tensor) -> Tensor:
        mean, shape = self._of(raw, scale)
        count = (z * scale).round().clamp(min=0)
        log = torch.lgamma(count + shape) - torch.lgamma(shape) - torch.lgamma(count + 1)
        return -(log + shape * torch.log(shape / (shape + mean)) + count * torch.log(mean / (shape + mean)))

    def mean(self, raw: Tensor, scale: Tensor) -> Tensor:
        return softplus(raw[..., 0]) + _LEAST

    def draw(self, raw: Tensor, scale: Tensor) -> Tensor:
        mean, shape = self._of(raw, scale)
        rate = _gamma(shape) * mean / shape
        few = rate.clamp(max=64.0)[..., None]
        passed = torch.exp(self.numbers * torch.log(few) - few - self.logs).cumsum(-1)
        counted = (passed < torch.rand_like(few)).to(rate.dtype).sum(-1)
        normal = torch.randn_like(rate)
        many = rate + rate.sqrt() * normal + (normal.square() - 1) / 6
        return torch.where(rate < 60, counted, torch.floor(many + 0.5).clamp(min=0)) / scale

    def _of(self, raw: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, 1 / α), of counts."""
        return (softplus(raw[..., 0]) + _LEAST) * scale, 1 / (softplus(raw[..., 1]) + 1e-3)


def _gamma(shape: Tensor) -> Tensor:
    """Gamma numbers of a shape, of rate 1. Below 1, by that of one more and a power of a uniform number."""
    small = shape < 1
    d = torch.where(small, shape + 1, shape) - 1 / 3
    c = 1 / torch.sqrt(9 * d)
    drawn, missing = torch.ones_like(d), torch.ones_like(d)
    for _ in range(_TRIES):
        x, u = torch.randn_like(d), torch.rand_like(d).clamp(min=1e-7)
        cube = (1 + c * x).clamp(min=1e-3)
        v = cube * cube * cube
        right = torch.log(u) < 0.5 * x * x + d * (1 - v + torch.log(v))
        drawn = torch.where((missing > 0) & right, v, drawn)
        missing = torch.where(right, torch.zeros_like(missing), missing)
    power = torch.exp(torch.log(torch.rand_like(d).clamp(min=1e-7)) / shape)
    return torch.where(small, d * drawn * power, d * drawn).clamp(min=1e-8)


def _freedom(raw: Tensor) -> Tensor:
    return 2.1 + softplus(raw[..., 2])


DISTRIBUTIONS: dict[str, Any] = {
    "gaussian": Gaussian,
    "student-t": StudentT,
    "negative-binomial": NegativeBinomial,
}
DIRECT, FRAMES = "quantiles", "bernoulli"  # without a draw at each step; of vectors of 0 and 1
NAMES = (*DISTRIBUTIONS, DIRECT, FRAMES)


def pinball(quantiles: Tensor, z: Tensor) -> Tensor:
    """The CRPS [...] of quantiles [..., Q] where z [...] happened: twice the mean over levels of the loss that is least
    at the quantile. Each of the levels QUANTILES stands for those that are nearest to it."""
    levels = torch.tensor(QUANTILES, dtype=quantiles.dtype, device=quantiles.device)
    shares = torch.tensor(SHARES, dtype=quantiles.dtype, device=quantiles.device)
    off = z[..., None] - quantiles
    return 2 * (torch.maximum(levels * off, (levels - 1) * off) * shares).sum(-1)
