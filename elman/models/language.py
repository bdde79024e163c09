"""The recurrent language model: predict the next symbol from all before it, then write."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from elman.errors import DataError, InputError
from elman.models.find import find_cell
from elman.models.readout import cross_entropy
from elman.recurrent import Recurrent
from elman.training import Run


class LanguageModel(nn.Module):
    """p(x(t+1) | x(1), …, x(t)) by a stack of recurrences.

        e(t) = E[x(t)]
        h_1(t) = f(h_1(t-1), e(t)),  h_2(t) = f(h_2(t-1), h_1(t)),  …          # any cell f, `layers` of them
        o(t) = c + V h(t),  p = softmax(o(t)),  L = -Σ_t log p(y(t) | x(1), …, x(t)),  y(t) = x(t+1)

        model = LanguageModel(tokenizer.size, cell="gru", hidden=256)
        logits, state = model(x)                     # x int64 [T, B] -> logits [T, B, V]
        loss, state = model.loss(x, y, state)        # mean nats per symbol
        for token in model.generate(prompt, 200):    # prompt int64 [P]
            …

    Source: Goodfellow, Bengio and Courville, Deep Learning, 2016, section 10.2, equations 10.8 to 10.14.

    vocabulary: V. cell: a name as `elman.models.find_cell` reads it. hidden: H, units per layer. layers: how
    many. embedding: width of E. dropout: the share of what each layer and the readout get that is left out in
    training. tie: E is V's matrix too. The state is a tuple with one entry for each layer.
    """

    def __init__(
        self,
        vocabulary: int,
        cell: str = "gru",
        hidden: int = 256,
        layers: int = 1,
        embedding: int = 64,
        dropout: float = 0.0,
        tie: bool = False,
    ) -> None:
        super().__init__()
        sizes = {"vocabulary": vocabulary, "hidden": hidden, "layers": layers, "embedding": embedding}
        for name, value in sizes.items():
            if value < 1:
                raise InputError(
                    what=f"{name} must be at least 1", where=name, got=value, mend="give a positive number"
                )
        if not 0 <= dropout < 1:
            raise InputError(
                what="dropout is a probability below 1", where="dropout", got=dropout, mend="take 0 … 0.5"
            )
        if tie and embedding != hidden:
            raise InputError(
                what="a tied model has one matrix for symbols going in and coming out", where="tie, embedding",
                got=f"embedding {embedding}, hidden {hidden}", expected="the same width",
                mend=f"take embedding={hidden}",
            )  # fmt: skip
        make = find_cell(cell)
        self.settings = {"cell": cell, **sizes, "dropout": dropout, "tie": tie}
        self.dropout = nn.Dropout(dropout)
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.layers = nn.ModuleList(
            Recurrent(make(embedding if k == 0 else hidden, hidden)) for k in range(layers)
        )
        self.readout = nn.Linear(hidden, vocabulary)
        # Small weights, no bias: the untrained model holds every symbol equally likely, L = log V.
        nn.init.normal_(self.readout.weight, std=0.1 * hidden**-0.5)
        nn.init.zeros_(self.readout.bias)
        if tie:
            nn.init.normal_(self.embedding.weight, std=hidden**-0.5)
            self.readout.weight = self.embedding.weight

    @classmethod
    def load(cls, run: Run) -> LanguageModel:
        """The model of a run folder, ready for use. Raises DataError if its files do not fit together."""
        config = run.config
        try:
            names = ("vocabulary", "cell", "hidden", "layers", "embedding", "dropout", "tie")
            model = cls(**{name: config[name] for name in names})
            model.load_state_dict(run.weights)
        except (KeyError, RuntimeError) as error:
            raise DataError(
                what=f"the configuration and the weights do not fit together: {error}",
                where=Path(run.folder),
                mend="restore the files of one run, or train again; a cell of your own must not have changed",
            ) from error
        return model.eval()

    @property
    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def forward(self, x: Tensor, state: tuple | None = None) -> tuple[Tensor, tuple]:
        """x int64 [T, B] -> (logits [T, B, V], final state). Without `state`: the cells' initial one."""
        h, after = self._hidden(x, state)
        return self.readout(h), after

    def _hidden(self, x: Tensor, state: tuple | None) -> tuple[Tensor, tuple]:
        """What the readout sees, [T, B, H], and the final state."""
        h = self.dropout(self.embedding(x))
        after = []
        for layer, before in zip(self.layers, self._states(state), strict=True):
            h, final = layer(h, before)
            h = self.dropout(h)
            after.append(final)
        return self._checked(h), tuple(after)

    def step(self, x: Tensor, state: tuple | None = None) -> tuple[Tensor, tuple]:
        """One step of streaming: x int64 [B] -> (logits [B, V], state). The same numbers as `forward`'s."""
        h = self.dropout(self.embedding(x))
        after = []
        for layer, before in zip(self.layers, self._states(state), strict=True):
            h, final = cast(Recurrent, layer).step(h, before)
            h = self.dropout(h)
            after.append(final)
        return self.readout(self._checked(h)), tuple(after)

    def loss(self, x: Tensor, y: Tensor, state: tuple | None = None) -> tuple[Tensor, tuple]:
        """The mean of -log p(y(t) | x(1), …, x(t)) in nats, and the final state. x, y: int64 [T, B]."""
        h, after = self._hidden(x, state)
        return cross_entropy(h.flatten(0, 1), self.readout.weight, self.readout.bias, y.flatten()), after

    def generate(
        self,
        prompt: Tensor | Sequence[int],
        length: int,
        *,
        temperature: float = 1.0,
        seed: int | None = None,
        exclude: Sequence[int] = (),
    ) -> Iterator[int]:
        """Symbols that go on from a prompt, one at a time: x(t+1) ~ softmax(o(t) / temperature).

        The prompt is read in one call, then the model takes one step per symbol.

        prompt: int64 [P], P >= 1. length: how many symbols. temperature: 0 takes the likeliest symbol every
        time.
        seed: makes the draws repeatable; without it they come from torch's default generator.
        exclude: symbols that are never written (`<unk>`).
        """
        prompt = torch.as_tensor(prompt, dtype=torch.int64)
        if prompt.ndim != 1 or len(prompt) == 0:
            raise InputError(
                what="the prompt must be symbols in a row, at least one",
                where="prompt",
                got=f"shape {tuple(prompt.shape)}",
                expected="[P], P >= 1",
                mend="begin with a newline where there is nothing else to begin with",
            )
        if not temperature >= 0:
            raise InputError(
                what="the temperature must not be negative",
                where="temperature",
                got=temperature,
                mend="take 0 … 1.5",
            )
        if length < 0:
            raise InputError(
                what="the length must not be negative", where="length", got=length, mend="take 0 or more"
            )
        generator = None if seed is None else torch.Generator(prompt.device).manual_seed(seed)
        return self._generate(prompt, length, temperature, generator, list(exclude))

    @torch.no_grad()
    def _generate(
        self,
        prompt: Tensor,
        length: int,
        temperature: float,
        generator: torch.Generator | None,
        exclude: list[int],
    ) -> Iterator[int]:
        # torch.no_grad on a generator function is switched off again at every yield, so the caller's mode is
        # kept.
        training = self.training
        self.eval()
        try:
            device = self.readout.weight.device
            logits, state = self(prompt.to(device)[:, None])
            logits = logits[-1]
            for left in range(length, 0, -1):
                scores = logits[0].float().cpu()
                scores[exclude] = -torch.inf
                if temperature == 0:
                    token = scores.argmax()
                else:
                    token = torch.multinomial(torch.softmax(scores / temperature, 0), 1, generator=generator)[
                        0
                    ]
                yield int(token)
                if left > 1:
                    logits, state = self.step(token.view(1).to(device), state)
        finally:
            self.train(training)

    def _states(self, state: tuple | None) -> Sequence[Any]:
        return [None] * len(self.layers) if state is None else state

    def _checked(self, h: Tensor) -> Tensor:
        if h.shape[-1] != self.readout.in_features:
            raise InputError(
                what="the cell's output has another width than it was constructed with",
                where=self.settings["cell"],
                got=h.shape[-1],
                expected=f"hidden = {self.readout.in_features}",
                mend="let the step return an output as wide as its second constructor argument",
            )
        return h
