"""Vectors of 0 and 1 that follow one another, such as the keys of a piano that sound: which are 1 next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils import _pytree as pytree

from elman.data.schema import number, whole
from elman.models import pretrained
from elman.models.evaluating import evaluating
from elman.models.sequence_classifier import batched
from elman.models.stack import Cells, learning_rate, stack_of
from elman.plan import Explanation
from elman.recurrent import LockedDropout, Recurrent
from elman.recurrent.stacked import StackCell


class FrameNetwork(nn.Module):
    """Which of I channels are 1 in the next frame, each by itself, given all frames so far.

        h(t) = f(h(t-1), x(t))
        p(x_i(t+1) = 1 | x(1), …, x(t)) = sigmoid(V h(t) + b + A x(t))_i

    channels: I. input_dropout: share of the channels that are read as 0 in training, the same ones for a whole
    sequence. Others as of `stack_of`.
    """

    def __init__(
        self, channels: int, cell: Cells = "gru", hidden: int = 128, layers: int | None = None, dropout: float = 0.4,
        input_dropout: float = 0.1, residual: bool = False, norm: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.stack, made = stack_of(
            cell, channels, hidden, layers, dropout=dropout, residual=residual, norm=norm
        )
        self.input_dropout, self.dropout = LockedDropout(input_dropout), LockedDropout(dropout)
        self.linear = nn.Linear(channels, channels, bias=False)
        self.readout = nn.Linear(hidden, channels)
        nn.init.zeros_(self.linear.weight)
        self.settings: dict[str, Any] = {
            "channels": channels, "hidden": hidden, "layers": len(self.stack), "dropout": dropout,
            "input_dropout": input_dropout, **made,
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
        """Nats per frame, a mean over frames; the first of each sequence counts as 0."""
        return self.nats(x, lengths).sum() / lengths.sum(), None

    def step(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """One frame of a stream: x [B, I] -> (logits [B, I] of the next one, the state to go on from)."""
        with evaluating(self), torch.no_grad():
            h, after = self.stack.step(x, state)
            return self.readout(h) + self.linear(x), after

    @torch.no_grad()
    def paths(self, x: Tensor, count: int, steps: int, seed: int) -> Tensor:
        """[count, steps, I], frames that may follow x [T, I], drawn by a recurrence of its own."""
        with evaluating(self):
            logits, states = self(x[:, None])
            held = pytree.tree_map(lambda v: v.expand(count, *v.shape[1:]).contiguous(), tuple(states))
            sampler = Recurrent(
                FrameSampler(self.stack.as_cell(), self.linear, self.readout).eval(), batch_first=False
            )
            sampler.generator = torch.Generator().manual_seed(seed % 2**63)
            made, _ = sampler(None, (logits[-1].expand(count, -1).contiguous(), held), steps=steps)
        return made.transpose(0, 1)

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


SETTINGS = {"channels": whole(1, pretrained.SIZE)}
KNOWN = {"input_dropout": number(0, 1)}


def shapes(settings: dict[str, Any], there: dict[str, list[int]]) -> dict[str, list[int] | None]:
    """Of the weights, by name, as the settings say: see `elman.models.pretrained`."""
    width = settings["channels"]
    return {"readout.weight": [width, settings["hidden"]], "linear.weight": [width, width]}
