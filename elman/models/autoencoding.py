"""The network of an auto-encoder: a recurrence that reads a sequence into one vector, and one that writes it again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from elman.data.sequences import END, UNKNOWN
from elman.errors import InputError
from elman.models.evaluating import evaluating
from elman.models.stack import Cells, stack_of
from elman.plan import Explanation
from elman.recurrent import Flow, LockedDropout, Piece, Recurrent, last
from elman.recurrent.stacked import StackCell
from elman.trace.initial import initial_state

_BATCH, _STEPS = (
    256,
    2**18,
)  # sequences that are read or written side by side, and steps of all of them, at most
# Cells whose state is one tensor of width H, which z can be. What others than these and an LSTM start from, they know
# themselves; z is then told to them at every step only.
_OF_ONE = ("elman", "jordan", "gru", "leaky")


class AutoencoderNetwork(Flow, nn.Module):
    """Sequence -> vector -> sequence, symbol by symbol or frame by frame.

        z = h(T),  h(t) = f(h(t-1), e(T+1-t))                                # read from its end to its beginning
        s(t) = g(s(t-1), e(y(t-1)) + A z),  s(0) = z,  o(t) = c + V s(t)     # written from its beginning

    y(t-1) is what was written, or in training, where `teacher` says so, what should have been. The reader stands at the
    beginning of the sequence when it has read it, which is where the writer begins.

    symbols: V, of sequences int64 [T, B], of which 0 is the end and 1 is unknown; or channels: I, of arrays
    [T, B, I], binary where they hold 0 and 1 alone; whether a sequence is over is then a channel more of the output.
    hidden: H, the width of z and of every layer. cell, layers, dropout, residual, norm: of both recurrences, see
    `elman.models.stack`. embedding: width of e.
    noise: share of the symbols that the reader, in training, reads as another one; of binary arrays the share that is
    turned round, of others the standard deviation, in theirs, of what is added.
    teacher: the share of steps at which the writer, in training, is told what it should have written: 1 is teacher
    forcing, 0 is free running.
    longest: steps after which the writer stops by itself.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self, symbols: int = 0, channels: int = 0, binary: bool = False, cell: Cells = "gru", hidden: int = 128,
        layers: int | None = None, embedding: int = 64, dropout: float = 0.0, residual: bool = False,
        norm: bool = False, noise: float = 0.0, teacher: float = 1.0, longest: int = 100,
    ) -> None:  # fmt: skip
        super().__init__()
        for name, value in {"dropout": dropout, "noise": noise, "teacher": teacher}.items():
            if not 0 <= value <= 1 or (name == "dropout" and value == 1):
                raise InputError(what=f"{name} is a share", where=name, got=value, expected="0 … 1")
        if bool(symbols) == bool(channels):
            raise InputError(
                what="sequences are of symbols or of channels", where="symbols, channels", got=f"{symbols}, {channels}",
                mend="give one of the two",
            )  # fmt: skip
        how = {"dropout": dropout, "residual": residual, "norm": norm}
        self.encoder, settings = stack_of(cell, embedding, hidden, layers, **how)
        self.decoder, _ = stack_of(cell, embedding, hidden, layers, **how)
        self.settings = {
            "symbols": symbols, "channels": channels, "binary": binary, **settings, "hidden": hidden,
            "layers": len(self.encoder), "embedding": embedding, "dropout": dropout, "noise": noise,
            "teacher": teacher, "longest": longest,
        }  # fmt: skip
        self.symbols, self.channels, self.binary = symbols, channels, binary
        self.noise, self.teacher, self.longest = noise, teacher, longest
        self.dropout = LockedDropout(dropout)
        self.read, self.written = (
            nn.Embedding(symbols, embedding) if symbols else nn.Linear(channels, embedding) for _ in range(2)
        )
        self.condition = nn.Linear(hidden, embedding)
        self.readout = nn.Linear(hidden, symbols or channels + 1)
        # Of arrays of numbers: the network sees and makes them standardised. In float64: far from zero, float32 does
        # not tell apart what differs by a deviation.
        if channels and not binary:
            self.register_buffer("mean", torch.zeros(channels, dtype=torch.float64))
            self.register_buffer("scale", torch.ones(channels, dtype=torch.float64))
        named = settings["cell"]
        self.names = named if isinstance(named, list) else [named] * len(self.decoder)

    # --- there -------------------------------------------------------------------------------------------------------

    def encode(self, x: Tensor, lengths: Tensor) -> Tensor:
        """x [T, B] or [T, B, I], lengths [B] -> z [B, H]."""
        e = self.read(self._noisy(self._standard(_turned(x, lengths))))
        _, states = self.encoder(e, lengths=lengths)
        return self.dropout(last(states, self.encoder))

    def standardise(self, x: Sequence[Tensor]) -> None:
        """From now on, arrays of numbers are read by how far, in standard deviations, each channel is from its mean."""
        if self.channels and not self.binary:
            frames = torch.cat(list(x)).double()
            deviation, level = frames.std(0, correction=0), frames.abs().amax(0)
            # A channel that stays where it is has to come back there, so its unit is small beside its level.
            still = 1e-6 * torch.where(level > 0, level, 1.0)
            self.mean.copy_(frames.mean(0))
            self.scale.copy_(torch.where(deviation > 1e-12 * level, deviation, still))

    def _standard(self, x: Tensor) -> Tensor:
        if self.symbols or self.binary:
            return x
        return ((x.double() - self.mean) / self.scale).to(self.condition.weight.dtype)

    def _noisy(self, x: Tensor) -> Tensor:
        if not self.training or not self.noise:
            return x
        if not self.symbols and not self.binary:
            return x + self.noise * torch.randn_like(x)
        chosen = torch.rand(x.shape, device=x.device) < self.noise
        return torch.where(chosen, torch.randint_like(x, UNKNOWN, self.symbols) if self.symbols else 1 - x, x)

    # --- and back ----------------------------------------------------------------------------------------------------

    def outputs(self, z: Tensor, x: Tensor, lengths: Tensor) -> Tensor:
        """The outputs [T + 1, B, V] of a writer that is told at each step what should have been written before, or,
        in training with `teacher` below 1, at some steps what it wrote itself."""
        if self.teacher < 1 and self.training:
            told = torch.rand(len(x) + 1, len(z), device=x.device) < self.teacher
            start = z.new_zeros(len(z), self.readout.out_features), self._starts(z)
            o, _ = self._writer()(
                None, start, steps=len(told), lengths=lengths + 1, teacher=self._goals(x), teacher_weight=told,
                context=z,
            )  # fmt: skip
            return o
        x = self._standard(x)
        before = torch.cat([torch.zeros_like(x[:1]), x])
        h, _ = self.decoder(self.written(before) + self.condition(z), self._starts(z), lengths=lengths + 1)
        return self.readout(self.dropout(h))

    def writing_loss(self, z: Tensor, x: Tensor, lengths: Tensor) -> Tensor:
        """-log p(x | z) in nats, a mean over symbols, the end one of them; of arrays, over frames."""
        o, steps = self.outputs(z, x, lengths), torch.arange(len(x) + 1, device=x.device)[:, None]
        there, ends = steps <= lengths, (steps == lengths).to(o.dtype)
        if self.symbols:
            y = F.pad(x, (0, 0, 0, 1)).masked_fill(steps >= lengths, END)
            return F.cross_entropy(o[there].float(), y[there])
        frames, goal = o[:-1, :, :-1][there[1:]], self._standard(x)[there[1:]]
        far = F.binary_cross_entropy_with_logits if self.binary else F.mse_loss
        loss = far(frames, goal, reduction="sum") / len(frames) * (1.0 if self.binary else 0.5)
        return loss + F.binary_cross_entropy_with_logits(o[..., -1][there], ends[there])

    def loss(self, x: Tensor, lengths: Tensor, state: None = None) -> tuple[Tensor, None]:
        """(-log p(x | z), nothing to carry on)."""
        return self.writing_loss(self.encode(x, lengths), x, lengths), None

    @torch.no_grad()
    def decode(self, z: Tensor, steps: int | None = None) -> list[Tensor]:
        """z [B, H] -> the sequences that are written from it, by itself, the likeliest symbol each time: [T] or [T, I].

        steps: after which it stops, if it did not before.
        """
        sequences, steps = [], (steps or self.longest) + 1
        with evaluating(self):
            for part in z.split(max(min(_BATCH, _STEPS // steps), 1)):
                start = part.new_zeros(len(part), self.readout.out_features), self._starts(part)
                o, _ = self._writer()(None, start, steps=steps, context=part)
                over = o.argmax(-1) == END if self.symbols else o[..., -1] > 0
                over[-1] = True
                written = o.argmax(-1) if self.symbols else _frames(o, self.binary)
                if not self.symbols and not self.binary:
                    written = written * self.scale + self.mean
                sequences += [written[:n, i] for i, n in enumerate(over.to(torch.uint8).argmax(0).tolist())]
        return sequences

    def _writer(self) -> Recurrent:
        cell = Writer(self.written, self.condition, self.decoder.as_cell(), self.readout, self.binary)
        return Recurrent(cell.train(self.training), batch_first=False)

    def _starts(self, z: Tensor) -> tuple[Any, ...]:
        """The states of the writer's layers before it has written anything."""
        e = self.condition(z)
        return tuple(
            z if name in _OF_ONE else (z, torch.zeros_like(z)) if name == "lstm"
            else initial_state(cast(Any, layer).cell, z if k else e)
            for k, (name, layer) in enumerate(zip(self.names, self.decoder, strict=True))
        )  # fmt: skip

    def _goals(self, x: Tensor) -> Tensor:
        """The outputs [T + 1, B, V] that would be understood as x."""
        if self.symbols:
            return F.one_hot(F.pad(x, (0, 0, 0, 1), value=END), self.symbols).to(self.readout.weight.dtype)
        frames = 2 * x - 1 if self.binary else self._standard(x)
        return F.pad(frames, (0, 1, 0, 0, 0, 1))

    def flow(self) -> list[Piece]:
        """For its picture."""
        pieces = [
            Piece("x", "x, from its end"), Piece("e", self.read, ("x",)), Piece("h", self.encoder, ("e",)),
            Piece("last", "last state", ("h",)), Piece("z", "z", ("last",)),
            Piece("A", self.condition, ("z",)), Piece("before", "y(t - 1)"), Piece("told", self.written, ("before",)),
            Piece("sum", "+", ("A", "told")),
        ]  # fmt: skip
        starts = any(name == "lstm" or name in _OF_ONE for name in self.names)  # as `_starts` says
        if starts:
            pieces.append(Piece("s(0)", "first state", ("z",)))
        return [
            *pieces, Piece("s", self.decoder, ("sum", "s(0)") if starts else ("sum",)),
            Piece("o", self.readout, ("s",)), Piece("y", "y(t)", ("o",)),
        ]  # fmt: skip

    def explain(self) -> Explanation:
        """What of both recurrences runs once, before, in and after the loop; after a call. See `elman.explain`."""
        return Explanation.of({"reader": self.encoder.explain(), "writer": self.decoder.explain()})


class Writer(nn.Module):
    """One step of a writer that reads what it wrote itself, as a cell.

    (None, (last output [B, V], states), z [B, H]) -> (output, new state). The output is an entry of the state, so a
    teacher can stand in for it.
    """

    def __init__(
        self, written: nn.Module, condition: nn.Module, stack: StackCell, readout: nn.Linear, binary: bool
    ) -> None:
        super().__init__()
        self.written, self.condition, self.stack, self.readout = written, condition, stack, readout
        self.binary = binary

    def forward(self, x: None, state: tuple[Tensor, tuple], context: Tensor) -> tuple[Tensor, tuple]:
        o, before = state
        symbols = isinstance(self.written, nn.Embedding)
        e = self.written(o.argmax(-1) if symbols else _frames(o, self.binary))
        h, after = self.stack(e + self.condition(context), before)
        o = self.readout(h)
        return o, (o, after)


def _frames(o: Tensor, binary: bool) -> Tensor:
    """What outputs say of the channels."""
    frames = o[..., :-1]
    return (frames > 0).to(o.dtype) if binary else frames


def together(lengths: Sequence[int]) -> list[list[int]]:
    """Indices of sequences that are read side by side, of like length, the longest ones first."""
    order, groups = sorted(range(len(lengths)), key=lambda i: lengths[i]), []
    while order:
        most = max(min(_BATCH, _STEPS // lengths[order[-1]]), 1)
        groups.append(order[: -most - 1 : -1])
        del order[-most:]
    return groups


def _turned(x: Tensor, lengths: Tensor) -> Tensor:
    """Each sequence from its end to its beginning."""
    steps = (lengths - 1 - torch.arange(x.shape[0], device=x.device)[:, None]).clamp(min=0)
    return x[steps, torch.arange(x.shape[1], device=x.device)]
