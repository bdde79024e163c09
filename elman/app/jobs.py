"""What the commands have in common: a text becomes a trained model in a run folder, and is measured."""

from __future__ import annotations

import hashlib
import math
import shlex
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import Any, cast

import torch

from elman.app.screen import Level, Watch
from elman.app.writing import continuation
from elman.data import Corpus, Text, Tokenizer, Tokens, cache_folder, learn, read_corpus, tokenise
from elman.errors import DataError, InputError
from elman.models import SHIPPED, LanguageModel, NGram
from elman.recurrent import Recurrent
from elman.report import write_report
from elman.training import (
    Diverged,
    Evaluation,
    FolderGone,
    Keeper,
    Processes,
    Run,
    TensorBoard,
    Training,
    evaluate,
    expect_room,
    locked,
    pick_threads,
    reach,
)

WINDOW, BATCH = 64, 32  # where a text is not too short for them
MEASURED = 1_000_000  # characters: half a minute
SAMPLED = 200  # characters of the samples in a log
_SAMPLED_AT = 0.8  # their temperature


@dataclass(frozen=True)
class ModelSettings:
    """See elman.models.LanguageModel."""

    cell: str = "gru"
    hidden: int = 256
    layers: int = 1
    embedding: int = 64
    dropout: float = 0.0
    tie: bool = False


@dataclass(frozen=True)
class TextSettings:
    """What a text is made of: see elman.data.Tokenizer. vocabulary: None for the kind's own size.

    cache: the folder for the symbols of files; None: elman.data.cache_folder(). unix_newlines: see
    elman.data.open_text.
    """

    tokenizer: str = "characters"
    vocabulary: int | None = None
    cache: Path | None = None
    unix_newlines: bool = False


@dataclass(frozen=True)
class TrainingSettings:
    """See elman.training.Training. lr: None for what the model says. window, batch: None for 64 and 32, or what a short
    text has room for."""

    steps: int | None = None
    minutes: float | None = None
    window: int | None = None
    batch: int | None = None
    lr: float | None = None
    clip: float = 1.0
    weight_decay: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class KeepingSettings:
    """What is kept of a run, and where: see elman.training.Keeper. resume: "auto" or "never".

    tensorboard: whether the figures are also written for it.
    """

    out: Path
    overwrite: bool = False
    resume: str = "never"
    checkpoint_every: int | None = None
    patience: int | None = None
    tensorboard: bool = False


