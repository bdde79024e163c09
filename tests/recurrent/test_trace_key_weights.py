"""Weights that change between two calls: by optimisers, `.data`, parametrizations and functional_call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call

import elman
from elman import cells
from tests import eager, zoo
from tests.cases import CASES
from tests.pairwise import with_more
from tests.recurrent.test_trace_key import EXACT, B, H, I, T, agrees, data

Tensor = torch.Tensor


def trained(
    optimiser: Callable[[Any], torch.optim.Optimizer], whole: bool, clip: bool = False
) -> dict[str, Tensor]:
    torch.manual_seed(3)
    cell = cells.GRU(I, H).double()
    rnn, how = elman.Recurrent(cell), optimiser(cell.parameters())
    for _ in range(6):
        x, h = data()
        how.zero_grad()
        outputs, final = rnn(x, h) if whole else eager.unroll(cell, x, h)
        (outputs.square().mean() + final.square().mean()).backward()
        if clip:
            norm = torch.nn.utils.clip_grad_norm_(cell.parameters(), 0.05)
            assert norm > 0.05
        how.step()
    return {name: p.detach() for name, p in cell.named_parameters()}


@pytest.mark.parametrize(
    "optimiser",
    [
        lambda p: torch.optim.AdamW(p, 0.05, fused=True),
        lambda p: torch.optim.Adam(p, 0.05, foreach=True),
        lambda p: torch.optim.SGD(p, 0.5, momentum=0.9),
    ],
    ids=["AdamW-fused", "Adam-foreach", "SGD"],
)
def test_training_is_that_of_the_eager_loop(optimiser: Callable[[Any], torch.optim.Optimizer]) -> None:
    torch.testing.assert_close(trained(optimiser, True), trained(optimiser, False), rtol=1e-8, atol=1e-8)


def test_training_with_clipped_gradients() -> None:
    def sgd(p: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(p, 0.5)

    torch.testing.assert_close(
        trained(sgd, True, clip=True), trained(sgd, False, clip=True), rtol=1e-9, atol=1e-9
    )


def test_gradients_do_not_share_memory() -> None:
    """b and c enter alike, so their gradients are equal; clipping in place must not happen twice."""
    rnn, (x, h) = elman.Recurrent(CASES["torch_rnn_tanh"].make().double()), data()
    y = x.clone().requires_grad_()
    k = h.clone().requires_grad_()
    rnn(y, k)[0].sum().backward()
    grads = {**{n: p.grad for n, p in rnn.cell.named_parameters()}, "x": y.grad, "h": k.grad}
    places = [g.untyped_storage().data_ptr() for g in grads.values()]
    assert len(set(places)) == len(places), list(grads)


class Sums(nn.Module):
    """Everything's gradient is the cotangent itself."""

    def forward(self, x: dict[str, Tensor], h: Tensor) -> Tensor:
        return h + x["a"] + x["b"]


def test_gradients_of_sums_do_not_share_memory() -> None:
    rnn = elman.Recurrent(Sums())
    x = {name: torch.randn(T, B, I, requires_grad=True) for name in "ab"}
    h = torch.randn(B, I, requires_grad=True)
    outputs, final = rnn(x, h)
    cotangent = torch.ones_like(outputs)
    torch.autograd.backward([outputs, final], [cotangent, torch.ones_like(final)])
    with torch.no_grad():
        x["a"].grad.zero_()
    assert x["b"].grad.any()
    assert cotangent.all()


def test_writes_that_autograd_does_not_see() -> None:
    rnn, (x, h) = elman.Recurrent(cells.Elman(I, H).double()), data()
    agrees(rnn, x, h)
    rnn.cell.W.data.mul_(0.5)
    agrees(rnn, x, h)
    rnn.cell.W.data = torch.randn(H, H, dtype=torch.float64) * 0.1
    agrees(rnn, x, h)
    rnn.cell.b.detach().numpy()[:] = 0.25
    agrees(rnn, x, h)
    vector = torch.nn.utils.parameters_to_vector(rnn.cell.parameters())
    torch.nn.utils.vector_to_parameters(vector * 0.9, rnn.cell.parameters())
    agrees(rnn, x, h)
    rnn.cell.U = nn.Parameter(torch.zeros(H, I, dtype=torch.float64))
    agrees(rnn, x, h)


