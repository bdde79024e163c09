"""Forecasting: time stamps, files and frames, windows, distributions, figures, paths, the estimator and its command."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from elman import explain
from elman.data.grid import Grid, parsed_stamp
from elman.data.rolls import read_rolls
from elman.data.series import Columns, panel_of, read_series, table_of
from elman.data.series_windows import Origins, SeriesForm, context_for
from elman.errors import DataError, InputError, NotYet
from elman.models import Forecaster
from elman.models.distributions import DISTRIBUTIONS, QUANTILES, SHARES, pinball
from elman.models.forecast_network import ForecastNetwork
from elman.models.forecasting import crps, gaussian_crps, naive_error, parted, rolling, scored, seasonal_naive
from elman.models.forecasting import forecasts as forecasts_of
from elman.models.frame_network import guesses
from tests.pairwise import with_more
from tests.strangers import elman
from tests.typed import expect_answers

SMALL: dict[str, Any] = {"cell": "elman", "hidden": 8, "steps": 60, "lr": 0.01, "batch": 16, "season": 7}


def weeks(count: int = 3, days: int = 120, seed: int = 0, gaps: bool = True) -> dict[str, list[Any]]:
    """Daily series with a week in them, of different lengths and sizes, some of them with gaps of both kinds."""
    rng, rows = np.random.default_rng(seed), []
    for k in range(count):
        t = np.arange(days - 20 * k)
        y = 10.0**k * (5 + np.sin(2 * np.pi * t / 7) + 0.02 * t + 0.1 * rng.normal(size=len(t)))
        for day, value in zip(t, y, strict=True):
            if gaps and k and day % 23 == 5:
                continue
            stamp = str(np.datetime64("2024-01-01") + np.timedelta64(day, "D"))
            rows.append((f"s{k}", stamp, math.nan if gaps and day % 31 == 7 else float(value)))
    return {name: [row[i] for row in rows] for i, name in enumerate(("unique_id", "ds", "y"))}


def panel(**how: Any) -> Any:
    return panel_of([table_of(weeks(**how), Columns())], Columns())


@pytest.fixture(scope="module")
def fitted() -> Forecaster:
    return Forecaster(7, **SMALL).fit(weeks())


# --- time stamps ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stamps", "name", "season", "after"),
    [
        (["2020-01-31", "2020-02-29", "2020-03-31", "2020-05-31"], "a month", 12, "2020-06-30"),
        (["2020-01-15", "2020-02-15", "2020-03-15"], "a month", 12, "2020-04-15"),
        (["2020-01", "2020-02", "2020-03"], "a month", 12, "2020-04-01"),
        (["2019-12-31", "2020-03-31", "2020-06-30"], "a quarter", 4, "2020-09-30"),
        (["2018-01-01", "2019-01-01", "2021-01-01"], "a year", 1, "2022-01-01"),
        (["2020-01-06", "2020-01-13", "2020-01-27", "2020-02-03"], "a week", 52, "2020-02-10"),
        (["2020-01-01", "2020-01-02", "2020-01-05", "2020-01-06"], "a day", 7, "2020-01-07"),
        (["2020-01-01T00:00", "2020-01-01T01:00"], "an hour", 24, "2020-01-01T02:00:00"),
        (["2020-01-01T01:00+01:00", "2020-01-01T00:30Z"], "30 minutes", 48, "2020-01-01T01:00:00"),
        (["1700", "1701", "1703", "1704"], "1", 1, "1705"),
        (["0", "10", "20"], "10", 1, "30"),
    ],
)
def test_the_grid_of_time_stamps(stamps: list[str], name: str, season: int, after: str) -> None:
    found = [parsed_stamp(stamp) for stamp in stamps]
    values = np.array([one[1] for one in found if one is not None])
    grid = Grid.of([values], whole=found[0] is not None and found[0][0])
    places = grid.places(values)
    assert (grid.name, grid.season) == (name, season)
    assert grid.words(np.array([places[-1] + 1])) == [after]
    assert (grid.stamps(places) == values).all()
    assert np.abs(grid.calendar(places, 10**6)).max(initial=0) <= 1


def test_the_calendar_goes_round() -> None:
    stamp = parsed_stamp("2024-02-29")
    assert stamp is not None
    assert stamp[1] == int(datetime(2024, 2, 29, tzinfo=UTC).timestamp() * 1e6)
    days = Grid.of([np.arange(60) * 86_400 * 10**6], whole=False)
    said = days.calendar(np.arange(60), 800)
    assert said.shape == (60, 12)  # of the week and of the year
    assert days.calendar(np.arange(60), 60).shape == (60, 6)  # a year that never was cannot be told
    assert said[:7, :6] == pytest.approx(said[7:14, :6], abs=1e-5)
    assert [parsed_stamp(odd) for odd in ("", "yesterday", "2020-13-01", "31.01.2020")] == [None] * 4


# --- files and frames -------------------------------------------------------------------------------------------------


def test_the_same_series_from_every_kind_of_table(tmp_path: Path) -> None:
    rows = weeks(2, 40)
    lines = [",".join(map(str, row)).replace("nan", "") for row in zip(*rows.values(), strict=True)]
    (tmp_path / "a.csv").write_text("\ufeffunique_id,ds,y\r\n" + "\r\n".join(lines) + "\r\n", "utf-8")
    (tmp_path / "a.tsv").write_text("\n".join(["unique_id,ds,y", *lines]).replace(",", "\t"))
    found = [read_series([tmp_path / name]) for name in ("a.csv", "a.tsv")]
    assert len({one.digest for one in found}) == 1
    (first, second), (y, gap) = found[0].series, (5, 7)
    assert (first.name, len(first.y), len(second.y)) == ("s0", 40, 20)
    assert np.isnan(second.y[[y, gap]]).all()  # one time stamp is not there, one number is not
    assert np.isnan(first.y).sum() == 2
    half = len(lines) // 3
    for name, part in (("b.csv", lines[:half]), ("c.csv", lines[half:])):  # a series goes on in another file
        (tmp_path / name).write_text("\n".join(["unique_id,ds,y", *part]))
    assert read_series([tmp_path / "b.csv", tmp_path / "c.csv"]).digest == found[0].digest


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow"])
def test_frames_of_every_library_and_parquet(library: str, tmp_path: Path, fitted: Forecaster) -> None:
    pytest.importorskip("narwhals", reason="frames are read through it")
    module = pytest.importorskip(library, reason="its frames are read")
    rows = weeks(2, 40)
    frame = module.table(rows) if library == "pyarrow" else module.DataFrame(rows)
    plain = panel_of([table_of(rows, Columns())], Columns())
    assert panel_of([table_of(frame, Columns())], Columns()).digest == plain.digest
    if library != "pyarrow":
        frame = frame.assign(ds=module.to_datetime(frame.ds)) if library == "pandas" else frame.with_columns(
            module.col("ds").str.to_date()
        )  # fmt: skip
        assert panel_of([table_of(frame, Columns())], Columns()).digest == plain.digest
    if library == "polars":
        frame.write_parquet(tmp_path / "a.parquet")
        assert read_series([tmp_path / "a.parquet"]).digest == plain.digest
        (tmp_path / "b.parquet").write_bytes(b"none")
        with pytest.raises(DataError, match="cannot be read"):
            read_series([tmp_path / "b.parquet"])
    made = fitted.predict(3, frame)
    assert type(made) is type(frame)
    assert len(made) == 6


@pytest.mark.parametrize(
    ("content", "where", "what"),
    [
        (b"ds,value\n1,2\n", ":1", "no column 'y'"),
        (b"time,y\n1,2\n", ":1", "no column 'ds'"),
        (b"", "", "is empty"),
        (b"ds,y\n", ":1", "no series"),
        (b"ds,y\n1,\n2,NA\n", ":1, y", "not one number"),
        (b"ds,y\n1,2\n2,\xff\n", ":3", "not UTF-8"),
        (b"ds,y\n1,2\n2," + b"9" * 1_000_000 + b"\n", ":3", "too long"),
        (b"ds,y\n1,2\n2,x\n", ":3", "no number"),
        (b"ds,y\n1,2\n2,inf\n", ":3", "no number"),
        (b"ds,y\n1,2\n2,3,4\n", ":3", "more or fewer fields"),
        (b"ds,y\n1,2\n2,3\n2,4\n", ":4", "stands twice"),
        (b"ds,y\n1,2\n2,3\n4,4\n2,4\n", ":5", "stands twice"),
        (b"ds,y\n2,2\n1,3\n", ":3", "not in order"),
        (b"unique_id,ds,y\na,1,2\nb,5,2\na,0,2\n", ":4", "not in order"),
        (b"ds,y\n01/02/2020,2\n", ":2", "no time stamp"),
        (b"ds,y\n2020-01-01,2\n7,3\n", ":3", "dates in some rows"),
        (b"ds,y\n2020-01-01,2\n2020-01-02,2\n2020-01-03,1\n2020-01-04T12:00,2\n", ":5", "between two steps"),
        (b"ds,y\n0,2\n1,2\n2,2\n9000000,3\n", ":5", "nearly all gaps"),
        (b"ds,y,y\n1,2,3\n", ":1", "two columns"),
        (b"ds,y,price\n1,2,3\n2,2,\n", ":3", "no number"),
        (b"ds,y,price,kind\n1,2,3,a\n2,2,3,b\n", ":3", "changes within"),
    ],
)
def test_what_cannot_be_read_is_said_with_file_and_line(
    content: bytes, where: str, what: str, tmp_path: Path
) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    has = content.split(b"\n")[0].split(b",")
    columns = Columns(known=("price",) if b"price" in has else (), static=("kind",) if b"kind" in has else ())
    with pytest.raises(DataError, match=what) as caught:
        read_series([tmp_path / "a.csv"], columns)
    assert str(caught.value.where) == f"{tmp_path / 'a.csv'}{where}"
    assert caught.value.mend


def test_other_things_are_no_series(tmp_path: Path) -> None:
    for given, what in ((3, "no frame"), ({"ds": [1, 2], "y": [1]}, "of one length")):
        with pytest.raises(InputError, match=what):
            table_of(given, Columns())
    with pytest.raises(InputError, match="no number") as caught:
        panel_of([table_of({"ds": [1, 2], "y": [1, math.inf]}, Columns())], Columns())
    assert caught.value.where == "frame, row 1"
    with pytest.raises(InputError, match="no number"):
        panel_of([table_of({"ds": [1, 2], "y": [1, 10**400]}, Columns())], Columns())
    dates = np.array(["2020-01-01", "300000-01-01"], "datetime64[D]")
    for far in ([1, 10**400], [-(2**63), 1], [1, np.uint64(2**64 - 1)], dates):
        with pytest.raises(InputError, match="no time stamp"):
            panel_of([table_of({"ds": far, "y": [1, 2]}, Columns())], Columns())
    sized, huge = Columns(static=("size",)), {"ds": [1, 2], "y": [1, 2], "size": [10**400] * 2}
    assert panel_of([table_of(huge, sized)], sized).series[0].static == (str(10**400),)
    with pytest.raises(DataError, match="read from tables"):
        read_series([tmp_path])
    with pytest.raises(DataError, match="no such file"):
        read_series([tmp_path / "a.txt"])


# --- windows ----------------------------------------------------------------------------------------------------------


def test_a_window_is_what_was_known_there_and_nothing_else() -> None:
    rows = weeks(2, 60)
    rows["price"] = [float(k) for k in range(len(rows["y"]))]
    rows["sold"] = [float(k) for k in range(len(rows["y"]))]
    rows["kind"] = ["a" if name == "s0" else "b" for name in rows["unique_id"]]
    columns = Columns(known=("price",), past=("sold",), static=("kind",))
    learnt = panel_of([table_of(rows, columns)], columns)
    form = SeriesForm.of(learnt, 7, 10, 3)
    origins = Origins(form, learnt, places=[(0, 30), (1, 4), (1, 40)])
    w = origins.take([0, 1, 2])
    series, width, lags = learnt.series, 13, form.lags
    assert lags == (1, 2, 3, 4, 5, 6, 7, 8)
    assert w.features.shape == (width, 3, form.features)
    y = torch.from_numpy(series[0].y)
    back = w.y[:, 0] * w.scale[0] + w.loc[0]
    for t in range(width):
        there = not math.isnan(y[20 + t])
        assert bool(w.there[t, 0]) == there
        assert not there or float(back[t]) == pytest.approx(float(y[20 + t]), rel=1e-5)
        for k, lag in enumerate(lags):
            known = not math.isnan(y[20 + t - lag])
            assert bool(w.lags[t, 0, len(lags) + k]) == known
            if known:
                assert float(w.lags[t, 0, k] * w.scale[0] + w.loc[0]) == pytest.approx(
                    float(y[20 + t - lag]), rel=1e-5
                )
    assert not w.lags[0, 1, len(lags) :].any()  # before the series began
    # What is not known of the future stays as it was; what is known is there.
    price, sold, seen = (w.features[:, 0, k] for k in (6, 7, 8))
    assert (price.diff() > 0).all()
    assert seen.tolist() == [1.0] * 11 + [0.0] * 2
    assert (sold[:11].diff() > 0).all()
    assert sold[11:].unique().tolist() == sold[10:11].tolist()
    # Other numbers after the place of a forecast change nothing before it.
    later = weeks(2, 60)
    changed = [
        9e9 if name == "s0" and day >= "2024-01-31" else v
        for name, day, v in zip(*later.values(), strict=True)
    ]
    other = panel_of([table_of({**rows, "y": changed}, columns)], columns)
    also = Origins(form, other, places=origins.places).take([0])
    assert torch.equal(also.lags[:11], w.lags[:11, :1])
    assert torch.equal(also.register, w.register[:1])
    assert float(also.scale) == float(w.scale[0])
    assert np.isnan(origins.told([1])).sum() == np.isnan(series[1].y[4:7]).sum()


def test_batches_of_windows_go_on_from_a_position_and_are_shared() -> None:
    form = SeriesForm.of(panel(), 7, 14, 3)
    made = [Origins(form, panel()).everywhere().batches(8, 3) for _ in range(3)]
    assert made[0].unit == "examples"
    for part in made[1:]:
        part.split(made.index(part) - 1, 2)
    for _ in range(4):
        position = made[0].position
        whole, *parts = (next(one) for one in made)
        assert torch.equal(whole.values[2][:, 0::2], parts[0].values[2])
        assert sum(part.part for part in parts) == pytest.approx(1)
        made[0].position = position
        assert torch.equal(next(made[0]).values[0], whole.values[0])


def test_parts_of_series_are_apart() -> None:
    found = panel()
    learnt, ends = parted(found, 14, 70)
    assert ends == [120, 100, None]  # the shortest one is learnt from as a whole
    assert [len(one.y) for one in learnt.series] == [106, 86, len(found.series[2].y)]
    places = rolling(found, SeriesForm.of(learnt, 7, 14, 7), ends, 2).places
    assert places == [(0, 106), (0, 113), (1, 86), (1, 93)]


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
    said = elman("predict", run, "-", text=b"ds,y\n2024-06-02,1\n2024-06-02,2\n")
    assert "not in order" in said.err
    assert "standard input:3" in said.err


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


# --- vectors of 0 and 1 -----------------------------------------------------------------------------------------------


def songs(count: int = 40, seed: int = 0) -> list[np.ndarray]:
    """Two notes that go up together, one of them now and then left out, on six keys."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(count):
        t, start = np.arange(rng.integers(12, 30)), rng.integers(6)
        one = np.zeros((len(t), 6), np.uint8)
        one[t, (t + start) % 6] = 1
        one[t, (t + start + 2) % 6] = rng.random(len(t)) < 0.8
        found.append(one)
    return found


