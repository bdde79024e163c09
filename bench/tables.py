"""Measurements as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table

from bench import busy, measure, memory, online, pace, peers, ragged, targets
from bench.bound import BOUND
from bench.form import OURS


def of_rows(title: str, rows: list[measure.Row]) -> Table:
    """A line for every cell: us per step of all ways, the ratio to ours beside each peer, and the fraction of the
    bound's speed that ours reaches."""
    made = _table(title)
    made.add_column("cell", no_wrap=True)
    names = [name for name in dict.fromkeys(n for row in rows for n in row.seconds) if name != BOUND] + [
        BOUND
    ]
    for name in names:
        made.add_column(name, justify="right", no_wrap=True)
    made.add_column(f"of {BOUND}", justify="right", no_wrap=True)
    compiled = any(row.first_call is not None for row in rows)
    if compiled:
        made.add_column("compiling, s", justify="right", no_wrap=True)
    for row in rows:
        first = [f"{row.first_call:.1f}" if row.first_call is not None else ""] if compiled else []
        made.add_row(row.cell, *(_figure(row, name) for name in names), _fraction(row), *first)
    return made


def of_shapes(title: str, rows: list[measure.Row]) -> Table:
    """A line for every cell and shape: us per step and the fraction of the bound, in training and in inference."""
    made = _table(title)
    made.add_column("cell", no_wrap=True)
    made.add_column("shape", no_wrap=True)
    whats = list(dict.fromkeys(row.what for row in rows))
    for what in whats:
        made.add_column(f"{what}, us", justify="right")
        made.add_column(f"of {BOUND}", justify="right")
    by_key = {(row.cell, row.shape, row.what): row for row in rows}
    for cell, shape in dict.fromkeys((row.cell, row.shape) for row in rows):
        found = [by_key[cell, shape, what] for what in whats]
        made.add_row(
            cell, shape, *(f for row in found for f in (f"{row.per_step(OURS):.1f}", _fraction(row)))
        )
    return made


def of_targets(title: str, lines: list[targets.Line]) -> Table:
    """A line for every peer and shape: what was measured, the prototype's ratio, the one to reach, whether it is."""
    made = _table(title)
    for name in ("peer", "shape", "T", OURS, "peer's", "ratio", "prototype", "reach", "met", f"of {BOUND}"):
        made.add_column(name, justify="left" if name in ("peer", "shape", "met") else "right", no_wrap=True)
    for line in sorted(lines, key=lambda line: line.peer):
        row = line.row
        times = [f"{row.per_step(name):.1f}" for name in (OURS, line.peer)]
        met = {None: "", True: "yes", False: "NO"}[line.met]
        ratios = [f"{line.ratio:.2f}", _given(line.prototype), _given(line.reach)]
        made.add_row(line.peer, row.shape, str(row.steps), *times, *ratios, met, _fraction(row))
    return made


def of_peers(title: str, lines: list[peers.Line]) -> Table:
    """A line for every row and peer: both times, their ratio, the goal, and the fraction of the limit that ours
    reaches."""
    made = _table(title)
    for name in ("row", "peer", "ours, us", "peer's, us", "ratio", "goal", "met", "limit, us", "of limit"):
        made.add_column(name, justify="left" if name in ("row", "peer", "met") else "right")
    for line in lines:
        goal = "" if line.figure is None else f"{'≤' if line.at_most else '≥'} {line.figure:g}"
        row = line.row if line.ours == OURS else f"{line.row}, {line.ours.removeprefix('elman, ')}"
        times = [f"{1e6 * value:.1f}" for value in (line.ours_seconds, line.peer_seconds)]
        met = {None: "", True: "yes", False: "NO"}[line.met]
        limit = [f"{1e6 * line.least:.1f}", f"{line.of_limit:.2f}"]
        made.add_row(row, line.peer, *times, f"{line.ratio:.2f}", goal, met, *limit)
    return made


def of_lines(title: str, lines: list[ragged.Line], pairs: list[tuple[str, str]]) -> Table:
    """A line for every problem: the time of each way, and how many times longer one takes than another."""
    made = _table(title)
    made.add_column("")
    names = list(lines[0].seconds)
    for name in (*names, *(f"{one}\n/ {other}" for one, other in pairs)):
        made.add_column(name, justify="right")
    for line in lines:
        times = [f"{line.milliseconds(name):.2f}" for name in names]
        made.add_row(line.words, *times, *(f"{line.ratio(*pair):.2f}" for pair in pairs))
    return made


