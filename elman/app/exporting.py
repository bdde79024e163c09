"""`elman export`: the model of a run as a file that runs where there is no elman."""

from __future__ import annotations

import inspect
from dataclasses import field, fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from typer.core import TyperCommand

from elman.app.options import command
from elman.app.seeing import Cell, RunFolder, Trust
from elman.errors import InputError

HELP = "Write a run's model as a file that runs where there is no elman."
_MORE = """
What kind of file it is, the ending of --out says, or --to. Sizes of a
sequence and of a batch stay open in it. Options that a target does not take
are refused.
"""

Out = Annotated[
    Path | None,
    typer.Option("-o", "--out", help="The file to write. (default: RUN/model.TO)", show_default=False),
]
To = Annotated[str | None, typer.Option(help="The target, where --out does not say it.", show_default=False)]


class ExportCommand(TyperCommand):
    """The command; what the targets take is imported when it is called."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        own = [p for p in inspect.signature(_run, eval_str=True).parameters.values() if p.name != "settings"]
        subcommand = command("export", {"settings": _settings()}, _run, f"{HELP}\n{_MORE}", own)
        return subcommand.make_context(info_name, args, parent, **extra)


def _settings() -> type:
    """The options of all targets as one dataclass; `given`: those that the user gave."""
    from elman.export import TARGETS

    merged: dict[str, Any] = {}
    for load in TARGETS.values():
        options = load().Options
        kinds = get_type_hints(options)
        for one in fields(options):
            merged.setdefault(one.name, (kinds[one.name], field(default=one.default, metadata=one.metadata)))
    given = ("given", frozenset, field(default=frozenset(), metadata={"given": True}))
    return make_dataclass("Settings", [*((name, *how) for name, how in merged.items()), given], frozen=True)


def _run(
    *,
    settings: Any,
    folder: RunFolder,
    out: Out = None,
    to: To = None,
    trust: Trust = False,
    cell: Cell = None,
) -> None:
    import torch

    from elman.app import jobs
    from elman.app.last import plain
    from elman.export import TARGETS, export
    from elman.tasks.task import Opening

    targets = [suffix.removeprefix(".") for suffix in TARGETS]
    if to is not None and to not in targets:
        raise InputError(
            what=f"--to is {' or '.join(targets)}", where="--to", got=to[:50], mend="take one of them"
        )
    if out is None and to is None:
        raise InputError(
            what="neither --out nor --to says what to write",
            where="elman export",
            expected=" or ".join(f"--to {one}" for one in targets),
            mend="add one of them",
        )
    path = folder / f"model.{to}" if out is None else out
    if to is not None and path.suffix.lower() != f".{to}":
        raise InputError(
            what="--out and --to say different things", where="--to, --out", got=f"{to}, {path.name}",
            mend="leave --to away",
        )  # fmt: skip
    notify = lambda words: typer.secho(f"note: {plain(words)}", err=True, fg="yellow")  # noqa: E731
    _, task, model = jobs.opened(folder, Opening(trust, cell, notify))
    with torch.no_grad():
        task.called(model)
    own = {one.name: getattr(settings, one.name) for one in fields(settings) if one.name in settings.given}
    for written in export(model, path, **own):
        typer.echo(plain(str(written)))


__all__ = ["HELP", "ExportCommand"]