FRAMES: dict[str, Any] = {
    "distribution": "bernoulli",
    "hidden": 16,
    "layers": 1,
    "dropout": 0.0,
    "steps": 150,
    "lr": 0.02,
}


@pytest.fixture(scope="module")
def singer() -> Forecaster:
    return Forecaster(4, **FRAMES).fit(songs())


def test_vectors_are_forecast_key_by_key(singer: Forecaster, tmp_path: Path) -> None:
    test = songs(20, 1)
    # The second note is a coin that falls on one side in 80 %; the rest is known from the second frame on.
    entropy = -(0.8 * math.log(0.8) + 0.2 * math.log(0.2))
    assert entropy < -singer.score(test) < entropy + 0.25
    said = singer.predict(4, test[0])
    assert said.shape == (4, 6)
    key = int(test[0][-1].argmax()) if test[0][-1].sum() == 1 else int(np.flatnonzero(test[0][-2])[0])
    assert said.max(1).min() > 0.8
    assert 0 <= key < 6
    drawn = singer.paths(4, test[0], count=400)[""]
    assert set(np.unique(drawn)) == {0.0, 1.0}
    state = None
    for row in test[0]:
        likely, state = singer.step(row, state)
    assert drawn[:, 0].mean(0) == pytest.approx(likely, abs=0.08)
    singer.save_pretrained(tmp_path / "kept")
    again = Forecaster.from_pretrained(tmp_path / "kept")
    assert np.array_equal(again.predict(3), singer.predict(3))
    assert again.score(test) == pytest.approx(singer.score(test))
    with pytest.raises(InputError, match="measured by score"):
        again.evaluate(test)
    (tmp_path / "kept" / "series.json").write_text('{"frames": {"channels": 6, "tail": [[7]]}}')
    with pytest.raises(DataError):
        Forecaster.from_pretrained(tmp_path / "kept")


