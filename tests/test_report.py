"""A run as one page: from its folder alone, nothing from elsewhere, whatever its texts are."""

from __future__ import annotations

import json
import math
import re
import xml.dom.minidom
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from elman.app import cli
from elman.draw.measure import width
from elman.errors import DataError
from elman.models.distributions import FRAMES
from elman.report import Point, Record
from elman.report import read_record as read
from elman.report import render as rendered
from elman.report import write_report as written
from elman.report.figures import Curve, axis, bars, lines, short, thinned
from elman.tasks import lm
from elman.tasks.autoencode import Autoencode
from elman.tasks.classify import Classify
from elman.tasks.lm import Language
from elman.tasks.tag import Tag
from elman.training import FORMAT
from tests.browsing import tab

PART = Language.part
VOID = {"meta", "input", "br"}
NASTY = "</pre><script src='http://evil.example/a.js'></script>\x00\ud800 & <img src=//x> \"'"


def read_record(folder: Path) -> Record:
    return read(folder, PART)


def render(record: Record) -> str:
    return rendered(record, PART)


def write_report(folder: Path, out: Path | None = None) -> Path:
    return written(folder, out, PART)


class Page(HTMLParser):
    """The tags of a page, checked to be closed in order; and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def alone(page: str) -> Page:
    """The page, which asks nothing of any other place."""
    read = Page(page)
    assert {"script", "link", "img", "iframe", "object", "a", "image", "use"} & {
        tag for tag, _ in read.tags
    } == set()
    names = {name for _, attributes in read.tags for name in attributes}
    assert [
        name for name in names if name in ("src", "href", "xlink:href", "srcset") or name.startswith("on")
    ] == []
    style = re.search("<style>(.*?)</style>", page, re.DOTALL)
    assert style is not None
    assert re.findall(r"@import|url\(|https?:|//", style[1]) == []
    return read


def folder(path: Path, log: list[dict[str, Any]], **config: Any) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"format": FORMAT, "task": "lm", **config}))
    (path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    return path


def line(step: int, **more: Any) -> dict[str, Any]:
    figures = {
        "loss": 4 / step,
        "lr": 0.1,
        "norm": 1.0,
        "symbols": 9 * step,
        "seconds": 0.5 * step,
        "done": 0.5,
    }
    return {"step": step, **figures, **more}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with nothing in it but what a report needs."""
    here = tmp_path_factory.mktemp("report")
    (here / "text.txt").write_text("the cat sat on the mat; the rat sat on the cat.\n" * 40)
    size = ["--hidden=16", "--embedding=16", "--layers=2", "--window=16", "--batch=4", "--steps=40"]
    done = CliRunner().invoke(
        cli.app, ["train", "lm", str(here / "text.txt"), "--out", str(here / "run"), *size]
    )
    assert done.exit_code == 0, done.output
    assert f"The report is {here / 'run' / 'report.html'}" in done.output.replace("\n", "")
    for name in ("model.safetensors", "tokenizer.json"):
        (here / "run" / name).unlink()
    (here / "text.txt").unlink()
    return here / "run"


def test_a_run_leaves_a_page_and_the_command_writes_it_again(trained: Path, tmp_path: Path) -> None:
    page = (trained / "report.html").read_text()
    out = tmp_path / "page.html"
    done = CliRunner().invoke(cli.app, ["report", str(trained), "--out", str(out)])
    assert done.output.split() == [str(out)]
    assert out.read_text() == page
    text = alone(page).text
    assert "://" not in page
    for part in (
        "Loss",
        "Learning rate",
        "Gradient norm",
        "How far back",
        "the time went",
        "wrote",
        "Settings",
        "plan",
    ):
        assert part in text
    assert "nothing was logged" not in text
    assert "training.window" in text
    assert "2 · 16" not in text


