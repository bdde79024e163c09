"""The `elman` command. Heavy imports stand inside the commands, so that --help answers at once."""

from __future__ import annotations

import inspect
import shlex
import sys
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from elman.app.ending import Interrupted, ended
from elman.app.exporting import HELP, ExportCommand
from elman.app.last import plain, told
from elman.app.options import command
from elman.app.process import settle
from elman.app.seeing import Cell, RunFolder, Trust, draw, explain, verify
from elman.app.serving import HELP as SERVE
from elman.app.serving import ServeCommand
from elman.errors import InputError
from elman.tasks import TASKS
from elman.tasks.settings import COUNT, SIZE

if TYPE_CHECKING:
    from elman.data import Tokenizer
    from elman.tasks.lm import Language
    from elman.tasks.settings import KeepingSettings, MachineSettings, TrainingSettings
    from elman.tasks.task import Task

app = typer.Typer(
    help="Recurrent networks: write one step, train over whole sequences.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
train = typer.Typer(help="Train a model and write a run folder.", no_args_is_help=True)
app.add_typer(train, name="train")

_MINUTES = 3.0  # of training when nothing is said
Cache = Annotated[
    Path | None,
    typer.Option(
        help="Where what was worked out of files is kept for the next time, up to 10 GB, of which the oldest go first. "
        "(default: $XDG_CACHE_HOME/elman, ~/.cache/elman)"
    ),
]
Files = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="[FILE]...",
        help="As in training; - for standard input. None: what was held out then.",
        show_default=False,
    ),
]


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"elman {version('elman')}")
        raise typer.Exit


@app.callback()
def top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version and exit.")
    ] = False,
) -> None:
    pass


_SURVIVES = """
A run survives whatever ends its process: repeat the command with
--resume auto and it goes on from its last checkpoint, by --steps to the
same bits as if nothing had happened, by --minutes with what was left of
them. Ctrl-C writes a checkpoint and says how to go on; the exit status is
130 then, 143 after SIGTERM.

Several processes, on one machine or more, share every batch:
torchrun --nproc-per-node 2 -m elman train {name} …
"""


