"""The network of a forecaster: a recurrence beside a linear forecast, and the paths into the future that it draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from elman.data.schema import Odd, each, whole
from elman.data.series import Panel
from elman.data.series_form import LONGEST, SeriesForm
from elman.data.series_windows import SeriesWindows
from elman.errors import InputError
from elman.models import pretrained
from elman.models.distributions import DIRECT, DISTRIBUTIONS, QUANTILES, Distribution, pinball
from elman.models.evaluating import evaluating
from elman.models.stack import Cells, learning_rate, stack_of
from elman.plan import Explanation
from elman.recurrent import Flow, LockedDropout, Piece, Recurrent
from elman.recurrent.stacked import StackCell

_RIDGE = 1e-3  # of the linear forecast that training begins with, in variances
_ODD = 20.0  # scales: what lies farther away does not decide on the linear forecast
_ROWS = 20_000  # paths that are drawn side by side, at most


class ForecastNetwork(Flow, nn.Module):
    """What may happen next in series, given their past.

        x(t) = [y(t - l) for lags l, whether each is known, features(t)]          # y scaled by what came before
        h(t) = f(h(t-1), x(t))
        raw(t) = V h(t) + b,  its first entry + A x(t)                            # A: a linear forecast
        y(t) ~ distribution(raw(t))

    or, with quantiles, at once for all steps of a horizon, quantiles(t, k) of y(t + k):

        V_k h(t) + b_k + A_k x(t) + D features(t + k)

    lags: in ascending order. features: F. context, horizon: steps of a window before and after the place of a forecast.
    distribution: of `elman.models.distributions`. Others as of `stack_of`. ends: how series are read, and the ends of
    those that it goes on from, where they are known.
    """

    def __init__(
        self, lags: Sequence[int], features: int, context: int, horizon: int, distribution: str = "gaussian",
        cell: Cells = "gru", hidden: int = 64, layers: int | None = None, dropout: float = 0.1, residual: bool = False,
        norm: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        if distribution not in (*DISTRIBUTIONS, DIRECT):
            raise InputError(
                what="there is no such distribution of a number", where="distribution", got=distribution,
                expected=", ".join((*DISTRIBUTIONS, DIRECT)), mend="take one of them",
            )  # fmt: skip
        if not lags or list(lags) != sorted(set(lags)) or lags[0] < 1:
            raise InputError(
                what="lags are whole numbers in ascending order", where="lags", got=str(list(lags))[:100]
            )
        width = 2 * len(lags) + features
        self.stack, settings = stack_of(
            cell, width, hidden, layers, dropout=dropout, residual=residual, norm=norm
        )
        self.dropout = LockedDropout(dropout)
        self.settings: dict[str, Any] = {
            "lags": list(lags), "features": features, "context": context, "horizon": horizon,
            "distribution": distribution, "hidden": hidden, "layers": len(self.stack), "dropout": dropout, **settings,
        }  # fmt: skip
        self.lags, self.context, self.horizon = tuple(lags), context, horizon
        self.ends: tuple[SeriesForm, Panel] | None = None
        self.law = None if distribution == DIRECT else DISTRIBUTIONS[distribution]()
        if self.law is None:
            self.linear = nn.Linear(width, horizon)
            self.readout = nn.Linear(hidden, horizon * len(QUANTILES))
            self.ahead = nn.Linear(features, len(QUANTILES), bias=False) if features else None
        else:
            self.linear = nn.Linear(width, 1)
            self.readout = nn.Linear(hidden, self.law.parameters_count)
        nn.init.normal_(self.readout.weight, std=0.1 * hidden**-0.5)
        nn.init.zeros_(self.readout.bias)

    @property
    def learning_rate(self) -> float:
        """For AdamW."""
        return learning_rate(self.stack, self.settings["hidden"]) / 2

    # --- what is learnt -----------------------------------------------------------------------------------------------

    def forward(self, lags: Tensor, features: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """lags [T, B, 2 L], features [T, B, F] -> (raw [T, B, P], the state); of quantiles [T, B, horizon · Q]."""
        x = torch.cat([lags, features], -1)
        h, after = self.stack(x, state)
        return self._raw(h, x), after

    def _raw(self, h: Tensor, x: Tensor) -> Tensor:
        raw, base = self.readout(self.dropout(h)), self.linear(x)
        if self.law is None:
            return raw + base.repeat_interleave(len(QUANTILES), -1)
        return torch.cat([raw[..., :1] + base, raw[..., 1:]], -1)

    def loss(
        self, lags: Tensor, features: Tensor, y: Tensor, there: Tensor, loc: Tensor, scale: Tensor, state: None = None
    ) -> tuple[Tensor, None]:  # fmt: skip
        """Nats per step (of quantiles: CRPS per step), of scaled numbers; steps without a number count as 0. The first
        half of the context is read only. Arguments: see `SeriesWindows`."""
        warm, raw = self.context // 2, self(lags, features)[0].float()
        if self.law is not None:
            nats = self.law.nats(raw[warm:], y[warm:], scale.expand_as(y[warm:]))
            return (nats * there[warm:]).sum(0).mean() / (len(y) - warm), None
        quantiles = self._quantiles(raw[: self.context + 1], features)[warm:]
        targets, held = (v.unfold(0, self.horizon, 1)[warm : self.context + 1] for v in (y, there))
        return (pinball(quantiles, targets) * held).sum((0, 2)).mean() / targets[:, 0].numel(), None

    def _quantiles(self, raw: Tensor, features: Tensor) -> Tensor:
        """[T, B, horizon, Q] of raw [T, B, horizon · Q] and features of as many steps and a horizon more."""
        quantiles = raw.unflatten(-1, (self.horizon, len(QUANTILES)))
        if self.ahead is None:
            return quantiles
        # [T, B, Q, horizon]: of step t + k at place k
        told = self.ahead(features).unfold(0, self.horizon, 1)[: len(raw)]
        return quantiles + told.transpose(-1, -2)

    @torch.no_grad()
    def begin(self, w: SeriesWindows) -> None:
        """Take the linear forecast from least squares on windows, and the spread from what it leaves over."""
        warm, x = self.context // 2, torch.cat([w.lags, w.features], -1)
        ends = self.context + 1 if self.law is None else len(x)
        steps = self.linear.out_features
        y, there = (v.unfold(0, steps, 1)[warm:ends].flatten(0, 1) for v in (w.y, w.there))
        rows = x[warm:ends][: len(w.y) - steps + 1 - warm].flatten(0, 1)
        if self.settings["distribution"] == "negative-binomial":  # as softplus has it
            y = torch.log(torch.expm1(y.clamp(0.05, 50)))
        left = []
        for k in range(steps):
            seen = (there[:, k] > 0) & (y[:, k].abs() < _ODD)
            if seen.sum() < 2:
                continue
            a, b = torch.cat([rows[seen], torch.ones(int(seen.sum()), 1)], 1).double(), y[seen, k].double()
            scale = a.square().mean(0)
            weight = torch.diag(_RIDGE * len(a) * (scale + 1e-3))
            weight[-1, -1] = 1e-9
            solution = torch.linalg.solve(a.mT @ a + weight, a.mT @ b)
            self.linear.weight[k], self.linear.bias[k] = solution[:-1].float(), solution[-1].float()
            left.append(b - a @ solution)
        if not left:
            return
        spread = max(float(torch.cat(left).abs().quantile(0.68)), 1e-3) if left[0].numel() < 10**6 else 0.3
        if self.law is not None:
            if self.settings["distribution"] != "negative-binomial":
                self.readout.bias[1:2] = math.log(math.expm1(spread))
            return
        normal = torch.distributions.Normal(0, 1).icdf(torch.tensor(QUANTILES))
        for k, one in enumerate(left):
            self.readout.bias.view(steps, -1)[k] = normal * one.abs().quantile(0.68).float()

    # --- what it is for -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def quantiles(self, w: SeriesWindows) -> Tensor:
        """[B, horizon, Q] of scaled numbers, in ascending order; of a model of quantiles."""
        with evaluating(self):
            raw, _ = self(w.lags[: self.context + 1], w.features[: self.context + 1])
            quantiles = self._quantiles(raw[-1:], w.features[self.context :])[0]
        return quantiles.sort(-1).values

    @torch.no_grad()
    def paths(self, w: SeriesWindows, count: int, seed: int) -> Tensor:
        """[B, count, steps]: `count` futures of each window, of scaled numbers, drawn step by step.

        The loop is a recurrence of its own, which an engine runs: see `PathSampler`.
        """
        steps = len(w.features) - self.context
        generator, paths = torch.Generator().manual_seed(seed % 2**63), []
        each = max(_ROWS // count, 1)
        with evaluating(self):
            start = [v[: self.context] for v in (w.lags, w.features)]
            states = self.stack(torch.cat(start, -1))[1]
            sampler = self._sampler()
            sampler.generator = generator
            for first in range(0, len(w.scale), each):
                rows = torch.arange(first, min(first + each, len(w.scale))).repeat_interleave(count)
                rows = rows.to(w.scale.device)
                held = pytree.tree_map(lambda v, rows=rows: v[rows], tuple(states))
                begin = (w.register[rows], w.held[rows], held)
                z, _ = sampler(w.features[self.context :, rows], begin, context=w.scale[rows, None])
                paths.append(z.T.unflatten(0, (-1, count)))
        return torch.cat(paths) if paths else w.scale.new_zeros(0, count, steps)

    def _sampler(self) -> Recurrent:
        assert self.law is not None
        cell = PathSampler(self.lags, self.stack.as_cell(), self.linear, self.readout, self.law)
        return Recurrent(cell.eval(), batch_first=False)

    def step(self, lags: Tensor, features: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """One step of a stream: lags [B, 2 L], features [B, F] -> (raw [B, P], the state to go on from)."""
        x = torch.cat([lags, features], -1)
        with evaluating(self), torch.no_grad():
            h, after = self.stack.step(x, state)
            return self._raw(h, x), after

    def flow(self) -> list[Piece]:
        """For its picture."""
        pieces = [
            Piece("x", "lags and features of t"), Piece("h", self.stack, ("x",)), Piece("V", self.readout, ("h",)),
            Piece("A", self.linear, ("x",)),
        ]  # fmt: skip
        if self.law is not None:
            many = self.law.parameters_count > 1
            return [
                *pieces, Piece("raw", "+, in the first number" if many else "+", ("V", "A")),
                Piece("y", f"y(t), {self.settings['distribution']}", ("raw",)),
            ]  # fmt: skip
        told = ("V", "A")
        if self.ahead is not None:
            pieces += [Piece("later", "features of t + k"), Piece("D", self.ahead, ("later",))]
            told = (*told, "D")
        return [*pieces, Piece("raw", "+", told), Piece("y", "quantiles of y(t + k)", ("raw",))]

    def explain(self) -> Explanation:
        """The plan of the latest call."""
        return self.stack.explain()


class PathSampler(nn.Module):
    """One step into the future, as a cell: (features [B, F], (past values [B, R], whether each is known, states of the
    layers), scale [B, 1]) -> (z [B], new state). What is drawn at a step is past at the next."""

    places: Tensor

    def __init__(
        self, lags: Sequence[int], stack: StackCell, linear: nn.Linear, readout: nn.Linear, law: Distribution
    ) -> None:
        super().__init__()
        self.stack, self.linear, self.readout, self.law = stack, linear, readout, law
        places = torch.tensor([lags[-1] - lag for lag in lags], device=linear.weight.device)
        self.register_buffer("places", places)

    def forward(
        self, x: Tensor, state: tuple[Tensor, Tensor, tuple], context: Tensor
    ) -> tuple[Tensor, tuple]:
        past, known, before = state
        x = torch.cat([past.index_select(1, self.places), known.index_select(1, self.places), x], -1)
        h, after = self.stack(x, before)
        raw = self.readout(h)
        raw = torch.cat([raw[:, :1] + self.linear(x), raw[:, 1:]], -1)
        z = self.law.draw(raw, context[:, 0])
        past = torch.cat([past[:, 1:], z[:, None]], 1)
        known = torch.cat([known[:, 1:], torch.ones_like(z[:, None])], 1)
        return z, (past, known, after)


def _law(value: Any, place: str) -> None:
    if value not in (*DISTRIBUTIONS, DIRECT):
        raise Odd(place, str(value)[:60], ", ".join((*DISTRIBUTIONS, DIRECT)))


SETTINGS = {
    "lags": each(whole(1, LONGEST), 1000),
    "features": whole(0, pretrained.SIZE),
    "context": whole(1, LONGEST),
    "horizon": whole(1, LONGEST),
    "distribution": _law,
}


def shapes(settings: dict[str, Any], there: dict[str, list[int]]) -> dict[str, list[int] | None]:
    """Of the weights, by name, as the settings say: see `elman.models.pretrained`."""
    direct = settings["distribution"] == DIRECT
    steps = settings["horizon"] if direct else 1
    law = DISTRIBUTIONS.get(settings["distribution"])
    out = steps * len(QUANTILES) if law is None else law.parameters_count
    return {
        "linear.weight": [steps, 2 * len(settings["lags"]) + settings["features"]],
        "readout.weight": [out, settings["hidden"]],
    }
