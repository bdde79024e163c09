"""What each rule keeps of the past, and how the gradient of a step comes from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import attrgetter, is_

import torch

from elman.errors import InputError
from elman.execute import Call
from elman.online.influence import Influence, Pattern, pattern
from elman.online.linear import Values
from elman.online.signal import Signal
from elman.online.step import Derivatives

Tensor = torch.Tensor
_TINY = 1e-7  # the ε of Tallec and Ollivier's algorithm 1


class Shape:
    """Of a rule that carries ∂s/∂θ: where it is stored, and the adjoint whose Jacobian carries it."""

    def __init__(self, derivatives: Derivatives, rule: str) -> None:
        self.adjoint, units, carried = derivatives.within, None, None
        if rule in ("e-prop", "rflo"):
            self.adjoint = derivatives.local()
            units = carried = derivatives.reach_within(self.adjoint).units
            if rule == "rflo":
                carried = units & torch.eye(len(units), dtype=torch.bool)
        within = pattern(derivatives.reach(), derivatives.P, rule != "snap-1", units, carried)
        self.pattern: Pattern = within.to(derivatives.weights[0].device)


class Carried:
    """∂s/∂θ, carried forward by the Jacobian of the step, or by a part of it.

    start: `[n, P0]`, the influence of weights of which the starting state is made; `begins` are they.
    """

    def __init__(
        self,
        derivatives: Derivatives,
        shape: Shape,
        batch: int,
        start: tuple[Sequence[Tensor], Tensor] | None,
    ) -> None:
        self.batch, like = batch, derivatives.weights[0]
        self._gradients, self._begins = Gradients(), Gradients()
        self.influence = Influence(shape.pattern, batch, like, derivatives.engine)
        self.follow(derivatives, shape)
        self.begins, self._start = start or ((), like.new_zeros(derivatives.n, 0))
        self._begun = torch.zeros_like(self._start).expand(batch, -1, -1)

    def follow(self, derivatives: Derivatives, shape: Shape) -> None:
        """Take the derivatives of the cell as it is now."""
        pattern, mine = shape.pattern, self.influence.pattern
        if not pattern.same(mine):
            raise InputError(
                what="a parameter reaches other parts of the state than at the step before", where="rnn",
                mend="call reset(), or make a new Online",
            )  # fmt: skip
        self.of, like, ones = derivatives, derivatives.weights[0], torch.nn.functional.one_hot
        rows, colours = (ones(t).T.to(like).contiguous() for t in (mine.rows, mine.colours))
        self._step = derivatives.pulled(shape.adjoint, rows, colours, self.batch)
        self._units = mine.units.to(like)

    def after(self, call: Call, values: Values) -> list[Tensor]:
        """The state after a step, by part. values: the tensors of the step."""
        after, self._pulled = self._step(call, values)
        return after

    def learn(self, call: Call, signal: Signal) -> None:
        """Add the gradient of the loss at that step to `.grad`, and take the step. After `after`.

        What goes to the loss by way of the state after the step takes the influence on that; the rest, if there is any,
        that on the state before.
        """
        if signal.past is not None:
            self._give(signal.past)
        pulled, immediate = self._pulled
        self.influence.forward(pulled, immediate)
        if len(self.begins):
            self._begun = (pulled[:, self.influence.pattern.rows] * self._units) @ self._begun
        self._give(signal.now)

    def _give(self, parts: Sequence[Tensor]) -> None:
        """Add Mᵀ g to the gradients. parts: g, of the state that ∂s/∂θ is of now."""
        cotangents = self.of.flat(parts)
        self._gradients.add(self.of.weights, self.influence.back(cotangents))
        if len(self.begins):
            self._begins.add(self.begins, torch.einsum("bn,bnp->p", cotangents, self._begun))

    def restart(self, rows: Tensor) -> None:
        """Rows [B] of bools begin anew."""
        rows = rows.to(self._begun.device)
        self.influence.restart(rows)
        if len(self.begins):
            self._begun = torch.where(rows[:, None, None], self._start, self._begun)


class Unbiased:
    """∂s/∂θ ≈ s̃ θ̃ᵀ, of all rows together."""

    def __init__(self, derivatives: Derivatives, batch: int, generator: torch.Generator | None) -> None:
        self.of, self.generator, self._gradients = derivatives, generator, Gradients()
        like = derivatives.weights[0]
        self.s, self.theta = like.new_zeros(batch, derivatives.n), like.new_zeros(derivatives.P)

    def after(self, call: Call, values: Values) -> list[Tensor]:
        """As that of `Carried`."""
        signs = torch.randint(0, 2, self.s.shape, generator=self.generator).to(self.s).mul_(2).sub_(1)
        after, moved, more = self.of.along_and_back(call, values, self.s, signs)
        self._drawn = values, signs, moved, more
        return after

    def learn(self, call: Call, signal: Signal) -> None:
        """As that of `Carried`."""
        now, (values, signs, moved, more) = self.of.flat(signal.now), self._drawn
        share = (now * moved).sum()
        if signal.past is not None:
            share += (self.of.flat(signal.past) * self.s).sum()
        self._gradients.add(self.of.weights, self.of.back(call, values, now).addcmul_(share, self.theta))
        # The norm of n signs is √n.
        a = math.sqrt(_norm(self.theta) / (_norm(moved) + _TINY)) + _TINY
        b = math.sqrt(_norm(more) / (math.sqrt(signs.numel()) + _TINY)) + _TINY
        self.s, self.theta = signs.mul_(b).add_(moved, alpha=a), self.theta.div_(a).add_(more, alpha=1 / b)

    def restart(self, rows: Tensor) -> None:
        """As that of `Carried`."""
        self.s[rows.to(self.s.device)] = 0


class Fixed:
    """Nothing: no weight of the cell learns, as in a reservoir. What the loss itself holds does, a readout."""

    def __init__(self, derivatives: Derivatives) -> None:
        self.of = derivatives

    def after(self, call: Call, values: Values) -> list[Tensor]:
        """As that of `Carried`."""
        return self.of.step.after(call, values)

    def learn(self, call: Call, signal: Signal) -> None:
        """There is nothing to add."""

    def restart(self, rows: Tensor) -> None:
        """There is nothing to forget."""


def _norm(tensor: Tensor) -> float:
    return torch.linalg.vector_norm(tensor).item()


class Gradients:
    """Adds flat gradients to the `.grad` of weights: in one go, while those are parts of one flat tensor."""

    def __init__(self) -> None:
        self._flat: Tensor | None = None
        self._parts: list[Tensor] = []

    def add(self, weights: Sequence[Tensor], flat: Tensor) -> None:
        """flat: `[P]`, which nobody else holds."""
        if self._flat is not None and all(map(is_, map(_GRAD, weights), self._parts)):
            self._flat.add_(flat)
            return
        sizes = [w.numel() for w in weights]
        self._parts = [part.view_as(w) for part, w in zip(flat.split(sizes), weights, strict=True)]
        self._flat = flat if all(w.grad is None for w in weights) else None
        for weight, part in zip(weights, self._parts, strict=True):
            weight.grad = part if weight.grad is None else weight.grad.add_(part)


_GRAD = attrgetter("grad")