def test_nats_of_a_frame_are_those_of_torch_and_padding_changes_nothing(singer: Forecaster) -> None:
    frames = singer._frames
    assert frames is not None
    x = [torch.from_numpy(one).float() for one in songs(5, 2)]
    total, count = 0.0, 0
    for one in x:
        logits = frames.network(one[:-1, None])[0][:, 0]
        total -= float(torch.distributions.Bernoulli(logits=logits.detach()).log_prob(one[1:]).sum())
        count += len(one) - 1
    assert -singer.score([one.numpy() for one in x]) == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize(
    ("given", "what"),
    [
        (np.zeros((5, 3)), "several sequences"),
        ([], "no sequences"),
        ([[[0, 1], [1, 2]]], "no sequence of vectors"),
        ([[[0, 1]]], "no sequence of vectors"),
        ([[[0, 1], [1, 0]], [[0], [1]]], "different numbers"),
        (["abc"], "no sequence of vectors"),
        ([[[0], [10**400]]], "no sequence of vectors"),
    ],
)
def test_what_are_no_vectors_of_0_and_1_is_refused(given: Any, what: str) -> None:
    with pytest.raises(InputError, match=what):
        Forecaster(4, **FRAMES).fit(given)


@pytest.mark.parametrize("kind", with_more([".mat"], [".jsonl"]))
def test_a_run_of_vectors(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, every = tmp_path / f"songs{kind}", songs(40)
    if kind == ".mat":
        io = pytest.importorskip("scipy.io", reason="it reads .mat")
        cells = {}
        for name, part in (("traindata", every[:30]), ("validdata", every[30:35]), ("testdata", every[35:])):
            cells[name] = np.empty((1, len(part)), object)
            cells[name][0, :] = part
        io.savemat(path, cells)
    else:
        path.write_text("".join(json.dumps(one.tolist()) + "\n" for one in every))
    how = ("--hidden", "16", "--layers", "1", "--steps", "10", "--lr", "0.02", "--horizon", "3", "--quiet")
    said = elman("train", "forecast", path, *how, "--out", tmp_path / "run")
    assert said.status == 0, said.err
    assert "sequences of 6 channels" in said.out
    measured = elman("evaluate", tmp_path / "run")
    assert measured.out.startswith("negative log-likelihood ")
    assert " nats per frame, of " in measured.out
    assert "%" not in measured.out + measured.err
    assert "what happened (above)" in (tmp_path / "run" / "report.html").read_text()
    lines = elman("predict", tmp_path / "run").out.splitlines()
    assert lines[0] == "unique_id,ds,0,1,2,3,4,5"
    assert len(lines) == 4
    assert len(elman("predict", tmp_path / "run", path).out.splitlines()) > 12
    stream = elman("predict", tmp_path / "run", "-", text=b"[0,1,0,1,0,0]\n[0,0,1,0,1,0]\n")
    assert [len(json.loads(line)) for line in stream.out.splitlines()] == [6, 6]
    assert len(expect_answers(tmp_path / "run", [b"[0,1,0,1,0,0]\n", b"[0,0,1,0,1,0]\n"], monkeypatch)) == 2
    for text in (b"[0,1]\n", b"[0,1,0,1,0,2]\n", b"x\n"):
        said = elman("predict", tmp_path / "run", "-", text=text)
        assert said.status == 2
        assert "standard input:1" in said.err
    assert Forecaster.from_pretrained(tmp_path / "run").predict(2).shape == (2, 6)
    refused = elman("train", "forecast", path, "--season", "3", "--out", tmp_path / "other")
    assert "no such setting" in refused.err


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("a.mat", b"none", "cannot be read"),
        ("a.jsonl", b"[[0, 1], [1, 0]]\n", "too few sequences"),
        ("a.jsonl", b"[[0, 1], [1, 3]]\n", "no sequence of vectors"),
        ("a.jsonl", b"[[0, 1], [1, 0]]\n[[0], [1]]\n" * 10, "different numbers"),
    ],
)
def test_files_that_hold_no_vectors(name: str, content: bytes, what: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    said = elman("train", "forecast", tmp_path / name, "--out", tmp_path / "run")
    assert said.status == 2
    assert what in said.err
    assert name in said.err


# --- real data --------------------------------------------------------------------------------------------------------

MUSIC = Path(__file__).resolve().parents[2] / "shared" / "data" / "music" / "JSB_Chorales.mat"


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


@pytest.mark.conformance  # of an invented song: test_a_run_of_vectors, test_vectors_are_forecast_key_by_key
@pytest.mark.slow
@pytest.mark.skipif(not MUSIC.exists(), reason="the piano rolls are not there")
def test_chorales_are_more_than_how_each_key_was_before() -> None:
    pytest.importorskip("scipy", reason="it reads .mat")
    rolls = read_rolls([MUSIC], 0)
    assert [len(part) for part in (rolls.learnt, rolls.chosen, rolls.test)] == [229, 76, 77]
    said = guesses(rolls.learnt, rolls.test)
    model = Forecaster(4, distribution="bernoulli", hidden=32, layers=1, steps=100, lr=0.01, patience=None)
    x = [[one.numpy() for one in part] for part in (rolls.learnt, rolls.chosen, rolls.test)]
    assert -model.fit(x[0], x[1]).score(x[2]) < said["by what each was before"] - 0.5


def test_it_explains_itself(fitted: Forecaster) -> None:
    fitted.predict(2)
    assert "in the loop" in str(explain(fitted))
