"""Vectors of 0 and 1 that follow one another, such as the keys of a piano that sound: which are 1 next."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils import _pytree as pytree

from elman.data.files import read_file
from elman.data.schema import Odd, each, from_json, number, record, whole
from elman.models import pretrained
from elman.models.distributions import FRAMES
from elman.models.evaluating import evaluating
from elman.models.sequence_classifier import batched
from elman.models.stack import Cells, learning_rate, stack_of
from elman.plan import Explanation
from elman.recurrent import Flow, LockedDropout, Piece, Recurrent
from elman.recurrent.stacked import StackCell

FILE = "series.json"  # beside the weights
BATCH, CHUNK, DECAY, AVERAGE = 16, 100, 0.01, 0.998
_FEW = 50_000  # frames
_DRAWN = 2**22  # numbers of all paths of a mean that are drawn at once
_TAIL = 500  # frames that are kept to go on from
_MEND = "restore the files of one model"


class FrameNetwork(Flow, nn.Module):
    """Which of I channels are 1 in the next frame, each by itself, given all frames so far.

        h(t) = f(h(t-1), x(t))
        p(x_i(t+1) = 1 | x(1), …, x(t)) = sigmoid(V h(t) + b + A x(t))_i

    channels: I. length: frames of a sequence in training, the mean, by which the loss is said of a frame.
    input_dropout: share of the channels that are read as 0 in training, the same ones for a whole sequence; None: a
    fifth of dropout. Others as of `stack_of`.
    """

    def __init__(
        self, channels: int, length: float = 1.0, cell: Cells = "lstm", hidden: int = 128, layers: int | None = None,
        dropout: float = 0.5, input_dropout: float | None = None, residual: bool = False, norm: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.stack, settings = stack_of(
            cell, channels, hidden, layers, dropout=dropout, residual=residual, norm=norm
        )
        input_dropout = dropout / 5 if input_dropout is None else input_dropout
        self.input_dropout, self.dropout = LockedDropout(input_dropout), LockedDropout(dropout)
        self.linear = nn.Linear(channels, channels, bias=False)
        self.readout = nn.Linear(hidden, channels)
        nn.init.zeros_(self.linear.weight)
        self.length = length
        self.settings: dict[str, Any] = {
            "channels": channels, "length": length, "distribution": FRAMES, "hidden": hidden,
            "layers": len(self.stack), "dropout": dropout, "input_dropout": input_dropout, **settings,
        }  # fmt: skip

    @property
    def learning_rate(self) -> float:
        """For AdamW."""
        return learning_rate(self.stack, self.settings["hidden"])

    @torch.no_grad()
    def begin(self, x: Sequence[Tensor]) -> None:
        """Start from how often each channel is 1."""
        share = torch.cat(list(x)).double().mean(0).clamp(1e-4, 1 - 1e-4)
        self.readout.bias.copy_(torch.log(share / (1 - share)))

    def forward(self, x: Tensor, lengths: Tensor | None = None, state: Any = None) -> tuple[Tensor, Any]:
        """x [T, B, I] -> (logits [T, B, I] of the frame that follows each, the state)."""
        x = self.input_dropout(x)
        h, after = self.stack(x, state, lengths=lengths)
        return self.readout(self.dropout(h)) + self.linear(x), after

    def nats(self, x: Tensor, lengths: Tensor) -> Tensor:
        """-log p of the frames after the first one, [T - 1, B], 0 beyond the lengths."""
        o, _ = self(x[:-1], (lengths - 1).clamp(min=0))
        nats = binary_cross_entropy_with_logits(o.float(), x[1:], reduction="none").sum(-1)
        return nats * (torch.arange(1, len(x), device=x.device)[:, None] < lengths)

    def loss(self, x: Tensor, y: None, lengths: Tensor, state: None = None) -> tuple[Tensor, None]:
        """Nats per frame, of sequences of the mean length."""
        return self.nats(x, lengths).sum(0).mean() / self.length, None

    def step(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """One frame of a stream: x [B, I] -> (logits [B, I] of the next one, the state to go on from)."""
        with evaluating(self), torch.no_grad():
            h, after = self.stack.step(x, state)
            return self.readout(h) + self.linear(x), after

    @torch.no_grad()
    def probabilities(self, x: Tensor) -> Tensor:
        """[T, I] of the frame that follows each of x [T, I]."""
        with evaluating(self):
            return torch.sigmoid(self(x[:, None].to(self.linear.weight.device))[0][:, 0]).cpu()

    @torch.no_grad()
    def paths(self, x: Tensor, count: int, steps: int, seed: int) -> Tensor:
        """[count, steps, I], frames that may follow x [T, I], drawn by a recurrence of its own."""
        with evaluating(self):
            sampler, state = self._sampler(x, count, seed)
            frames, _ = sampler(None, state, steps=steps)
        return frames.transpose(0, 1)

    @torch.no_grad()
    def mean_path(self, x: Tensor, count: int, steps: int, seed: int) -> Tensor:
        """[steps, I], the mean of so many paths, which are drawn a stretch of time after another: memory does not grow
        with `steps`."""
        most, means = max(1, _DRAWN // (count * x.shape[1])), []
        with evaluating(self):
            sampler, state = self._sampler(x, count, seed)
            for begin in range(0, steps, most):
                frames, state = sampler(None, state, steps=min(most, steps - begin))
                means.append(frames.mean(1))
        return torch.cat(means)

    def _sampler(self, x: Tensor, count: int, seed: int) -> tuple[Recurrent, Any]:
        """(a recurrence that draws frames [T, count, I] from nothing, the state after x [T, I] in which it begins)."""
        logits, states = self(x[:, None])
        held = pytree.tree_map(lambda v: v.expand(count, *v.shape[1:]).contiguous(), tuple(states))
        sampler = Recurrent(
            FrameSampler(self.stack.as_cell(), self.linear, self.readout).eval(), batch_first=False
        )
        sampler.generator = torch.Generator().manual_seed(seed % 2**63)
        return sampler, (logits[-1].expand(count, -1).contiguous(), held)

    def flow(self) -> list[Piece]:
        """For its picture."""
        return [
            Piece("x", "x(t)"), Piece("h", self.stack, ("x",)), Piece("V", self.readout, ("h",)),
            Piece("A", self.linear, ("x",)), Piece("sum", "+", ("V", "A")), Piece("p", "σ", ("sum",)),
            Piece("next", "p of x(t + 1)", ("p",)),
        ]  # fmt: skip

    def explain(self) -> Explanation:
        """The plan of the latest call."""
        return self.stack.explain()


class FrameSampler(nn.Module):
    """One frame, as a cell: (None, (logits [B, I], states of the layers)) -> (frame [B, I] of 0 and 1, new state)."""

    def __init__(self, stack: StackCell, linear: nn.Linear, readout: nn.Linear) -> None:
        super().__init__()
        self.stack, self.linear, self.readout = stack, linear, readout

    def forward(self, x: None, state: tuple[Tensor, tuple]) -> tuple[Tensor, tuple]:
        logits, before = state
        frame = (torch.rand_like(logits) < torch.sigmoid(logits)).to(logits.dtype)
        h, after = self.stack(frame, before)
        return frame, (self.readout(h) + self.linear(frame), after)


@torch.no_grad()
def nats_per_frame(network: FrameNetwork, x: Sequence[Tensor]) -> float:
    """The mean over all frames but the first of each sequence, each read from its beginning."""
    total, frames = 0.0, sum(len(one) - 1 for one in x)
    device = network.readout.weight.device
    with evaluating(network):
        for _, padded, lengths in batched(x):
            total += float(network.nats(padded.to(device), lengths.to(device)).double().sum())
    return total / max(frames, 1)


def chunks(x: Sequence[Tensor], most: int = CHUNK) -> list[Tensor]:
    """Sequences cut into ones that training goes back through: of at most so many frames, and at least two."""
    return [part for one in x for part in one.split(most) if len(part) > 1]


def stack_for(frames: int) -> dict[str, Any]:
    """What a network is made of where nothing else is said; of few frames it is small, and much is left out.

    Tried on the validation parts of two sets of piano rolls: layer norm and a residual second layer are most of it.
    """
    size = {"hidden": 128, "dropout": 0.5} if frames < _FEW else {"hidden": 192, "dropout": 0.2}
    return {"cell": "lstm", "layers": 2, "residual": True, "norm": True, **size}


def frames_begun(learnt: Sequence[Tensor], **how: Any) -> tuple[FrameNetwork, list[Tensor]]:
    """(a network that knows how often each channel is 1, what it is to learn from)."""
    parts = chunks(learnt)
    network = FrameNetwork(parts[0].shape[1], sum(len(one) - 1 for one in parts) / len(parts), **how)
    network.begin(parts)
    return network, parts


def guesses(learnt: Sequence[Tensor], x: Sequence[Tensor]) -> dict[str, float]:
    """Nats per frame of what needs no network: how often each channel is 1; the same after a 0 and after a 1."""
    before, after = (torch.cat([one[part] for one in learnt]) for part in (slice(None, -1), slice(1, None)))
    past, y = (torch.cat([one[part] for one in x]) for part in (slice(None, -1), slice(1, None)))
    share = (after.sum(0) + 0.5) / (len(after) + 1)
    one = ((after * before).sum(0) + 0.5) / (before.sum(0) + 1)
    none = ((after * (1 - before)).sum(0) + 0.5) / ((1 - before).sum(0) + 1)
    guessed = {
        "how often each is 1": share.expand_as(y),
        "by what each was before": torch.where(past > 0, one, none),
    }
    return {
        name: float(nn.functional.binary_cross_entropy(p, y, reduction="sum")) / max(len(y), 1)
        for name, p in guessed.items()
    }


def kept_frames(x: Sequence[Tensor]) -> bytes:
    """The end of the last sequence, from which a forecast goes on."""
    tail = x[-1][-_TAIL:]
    content = {"channels": tail.shape[1], "tail": [row.nonzero()[:, 0].tolist() for row in tail]}
    return json.dumps({"frames": content}).encode()


def frames_opened(config: dict[str, Any], folder: Path, **opening: Any) -> tuple[Tensor, FrameNetwork]:
    """(the end of what was learnt from [T, I], the network) of a folder, whoever wrote it. Raises DataError."""
    network = pretrained.load(
        FrameNetwork, "a forecaster of vectors", SETTINGS, shapes, config, folder, known=KNOWN, **opening
    )
    path, width = folder / FILE, network.settings["channels"]
    rows = each(each(whole(0, width - 1), width), _TAIL)
    kept = from_json(
        read_file(path, 2**25, "what came last", _MEND),
        record({"frames": record({"channels": whole(width, width), "tail": rows})}),
        what="this does not say what came last", where=path, mend=_MEND,
    )["frames"]["tail"]  # fmt: skip
    tail = torch.zeros(len(kept), width)
    for row, notes in zip(tail, kept, strict=True):
        row[notes] = 1.0
    return tail, network


def _frames(value: Any, place: str) -> None:
    if value != FRAMES:
        raise Odd(place, str(value)[:60], FRAMES)


SETTINGS = {"channels": whole(1, pretrained.SIZE), "distribution": _frames}
KNOWN = {"input_dropout": number(0, 1), "length": number(0, 1e9)}


def shapes(settings: dict[str, Any], there: dict[str, list[int]]) -> dict[str, list[int] | None]:
    """Of the weights, by name, as the settings say: see `elman.models.pretrained`."""
    width = settings["channels"]
    return {"readout.weight": [width, settings["hidden"]], "linear.weight": [width, width]}
