"""One call of `elman.Recurrent` on sequences that are ragged, masked, cut, and its meaning in plain PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree

import elman
from tests import pieces
from tests.recurrent import compare
from tests.recurrent.compare import Inputs, Result

Tensor = torch.Tensor
Said = dict[str, Tensor]


def said(T: int, B: int, seed: int = 0) -> Said:
    """Lengths, a mask and resets; rows of every kind are among them if there are enough."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, T + 1, (B,), generator=generator)
    mask = torch.rand(T, B, generator=generator) < 0.7
    reset = torch.rand(T, B, generator=generator) < 0.3
    if B > 2:
        lengths[1], reset[0, 2], reset[-1, 2] = T, True, True
        mask[:, 0] = False
    return {"lengths": lengths, "mask": mask, "reset": reset}


def happens(T: int, B: int, lengths: Tensor | None = None, mask: Tensor | None = None, **_: Any) -> Tensor:
    """[T, B]: the steps that happen."""
    found = torch.ones(T, B, dtype=torch.bool)
    if lengths is not None:
        found &= torch.arange(T)[:, None] < lengths
    return found if mask is None else found & mask


def poisoned(x: Any, happening: Tensor) -> Any:
    """x with NaN, and indices that are none, in the steps that do not happen."""

    def leaf(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        value = value.detach().clone()
        value[~happening] = float("nan") if value.is_floating_point() else 10**6
        return value.requires_grad_(value.is_floating_point())

    return pytree.tree_map(leaf, x)


def initial(rnn: elman.Recurrent, state: Any) -> Any:
    """The cell's initial state for one row."""
    own = getattr(rnn.cell, "initial_state", None)
    if own is not None:
        return own(1)
    return pytree.tree_map(lambda s: torch.zeros_like(s[:1]) if isinstance(s, Tensor) else s, state)


def ours(rnn: elman.Recurrent, inputs: Inputs, seed: int = 5, **said: Any) -> tuple[Any, Any]:
    torch.manual_seed(seed)
    return rnn(inputs.x, inputs.state, steps=inputs.steps, context=inputs.context, **said)


def theirs(rnn: elman.Recurrent, inputs: Inputs, **said: Any) -> tuple[Any, Any]:
    return pieces.unroll(
        rnn.cell, inputs.x, inputs.state, initial=lambda: initial(rnn, inputs.state), steps=inputs.steps,
        context=inputs.context, reverse=rnn.reverse, **said,
    )  # fmt: skip


def both(rnn: elman.Recurrent, inputs: Inputs, **said: Any) -> tuple[Result, Result]:
    """(ours, theirs) with the gradients of parameters, inputs, and of teacher and weight if they want one."""
    wanted = compare.wanted_of(rnn, inputs)
    for name in ("teacher", "teacher_weight"):
        if isinstance(said.get(name), Tensor) and said[name].requires_grad:
            wanted[name] = said[name]
    made = []
    for run in (ours, theirs):
        values = compare.flat(*run(rnn, inputs, **said))
        made.append(Result(values, compare.gradients(values, wanted)))
    return made[0], made[1]


def agree(rnn: elman.Recurrent, inputs: Inputs, **said: Any) -> Result:
    """Assert that a call is what its definition says; return what it gave."""
    got, expected = both(rnn, inputs, **said)
    compare.assert_equal(got.values, expected.values)
    compare.assert_equal(got.gradients, expected.gradients)
    return got