def test_a_log_holds_what_a_report_says(trained: Path) -> None:
    record = read_record(trained)
    assert [point.step for point in record.loss] == [10, 20, 30, 40]
    assert [sample.step for sample in record.samples] == [0, *(point.step for point in record.valid)]
    assert all(len(sample.text) == lm.SAMPLED for sample in record.samples)
    assert record.samples[0].text != record.samples[-1].text
    assert "layer 1" in record.plan
    assert "in the loop" in record.plan
    assert len(record.more["reach"]) == 64
    assert record.more["reach"][0] > record.more["reach"][-1] > 0
    stages = ("data", "forward", "backward", "optimiser", "validation", "samples", "checkpoints")
    assert tuple(record.stages) == stages
    assert record.best is not None
    assert record.best.value == min(point.value for point in record.valid)
    assert record.done == 1


@pytest.mark.parametrize("log", [[], [line(10)], [{"step": 0, "sample": "a"}], [line(10, loss=math.nan)]])
def test_a_run_that_has_only_begun_has_a_page(tmp_path: Path, log: list[dict[str, Any]]) -> None:
    run = folder(tmp_path / "run", log)
    (run / "log.jsonl").write_text((run / "log.jsonl").read_text() + '[1]\n"a"\n{"step": 20, "lo')
    assert "a training run" in alone(write_report(run).read_text("utf-8")).text


TAGS = {
    "words": 10, "unseen_words": 1, "seen": 0.9, "unseen": 0.5, "baseline": 0.8, "value": 0.9, "name": "accuracy",
    "unit": "%", "tags": {"NOUN": [0.5, 0.906, 0.615, 4210], "PUNCT": [0.973, 0.991, 0.981, 3075]},
    "mistakes": {"PROPN → NOUN": 1456, "a very long name of a tag → another": 1424},
}  # fmt: skip


def test_rows_of_a_table_are_one_line_high(tmp_path: Path) -> None:
    run = folder(tmp_path / "run", [line(10), {"step": 10, "measured": TAGS}], task="tag")
    page = written(run, None, Tag.part)
    with tab(1100) as shown:
        shown.send("Page.navigate", url=page.as_uri())
        for _ in range(100):
            heights = shown.run(
                "return [...document.querySelectorAll('table')].filter(t => t.innerText.startsWith('tag'))"
                ".flatMap(t => [...t.rows].map(r => r.getBoundingClientRect().height))"
            )
            if heights:
                break
    assert len(heights) == 3
    assert max(heights) < 32


def test_words_beside_bars_are_not_cut_off() -> None:
    drawn = bars(TAGS["mistakes"], "words")
    assert "1,456 words, 50.6 %" in drawn  # no tenths of words
    for x, anchor, words in re.findall(
        r'<text x="([\d.]+)" y="[\d.]+" text-anchor="(\w+)"[^>]*>([^<]*)<', drawn
    ):
        wide = width(words, 12)
        assert float(x) - wide >= 0 if anchor == "end" else float(x) + wide <= 400, words


def test_a_panel_with_nothing_in_it_is_left_away(tmp_path: Path) -> None:
    page = written(folder(tmp_path / "run", [line(10)], task="classify"), None, Classify.part)
    text = alone(page.read_text("utf-8")).text
    assert "What it made while it learned" not in text
    assert "nothing was logged" not in text
    assert "Gradient norm" in text


def test_what_is_read_in_a_second_has_its_name(tmp_path: Path) -> None:
    log = [line(10, steps=50)]
    run = folder(tmp_path / "tag", log, task="tag")
    assert ">words a second</dt><dd>10<" in rendered(read(run, Tag.part), Tag.part)
    for symbols, name in ((40, "symbols"), (0, "frames")):
        run = folder(tmp_path / name, log, task="autoencode", symbols=symbols)
        part = Autoencode.part_of({"symbols": symbols})
        assert f">{name} a second</dt><dd>10<" in rendered(read(run, part), part)
        assert elman_report(run).count(f">{name} a second<") == 1


def elman_report(run: Path) -> str:
    done = CliRunner().invoke(cli.app, ["report", str(run)])
    assert done.exit_code == 0, done.output
    return (run / "report.html").read_text("utf-8")


