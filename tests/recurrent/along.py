"""Directional derivatives of one call, by dual numbers: of `elman.Recurrent`, and of the loop over the same cell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.nn.utils.stateless import _reparametrize_module
from torch.utils import _pytree as pytree

import elman
from tests.recurrent.compare import Inputs, Named, flat, wanted_of

Tensor = torch.Tensor


def directions(rnn: elman.Recurrent, inputs: Inputs, among: tuple[str, ...] = (), seed: int = 3) -> Named:
    """A random direction for everything that wants a gradient, or for what is named alone."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(value.shape, generator=generator, dtype=value.dtype)
        for name, value in wanted_of(rnn, inputs).items()
        if not among or name in among
    }


def pushed(
    run: Callable[..., Any], rnn: elman.Recurrent, inputs: Inputs, way: Named, *, training: bool = False, **said: Any
) -> Named:  # fmt: skip
    """The directions in which the results of a call change; None for what does not.

    run: `ours` or `theirs` of `compare` or `ragged`. way: of `directions`; the teacher's is that of its name.
    training: what comes out has gradients; else the tangent alone is traced, and not its backward.
    """

    def dual(name: str, value: Any) -> Any:
        value = value if training or not isinstance(value, Tensor) else value.detach()
        along = way.get(name)
        return value if along is None else forward_ad.make_dual(value, along)

    def tree(name: str, values: Any) -> Any:
        return pytree.tree_map_with_path(lambda path, leaf: dual(name + pytree.keystr(path), leaf), values)

    with forward_ad.dual_level():
        along = {name: tree(name, getattr(inputs, name)) for name in ("x", "state", "context")}
        weights = {name: dual(name, value) for name, value in rnn.cell.named_parameters()}
        told = {name: dual(name, value) for name, value in said.items()}
        with _reparametrize_module(rnn.cell, weights):
            values = flat(*run(rnn, replace(inputs, **along), **told))
        return {n: v if v is None else forward_ad.unpack_dual(v).tangent for n, v in values.items()}
