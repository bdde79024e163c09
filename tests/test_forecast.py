"""Forecasting: distributions, figures, paths, the estimator and its command."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from elman import explain
from elman.data.series_form import SeriesForm, context_for
from elman.data.series_windows import Origins
from elman.errors import DataError, InputError, NotYet
from elman.models import Forecaster
from elman.models.distributions import DISTRIBUTIONS, QUANTILES, SHARES, pinball
from elman.models.forecast_network import ForecastNetwork
from elman.models.forecasting import crps, gaussian_crps, naive_error, rolling, scored, seasonal_naive
from elman.models.forecasting import forecasts as forecasts_of
from tests.pairwise import with_more
from tests.strangers import elman
from tests.typed import expect_answers
from tests.weekly import SMALL, panel, weeks


@pytest.fixture(scope="module")
def fitted() -> Forecaster:
    return Forecaster(7, **SMALL).fit(weeks())


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


# --- the estimator ----------------------------------------------------------------------------------------------------


def test_it_is_fitted_kept_and_opened_again(fitted: Forecaster, tmp_path: Path) -> None:
    found = fitted.predict(4)
    assert list(found) == ["unique_id", "ds", "mean", *map(str, QUANTILES)]
    assert found["unique_id"] == ["s0"] * 4 + ["s1"] * 4 + ["s2"] * 4
    assert found["ds"][:4] == ["2024-04-30", "2024-05-01", "2024-05-02", "2024-05-03"]
    values = np.array([found[str(q)] for q in QUANTILES])
    assert (np.diff(values, axis=0) >= 0).all()
    assert found["0.5"][:4] == pytest.approx([7.3] * 4, abs=1.6)
    fitted.save_pretrained(tmp_path / "kept")
    again = Forecaster.from_pretrained(tmp_path / "kept")
    assert again.predict(4) == found
    assert again.paths(4, count=3)["s1"].shape == (3, 4)
    assert Forecaster(7, **SMALL).fit(weeks()).predict(4) == found
    kept = tmp_path / "kept" / "series.json"
    raw = json.loads(kept.read_bytes())
    for broken in (
        "{",
        {**raw, "form": {**raw["form"], "season": 0}},
        {**raw, "form": {**raw["form"], "horizon": 9}},
        {**raw, "tails": [{**raw["tails"][0], "y": ["x"]}]},
        {**raw, "form": {**raw["form"], "grid": {**raw["form"]["grid"], "kind": "x"}}},
    ):
        kept.write_text(broken if isinstance(broken, str) else json.dumps(broken))
        with pytest.raises(DataError):
            Forecaster.from_pretrained(tmp_path / "kept")


@pytest.mark.parametrize("distribution", ["gaussian", "quantiles"])
@pytest.mark.parametrize(("cut", "y"), [
    ("a gap", [*range(60)]),
    ("a long gap", [*range(60)]),
    ("constant", [*range(30), *[7] * 40]),
])  # fmt: skip
def test_opened_again_it_forecasts_the_same_to_the_bit(
    cut: str, y: list[Any], distribution: str, tmp_path: Path
) -> None:
    """The end that is kept may begin at a gap, which is filled with what came before, or say nothing of a scale."""
    model = Forecaster(2, distribution=distribution, **{**SMALL, "season": 1, "steps": 2})
    size = len(y) - context_for(1, 2) - max(SeriesForm.of(panel(), 1, 24, 2).lags)
    if "gap" in cut:
        y = [*y[: size - 15 * ("long" in cut)], *[None] * (1 + 15 * ("long" in cut)), *y[size + 1 :]]
    said = model.fit(y).predict()
    model.save_pretrained(tmp_path)
    again = Forecaster.from_pretrained(tmp_path)
    assert again.predict() == said
    assert np.isfinite(said["mean"]).all()
    assert again.step(3.0, again.begin())[0] == model.step(3.0, model.begin())[0]
    again.save_pretrained(tmp_path / "twice")
    assert Forecaster.from_pretrained(tmp_path / "twice").predict() == said
    # Folders of before know nothing earlier: they fill with the first number.
    kept = tmp_path / "series.json"
    raw = json.loads(kept.read_bytes())
    assert [row.pop("earlier") for row in raw["tails"]]
    kept.write_text(json.dumps(raw))
    assert np.isfinite(Forecaster.from_pretrained(tmp_path).predict()["mean"]).all()


@pytest.mark.parametrize("distribution", ["gaussian", "quantiles"])
@pytest.mark.parametrize("level", [2.0**27, 2.0**33])
def test_series_that_lie_far_from_0_are_forecast_as_if_they_did_not(
    level: float, distribution: str, tmp_path: Path
) -> None:
    """Levels and changes of which float64 loses nothing: the level is in float64 to the end."""
    near = [0.25 * k for k in np.random.default_rng(0).integers(0, 9, 80).tolist()]
    far = [level + value for value in near]
    how = {"distribution": distribution, **SMALL, "season": 1, "steps": 3}
    a, b = Forecaster(3, **how).fit(near), Forecaster(3, **how).fit(far)
    b.save_pretrained(tmp_path)
    c = Forecaster.from_pretrained(tmp_path)

    def shifted(values: Any) -> np.ndarray:
        return np.asarray(values) - level

    for model in (b, c):
        for name in ("mean", "0.025", "0.975"):
            assert shifted(model.predict(2)[name]) == pytest.approx(np.array(a.predict(2)[name]), abs=1e-3)
            assert shifted(model.evaluate(far).table[name]) == pytest.approx(
                np.array(a.evaluate(near).table[name]), abs=1e-3
            )
            said = model.step(level + 1.25, model.begin())[0][name]
            assert said - level == pytest.approx(a.step(1.25, a.begin())[0][name], abs=1e-3)
        assert model.evaluate(far).scores.mase == pytest.approx(a.evaluate(near).scores.mase, abs=1e-3)
    if distribution == "gaussian":
        assert shifted(c.paths(2, count=5)[""]) == pytest.approx(a.paths(2, count=5)[""], abs=1e-3)


def test_a_forecast_of_nan_is_refused_and_counted() -> None:
    y = [math.sin(t) for t in range(60)]
    model = Forecaster(2, **{**SMALL, "season": 1, "steps": 2}).fit(y)
    with torch.no_grad():
        model.network.linear.bias.fill_(math.nan)
    for call in (model.predict, lambda: model.evaluate(y)):
        with pytest.raises(DataError, match="tells no number"):
            call()
    form, series = model._ends
    origins = rolling(series, form, [50], 3)
    made = forecasts_of(Forecaster(2, **{**SMALL, "season": 1, "steps": 2}).fit(y).network, origins, paths=20)
    for part in (made.mean, made.quantiles, made.paths):
        part[0] = math.nan
    found = scored(origins, made)
    assert math.isnan(found.mase)
    assert math.isnan(found.crps)
    assert np.isfinite(found.naive).all()


def test_it_beats_the_naive_forecast_and_its_intervals_hold() -> None:
    found = Forecaster(7, **SMALL).backtest(weeks(3, 200), folds=3)
    assert found.scores.mase < 0.8 * found.scores.naive[0]
    assert found.scores.crps < 0.8 * found.scores.naive[1]
    assert 0.6 < found.scores.coverage[0.8] < 0.95
    assert found.scores.count == 9
    assert len(found.table["y"]) == 63
    assert len(found.scores.steps) == 7


def test_random_numbers_go_on_as_if_nothing_was_drawn() -> None:
    before = torch.get_rng_state()
    Forecaster(3, **{**SMALL, "steps": 2}).fit(weeks(1, 40)).predict(2)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("y", "how"),
    [
        ([3.0] * 40, {}),  # constant
        ([1.0, 2.0, 3.0, 4.0, 5.0], {}),  # shorter than the window
        ([2.0], {}),
        ([None, 1.0, None, None, 4.0, None, 3.0] * 6, {}),
        ([0.0] * 20 + [5.0] + [0.0] * 20, {"distribution": "negative-binomial"}),
        ([1.0, 2.0] * 20, {"distribution": "quantiles"}),
        ([1.0, 2.0], {"distribution": "quantiles"}),
        ([1e12 + k for k in range(30)], {}),
    ],
)  # fmt: skip
def test_series_that_say_little_are_forecast_all_the_same(y: list[Any], how: dict[str, Any]) -> None:
    model = Forecaster(4, **{**SMALL, "season": 2, "steps": 2}, **how).fit(y)
    found = np.array([model.predict()[name] for name in ("mean", "0.05", "0.95")])
    assert np.isfinite(found).all()
    if len(set(y)) == 1 and len(y) > 1:
        assert found[0] == pytest.approx(np.full(4, y[0]), abs=2)


def test_other_columns_are_read_too() -> None:
    rng = np.random.default_rng(0)
    price = rng.choice([0.0, 1.0], size=160)
    y = 5 - 3 * price + 0.1 * rng.normal(size=160)
    rows = {"ds": list(range(160)), "y": [*y[:150], *[None] * 10], "price": list(price), "kind": ["a"] * 160}
    rows["sold"] = [*y[:150], *[None] * 10]
    own = {"cell": "elman", "hidden": 8, "steps": 40, "lr": 0.01}
    model = Forecaster(10, known=["price"], past=["sold"], static=["kind"], **own)
    said = model.fit(rows).predict()
    assert np.corrcoef(said["0.5"], 5 - 3 * price[150:])[0, 1] > 0.9
    with pytest.raises(DataError, match="ends too early"):
        model.predict(11)
    with pytest.raises(DataError, match="static value"):
        model.predict(10, {**rows, "kind": ["b"] * 160})
    with pytest.raises(InputError, match="a series alone"):
        model.begin()


def test_a_live_stream_is_followed_step_by_step(fitted: Forecaster) -> None:
    state, rows = fitted.begin(unique_id="s0"), weeks()
    first, after = fitted.step(7.0, state, paths=4000)
    assert first["ds"] == "2024-05-01"
    longer = {name: [*[v for v, i in zip(rows[name], rows["unique_id"], strict=True) if i == "s0"], more]
              for name, more in (("unique_id", "s0"), ("ds", "2024-04-30"), ("y", 7.0))}  # fmt: skip
    again = fitted.predict(1, longer, paths=4000)
    # The scale of the stream is that of its beginning: nearly the same.
    assert first["0.5"] == pytest.approx(again["0.5"][0], abs=0.15)
    told, _ = fitted.step(None, after)
    assert told["ds"] == "2024-05-02"
    assert told["0.025"] < told["mean"] < told["0.975"]
    # What is farther than 10,000 scales is read as there, as in a series.
    assert fitted.step(1e20, state)[0] == fitted.step(1e300, state)[0]
    with pytest.raises(InputError, match="no number"):
        fitted.step(math.inf, state)
    with pytest.raises(InputError, match="follows one series"):
        fitted.begin()


def test_settings_that_cannot_be() -> None:
    for how, what in (
        ({"distribution": "cauchy"}, "no such distribution"),
        ({"season": 0}, "number of steps"),
        ({"context": 10**6}, "number of steps"),
    ):
        with pytest.raises(InputError, match=what):
            Forecaster(3, **{**SMALL, **how}).fit(weeks(1, 40))
    with pytest.raises(InputError, match="number of steps"):
        Forecaster(0)
    with pytest.raises(DataError, match="of counts"):
        Forecaster(3, distribution="negative-binomial", **SMALL).fit(weeks(1, 40))
    with pytest.raises(DataError, match="too short"):
        Forecaster(30, **SMALL).backtest(weeks(1, 40))
    with pytest.raises(NotYet):
        Forecaster().predict()
    model = Forecaster(3, distribution="quantiles", **{**SMALL, "steps": 2}).fit(weeks(1, 60))
    assert len(model.predict(2)["ds"]) == 2
    for call in (lambda: model.predict(4), lambda: model.paths(2)):
        with pytest.raises(InputError):
            call()
    assert context_for(52, 12) == 104


def test_nothing_is_not_none(fitted: Forecaster) -> None:
    for horizon in (0, -1):
        for call in (fitted.predict, fitted.paths):
            with pytest.raises(InputError, match="horizon is a whole number"):
                call(horizon)
    rows = weeks()
    for call in (fitted.evaluate, fitted.backtest):
        with pytest.raises(InputError, match="stride is a whole number"):
            call(rows, stride=0)
    one = Forecaster(2, distribution="bernoulli", cell="elman", hidden=4, layers=1, steps=1).fit(
        [np.ones((9, 2))] * 3
    )
    with pytest.raises(InputError, match="horizon is a whole number"):
        one.predict(0)


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("forecast")
    rows = weeks(2, 150)
    lines = [",".join(map(str, row)).replace("nan", "") for row in zip(*rows.values(), strict=True)]
    (folder / "a.csv").write_text("\n".join(["unique_id,ds,y", *lines]))
    how = ("--horizon", "7", "--cell", "elman", "--hidden", "8", "--steps", "20", "--lr", "0.01", "--batch", "16",
           "--quiet")  # fmt: skip
    said = elman("train", "forecast", folder / "a.csv", *how, "--out", folder / "run")
    assert said.status == 0, said.err
    assert "2 series of up to 150 steps of a day, season 7" in said.out
    return folder / "run"


def test_a_run_says_mase_first_and_what_lies_beside_it(run: Path) -> None:
    said = elman("evaluate", run)
    assert said.status == 0, said.err
    first, beside, inside = said.out.splitlines()
    assert first.startswith("MASE ")
    assert "× naive error, CRPS " in first
    assert "%" not in first + beside + said.err
    assert "seasonal naive MASE" in beside
    assert "% (0.8)" in inside
    page = (run / "report.html").read_text()
    for title in ("Held out, 1: s0", "Intervals:", "Beside it", "By the step of the forecast"):
        assert title in page
    assert 'fill-opacity="0.18"' in page


def test_it_goes_on_from_the_end_from_a_file_or_a_stream(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = elman("predict", run)
    head, first, *rest = said.out.splitlines()
    assert head == ",".join(["unique_id", "ds", "mean", *map(str, QUANTILES)])
    assert first.startswith("s0,2024-05-30,")
    assert len(rest) == 13
    found = Forecaster.from_pretrained(run).predict(7)
    assert float(first.split(",")[2]) == pytest.approx(found["mean"][0], rel=1e-5)
    (tmp_path / "b.csv").write_text(
        "unique_id,ds,y\n" + "".join(f"new,2024-06-{k:02d},{k % 7}\n" for k in range(1, 29))
    )
    said = elman("predict", run, tmp_path / "b.csv", "--out", tmp_path / "out.csv")
    assert said.status == 0, said.err
    assert (tmp_path / "out.csv").read_text().splitlines()[1].startswith("new,2024-06-29,")
    stream = b"unique_id,ds,y\ns0,2024-05-30,8.1\ns0,2024-06-02,8.3\nother,2024-06-02,3\ns0,2024-06-03,\n"
    said = elman("predict", run, "-", text=stream)
    assert [line.split(",")[:2] for line in said.out.splitlines()[1:]] == [
        ["s0", "2024-05-31"], ["s0", "2024-06-03"], ["other", "2024-06-03"], ["s0", "2024-06-04"]
    ]  # fmt: skip
    rows = [b"unique_id,ds,y\n", b"s0,2024-05-30,8.1\n", b"s0,2024-06-02,\n"]
    assert expect_answers(run, rows, monkeypatch)[2].startswith("s0,2024-06-03,")
    for text, what in (
        (b"ds,y\nx,1\n", "no time stamp"),
        (b"ds,y\n2024-06-02,inf\n", "no number"),
        (b"ds,y\n2024-06-02T01:00,\n", "between two steps"),
        (b"ds\n2024-06-02\n", "no column 'y'"),
    ):
        said = elman("predict", run, "-", text=text)
        assert said.status == 2
        assert what in said.err
        assert "standard input:" in said.err
    said = elman("predict", run, "-", text=b"unique_id,ds,y\nnew,2024-06-02,\nnew,2024-06-03,3\n")
    assert "nan" not in said.out
    assert len(said.out.splitlines()) == 3
    said = elman("predict", run, "-", text=b"ds,y\n2024-06-02,1\n2024-06-02,2\n")
    assert "not in order" in said.err
    assert "standard input:3" in said.err


def test_what_cannot_be_is_refused_in_our_words(fitted: Forecaster) -> None:
    rows, state = weeks(), fitted.begin(unique_id="s0")
    for call in (
        lambda: fitted.predict(2, paths=0),
        lambda: fitted.paths(2, count=0),
        lambda: fitted.step(1.0, state, paths=0),
        *(lambda call=call, how=how: call(rows, **how) for call in (fitted.evaluate, fitted.backtest)
          for how in ({"folds": 0}, {"folds": -1}, {"stride": -1}, {"folds": 1.5})),
        lambda: Forecaster(7, **SMALL, folds=-1).fit(rows),
    ):  # fmt: skip
        with pytest.raises(InputError, match="is a whole number"):
            call()
    for y in ("x", [1.0, 2.0], 10**400, torch.ones(3)):
        with pytest.raises(InputError, match="this is no number"):
            fitted.step(y, state)
    for other in (None, "x", (1, 2)):
        with pytest.raises(InputError, match="goes on from a state"):
            fitted.step(1.0, other)
    for frame in (3, np.zeros((60, 2)), "abc"):
        with pytest.raises(InputError, match="no frame"):
            Forecaster(2, **SMALL).fit(frame)


def test_whole_numbers_that_look_like_months_are_noted(tmp_path: Path) -> None:
    rows = [f"{2015 + k // 12}{k % 12 + 1:02d},{k % 12}" for k in range(60)]
    (tmp_path / "a.csv").write_text("\n".join(["ds,y", *rows]))
    how = ("--horizon", "3", "--cell", "elman", "--hidden", "4", "--steps", "1")
    said = elman("train", "forecast", tmp_path / "a.csv", *how, "--out", tmp_path / "run")
    assert said.status == 0, said.err
    assert (
        "a.csv, ds: taken as whole numbers, 201501 and so on look like a year and a month: write 2015-01"
        in said.err
    )


def test_as_many_digits_are_written_as_the_scale_of_a_series_needs(run: Path, tmp_path: Path) -> None:
    rows = [(name, f"2024-06-{k:02d}", level + 0.5 * (k % 7)) for name, level in (("far", 1e9), ("near", 5))
            for k in range(1, 29)]  # fmt: skip
    lines = "".join(f"{name},{ds},{y!r}\n" for name, ds, y in rows)
    (tmp_path / "far.csv").write_text("unique_id,ds,y\n" + lines)
    said = elman("predict", run, tmp_path / "far.csv").out.splitlines()[1:]
    rows = {name: [row.split(",") for row in said if row.startswith(name)] for name in ("far", "near")}
    for far, near in zip(rows["far"], rows["near"], strict=True):
        assert len(set(far[2:])) == len(set(near[2:])) > 8
        assert all(len(value) <= 15 for value in far[2:])
        assert all(len(value) <= 9 for value in near[2:])


def test_it_is_measured_on_what_came_later(run: Path, tmp_path: Path) -> None:
    later = "".join(
        f"s0,{np.datetime64('2024-05-30') + np.timedelta64(k, 'D')},{5 + k % 7}\n" for k in range(14)
    )
    (tmp_path / "later.csv").write_text("unique_id,ds,y\n" + later)
    said = elman("evaluate", run, tmp_path / "later.csv")
    assert said.status == 0, said.err
    assert "of 2 forecasts of 7 steps" in said.out
    (tmp_path / "hourly.csv").write_text("unique_id,ds,y\ns0,2024-05-30T01:00,3\n")
    said = elman("evaluate", run, tmp_path / "hourly.csv")
    assert said.status == 2
    assert "between two steps" in said.err
    path = run.parent / "a.csv"
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b"s0,2024-01-03", b"s0,2024-01-03"[:-1] + b"3").replace(b",5.", b",6."))
    assert "not those that were learnt from" in elman("evaluate", run).err
    path.write_bytes(raw)


def test_it_explains_itself(fitted: Forecaster) -> None:
    fitted.predict(2)
    assert "in the loop" in str(explain(fitted))


# --- real data --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", with_more([1], [40]))
def test_sunspots_from_rolling_places(steps: int) -> None:
    """Numbers of each year from 1700 to 2008, of the National Geophysical Data Center: in the public domain, and as
    statsmodels has them."""
    rows = np.loadtxt(Path(__file__).with_name("sunspots.csv"), delimiter=",", skiprows=1)
    rows = {"ds": rows[:, 0].astype(int).tolist(), "y": rows[:, 1].tolist()}
    found = Forecaster(12, season=11, cell="elman", hidden=8, steps=steps).backtest(rows).scores
    assert found.count == 5
    assert found.naive == pytest.approx((1.2668, 0.9657), abs=1e-4)
    if steps > 1:
        assert found.crps < 1.2659  # exponential smoothing's: bench/forecast.py
        assert 0.6 < found.coverage[0.8] < 0.97