def of_busy(title: str, found: list[busy.Slowed]) -> Table:
    """A line for every cell and shape: us per step, quiet and busy, and the factors of the medians and of the means."""
    made = _table(title)
    for name in (
        "cell",
        "shape",
        "who",
        "quiet, us",
        "busy, us",
        "slower",
        "by means",
        "no more than torch.mm",
    ):
        made.add_column(name, justify="left" if name in ("cell", "shape", "who") else "right", no_wrap=True)
    for slowed in found:
        held = "yes" if slowed.factor(OURS) <= slowed.factor(BOUND) else "NO"
        for name in (OURS, BOUND):
            times = [f"{slowed.per_step(name, busy):.1f}" for busy in (False, True)]
            factors = [f"{slowed.factor(name):.2f}×", f"{slowed.factor(name, mean=True):.2f}×"]
            made.add_row(slowed.cell, slowed.shape, name, *times, *factors, held if name == OURS else "")
    return made


def of_times(title: str, rows: dict[str, dict[str, float]], scale: float, digits: int) -> Table:
    made = Table("", title=title, title_justify="left")
    for name in next(iter(rows.values())):
        made.add_column(name, justify="right")
    for name, row in rows.items():
        made.add_row(name, *(f"{scale * value:.{digits}f}" for value in row.values()))
    return made


def of_memory(title: str, runs: Sequence[memory.Run]) -> Table:
    made = _table(title)
    for name in ("", "T", "us a step", "× ours", "MB at once"):
        made.add_column(name, justify="left" if not name else "right")
    ours = next(run for run in runs if run.way == memory.OURS)
    for run in runs:
        ratio = "" if run is ours else f"{run.microseconds / ours.microseconds:.2f}"
        made.add_row(run.way, f"{run.steps:,}", f"{run.microseconds:.1f}", ratio, f"{run.bytes / 1e6:.1f}")
    return made


def of_online(title: str, runs: Sequence[online.Run]) -> Table:
    made = _table(title)
    for name in ("", "error", "kB held", "us a step"):
        made.add_column(name, justify="left" if not name else "right")
    for run in runs:
        made.add_row(run.way, f"{run.error:.4f}", f"{run.bytes / 1e3:.1f}", f"{run.microseconds:.0f}")
    return made


def of_biases(title: str, found: Sequence[online.Bias]) -> Table:
    made = _table(title)
    for name in ("", "steps learnt before", "‖g − r‖ / ‖r‖", "cosine"):
        made.add_column(name, justify="left" if not name else "right")
    for one in found:
        made.add_row(one.rule, f"{one.learnt:,}", f"{one.error:.2f}", f"{one.cosine:.2f}")
    return made


def of_pace(title: str, lines: Sequence[pace.Line]) -> Table:
    table = _table(title)
    for column in ("cell", "shape", "T", "inference, us", "said ×", "training, us", "said ×"):
        table.add_column(column, justify="left" if column in ("cell", "shape") else "right")
    for inference, training in zip(lines[::2], lines[1::2], strict=True):
        cells = [inference.cell, inference.shape, str(inference.steps)]
        for line in (inference, training):
            mark = "" if line.met else "[bold red]"
            cells += [f"{1e6 * line.taken:,.0f}", f"{mark}{line.ratio:.2f}"]
        table.add_row(*cells)
    return table


def of_streams(title: str, first: str, found: Mapping[str, Mapping[str, float]]) -> Table:
    """found: the name of a line -> column -> figure."""
    made = _table(title)
    names = list(dict.fromkeys(name for figures in found.values() for name in figures))
    for name in (first, *names):
        made.add_column(name, justify="right" if name in names else "left")
    for line, figures in found.items():
        made.add_row(line, *(f"{figures[name]:.1f}" if name in figures else "" for name in names))
    return made


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", pad_edge=False)


def _figure(row: measure.Row, name: str) -> str:
    if name not in row.seconds:
        return ""
    own = f"{row.per_step(name):.1f}"
    return own if name in (OURS, BOUND) else f"{own}  {row.ratio(name):.2f}×"


def _fraction(row: measure.Row) -> str:
    return f"{row.ratio(BOUND):.2f}"


def _given(figure: float | None) -> str:
    return "" if figure is None else f"{figure:g}"
