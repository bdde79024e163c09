"""Every operation that the native engine has, in a loop of its own: what it gives is what PyTorch gives, to the NaN."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from elman.engines.native import why_not_built
from elman.engines.native.lower import lower
from elman.engines.reference import Reference
from elman.execute.program import Program
from elman.plan.form import Loop
from elman.trace import trace
from tests.engines.loops import CPU, Given, given
from tests.engines.test_native import ENGINES, assert_same
from tests.pairwise import with_more

pytestmark = pytest.mark.skipif(why_not_built() is not None, reason=f"native engine: {why_not_built()}")

Tensor = torch.Tensor
Function = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
REFERENCE = Reference()
H = 19  # two vectors and a bit
PLACES = torch.tensor([3, -1, 0, 3, 7])

# Of x and h (real), n (whole numbers from 0 to 6), b (true or false), v (a parameter), all [B, H] but v, [H].
FUNCTIONS: dict[str, Function] = {
    # one argument
    "reciprocal": lambda x, h, n, b, v: (2 + h).reciprocal(),
    "floor, ceil": lambda x, h, n, b, v: torch.floor(3 * h) - torch.ceil(5 * h),
    "trunc, round": lambda x, h, n, b, v: torch.trunc(3 * h) - torch.round(4 * x + h),
    "sign": lambda x, h, n, b, v: torch.sign(h) + torch.sign(x - h),
    "sqrt, rsqrt": lambda x, h, n, b, v: (1 + h).sqrt() * (1.5 + h).rsqrt(),
    "logarithms": lambda x, h, n, b, v: (1.5 + h).log() + h.log1p() - h.expm1(),
    "logarithms of what has none": lambda x, h, n, b, v: (h * (h > 0)).log() + (-h).sqrt(),
    "waves": lambda x, h, n, b, v: torch.sin(3 * h) + torch.cos(x * h) - torch.atan(4 * h) * torch.erf(h),
    # two and three
    "atan2": lambda x, h, n, b, v: torch.atan2(h, x),
    "remainder": lambda x, h, n, b, v: (
        torch.remainder(3 * h, x) + torch.remainder(h, 0.7) - torch.fmod(3 * h, x) + torch.fmod(h, 0.7)
    ),
    "division": lambda x, h, n, b, v: (
        torch.div(3 * h, 0.7, rounding_mode="floor") + torch.div(h, x, rounding_mode="trunc")
    ),
    "powers": lambda x, h, n, b, v: (
        h**2 + h**3 - (2 + h) ** -0.5 + (2 + h) ** 1.7 + (2 + h) ** x + 2**h + (2 + h) ** -1
    ),
    "sides of a difference": lambda x, h, n, b, v: (
        (1 - h) * (h - 2) - torch.rsub(h, x, alpha=2) + torch.add(x, h, alpha=3)
    ),
    "lerp": lambda x, h, n, b, v: torch.lerp(x, h, h) + torch.lerp(h, x, 0.3) - torch.lerp(h, x, 0.8),
    "products and sums": lambda x, h, n, b, v: (x * h + v) + (x - h * v) + (h * h - x) + (x + -h),
    "addcmul, addcdiv": lambda x, h, n, b, v: (
        torch.addcmul(x, h, v, value=0.3) + torch.addcdiv(x, h, 2 + x * x, value=2)
    ),
    "clamps": lambda x, h, n, b, v: (
        h.clamp(-0.2, 0.3) + (x + h).clamp_min(0.1) - (x - h).clamp_max(0.1) + h.clamp(-v.abs(), v.abs())
    ),
    "extremes of two": lambda x, h, n, b, v: (
        torch.maximum(x, h) * torch.minimum(h, v) + torch.maximum(h, (-h).sqrt())
    ),
    # activations
    "rectifiers": lambda x, h, n, b, v: (
        F.relu(h) + F.leaky_relu(h - x, 0.2) - F.relu6(8 * h) + F.threshold(x + h, 0.1, 0.0)
    ),
    "prelu, elu": lambda x, h, n, b, v: F.prelu(h, v) + F.elu(h, 1.3) - F.selu(h + x) + F.celu(h, 0.7),
    "gates": lambda x, h, n, b, v: torch.sigmoid(3 * h) * torch.tanh(x + h) - torch.exp(h),
    "smooth": lambda x, h, n, b, v: F.silu(h) + F.mish(h - x) - F.gelu(h) + F.gelu(x + h, approximate="tanh"),
    "softplus": lambda x, h, n, b, v: F.softplus(h, beta=2, threshold=1) + F.softplus(3 * h) - F.logsigmoid(2 * h),
    "hard": lambda x, h, n, b, v: F.hardsigmoid(4 * h) + F.hardswish(4 * h) - F.hardtanh(2 * h, -0.5, 0.7),
    # true and false
    "comparisons": lambda x, h, n, b, v: (h < x) & (h >= -x) | ((h <= v) ^ (x > v)) | (h == -1) & (h != 0),
    "NaN": lambda x, h, n, b, v: torch.isnan((-h).sqrt()) | (h != h),
    "logic": lambda x, h, n, b, v: (
        torch.logical_xor(b, h > 0) & ~torch.logical_or(b, n > 3) | torch.logical_and(b, h.bool())
    ),
    "equal truths": lambda x, h, n, b, v: (b == (h > 0)) ^ (b != (n > 2)),
    "truths in another order": lambda x, h, n, b, v: torch.cat([b[:, 5:], (h > x)[:, :5]], 1).flip(1),
    "choices": lambda x, h, n, b, v: torch.where(b, h, x) + torch.where(torch.where(b, h > 0, x > 0), 1.0, v),
    "chosen numbers": lambda x, h, n, b, v: torch.where(b, n, n.flip(1)) - torch.where(h > 0, 3, n),
    "masked": lambda x, h, n, b, v: h.masked_fill(b, 0.25) + x.masked_fill(n.bool(), -1),
    "any, all": lambda x, h, n, b, v: (
        b.any(1, keepdim=True) & ~(h > -0.95).all(1, keepdim=True) | (n > 5).any(1, keepdim=True)
    ),
    # whole numbers
    "whole sums": lambda x, h, n, b, v: 3 * n - n.flip(1) * n + (-n) + (n - 4).abs(),
    "whole quotients": lambda x, h, n, b, v: (
        (n - 3) // 2 + torch.remainder(n - 3, -4) + (5 * n - 11) // (n.flip(1) * 2 - 7)
    ),
    "whole extremes": lambda x, h, n, b, v: torch.maximum(n, n.flip(1)) - torch.minimum(n, n.roll(2, 1)),
    "whole comparisons": lambda x, h, n, b, v: (
        (n < n.flip(1)) ^ (n >= 3) | (n <= 1) & (n > n.roll(1, 1)) | (n == 2) ^ (n != n.flip(1))
    ),
    "types": lambda x, h, n, b, v: n.to(h.dtype) / 3 + b.to(h.dtype) + (n * b.long()) * h + (5 * h).long(),
    # along features
    "sums": lambda x, h, n, b, v: (
        h.sum(1, keepdim=True) + h.view(-1, 1, 19).mean((1, 2)).unsqueeze(1) * (h * x).sum(1, True)
    ),
    "strided sums": lambda x, h, n, b, v: (
        h[:, :18].reshape(-1, 6, 3).sum(1) - h[:, :18].view(-1, 6, 3).flip(1).prod(1)
    ),
    "products along": lambda x, h, n, b, v: (h + 1.1).prod(1, keepdim=True),
    "largest, smallest": lambda x, h, n, b, v: (
        h.amax(1, True) * x - (h * x).amin(1, True) + h.view(-1, 19, 1).amax((1, 2)).unsqueeze(1)
    ),
    "largest of NaN": lambda x, h, n, b, v: (
        torch.cat([h.sqrt().amax(1, True), (1 + h).log().amin(1, True), h.amax(1, True)], 1)
    ),
    "where the largest is": lambda x, h, n, b, v: (
        h.argmax(1, True) - (h * x).argmin(1, True) + torch.round(h).argmax(1, True) + h.sqrt().argmax(1, True)
    ),
    "the smallest and where": lambda x, h, n, b, v: (
        h.min(1, True)[0] * h.min(1, True)[1] + torch.round(2 * h).max(1)[1].unsqueeze(1)
    ),
    "cumsum": lambda x, h, n, b, v: h.cumsum(1) - h.flip(1).cumsum(1) * 0.1,
    "softmax": lambda x, h, n, b, v: (
        torch.softmax(100 * h, 1).detach() + torch.softmax(h[:, :18].view(-1, 6, 3), 1).reshape(-1, 18).sum(1, True)
    ),
    "log_softmax": lambda x, h, n, b, v: F.log_softmax(200 * h, 1) * 0.01 + F.log_softmax(h, 1) * x,
    "logsumexp": lambda x, h, n, b, v: (
        torch.logsumexp(200 * h, 1, True) / 100 + torch.logsumexp((h > 2).to(h) .log(), 1, True).exp()
    ),
    "spread": lambda x, h, n, b, v: torch.var(h, 1, keepdim=True) + torch.std(h, 1, correction=0, keepdim=True) * x,
    "lengths": lambda x, h, n, b, v: (
        h.norm(dim=1, keepdim=True) + h.norm(1, dim=1, keepdim=True) - h.norm(math.inf, dim=1, keepdim=True)
    ),
    "layer norm": lambda x, h, n, b, v: F.layer_norm(h, (19,), v, v + 1, 0.5),
    "layer norm, plain": lambda x, h, n, b, v: (
        F.layer_norm(h, (19,)) * 0.2 + F.layer_norm(h[:, ::2], (10,), None, v[:10]).sum(1, True)
    ),
    "group norm": lambda x, h, n, b, v: F.group_norm(h[:, :18].view(-1, 6, 3), 2, v[:6], v[6:12]) * x[:, :1, None],
    "moments": lambda x, h, n, b, v: (
        x * torch.native_layer_norm(3 * h, [19], None, None, 0.1)[1] + torch.native_layer_norm(h, [19], v, v, 0.1)[2]
    ),
    # addresses
    "pieces": lambda x, h, n, b, v: torch.cat([h[:, 3:10], x[:, ::4], h.flip(1)[:, 2:9]], 1),
    "stacks": lambda x, h, n, b, v: torch.stack([h, x * h], 2).reshape(-1, 38).roll(5, 1),
    "repeats": lambda x, h, n, b, v: (
        h[:, :6].repeat(1, 3) * h[:, :1].expand(-1, 18) + h[:, :6].view(-1, 2, 3).repeat(1, 3, 1).view(-1, 18)
    ),
    "pads": lambda x, h, n, b, v: F.pad(h, (2, 3), value=0.7)[:, 1:20] + F.pad(h, (-2, 2)),
    "long and turned": lambda x, h, n, b, v: (
        (h.unsqueeze(2) * h.flip(1).unsqueeze(1)).transpose(1, 2).reshape(-1, 361).flip(1) * 0.1
    ),
    "four dimensions in two orders": lambda x, h, n, b, v: (
        h[:, :16].view(-1, 2, 2, 2, 2).permute(0, 4, 3, 2, 1) * (x[:, :16] - 0.3).view(-1, 2, 2, 2, 2)
    ),
    "written pieces": lambda x, h, n, b, v: (
        torch.slice_scatter(h, x[:, :4] * h[:, 4:8], 1, 2, 10, 2) + torch.select_scatter(h, h[:, 0] * 2, 1, 5)
    ),
    # indices
    "gather": lambda x, h, n, b, v: h.gather(1, n) * h.gather(1, n.flip(1)[:, :1]),
    "places from behind": lambda x, h, n, b, v: h[:, PLACES] * x[:, :5] + h.index_select(1, PLACES.abs()),
    "scatter": lambda x, h, n, b, v: h.scatter(1, n[:, :1], 0.7) + x.scatter(1, n[:, 3:4], h[:, :1]),
    "scatter_add": lambda x, h, n, b, v: (
        torch.scatter_add(x, 1, n, h) + x.index_add(1, PLACES.abs(), h[:, :5], alpha=2)
    ),
    "whole numbers at places": lambda x, h, n, b, v: (
        n.gather(1, n) + n.scatter(1, n[:, :1], 5) + torch.scatter_add(n, 1, n[:, :3], n[:, 3:6])
    ),
    "written places": lambda x, h, n, b, v: torch.index_add(h, 1, PLACES.abs(), h[:, 5:10]),
    "tables": lambda x, h, n, b, v: (
        F.embedding(n, torch.stack([v, v * v, v.sin(), v.cos(), -v, v + 1, v - 1])).sum(1)
    ),
    # products
    "products": lambda x, h, n, b, v: (
        torch.bmm(h[:, :18].view(-1, 3, 6), (x * h)[:, 1:].reshape(-1, 6, 3)).reshape(-1, 9)
    ),
    "turned products": lambda x, h, n, b, v: (
        torch.bmm(h[:, :18].view(-1, 6, 3).transpose(1, 2), h[:, :18].view(-1, 3, 6).transpose(1, 2)).reshape(-1, 9)
    ),
    "outer products": lambda x, h, n, b, v: (
        torch.baddbmm(x.unsqueeze(1) * h.unsqueeze(2), h.unsqueeze(2), x.unsqueeze(1), beta=0.3, alpha=2).sum(2)
    ),
    "a convolution to one place": lambda x, h, n, b, v: (
        F.conv1d(h[:, :6].view(-1, 2, 3), v[:12].view(2, 2, 3), v[12:14]).tanh()
    ),
    "scaled products": lambda x, h, n, b, v: torch.addmm(x, h, torch.outer(v, v), beta=0.5, alpha=0.1),
    "product from the left": lambda x, h, n, b, v: (
        torch.matmul(v[:12].view(4, 3), h[:, :18].view(-1, 3, 6)).reshape(-1, 24)
    ),
}  # fmt: skip


# What gives NaN or infinity somewhere, in its gradient too, would hide what others in the same loop give.
ALONE = (
    "sqrt, rsqrt", "logarithms", "logarithms of what has none", "waves", "remainder", "division", "addcmul, addcdiv",
    "extremes of two", "largest, smallest", "largest of NaN", "spread", "lengths",
)  # fmt: skip


# Tests of their own: tests/engines/test_special_values.py has each of these rules, so `make conformance` is enough.
ARITHMETIC = {
    "reciprocal", "floor, ceil", "trunc, round", "sign", "sqrt, rsqrt", "logarithms", "logarithms of what has none",
    "waves", "atan2", "remainder", "division", "powers", "sides of a difference", "lerp",
    "addcmul, addcdiv", "clamps", "rectifiers", "prelu, elu", "gates", "smooth", "softplus", "hard",
    "comparisons", "NaN", "logic", "choices", "masked", "whole sums", "whole quotients", "whole extremes",
    "whole comparisons", "cumsum", "spread", "products along", "where the largest is", "logsumexp", "log_softmax",
    "lengths", "largest, smallest", "largest of NaN", "extremes of two", "layer norm, plain",
}  # fmt: skip

# Cells of tests/cases.py show these, tests/engines/test_special_values.py or test_lookups.py.
ELSEWHERE = {
    "equal truths", "sums", "layer norm", "group norm", "stacks", "pads", "gather", "written places",
}  # fmt: skip
SELDOM = ARITHMETIC | ELSEWHERE


def groups(size: int = 7) -> list[tuple[str, ...]]:
    """Names of functions for one loop: one trace is cheaper than seven."""
    others = [name for name in FUNCTIONS if name not in ALONE]
    often, rest = ([name for name in others if (name in SELDOM) == seldom] for seldom in (False, True))
    several = [tuple(some[i : i + size]) for some in (often, rest) for i in range(0, len(some), size)]
    return [(name,) for name in ALONE] + several


class Holding(nn.Module):
    """A state (h, n, b) that meets each function's result at every step, whatever shape and type that has."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self.functions = [FUNCTIONS[name] for name in names]
        self.v = nn.Parameter(torch.linspace(-0.9, 1.1, H))

    def forward(
        self, x: Tensor, state: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        h, n, b = state
        outputs, met = tuple(function(x, h, n, b, self.v) for function in self.functions), x - 0.5 * h
        for made in outputs:
            real = made.to(h.dtype)
            real = torch.where(real == real, real, 0.1).clamp(-2, 2)
            met = met + 0.4 * real.mean(list(range(1, real.dim())), keepdim=True).reshape(-1, 1)
        h = torch.tanh(met)
        return outputs, (h, torch.remainder(n + 3 * (h > 0).long(), 7), h > x)


@functools.cache
def loops(names: tuple[str, ...], dtype: torch.dtype) -> dict[str, Loop]:
    cell = Holding(names).to(dtype)
    x = torch.ones(2, H, dtype=dtype)
    state = (x.clone(), torch.zeros(2, H, dtype=torch.int64), torch.zeros(2, H, dtype=torch.bool))
    program = Program(trace(cell, x, state, check=False))
    training = program.training(frozenset(p.name for p in program.inputs if p.differentiable))
    plans = {"inference": program.plan, "forward": training.forward, "backward": training.backward}
    return {what: plan.loop for what, plan in plans.items() if plan.loop is not None}


def values(loop: Loop, sizes: list[int]) -> Given:
    """Of both signs, with zeros and ties among them."""
    at, g = given(loop, sizes), torch.Generator().manual_seed(2)
    for name, value in at.values.items():
        if value.dtype.is_floating_point and name not in loop.constants:
            drawn = torch.randn(value.shape, generator=g, dtype=torch.float64)
            drawn = torch.where(torch.rand(value.shape, generator=g) < 0.1, drawn.round(), drawn)
            at.values[name] = drawn.tanh().to(value.dtype)
        elif name in loop.constants and value.shape == PLACES.shape:  # the places, or what they were made to
            at.values[name] = PLACES if name.startswith("captured") else PLACES.abs()
        elif value.dtype == torch.int64 and any(state.name == name for state in loop.states):
            at.values[name] = torch.randint(0, 7, value.shape, generator=g)
    return at


@pytest.mark.parametrize("dtype", with_more([torch.float64], [torch.float32]), ids=str)
@pytest.mark.parametrize(
    "names",
    with_more(
        [names for names in groups() if not SELDOM.issuperset(names)],
        [names for names in groups() if SELDOM.issuperset(names)],
    ),
    ids="; ".join,
)
def test_operations(names: tuple[str, ...], dtype: torch.dtype) -> None:
    for what, loop in loops(names, dtype).items():
        at = values(loop, [9, 9, 4, 1])
        expected = at.run(REFERENCE)
        if len(names) > 1:
            assert all(value.isfinite().all() for value in expected.values()), "one of them belongs to ALONE"
        for native in ENGINES.values():
            assert native.supports(loop, CPU) is None, (what, native.supports(loop, CPU))
            assert_same(at.run(native), expected, 1e-10 if dtype == torch.float64 else 1e-4)


@pytest.mark.conformance  # it traces all of them in both precisions
def test_every_operation_is_run_by_some_test() -> None:
    from elman import _native

    met = {"fill", "product_bfloat16", "product_int8"}  # those of streams: tests/recurrent/test_stream.py
    for names in groups():
        for dtype in (torch.float32, torch.float64):
            for loop in loops(names, dtype).values():
                program = lower(loop, 16, 8)
                met |= {op.code for op in (*program.ops, *program.prepare)}
    assert sorted(set(_native.CODES) - met) == []
