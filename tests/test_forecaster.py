"""A forecaster from Python: fitted, kept and opened again, far from 0, step by step, and what is refused."""

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
from elman.errors import DataError, InputError, NotYet
from elman.models import Forecaster
from elman.models.distributions import QUANTILES
from elman.models.forecasting import forecasts as forecasts_of
from elman.models.forecasting import rolling, scored
from tests.weekly import SMALL, panel, weeks


@pytest.fixture(scope="module")
def fitted() -> Forecaster:
    return Forecaster(7, **SMALL).fit(weeks())


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


@pytest.mark.grid
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


@pytest.mark.grid(1)
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


@pytest.mark.parametrize(
    ("unit", "said"),
    [
        (1e100, "too large"),
        (1e37, "too large"),
        (1e-44, "too close together"),
        (1e-100, "too close together"),
    ],
)
def test_numbers_that_float32_has_no_scale_of_are_refused(unit: float, said: str) -> None:
    y = [math.sin(t) for t in range(60)]
    how = {**SMALL, "season": 1, "steps": 2}
    with pytest.raises(DataError, match=said) as told:
        Forecaster(2, **how).fit([unit * value for value in y])
    assert "another unit" in str(told.value)
    model = Forecaster(2, **how).fit(y)
    with pytest.raises(DataError, match=said):
        model.predict(2, [unit * value for value in y])


def priced(**odd: Any) -> dict[str, list[Any]]:
    """A series with a price that is known, for three more steps than it goes on, and what was sold. odd: of row 41."""
    rows: dict[str, list[Any]] = {
        "ds": [*range(60)], "y": [math.sin(t) for t in range(57)] + [None] * 3,
        "price": [math.cos(t) for t in range(60)], "sold": [math.cos(2 * t) for t in range(57)] + [None] * 3,
    }  # fmt: skip
    for name, value in odd.items():
        rows[name][41] = value
    return rows


@pytest.mark.parametrize("column", ["price", "sold"])
@pytest.mark.parametrize(
    ("value", "said"),
    [
        (1e37, "too large"), (-2e36, "too large"), ("1e200", "too large"), (10**40, "too large"),
        (1e301, "too large"), (math.inf, "no number"), ("-inf", "no number"), ("Infinity", "no number"),
        ("1e400", "no number"), (10**400, "no number"),
    ],
)  # fmt: skip
def test_extreme_numbers_of_other_columns_are_refused(column: str, value: Any, said: str) -> None:
    how = {**SMALL, "season": 1, "steps": 2, "known": ["price"], "past": ["sold"]}
    model = Forecaster(2, **how).fit(priced())
    for call in (lambda frame: Forecaster(2, **how).fit(frame), lambda frame: model.predict(2, frame)):
        with pytest.raises(InputError, match=said) as told:
            call(priced(**{column: value}))
        assert "row 41" in str(told.value)
        assert column in str(told.value)


@pytest.mark.parametrize("column", ["price", "sold"])
def test_numbers_of_other_columns_that_are_far_off_are_read_as_there(column: str) -> None:
    model = Forecaster(2, **{**SMALL, "season": 1, "steps": 2}, known=["price"], past=["sold"]).fit(priced())
    for sign in (1, -1):
        near, far = (model.predict(2, priced(**{column: sign * value})) for value in (1e8, 1e36))
        assert near["mean"] == far["mean"]
        assert all(map(math.isfinite, far["mean"]))


def of_sizes(*sizes: Any) -> dict[str, list[Any]]:
    """A series for each size, which is static."""
    y = [math.sin(t) for t in range(60)]
    return {
        "unique_id": [name for name, _ in zip("abcdefgh", sizes, strict=False) for _ in y],
        "ds": [*range(60)] * len(sizes), "y": y * len(sizes), "size": [size for size in sizes for _ in y],
    }  # fmt: skip


def test_extreme_numbers_of_a_whole_series() -> None:
    how = {**SMALL, "season": 1, "steps": 2, "static": ["size"]}
    model = Forecaster(2, **how).fit(of_sizes(1.0, 2.0, 3.0))
    for value in (1e37, -1e300, "1e200"):
        for call in (lambda frame: Forecaster(2, **how).fit(frame), lambda frame: model.predict(2, frame)):
            with pytest.raises(InputError, match="too large") as told:
                call(of_sizes(1.0, value))
            assert "row 60, size" in str(told.value)
    for sign in (1, -1):
        near, far = (model.predict(2, of_sizes(sign * value)) for value in (1e8, 1e36))
        assert near["mean"] == far["mean"]
        assert all(map(math.isfinite, far["mean"]))
    with pytest.raises(DataError, match="static value"):
        model.predict(2, of_sizes("1_0"))  # a word


@pytest.mark.parametrize("unit", [2.0**110, 2.0**-110])
def test_units_say_nothing_of_a_forecast(unit: float) -> None:
    y = [math.sin(t) for t in range(60)]
    how = {**SMALL, "season": 1, "steps": 2}
    one, other = Forecaster(2, **how).fit(y), Forecaster(2, **how).fit([unit * value for value in y])
    found = np.array(other.predict()["mean"]) / unit
    assert found == pytest.approx(np.array(one.predict()["mean"]), abs=1e-4)


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


def test_it_explains_itself(fitted: Forecaster) -> None:
    fitted.predict(2)
    assert "in the loop" in str(explain(fitted))