class _Late(TyperCommand):
    """The command that trains one task; what it is made of is imported when it is called."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        from elman.tasks import task_of
        from elman.tasks.settings import KeepingSettings, MachineSettings, TrainingSettings

        task = task_of(str(self.name))
        settings = {
            "settings": task.Settings, "keeping": KeepingSettings, "training": TrainingSettings,
            "machine": MachineSettings,
        }  # fmt: skip
        words = f"{inspect.cleandoc(task.Settings.__doc__ or '')}\n{_SURVIVES.format(name=task.name)}"
        subcommand = command(task.name, settings, lambda **given: _train(task, **given), words)
        return subcommand.make_context(info_name, args, parent, **extra)


def add(task: str) -> None:
    """Make `elman train TASK` of a line in `elman.tasks.TASKS`."""
    train.command(task, cls=_Late, help=TASKS[task][1])(lambda: None)


for _name in TASKS:
    add(_name)


def _train(
    task: type[Task],
    settings: Any,
    keeping: KeepingSettings,
    training: TrainingSettings,
    machine: MachineSettings,
) -> None:
    from rich.text import Text

    from elman.app import jobs
    from elman.app.screen import Watch
    from elman.recurrent import set_memory
    from elman.segments.segment import read_memory
    from elman.training import Processes

    memory = None if machine.memory is None else read_memory(machine.memory, "--memory")
    if training.steps is None and training.minutes is None:
        training = replace(training, minutes=_MINUTES)
    with Processes(machine.precision, machine.device) as processes:
        console = _console(plain=machine.quiet, silent=not processes.first)
        with console.status("reading …") as status:
            job = jobs.prepare(task, settings, training, keeping, processes, status.update)
        set_memory(job.model, memory)
        out = job.keeping.out
        for note in job.prepared.notes if processes.first else ():
            _note(note)
        size = sum(p.numel() for p in job.model.parameters())
        console.print(
            f"{job.prepared.about}; {size:,} parameters"
            + (f"; {processes.count} processes" if processes.count > 1 else ""),
            soft_wrap=True,
        )
        with job.threads(), Watch(console, plot=False, task=job.task) as watch:
            interrupted = job.train(watch)
        console.print(
            Text.assemble("" if interrupted is None else "Interrupted. ", "Saved in ", (str(out), "bold")),
            soft_wrap=True,
        )
        console.print(Text(f"The report is {out / 'report.html'}"), soft_wrap=True)
        if interrupted is not None:
            console.print(Text(f"Go on with\n  {_going_on(processes.count)}", "bold"), soft_wrap=True)
        elif job.figure is not None:
            for line in job.task.said(job.figure, job.prepared.held_out):
                console.print(Text(line), soft_wrap=True)
            if not job.figure.details.get("whole", True):
                more = " --trust" if ":" in str(job.config.get("cell")) else ""
                console.print(
                    f"That is the beginning of what was held out; of all of it: elman evaluate {out}{more}",
                    soft_wrap=True,
                )
    _leave(interrupted)


@app.command("evaluate")
def evaluate_run(
    folder: RunFolder,
    files: Files = None,
    cache: Cache = None,
    trust: Trust = False,
    cell: Cell = None,
    cold: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=SIZE,
            show_default=False,
            help="Of a language model, beside that: blocks of so many symbols, each from the initial state.",
        ),
    ] = None,
) -> None:
    """What a run's model reaches on files, or on what was held out in training: an exact figure.

    Of a language model: bits per character of a whole text, read as one stream
    with the state carried.
    """
    from rich.console import Console

    from elman.app import jobs
    from elman.tasks.task import Opening

    with Console(highlight=False, markup=False).status("reading …") as status:
        lines = jobs.measured(folder, files or [], cache, cold, Opening(trust, cell, _note), status.update)
    for line in lines:
        typer.echo(line)


@app.command()
def predict(
    folder: RunFolder,
    files: Files = None,
    out: Annotated[Path | None, typer.Option(help="A file to write, rather than standard output.")] = None,
    trust: Trust = False,
    cell: Cell = None,
) -> None:
    """What a run's model says of files, line by line: tags, labels, a forecast.

    - is standard input, answered line by line as it comes.
    """
    from elman.app import jobs
    from elman.app.writing import put
    from elman.tasks.task import Opening

    run, task, model = jobs.opened(folder, Opening(trust, cell, _note))
    put(task.predict(model, files or [], run), out)


@app.command()
def score(
    folder: RunFolder,
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...", help="UTF-8 texts, one after another; - for standard input.", show_default=False
        ),
    ],
    each: Annotated[str, typer.Option(help="What has a line: word, or symbol.")] = "word",
    form: Annotated[
        str | None, typer.Option("--format", help="jsonl, or csv. (default: as --out is called, else jsonl)")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A file to write, rather than standard output.")] = None,
    begin: Annotated[
        str, typer.Option(help="What is read before the text. '': nothing; the first symbol has no figure then.",
                          show_default="a new line"),
    ] = "\n",
    anew: Annotated[
        bool, typer.Option("--anew", help="Forget at every line what came before: lines are texts of their own.")
    ] = False,
    trust: Trust = False,
    cell: Cell = None,
) -> None:  # fmt: skip
    """How surprising each word or symbol of a text is to a language model: -log2 p(it | all before it), in bits.

    Exact, with the state carried through the whole text. A word is what white
    space parts; the blank that ends it counts, the one before it does not.
    - is standard input, answered line by line as it comes.
    """
    from elman.app import jobs
    from elman.app.writing import FORMS, put, rows
    from elman.models.surprisal import Symbol, Word
    from elman.tasks.task import Opening

    kinds = {"word": Word, "symbol": Symbol}
    form = form or ("csv" if out is not None and out.suffix.lower() == ".csv" else "jsonl")
    for name, value, among in (("--each", each, tuple(kinds)), ("--format", form, FORMS)):
        if value not in among:
            raise InputError(
                what=f"{name} is {' or '.join(among)}", where=name, got=value[:50], mend="take one of them"
            )
    run, task, model = jobs.opened(folder, Opening(trust, cell, _note))
    task = _language(task, folder, "scores a text", "elman evaluate RUN FILE measures its model")
    _note_strange(task.tokenizer, begin)
    scores = task.score(model, files, run, begin=begin, anew=anew)
    put(rows((one for one in scores if isinstance(one, kinds[each])), kinds[each]._fields, form), out)


@app.command()
def generate(
    folder: RunFolder,
    prompt: Annotated[str, typer.Option(help="What the text begins with.")] = "\n",
    length: Annotated[int, typer.Option(help="Characters to write.", max=COUNT)] = 500,
    temperature: Annotated[
        float, typer.Option(help="0: always the likeliest; 1: as the model believes.")
    ] = 0.8,
    top_k: Annotated[
        int | None, typer.Option(help="Draw from the K likeliest symbols only.", max=COUNT)
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Draw from the likeliest that together have this probability.")
    ] = None,
    stop: Annotated[str | None, typer.Option(help="Stop before this text, should it come.")] = None,
    samples: Annotated[int, typer.Option(help="So many texts, written side by side.", max=10_000)] = 1,
    seed: Annotated[
        int | None, typer.Option(help="Makes the text repeatable.", min=-(2**63), max=2**63 - 1)
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="bfloat16 or int8: write with weights in fewer bits, which is faster.")
    ] = None,
    trust: Trust = False,
    cell: Cell = None,
) -> None:
    """Write text that goes on from a prompt, shown as it is written."""
    if samples < 1:
        raise typer.BadParameter("at least 1", param_hint="--samples")
    from elman.app import jobs
    from elman.app.writing import shown
    from elman.models.writing import continuation, continuations
    from elman.tasks.task import Opening

    _, task, model = jobs.opened(folder, Opening(trust, cell, _note))
    tokenizer = _language(
        task, folder, "writes", "elman predict RUN FILE says what its model makes of a file"
    ).tokenizer
    if not prompt:
        prompt = "\n"
    _note_strange(tokenizer, prompt)
    how = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed, "weights": weights}
    if samples > 1:
        texts = continuations(model, tokenizer, prompt, length, samples, stop, **how)
        for number, text in enumerate(texts, 1):
            typer.secho(f"--- {number}", fg="bright_black")
            typer.echo(shown(prompt.lstrip("\n") + text))
        return
    pieces = continuation(model, tokenizer, prompt, length, stop, **how)
    begun = next(pieces, "")  # what is refused is refused before anything is shown
    sys.stdout.write(shown(prompt.lstrip("\n")))
    for piece in chain([begun], pieces):
        sys.stdout.write(shown(piece))
        sys.stdout.flush()
    sys.stdout.write("\n")


@app.command()
def report(
    folder: RunFolder,
    out: Annotated[Path | None, typer.Option(help="The file to write. (default: RUN/report.html)")] = None,
) -> None:
    """A run as one page to read in a browser: curves, samples, the reach of its memory, its plan and its settings.

    The page is one file without anything from elsewhere. It is made from the
    run's config.json and log.jsonl alone; the run need not have ended.
    """
    from elman.report import write_report
    from elman.tasks import task_in
    from elman.training import Run

    run = Run(folder)
    there = (folder / "config.json").is_file()  # otherwise the report says what is wrong
    typer.echo(write_report(folder, out, *([task_in(run).part_of(run.config)] if there else [])))


app.command()(explain)
app.command()(draw)
app.command()(verify)
app.command("export", cls=ExportCommand, help=HELP)(lambda: None)
app.command("serve", cls=ServeCommand, help=SERVE)(lambda: None)


@app.command()
def demo(
    minutes: Annotated[float, typer.Option(help="Of training.")] = 1.0,
    out: Annotated[Path, typer.Option(help="The run folder; a run in it is replaced.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Of everything.", min=-(2**63), max=2**63 - 1)] = 0,
) -> None:
    """Watch a recurrent network learn the Python manual and write some, in about a minute."""
    from elman.app.demo import demo as run_demo

    _leave(run_demo(_console(), minutes, out, seed))


def _language(task: Task, folder: Path, does: str, mend: str) -> Language:
    from elman.tasks.lm import Language

    if not isinstance(task, Language):
        raise InputError(
            what=f"only a language model {does}", where=folder, got=f"a run of {task.name}", mend=mend
        )
    return task


def _note_strange(tokenizer: Tokenizer, text: str) -> None:
    if tokenizer.kind == "characters":
        from elman.data.strange import Strange

        known = {char for char in text if tokenizer.encode(char).tolist() != [tokenizer.unknown]}
        Strange(known, _note).look(text)


def _going_on(processes: int) -> str:
    """The command that goes on with the run that this one was about."""
    arguments = [word for word in sys.argv[1:] if word != "--overwrite"]
    ours = ["elman"] if processes == 1 else ["torchrun", "--nproc-per-node", str(processes), "-m", "elman"]
    return shlex.join([*ours, *arguments, *([] if "--resume" in arguments else ["--resume", "auto"])])


def _leave(number: int | None) -> None:
    """End with the status of the signal that stopped a command, if one did."""
    if number is not None:
        raise typer.Exit(128 + number)


def _console(*, plain: bool = False, silent: bool = False):
    """For a command that trains, which it goes on with where nobody reads any more."""
    from elman.app.screen import Lasting

    return Lasting(highlight=False, markup=False, force_terminal=False if plain else None, quiet=silent)


def _note(text: str) -> None:
    typer.secho(f"note: {plain(text)}", err=True, fg="yellow")


@ended
def main() -> None:
    """The entry point. What elman raises on purpose is told in red, without a traceback, with exit status 2."""
    settle(trains=sys.argv[1:2] in (["train"], ["demo"]))
    try:
        app()
    except (SystemExit, KeyboardInterrupt, Interrupted):
        raise
    except BaseException as error:  # a panic in Rust is no Exception
        first, *rest = plain(told(error)).splitlines()
        typer.secho(f"error: {first}", err=True, fg="red", bold=True)
        for line in rest:
            typer.secho(line, err=True, fg="red")
        sys.exit(2)


if __name__ == "__main__":
    main()
