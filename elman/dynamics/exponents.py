"""Lyapunov exponents: how fast neighbours part, direction by direction."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from elman.dynamics.factors import Factors, eliminated, orthonormal
from elman.dynamics.flow import Flow, Values
from elman.errors import ElmanError, InputError, StateError, expect

Tensor = torch.Tensor
_BLOCKS = 10  # of each sequence, whose spread is the error bar
_ROOM = 2**22  # numbers of a stretch, or of a block of the trajectory, that are there at a time
_LONGEST = 64  # steps of a stretch: longer ones save nothing
# Elimination from so many directions on, after fewer steps than that, and so many QRs nevertheless.
_WIDE, _LONG, _QRS = 96, 8, 25
# Float64 where one of the first stretches says that so many steps are too long for float32.
_TRIAL, _RARELY = 8, 4


@dataclass(frozen=True, eq=False)
class Lyapunov:
    """Exponents in nats per step, from the largest.

    exponents: `[k]`, the mean over sequences. error: `[k]`, its standard error, of blocks of time and sequences; nan
    where there are fewer than two. each: `[B, k]`, of every sequence. history: `[P, k]`, the mean up to step
    `at[p]`. steps: how many count, after the warm-up. every: how many of them are a stretch, on average.
    n: the width of the state. rounding: what is smaller may as well be zero.
    """

    exponents: Tensor
    error: Tensor
    each: Tensor
    history: Tensor
    at: Tensor
    steps: int
    every: float
    n: int
    rounding: float = 0.0

    @property
    def dimension(self) -> float:
        """Kaplan and Yorke's: how many directions grow or shrink to a volume that stays, the last one in part.

        n where even all together grow, or stay; nan where the k exponents are too few to say.
        """
        total = 0.0
        for j, exponent in enumerate(self.exponents.tolist()):
            if abs(exponent) <= self.rounding:
                continue  # its sign says nothing
            if total + exponent < 0:
                return j + total / -exponent
            total += exponent
        return float(self.n) if len(self.exponents) == self.n else math.nan

    @property
    def entropy(self) -> float:
        """The sum of the positive exponents, nats per step: by Pesin's identity, Kolmogorov and Sinai's entropy."""
        return float(self.exponents.clamp(min=0).sum())

    def __str__(self) -> str:
        pairs = zip(self.exponents.tolist(), self.error.tolist(), strict=True)
        shown = [f"{exponent:+.4g} ± {error:.1g}" for exponent, error in pairs]
        if len(shown) > 8:
            shown = [*shown[:4], "…", *shown[-2:]]
        return (
            f"Lyapunov exponents, nats per step, over {self.steps} steps × {len(self.each)}: {', '.join(shown)}\n"
            f"dimension (Kaplan-Yorke) {self.dimension:.3f}, entropy {self.entropy:.4g}"
        )


@torch.no_grad()
def lyapunov(
    rnn: Any, x: Any = None, state: Any = None, k: int | None = None, *, steps: int | None = None,
    every: int | None = None, warm: int | None = None, dtype: torch.dtype | None = None, context: Any = None,
) -> Lyapunov:  # fmt: skip
    """The first k Lyapunov exponents of a layer along its trajectories, in nats per step.

    Orthonormal directions Q are pushed along, and each stretch of steps ends with M Q = Q' R: the exponents are the
    mean log |diag R| per step (Benettin et al. 1980; of recurrent networks Engelken, Wolf and Abbott 2023). Where
    stretches are short and directions many, elimination stands in for most of the QRs (`elman.dynamics.factors`).

    rnn: a `Recurrent`, or a `Stack` that reads forward. x: `[T, B, …]`, in the layer's order; None for an autonomous
        cell, which runs for `steps` from `state` `[B, …]`. The B sequences each give their exponents.
    k: how many; by default all n, the width of the flattened state.
    every: steps of a stretch, and a QR after each. By default found on the way: as many as directions may part in
        without the slowest being lost in the rounding of the fastest, exp(spread) < eps^-0.85, at most 64; a stretch
        over which they part by more is run again, in parts.
    warm: steps that do not count, in which state and directions find the attractor; by default a tenth.
    dtype: of a copy of the layer, to compute with. By default the layer's own; float64 in place of float32 where
        float32 bears less than four steps, if the cell and its device know float64.

    Raises InputError for a k, every or warm that does not fit, StateError where the trajectory diverges, and what
    `jacobian` raises.
    """
    flow = Flow.of(rnn, x, state, steps=steps, context=context, dtype=dtype, where="lyapunov")
    n, total = flow.n, flow.steps
    k = n if k is None else k
    warm = total // 10 if warm is None else warm
    for name, value, least, most in (
        ("k", k, 1, n), ("every", every, 1, total), ("warm", warm, 0, total - 1)
    ):  # fmt: skip
        if value is None:
            continue
        expect(value, int, "it is a whole number", f"lyapunov({name}=)")
        if not least <= value <= most:
            raise InputError(
                what="it does not fit", where=f"lyapunov({name}=)", got=value, expected=f"{least} to {most}"
            )
    narrow = flow.start.dtype == torch.float32 and flow.start.device.type != "mps"
    found = _pushed(flow, k, every, warm, narrow and dtype is None)
    if found is None:
        with suppress(ElmanError):  # a cell may know float32 alone
            wide = Flow.of(rnn, x, state, steps=steps, context=context, dtype=torch.float64, where="lyapunov")
            found = _pushed(wide, k, every, warm)
    found = found or _pushed(flow, k, every, warm)
    assert found is not None
    return _summary(found, warm, n)


class _Course(NamedTuple):
    """What lies between one QR and the next, S times: how many steps, `[S]`; how many stretches, `[S]`; the growth,
    log |diag R|, `[S, B, k]`. eps: of the dtype that they were computed in."""

    lengths: Tensor
    stretches: Tensor
    logs: Tensor
    eps: float


def _pushed(flow: Flow, k: int, every: int | None, warm: int, choosy: bool = False) -> _Course | None:
    """choosy: return None, soon, where directions part too fast for the precision at hand and there is a better one."""
    start, total = flow.start, flow.steps
    generator = torch.Generator().manual_seed(0)
    size = (flow.batch, flow.n, k)
    q = torch.linalg.qr(torch.randn(size, generator=generator, dtype=torch.float64).to(start)).Q
    probes = torch.randn(k, 2, generator=generator, dtype=torch.float64).to(start) / math.sqrt(k)
    pace = _Pace(every, start.dtype, max(1, _ROOM // (flow.batch * k * flow.n)))
    block = max(_LONGEST, _ROOM // (flow.batch * flow.n))
    apart = max(1, (total - warm) // _QRS)
    states: Values = {}
    memory: Values = {}
    lengths, stretches, logs, held = [], [], [], 0
    since, grown = [0, 0], torch.zeros_like(q[:, 0])  # the latest QR: steps and stretches, and growth
    first = steps = 0
    while (first := first + steps) < total:
        steps = min(_LONGEST if choosy and held < _TRIAL else block, total - first)
        before, states = flow.run(first, steps, states)
        if not all(bool(value.isfinite().all()) for value in states.values()):
            raise StateError(
                what="the trajectory diverges: its states are no numbers any more",
                where=f"lyapunov, before step {first + steps}", mend="start elsewhere, or scale the weights",
            )  # fmt: skip
        around, at = flow.around(first, before), 0
        while at < steps:
            left = (warm if first + at < warm else total) - first - at  # warm-up ends where a stretch does
            length = min(pace.length, steps - at, left)
            pushed = flow.pushed(around, q.permute(2, 0, 1), slice(at, at + length), memory).permute(1, 2, 0)
            cheap = k >= _WIDE and pace.length < _LONG and not pace.fixed
            due = length == left or since[0] + length >= apart
            found = eliminated(pushed, probes) if cheap and not due else None
            settled = found is None
            found = found or orthonormal(pushed)
            if not pace.holds(length, found):
                continue
            q, grown, at = found.basis, grown + found.log, at + length
            since = [since[0] + length, since[1] + 1]
            if settled:
                lengths.append(since[0])
                stretches.append(since[1])
                logs.append(grown)
                since, grown = [0, 0], torch.zeros_like(grown)
            held += 1
            if choosy and 1 < held <= _TRIAL and pace.rate * _RARELY > 1:
                return None
    eps = torch.finfo(start.dtype).eps
    return _Course(torch.tensor(lengths), torch.tensor(stretches), torch.stack(logs).double().cpu(), eps)


class _Pace:
    """How long the next stretch is."""

    def __init__(self, every: int | None, dtype: torch.dtype, most: int):
        limits = torch.finfo(dtype)
        self.spread, self.range = -0.85 * math.log(limits.eps), 0.5 * math.log(limits.max)
        self.most = min(_LONGEST, most) if every is None else every
        self.length = 1 if every is None else every
        self.fixed = every is not None
        # How much of the spread a step takes, at worst; the longest stretch that was tried.
        self.rate, self.longest = 0.0, 0

    def holds(self, length: int, found: Factors) -> bool:
        """Whether a stretch in which directions grew so was short enough; changes `length` for the next."""
        if self.fixed:
            return True
        low, high = (float(v) for v in torch.aminmax(found.log))
        strain = max((high - low + math.log(found.flat)) / self.spread, max(abs(low), abs(high)) / self.range)
        if length < self.length and strain <= 1:
            return True  # cut short, which says little of longer ones
        if not strain < math.inf:
            self.length = max(1, length // 2)
            return length == 1
        # By the worst of late: directions part by fits and starts, and a stretch in vain costs more than a shorter one.
        self.rate = max(strain / length, 0.0 if length > self.longest else 0.97 * self.rate)
        self.longest = max(length, self.longest)
        if strain > 1:
            self.length = max(1, min(length - 1, int(0.95 * length / strain)))
            return length == 1
        if self.rate * (length + 1) < 0.95:
            self.length = min(self.most, 2 * length, int(0.95 / max(self.rate, 1e-9)))
        return True


def _summary(found: _Course, warm: int, n: int) -> Lyapunov:
    lengths, stretches, logs, eps = found
    ends = lengths.cumsum(0)
    lengths, stretches, logs, ends = (part[ends > warm] for part in (lengths, stretches, logs, ends))
    steps = int(lengths.sum())
    sums = logs.cumsum(0)
    each = sums[-1] / steps
    order = each.mean(0).argsort(descending=True)
    each = each[:, order]
    edges = torch.linspace(0, len(lengths), 1 + min(_BLOCKS, len(lengths))).long()
    parts = [
        logs[a:b, :, order].sum(0) / lengths[a:b].sum() for a, b in zip(edges[:-1], edges[1:], strict=True)
    ]
    blocks = torch.stack(parts).flatten(0, 1)
    seen = torch.linspace(0, len(lengths) - 1, min(200, len(lengths))).long()
    history = sums[seen][:, :, order].mean(1) / lengths.cumsum(0)[seen, None]
    return Lyapunov(
        each.mean(0), blocks.std(0) / math.sqrt(len(blocks)), each, history, ends[seen] - warm, steps,
        steps / int(stretches.sum()), n, 8 * eps * math.sqrt(n),
    )  # fmt: skip