def test_a_weight_that_another_layer_has_seen_in_another_size() -> None:
    cell = cells.Elman(I, H).double()
    layers = [elman.Recurrent(cell) for _ in range(2)]
    x, h = data()
    for rnn in layers * 3:
        rnn(x, h)[0].sum().backward()
    cell.U.data = torch.randn(H, I + 1, dtype=torch.float64)
    cell.zero_grad()
    wider = torch.randn(T, B, I + 1, dtype=torch.float64)
    for rnn in layers * 2:
        agrees(rnn, wider, h)
        rnn(wider, h)[0].sum().backward()


def test_weights_made_in_inference_mode() -> None:
    with torch.inference_mode():
        cell = cells.Elman(I, H).double()
    rnn, (x, h) = elman.Recurrent(cell), data()
    with torch.no_grad():
        for length in (T, T, T - 1):
            torch.testing.assert_close(rnn(x[:length], h), eager.unroll(cell, x[:length], h), **EXACT)
        rnn(x.float()[..., :1].expand(T, B, I).double(), h)
        rnn(x)  # bound anew


def test_functional_call(traces: list[str]) -> None:
    rnn, (x, h) = elman.Recurrent(cells.LSTM(I, H).double()), data()
    state = (h, h.flip(0))
    rnn(x, state)
    other = {name: (0.5 * p.detach()).requires_grad_() for name, p in rnn.named_parameters()}
    outputs, _ = functional_call(rnn, other, (x, state))
    got = torch.autograd.grad(outputs.square().sum(), list(other.values()))
    cell = cells.LSTM(I, H).double()
    cell.load_state_dict({name.removeprefix("cell."): value for name, value in other.items()})
    expected, _ = eager.unroll(cell, x, state)
    torch.testing.assert_close(outputs, expected, **EXACT)
    right = torch.autograd.grad(expected.square().sum(), list(cell.parameters()))
    for mine, loop in zip(got, right, strict=True):
        torch.testing.assert_close(mine, loop, **EXACT)
    assert len(traces) == 1
    mixed = {**other, "cell.W": (other["cell.W"] * 2)}  # a tensor with a history of its own
    functional_call(rnn, mixed, (x, state))[0].sum().backward()
    assert other["cell.W"].grad is not None


@pytest.mark.parametrize("name", with_more(["own"], ["orthogonal", "weight_norm"]))
def test_parametrizations(name: str) -> None:
    class Twice(nn.Module):
        def forward(self, W: Tensor) -> Tensor:
            return 0.5 * (W - W.t())

    cell = zoo.MGU(I, H).double()
    rnn, (x, h) = elman.Recurrent(cell), data()
    agrees(rnn, x, h)
    if name == "own":
        torch.nn.utils.parametrize.register_parametrization(cell.W_h, "weight", Twice())
    else:
        getattr(torch.nn.utils.parametrizations, name)(cell.W_h)
    before = agrees(rnn, x, h)
    with torch.no_grad():
        for p in cell.W_h.parameters():
            p.add_(0.1 * torch.randn_like(p))
    assert not torch.allclose(before, agrees(rnn, x, h))
    torch.nn.utils.parametrize.remove_parametrizations(cell.W_h, "weight")
    agrees(rnn, x, h)


def test_pruning_is_a_change_of_the_cell() -> None:
    """torch.nn.utils.prune computes the weight in a hook before every step, from a mask and what it was."""
    from torch.nn.utils import prune

    cell = zoo.MGU(I, H).double()
    rnn, (x, h) = elman.Recurrent(cell), data()
    agrees(rnn, x, h)
    prune.random_unstructured(cell.W_h, "weight", 0.5)
    agrees(rnn, x, h)
    prune.remove(cell.W_h, "weight")
    agrees(rnn, x, h)
