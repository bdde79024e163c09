"""Series: files and frames, and windows of what was known at a place. Time stamps: test_series_stamps.py."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from elman.data.series import panel_of, read_series
from elman.data.series_form import SeriesForm
from elman.data.series_tables import Columns, table_of
from elman.data.series_windows import Origins
from elman.errors import DataError, InputError
from elman.models import Forecaster
from elman.models.forecasting import parted, rolling
from tests.weekly import SMALL, panel, weeks


@pytest.fixture(scope="module")
def fitted() -> Forecaster:
    return Forecaster(7, **SMALL).fit(weeks())


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


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_a_series_of_numbers_is_one_alone(library: str, fitted: Forecaster) -> None:
    pytest.importorskip("narwhals", reason="frames are read through it")
    module = pytest.importorskip(library, reason="its frames are read")
    y = [float(k % 7) for k in range(40)]
    plain = panel_of([table_of(y, Columns())], Columns())
    assert panel_of([table_of(module.Series(y), Columns())], Columns()).digest == plain.digest
    made = Forecaster(2, **{**SMALL, "steps": 1}).fit(module.Series(y)).predict()
    assert type(made) is module.DataFrame
    assert made["ds"].to_list() == ["40", "41"]
    if library == "pandas":
        days = module.date_range("2024-01-01", periods=40)
        dated = panel_of([table_of(module.Series(y, days), Columns())], Columns())
        frame = panel_of([table_of(module.DataFrame({"ds": days, "y": y}), Columns())], Columns())
        assert dated.digest == frame.digest
        odd = module.DataFrame({"ds": [module.NaT, *days[1:]], "y": y})
        with pytest.raises(InputError, match="no time stamp") as caught:
            fitted.predict(2, odd)
        assert caught.value.where == "frame, row 0"


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
        (b"ds,y\n1,2\n2,1_0\n", ":3", "no number"),
        (b"ds,y,price\n1,2,3\n2,2,1_0\n", ":3", "no number"),
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
        (b"ds,y,price,kind\n1,2,3,\n2,2,3,\n", ":2", "'kind' is missing in series ''"),
        (b"ds,y,price,kind\n1,2,3,a\n2,2,3, \n", ":3", "'kind' is missing in series ''"),
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


def test_what_is_missing_in_pandas_is_said_or_a_gap() -> None:
    pytest.importorskip("narwhals", reason="frames are read through it")
    pandas = pytest.importorskip("pandas", reason="its frames are read")
    rows, columns = (
        {"ds": [1, 2, 3], "y": pandas.array([1, None, 3], dtype="Int64")},
        Columns(static=("kind",)),
    )
    y = panel_of([table_of(pandas.DataFrame(rows), Columns())], Columns()).series[0].y
    np.testing.assert_array_equal(y, [1, np.nan, 3])
    for kind, row in (
        ([math.nan] * 3, 0), ([None] * 3, 0), (["a", None, "a"], 1), (pandas.array(["a", "a", None], "string"), 2)
    ):  # fmt: skip
        with pytest.raises(InputError, match="'kind' is missing in series ''") as caught:
            panel_of([table_of(pandas.DataFrame({**rows, "kind": kind}), columns)], columns)
        assert caught.value.where == f"frame, row {row}"


@pytest.mark.grid
@pytest.mark.parametrize("kind", ["frame", "columns", "table"])
@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("fitted", [True, False])
def test_frames_of_nothing_are_said_to_be_empty(kind: str, named: bool, fitted: bool) -> None:
    empty: Any = {"ds": [], "y": []} if named else {}
    if kind != "columns":
        empty = pytest.importorskip("pandas", reason="its frames are read").DataFrame(empty)
    if kind == "table":
        empty = empty["y"] if named else empty
    model = Forecaster(2, steps=1)
    if fitted:
        model.fit({"ds": range(40), "y": range(40)})
    with pytest.raises(InputError) as caught:
        model.predict(frame=empty) if fitted else model.fit(empty)
    said = caught.value
    assert said.what == ("there are no series" if named else "the frame is empty")
    assert said.where == "frame"
    assert "no rows" in str(said.got)
    assert "file" not in str(said)
    assert "--" not in str(said)


def test_columns_of_a_frame_are_named_to_a_forecaster() -> None:
    with pytest.raises(InputError, match=r"did you mean 'Y'\? name the columns: Forecaster\(id="):
        Forecaster(2).fit({"ds": [1, 2], "Y": [1, 2]})


@pytest.mark.parametrize("count", [1000, 1001])
def test_a_static_column_has_so_many_words(count: int) -> None:
    rows = {"unique_id": [f"s{k // 2}" for k in range(2 * count)], "ds": [0, 1] * count, "y": [1.0, 2.0] * count,
            "code": [f"c{k // 2}" for k in range(2 * count)]}  # fmt: skip
    columns = Columns(static=("code",))
    found = panel_of([table_of(rows, columns)], columns)
    if count == 1000:
        assert SeriesForm.of(found, 1, 24, 2).static_features == 1000
        return
    with pytest.raises(DataError, match="too many words") as caught:
        SeriesForm.of(found, 1, 24, 2)
    assert (caught.value.where, caught.value.got) == ("code", "1,001 different ones")
    assert "1,000" in str(caught.value)


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
