"""Writes tables of what was measured into pages: `python -m bench --peers --json FILE`, then
`python -m bench.proof FILE docs/native.md README.md`. Where a table goes, a page says by marks, one for each set of
instructions that it has been measured with."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.form import CELL, FLAX, JAX, KERAS, ONNX, OURS, TORCH
from bench.peers import STREAM, THREADS, TRAINING, Line
from elman.training import write_atomically

PROOF, BRIEFLY = "the table of proof", "how fast"
END = "<!-- its end -->"
CELLS = {"rnn": "tanh RNN", "gru": "GRU", "lstm": "LSTM"}


def table(made: Mapping[str, Any]) -> str:
    """Where and when, what the machine can do, and a line for each goal; a ratio that misses it is in bold."""
    about, limits, lines = made["about"], made["limits"], _lines(made)
    judged = {(line.row, line.ours, line.peer): line for line in lines if line.met is not None}
    by_threads = {(line.row, line.ours, line.peer, line.threads): line for line in lines}
    can = "; ".join(
        f"{each['threads']:.0f} thread{'s' * (each['threads'] > 1)}: "
        + ", ".join(f"{value:.0f} {name}" for name, value in each.items() if name != "threads")
        for each in limits
    )
    found = [
        f"{about['machine']}; {about['instructions']}; {about['versions']}; commit {about['commit']}. {can}.",
        "",
        "| row | beside | goal | one thread | two threads | of the limit |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for key, goal in judged.items():
        both = [by_threads.get((*key, count)) for count in THREADS]
        row = goal.row + (f", {goal.ours.removeprefix('elman, ')}" if "," in goal.ours else "")
        reached = " and ".join(f"{line.of_limit:.2f}" for line in both if line is not None)
        sign = "≤" if goal.at_most else "≥"
        words = [row, goal.peer, f"{sign} {goal.figure:g}", *map(_ratio, both), reached]
        found.append(f"| {' | '.join(words)} |")
    return "\n".join(found)


def briefly(made: Mapping[str, Any]) -> str:
    """Where and when; microseconds of a training step for each step of time, and of a step of a stream, ours and each
    peer's with how often ours fits into them, with the most threads that there are."""
    lines = [line for line in _lines(made) if line.ours == OURS]
    threads = max(line.threads for line in lines)
    found: dict[str, dict[str, Line]] = {}
    for line in lines:
        if line.threads == threads:
            found.setdefault(line.row, {})[line.peer] = line
    by_batch = sorted(found, key=lambda row: _size(row, "B"))
    training = {row: found[row] for row in by_batch if TRAINING in row and 100 >= _size(row, "T") > 10}
    streams = {row: found[row] for row in found if STREAM in row}
    about = made["about"]
    machine = about["machine"].partition("; load")[0]
    where = f"{machine}, {about['instructions']}, {threads} threads; {about['versions']}; commit {about['commit']}."
    tables = (
        _brief("training", training, (TORCH, JAX, FLAX, KERAS)),
        _brief("a step of a stream", streams, (ONNX, CELL)),
    )
    return "\n".join([where, "", *tables[0], "", *tables[1]])


def _brief(words: str, rows: Mapping[str, Mapping[str, Line]], peers: Sequence[str]) -> list[str]:
    heads = " | ".join(["ours", *peers]).replace(CELL, "PyTorch's cell")
    made = [f"| {words} | {heads} |", "| --- |" + " --- |" * (1 + len(peers))]
    for row, lines in rows.items():
        kind, _, where = row.partition(" ")
        sizes = re.sub("([BHT])", r"\1 ", where.partition(", ")[2])
        each, (any_line, *_) = 1e6 / _size(row, "T"), lines.values()
        cells = [_number(any_line.ours_seconds * each)]
        for peer in peers:
            line = lines.get(peer) or lines.get(peer.replace("GRU", kind.upper()))
            cells.append(
                "" if line is None else f"{_number(line.peer_seconds * each)} ({_times(line.ratio)}×)"
            )
        made.append(f"| {CELLS[kind]}, {sizes} | {' | '.join(cells)} |")
    return made


def _times(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def _number(value: float) -> str:
    """Three digits of it, or as many as it has."""
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _size(row: str, letter: str) -> int:
    """B, H or T of a row, 1 where it does not say any."""
    said = re.search(rf"{letter}(\d+)", row)
    return int(said[1]) if said else 1


def _lines(made: Mapping[str, Any]) -> list[Line]:
    return [Line(**{name: value for name, value in line.items() if name != "met"}) for line in made["peers"]]


def _ratio(line: Line | None) -> str:
    if line is None:
        return ""
    words = f"{line.ratio:.2f}"
    return {True: words, False: f"**{words}**", None: f"({words})"}[line.met]


TABLES: dict[str, Callable[[Mapping[str, Any]], str]] = {PROOF: table, BRIEFLY: briefly}


def begin(name: str, made: Mapping[str, Any]) -> str:
    """The mark of a table of what was measured with these instructions."""
    return f"<!-- {name}, {made['about']['instructions'].split()[-1]} -->"


def put(page: str, made: Mapping[str, Any]) -> str:
    """The page with other tables between its marks. Raises ValueError for a page without any."""
    marks = {begin(name, made): write for name, write in TABLES.items()}
    found = False
    for mark, write in marks.items():
        before, there, rest = page.partition(mark)
        _, end, after = rest.partition(END)
        if there and end:
            page, found = f"{before}{mark}\n\n{write(made)}\n\n{END}{after}", True
    if not found:
        raise ValueError(f"the page has no {' and no '.join(marks)} … {END}")
    return page


if __name__ == "__main__":
    given, *pages = map(Path, sys.argv[1:])
    for target in pages:
        page = put(target.read_text("utf-8"), json.loads(given.read_text("utf-8")))
        write_atomically(target, page.encode())
