"""What the commands have in common: a text becomes a trained model in a run folder, and is measured."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor

from elman.app.screen import Level, Watch
from elman.data import Corpus, Tokenizer, read_corpus
from elman.models import LanguageModel, NGram
from elman.training import Run, fit, means, pick_threads


@dataclass(frozen=True)
class ModelSettings:
    """See elman.models.LanguageModel."""

    cell: str = "gru"
    hidden: int = 256
    layers: int = 1
    embedding: int = 64


@dataclass(frozen=True)
class TrainingSettings:
    """See elman.training.fit."""

    steps: int | None = None
    minutes: float | None = None
    window: int = 64
    batch: int = 32
    lr: float = 4e-3
    clip: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Job:
    """A language model about to be trained. tokens, held_out: int64 [N], the two parts of the corpus."""

    corpus: Corpus
    tokenizer: Tokenizer
    tokens: Tensor
    held_out: Tensor
    model: LanguageModel
    training: TrainingSettings
    run: Run

    def baselines(self) -> list[Level]:
        """Bits per character of a unigram and of a 5-gram model on the held-out text."""
        orders = {"unigram": 1, "5-gram": 5}
        return [
            Level(name, NGram(self.tokens, self.tokenizer.size, order).bits_per_symbol(self.held_out))
            for name, order in orders.items()
        ]

    @contextmanager
    def threads(self) -> Iterator[None]:
        """Inside, PyTorch has as many threads as train fastest on this machine now, if training goes by the clock."""
        before = torch.get_num_threads()
        try:
            if self.training.minutes is not None:
                window, batch = self.training.window, self.training.batch
                torch.set_num_threads(pick_threads(self.model, self.tokens, window, batch))
            yield
        finally:
            torch.set_num_threads(before)

    def train(self, watch: Watch) -> bool:
        """Train to the end, or until Ctrl-C; save the model either way. Returns whether it was stopped."""
        settings = asdict(self.training)
        with interruption() as interrupted:
            for step in means(until(interrupted, fit(self.model, self.tokens, **settings))):
                self.run.log(step)
                watch.show(step)
        self.run.save(self.model)
        return interrupted.is_set()


def prepare(
    files: list[Path],
    valid: Path | None,
    model: ModelSettings,
    training: TrainingSettings,
    out: Path,
    *,
    overwrite: bool = False,
) -> Job:
    """Read the text, make the tokenizer and the untrained model, and begin the run folder."""
    corpus = read_corpus(files, valid)
    tokenizer = Tokenizer.characters(corpus.train)
    torch.manual_seed(training.seed)
    network = LanguageModel(tokenizer.size, **asdict(model))
    tokens, held_out = tokenizer.encode(corpus.train), tokenizer.encode(corpus.held_out)
    fit(
        network, tokens, **asdict(training)
    )  # checks the settings, before a folder is made; nothing is trained yet
    config = {"task": "lm", **network.settings, "training": asdict(training), "data": corpus.source}
    run = Run.create(out, config, tokenizer, overwrite=overwrite)
    return Job(corpus, tokenizer, tokens, held_out, network, training, run)


def continuation(
    model: LanguageModel, tokenizer: Tokenizer, prompt: str, length: int, temperature: float, seed: int | None
) -> Iterator[str]:
    """The text that a model writes after a prompt, in pieces as they come."""
    tokens = model.generate(
        tokenizer.encode(prompt), length, temperature=temperature, seed=seed, exclude=[tokenizer.unknown]
    )
    return (tokenizer.decode([token]) for token in tokens)


def until(stop: threading.Event, steps: Iterator) -> Iterator:
    """`steps` until `stop` is set; a step that has begun is finished, so weights are never half updated."""
    for step in steps:
        yield step
        if stop.is_set():
            return


@contextmanager
def interruption() -> Iterator[threading.Event]:
    """The first Ctrl-C inside sets the event instead of raising; a second one raises as ever."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only there can signals be handled
        yield event
        return

    def handle(number: int, frame: FrameType | None) -> None:
        event.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)