@dataclass
class Job:
    """A language model about to be trained. tokens, held_out: the two parts of the corpus as symbols.

    config: of the run folder. processes: those that train it. notes: what the user is to be told of before. figure:
    what the trained model reaches on `measured`, once the run is over.
    """

    corpus: Corpus
    tokenizer: Tokenizer
    tokens: Tokens
    held_out: Tokens
    model: LanguageModel
    training: TrainingSettings
    keeping: KeepingSettings
    config: dict[str, Any]
    processes: Processes
    notes: list[str] = field(default_factory=list)
    figure: Evaluation | None = None

    def baselines(self) -> list[Level]:
        """Bits per character of a unigram and of a 5-gram model on the held-out text."""
        orders = {"unigram": 1, "5-gram": 5}
        return [
            Level(name, NGram(self.tokens[:], self.tokenizer.size, order).bits_per_symbol(self.held_out[:]))
            for name, order in orders.items()
        ]

    @contextmanager
    def threads(self) -> Iterator[None]:
        """Inside, PyTorch has as many threads as train fastest on this machine now, if training goes by the clock."""
        before = torch.get_num_threads()
        try:
            if self.training.minutes is not None and self.processes.count == 1:
                window, batch = self.training.window or WINDOW, self.training.batch or BATCH
                torch.set_num_threads(pick_threads(self.model, self.tokens, window, batch))
            yield
        finally:
            torch.set_num_threads(before)

    def train(self, watch: Watch) -> int | None:
        """Train to the end, or until Ctrl-C or SIGTERM. Returns the number of the signal that stopped it.

        The run folder then holds the best weights, a checkpoint to go on from, and a report.
        """
        keeping = self.keeping
        loggers = [TensorBoard(keeping.out / "tensorboard")] if keeping.tensorboard else []
        with ExitStack() as stack:
            stop = stack.enter_context(interruption())
            training = Training(
                self.model, self.tokens, **asdict(self.training), stop=stop, processes=self.processes
            )
            self.processes.first_does(lambda: self._opened(stack))
            run = Run(keeping.out)
            mine = self.config.get("cell_digest")
            if self.processes.first and run.config.get("cell_digest", mine) != mine:
                watch.note(f"the file of the cell {self.config['cell']} was edited since the run began")
            keeper = Keeper(
                training, run, self.held_out, checkpoint_every=keeping.checkpoint_every, patience=keeping.patience,
                resume=keeping.resume == "auto" and not keeping.overwrite, tell=watch.note, loggers=loggers,
                sample=self.sample, closing={"plan": self.plan, "reach": lambda: reach(self.model, self.held_out),
                "measured": lambda: self.measure(watch)},
            )  # fmt: skip
            if keeper.resumed:
                more = "; more --steps or --minutes go on with it" if keeper.finished else ""
                watch.note(f"going on from step {training.step:,}, {training.done:.0%} of the run{more}")
            try:
                for event in keeper:
                    watch.show(event)
            except Diverged as error:
                kept = run.checkpoints.paths()
                error.mend = f"{error.mend}; kept are " + (
                    f"the checkpoint {kept[0]} and the best weights" if kept else "the best weights"
                )
                raise
            except FolderGone as error:
                error.mend = self._moved(keeper) or error.mend
                raise
            if self.processes.first:
                if keeper.finished and self.figure is None:
                    self.measure(watch)
                try:
                    write_report(run.folder)
                except DataError as error:  # the model is more than its report
                    watch.note(str(error))
            return None if keeper.finished else stop.number

    def _moved(self, keeper: Keeper) -> str | None:
        """Write a run whose folder has gone to one beside it; what the user can do then, None if that fails too."""
        if self.processes.count > 1:  # a checkpoint is made by all of them
            return None
        out = self.keeping.out.absolute()
        names = (out.with_name(f"{out.name}.rescued{number}") for number in ("", *range(2, 100)))
        place = next((name for name in names if not name.exists()), out)
        with suppress(DataError, InputError):
            keeper.move(Run.create(place, self.config, self.tokenizer))
            there = shlex.quote(str(place))
            return f"put the folder back, or go on with what was saved now: --out {there} --resume auto"
        return None

    def measure(self, watch: Watch) -> dict[str, Any]:
        """The exact figure of the model as it is, as the log keeps it; `figure` is set."""
        tokens = self.measured
        if len(tokens) > MEASURED // 20:
            watch.note("measuring on the held-out text …")
        self.figure = evaluate(self.model, tokens)
        counts = tokens.counts
        assert counts is not None
        return {
            "nats_per_symbol": self.figure.nats_per_symbol, "symbols": self.figure.symbols, "unknown": counts.unknown,
            "bits_per_character": self.figure.nats / math.log(2) / max(counts.characters, 1),
            "whole": len(tokens) == len(self.held_out),
        }  # fmt: skip

    def _opened(self, stack: ExitStack) -> None:
        """Lock the run folder for as long as the stack stands; begin a run in it, or find the one to go on with."""
        keeping = self.keeping
        with suppress(OSError):  # `Run.create` says it better
            keeping.out.mkdir(parents=True, exist_ok=True)
        if keeping.out.is_dir():
            stack.enter_context(locked(keeping.out))
        resume = keeping.resume == "auto" and not keeping.overwrite
        if not (resume and Run.unfinished(keeping.out, self.config)):
            Run.create(keeping.out, self.config, self.tokenizer, overwrite=keeping.overwrite)

    @cached_property
    def measured(self) -> Tokens:
        """What the trained model is measured on at once: the held-out text, of a long one the first million characters.

        `elman evaluate` reads all of it.
        """
        if self.corpus.held_out.characters <= MEASURED:
            return self.held_out
        return tokenise(self.corpus.held_out.cut(0, MEASURED), self.tokenizer, None)

    def sample(self) -> str:
        """What the model writes as it is: the same draws every time."""
        pieces = continuation(
            self.model, self.tokenizer, "\n", SAMPLED, temperature=_SAMPLED_AT, seed=self.training.seed
        )
        return "".join(pieces)[:SAMPLED]

    def plan(self) -> str:
        """What of each layer is sequential, and why."""
        return "\n\n".join(
            f"layer {k}\n\n{cast(Recurrent, layer).explain()}" for k, layer in enumerate(self.model.layers, 1)
        )


