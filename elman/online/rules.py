"""What each rule keeps of the past, and how the gradient of a step comes from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from elman.execute import Call
from elman.online.influence import Influence, Pattern, pattern
from elman.online.step import Derivatives

Tensor = torch.Tensor
_TINY = 1e-7  # the ε of Tallec and Ollivier's algorithm 1


class Shape:
    """Of a rule that carries ∂s/∂θ: where it is stored, and the adjoint whose Jacobian carries it."""

    def __init__(self, derivatives: Derivatives, rule: str) -> None:
        self.adjoint, units = derivatives.within, None
        if rule in ("e-prop", "rflo"):
            self.adjoint = derivatives.local()
            units = derivatives.reach_within(self.adjoint).units
            if rule == "rflo":
                units &= torch.eye(len(units), dtype=torch.bool)
        within = pattern(derivatives.reach(), derivatives.P, rule != "snap-1", units)
        self.pattern: Pattern = within.to(derivatives.weights()[0].device)


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
        self.batch, like = batch, derivatives.weights()[0]
        self.influence = Influence(shape.pattern, batch, like.dtype, like.device)
        self.follow(derivatives, shape)
        self.begins, self._start = start or ((), like.new_zeros(derivatives.n, 0))
        self._begun = torch.zeros_like(self._start).expand(batch, -1, -1)

    def follow(self, derivatives: Derivatives, shape: Shape) -> None:
        """Take the derivatives of the cell as it is now."""
        self.of, self.shape = derivatives, shape
        like, ones = derivatives.weights()[0], torch.nn.functional.one_hot
        self._rows = ones(shape.pattern.rows).T.to(like).contiguous()
        self._cotangents = ones(shape.pattern.colours).T.to(like).contiguous()
        self._units = shape.pattern.units.to(like)

    def learn(
        self, call: Call, values: dict[str, Tensor], states: Sequence[Tensor], after: Sequence[Tensor], loss: Tensor
    ) -> None:  # fmt: skip
        """Add the gradient of the loss at a step to `.grad`, and take the step.

        values: the tensors of the step by port. states, after: the parts of the state before and after it, of which the
        loss was computed with gradients.
        """
        # What goes to the loss by way of the state after the step takes the influence on that; the rest, if there is
        # any, that on the state before.
        by_way = _cut_at([a for a in after if a.is_floating_point()], loss)
        past = [s.grad for s in states]
        if any(g is not None for g in past):
            self._give(self.of.flat(_or_zeros(past, states)))
        self._forward(call, values)
        self._give(self.of.flat(by_way))

    def _give(self, cotangents: Tensor) -> None:
        """Add Mᵀ g to the gradients. cotangents: of the state that ∂s/∂θ is of now."""
        _add(self.of.weights(), self.influence.back(cotangents))
        if len(self.begins):
            _add(self.begins, torch.einsum("bn,bnp->p", cotangents, self._begun))

    def _forward(self, call: Call, values: dict[str, Tensor]) -> None:
        pulled = self.of.jacobian(call, values, self._rows, self.shape.adjoint)  # [B, C, n]
        jacobian = pulled[:, self.shape.pattern.rows] * self._units
        self.influence.forward(jacobian, self.of.immediate(call, values, self._cotangents))
        if len(self.begins):
            self._begun = jacobian @ self._begun

    def restart(self, rows: Tensor) -> None:
        rows = rows.to(self._begun.device)
        self.influence.restart(rows)
        if len(self.begins):
            self._begun = torch.where(rows[:, None, None], self._start, self._begun)


class Unbiased:
    """∂s/∂θ ≈ s̃ θ̃ᵀ, of all rows together."""

    def __init__(self, derivatives: Derivatives, batch: int, generator: torch.Generator | None) -> None:
        self.of, self.generator = derivatives, generator
        like = derivatives.weights()[0]
        self.s, self.theta = like.new_zeros(batch, derivatives.n), like.new_zeros(derivatives.P)

    def learn(
        self, call: Call, values: dict[str, Tensor], states: Sequence[Tensor], after: Sequence[Tensor], loss: Tensor
    ) -> None:  # fmt: skip
        """As that of `Carried`."""
        by_way = self.of.flat(_cut_at([a for a in after if a.is_floating_point()], loss))
        past = self.of.flat(_or_zeros([s.grad for s in states], states))
        moved = self.of.along(call, values, self.s)
        gradient = ((past * self.s).sum() + (by_way * moved).sum()) * self.theta
        _add(self.of.weights(), gradient + self.of.back(call, values, by_way))
        signs = torch.randint(0, 2, self.s.shape, generator=self.generator).to(self.s) * 2 - 1
        more = self.of.back(call, values, signs)
        a = (self.theta.norm() / (moved.norm() + _TINY)).sqrt() + _TINY
        b = (more.norm() / (signs.norm() + _TINY)).sqrt() + _TINY
        self.s, self.theta = a * moved + b * signs, self.theta / a + more / b

    def restart(self, rows: Tensor) -> None:
        self.s[rows.to(self.s.device)] = 0


class Fixed:
    """Nothing: no weight of the cell learns, as in a reservoir. What the loss itself holds does, a readout."""

    def __init__(self, derivatives: Derivatives) -> None:
        self.of = derivatives

    def learn(
        self, call: Call, values: dict[str, Tensor], states: Sequence[Tensor], after: Sequence[Tensor], loss: Tensor
    ) -> None:  # fmt: skip
        """As that of `Carried`."""
        _cut_at([], loss)

    def restart(self, rows: Tensor) -> None:
        """There is nothing to forget."""


def _or_zeros(gradients: Sequence[Tensor | None], states: Sequence[Tensor]) -> list[Tensor]:
    pairs = zip(gradients, states, strict=True)
    return [torch.zeros_like(s) if g is None else g for g, s in pairs if s.is_floating_point()]


def _cut_at(values: Sequence[Tensor], loss: Tensor) -> list[Tensor]:
    """dL/d(values), each held fixed for the others; and `loss.backward()` for all that they are not on the way to."""
    gradients: dict[int, Tensor] = {}

    def cut(number: int) -> Callable[[Tensor], Tensor]:
        def caught(gradient: Tensor) -> Tensor:
            gradients[number] = gradient
            return torch.zeros_like(gradient)

        return caught

    numbers = {id(value): number for number, value in reversed([*enumerate(values)]) if value.requires_grad}
    handles = [values[number].register_hook(cut(number)) for number in numbers.values()]
    try:
        if loss.requires_grad:  # else the step has to do with nothing that is learnt
            loss.backward()
    finally:
        for handle in handles:
            handle.remove()
    return [gradients.get(number, torch.zeros_like(value)) for number, value in enumerate(values)]


def _add(weights: Sequence[Tensor], flat: Tensor) -> None:
    """Add parts of a flat gradient to the `.grad` of weights."""
    parts = flat.split([w.numel() for w in weights]) if len(weights) else ()
    for weight, part in zip(weights, parts, strict=True):
        gradient = part.view_as(weight)
        weight.grad = gradient.clone() if weight.grad is None else weight.grad.add_(gradient)