def test_two_kinds_of_forecast_have_titles_of_their_own(tmp_path: Path) -> None:
    log = [line(10, examples=50, valid=1.0)]
    frames = elman_report(folder(tmp_path / "frames", log, task="forecast", distribution=FRAMES))
    series = elman_report(folder(tmp_path / "series", log, task="forecast", distribution="gaussian"))
    assert "Held out, nats per frame<" in frames
    assert "Held out, CRPS, × naive error<" in series
    assert not re.search("CRPS|The first forecast", frames)
    assert "vectors" not in series


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no run folder"):
        write_report(tmp_path)
    run = folder(tmp_path / "run", [line(10)])
    with pytest.raises(DataError, match="cannot be written"):
        write_report(run, tmp_path / "missing" / "page.html")


def test_no_text_gets_out_of_its_place(tmp_path: Path) -> None:
    more = {"valid": 1.0, "best": True, "sample": NASTY}
    log = [line(10), {"step": 10, **more}, {"step": 10, "plan": NASTY}, {"step": 10, "stages": {NASTY: 1.0}}]
    run = folder(tmp_path / "a<b>&", log, cell=NASTY, data={NASTY: [NASTY, None]})
    page = write_report(run).read_text("utf-8")
    read = alone(page)
    assert read.text.count("</pre><script src='http://evil.example/a.js'></script>\ufffd\ufffd &") >= 5
    assert "<title>a&lt;b&gt;&amp;, a training run" in page


def test_a_log_of_any_length_makes_a_page_of_bounded_size(tmp_path: Path) -> None:
    log = [line(10 * k) for k in range(1, 8001)]
    page = render(read_record(folder(tmp_path / "run", log)))
    assert len(page) < 300_000
    assert all(len(path.split("L")) <= 1000 for path in re.findall(r'<path d="([^"]*)" fill="none"', page))


@pytest.mark.parametrize("count", [1, 999, 1000, 1001, 2500, 100_000])
def test_thinning_keeps_means(count: int) -> None:
    points = [Point(k, 2.0 * k + 1) for k in range(count)]
    few = thinned(points)
    assert len(few) == count if count <= 1000 else 500 <= len(few) <= 1000
    assert all(p.value == pytest.approx(2 * p.step + 1) for p in few)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(
    ("low", "high"), [(1.0, 1.0), (1.1, 4.6), (1e-15, 3.0), (0.2, 1.5), (3, 8000), (0.999, 1.0), (2e-9, 4e-3)]
)
def test_an_axis_has_ticks_inside_it(low: float, high: float, log: bool) -> None:
    found = axis(low, high, log=log)
    assert 2 <= len(found.ticks) <= 12
    assert 0 <= found.share(low) <= found.share(high) <= 1
    assert all(-1e-6 <= found.share(tick) <= 1 + 1e-6 for tick in found.ticks)


def test_a_curve_lies_where_its_values_are() -> None:
    points = [Point(0, 1.0), Point(50, 10.0), Point(100, 100.0)]
    heights = {}
    for log in (False, True):
        drawn = lines([Curve("a", points, "first")], x="step", y="value", log=log)
        xml.dom.minidom.parseString(drawn)
        path = re.search(r'<path d="M([^"]*)" fill="none"', drawn)
        assert path is not None
        places = [tuple(map(float, place.split())) for place in path[1].split("L")]
        assert places[1][0] - places[0][0] == pytest.approx(places[2][0] - places[1][0], abs=0.2)
        heights[log] = [y for _, y in places]
    assert heights[True][0] - heights[True][1] == pytest.approx(heights[True][1] - heights[True][2], abs=0.2)
    assert heights[False][1] - heights[False][2] == pytest.approx(
        10 * (heights[False][0] - heights[False][1]), rel=0.05
    )


def test_a_logarithmic_figure_leaves_out_what_has_no_logarithm() -> None:
    drawn = lines([Curve("a", [Point(1, 0.0), Point(2, 1.0)], "first")], x="k", y="norm", log=True)
    assert drawn.count("<circle") == 1
    assert "nothing was logged" in lines([Curve("a", [Point(1, 0.0)], "first")], x="k", y="norm", log=True)


