"""Dropout between layers: a share of numbers is left out, the same ones in every derivative."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from elman import noise
from elman.recurrent.dropout import fresh

Tensor = torch.Tensor
DTYPES = (torch.float32, torch.float64)
P = 0.3


def left_out(x: Tensor, p: float = P) -> tuple[Tensor, Tensor]:
    """(what comes out, m / (1 - p)) of the numbers of now."""
    state = torch.get_rng_state()
    mask = fresh(torch.ones_like(x), p).detach()
    torch.set_rng_state(state)
    return fresh(x, p), mask


@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16])
def test_a_share_is_left_out_and_the_rest_made_larger(dtype: torch.dtype) -> None:
    x = torch.randn(100, 1001, dtype=dtype)
    out, mask = left_out(x)
    torch.testing.assert_close(out, x * mask)
    values, counts = mask.unique(return_counts=True)
    assert values.tolist() == [0, torch.tensor(1 / (1 - P), dtype=dtype)]
    assert abs(float(counts[0]) / x.numel() - P) < 5 * (P * (1 - P) / x.numel()) ** 0.5
    again, more = left_out(x)
    assert abs(float((mask * more).double().mean()) - 1) < 0.05  # which ones, the next time does not hang on
    assert not torch.equal(again, out)


def test_all_or_nothing_is_left_out() -> None:
    x = torch.tensor([1.0, -2.0, torch.inf, torch.nan])
    for p in (0.0, 1.0):
        torch.testing.assert_close(
            fresh(x, p), torch.nn.functional.dropout(x, p), equal_nan=True, rtol=0, atol=0
        )


def test_it_hangs_on_the_generator_alone() -> None:
    x, one, other = torch.ones(7, 300), torch.Generator(), torch.Generator()
    one.manual_seed(3), other.manual_seed(3)
    assert torch.equal(fresh(x, P, one), fresh(x, P, other))
    assert torch.equal(fresh(x.T, P, one), fresh(x.T.contiguous(), P, other))
    torch.manual_seed(3)
    first = fresh(x, P)
    torch.manual_seed(3)
    assert torch.equal(fresh(x, P), first)


def test_a_tensor_whose_memory_has_the_other_sign() -> None:
    x = torch.randn(50, requires_grad=True)
    y, mask = left_out(x)
    torch.testing.assert_close(torch.autograd.grad(y, x, torch._neg_view(mask))[0], -mask.square())
    out, mask = left_out(torch._neg_view(x.detach()))
    torch.testing.assert_close(out, -x.detach() * mask)


def _each(y: Tensor, x: Tensor, g: Tensor) -> Tensor:
    return torch.autograd.grad(y, x, g, retain_graph=True)[0]


# How many may ask for the gradient of two cotangents at once.
BATCHES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "one after the other": lambda y, x, g: torch.stack([_each(y, x, one) for one in g]),
    "is_grads_batched": lambda y, x, g: torch.autograd.grad(y, x, g, is_grads_batched=True)[0],
    "vmap": lambda y, x, g: torch.func.vmap(lambda one: _each(y, x, one))(g),
    "expanded": lambda y, x, g: torch.stack([_each(y, x, one[..., :1].expand(one.shape)) for one in g]),
}


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_its_gradient_is_what_was_left_out(dtype: torch.dtype, batch: str) -> None:
    x = torch.randn(5, 4, 33, dtype=dtype, requires_grad=True)
    y, mask = left_out(x)
    g = torch.randn(2, *x.shape, dtype=dtype)
    g = g[..., :1].expand(g.shape) if batch == "expanded" else g
    torch.testing.assert_close(BATCHES[batch](y, x, g), g * mask)


def test_its_second_derivative_too() -> None:
    x = torch.randn(4, 33, dtype=torch.float64, requires_grad=True)
    g = torch.randn(4, 33, dtype=torch.float64, requires_grad=True)
    y, mask = left_out(x)
    (first,) = torch.autograd.grad(y, x, g, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), g)
    torch.testing.assert_close(second, 2 * g * mask.square())


def test_a_transform_of_its_gradient() -> None:
    x, v = torch.randn(4, 33, requires_grad=True), torch.randn(4, 33)
    y, mask = left_out(x)

    def length(g: Tensor) -> Tensor:
        return torch.autograd.grad(y, x, g, retain_graph=True, create_graph=True)[0].square().sum()

    torch.testing.assert_close(torch.func.grad(length)(v), 2 * v * mask.square())
    torch.testing.assert_close(torch.func.jvp(length, (v,), (v,))[1], 2 * (v * mask).square().sum())


def test_inside_a_transform_it_is_pytorchs_own() -> None:
    x, v = torch.randn(4, 33), torch.randn(4, 33)
    out, tangent = torch.func.jvp(lambda x: fresh(x, P), (x,), (v,))
    torch.testing.assert_close(tangent, torch.where(out == 0, 0.0, v / (1 - P)))
    many = torch.func.vmap(lambda x: fresh(x, P), randomness="different")(torch.ones(2, 500))
    assert not torch.equal(many[0], many[1])
    with pytest.raises(RuntimeError, match="randomness"):
        torch.func.vmap(lambda x: fresh(x, P))(torch.ones(2, 500))


def test_every_instruction_set_and_number_of_threads_leaves_out_the_same() -> None:
    native = pytest.importorskip("elman._native")
    for dtype in DTYPES:
        x = torch.ones(100_003, dtype=dtype)
        whole = noise.drop(x, P, 5)
        for isa in native.instruction_sets():
            for threads in (1, 3):
                made = torch.empty_like(x)
                native.drop(x, made, dtype is torch.float64, noise._mix(5, 0, 0), len(x), P, threads, isa)
                assert torch.equal(made, whole), (isa, threads)
