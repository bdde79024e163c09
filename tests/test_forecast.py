"""Forecasting on the command line and on real data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from elman.models import Forecaster
from elman.models.distributions import QUANTILES
from tests.pairwise import with_more
from tests.strangers import elman
from tests.typed import expect_answers
from tests.weekly import weeks

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
