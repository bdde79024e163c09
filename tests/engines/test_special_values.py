"""Every native operation on every special number, in both precisions: value and gradient are PyTorch's.

`ROWS` has a function for every arithmetic rule of the engine (`elman.engines.native.rules`); a rule without one fails
here. PyTorch computes most elements a vector at a time and those that are left over one by one, and the two do not
always agree (at NaN above all): ours is what the vectors give, but for `ONE_BY_ONE`.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import platform
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._decomp import get_decompositions
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from elman.engines.native import Native, why_not_built
from elman.engines.native.rules import RULES
from elman.plan.form import Loop
from elman.trace.joint import APART
from elman.trace.normal import normalise
from elman.trace.record import record_anything, without_writes
from tests import pairwise
from tests.engines.loops import CPU, Given
from tests.engines.test_native import ENGINES

pytestmark = pytest.mark.skipif(why_not_built() is not None, reason=f"native engine: {why_not_built()}")

Tensor = torch.Tensor
aten = torch.ops.aten
inf, nan = float("inf"), float("nan")

# Of real x, y, z and whole numbers n, m, all [1, numbers]; each takes those that it names.
ROWS: dict[str, Callable[..., Tensor]] = {
    **{
        name: lambda x, name=name: getattr(torch, name)(x)
        for name in (
            "neg", "abs", "sign", "exp", "expm1", "log", "log1p", "tanh", "sigmoid", "sqrt", "rsqrt", "reciprocal",
            "relu", "round", "floor", "ceil", "trunc", "erf", "sin", "cos", "atan", "square", "sgn",
        )
    },
    **{
        name: lambda x, name=name: getattr(F, name)(x)
        for name in (
            "silu", "hardsigmoid", "hardswish", "hardtanh", "relu6", "leaky_relu", "elu", "selu", "softplus",
            "logsigmoid", "gelu", "mish",
        )
    },
    **{
        name: lambda x, y, name=name: getattr(torch, name)(x, y)
        for name in ("add", "sub", "mul", "div", "maximum", "minimum", "fmod", "remainder", "atan2", "pow")
    },
    **{
        f"{name} of {what}": lambda x, y, n, name=name, b=b: getattr(torch, name)(x, b(y, n))
        for name in ("lt", "le", "gt", "ge", "eq", "ne")
        for what, b in (("two", lambda y, n: y), ("a number", lambda y, n: 1), ("whole numbers", lambda y, n: n))
    },
    **{f"power {p}": lambda x, p=p: x**p for p in (-2, -1, -0.5, 0, 0.5, 1, 2, 3, 4, 2.5)},
    "power of a number": lambda x: 2.0**x,
    "floor of a quotient": lambda x, y: torch.div(x, y, rounding_mode="floor"),
    "floor of a quotient by a number": lambda x: torch.div(x, 0.1, rounding_mode="floor"),
    "floor division": lambda x, y: x.detach() // y.detach(),
    "whole part of a quotient": lambda x, y: torch.div(x, y, rounding_mode="trunc"),
    "remainder by a number": lambda x: torch.remainder(x, -0.7) + torch.fmod(x, 0.7),
    "sum with a factor": lambda x, y: torch.add(x, y, alpha=0),
    "difference from a number": lambda x: 1 - x,
    "difference from": lambda x, y: torch.rsub(x, y),
    "lerp": lambda x, y, z: torch.lerp(x, y, z.clamp(0, 1)),
    "lerp near": lambda x, y: torch.lerp(x, y, 0.3),
    "lerp far": lambda x, y: torch.lerp(x, y, 0.8),
    "addcmul": lambda x, y, z: torch.addcmul(x, y, z.sign(), value=2),
    "addcdiv": lambda x, y, z: torch.addcdiv(x, y, z.sign(), value=2),
    "clamp": lambda x: x.clamp(-1, 1),
    "clamp from below": lambda x: x.clamp_min(0.5),
    "clamp from above": lambda x: x.clamp(max=0.5) + x.clamp_max(6.0),
    "clamp between tensors": lambda x, y, z: torch.clamp(x, y, z),
    "threshold": lambda x: F.threshold(x, 0.5, -1.0),
    "celu": lambda x: F.celu(x, 0.7),
    "elu with numbers": lambda x: F.elu(x, 1.3),
    "hardtanh with numbers": lambda x: F.hardtanh(x, -0.5, 3.0),
    "leaky_relu with a number": lambda x: F.leaky_relu(x, -0.2),
    "softplus with numbers": lambda x: F.softplus(x, 2.0, 3.0),
    "prelu": lambda x, y: torch._prelu_kernel(x, y),
    "gelu by tanh": lambda x: F.gelu(x, approximate="tanh"),
    "where": lambda x, y, z: torch.where(z > 0, x, y),
    "where with numbers": lambda x, y, z: torch.where(z > 0, x, -0.0) + torch.where(z > 0, 0.0, y),
    "masked_fill": lambda x, z: x.masked_fill(z > 0, nan),
    "masked_fill with a value": lambda x, y, z: x.masked_fill(z > 0, y.detach()[0, 12]),
    "dropout backward": lambda x, y: aten.native_dropout_backward(x.detach(), y > 0, 2.0),
    "isnan": lambda x: torch.isnan(x),
    "truth": lambda x: x.bool(),
    "logic": lambda x, y, z: torch.logical_and(x, y) ^ torch.logical_or(x, z) | torch.logical_not(y),
    "bits": lambda x, y, z: ((x > 0) & (y > 0)) ^ ~((x > 0) | (z > 0)),
    "bits of a number": lambda x, y: ((x > 0) & True) ^ ((y > 0) | False) ^ True,
    "logical_xor": lambda x, y: torch.logical_xor(x, y),
    "whole part": lambda x: x.long(),
    # along features
    "sum": lambda x: x.sum(1, keepdim=True),
    "mean": lambda x: x.mean(1, keepdim=True),
    "prod": lambda x: x.detach().prod(1, keepdim=True),
    "amax": lambda x: x.detach().amax(1, keepdim=True) - x.detach().amin(1, keepdim=True),
    "max": lambda x: x.max(1, keepdim=True)[0],
    "min": lambda x: x.min(1, keepdim=True)[0],
    "where the largest is": lambda x: x.argmax(1, keepdim=True) - x.argmin(1, keepdim=True),
    "any, all": lambda x: (x > 0).any(1, keepdim=True) ^ (x > 0).all(1, keepdim=True),
    "var": lambda x: x.var(1, keepdim=True),
    "std": lambda x: x.std(1, keepdim=True),
    "var_mean": lambda x: torch.var_mean(x, 1, keepdim=True)[0],
    "length": lambda x: x.norm(dim=1, keepdim=True),
    "length of sizes": lambda x: x.norm(1, dim=1, keepdim=True) - x.detach().norm(inf, dim=1, keepdim=True),
    "logsumexp": lambda x: x.logsumexp(1, keepdim=True),
    "cumsum": lambda x: x.cumsum(1),
    "softmax": lambda x: x.softmax(1),
    "log_softmax": lambda x: x.log_softmax(1),
    "layer_norm": lambda x: F.layer_norm(x, x.shape[1:]),
    # whole numbers
    "whole sums": lambda n, m: 3 * n - m * n + (-n) + (n - 16777217).abs(),
    "whole sum with a factor": lambda n, m: torch.add(n, m, alpha=9007199254740993),
    "whole remainders": lambda n: torch.remainder(n * 1103515245 + 12345, 2147483648),
    "whole quotients": lambda n, m: n // 9007199254740993 + n // torch.where(m == 0, 7, m),
    "whole extremes": lambda n, m: torch.maximum(n, m) - torch.minimum(n, m),
    "whole comparisons": lambda n, m: (n > 9007199254740992) ^ (n < m) | (n == 16777217) & (m != n),
    "whole choices": lambda n, m: torch.where(n > m, n, 9007199254740993),
    "whole as real": lambda x, n: n.to(x.dtype),
    "whole as truth": lambda x, n: n.bool().long() + (n > 0).to(x.dtype),
}  # fmt: skip

# What subtracts near numbers may differ by so many units in the last place of 1, where others may by 16 of their own.
LOOSE = {
    "d tanh / d x": 16, "d sigmoid / d x": 16, "d silu / d x": 128, "d gelu by tanh / d x": 16, "d cumsum / d x": 1000,
}  # fmt: skip
# What PyTorch's vectors get wrong (fmod of far apart numbers is NaN), or choose another zero for.
ONE_BY_ONE = {
    "fmod", "remainder", "remainder by a number", "maximum", "minimum", "clamp between tensors", "lerp", "gelu",
    "d gelu / d x",
}  # fmt: skip
# What PyTorch's vectors do otherwise on ARM: the larger of -0 and 0 is 0 there (relu, and clamp, which is before lerp),
# erf of small numbers is 0, and gelu by tanh is off by 4e-5 of itself at -3.
NOT_ON_ARM = (
    {"relu", "relu6", "d lerp / d y", "erf", "gelu by tanh"} if platform.machine() == "aarch64" else set()
)
# What no traced step holds: it is always said in another form, by the same rule.
REWRITTEN = (
    *(getattr(aten, name).default for name in ("add", "sub", "mul", "div", "fmod", "remainder")), aten.square.default,
    aten.div.Scalar_mode, aten.floor_divide.Scalar, aten.std.correction,
)  # fmt: skip

# --- running them ----------------------------------------------------------------------------------------------------

DTYPES = (torch.float32, torch.float64)
AT_ONCE = 30  # rows in one loop, which may have 1024 values


@functools.cache
def specials(dtype: torch.dtype) -> dict[str, Tensor]:
    """x and y: every pair of special numbers; z: y in another order; n and m: every pair of whole numbers. [1, …]."""
    info = torch.finfo(dtype)
    single = dtype == torch.float32
    numbers = [
        0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 0.1, 1.5, 3.0, -3.0, 6.0, 7.25, nan, inf, -inf, info.max, -info.max,
        info.tiny, -info.tiny, info.tiny / 8, -info.tiny / 8, 2.0**24 + 2,
        *((88.7, 89.0, -87.5, -103.5, 17.5) if single else (709.7, 710.0, -708.5, -745.0, 36.9)),
    ]  # fmt: skip
    wholes = [
        0,
        1,
        -1,
        2,
        -7,
        16777216,
        16777217,
        -16777217,
        2**31,
        2**53,
        2**53 + 1,
        -(2**53) - 1,
        2**62 + 1,
    ]
    pairs = torch.tensor(list(itertools.product(numbers, numbers)), dtype=dtype)
    pairs = torch.cat([pairs, pairs[: -len(pairs) % 64]])  # whole vectors: nothing is left over
    x, y = (column.unsqueeze(0).contiguous() for column in pairs.unbind(1))
    n, m = torch.tensor(list(itertools.product(wholes, wholes))).unbind(1)
    n, m = (whole.repeat(9)[: x.numel()].unsqueeze(0) for whole in (n, m))
    return {"x": x, "y": y, "z": y.roll(7, 1), "n": n, "m": m}


def with_gradients(name: str, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """A row's value, and its gradient for each of x, y, z that it depends on; g: of the value.

    In float64 the gradients are those of `make conformance`: the rules are one for both precisions."""
    leaves = {
        key: v.detach().requires_grad_(v.dtype == torch.float32 or (v.is_floating_point() and pairwise.exhaustive))
        for key, v in given.items() if key != "g"
    }  # fmt: skip
    value = ROWS[name](**leaves)
    found = {name: value.detach()}
    if value.requires_grad:
        real = {key: leaf for key, leaf in leaves.items() if leaf.requires_grad}
        gradients = torch.autograd.grad(value, list(real.values()), given["g"], allow_unused=True)
        pairs = zip(real, gradients, strict=True)
        found |= {f"d {name} / d {key}": d for key, d in pairs if d is not None and not d._is_zerotensor()}
    return found


def arguments(name: str, dtype: torch.dtype) -> dict[str, Tensor]:
    parameters = inspect.signature(ROWS[name]).parameters
    given = {key: value for key, value in specials(dtype).items() if key in parameters}
    value = ROWS[name](**given)
    return given | {"g": torch.linspace(-2, 2, value.numel(), dtype=dtype).reshape(value.shape)}


@functools.cache
def loops(dtype: torch.dtype) -> list[tuple[Loop, dict[str, Tensor]]]:
    """All rows and their gradients as loops of one step, and what they are run on.

    Traced with numbers for sizes, [1, …] is one row of a batch: that is how the engine sees every value.
    """
    found = []
    for first in range(0, len(ROWS), AT_ONCE):
        given = {name: arguments(name, dtype) for name in list(ROWS)[first : first + AT_ONCE]}
        values = {f"{name}/{key}": value for name, some in given.items() for key, value in some.items()}

        def together(*tensors: Tensor, given: Any = given) -> list[Tensor]:
            left = iter(tensors)
            made = [with_gradients(name, {key: next(left) for key in some}) for name, some in given.items()]
            return [value for results in made for value in results.values()]

        names = [key for name in given for key in with_gradients(name, given[name])]
        with FakeTensorMode() as fake, enable_python_dispatcher():
            tensors = [fake.from_tensor(value) for value in values.values()]
            recorded = record_anything(lambda many: together(*many), tensors, get_decompositions(APART))  # type: ignore[arg-type]
            graph = without_writes(recorded, tensors).graph
        for node, name in zip(graph.find_nodes(op="placeholder"), values, strict=True):
            node.target = name
        out = graph.output_node()
        out.args = (dict(zip(names, out.args[0], strict=True)),)  # type: ignore[arg-type]
        normalise(graph)
        loop = Loop(graph, (), tuple(values), (), tuple(names), (), frozenset(), frozenset())
        found.append((loop, values))
    return found


@functools.cache
def plainly(name: str, dtype: torch.dtype) -> list[dict[str, Tensor]]:
    """What PyTorch gives: for tensors in order, whose elements go through its vectors, and for others, one by one."""
    given = arguments(name, dtype)
    apart = {key: torch.stack([value, value], -1)[..., 0] for key, value in given.items()}
    return [with_gradients(name, given), with_gradients(name, apart)]


def agree(ours: Tensor, theirs: Tensor, key: str) -> Tensor:
    """NaN where NaN, infinity where infinity, the sign of zero, else a few units in the last place."""
    if not theirs.is_floating_point():
        return ours == theirs
    info = torch.finfo(theirs.dtype)
    size = theirs.abs() if key not in LOOSE else theirs.abs().clamp_min(1)
    near = (ours - theirs).abs() <= LOOSE.get(key, 16) * info.eps * size + info.smallest_normal / 2048
    equal = (ours == theirs) & ((ours != 0) | (ours.signbit() == theirs.signbit()))
    return equal | (ours.isnan() & theirs.isnan()) | (near & (ours != theirs) & theirs.isfinite())


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
@pytest.mark.parametrize("native", ENGINES.values(), ids=ENGINES)
def test_special_values(native: Native, dtype: torch.dtype) -> None:
    wrong = []
    for loop, values in loops(dtype):
        assert native.supports(loop, CPU) is None, native.supports(loop, CPU)
        made = Given(loop, values, [1]).run(native)
        names = {name.split("/")[0]: None for name in values}
        for name in names:
            expected = plainly(name, dtype)
            for key in (key for key in expected[0] if key not in NOT_ON_ARM):
                good = agree(made[key], expected[0][key], key)
                if key in ONE_BY_ONE:
                    good |= agree(made[key], expected[1][key], key)
                if not good.all():
                    wrong.append(_said(name, key, made[key], expected[0][key], ~good, dtype))
    assert not wrong, "\n".join(["", *wrong])


def _said(name: str, key: str, ours: Tensor, theirs: Tensor, bad: Tensor, dtype: torch.dtype) -> str:
    at = int(bad.flatten().nonzero()[0])
    given = {k: v.flatten()[min(at, v.numel() - 1)].item() for k, v in arguments(name, dtype).items()}
    got, expected = (v.flatten()[at].item() for v in (ours, theirs))
    return f"{key}: {int(bad.sum())} of {bad.numel()}, at {given} {got!r} for {expected!r}"


ARITHMETIC = ("pointwise", "activations", "features")  # the families of rules that compute


def test_every_rule_has_a_row() -> None:
    targets = {t for t, rule in RULES.items() if rule.__module__.rpartition(".")[2] in ARITHMETIC}
    met = {node.target for loop, _ in loops(torch.float32) for node in loop.graph.nodes}
    assert sorted(map(str, targets - met)) == sorted(map(str, REWRITTEN))
