"""The page: one file of HTML with everything in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from elman.data.files import refusing
from elman.data.words import plain
from elman.report.figures import NOTHING, Curve, bars, lines
from elman.report.record import Part, Point, Record, read_record
from elman.training import write_atomically
from elman.training.measure import percent, shown

# The policy forbids the browser to load anything, should a text ever find its way round the escaping.
_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --page: #fff; --ink: #1d2330; --faint: #5d6675; --grid: #e3e6eb; --panel: #f6f7f9;
  --first: #1f6fb2; --second: #c2541b; }}
@media (prefers-color-scheme: dark) {{ :root {{ --page: #14171c; --ink: #e4e7ec; --faint: #9aa4b2; --grid: #2c323c;
  --panel: #1c2027; --first: #5fb0ee; --second: #f0955c; }} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; padding: 1rem; max-width: 62rem; background: var(--page); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; }}
h1 {{ font-size: 1.4rem; margin: .5rem 0; overflow-wrap: anywhere; }}
h2 {{ font-size: 1rem; margin: 0 0 .5rem; }}
p {{ margin: .4rem 0; }}
.none, .note {{ color: var(--faint); font-size: .875rem; }}
.facts {{ display: flex; flex-wrap: wrap; gap: .75rem 2rem; margin: 1rem 0; padding: 0; }}
.facts div {{ display: flex; flex-direction: column-reverse; }}
.facts dt {{ color: var(--faint); font-size: .8rem; }}
.facts dd {{ margin: 0; font-size: 1.25rem; font-variant-numeric: tabular-nums; }}
.grid {{ columns: 22rem; column-gap: 1rem; margin-bottom: 1rem; }}
section {{ background: var(--panel); border-radius: .5rem; padding: .9rem; min-width: 0; margin-bottom: 1rem; }}
.grid section {{ break-inside: avoid; }}
svg {{ display: block; width: 100%; height: auto; }}
pre {{ margin: .3rem 0 0; white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: plaintext; text-align: start;
  font: .85rem/1.45 ui-monospace, monospace; }}
pre.plan {{ white-space: pre; overflow-x: auto; }}
.sample {{ border-top: 1px solid var(--grid); padding: .6rem 0; }}
table {{ border-collapse: collapse; width: 100%; font-size: .875rem; }}
td, th {{ text-align: left; padding: .2rem .8rem .2rem 0; vertical-align: top; overflow-wrap: anywhere; }}
th {{ font-weight: normal; color: var(--faint); }}
th:first-child:nth-last-child(2) {{ width: 40%; }}
th ~ th, th ~ td:nth-child(n+3), th + td:not(:last-child) {{ overflow-wrap: normal; }}
input {{ margin: 0 .3rem 0 0; accent-color: var(--first); }}
label {{ margin-right: 1rem; font-size: .875rem; }}
@media (max-width: 40rem) {{ .wide {{ display: none; }} }}
@media (min-width: 40.01rem) {{ .narrow {{ display: none; }} }}
#linear:checked ~ .logarithmic, #logarithmic:checked ~ .linear {{ display: none; }}
{style}</style>
</head>
<body>
"""


def write_report(folder: str | Path, out: Path | None = None, part: Part = Part()) -> Path:
    """Write the report of a run folder, as its `report.html` unless `out` names another file; returns where it is.

    part: of its task; `elman report` and the end of a training run find it by themselves.

    Raises DataError if the folder is no run, or if the file cannot be written.
    """
    page = render(read_record(folder, part), part).encode()
    return write_page(out or Path(folder) / "report.html", page)


def write_page(out: Path, page: bytes) -> Path:
    """Write a page beside, and put it in place; DataError if it cannot be written."""
    with refusing("the report cannot be written", out, "make room on the disk, or choose another --out"):
        write_atomically(out, page)
    return out


def document(title: str, body: str, style: str = "") -> str:
    """A page of its own, light or dark as the reader has it. title: any text; body: HTML; style: more of CSS."""
    return f"{_HEAD.format(title=plain(title), style=style)}{body}</body>\n</html>\n"


