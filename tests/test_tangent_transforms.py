"""Forward mode of `elman.Recurrent` in transforms of transforms: Jacobians, Hessians, dual numbers and backward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp
from torch.utils import _pytree as pytree

import elman
from tests.cases import CASES
from tests.pairwise import with_more
from tests.recurrent import compare, ragged
from tests.recurrent.along import directions, pushed
from tests.recurrent.compare import Inputs
from tests.recurrent.small import layer

Tensor = torch.Tensor


def both(name: str, **options: Any) -> tuple[Callable[..., Any], Callable[..., Any], tuple[Any, ...]]:
    """(ours, the loop, arguments): a loss of (x, state, weights)."""
    rnn, inputs = layer(name, **options), Inputs.of(CASES[name], 3, 2)
    weights = {name: value.detach() for name, value in rnn.cell.named_parameters()}
    x, state = pytree.tree_map(torch.Tensor.detach, (inputs.x, inputs.state))

    def run(which: Callable[..., Any]) -> Callable[..., Any]:
        def loss(x: Any, state: Any, weights: dict[str, Tensor]) -> Any:
            with torch.nn.utils.stateless._reparametrize_module(rnn.cell, weights):
                outputs, final = which(rnn, replace(inputs, x=x, state=state))
            return sum((leaf**2).sum() for leaf in pytree.tree_leaves((outputs, final)))

        return loss

    return run(compare.ours), run(compare.theirs), (x, state, weights)


def same(got: Any, expected: Any) -> None:
    for mine, theirs in zip(pytree.tree_leaves(got), pytree.tree_leaves(expected), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


TRANSFORMS: dict[str, Callable[..., Any]] = {
    "jacfwd": lambda f: jacfwd(f, argnums=2),
    "hessian": lambda f: hessian(f, argnums=0),
    "mixed": lambda f: jacfwd(jacrev(f, argnums=2), argnums=1),
    "reverse over forward": lambda f: jacrev(jacfwd(f, argnums=1), argnums=0),
    "forward over forward": lambda f: jacfwd(jacfwd(f, argnums=1), argnums=1),
    "Hessian-vector product": lambda f: (
        lambda *args: jvp(lambda x: grad(f)(x, *args[1:]), args[:1], (torch.ones_like(args[0]),))
    ),
}


@pytest.mark.grid(1)
@pytest.mark.parametrize("engine", ["reference", "native"])
@pytest.mark.parametrize(  # "mixed" is the Hessian's way
    "transform", with_more([name for name in TRANSFORMS if name != "mixed"], ["mixed"])
)
def test_transforms(transform: str, engine: str) -> None:
    ours, theirs, args = both("elman", engine=engine)
    same(TRANSFORMS[transform](ours)(*args), TRANSFORMS[transform](theirs)(*args))


def in_letters(x: Tensor, shape: Any, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Layer norm, whose higher derivatives PyTorch has wrong (tests/test_second_derivatives.py)."""
    apart = x - x.mean(-1, keepdim=True)
    return apart / (apart.square().mean(-1, keepdim=True) + eps).sqrt() * weight + bias


@pytest.mark.conformance
@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
@pytest.mark.parametrize("name", ["lstm", "layer_norm_rnn", "jordan"])
def test_transforms_of_more_cells(name: str, transform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs, args = both(name)
    got = TRANSFORMS[transform](ours)(*args)
    monkeypatch.setattr(nn.functional, "layer_norm", in_letters)
    same(got, TRANSFORMS[transform](theirs)(*args))


@pytest.mark.parametrize("cut", [(), ("lengths",), ("lengths", "mask", "reset")], ids=" ".join)
def test_dual_numbers_and_backward(cut: tuple[str, ...]) -> None:
    """Reverse over forward and forward over reverse, by PyTorch's own dual numbers."""
    rnn, inputs, told = layer("elman"), Inputs.of(CASES["elman"], 6, 4), ragged.said(6, 4)
    where, said = (ragged if cut else compare), {key: told[key] for key in cut}
    way, weights = directions(rnn, inputs), compare.wanted_of(rnn, inputs)
    over = [
        compare.gradients(pushed(run, rnn, inputs, way, training=True, **said), weights)
        for run in (where.ours, where.theirs)
    ]
    compare.assert_equal(*over)
    found = []
    for run in (where.ours, where.theirs):
        with forward_ad.dual_level():
            x = forward_ad.make_dual(inputs.x.detach().requires_grad_(), way["x"])
            outputs, _ = run(rnn, replace(inputs, x=x), **said)
            (gradient,) = torch.autograd.grad(outputs.pow(2).sum(), x)
            found.append(forward_ad.unpack_dual(gradient).tangent)
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("memory", [None, elman.Segments(2)], ids=str)
def test_a_direction_of_a_cotangent(memory: Any) -> None:
    """What comes back along it is the gradient, which is linear in the cotangent."""
    rnn, inputs = layer("elman", memory=memory), Inputs.of(CASES["elman"], 4, 3)
    outputs, _ = compare.ours(rnn, inputs)
    g, way = torch.randn_like(outputs), torch.randn_like(outputs)
    (expected,) = torch.autograd.grad(outputs, inputs.x, way, retain_graph=True)
    with forward_ad.dual_level():
        (found,) = torch.autograd.grad(outputs, inputs.x, forward_ad.make_dual(g, way))
        torch.testing.assert_close(forward_ad.unpack_dual(found).tangent, expected)
