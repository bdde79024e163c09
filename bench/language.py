"""A language model, everything included: training and writing beside the same model made of torch.nn."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bench.form import OURS, TORCH
from bench.ragged import Line
from elman.data import windows
from elman.models import LanguageModel
from elman.training import Training

V, H, E, T, B = 65, 256, 64, 64, 32


class Torchs(nn.Module):
    """What one writes with torch.nn: the same sizes, and the same call."""

    def __init__(
        self, vocabulary: int = V, embedding: int = E, hidden: int = H, layers: int = 1, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.embedding, self.readout = nn.Embedding(vocabulary, embedding), nn.Linear(hidden, vocabulary)
        self.rnn = nn.GRU(embedding, hidden, layers, dropout=dropout if layers > 1 else 0.0)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        h, state = self.rnn(self.embedding(x), state)
        return self.readout(self.dropout(h)), state

    def loss(self, x: Tensor, y: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        logits, state = self(x, state)
        return nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten()), state

    @torch.no_grad()
    def generate(self, symbol: int, length: int, temperature: float) -> Iterator[int]:
        x, state = torch.tensor([[symbol]]), None
        for _ in range(length):
            logits, state = self(x, state)
            x = torch.multinomial(torch.softmax(logits[0] / temperature, 1), 1)
            yield int(x)


def training(rounds: int = 9, steps: int = 8) -> tuple[Line, dict[str, float]]:
    """(seconds of a training step, in turns; symbols per second), with AdamW, clipping and reading the text."""
    tokens = torch.randint(V, (1_000_000,), generator=torch.Generator().manual_seed(0))
    models: dict[str, Any] = {OURS: LanguageModel(V, "gru", H, 1, E), TORCH: Torchs()}
    runs = {name: iter(Training(model, windows(tokens, T, B), steps=10**6)) for name, model in models.items()}
    return _in_turns(
        "a training step, ms", {n: lambda run=run: next(run) for n, run in runs.items()}, rounds, steps, T * B
    )


def writing(rounds: int = 9, length: int = 640) -> tuple[Line, dict[str, float]]:
    """(seconds of a symbol, in turns; symbols per second) of one stream."""
    ours, theirs = LanguageModel(V, "gru", H, 1, E).eval(), Torchs().eval()
    streams = {
        OURS: ours.generate_iter([1], 10**9, temperature=0.8),
        TORCH: theirs.generate(1, 10**9, temperature=0.8),
    }
    ways = {name: lambda stream=stream: next(stream) for name, stream in streams.items()}
    return _in_turns("a symbol written, ms", ways, rounds, length, 1)


def _in_turns(
    words: str, ways: dict[str, Any], rounds: int, count: int, symbols: int
) -> tuple[Line, dict[str, float]]:
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number, (name, way) in itertools.product(range(rounds + 1), ways.items()):
        start = time.perf_counter()
        for _ in range(count):
            way()
        if number:  # the first round is for caches and traces
            found[name].append((time.perf_counter() - start) / count)
    return Line(words, found), {name: symbols / statistics.median(times) for name, times in found.items()}
