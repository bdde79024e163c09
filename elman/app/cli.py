"""The `elman` command. Heavy imports stand inside the commands, so that --help answers at once."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from elman.app.ending import Interrupted, ended
from elman.app.last import plain, told
from elman.app.seeing import Cell, Trust, draw, explain
from elman.errors import DataError

if TYPE_CHECKING:
    from elman.data import Tokenizer, Tokens
    from elman.training import Evaluation

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
RunFolder = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run folder, as --out wrote it.", show_default=False)
]
Cache = Annotated[
    Path | None,
    typer.Option(
        help="Where the symbols of files are kept for the next time, up to 10 GB, of which the oldest go first. "
        "(default: $XDG_CACHE_HOME/elman, ~/.cache/elman)"
    ),
]
_SIZE, _COUNT = 2**24, 10**12  # the largest of what is made, and of what is counted


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


@train.command("lm")
def train_lm(
    context: typer.Context,
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[FILE]...",
            help="UTF-8 texts of any size, one after another; 'patterns/*.txt', '**' for any folders; - for standard "
            "input. None: the Python manual that ships with Python.",
        ),
    ] = None,
    valid: Annotated[
        Path | None,
        typer.Option(help="A text to measure on. Without it the last 10 % of the FILEs are held out."),
    ] = None,
    out: Annotated[Path, typer.Option(help="The run folder to write.")] = Path("runs/lm"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run that is there.")] = False,
    tokenizer: Annotated[
        str, typer.Option(help="What a symbol is: characters, bytes, words, or bpe (parts of words).")
    ] = "characters",
    vocabulary: Annotated[
        int | None, typer.Option(help="Symbols, of words and bpe. (default: 10000, 4096)", max=_SIZE)
    ] = None,
    unix_newlines: Annotated[
        bool,
        typer.Option(
            "--unix-newlines", help="Read CR LF (Windows) and CR as LF, here and when it is evaluated."
        ),
    ] = False,
    cache: Cache = None,
    init_from: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Begin with the weights, model and symbols of another run instead of random weights.",
        ),
    ] = None,
    cell: Annotated[
        str,
        typer.Option(
            help="elman, jordan, gru, lstm, leaky; or your own: path.py:Class, package.module:Class."
        ),
    ] = "gru",
    hidden: Annotated[int, typer.Option(help="H, units in each layer.", max=_SIZE)] = 256,
    layers: Annotated[int, typer.Option(help="Recurrences on top of one another.", max=1000)] = 1,
    embedding: Annotated[
        int | None, typer.Option(help="Width of a symbol's vector. (default: 64; H if tied)", max=_SIZE)
    ] = None,
    dropout: Annotated[
        float, typer.Option(help="Share of a layer's output that is left out in training.")
    ] = 0.0,
    tie: Annotated[
        bool, typer.Option("--tie", help="One matrix for symbols going in and coming out.")
    ] = False,
    steps: Annotated[
        int | None,
        typer.Option(help="Train for so many steps, those before --resume auto included …", max=_COUNT),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help=f"… or so many minutes by the clock. (default: {_MINUTES:g})")
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(
            help="T, steps through which gradients flow back. (default: 64, less for a short text)", max=_SIZE
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            help="B, places of the text read side by side. (default: 32, less for a short text)", max=_SIZE
        ),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(help="Highest learning rate of AdamW. (default: by cell and width, at most 0.004)"),
    ] = None,
    clip: Annotated[float, typer.Option(help="Largest norm of the gradient.")] = 1.0,
    weight_decay: Annotated[
        float | None, typer.Option(help="Of AdamW. (default: by the length of the text)")
    ] = None,
    seed: Annotated[
        int,
        typer.Option(help="Of the first weights and of the order of reading.", min=-(2**63), max=2**63 - 1),
    ] = 0,
    resume: Annotated[
        str,
        typer.Option(
            help="auto: go on with the run in --out, also a finished one to more --steps or --minutes; begin if there "
            "is none. never."
        ),
    ] = "never",
    checkpoint_every: Annotated[
        int | None, typer.Option(help="Steps between two checkpoints. (default: twice a minute)", max=_COUNT)
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(help="Stop after so many looks at held-out text without a better one.", max=_COUNT),
    ] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write the figures for TensorBoard too, to OUT/tensorboard.")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, or cuda: a GPU for each process.")] = "cpu",
    precision: Annotated[
        str, typer.Option(help="float32; or bfloat16 for the products outside the recurrences.")
    ] = "float32",
    quiet: Annotated[bool, typer.Option("--quiet", help="Plain lines, nothing that is redrawn.")] = False,
) -> None:
    """A language model: predict the next symbol of a text from all before it.

    The text is cut into BATCH contiguous lanes, read side by side WINDOW symbols
    at a time. The state at the end of a window is carried into the next one, so
    the model remembers what came before it; gradients stop there, so it learns
    to use what lies up to WINDOW symbols back. A longer WINDOW costs memory, a
    larger BATCH makes fewer steps of the same text. The weights that did best
    on held-out text are kept.

    A run survives whatever ends its process: repeat the command with
    --resume auto and it goes on from its last checkpoint, by --steps to the
    same bits as if nothing had happened, by --minutes with what was left of
    them. Ctrl-C writes a checkpoint and says how to go on; the exit status is
    130 then, 143 after SIGTERM.

    Several processes, on one machine or more, share the lanes of a batch:
    torchrun --nproc-per-node 2 -m elman train lm FILE …
    """
    from rich.text import Text

    from elman.app import jobs
    from elman.app.screen import Watch
    from elman.training import Processes

    if steps is None and minutes is None:
        minutes = _MINUTES
    width = embedding or (hidden if tie else 64)
    model = jobs.ModelSettings(jobs.absolute(cell), hidden, layers, width, dropout, tie)
    training = jobs.TrainingSettings(steps, minutes, window, batch, lr, clip, weight_decay, seed)
    keeping = jobs.KeepingSettings(out, overwrite, resume, checkpoint_every, patience, tensorboard)
    text = jobs.TextSettings(tokenizer, vocabulary, cache, unix_newlines)
    beginning = None
    if init_from is not None:
        given = {name for name in context.params if _given(context, name)}
        beginning = jobs.beginning(init_from, out, {**vars(model), "tokenizer": tokenizer}, given)
    with Processes(precision, device) as processes:
        console = _console(plain=quiet, silent=not processes.first)
        with console.status("reading the text …") as status:
            job = jobs.prepare(
                files or [], valid, model, training, keeping, text, processes, status.update, beginning
            )
        unit = _unit(job.tokenizer)
        for note in job.notes if processes.first else ():
            _note(note)
        console.print(
            f"{len(job.tokens):,} {unit}s to learn from, {len(job.held_out):,} held out{_share(job.held_out)}, "
            f"{job.tokenizer.size} symbols; {job.model.parameter_count:,} parameters"
            + (f"; {processes.count} processes" if processes.count > 1 else ""),
            soft_wrap=True,
        )
        with job.threads(), Watch(console, plot=False, unit=unit) as watch:
            interrupted = job.train(watch)
        console.print(
            Text.assemble("" if interrupted is None else "Interrupted. ", "Saved in ", (str(out), "bold")),
            soft_wrap=True,
        )
        console.print(Text(f"The report is {out / 'report.html'}"), soft_wrap=True)
        if interrupted is not None:
            console.print(Text(f"Go on with\n  {_going_on(processes.count)}", "bold"), soft_wrap=True)
        elif job.figure is not None:
            _tell(
                job.figure,
                job.measured,
                job.tokenizer,
                lambda words: console.print(Text(words), soft_wrap=True),
            )
            if len(job.measured) < len(job.held_out):
                more = "" if ":" not in model.cell else " --trust"
                console.print(
                    f"That is the beginning of the held-out text; of all of it: elman evaluate {out}{more}",
                    soft_wrap=True,
                )
    _leave(interrupted)


@app.command("evaluate")
def evaluate_run(
    folder: RunFolder,
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[FILE]...",
            help="UTF-8 texts, one after another; 'patterns/*.txt'; - for standard input. "
            "None: the one held out in training.",
        ),
    ] = None,
    cache: Cache = None,
    trust: Trust = False,
    cell: Cell = None,
) -> None:
    """Bits per character of a whole text, read as one stream with the state carried: an exact figure."""
    from rich.console import Console

    from elman.app.jobs import opened, symbols_of
    from elman.data import cache_folder, open_text, reread_held_out
    from elman.training import evaluate

    run, model, tokenizer = opened(folder, trust, cell, _note)
    with Console(highlight=False, markup=False).status("reading …") as status:
        if files:
            unix = run.config["data"].get("unix_newlines", False)
            text = open_text(files, spool=cache or cache_folder(), unix_newlines=unix)
        else:
            text = reread_held_out(run.data)
        tokens = symbols_of(text, tokenizer, cache, status.update)
        figure = evaluate(
            model,
            tokens,
            progress=lambda done, total: status.update(f"{done:,} of {total:,} {_unit(tokenizer)}s"),
        )
    if not math.isfinite(figure.nats):
        raise DataError(
            what="the model's figure is no number",
            where=folder,
            got=figure.nats,
            mend="train again, at a lower --lr",
        )
    _tell(figure, tokens, tokenizer)


@app.command()
def generate(
    folder: RunFolder,
    prompt: Annotated[str, typer.Option(help="What the text begins with.")] = "\n",
    length: Annotated[int, typer.Option(help="Characters to write.", max=_COUNT)] = 500,
    temperature: Annotated[
        float, typer.Option(help="0: always the likeliest; 1: as the model believes.")
    ] = 0.8,
    top_k: Annotated[
        int | None, typer.Option(help="Draw from the K likeliest symbols only.", max=_COUNT)
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Draw from the likeliest that together have this probability.")
    ] = None,
    stop: Annotated[str | None, typer.Option(help="Stop before this text, should it come.")] = None,
    samples: Annotated[int, typer.Option(help="So many texts, written side by side.", max=10_000)] = 1,
    seed: Annotated[
        int | None, typer.Option(help="Makes the text repeatable.", min=-(2**63), max=2**63 - 1)
    ] = None,
    trust: Trust = False,
    cell: Cell = None,
) -> None:
    """Write text that goes on from a prompt, shown as it is written."""
    if samples < 1:
        raise typer.BadParameter("at least 1", param_hint="--samples")
    from elman.app.jobs import opened
    from elman.app.writing import continuation, continuations, shown

    _, model, tokenizer = opened(folder, trust, cell, _note)
    if not prompt:
        prompt = "\n"
    if tokenizer.kind == "characters":
        strange = sorted({char for char in prompt if tokenizer.encode(char).tolist() == [tokenizer.unknown]})
        if strange:
            # By their numbers too: letters that run from right to left would turn the line round.
            said = [f"{char!r} (U+{ord(char):04X})" for char in strange[:8]] + ["…"] * (len(strange) > 8)
            _note(f"the model never saw {', '.join(said)}: read as <unk>.")
    how = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    if samples > 1:
        texts = continuations(model, tokenizer, prompt, length, samples, stop, **how)
        for number, text in enumerate(texts, 1):
            typer.secho(f"--- {number}", fg="bright_black")
            typer.echo(shown(prompt.lstrip("\n") + text))
        return
    sys.stdout.write(shown(prompt.lstrip("\n")))
    for piece in continuation(model, tokenizer, prompt, length, stop, **how):
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

    typer.echo(write_report(folder, out))


app.command()(explain)
app.command()(draw)


@app.command()
def demo(
    minutes: Annotated[float, typer.Option(help="Of training.")] = 1.0,
    out: Annotated[Path, typer.Option(help="The run folder; a run in it is replaced.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Of everything.", min=-(2**63), max=2**63 - 1)] = 0,
) -> None:
    """Watch a recurrent network learn the Python manual and write some, in about a minute."""
    from elman.app.demo import demo as run_demo

    _leave(run_demo(_console(), minutes, out, seed))


def _going_on(processes: int) -> str:
    """The command that goes on with the run that this one was about."""
    said = [word for word in sys.argv[1:] if word != "--overwrite"]
    ours = ["elman"] if processes == 1 else ["torchrun", "--nproc-per-node", str(processes), "-m", "elman"]
    return shlex.join([*ours, *said, *([] if "--resume" in said else ["--resume", "auto"])])


def _given(context: typer.Context, name: str) -> bool:
    """Whether an option was given, rather than left to its default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _leave(number: int | None) -> None:
    """End with the status of the signal that stopped a command, if one did."""
    if number is not None:
        raise typer.Exit(128 + number)


