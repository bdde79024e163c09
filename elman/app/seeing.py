"""`elman draw`, `explain`, `verify`: a cell, or the model of a run, as a picture and in words; and is it right?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from elman.errors import InputError

RunFolder = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run folder, as --out wrote it.", show_default=False)
]
Thing = Annotated[
    str,
    typer.Argument(
        metavar="CELL|RUN", help="As --cell of `elman train`; or a run folder.", show_default=False
    ),
]
Width = Annotated[int, typer.Option("--input", help="I, width of a cell's input.", min=1, max=2**14)]
Hidden = Annotated[int, typer.Option(help="H, units of a cell.", min=1, max=2**14)]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust", help="Run the code of a cell that is not elman's own; its file and digest are said first."
    ),
]
Cell = Annotated[
    str | None,
    typer.Option(
        help="Where the model's own cell is now: path.py:Class, package.module:Class; with --trust."
    ),
]


def explain(
    thing: Thing, width: Width = 64, hidden: Hidden = 256, trust: Trust = False, cell: Cell = None
) -> None:
    """What of a cell or of a run's model runs once, before, in and after the loop over time, and why."""
    from elman.plan import explain as explained

    typer.echo(str(explained(_called(thing, width, hidden, trust, cell))))


def draw(
    thing: Thing,
    out: Annotated[
        Path, typer.Option("-o", "--out", help="The file: .svg, .html, .png or .pdf.", show_default=False)
    ],
    unfold: Annotated[
        int | None, typer.Option(help="Unfold for so many time steps.", min=1, max=10**9, show_default=False)
    ] = None,
    level: Annotated[
        str, typer.Option(help="book: variables and weights. ops: every operation, by when it runs.")
    ] = "book",
    adjoint: Annotated[
        bool, typer.Option("--adjoint", help="What runs back through time, for the gradient; of a cell.")
    ] = False,
    width: Width = 64,
    hidden: Hidden = 256,
    trust: Trust = False,
    cell: Cell = None,
) -> None:
    """A cell or a run's model as a picture."""
    from elman.adjoint import adjoint as adjoint_of
    from elman.draw import draw as drawn
    from elman.recurrent import Recurrent

    called = _called(thing, width, hidden, trust, cell)
    if adjoint:
        if not isinstance(called, Recurrent):
            raise InputError(
                what="an adjoint is drawn of one cell", where="--adjoint", got="a run", mend="name the cell of the run"
            )  # fmt: skip
        called = adjoint_of(called.circuit)
    typer.echo(drawn(called, unfold=unfold, level=level).save(out))


def verify(
    cell: Annotated[
        str,
        typer.Argument(
            metavar="CELL",
            help="A shipped cell, or path.py:Class, or package.module:Class, whose code is run.",
            show_default=False,
        ),
    ],
    width: Annotated[
        int, typer.Option("--input", help="I, width of the cell's input.", min=1, max=2**14)
    ] = 7,
    hidden: Annotated[int, typer.Option(help="H, units of the cell.", min=1, max=2**14)] = 17,
    page: Annotated[
        Path | None, typer.Option("--html", help="Write the report as a page, too.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the random sequences.", min=0, max=2**31)] = 0,
) -> None:
    """Is a cell's recurrence right? It is run every way on every engine, and held against a plain loop over the cell.

    Outputs, final states, gradients and second derivatives; whole, reversed,
    ragged, with resets; in float64, and the errors of float32 beside the
    loop's own. The exit status is 0 for a right cell, 1 for a wrong one and
    for one that cannot be a recurrence.
    """
    import torch

    from elman.app.last import plain
    from elman.errors import TraceError
    from elman.models import find_cell
    from elman.verify import verify as verified

    module = find_cell(cell)(width, hidden)
    try:
        report = verified(module, torch.zeros(2, width), seed=seed)
    except TraceError as error:
        typer.secho(f"error: {plain(str(error))}", err=True, fg="red")
        raise typer.Exit(1) from error
    typer.echo(plain(str(report)))
    if page is not None:
        report.save(page)
        typer.echo(f"\nThe report is {plain(str(page))}")
    if not report:
        raise typer.Exit(1)


def _called(thing: str, width: int, hidden: int, trust: bool, cell: str | None) -> Any:
    """A layer of a cell, or the model of a run, after a call: circuits and plans belong to one."""
    import torch

    from elman.models import find_cell
    from elman.recurrent import Recurrent

    if Path(thing).is_dir() and (
        "/" in thing or (Path(thing) / "config.json").is_file()
    ):  # else a cell's name
        from elman.app import jobs
        from elman.app.last import plain
        from elman.tasks.task import Opening

        notify = lambda words: typer.secho(f"note: {plain(words)}", err=True, fg="yellow")  # noqa: E731
        _, task, model = jobs.opened(Path(thing), Opening(trust, cell, notify))
        with torch.no_grad():
            task.called(model)
        return model
    if "/" in thing and ":" not in thing:
        raise InputError(
            what="there is no run folder of that name, nor a cell", where="CELL|RUN", got=thing,
            mend="give the folder that `elman train … --out` named, or a cell: gru, path.py:Class",
        )  # fmt: skip
    layer = Recurrent(find_cell(thing)(width, hidden))
    layer(torch.zeros(2, 1, width))
    return layer


__all__ = ["Cell", "RunFolder", "Trust", "draw", "explain", "verify"]