def render(record: Record, part: Part = Part()) -> str:
    """The page of a record."""
    losses = [Curve("training", record.loss, "first")]
    looks = [Point(p.step, 100 * p.value) for p in record.valid] if part.share else record.valid
    valid = Curve("held out", looks, "second", marked=True)

    def loss(log: bool) -> str:
        # Letters shrink with the figure: a telephone gets a narrow one.
        drawn = [*losses, valid] if part.figure is None else losses
        wide, narrow = (lines(drawn, x="step", y=part.loss, log=log, wide=size) for size in (2, 1))
        return f'<div class="wide">{wide}</div><div class="narrow">{narrow}</div>'

    note = '<p class="note">Held out: looks at a part of these data, about as the exact figure of all of them.</p>'
    measured = "" if part.figure is None or not record.valid else _section(
        f"Held out, {part.figure}",
        note + lines([valid], x="step", y=f"% {part.figure}" if part.share else part.figure),
    )  # fmt: skip
    own = part.sections(record) if part.sections is not None else {}
    sections = [
        f'<section><h2>Loss</h2>{note if part.figure is None else ""}'
        '<input type="radio" name="axis" id="linear" checked><label for="linear">linear</label>'
        '<input type="radio" name="axis" id="logarithmic"><label for="logarithmic">logarithmic</label>'
        f'<div class="linear">{loss(False)}</div><div class="logarithmic">{loss(True)}</div></section>',
        '<div class="grid">',
        measured,
        _section("Learning rate", lines([Curve("learning rate", record.lr, "first")], x="step", y="rate")),
        _section(
            "Gradient norm, before clipping",
            lines([Curve("norm", record.norm, "first")], x="step", y="norm", log=True),
        ),
        *(_section(title, content) for title, content in own.items()),
        _section("Where the time went", bars(_stages(record), "s")),
        "</div>",
        _section(part.samples, "".join(_samples(record, part))),
        _section("Settings", _table(record.config)),
        _section("The plan of the loop", f'<pre class="plan">{plain(record.plan)}</pre>' if record.plan else NOTHING),
    ]  # fmt: skip
    heading = f"<h1><bdi>{plain(record.name)}</bdi>, a training run</h1>"
    return document(f"{record.name}, a training run", f"{heading}{_facts(record, part)}{''.join(sections)}")


def _facts(record: Record, part: Part) -> str:
    best, end = record.best, max((p.step for p in record.loss), default=0)
    facts = {
        **(part.facts or _figures)(record),
        "best at step": f"{best.step:,.0f} of {end:,.0f}" if best else "–",
        "of the run is done": percent(min(record.done, 1), 0),
        "minutes": f"{record.seconds / 60:.1f}",
        f"{part.counted or part.unit} a second": f"{record.count / record.seconds:,.0f}"
        if record.seconds
        else "–",
    }
    rows = "".join(
        f"<div><dt>{plain(name)}</dt><dd>{plain(value)}</dd></div>" for name, value in facts.items()
    )
    return f'<dl class="facts">{rows}</dl>'


def _figures(record: Record) -> dict[str, str]:
    """The exact figure, or the best look before the end of a run."""
    if {"value", "name"} <= record.measured.keys():
        value, name, unit = record.measured["value"], record.measured["name"], record.measured.get("unit", "")
        return {f"held out, {name}": shown(value, unit)}
    return {"held out, best look": f"{record.best.value:.4f}" if record.best else "–"}


def _stages(record: Record) -> dict[str, float]:
    rest = record.seconds - sum(record.stages.values())
    if record.stages and rest > 0.005 * record.seconds:
        return {**record.stages, "the rest": rest}
    return record.stages


def _samples(record: Record, part: Part) -> Iterator[str]:
    name = plain(part.figure or part.loss)
    for sample in record.samples:
        head = f"step {sample.step:,}" if sample.step else "before training"
        if sample.valid is not None:
            value = percent(sample.valid) if part.share else f"{sample.valid:.3f}"
            head += f", held out {value} {name}"
        yield f'<div class="sample"><span class="note">{head}</span><pre dir="auto">{plain(sample.text)}</pre></div>'


def _table(config: dict[str, Any]) -> str:
    rows = (
        f"<tr><th>{plain(name)}</th><td><bdi>{plain(value)}</bdi></td></tr>" for name, value in _flat(config)
    )
    return f"<table>{''.join(rows)}</table>"


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """(dotted name, words) of every value of a configuration."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _flat(part, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        yield name, ", ".join(map(str, value))
    else:
        yield name, "–" if value is None else str(value)


def _section(title: str, content: str) -> str:
    if content in ("", NOTHING):
        return ""
    return f"<section><h2>{plain(title)}</h2>{content}</section>"
