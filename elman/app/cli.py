"""The `elman` command. Heavy imports stand inside the commands, so that --help answers at once."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from elman.errors import ElmanError

if TYPE_CHECKING:
    from elman.training import Evaluation

app = typer.Typer(
    help="Recurrent networks: write one step, train over whole sequences.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
train = typer.Typer(help="Train a model and write a run folder.", no_args_is_help=True)
app.add_typer(train, name="train")

_MINUTES = 3.0  # of training when nothing is said
RunFolder = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run folder, as --out wrote it.", show_default=False)
]


@train.command("lm")
def train_lm(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[FILE]...",
            help="UTF-8 texts of any size, one after another; 'patterns/*.txt'; - for standard input. "
            "None: the Python manual that ships with Python.",
        ),
    ] = None,
    valid: Annotated[
        Path | None,
        typer.Option(help="A text to measure on. Without it the last 10 % of the FILEs are held out."),
    ] = None,
    tokenizer: Annotated[
        str, typer.Option(help="What is predicted, one at a time: characters, bytes, words or bpe.")
    ] = "characters",
    vocabulary: Annotated[
        int | None,
        typer.Option(help="Symbols at most. (default: all characters; 10,000 words; 4,096 by bpe)"),
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Where the symbols of texts are kept. (default: ~/.cache/elman)")
    ] = None,
    out: Annotated[Path, typer.Option(help="The run folder to write.")] = Path("runs/lm"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run that is there.")] = False,
    cell: Annotated[
        str,
        typer.Option(
            help="elman, jordan, gru, lstm, leaky; or your own: path.py:Class, package.module:Class."
        ),
    ] = "gru",
    hidden: Annotated[int, typer.Option(help="H, units in each layer.")] = 256,
    layers: Annotated[int, typer.Option(help="Recurrences on top of one another.")] = 1,
    embedding: Annotated[
        int | None, typer.Option(help="Width of a symbol's vector. (default: 64; H if tied)")
    ] = None,
    dropout: Annotated[
        float, typer.Option(help="Share of what a layer sees that is left out in training.")
    ] = 0.0,
    tie: Annotated[
        bool, typer.Option("--tie", help="One matrix for symbols going in and coming out.")
    ] = False,
    steps: Annotated[int | None, typer.Option(help="Train for so many steps …")] = None,
    minutes: Annotated[
        float | None, typer.Option(help=f"… or so many minutes by the clock. (default: {_MINUTES:g})")
    ] = None,
    window: Annotated[int, typer.Option(help="T, steps through which gradients flow back.")] = 64,
    batch: Annotated[int, typer.Option(help="B, places of the text that are read side by side.")] = 32,
    lr: Annotated[float, typer.Option(help="Highest learning rate of AdamW.")] = 4e-3,
    clip: Annotated[float, typer.Option(help="Largest norm of the gradient.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the first weights and of the order of reading.")] = 0,
    resume: Annotated[
        str, typer.Option(help="auto: go on with the run in --out, begin if there is none; never.")
    ] = "never",
    checkpoint_every: Annotated[
        int | None, typer.Option(help="Steps between two checkpoints. (default: twice a minute)")
    ] = None,
    patience: Annotated[
        int | None, typer.Option(help="Stop after so many looks at held-out text without a better one.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Plain lines, nothing that is redrawn.")] = False,
) -> None:
    """A language model: predict the next symbol from all before it.

    Symbols are characters, bytes of UTF-8, words (the most frequent ones; the
    others are <unk>), or what byte-level BPE finds in the text. The text is
    turned into them once; the next time they are found in the cache.

    It is cut into BATCH contiguous lanes, read side by side WINDOW
    symbols at a time; the state is carried from window to window, gradients
    are not. The weights that did best on held-out text are kept.

    A run survives whatever ends its process: repeat the command with
    --resume auto and it goes on from its last checkpoint, by --steps to the
    same bits as if nothing had happened, by --minutes with what was left of
    them. Ctrl-C writes a checkpoint and says how to go on.
    """
    from rich.text import Text

    from elman.app import jobs
    from elman.app.screen import Watch
    from elman.training import evaluate

    if steps is None and minutes is None:
        minutes = _MINUTES
    width = embedding or (hidden if tie else 64)
    model = jobs.ModelSettings(_absolute(cell), hidden, layers, width, dropout, tie)
    training = jobs.TrainingSettings(steps, minutes, window, batch, lr, clip, seed)
    keeping = jobs.KeepingSettings(out, overwrite, resume, checkpoint_every, patience)
    symbols = jobs.TextSettings(tokenizer, vocabulary, cache)
    console = _console(plain=quiet)
    with console.status("reading the text …") as status:
        job = jobs.prepare(files or [], valid, model, training, keeping, symbols, tell=status.update)
    console.print(
        f"{job.corpus.train.characters:,} characters to learn from, {job.corpus.held_out.characters:,} held out, "
        f"{job.tokenizer.size:,} symbols; {job.model.parameter_count:,} parameters"
    )
    if tokenizer != "characters":
        console.print(
            f"{len(job.tokens):,} {tokenizer}, of {job.characters_per_symbol:.2f} characters in the mean"
        )
    with job.threads(), Watch(console, plot=False, characters=job.characters_per_symbol) as watch:
        interrupted = job.train(watch)
    console.print(
        Text.assemble("Interrupted. " if interrupted else "", "Saved in ", (str(out), "bold")), soft_wrap=True
    )
    if interrupted:
        console.print(Text(f"Go on with\n  {_going_on()}", "bold"), soft_wrap=True)
        return
    with console.status("measuring on the held-out text …"):
        figure = evaluate(job.model, job.held_out)
    _tell(figure)


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
    cache: Annotated[
        Path | None, typer.Option(help="Where the symbols of texts are kept. (default: ~/.cache/elman)")
    ] = None,
) -> None:
    """Measure a model on a whole text, read as one stream with the state carried: exact figures.

    Bits per character and per byte, and the perplexity per word of the raw
    text (a stretch without white space) compare models whatever their
    symbols; the perplexity per symbol only those with the same ones. All are
    of the whole text but its first symbol.
    """
    from elman.app.jobs import symbols_of
    from elman.data import cache_folder, open_text, reread_held_out
    from elman.models import LanguageModel
    from elman.training import Run, evaluate

    run = Run.open(folder)
    console = _console()
    with console.status("reading the text …") as status:
        text = (
            open_text(files, spool=cache or cache_folder()) if files else reread_held_out(run.config["data"])
        )
        tokens = symbols_of(text, run.tokenizer, cache, status.update)
        figure = evaluate(
            LanguageModel.load(run),
            tokens,
            progress=lambda done, total: status.update(f"{done:,} of {total:,} symbols"),
        )
    _tell(figure)
    if figure.counts is not None and figure.counts.unknown:
        _note(
            f"{run.tokenizer.kind} that were not in the training text: {figure.counts.unknown:,}; "
            "they count as one symbol, <unk>, so the figures are lower than those of a model that writes them"
        )


@app.command()
def generate(
    folder: RunFolder,
    prompt: Annotated[str, typer.Option(help="What the text begins with.")] = "\n",
    length: Annotated[
        int, typer.Option(help="Symbols to write: characters, or what it was trained on.")
    ] = 500,
    temperature: Annotated[
        float, typer.Option(help="0: always the likeliest; 1: as the model believes.")
    ] = 0.8,
    top_k: Annotated[int | None, typer.Option(help="Draw from the K likeliest symbols only.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Draw from the likeliest that together have this probability.")
    ] = None,
    stop: Annotated[str | None, typer.Option(help="Stop before this text, should it come.")] = None,
    samples: Annotated[int, typer.Option(help="So many texts, written side by side.")] = 1,
    seed: Annotated[int | None, typer.Option(help="Makes the text repeatable.")] = None,
) -> None:
    """Write text that goes on from a prompt, shown as it is written."""
    if samples < 1:
        raise typer.BadParameter("at least 1", param_hint="--samples")
    from elman.app import jobs
    from elman.models import LanguageModel
    from elman.training import Run

    run = Run.open(folder)
    model, tokenizer = LanguageModel.load(run), run.tokenizer
    if not prompt:
        prompt = "\n"
    if strange := tokenizer.strange(prompt):
        _note(f"the model never saw {' '.join(map(repr, strange))}: read as <unk>.")
    how = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    if samples > 1:
        texts = jobs.continuations(model, tokenizer, prompt, length, samples, stop, **how)
        for number, text in enumerate(texts, 1):
            typer.secho(f"--- {number}", fg="bright_black")
            typer.echo(prompt.lstrip("\n") + text)
        return
    sys.stdout.write(prompt.lstrip("\n"))
    for piece in jobs.continuation(model, tokenizer, prompt, length, stop, **how):
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")


@app.command()
def explain(
    cell: Annotated[
        str, typer.Argument(metavar="CELL", help="As --cell of `elman train lm`.", show_default=False)
    ],
    width: Annotated[int, typer.Option("--input", help="I, width of the input.")] = 64,
    hidden: Annotated[int, typer.Option(help="H, units.")] = 256,
) -> None:
    """What of a cell runs once, before, in and after the loop over time, and why."""
    import torch

    from elman.models import find_cell
    from elman.recurrent import Recurrent

    rnn = Recurrent(find_cell(cell)(width, hidden))
    rnn(torch.zeros(2, 1, width))  # a plan belongs to a call
    typer.echo(str(rnn.explain()))


@app.command()
def demo(
    minutes: Annotated[float, typer.Option(help="Of training.")] = 1.0,
    out: Annotated[Path, typer.Option(help="The run folder; a run in it is replaced.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Of everything.")] = 0,
) -> None:
    """Watch a recurrent network learn the Python manual and write some, in about a minute."""
    from elman.app.demo import demo as run_demo

    run_demo(_console(), minutes, out, seed)


def _absolute(cell: str) -> str:
    """A cell's file by its whole path, so that the run can be used from another folder."""
    path, colon, name = cell.rpartition(":")
    return f"{Path(path).resolve()}:{name}" if colon and path.endswith(".py") else cell


