"""Writes the table of proof into a page: `python -m bench --peers --json FILE`, `python -m bench.proof FILE PAGE`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.peers import THREADS, Line
from elman.training import write_atomically

BEGIN, END = "<!-- the table of proof -->", "<!-- its end -->"


def table(made: Mapping[str, Any]) -> str:
    """Where and when, what the machine can do, and a line for each goal; a ratio that misses it is in bold."""
    about, limits = made["about"], made["limits"]
    lines = [Line(**{name: value for name, value in line.items() if name != "met"}) for line in made["peers"]]
    judged = {(line.row, line.ours, line.peer): line for line in lines if line.met is not None}
    by_threads = {(line.row, line.ours, line.peer, line.threads): line for line in lines}
    can = "; ".join(
        f"{each['threads']:.0f} thread{'s' * (each['threads'] > 1)}: "
        + ", ".join(f"{value:.0f} {name}" for name, value in each.items() if name != "threads")
        for each in limits
    )
    found = [
        f"{about['machine']}; {about['versions']}; commit {about['commit']}. {can}.",
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


def _ratio(line: Line | None) -> str:
    if line is None:
        return ""
    words = f"{line.ratio:.2f}"
    return {True: words, False: f"**{words}**", None: f"({words})"}[line.met]


def put(page: str, made: str) -> str:
    """The page with another table between its two marks. Raises ValueError for a page without them."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page has no {BEGIN} … {END}")
    return f"{before}{BEGIN}\n\n{made}\n\n{END}{after}"


if __name__ == "__main__":
    given, target = map(Path, sys.argv[1:3])
    page = put(target.read_text("utf-8"), table(json.loads(given.read_text("utf-8"))))
    write_atomically(target, page.encode())
