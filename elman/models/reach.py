"""How far back a model learns."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from elman.models.evaluating import evaluating

WARM = 64  # steps that make the first state that is looked at


def reach(model: Any, tokens: Any, *, back: int = 64, lanes: int = 8) -> list[float]:
    """‖∂L(t)/∂h(t-k)‖ for k = 1, …, back: how much the loss of one step still hangs on the state k steps before it.

    h is all of the model's state together, every layer's. The mean over `lanes` places of the text, evenly spread.
    What falls fast is forgotten fast: beyond the k where the norm is nothing, no window of training teaches anything.

    tokens: [N]. A text too short for `back` steps and as many to warm up gives fewer; [] if there is no room for one.
    """
    total = len(tokens) - 1
    back = min(back, total - 1)
    if back < 1:
        return []
    warm = min(WARM, total - back)
    room = total - (warm + back)  # the last place to begin at
    starts = sorted({room * lane // max(lanes - 1, 1) for lane in range(lanes)})
    device = next(model.parameters()).device
    with evaluating(model):
        norms = [_norms(model, tokens[at : at + warm + back + 1].to(device), warm) for at in starts]
    return [sum(norm[k] for norm in norms) / len(norms) for k in range(back)]


def _norms(model: Any, part: Tensor, warm: int) -> list[float]:
    """For one place. part: [warm + back + 1]; windows of one step, so that each state in between is at hand."""
    x, y = part[:-1, None], part[1:, None]
    with torch.no_grad():
        _, state = model.loss(x[:warm], y[:warm], None)
    with torch.enable_grad():
        state = pytree.tree_map(lambda leaf: leaf.detach().requires_grad_() if _smooth(leaf) else leaf, state)
        states, loss = [], torch.zeros(())
        for t in range(warm, len(x)):
            states.append([leaf for leaf in pytree.tree_leaves(state) if _smooth(leaf)])
            loss, state = model.loss(x[t : t + 1], y[t : t + 1], state)
        leaves = [leaf for leaves in states for leaf in leaves]
        gradients = iter(torch.autograd.grad(loss, leaves, allow_unused=True))
    norms = []
    for leaves in states:
        parts = [gradient for _ in leaves if (gradient := next(gradients)) is not None]
        norms.append(sum(float(part.double().square().sum()) for part in parts) ** 0.5)
    return norms[::-1]


def _smooth(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()