def prepare(
    files: list[Path],
    valid: Path | None,
    model: ModelSettings,
    training: TrainingSettings,
    keeping: KeepingSettings,
    text: TextSettings = TextSettings(),
    processes: Processes | None = None,
    tell: Callable[[str], None] = lambda words: None,
    beginning: Run | None = None,
) -> Job:
    """Read the text, make the tokenizer and the untrained model, and check the settings; no run folder is made yet.

    tell: is given words on what takes its time. beginning: a run whose tokenizer and weights are taken, in place of
    `model` and the kind of tokenizer.
    """
    processes = processes or Processes()
    processes.first_does(lambda: _check(keeping))
    if processes.count > 1 and "-" in map(str, [*files, valid]):
        raise InputError(
            what="standard input can be read by one process only", where="-", got=f"{processes.count} processes",
            mend="write it to a file first",
        )  # fmt: skip

    def read() -> tuple[Corpus, Tokenizer, Tokens, Tokens]:
        # The text that comes with Python is in memory anyway, and small.
        cache = (text.cache or cache_folder()) if files or valid else None
        tell("reading the text …")
        corpus = read_corpus(files, valid, spool=cache, unix_newlines=text.unix_newlines)
        tell("choosing the symbols …")
        if beginning is not None:
            tokenizer = beginning.tokenizer
        else:
            tokenizer = learn(text.tokenizer, corpus.train, text.vocabulary, cache)
        tokens = tokenise(corpus.train, tokenizer, cache, _said(tell))
        return corpus, tokenizer, tokens, tokenise(corpus.held_out, tokenizer, cache, _said(tell))

    # The others find in the cache what the first one has worked out.
    corpus, tokenizer, tokens, held_out = processes.first_does(read) or read()
    copies = 4 if processes.device.type == "cpu" else 1  # weights, gradients, and two that AdamW keeps
    _expect_memory(lambda: LanguageModel(tokenizer.size, **asdict(model)), model.cell, copies)
    torch.manual_seed(training.seed)
    if beginning is not None:
        trusted = model.cell == beginning.config.get("cell")  # it was named in this command, too
        network = LanguageModel.load(beginning, trust=trusted, tell=tell).to(processes.device)
    else:
        network = LanguageModel(tokenizer.size, **asdict(model)).to(processes.device)
    if training.lr is None:
        training = replace(training, lr=network.learning_rate)
    training, notes = _fitting(training, len(tokens) - 1, processes.count)
    checked = Training(network, tokens, **asdict(training), processes=processes)
    # A run that is gone on with has to have the symbols that it began with.
    symbols = {"kind": tokenizer.kind, "digest": hashlib.sha256(tokenizer.to_json().encode()).hexdigest()}
    config = {
        "task": "lm", **network.settings, "tokenizer": symbols, "data": corpus.source,
        "training": asdict(training) | {"weight_decay": checked.weight_decay, "precision": processes.precision},
    }  # fmt: skip
    if beginning is not None:
        config["training"]["init_from"] = str(beginning.folder.resolve())
    if crlf := corpus.train.crlf + (corpus.held_out.crlf if valid else 0):
        notes.append(
            f"{crlf:,} lines end in CR LF, "
            + (
                "which was read as LF"
                if text.unix_newlines
                else "two symbols each; --unix-newlines reads them as LF"
            )
        )
    return Job(corpus, tokenizer, tokens, held_out, network, training, keeping, config, processes, notes)


def beginning(folder: Path, out: Path, settings: dict[str, Any], given: set[str]) -> Run:
    """The run to begin from. Raises InputError where what was given on the command line is not as it is there.

    settings: of the model, by name, and "tokenizer", its kind.
    """
    run = Run.open(folder)
    if out.exists() and out.samefile(folder):
        raise InputError(
            what="a run cannot begin with its own weights", where="--init-from", got=folder,
            mend="choose another --out, or go on with it by --resume auto",
        )  # fmt: skip
    there = {**run.config, "tokenizer": run.tokenizer.kind}
    for name in [name for name in settings if name in given]:
        if there.get(name) != settings[name]:
            raise InputError(
                what=f"the weights to begin with are of a model with another {name}", where=f"--{name}",
                got=settings[name], expected=there.get(name), mend=f"leave --{name} out",
            )  # fmt: skip
    return run