def test_bars_have_lengths_in_proportion() -> None:
    drawn = bars({"one": 1.0, "three": 3.0, "none": 0.0}, "s")
    xml.dom.minidom.parseString(drawn)
    widths = [float(width) for width in re.findall(r'<rect[^>]* width="([\d.]+)"', drawn)]
    assert widths[1] == pytest.approx(3 * widths[0], rel=0.01)
    assert "3.0 s, 75.0 %" in drawn


def test_numbers_of_axes_are_told_apart() -> None:
    assert [short(10.0**k) for k in (-30, -20, -13, -1, 0, 3)] == [
        "1e-30",
        "1e-20",
        "1e-13",
        "0.1",
        "1",
        "1k",
    ]
    assert short(0.0) == "0"
    found = axis(1e-20, 1e-13, log=True)
    assert len({short(tick) for tick in found.ticks}) == len(found.ticks) > 2


@pytest.mark.parametrize(
    "values",
    [[1e8, 1e8 + 3], [-1e8 - 3, -1e8], [0.9991, 0.9999], [1e6 + 0.5, 1e6 + 0.501], [1e15, 1e15 + 4], [1e17, 1e17 + 16],
     [1.0, 1.07], [12e6, 13e6], [1e-3, 1.001e-3]],
)  # fmt: skip
@pytest.mark.parametrize("log", [False, True])
def test_ticks_of_numbers_far_from_0_are_told_apart(values: list[float], log: bool) -> None:
    values = sorted(map(abs, values)) if log else values
    points = [Point(k, value) for k, value in enumerate(values)]
    drawn = lines([Curve("c", points, "first", marked=True)], x="x", y="y", log=log)
    written = re.findall(r'<text x="([\d.]+)" [^>]*text-anchor="end"[^>]*>([-\d.e+]+)([kMG]?)</text>', drawn)
    written = [one for one in written if float(one[0]) < 300]  # the others stand under the drawing
    sizes = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
    read = [float(number) * sizes[letter] for _, number, letter in written]
    ticks = axis(min(values), max(values), log=log).ticks
    assert len(set(written)) == len(ticks) > 1
    assert read == pytest.approx(list(ticks), rel=0, abs=0.02 * (ticks[-1] - ticks[0]))
    assert all(float(x) > 7 * len(number + letter) for x, number, letter in written)
    told = re.findall(r"<title>c at \d: ([^<]+)</title>", drawn)
    assert list(map(float, told)) == pytest.approx(values, rel=0, abs=0.05 * (values[1] - values[0]))


@pytest.mark.parametrize("log", [False, True])
def test_figures_of_numbers_at_the_ends_of_floats_are_drawn(log: bool) -> None:
    for values in ([5e-324, 1e-320], [1e308, 1e-308], [1.0, 1e308], [1e-300, 1.0]):
        points = [Point(k, value) for k, value in enumerate(values, 1)]
        assert "nan" not in lines([Curve("c", points, "first")], x="x", y="y", log=log)


def test_each_line_of_a_sample_runs_in_its_own_direction(tmp_path: Path) -> None:
    page = render(read_record(folder(tmp_path / "run", [line(10, sample="שלום\nhello", valid=1.0)])))
    assert '<pre dir="auto">שלום\nhello</pre>' in page
    assert "unicode-bidi: plaintext" in page
    assert "held out, best look, nats per symbol" in page


def test_the_exact_figure_of_another_end_is_not_the_headline(tmp_path: Path) -> None:
    exact = {"nats_per_symbol": 0.5, "symbols": 99, "unknown": 3, "bits_per_character": 1.0, "whole": False}
    record = read_record(folder(tmp_path / "run", [line(10, valid=1.0), {"step": 10, "measured": exact}]))
    assert record.measured == exact
    assert "held out, first 99, nats per symbol</dt><dd>0.5000" in render(record)
    gone_on = read_record(folder(tmp_path / "on", [line(10), {"step": 10, "measured": exact}, line(20)]))
    assert gone_on.measured == {}
