"""One label for a sequence: a stack of recurrences, pooled over the steps that happened, and read out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from elman.data.schema import Check, number, text, truth, whole
from elman.errors import InputError, NotSupported
from elman.models import pretrained
from elman.models.coding import UNKNOWN, Coding
from elman.models.evaluating import evaluating
from elman.models.stack import Cells, stack_of
from elman.plan import Explanation
from elman.recurrent import Flow, LockedDropout, Piece, last, pool

POOLS = ("last", "mean", "max", "attention")
_STEPS = 2**15  # of a batch, padding included, that is classified at once


class SequenceClassifier(Flow, nn.Module):
    """Logits of K labels for sequences of symbols or of numbers.

        x(t) = E[symbol(t)]  or  (x(t) - mean) / deviation
        y = stack(x)                                             # H wide, 2 H in both directions
        logits = W [pooled over t of y] + b

    inputs: of symbols how many there are, of numbers I. labels: K. symbols: which of both it is. pooling: last, mean,
    max, attention (a(t) = softmax over t of v·y(t)), or several as "max+mean", side by side. both: in both directions;
    in one, `step` follows a live stream. dropout: of layers and of what is pooled; input_dropout: of what the lowest
    layer reads, the same units for a whole sequence; symbol_dropout: the share of symbols that are read as unknown.
    Others as of `stack_of`.

    mean, deviation: `[I]`, float64, of the numbers learnt from. temperature: logits are divided by it for
    probabilities. weight: `[K]`, of each label in the loss; it is not saved. coding: what its labels and symbols are
    called.
    """

    mean: Tensor
    deviation: Tensor
    temperature: Tensor
    weight: Tensor
    coding: Coding | None = None  # of its labels and characters, where they are known

    def __init__(
        self, inputs: int, labels: int, symbols: bool = True, cell: Cells = "lstm", hidden: int = 128,
        layers: int | None = None, embedding: int = 64, pooling: str = "max+mean", both: bool = True,
        dropout: float = 0.4, input_dropout: float = 0.2, symbol_dropout: float = 0.05, residual: bool = False,
        norm: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.pools = pooling.split("+")
        if not set(self.pools) <= set(POOLS):
            raise InputError(
                what="there is no such pooling", where="pooling", got=pooling, expected=", ".join(POOLS),
                mend="take one, or several joined by +",
            )  # fmt: skip
        for name, value in {"input_dropout": input_dropout, "symbol_dropout": symbol_dropout}.items():
            if not 0 <= value < 1:
                raise InputError(
                    what=f"{name} is a share", where=name, got=value, expected="0 … 1, without 1"
                )
        self.symbols, self.both, self.symbol_dropout = symbols, both, symbol_dropout
        if symbols:
            self.embedding = nn.Embedding(inputs, embedding)
        else:
            # In float64: far from zero, float32 does not tell apart what differs by a deviation.
            self.register_buffer("mean", torch.zeros(inputs, dtype=torch.float64))
            self.register_buffer("deviation", torch.ones(inputs, dtype=torch.float64))
        self.input_dropout = LockedDropout(input_dropout)
        self.stack, settings = stack_of(
            cell, embedding if symbols else inputs, hidden, layers, dropout=dropout, residual=residual, norm=norm,
            both=both,
        )  # fmt: skip
        width = 2 * hidden if both else hidden
        if "attention" in self.pools:
            self.attention = nn.Linear(width, 1)
        self.dropout = nn.Dropout(dropout)
        self.readout = nn.Linear(len(self.pools) * width, labels)
        self.register_buffer("temperature", torch.ones(()))
        self.register_buffer("weight", torch.ones(labels), persistent=False)
        self.settings: dict[str, Any] = {
            "inputs": inputs, "labels": labels, "symbols": symbols, "hidden": hidden, "layers": len(self.stack),
            "embedding": embedding, "pooling": pooling, "both": both, "dropout": dropout,
            "input_dropout": input_dropout, "symbol_dropout": symbol_dropout, **settings,
        }  # fmt: skip

    @property
    def learning_rate(self) -> float:
        """For AdamW."""
        return 3e-3 * min(1.0, 128 / self.settings["hidden"])

    def standardise(self, x: Sequence[Tensor]) -> None:
        """Take mean and deviation of numbers `[T, I]` from these."""
        values = torch.cat(list(x)).double()
        deviation = values.std(0, correction=0)
        self.mean.copy_(values.mean(0))
        self.deviation.copy_(torch.where(deviation > 1e-12 * values.abs().amax(0), deviation, 1.0))

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Logits `[B, K]`. x: symbols `[T, B]`, or numbers `[T, B, I]`. lengths: `[B]`."""
        outputs, state = self.stack(self._read(x), lengths=lengths)
        parts = [
            last(state, self.stack) if how == "last" else self._pooled(how, outputs, lengths)
            for how in self.pools
        ]
        return self.readout(self.dropout(torch.cat(parts, -1)))

    def loss(self, x: Tensor, y: Tensor, lengths: Tensor, state: None = None) -> tuple[Tensor, None]:
        """Nats per sequence, weighted by label."""
        nats = cross_entropy(self(x, lengths).float(), y, reduction="none")
        return (nats * self.weight[y]).mean(), None

    def step(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """One element of a live stream: (logits `[B, K]` of what was read so far, the state to go on from).

        x: `[B]` or `[B, I]`. The logits are those that `forward` has for the stream so far, of numbers and of symbols
        without an end. Raises NotSupported in both directions.
        """
        if self.both:
            raise NotSupported(
                what="a model that reads in both directions cannot follow a stream: it begins at the end",
                where="step()", mend="train one with --one-direction (Python: both=False)",
            )  # fmt: skip
        states, kept = state or ((None,) * len(self.stack), {})
        y, after = self._read(x[None])[0], []
        for k, (layer, before) in enumerate(zip(self.stack, states, strict=True)):
            read = self.stack.norms[k - 1](y) if k and self.settings.get("norm") else y
            out, new = layer.step(read, before)
            y = y + out if k and self.settings.get("residual") else out
            after.append(new)
        kept = {how: self._running(how, y, kept.get(how)) for how in self.pools}
        parts = [top / total if total is not None else top for top, total, _ in kept.values()]
        if "last" in self.pools:
            parts[self.pools.index("last")] = last(tuple(after), self.stack)
        return self.readout(self.dropout(torch.cat(parts, -1))), (tuple(after), kept)

    def flow(self) -> list[Piece]:
        """For its picture."""
        read = self.embedding if self.symbols else "standardised"
        pieces = [Piece("x", "x(t)"), Piece("e", read, ("x",)), Piece("y", self.stack, ("e",))]
        words = {
            "last": "last state",
            "mean": "mean over t",
            "max": "largest over t",
            "attention": "weighted over t",
        }
        if "attention" in self.pools:
            pieces += [Piece("v", self.attention, ("y",)), Piece("a", "softmax over t", ("v",))]
        pieces += [
            Piece(how, words[how], ("y", "a") if how == "attention" else ("y",))
            for how in dict.fromkeys(self.pools)
        ]
        if len(self.pools) > 1:
            pieces.append(Piece("pooled", "side by side", tuple(dict.fromkeys(self.pools))))
        pieces.append(Piece("readout", self.readout, (pieces[-1].name,)))
        return [*pieces, Piece("o", "o", ("readout",))]

    def explain(self) -> Explanation:
        """The plan of the latest call."""
        return self.stack.explain()

    def _read(self, x: Tensor) -> Tensor:
        if not self.symbols:
            standard = (x.double() - self.mean) / self.deviation
            return self.input_dropout(standard.to(self.readout.weight.dtype))
        if self.training and self.symbol_dropout:
            x = torch.where(torch.rand(x.shape, device=x.device) < self.symbol_dropout, UNKNOWN, x)
        return self.input_dropout(self.embedding(x))

    def _pooled(self, how: str, outputs: Tensor, lengths: Tensor | None) -> Tensor:
        if how != "attention":
            return pool(outputs, lengths, how)
        scores = self.attention(outputs)
        if lengths is not None:
            steps = torch.arange(outputs.shape[0], device=outputs.device)[:, None] < lengths.to(
                outputs.device
            )
            scores = scores.masked_fill(~steps[:, :, None], -torch.inf)
        return (scores.softmax(0) * outputs).sum(0)

    def _running(self, how: str, y: Tensor, before: Any) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """(pooled so far, what it is divided by, the largest score so far)."""
        if how == "last":
            return y, None, None
        if how == "max":
            return y if before is None else torch.maximum(before[0], y), None, None
        score = self.attention(y) if how == "attention" else torch.zeros_like(y[..., :1])
        if before is None:
            return y, torch.ones_like(score), score
        top, total, most = before
        new = torch.maximum(most, score)
        old, now = (most - new).exp(), (score - new).exp()
        return top * old + y * now, total * old + now, new


def batched(x: Sequence[Tensor]) -> Iterable[tuple[list[int], Tensor, Tensor]]:
    """(rows, padded `[T, B, …]`, lengths `[B]`) of sequences, those of like length together."""
    order = sorted(range(len(x)), key=lambda i: len(x[i]))
    while order:
        count = 1
        while count < min(len(order), 512) and len(x[order[count]]) * (count + 1) <= _STEPS:
            count += 1
        rows, order = order[:count], order[count:]
        yield rows, nn.utils.rnn.pad_sequence([x[i] for i in rows]), torch.tensor([len(x[i]) for i in rows])


@torch.no_grad()
def logits_of(model: SequenceClassifier, x: Sequence[Tensor]) -> Tensor:
    """[N, K] float32, on the CPU, of the model in evaluation; its mode is left as it was."""
    device = model.readout.weight.device
    logits = torch.empty(len(x), model.settings["labels"])
    with evaluating(model):
        for rows, padded, lengths in batched(x):
            logits[rows] = model(padded.to(device), lengths.to(device)).float().cpu()
    return logits


SETTINGS: Mapping[str, Check] = {
    "inputs": whole(1, pretrained.SIZE),
    "labels": whole(1, pretrained.SIZE),
    "symbols": truth,
}
KNOWN: Mapping[str, Check] = {
    "embedding": whole(1, pretrained.SIZE),
    "pooling": text(100),
    "both": truth,
    "input_dropout": number(0, 1),
    "symbol_dropout": number(0, 1),
}


def shapes(settings: dict[str, Any], there: dict[str, list[int]]) -> dict[str, list[int] | None]:
    """Of the weights, by name, as the settings say: see `elman.models.pretrained`."""
    width = settings["hidden"] * (2 if settings["both"] else 1) * len(settings["pooling"].split("+"))
    reads = (
        {"embedding.weight": [settings["inputs"], settings["embedding"]]}
        if settings["symbols"]
        else {"mean": [settings["inputs"]], "deviation": [settings["inputs"]]}
    )
    return {"readout.weight": [settings["labels"], width], "temperature": [], **reads}
