"""What the loss of a step says: its gradient by the state after the step, and by the state before it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from elman import noise
from elman.circuit.structure import Structure, fill, flatten
from elman.errors import InputError, InputTypeError
from elman.trace.call import call_cell, understand

Tensor = torch.Tensor
Loss = Callable[[Any, Any], Tensor]


class Signal(NamedTuple):
    """loss: of the step. after: the state after it, by tensor. now: dL/ds(t), of the parts that can change a little.
    past: dL/ds(t-1) of the same, in what does not go by way of s(t); None where nothing does not.

    What is no gradient of the state is in `.grad` already.
    """

    loss: Tensor
    after: list[Tensor]
    now: list[Tensor]
    past: list[Tensor] | None


def of_the_state(
    after: Sequence[Tensor], output: Structure, shown: Sequence[int], loss_fn: Loss, target: Any
) -> Signal:
    """Where the loss sees the state after the step alone. shown: for each tensor of the output, which part it is."""
    leaves = [a.detach().requires_grad_(a.is_floating_point()) for a in after]
    loss = _loss(fill(output, [leaves[i] for i in shown]), target, loss_fn)
    if loss.requires_grad:  # else the step has to do with nothing that is learnt
        loss.backward()
    return Signal(loss.detach(), [*after], [_gradient(a) for a in leaves if a.requires_grad], None)


def through_the_cell(
    cell: torch.nn.Module, x: Any, states: Sequence[Tensor], structure: Structure, context: Any,
    drawn: Sequence[Tensor], loss_fn: Loss, target: Any,
) -> Signal:  # fmt: skip
    """Where the output is more than the state, or x learns: the cell itself runs. drawn: its random numbers."""
    before = [s.detach().requires_grad_(s.is_floating_point()) for s in states]
    with torch.enable_grad(), noise.Replay([n[0] for n in drawn]) if drawn else contextlib.nullcontext():
        returned = call_cell(cell, x, fill(structure, before), context, context is not None)
    output, state = understand(returned, structure, type(cell).__name__)
    after = flatten(state, "state")[0]
    loss = _loss(output, target, loss_fn)
    now = _cut_at([a for a in after if a.is_floating_point()], loss)
    past = [_gradient(s) for s in before if s.requires_grad]
    return Signal(loss.detach(), [a.detach() for a in after], now, past)


def _loss(output: Any, target: Any, loss_fn: Loss) -> Tensor:
    with torch.enable_grad():
        loss = loss_fn(output, target)
    if not isinstance(loss, Tensor) or loss.dim() != 0:
        raise InputTypeError(
            what="loss_fn returns one number", where="loss_fn",
            got=f"shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__,
            mend="take its mean or its sum",
        )  # fmt: skip
    if not loss.requires_grad and any(t.requires_grad for t in flatten(output, "output")[0]):
        raise InputError(
            what="the loss carries no gradient, though the output does", where="loss_fn",
            mend="compute it from the output without detach(), item() and no_grad()",
        )  # fmt: skip
    return loss


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
        if loss.requires_grad:
            loss.backward()
    finally:
        for handle in handles:
            handle.remove()
    return [gradients.get(number, torch.zeros_like(value)) for number, value in enumerate(values)]


def _gradient(value: Tensor) -> Tensor:
    return torch.zeros_like(value) if value.grad is None else value.grad
