"""What verify found, in words and as a page."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from elman.circuit.form import Circuit

WHOLE = "whole"  # the way that says least: sequences as they are
COLUMNS = ("outputs", "final state", "d inputs", "d state", "d parameters")
_WIDE, _FIRST, _WIDTH = 99, 26, 14
_LEGEND = (
    "The largest difference from the plain Python loop over the cell, as a share of the largest number of its kind; d: "
    "the gradient of a random projection of everything, or, of second derivatives, that of a random projection of "
    "gradients."
)


@dataclass(frozen=True)
class Check:
    """One comparison of the recurrence with the loop.

    engine, way, part: who ran it, how the sequences ran, and what is compared (one of `COLUMNS`; "" for all of a way).
    passed: None if it is not checked. difference, bound: as shares of the largest number. said: where the largest
    difference is, or why it is not checked. own: the loop's error, where both are held against float64. settled: by
    central differences, which the loop's own second derivative is not near to.
    """

    engine: str
    way: str
    part: str
    passed: bool | None
    difference: float | None
    bound: float | None
    said: str
    own: float | None = None
    settled: bool = False

    @property
    def name(self) -> str:
        return ": ".join(word for word in (self.engine, self.way, self.part) if word)

    def __str__(self) -> str:
        if self.passed is None:
            return f"{self.name}: not checked: {self.said}"
        if self.difference is None or self.bound is None:
            return f"{self.name}: {self.said}"
        return f"{self.name}: {self.difference:.1e}, at most {self.bound:.1e} ({self.said})"


@dataclass(frozen=True)
class Report:
    """What `elman.verify` found; true if all is right.

    cell: the name of its class. checks: in order. circuit: of the cell. engines: name -> why it cannot run the cell,
    None if it did. note: what else is to be known. print it for a table; `.save("report.html")` writes a page.
    """

    cell: str
    checks: tuple[Check, ...]
    circuit: Circuit
    engines: Mapping[str, str | None]
    note: str = field(default="")

    @property
    def ok(self) -> bool:
        """Whether nothing was wrong, and whole sequences were compared: zeros outside of a mask say little."""
        return any(check.passed and check.way == WHOLE for check in self.checks) and not self.wrong

    @property
    def wrong(self) -> tuple[Check, ...]:
        """The checks that found something."""
        return tuple(check for check in self.checks if check.passed is False)

    def __bool__(self) -> bool:
        return self.ok

    @property
    def head(self) -> str:
        """The verdict, in one sentence."""
        count = sum(check.passed is not None for check in self.checks)
        if self.ok:
            return f"{self.cell} is right: {count} checks"
        if not self.wrong:
            return f"{self.cell} is not known to be right: nothing could be checked"
        return f"{self.cell} is WRONG: {len(self.wrong)} of {count} checks"

    def __str__(self) -> str:
        lines = [self.head, *([self.note] if self.note else [])]
        for engine, reason in self.engines.items():
            if reason is not None:
                lines += ["", *_told(f"{engine} cannot run it: {reason}")]
                continue
            title = "".join(f"{column:>{_WIDTH}}" for column in COLUMNS)
            lines += ["", f"{engine:{_FIRST}}{title}".rstrip()]
            for way, checks in self._ways(engine):
                lines += _row(way, checks)
        if settled := [check for check in self.checks if check.settled]:
            lines += [
                "",
                "right, where PyTorch is not",
                *(line for one in settled for line in _told(f"  {one}")),
            ]
        if self.wrong:
            lines += ["", "wrong", *(line for check in self.wrong for line in _told(f"  {check}"))]
        return "\n".join([*lines, "", *_told(_LEGEND)])

    def _ways(self, engine: str) -> Iterator[tuple[str, list[Check]]]:
        ways: dict[str, list[Check]] = {}
        for check in self.checks:
            if check.engine == engine:
                ways.setdefault(check.way, []).append(check)
        yield from ways.items()

    def save(self, path: str | Path) -> Path:
        """Write the report as a page: one file with everything in it. Returns where it is; DataError if it cannot."""
        from elman.report import write_page  # which brings all of training with it

        return write_page(Path(path), self._page().encode())

    def _page(self) -> str:
        from elman.report import document, plain

        facts = {
            "checks": str(sum(check.passed is not None for check in self.checks)),
            "wrong": str(len(self.wrong)),
            "not checked": str(sum(check.passed is None for check in self.checks)),
            "engines": ", ".join(name for name, reason in self.engines.items() if reason is None) or "none",
        }
        rows = "".join(f"<div><dt>{plain(k)}</dt><dd>{plain(v)}</dd></div>" for k, v in facts.items())
        mark = "good" if self.ok else "bad"
        parts = [f'<h1 class="{mark}"><bdi>{plain(self.head)}</bdi></h1>', f'<dl class="facts">{rows}</dl>']
        parts += [f"<p>{plain(self.note)}</p>"] if self.note else []
        if self.wrong:
            items = "".join(f"<li>{plain(str(check))}</li>" for check in self.wrong)
            parts.append(f'<section><h2>Wrong</h2><ul class="bad">{items}</ul></section>')
        if settled := [check for check in self.checks if check.settled]:
            items = "".join(f"<li>{plain(str(check))}</li>" for check in settled)
            parts.append(f"<section><h2>Right, where PyTorch is not</h2><ul>{items}</ul></section>")
        for engine, reason in self.engines.items():
            inner = f"<p>cannot run it: {plain(reason)}</p>" if reason is not None else self._table(engine)
            parts.append(f"<section><h2>{plain(engine)}</h2>{inner}</section>")
        parts.append(f'<p class="note">{plain(_LEGEND)}</p>')
        parts.append(
            f'<section><h2>The circuit</h2><pre class="plan">{plain(str(self.circuit))}</pre></section>'
        )
        return document(f"{self.head}", "".join(parts), _STYLE)

    def _table(self, engine: str) -> str:
        from elman.report import plain

        head = "".join(f"<th>{plain(column)}</th>" for column in COLUMNS)
        rows = []
        for way, checks in self._ways(engine):
            by_part = {check.part: check for check in checks}
            if (one := by_part.get("")) is not None:
                told = plain(str(one).removeprefix(f"{one.name}: "))
                cells = f'<td colspan="{len(COLUMNS)}" class="none">{told}</td>'
            else:
                cells = "".join(_cell(by_part.get(column)) for column in COLUMNS)
            rows.append(f"<tr><th>{plain(way)}</th>{cells}</tr>")
        return (
            f'<div class="across"><table class="checks"><tr><th></th>{head}</tr>{"".join(rows)}</table></div>'
        )


_STYLE = """
h1.good::before { content: "✓ "; color: var(--good); }
h1.bad::before { content: "✗ "; color: var(--bad); }
:root { --good: #1a7f4b; --bad: #c0262d; }
@media (prefers-color-scheme: dark) { :root { --good: #4fc98a; --bad: #ff7b7b; } }
.across { overflow-x: auto; }
.checks th, .checks td { text-align: right; white-space: nowrap; width: auto; font-variant-numeric: tabular-nums; }
.checks th:first-child { text-align: left; color: var(--ink); }
.checks tr + tr > * { border-top: 1px solid var(--grid); }
.checks td.none { text-align: left; white-space: normal; }
.checks small { display: block; color: var(--faint); }
td.good { color: var(--good); }
td.bad, ul.bad { color: var(--bad); font-weight: 600; }
"""


def _row(way: str, checks: list[Check]) -> Iterator[str]:
    by_part = {check.part: check for check in checks}
    first = f"  {way:{_FIRST - 2}}"
    if (one := by_part.get("")) is not None:
        told = "not checked: " if one.passed is None else "✗ "
        yield from _told(f"{first}{told}{one.said}", indent=_FIRST)
        return
    yield (first + "".join(f"{_shown(by_part.get(column)):>{_WIDTH}}" for column in COLUMNS)).rstrip()
    if any(check.own is not None for check in checks):
        own = [_number(by_part[column].own) if column in by_part else "–" for column in COLUMNS]
        yield (f"    {'the loop itself':{_FIRST - 4}}" + "".join(f"{one:>{_WIDTH}}" for one in own)).rstrip()


def _shown(check: Check | None) -> str:
    if check is None or check.passed is None:
        return "–"
    return ("" if check.passed else "✗ ") + _number(check.difference)


def _number(value: float | None) -> str:
    return "–" if value is None else "0" if value == 0 else f"{value:.1e}"


def _cell(check: Check | None) -> str:
    from elman.report import plain

    if check is None or check.passed is None:
        return f'<td title="{plain("" if check is None else check.said)}">–</td>'
    own = "" if check.own is None else f"<small>the loop {_number(check.own)}</small>"
    mark = "good" if check.passed else "bad"
    return f'<td class="{mark}" title="{plain(str(check))}">{_shown(check)}{own}</td>'


def _told(text: str, indent: int = 2) -> list[str]:
    return textwrap.wrap(text, _WIDE, subsequent_indent=" " * indent, drop_whitespace=True)
