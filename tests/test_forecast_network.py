"""What a forecast is made of: distributions against those of torch, figures, and the paths of the network."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from elman.data.series_form import SeriesForm
from elman.data.series_windows import Origins
from elman.models.distributions import DISTRIBUTIONS, QUANTILES, SHARES, pinball
from elman.models.forecast_network import ForecastNetwork
from elman.models.forecasting import crps, gaussian_crps, naive_error, rolling, scored, seasonal_naive
from elman.models.forecasting import forecasts as forecasts_of
from tests.pairwise import with_more
from tests.weekly import panel

# --- distributions and figures ----------------------------------------------------------------------------------------


def like(name: str, raw: torch.Tensor, scale: torch.Tensor) -> torch.distributions.Distribution:
    """The same distribution as torch has it; of counts, of counts."""
    first, second = raw[..., 0], torch.nn.functional.softplus(raw[..., 1])
    if name == "gaussian":
        return torch.distributions.Normal(first, second + 1e-4)
    if name == "student-t":
        freedom = 2.1 + torch.nn.functional.softplus(raw[..., 2])
        return torch.distributions.StudentT(freedom, first, second + 1e-4)
    mean, shape = (torch.nn.functional.softplus(first) + 1e-4) * scale, 1 / (second + 1e-3)
    return torch.distributions.NegativeBinomial(shape, probs=mean / (mean + shape))


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_likelihoods_are_those_of_torch(name: str) -> None:
    law = DISTRIBUTIONS[name]().double()
    raw = torch.randn(40, law.parameters_count, dtype=torch.float64)
    scale, z = torch.rand(40, dtype=torch.float64) * 20 + 1, torch.randn(40, dtype=torch.float64)
    if name == "negative-binomial":
        z = (z.abs() * scale).round() / scale
        expected = -like(name, raw, scale).log_prob((z * scale).round())
    else:
        expected = -like(name, raw, scale).log_prob(z)
    torch.testing.assert_close(law.nats(raw, z, scale), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("size", [0.5, 40.0, 3000.0])
def test_draws_are_of_the_distribution(name: str, size: float) -> None:
    law, count = DISTRIBUTIONS[name](), 40_000
    raw, scale = torch.tensor([[0.7, -0.3, 1.0]])[:, : law.parameters_count], torch.tensor([size])
    drawn = (
        law.draw(raw.expand(count, -1), scale.expand(count)) * (size if "binomial" in name else 1)
    ).double()
    theirs = like(name, raw, scale)
    if name == "negative-binomial":
        assert (
            (drawn == drawn.round()).all() or size == 0.5 or torch.allclose(drawn, drawn.round(), atol=0.01)
        )
        assert float(drawn.var()) == pytest.approx(float(theirs.variance), rel=0.05)
        drawn = drawn.round()
    sample = theirs.sample((count,))[:, 0].double()
    levels = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.float64)
    deviation = float(sample.std().clamp(max=3 * (sample.quantile(0.75) - sample.quantile(0.25)) + 1e-3))
    assert drawn.quantile(levels) == pytest.approx(
        sample.quantile(levels), abs=0.05 * deviation + (0.5 < size < 1)
    )
    mean = float(law.mean(raw, scale)) * (size if name == "negative-binomial" else 1)
    assert float(drawn.mean()) == pytest.approx(mean, abs=0.05 * deviation)


def test_figures_against_their_plain_formulas() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(5, 30)), rng.normal(size=5)
    plain = [
        np.mean(np.abs(row - at)) - np.mean([abs(a - b) for a in row for b in row]) / 2
        for row, at in zip(x, y, strict=True)
    ]
    assert crps(x, y) == pytest.approx(np.array(plain))
    many = rng.normal(size=(1, 100_000))
    assert crps(many * 2 + 1, np.array([2.0])) == pytest.approx(
        gaussian_crps(np.array([1.0]), np.array([2.0]), np.array([2.0])), rel=0.02
    )
    # Twice the mean of the quantiles' losses is the CRPS, with as many quantiles as there are.
    normal = torch.distributions.Normal(1.0, 2.0).icdf(torch.tensor(QUANTILES))
    assert float(pinball(normal, torch.tensor(2.0))) == pytest.approx(
        float(gaussian_crps(np.array(1.0), np.array(2.0), np.array(2.0))), rel=0.15
    )
    assert sum(SHARES) == pytest.approx(1)
    assert naive_error(np.array([1.0, 5, 2, 7, math.nan, 8]), 2) == pytest.approx((1 + 2 + 1) / 3)
    assert naive_error(np.array([1.0, 4, 2]), 7) == pytest.approx(2.5)
    assert naive_error(np.full(9, 3.0), 2) == 0
    mean, deviation = seasonal_naive(np.array([1.0, 2, 3, 2, math.nan, 5]), 3, 5)
    assert mean.tolist() == [2, 2, 5, 2, 2]
    assert deviation == pytest.approx(math.sqrt((1 + 4) / 2) * np.sqrt([1, 1, 1, 2, 2]))


def test_scores_are_means_by_the_naive_error() -> None:
    found = panel(count=2, gaps=False)
    form = SeriesForm.of(found, 7, 14, 7)
    origins = rolling(found, form, [120, 100], 2)
    network = ForecastNetwork(form.lags, form.features, 14, 7, cell="elman", hidden=8)
    network.begin(Origins(form, found).everywhere().take(range(0, 150, 5)))
    made = forecasts_of(network, origins, paths=50)
    said = scored(origins, made)
    y, off = origins.told(range(4)), []
    for k, (i, _) in enumerate(origins.places):
        size = naive_error(found.series[i].y[: (106, 86)[i]], 7)
        off.append(np.abs(np.quantile(made.paths[k], 0.5, axis=0) - y[k]) / size)
    assert said.mase == pytest.approx(np.mean(off))
    assert said.count == 4
    assert said.coverage[0.8] == pytest.approx(
        np.mean((y >= np.quantile(made.paths, 0.1, axis=1)) & (y <= np.quantile(made.paths, 0.9, axis=1)))
    )
    assert said.mase < said.naive[0]  # least squares alone knows the week and the slope


# --- the network ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", with_more(["gaussian"], ["negative-binomial", "student-t"]))
def test_paths_are_what_the_network_says_step_by_step(name: str) -> None:
    found = panel(count=1, gaps=False)
    if name == "negative-binomial":
        found.series[0].y[:] = found.series[0].y.round()
    form = SeriesForm.of(found, 7, 14, 3, counts=name == "negative-binomial")
    origins = Origins(form, found).everywhere()
    network = ForecastNetwork(form.lags, form.features, 14, 3, name, "elman", hidden=8, dropout=0.3)
    network.begin(origins.take(range(0, 100, 2)))
    w = Origins(form, found, places=[(0, 100), (0, 60)]).take([0, 1])
    drawn = network.eval().paths(w, 4000, 0)
    assert torch.equal(drawn, network.paths(w, 4000, 0))
    assert drawn.shape == (2, 4000, 3)
    # The first step is the network's distribution there.
    raw, _ = network(w.lags[:15], w.features[:15])
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first = network.law.draw(raw.detach()[-1, 0].expand(20_000, -1), w.scale[0].expand(20_000))
    levels = torch.tensor([0.1, 0.5, 0.9])
    spread = float(first.quantile(0.75) - first.quantile(0.25)) + 1e-3
    assert drawn[0, :, 0].quantile(levels).tolist() == pytest.approx(
        first.quantile(levels).tolist(), abs=0.12 * spread + (0.15 if "binomial" in name else 0)
    )
    # The second one is as if what was drawn at the first had happened.
    told = w.y.clone()
    told[14] = drawn[0, 7, 0]
    again = type(w)(**{**vars(w), "y": told})
    lags = w.lags[:16, :1].clone()
    lags[15, 0, 0], lags[15, 0, len(form.lags)] = told[14, 0], 1.0
    x = torch.cat([lags, w.features[:16, :1]], -1)
    h, _ = network.stack(x)
    assert again.y is told
    second = network._raw(h, x)[-1, 0]
    assert second.shape == (network.law.parameters_count,)
    near = (drawn[0, :, 0] - drawn[0, 7, 0]).abs().argsort()[:400]
    middle = float(network.law.mean(second.detach(), w.scale[0]))
    assert float(drawn[0, near, 1].median()) == pytest.approx(middle, abs=0.5 * spread + 0.1 * abs(middle))


def test_least_squares_is_where_learning_begins() -> None:
    found = panel(count=1, gaps=False)
    form = SeriesForm.of(found, 7, 14, 3)
    origins = Origins(form, found).everywhere()
    for name in ("gaussian", "quantiles"):
        network = ForecastNetwork(form.lags, form.features, 14, 3, name, "elman", hidden=8)
        values = origins.take(range(100))
        own = (values.lags, values.features, values.y, values.there, values.loc, values.scale)
        before = float(network.loss(*own)[0].detach())
        network.begin(values)
        assert float(network.loss(*own)[0].detach()) < before / 2
