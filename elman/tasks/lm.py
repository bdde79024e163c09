"""The language model as a task: all that is text, its symbols, and what is said of both."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from elman.data import (
    Text,
    Tokenizer,
    Tokens,
    Windows,
    cache_folder,
    learn,
    open_text,
    read_corpus,
    reread_held_out,
    tokenise,
    windows,
)  # fmt: skip
from elman.data.schema import each, file_name, maybe, record, text, truth
from elman.data.tagged import numbered_lines
from elman.data.text import STDIN
from elman.errors import InputError
from elman.models import LanguageModel, NGram, estimate, evaluate, evaluate_cold, reach
from elman.models.readout import choose_cutoffs, expect_cutoffs
from elman.models.surprisal import Symbol, Word, each_line, surprisal
from elman.models.writing import continuation
from elman.tasks.lm_report import PART
from elman.tasks.settings import SIZE, StackSettings, TrainingSettings, argument, given, option
from elman.tasks.task import Notify, Opening, Prepared, Task, absolute, expect_memory, expect_one_reader
from elman.training import Measure, Processes, Run, Step, Validation
from elman.training.measure import percent

READOUTS = SOFTMAX, ADAPTIVE = "softmax", "adaptive"
WINDOW, BATCH = 64, 32  # where a text is not too short for them
MEASURED = 1_000_000  # characters at the end of a run: half a minute
SAMPLED = 200  # characters of the samples in a log
_SAMPLED_AT = 0.8  # their temperature
_UNITS = {"characters": "character", "bytes": "byte", "words": "word", "bpe": "token"}
_NAMES = 100_000  # of files in a configuration

_DATA = record(
    {
        "files": each(file_name, _NAMES),
        "valid": maybe(file_name),
        "digest": text(64),
        "valid_digest": maybe(text(64)),
    },
    {"unix_newlines": truth},
)


@dataclass(frozen=True)
class Settings:
    """A language model: predict the next symbol of a text from all before it.

    The text is cut into BATCH contiguous lanes, read side by side WINDOW symbols
    at a time. The state at the end of a window is carried into the next one, so
    the model remembers what came before it; gradients stop there, so it learns
    to use what lies up to WINDOW symbols back. A longer WINDOW costs memory, a
    larger BATCH makes fewer steps of the same text. The weights that did best
    on held-out text are kept.
    """

    files: list[Path] = argument(
        "UTF-8 texts of any size, one after another; 'patterns/*.txt', '**' for any folders; - for standard input. "
        "None: the Python manual that ships with Python."
    )
    valid: Path | None = option(
        None, "A text to choose the weights by and to measure on. Without it the last 10 % of the FILEs."
    )
    tokenizer: str = option(
        "characters", "What a symbol is: characters, bytes, words, or bpe (parts of words)."
    )
    vocabulary: int | None = option(None, "Symbols, of words and bpe. (default: 10000, 4096)", max=SIZE)
    unix_newlines: bool = option(False, "Read CR LF (Windows) and CR as LF, here and when it is evaluated.")
    cache: Path | None = option(
        None,
        "Where the symbols of files are kept for the next time, up to 10 GB, of which the oldest go first. "
        "(default: $XDG_CACHE_HOME/elman, ~/.cache/elman)",
    )
    init_from: Path | None = option(
        None,
        "Begin with the weights, model and symbols of another run instead of random weights.",
        metavar="RUN",
    )
    stack: StackSettings = StackSettings()
    embedding: int | None = option(None, "Width of a symbol's vector. (default: 64; H if tied)", max=SIZE)
    tie: bool = option(False, "One matrix for symbols going in and coming out.")
    readout: str = option(
        "softmax",
        "softmax; or adaptive: of two levels, the frequent symbols and groups of others, which is as exact, and "
        "several times as fast with 10,000 words.",
    )
    cutoffs: str | None = option(
        None, "Of adaptive: the symbols at which groups begin, 1000,4000. (default: by how often each comes)"
    )
    window: int | None = option(
        None, "T, steps through which gradients flow back. (default: 64, less for a short text)", max=SIZE
    )
    restart: float = option(
        0.25,
        "Share of windows that begin as if nothing came before, as generated text and every text that is measured "
        "begin. A model that never does may fall into a state then that it does not leave.",
    )
    given: frozenset[str] = given()

    @property
    def model(self) -> dict[str, Any]:
        """Arguments of LanguageModel."""
        width = self.embedding or (self.stack.hidden if self.tie else 64)
        stack = {**asdict(self.stack), "cell": absolute(self.stack.cell)}
        return {**stack, "embedding": width, "tie": self.tie}


@dataclass
class HeldOut:
    """A text to measure on. tokens: all of it, of which quick looks read parts. text: the same; of a long one only the
    beginning is measured at the end of a run, unless `whole`. progress: of measuring, (symbols done, in all). cold: the
    length of blocks that are measured from the initial state as well."""

    tokens: Tokens
    text: Text
    tokenizer: Tokenizer
    whole: bool = False
    progress: Callable[[int, int], None] | None = None
    cold: int | None = None

    @cached_property
    def measured(self) -> Tokens:
        if self.whole or self.text.characters <= MEASURED:
            return self.tokens
        return tokenise(self.text.cut(0, MEASURED), self.tokenizer, None)


class Language(Task):
    """See elman.models.LanguageModel. seed: of its samples."""

    name, Settings, files, part = "lm", Settings, ("tokenizer.json",), PART

    def __init__(self, tokenizer: Tokenizer, seed: int = 0) -> None:
        self.tokenizer, self.seed, self.unit = tokenizer, seed, _UNITS[tokenizer.kind]

    # --- how it comes about ------------------------------------------------------------------------------------------

    @classmethod
    def going_on(cls, settings: Settings, config: Mapping[str, Any]) -> Settings:
        if "restart" in settings.given:
            return settings
        training = config.get("training")
        # Runs of before windows began anew by default say nothing of it.
        before = training.get("restart") if isinstance(training, dict) else None
        return replace(settings, restart=float(before) if isinstance(before, int | float) else 0.0)

    @classmethod
    def prepare(
        cls, settings: Settings, training: TrainingSettings, processes: Processes, notify: Notify
    ) -> Prepared:
        files, valid, cutoffs = settings.files, settings.valid, _cutoffs(settings)
        expect_one_reader([*files, valid], processes)
        beginning = None if settings.init_from is None else _beginning(settings)

        def read() -> tuple[Any, Tokenizer, Tokens, Tokens]:
            # The text that comes with Python is in memory anyway, and small.
            cache = (settings.cache or cache_folder()) if files or valid else None
            notify("reading the text …")
            corpus = read_corpus(files, valid, spool=cache, unix_newlines=settings.unix_newlines)
            notify("choosing the symbols …")
            if beginning is not None:
                tokenizer = _tokenizer(beginning)
            else:
                tokenizer = learn(settings.tokenizer, corpus.train, settings.vocabulary, cache)
            tokens = tokenise(corpus.train, tokenizer, cache, _turning(notify))
            return corpus, tokenizer, tokens, tokenise(corpus.held_out, tokenizer, cache, _turning(notify))

        # The others find in the cache what the first one has worked out.
        corpus, tokenizer, tokens, held_out = processes.first_does(read) or read()
        how, options = settings.model, "--hidden, --layers, --embedding, --vocabulary"
        if settings.readout == ADAPTIVE and beginning is None:
            how["cutoffs"] = expect_cutoffs(cutoffs or _chosen(tokens), tokenizer.size)
        expect_memory(lambda: LanguageModel(tokenizer.size, **how), how["cell"], processes, options)
        torch.manual_seed(training.seed)
        if beginning is not None:
            trusted = how["cell"] == beginning.config.get("cell")  # it was named in this command, too
            model = LanguageModel.load(beginning, trust=trusted, notify=notify).to(processes.device)
        else:
            model = LanguageModel(tokenizer.size, **how).to(processes.device)
        if training.lr is None:
            training = replace(training, lr=model.learning_rate)
        window, batch = fitting(settings.window, training.batch, len(tokens) - 1, processes.count)
        notes = []
        if window < (settings.window or WINDOW) or batch < (training.batch or BATCH):
            notes.append(f"a short text: windows of {window} symbols, {batch} side by side")
        config = {
            **model.settings, "tokenizer": {"kind": tokenizer.kind, "digest": _digest(tokenizer)},
            "data": corpus.source, "training": {"window": window},
        }  # fmt: skip
        if settings.restart:
            config["training"]["restart"] = settings.restart
        if beginning is not None:
            config["training"]["init_from"] = str(beginning.folder.resolve())
        if crlf := corpus.train.crlf + (corpus.held_out.crlf if valid else 0):
            more = "two symbols each; --unix-newlines reads them as LF"
            more = "which was read as LF" if settings.unix_newlines else more
            notes.append(f"{crlf:,} lines end in CR LF, {more}")
        task = cls(tokenizer, training.seed)
        about = (
            f"{len(tokens):,} {task.unit}s to learn from, {len(held_out):,} held out{_share(held_out)} to choose "
            f"by and to measure on; {tokenizer.size} symbols"
        )
        return Prepared(
            task, model, windows(tokens, window, batch, training.seed, settings.restart),
            HeldOut(held_out, corpus.held_out, tokenizer), replace(training, batch=batch), config, about, notes,
        )  # fmt: skip

    @classmethod
    def opened(cls, run: Run, opening: Opening) -> tuple[Language, LanguageModel]:
        run = Run.open(run.folder, *cls.files)
        model = LanguageModel.load(run, **vars(opening))
        assert model.tokenizer is not None
        return cls(model.tokenizer), model

    def kept(self) -> dict[str, bytes]:
        return {"tokenizer.json": self.tokenizer.to_json().encode()}

    def called(self, model: Any) -> None:
        model(torch.zeros(2, 1, dtype=torch.long))

    # --- what is learnt ----------------------------------------------------------------------------------------------

    def measure(self, model: Any, data: HeldOut, quick: bool) -> Measure:
        """Nats per symbol. quick: of pieces from all over the text."""
        name, unit = "cross entropy", "nats per symbol"
        if quick:
            return Measure(estimate(model, data.tokens), name, unit)
        figure = evaluate(model, data.measured, progress=data.progress)
        counts = data.measured.counts
        assert counts is not None
        details = {
            "nats_per_symbol": figure.nats_per_symbol, "symbols": figure.symbols, "unknown": counts.unknown,
            "bits_per_character": figure.nats / math.log(2) / max(counts.characters, 1),
            "whole": len(data.measured) == len(data.tokens),
        }  # fmt: skip
        if data.cold is not None:
            cold = evaluate_cold(model, data.measured, data.cold, progress=data.progress)
            details["cold"] = cold.nats_per_symbol
        return Measure(figure.nats_per_symbol, name, unit, details=details)

    def sample(self, model: Any) -> str:
        pieces = continuation(model, self.tokenizer, "\n", SAMPLED, temperature=_SAMPLED_AT, seed=self.seed)
        return "".join(pieces)[:SAMPLED]

    def closing(self, model: Any, data: HeldOut) -> Mapping[str, Callable[[], Any]]:
        return {"plan": lambda: str(model.explain()), "reach": lambda: reach(model, data.tokens)}

    # --- what is said ------------------------------------------------------------------------------------------------

    def line(self, step: Step, validation: Validation | None) -> Iterable[tuple[str, str]]:
        yield f"loss {step.loss:.3f} nats", ""
        yield f"{step.loss / math.log(2):.2f} bits per {self.unit}", "new"
        if validation is not None:
            yield f"held out {validation.measure.value / math.log(2):.2f}", "old"

    def said(self, measure: Measure, data: HeldOut) -> Sequence[str]:
        """Per symbol, and per character, byte and word of the text itself."""
        symbols, counts = measure.details["symbols"], data.measured.counts
        assert counts is not None  # without the first symbol, which is given, not predicted
        nats, unit = measure.value * symbols, self.unit
        # Symbols that are words are newlines and punctuation, too: not the words that other models are compared by.
        each, word = (
            (unit, "word") if unit != "word" else ("symbol (a word or a mark)", "word between spaces")
        )
        bits = nats / math.log(2)
        figures = [
            f"{bits / max(counts.characters, 1):.4f} per character",
            f"{bits / max(counts.bytes, 1):.4f} per byte",
            f"perplexity {_perplexity(measure.value)} per {each}",
            f"{_perplexity(nats / max(counts.words, 1))} per {word}",
        ]
        lines = [
            f"{measure.value / math.log(2):.4f} bits per {unit} ({measure.value:.4f} nats), over {symbols:,} {unit}s",
            f"  bits: {', '.join(figures)}, {nats:,.0f} nats in all",
        ]
        if measure.value > math.log(size := self.tokenizer.size):
            lines.append(
                f"  worse than a model that knows nothing, for which each of {size:,} {unit}s is as likely: "
                f"{math.log2(size):.4f} bits"
            )
        if (cold := measure.details.get("cold")) is not None:
            lines.append(
                f"  {cold / math.log(2):.4f} bits per {unit} ({cold:.4f} nats) in blocks of {data.cold}, each from the "
                "initial state"
            )
        if counts.unknown:
            share = percent(counts.unknown / symbols, 2)
            lines.append(
                f"  {unit}s that the model does not know: {counts.unknown:,}, {share}; they count as one symbol, <unk>"
            )
        return lines

    # --- what is done with a run -------------------------------------------------------------------------------------

    def data(self, run: Run, files: Sequence[Path], cache: Path | None, notify: Notify) -> HeldOut:
        cache, mend = cache or cache_folder(), "name a text"
        if files:
            held_out = open_text(files, spool=cache, unix_newlines=_unix(run))
        else:
            held_out = reread_held_out(
                run.section("data", _DATA, "the run does not say what text was held out", mend)
            )
        tokens = tokenise(held_out, self.tokenizer, cache, _turning(notify))
        return HeldOut(
            tokens, held_out, self.tokenizer, whole=True,
            progress=lambda done, total: notify(f"{done:,} of {total:,} {self.unit}s"),
        )  # fmt: skip

    def cold(self, data: HeldOut, length: int) -> HeldOut:
        return replace(data, cold=length)

    def predict(self, model: Any, files: Sequence[Path], run: Run) -> Iterator[str]:
        raise InputError(
            what="a language model does not predict a file; it writes, and it measures", where=run.folder,
            mend="elman generate RUN writes, elman score RUN FILE says how well it predicts each word",
        )  # fmt: skip

    def score(self, model: Any, files: Sequence[Path], run: Run, **how: Any) -> Iterator[Symbol | Word]:
        """How surprising the text of files is, one after another; that of "-" alone line by line, as it comes.

        how: `begin` and `anew` of `elman.models.surprisal`.
        """
        unix = _unix(run)
        if [str(file) for file in files] == [STDIN]:
            lines = (line for _, line in numbered_lines(files[0], ends=True))
            read = (line.replace("\r\n", "\n").replace("\r", "\n") for line in lines)
            parts = each_line(read) if unix else lines
        else:
            pieces = open_text(files, spool=cache_folder(), unix_newlines=unix).pieces()
            parts = each_line(pieces) if how.get("anew") else self.tokenizer.parts(pieces)
        return surprisal(model, self.tokenizer, parts, **how)


def _unix(run: Run) -> bool:
    """Whether the text that a run learnt from had its newlines read as LF."""
    how = run.section(
        "data", record({}, {"unix_newlines": truth}), "the run does not say how its text was read"
    )
    return how.get("unix_newlines", False)


def fitting(window: int | None, batch: int | None, symbols: int, processes: int) -> tuple[int, int]:
    """Window and batch where they were not given: as ever, or less where a text of so many symbols has no room."""
    fitted = batch or min(BATCH, max(symbols // (window or WINDOW), 1))
    if batch is None and processes > 1:
        fitted = max(fitted - fitted % processes, processes)
    # A batch that was asked for is not bought with windows of a few symbols.
    return window or min(WINDOW, max(symbols // fitted, 1 if batch is None else 16)), fitted


def baselines(prepared: Prepared) -> dict[str, float]:
    """Bits per symbol of a unigram and of a 5-gram model on the held-out text."""
    assert isinstance(prepared.batches, Windows)
    assert isinstance(prepared.task, Language)
    tokens, held_out, size = prepared.batches.tokens, prepared.held_out.tokens, prepared.task.tokenizer.size
    orders = {"unigram": 1, "5-gram": 5}
    return {
        name: NGram(tokens[:], size, order).bits_per_symbol(held_out[:]) for name, order in orders.items()
    }


def _cutoffs(settings: Settings) -> list[int]:
    """Those that were asked for. Raises InputError."""
    if settings.readout not in READOUTS:
        raise InputError(
            what="there is no such readout", where="--readout", got=settings.readout[:50],
            expected=" or ".join(READOUTS), mend="take one of them",
        )  # fmt: skip
    if settings.cutoffs is None:
        return []
    cutoffs = settings.cutoffs.split(",")
    if settings.readout != ADAPTIVE or not all(one.strip().isdecimal() for one in cutoffs):
        raise InputError(
            what="cutoffs are numbers of symbols, of an adaptive readout", where="--cutoffs", got=settings.cutoffs[:50],
            expected="such as 1000,4000", mend="take --readout adaptive, or leave --cutoffs out",
        )  # fmt: skip
    return [int(one) for one in cutoffs]


def _chosen(tokens: Tokens) -> tuple[int, ...]:
    if not (cutoffs := choose_cutoffs(tokens.frequencies())):
        raise InputError(
            what="groups would not make this vocabulary faster", where="--readout", got=f"{tokens.vocabulary} symbols",
            expected="some thousands, the frequent ones first", mend="leave --readout out, or choose --cutoffs",
        )  # fmt: skip
    return cutoffs


def _beginning(settings: Settings) -> Run:
    """The run to begin from. Raises InputError where what was given on the command line is not as it is there."""
    assert settings.init_from is not None
    run = Run.open(settings.init_from, *Language.files)
    kind = ADAPTIVE if run.config.get("cutoffs") else SOFTMAX
    there = {"readout": kind, **run.config, "tokenizer": _tokenizer(run).kind}
    asked = {
        **settings.model, "tokenizer": settings.tokenizer, "readout": settings.readout,
        "cutoffs": _cutoffs(settings),
    }  # fmt: skip
    for name in [name for name in asked if name in settings.given]:
        if there.get(name, asked[name] and None) != asked[name]:
            raise InputError(
                what=f"the weights to begin with are of a model with another {name}", where=f"--{name}",
                got=asked[name], expected=there.get(name), mend=f"leave --{name} out",
            )  # fmt: skip
    return run


def _tokenizer(run: Run) -> Tokenizer:
    return Tokenizer.load(run.folder / "tokenizer.json")


def _digest(tokenizer: Tokenizer) -> str:
    """A run that is gone on with has to have the symbols that it began with."""
    return hashlib.sha256(tokenizer.to_json().encode()).hexdigest()


def _turning(notify: Notify) -> Callable[[int, int], None]:
    """Progress in words."""
    return lambda done, total: notify(f"turning the text into symbols: {percent(done / total, 0)}")


def _share(tokens: Tokens) -> str:
    """What of a text the model does not know, in brackets, if there is any."""
    counts = tokens.counts
    if counts is None or not counts.unknown:
        return ""
    return f" ({percent(counts.unknown / max(len(tokens) - 1, 1), 2)} of it unknown)"


def _perplexity(nats: float) -> str:
    return f"{math.exp(nats):.4g}" if nats < 700 else f"10^{nats / math.log(10):.0f}"
