"""`elman serve`: the model of a run behind HTTP."""

from __future__ import annotations

import importlib.util
import inspect
from typing import Any

import typer
from typer.core import TyperCommand

from elman.app.options import command
from elman.app.seeing import Cell, RunFolder, Trust
from elman.errors import NotSupported

HELP = "Answer requests over HTTP, as OpenAI's interface has them, by a run's model."
_MORE = """
Of a language model /v1/completions, and a page to try it at /; of others
/v1/tag, /v1/classify or /v1/forecast. /health and /metrics are for
monitors. Whoever reaches the address may ask, unless --api-key-file says
who. Ctrl-C or SIGTERM lets what runs end.
"""
_NEEDED = ("fastapi", "uvicorn", "prometheus_client")


class ServeCommand(TyperCommand):
    """The command; what it is made of is imported when it is called."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        from elman.serve import Serving

        own = [p for p in inspect.signature(_run, eval_str=True).parameters.values() if p.name != "settings"]
        subcommand = command("serve", {"settings": Serving}, _run, f"{HELP}\n{_MORE}", own)
        return subcommand.make_context(info_name, args, parent, **extra)


def _run(*, settings: Any, folder: RunFolder, trust: Trust = False, cell: Cell = None) -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise NotSupported(
            what=f"serving needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed",
            where="elman serve", mend="pip install 'elman[serve]'",
        )  # fmt: skip
    from elman.app import jobs
    from elman.app.last import plain
    from elman.serve.server import name_of, run
    from elman.tasks.task import Opening

    def notify(words: str) -> None:
        typer.secho(f"note: {plain(words)}", err=True, fg="yellow")

    _, task, model = jobs.opened(folder, Opening(trust, cell, notify))
    run(task, model, name_of(folder), settings, lambda words: typer.echo(plain(words)))


__all__ = ["HELP", "ServeCommand"]
