"""Time stamps of series: the grid that they lie on, and how it goes on."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from elman.data.grid import Grid, parsed_stamp
from elman.data.series import Panel, panel_of, read_series
from elman.data.series_tables import Columns, table_of
from elman.errors import InputError


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


def hours_of(zone: str, begin: str, hours: int, count: int) -> list[str]:
    """Time stamps with offsets; hours: of the clocks there, of one hour as it passes."""
    first = datetime.fromisoformat(begin).replace(tzinfo=ZoneInfo(zone))
    if hours > 1:
        return [(first + timedelta(hours=hours * k)).isoformat() for k in range(count)]
    return [
        (first.astimezone(UTC) + timedelta(hours=k)).astimezone(ZoneInfo(zone)).isoformat()
        for k in range(count)
    ]


@pytest.mark.parametrize("begin", ["2024-03-29", "2024-10-25", "2024-03-29T15:00"])
@pytest.mark.parametrize(
    ("hours", "name", "after"),
    [(24, "a day", 1), (168, "a week", 7), (6, "6 hours", 0.25), (1, "an hour", None)],
)
def test_steps_go_on_where_clocks_change(begin: str, hours: int, name: str, after: float | None) -> None:
    stamps = hours_of("Europe/Berlin", begin, hours, 80)
    rows = {"ds": stamps, "y": np.arange(80.0)}
    for given in (rows["ds"], [datetime.fromisoformat(one) for one in stamps]):
        found = panel_of([table_of({**rows, "ds": given}, Columns())], Columns())
        assert found.grid.name == name
        np.testing.assert_array_equal(found.series[0].y, rows["y"])
    if after is not None:
        last = datetime.fromisoformat(stamps[-1]).replace(tzinfo=None)
        said = found.grid.words(np.array([found.series[0].start + 80]))[0]
        assert datetime.fromisoformat(said) == last + timedelta(days=after)
    # What was learnt in one half of the year reads the other, of hours by UTC and of dates.
    if hours == 1 or (hours >= 24 and not begin.endswith("15:00")):
        half = panel_of([table_of({"ds": stamps[:4], "y": rows["y"][:4]}, Columns())], Columns()).grid
        again = panel_of([table_of(rows, Columns())], Columns(), half)
        np.testing.assert_array_equal(again.series[0].y, rows["y"])


def test_clocks_that_change_after_what_was_learnt_are_said_to() -> None:
    def read(stamps: list[str], grid: Grid | None = None) -> Panel:
        return panel_of([table_of({"ds": stamps, "y": [1.0] * len(stamps)}, Columns())], Columns(), grid)

    winter, summer = (hours_of("Europe/Berlin", f"2024-{month}-01T15:00", 24, 9) for month in ("02", "06"))
    with pytest.raises(InputError, match="between two steps") as caught:
        read(summer, read(winter).grid)
    assert "leave UTC offsets out" in str(caught.value)
    assert len(read([one[:-6] for one in summer], read([one[:-6] for one in winter]).grid).series[0].y) == 9
    with pytest.raises(InputError, match="between two steps") as caught:
        read(["2024-06-01T16:00"], read(["2024-02-01T15:00"]).grid)
    assert "UTC" not in str(caught.value)


def test_days_of_several_places_are_days_and_those_of_utc_stay() -> None:
    zones = ("Europe/Berlin", "Asia/Tokyo", "America/New_York")
    rows = {"unique_id": [zone for zone in zones for _ in range(9)], "y": np.arange(27.0),
            "ds": [one for zone in zones for one in hours_of(zone, "2024-03-29", 24, 9)]}  # fmt: skip
    found = panel_of([table_of(rows, Columns())], Columns())
    assert found.grid.name == "a day"
    assert {one.start for one in found.series} == {0}
    utc = [
        (datetime(2024, 3, 29, 9, tzinfo=UTC) + timedelta(days=k)).astimezone(ZoneInfo(zones[0]))
        for k in range(9)
    ]
    found = panel_of([table_of({"ds": utc, "y": rows["y"][:9]}, Columns())], Columns())
    assert found.grid.words(np.arange(2)) == ["2024-03-29T09:00:00", "2024-03-30T09:00:00"]
    # A folder kept the days of Berlin by UTC before they were read as such.
    kept = Grid("time", 86_400 * 10**6, Grid.of([np.array([0])], whole=False).start - 3600 * 10**6)
    rows = {"ds": ["2024-01-01T00:00+01:00", "2024-01-02T00:00+01:00"], "y": [1, 2]}
    assert len(panel_of([table_of(rows, Columns())], Columns(), kept).series[0].y) == 2


@pytest.mark.parametrize("quarters", [False, True])
def test_an_hour_that_clocks_repeat_wants_its_offset(quarters: bool) -> None:
    stamps = [
        f"2024-10-27T0{h}:{m:02d}" for h in (0, 1, 2, 2, 3) for m in ((0, 15, 30, 45) if quarters else (0,))
    ]
    rows = {"ds": stamps, "y": list(range(len(stamps)))}
    with pytest.raises(InputError, match="UTC offsets, as in") as caught:
        panel_of([table_of(rows, Columns())], Columns())
    assert caught.value.got == "2024-10-27T02:00"
    each = 4 if quarters else 1
    rows["ds"] = [f"{one}+0{2 if k < 3 * each else 1}:00" for k, one in enumerate(stamps)]
    assert len(panel_of([table_of(rows, Columns())], Columns()).series[0].y) == len(stamps)
    for ds in ([1, 1], ["2024-10-27", "2024-10-27"], ["2024-10-27T05:00", "2024-10-27T02:00"]):
        with pytest.raises(InputError) as caught:
            panel_of([table_of({"ds": ds, "y": [1, 2]}, Columns())], Columns())
        assert "offset" not in str(caught.value)


def test_the_calendar_goes_round() -> None:
    stamp = parsed_stamp("2024-02-29")
    assert stamp is not None
    assert stamp[1] == int(datetime(2024, 2, 29, tzinfo=UTC).timestamp() * 1e6)
    days = Grid.of([np.arange(60) * 86_400 * 10**6], whole=False)
    said = days.calendar(np.arange(60), 800)
    assert said.shape == (60, 12)  # of the week and of the year
    assert days.calendar(np.arange(60), 60).shape == (60, 6)  # a year that never was cannot be told
    assert said[:7, :6] == pytest.approx(said[7:14, :6], abs=1e-5)
    first = parsed_stamp("0001-01-01T00:00+01:00")  # of which UTC is in no year of Python's
    assert first is not None
    assert first.at + first.offset == int(np.datetime64("0001-01-01", "us").astype(np.int64))
    assert [parsed_stamp(odd) for odd in ("", "yesterday", "2020-13-01", "31.01.2020")] == [None] * 4
    odd = ("2020-01-31x12:00", "2020-01-31-12", "2020-01-31312:00", "2020W01x12", "9" * 19, "9" * 1000, "+7")
    assert [parsed_stamp(one) for one in odd] == [None] * 7


@pytest.mark.parametrize(
    ("stamps", "after"),
    [
        (["1577836800", "1577840400", "1577844000"], "1577847600"),  # seconds since 1970
        (["1612010512345", "1612010512346"], "1612010512347"),
        (["9999998", "9999999", "10000000"], "10000001"),
        (["10000101", "10000102"], "10000103"),
        (["20200130", "20200131", "20200132"], "20200133"),
        (["20200130", "20200131", "20200201"], "2020-02-02"),
        (["-3", "-2", "-1"], "0"),
        (["20200131", "2020-02-01"], "2020-02-02"),
        (["20200131T12:00", "20200131 13:00"], "2020-01-31T14:00:00"),
        (["2020-W01-1", "2020W012"], "2020-01-01"),
    ],
)
def test_digits_are_dates_where_all_of_a_column_are(stamps: list[str], after: str, tmp_path: Path) -> None:
    found = read_series([written(tmp_path, *stamps)])
    (one,) = found.series
    assert found.grid.words(np.array([one.start + len(one.y)])) == [after]
    # Later rows are read as those learnt from were, whatever they could be by themselves.
    assert read_series([written(tmp_path, after)], grid=found.grid).series[0].start == one.start + len(one.y)


def test_a_counter_goes_on_as_one(tmp_path: Path) -> None:
    """Also where its numbers, by themselves, are dates."""
    grid = read_series([written(tmp_path, "19991200", "19991201")]).grid
    later = read_series([written(tmp_path, "20000101", "20000102")], grid=grid)
    assert (grid.kind, later.series[0].start) == ("whole", 8901)


def written(folder: Path, *stamps: str) -> Path:
    (folder / "a.csv").write_text("\n".join(["ds,y", *(f"{stamp},1" for stamp in stamps)]))
    return folder / "a.csv"
