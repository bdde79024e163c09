"""`python -m bench`: run, and print tables."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

import elman
from bench import measure, overhead
from bench.agree import Disagreement
from bench.contestants import ENTRIES, OURS, Shape

SHAPES = "B1H128,B16H64,B32H128,B32H256"


def main(
    cells: Annotated[str, typer.Option(help=f"which, of: {', '.join(ENTRIES)}")] = ",".join(ENTRIES),
    shapes: Annotated[
        str, typer.Option(help="batch and hidden width, as in B16H64; inputs are as wide")
    ] = SHAPES,
    steps: Annotated[int, typer.Option(help="T, the length of the sequences")] = 100,
    repeats: Annotated[int, typer.Option(help="rounds of measurement")] = 7,
    seconds: Annotated[
        float, typer.Option(help="time for one line of a table; at least three rounds are run")
    ] = 1.0,
    threads: Annotated[int, typer.Option(help="of torch; 0 leaves its own choice")] = 0,
    engine: Annotated[str, typer.Option(help="that runs our loops")] = "auto",
    quick: Annotated[
        bool, typer.Option("--quick", help="three cells, one shape, three rounds, no overheads")
    ] = False,
    overheads: Annotated[bool, typer.Option(help="import, trace and call times as well")] = True,
    json_to: Annotated[
        Path | None, typer.Option("--json", help="write every measurement into this file")
    ] = None,
) -> None:
    """Time elman beside its peers: in one process, in turns, after checking that the results agree."""
    if threads:
        torch.set_num_threads(threads)
    if quick:
        cells, shapes, repeats, overheads = "rnn,gru,lstm", "B16H64", 3, False
    console = Console() if sys.stdout.isatty() else Console(width=110)
    about = machine()
    console.print("\n".join(f"{name}: {value}" for name, value in about.items()), highlight=False)
    console.print(
        f"T = {steps}; us per time step, median of up to {repeats} rounds in turns; ×: theirs / ours\n"
    )
    if hasattr(os, "getloadavg") and os.getloadavg()[0] > 0.7 * (os.cpu_count() or 1):
        console.print(
            "Other processes keep this machine busy: ratios below may be off by much.\n", style="bold"
        )
    rows: list[measure.Row] = []
    wrong: list[str] = []
    for shape in map(Shape.parse, shapes.split(",")):
        found: list[measure.Row] = []
        for name in cells.split(","):
            with console.status(f"{name} {shape}"):
                try:
                    found += measure.run(ENTRIES[name], shape, steps, repeats, seconds, engine)
                except Disagreement as error:
                    wrong.append(f"{name} {shape}: {error}")
        for what in ("training step", "inference") if found else ():
            console.print(table(f"{shape}, {what}", [row for row in found if row.what == what]))
        rows += found
    extra: dict[str, Any] = {}
    if overheads:
        with console.status("import, traces, calls"):
            extra = {"import": overhead.import_seconds(), "trace": overhead.trace_seconds()}
            extra["call"] = overhead.call_seconds()
        console.print(f"import elman, after torch: {extra['import']:.2f} s\n", highlight=False)
        console.print(times("from a cell to its first result, s", extra["trace"], 1, 3))
        console.print(times("one call, T = 1, B = 1, H = 64, no gradient, us", extra["call"], 1e6, 0))
    if json_to is not None:
        made = {"about": about, "rows": [row.as_json() for row in rows], **extra}
        json_to.write_text(json.dumps(made, indent=1), "utf-8")
    for line in wrong:
        console.print(f"NOT TIMED  {line}", style="bold red", highlight=False)
    raise typer.Exit(bool(wrong))


# --- what is printed --------------------------------------------------------------------------------------------------


def table(title: str, rows: list[measure.Row]) -> Table:
    """A line for every cell: us per step of all ways, the ratio to ours beside each peer."""
    made = Table(title=title, title_justify="left", pad_edge=False)
    made.add_column("cell", no_wrap=True)
    names = list(dict.fromkeys(name for row in rows for name in row.seconds))
    for name in names:
        made.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        made.add_row(row.cell, *(_figure(row, name) for name in names))
    return made


def _figure(row: measure.Row, name: str) -> str:
    if name not in row.seconds:
        return ""
    own = f"{row.per_step(name):.1f}"
    return own if name == OURS else f"{own}  {row.ratio(name):.2f}×"


def times(title: str, rows: dict[str, dict[str, float]], scale: float, digits: int) -> Table:
    made = Table("", title=title, title_justify="left")
    for name in next(iter(rows.values())):
        made.add_column(name, justify="right")
    for name, row in rows.items():
        made.add_row(name, *(f"{scale * value:.{digits}f}" for value in row.values()))
    return made


def machine() -> dict[str, str]:
    """What a figure means nothing without."""
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg()) if hasattr(os, "getloadavg") else "unknown"
    return {
        "machine": f"{processor()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}; load {load}",
        "threads": str(torch.get_num_threads()),
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, elman {elman.__version__}",
        "commit": commit(),
    }


def processor() -> str:
    """The name that the processor gives itself, where the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def commit() -> str:
    """The commit, with a word if files differ from it; "unknown" outside a repository."""
    here = Path(__file__).parent
    try:
        head, changed = (
            subprocess.run(
                ["git", *words], cwd=here, check=True, capture_output=True, text=True
            ).stdout.strip()
            for words in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head}, with changes" if changed else head


if __name__ == "__main__":
    typer.run(main)
