"""`python -m bench`: run, and print tables."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer

from bench import busy, peers
from bench.contestants import ENTRIES
from bench.report import COMPILED_STEPS, Report

SHAPES = "B1H128,B16H64,B32H128,B32H256"
SMALL = "B1H64,B1H128,B16H64"


class Dtype(StrEnum):
    float32 = "float32"
    float64 = "float64"


app = typer.Typer(add_completion=False)


@app.command()
def main(
    cells: Annotated[str, typer.Option(help="which; all: " + ",".join(ENTRIES))] = "",
    shapes: Annotated[
        str, typer.Option(help=f"batch and hidden width; inputs are as wide; else {SHAPES}")
    ] = "",
    steps: Annotated[int, typer.Option(help="T, the length of the sequences")] = 100,
    repeats: Annotated[int, typer.Option(help="rounds of measurement")] = 7,
    seconds: Annotated[
        float, typer.Option(help="time for one line of a table; at least three rounds are run")
    ] = 1.0,
    threads: Annotated[int, typer.Option(help="of torch; 0 leaves its own choice")] = 0,
    engine: Annotated[str, typer.Option(help="that runs our loops")] = "auto",
    dtype: Annotated[Dtype, typer.Option(help="of weights and sequences")] = Dtype.float32,
    compiled: Annotated[
        bool, typer.Option("--compile", help=f"torch.compile of the plain loop, at T = {COMPILED_STEPS}")
    ] = False,
    against: Annotated[
        bool, typer.Option("--targets", help="only this: what is to be reached (float32, 6 minutes)")
    ] = False,
    proof: Annotated[
        bool,
        typer.Option(
            "--peers",
            help="only this: every goal beside its peer, one thread and two; status 1 if one is missed (20 minutes)",
        ),
    ] = False,
    only: Annotated[str, typer.Option(help="of --peers: rows whose words contain this")] = "",
    beside: Annotated[
        bool, typer.Option("--busy", help="only this: slower by what, beside a busy process")
    ] = False,
    alone: Annotated[
        bool, typer.Option("--alone", help=f"only this: ours without peers between; else {SMALL}")
    ] = False,
    ragged: Annotated[
        bool, typer.Option("--ragged", help="only this: lengths, resets and single steps of a GRU")
    ] = False,
    others: Annotated[
        bool, typer.Option("--others", help="only this: cells of other packages, those that are installed")
    ] = False,
    language: Annotated[
        bool, typer.Option("--language", help="only this: a language model, trained and writing")
    ] = False,
    memory: Annotated[
        bool, typer.Option("--memory", help="only this: a long sequence under a budget; --steps 1000000")
    ] = False,
    tangent: Annotated[
        bool, typer.Option("--tangent", help="only this: vmap of a GRU, Lyapunov exponents")
    ] = False,
    online: Annotated[
        bool, typer.Option("--online", help="only this: learning on a stream, rule by rule; --steps 100000")
    ] = False,
    picture: Annotated[
        Path | None, typer.Option("--picture", help="with --online: draw error against memory into this file")
    ] = None,
    streamed: Annotated[
        bool, typer.Option("--streams", help="only this: streams beside ONNX Runtime, tokens a second")
    ] = False,
    cost: Annotated[
        bool,
        typer.Option("--cost", help="only this: what elman.cost says of times; status 1 where it is far off"),
    ] = False,
    served: Annotated[
        bool,
        typer.Option(
            "--serving", help="only this: a server under load, its memory, clients that behave badly"
        ),
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="three cells, one shape, three rounds, no overheads")
    ] = False,
    overheads: Annotated[bool, typer.Option(help="import, trace and call times as well")] = True,
    json_to: Annotated[
        Path | None,
        typer.Option("--json", help="write every measurement into this file; --online goes on from it"),
    ] = None,
) -> None:
    """Time elman beside its peers: in one process, in turns, after checking that the results agree."""
    if threads:
        torch.set_num_threads(threads)
    if quick:
        cells, shapes, repeats, overheads = cells or "rnn,gru,lstm", shapes or "B16H64", 3, False
    report = Report(engine, getattr(torch, dtype.value))
    if against:
        report.targets(cells.split(",") if cells else list(ENTRIES), shapes.split(",") if shapes else [])
    if proof:
        report.peers(seconds, (threads,) if threads else peers.THREADS, only)
    if beside:
        report.busy((cells or "rnn,gru,lstm").split(","), (shapes or ",".join(busy.SHAPES)).split(","), steps)
    if alone:
        report.alone((cells or "rnn,gru,lstm").split(","), (shapes or SMALL).split(","), steps, seconds)
    if ragged:
        report.ragged(seconds)
    if others:
        report.others(seconds)
    if language:
        report.language()
    if memory:
        report.memory(steps)
    if tangent:
        report.examples(seconds)
        report.tangents(seconds)
    if online:
        report.online(steps, picture, json_to)
    if streamed:
        report.streams(seconds)
    if served:
        report.serving()
    if cost:
        report.cost(seconds)
    if not (
        streamed
        or cost
        or served
        or online
        or tangent
        or against
        or proof
        or beside
        or alone
        or ragged
        or others
        or language
        or memory
    ):
        chosen, sizes = (cells or ",".join(ENTRIES)).split(","), (shapes or SHAPES).split(",")
        report.rows(chosen, sizes, steps, repeats, seconds)
        if compiled:
            report.compiled(
                [name for name in chosen if not ENTRIES[name].case.noise], sizes, repeats, seconds
            )
        if overheads:
            report.overheads()
    raise typer.Exit(report.close(json_to))


if __name__ == "__main__":
    app()