def _check(keeping: KeepingSettings) -> None:
    """What can be said of the settings before anything is read."""
    for name, value in (("--checkpoint-every", keeping.checkpoint_every), ("--patience", keeping.patience)):
        if value is not None and value < 1:
            raise InputError(what=f"{name} must be at least 1", where=name, got=value, mend="leave it out")
    if keeping.resume not in ("auto", "never"):
        raise InputError(
            what="--resume is auto or never", where="--resume", got=keeping.resume, mend="take one of them"
        )
    there = keeping.resume == "auto" and (keeping.out / "config.json").is_file()
    Run.refuse_taken(keeping.out, overwrite=keeping.overwrite or there)


def _fitting(training: TrainingSettings, symbols: int, processes: int) -> tuple[TrainingSettings, list[str]]:
    """Window and batch where they were not given: as ever, or less where a text of so many symbols has no room."""
    batch = training.batch or min(BATCH, max(symbols // (training.window or WINDOW), 1))
    if training.batch is None and processes > 1:
        batch = max(batch - batch % processes, processes)
    # A batch that was asked for is not bought with windows of a few symbols.
    window = training.window or min(WINDOW, max(symbols // batch, 1 if training.batch is None else 16))
    small = window < (training.window or WINDOW) or batch < (training.batch or BATCH)
    notes = [f"a short text: windows of {window} symbols, {batch} side by side"] if small else []
    return replace(training, window=window, batch=batch), notes


def opened(
    folder: Path, trust: bool, cell: str | None, tell: Callable[[str], None]
) -> tuple[Run, LanguageModel, Tokenizer]:
    """A run that was saved, by whomever: the one way in which commands open one. Raises DataError and InputError.

    trust, cell, tell: see `LanguageModel.from_pretrained`.
    """
    run = Run.open(folder)
    tokenizer = run.tokenizer
    model = LanguageModel.load(run, trust=trust, cell=None if cell is None else absolute(cell), tell=tell)
    if tokenizer.size != model.settings["vocabulary"]:
        raise DataError(
            what="the tokenizer and the model are not of one run", where=folder / "tokenizer.json",
            got=f"{tokenizer.size} symbols", expected=f"{model.settings['vocabulary']}",
            mend="restore the files of one run",
        )  # fmt: skip
    return run, model, tokenizer


def absolute(cell: str) -> str:
    """A cell's file by its whole path, so that the run can be used from another folder."""
    path, colon, name = cell.rpartition(":")
    return f"{Path(path).resolve()}:{name}" if colon and path.endswith(".py") else cell


def _expect_memory(make: Callable[[], LanguageModel], cell: str, copies: int) -> None:
    """Raise InputError where so many copies of a model would need more memory than there is."""
    if cell in SHIPPED:  # what others construct may be more than its weights
        with torch.device("meta"):
            size = sum(value.nbytes for value in make().parameters())
        expect_room(copies * size, "--hidden, --layers, --embedding, --vocabulary")


def symbols_of(
    text: Text, tokenizer: Tokenizer, cache: Path | None, tell: Callable[[str], None] = lambda words: None
) -> Tokens:
    """The symbols of a text, from the cache if they are there."""
    return tokenise(text, tokenizer, cache or cache_folder(), _said(tell))


def _said(tell: Callable[[str], None]) -> Callable[[int, int], None]:
    """Progress in words."""
    return lambda done, total: tell(f"turning the text into symbols: {done / total:.0%}")


class Stop(threading.Event):
    """Set by a signal. number: of the signal; where another process was stopped, that of Ctrl-C."""

    number: int = signal.SIGINT


@contextmanager
def interruption() -> Iterator[Stop]:
    """The first Ctrl-C or SIGTERM inside sets the event instead of raising; a second one acts as ever."""
    event = Stop()
    if threading.current_thread() is not threading.main_thread():  # only there can signals be handled
        yield event
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, frame: FrameType | None) -> None:
        event.number = number
        event.set()
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, handle)
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