def _going_on() -> str:
    """The command that goes on with the run that this one was about."""
    said = [word for word in sys.argv[1:] if word != "--overwrite"]
    return shlex.join(["elman", *said, *([] if "--resume" in said else ["--resume", "auto"])])


def _console(*, plain: bool = False):
    from rich.console import Console

    return Console(highlight=False, force_terminal=False if plain else None)


def _tell(figure: Evaluation) -> None:
    counts = figure.counts
    assert counts is not None  # of a text that we read ourselves
    typer.echo(
        f"{figure.bits_per_character:.4f} bits per character, {figure.bits_per_byte:.4f} per byte, "
        f"over {counts.characters:,} characters, {counts.bytes:,} bytes"
    )
    typer.echo(
        f"{figure.nats_per_symbol:.4f} nats per symbol, over {figure.symbols:,} symbols; "
        f"perplexity {figure.perplexity:.4g} per symbol, {figure.word_perplexity:.5g} per word ({counts.words:,} words)"
    )


def _note(text: str) -> None:
    typer.secho(f"note: {text}", err=True, fg="yellow")


def main() -> None:
    """The entry point. What elman raises on purpose is told in red, without a traceback, with exit status 2."""
    try:
        app()
    except ElmanError as error:
        first, *rest = str(error).splitlines()
        typer.secho(f"error: {first}", err=True, fg="red", bold=True)
        for line in rest:
            typer.secho(line, err=True, fg="red")
        sys.exit(2)


if __name__ == "__main__":
    main()