def _console(*, plain: bool = False, silent: bool = False):
    """For a command that trains, which it goes on with where nobody reads any more."""
    from elman.app.screen import Lasting

    return Lasting(highlight=False, markup=False, force_terminal=False if plain else None, quiet=silent)


def _unit(tokenizer: Tokenizer) -> str:
    """What a symbol is called."""
    return {"characters": "character", "bytes": "byte", "words": "word", "bpe": "token"}[tokenizer.kind]


def _share(tokens: Tokens) -> str:
    """What of a text the model does not know, in brackets, if there is any."""
    counts = tokens.counts
    if counts is None or not counts.unknown:
        return ""
    return f" ({counts.unknown / max(len(tokens) - 1, 1):.2%} of it unknown)"


def _tell(
    figure: Evaluation, tokens: Tokens, tokenizer: Tokenizer, say: Callable[[str], None] = typer.echo
) -> None:
    """The figures of a text: per symbol, and per character, byte and word of the text itself."""
    unit, bits = _unit(tokenizer), figure.nats / math.log(2)
    say(
        f"{figure.bits_per_symbol:.4f} bits per {unit} ({figure.nats_per_symbol:.4f} nats), "
        f"over {figure.symbols:,} {unit}s"
    )
    counts = tokens.counts  # without the first symbol, which is given, not predicted
    assert counts is not None
    per_word = figure.nats / max(counts.words, 1)
    said = [
        f"{bits / max(counts.characters, 1):.4f} per character",
        f"{bits / max(counts.bytes, 1):.4f} per byte",
        f"perplexity {_perplexity(figure.nats_per_symbol)} per {unit}",
        f"{_perplexity(per_word)} per word",
    ]
    say(f"  bits: {', '.join(said)}, {figure.nats:,.0f} nats in all")
    if counts.unknown:
        share = f"{counts.unknown / figure.symbols:.2%}"
        say(
            f"  {unit}s that the model does not know: {counts.unknown:,}, {share}; they count as one symbol, <unk>"
        )


def _perplexity(nats: float) -> str:
    return f"{math.exp(nats):.4g}" if nats < 700 else f"10^{nats / math.log(10):.0f}"


def _note(text: str) -> None:
    typer.secho(f"note: {plain(text)}", err=True, fg="yellow")


@ended
def main() -> None:
    """The entry point. What elman raises on purpose is told in red, without a traceback, with exit status 2."""
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
