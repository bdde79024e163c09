"""torch.compile together with torch.func, dual numbers and functional_call: the derivatives of a plain loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils.checkpoint import checkpoint

import elman
from elman import cells
from elman.errors import NotSupported
from elman.execute import operator
from tests import eager
from tests.cases import CASES
from tests.pairwise import with_more
from tests.recurrent.small import random

Tensor = torch.Tensor
Way = Callable[..., Tensor]  # (run, x, v) -> numbers; run(x, weights) is a layer's outputs
EXACT = {"rtol": 1e-10, "atol": 1e-10}


@pytest.fixture(autouse=True)
def compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def plain(**options: Any) -> elman.Recurrent:
    return elman.Recurrent(cells.Elman(3, 4).double(), **options)


def loss(run: Any) -> Any:
    return lambda x: run(x).square().sum()


def dual(run: Any, x: Tensor, v: Tensor) -> Tensor:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(run(forward_ad.make_dual(x, v))).tangent


def scaled(run: Any, by: float) -> dict[str, Tensor]:
    return {name: by * p.detach() for name, p in run.weights.items()}


def stacked(run: Any) -> dict[str, Tensor]:
    return {name: torch.stack([p, 2 * p]) for name, p in scaled(run, 1.0).items()}


WAYS: dict[str, Way] = {
    "jvp": lambda run, x, v: jvp(run, (x,), (v,))[1],
    "grad": lambda run, x, v: grad(loss(run))(x),
    "vjp": lambda run, x, v: vjp(run, x)[1](torch.ones(3, 2, 4, dtype=torch.float64))[0],
    "vmap": lambda run, x, v: vmap(run, in_dims=2, out_dims=1)(torch.stack([x, v], 2)),
    "jacfwd": lambda run, x, v: jacfwd(lambda x: run(x).sum(0))(x),
    "jacrev": lambda run, x, v: jacrev(lambda x: run(x).sum(0))(x),
    "hessian": lambda run, x, v: hessian(loss(run))(x),
    "jvp of grad": lambda run, x, v: jvp(grad(loss(run)), (x,), (v,))[1],
    "grad of jvp": lambda run, x, v: grad(lambda x: jvp(loss(run), (x,), (v,))[1])(x),
    "grad of grad": lambda run, x, v: grad(lambda x: (grad(loss(run))(x) * v).sum())(x),
    "gradients per example": lambda run, x, v: vmap(grad(loss(run)))(torch.stack([x, v])),
    "jvp in weights": lambda run, x, v: jvp(
        lambda weights: run(x, weights), (scaled(run, 1.0),), (scaled(run, 0.5),)
    )[1],
    "gradient in weights": lambda run, x, v: grad(lambda weights: run(x, weights).square().sum())(
        scaled(run, 1.0)
    )["W"],
    "vmap over weights": lambda run, x, v: vmap(lambda weights: run(x, weights))(stacked(run)),
    "dual numbers": dual,
    "jvp without gradients": lambda run, x, v: jvp(quiet(run), (x,), (v,))[1],
    "checkpoint": lambda run, x, v: checkpoint(run, x, use_reentrant=False),
}


def quiet(run: Any) -> Callable[[Tensor], Tensor]:
    """Without gradients; not by `no_grad` as a decorator, which Dynamo knows on plain functions alone."""

    def inner(x: Tensor) -> Tensor:
        with torch.no_grad():
            return run(x)

    return inner


class Run:
    """The outputs of a layer, or of a plain loop over its cell."""

    def __init__(self, rnn: elman.Recurrent, loop: bool) -> None:
        self.rnn, self.loop = rnn, loop
        self.weights = dict(rnn.cell.named_parameters())

    def __call__(self, x: Tensor, weights: dict[str, Tensor] | None = None) -> Tensor:
        if self.loop:
            start = torch.zeros(x.shape[1], 4, dtype=x.dtype)
            if weights is None:
                return eager.unroll(self.rnn.cell, x, start)[0]
            return functional_call(
                Loop(self.rnn.cell), {f"cell.{n}": w for n, w in weights.items()}, (x, start)
            )
        if weights is None:
            return self.rnn(x)[0]
        return functional_call(self.rnn, {f"cell.{n}": w for n, w in weights.items()}, (x,))[0]


class Loop(torch.nn.Module):
    def __init__(self, cell: torch.nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor, start: Tensor) -> Tensor:
        return eager.unroll(self.cell, x, start)[0]


def agrees(way: Way, **options: Any) -> None:
    rnn, x, v = plain(), random(3, 2, 3), random(3, 2, 3)
    run = Run(rnn, False)
    got = torch.compile(lambda x, v: way(run, x, v), **options)(x, v)
    torch.testing.assert_close(got, way(Run(rnn, True), x, v), **EXACT)


@pytest.mark.parametrize(
    "name",
    with_more(["vmap over weights"], [name for name in WAYS if name != "vmap over weights"]),
)
def test_inside(name: str) -> None:
    """Whole, as what a compiled graph runs ahead of time."""
    agrees(WAYS[name], fullgraph=True, backend="aot_eager")


@pytest.mark.parametrize(
    "name",
    with_more(["dual numbers"], [name for name in WAYS if name != "dual numbers"]),
)
def test_inside_what_is_only_traced(name: str) -> None:
    agrees(WAYS[name], fullgraph=True, backend="eager")


@pytest.mark.filterwarnings(
    "ignore:.torch._prims_common.check. is deprecated:FutureWarning"
)  # by what lowers it
@pytest.mark.conformance
@pytest.mark.slow
@pytest.mark.parametrize("name", WAYS)
def test_inside_by_inductor(name: str) -> None:
    agrees(WAYS[name], fullgraph=True, backend="inductor")


@pytest.mark.conformance  # sizes: tests/recurrent/test_compiled_pieces.py; a jvp: test_inside_what_is_only_traced
def test_inside_with_dynamic_sizes() -> None:
    """A jvp."""
    rnn = plain()
    fast = torch.compile(
        lambda x, v: jvp(lambda x: rnn(x)[0], (x,), (v,))[1],
        fullgraph=True,
        dynamic=True,
        backend="aot_eager",
    )
    for T, B in ((3, 2), (5, 4)):
        x, v = random(T, B, 3), random(T, B, 3)
        torch.testing.assert_close(fast(x, v), WAYS["jvp"](Run(rnn, True), x, v), **EXACT)


def lengths() -> Any:
    rnn, told = plain(), torch.tensor([3, 1])
    return lambda x: rnn(x, lengths=told)[0]


def bounded() -> Any:
    rnn = plain(memory="1 MB")
    return lambda x: rnn(x)[0]


def noisy() -> Any:
    rnn = elman.Recurrent(CASES["noisy_rnn"].make().double())
    return lambda x: rnn(torch.cat([x, x], -1)[..., :5], torch.ones(2, 7, dtype=x.dtype))[0]


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # Dynamo's own, at a break
@pytest.mark.parametrize("make", with_more([lengths], [bounded, noisy]))
def test_what_no_graph_holds_runs_outside_of_it(make: Any) -> None:
    run, x, v = make(), random(3, 2, 3), random(3, 2, 3)

    def way(x: Tensor) -> Tensor:
        return jvp(run, (x,), (v,))[1]

    found = []
    for f in (way, torch.compile(way, backend="aot_eager")):
        torch.manual_seed(5)
        found.append(f(x))
    torch.testing.assert_close(*found, **EXACT)
    assert found[0].any()
    with pytest.raises(Exception, match=r"not available under torch.compile\(fullgraph=True\)"):
        torch.compile(way, backend="eager", fullgraph=True)(x)


def test_dual_numbers_around_what_was_compiled_without() -> None:
    """Its graph knows nothing of them: it is not taken."""
    rnn, x, v = plain(), random(3, 2, 3), random(3, 2, 3)
    rnn.requires_grad_(False)

    def run(x: Tensor) -> Tensor:
        return rnn(x)[0]

    for options in ({}, {"fullgraph": True}):
        torch._dynamo.reset()
        fast = torch.compile(run, backend="aot_eager", **options)
        torch.testing.assert_close(fast(x), run(x), **EXACT)
        if not options:
            torch.testing.assert_close(dual(fast, x, v), dual(run, x, v), **EXACT)
        else:
            with pytest.raises(Exception, match="called with dual numbers"):
                dual(fast, x, v)
        torch.testing.assert_close(fast(x), run(x), **EXACT)


def test_a_transform_around_what_is_compiled() -> None:
    """Dynamo gives up on it, and then looks at frames of the library, which are none of its business."""
    rnn, x = plain(), random(3, 2, 3)
    fast = torch.compile(lambda x: rnn(x)[0], backend="aot_eager")
    torch._dynamo.utils.counters.clear()
    got = grad(loss(fast))(x)
    torch.testing.assert_close(got, grad(loss(lambda x: rnn(x)[0]))(x), **EXACT)
    assert torch._dynamo.utils.counters["frames"]["total"] < 30


def test_gradients_of_what_stands_in_for_frozen_parameters() -> None:
    rnn, x = plain(), random(3, 2, 3).requires_grad_()
    weights = {name: p.detach().clone().requires_grad_() for name, p in rnn.named_parameters()}
    rnn.requires_grad_(False)

    def run(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(rnn, weights, (x,))[0].square().sum()

    wanted = [x, *weights.values()]
    got = torch.autograd.grad(torch.compile(run, fullgraph=True, backend="aot_eager")(weights, x), wanted)
    for mine, right in zip(got, torch.autograd.grad(run(weights, x), wanted), strict=True):
        torch.testing.assert_close(mine, right, **EXACT)


@pytest.mark.parametrize("kind", ["run", "train", "bounded"])
def test_operators_refuse_dual_numbers(kind: str) -> None:
    rnn, x = plain(), random(3, 2, 3)
    rnn(x)
    assert rnn._calls.latest is not None
    program = rnn._calls.latest.program
    wants = frozenset(p.name for p in program.inputs if p.differentiable) if kind != "run" else frozenset()
    name = operator.register(program, wants, kind == "bounded")
    tensors = [
        random(*([3] if p.kind.name == "SEQUENCE" else []), *([2] if p.rows else []), *p.shape)
        for p in program.inputs
    ]
    rest = (name, 3, 2, None, "auto", None, 0, *([1 << 20] if kind == "bounded" else []))
    run = getattr(torch.ops.elman, kind)
    run(tensors, *rest)
    with forward_ad.dual_level(), pytest.raises(NotSupported, match="no dual numbers"):
        run([forward_ad.make_dual(t, t) for t in tensors], *rest)


@pytest.mark.conformance
def test_what_a_graph_calls_is_kept_by_its_layer() -> None:
    """A layer forgets plans for several examples that were not used lately; a compiled graph may still call them."""
    rnn, x = plain(), random(3, 2, 3)
    run = Run(rnn, False)

    def several(count: int) -> Tensor:
        weights = {name: torch.stack([p] * count) for name, p in scaled(run, 1.0).items()}
        return vmap(lambda weights: run(x, weights))(weights)

    fast = torch.compile(lambda: several(2), fullgraph=True, backend="aot_eager")
    right = fast()
    for count in range(3, 13):
        several(count)
    torch.testing.assert_close(fast(), right, **EXACT)
