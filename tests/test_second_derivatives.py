"""Second derivatives of single operations, in one-line cells, against PyTorch's double backward or central differences.

Several operations stand in one cell, each with an output of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import grad, jvp
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.nn import functional as F
from torch.nn.utils.stateless import _reparametrize_module

import elman
from elman.trace.parts import InParts
from tests import eager
from tests.cases import CASES
from tests.pairwise import with_more

Tensor = torch.Tensor
Operation = Callable[[Tensor, Tensor], Tensor]
T, B, H = 2, 2, 4
WEIGHT = torch.tensor([0.7, -1.2, 0.4, 1.1], dtype=torch.float64)


def plain(*names: str, module: Any = F) -> dict[str, Operation]:
    def operation(name: str) -> Operation:
        return lambda a, u: getattr(module, name)(a)

    return {name: operation(name) for name in names}


def turned(a: Tensor, u: Tensor) -> Tensor:
    """Pairs as complex numbers, turned by those of the state."""
    z, by = (torch.view_as_complex(v.reshape(-1, 2, 2)) for v in (a, u))
    return torch.view_as_real(z * torch.polar(torch.ones_like(by.abs()), by.angle())).flatten(1)


def square(a: Tensor) -> Tensor:
    return a.view(-1, 2, 2)


def near(a: Tensor, *diagonal: float) -> Tensor:
    """A diagonal matrix whose derivatives are those of a."""
    return square(a - a.detach()) + torch.tensor(diagonal, dtype=a.dtype).diag()


# Of a = W h + U x and u = U x, [B, 4] both.
GROUPS: dict[str, dict[str, Operation]] = {
    "made of parts": {
        "turned": turned,
        "abs": lambda a, u: a.abs() * u,
        "norm inf": lambda a, u: torch.linalg.norm(a, math.inf, dim=-1, keepdim=True) * u,
        "det": lambda a, u: torch.linalg.det(square(a))[:, None] * u,
        "det at a multiple of I": lambda a, u: torch.det(near(a, 0.7, 0.7))[:, None] * u,
        "det of what has no inverse": lambda a, u: near(a, 0.0, 0.7).det()[:, None] * u,
    },
    "made of the same parts": {
        "norm 3": lambda a, u: a.norm(3, -1, True) * u,
        "normalize 1": lambda a, u: F.normalize(a, 1.0) * u,
        "l1_loss": lambda a, u: F.l1_loss(a, u, reduction="none") * u,
        "lp_pool": lambda a, u: F.lp_pool1d(a.square().unsqueeze(1) + 1, 3.0, 2).flatten(1),
        "numbers written down": lambda a, u: a[:, [1, 0, 3, 2]] * u,
        "instance_norm": lambda a, u: F.instance_norm(square(a), weight=WEIGHT[:2]),
        "glu": lambda a, u: F.glu(a * u),
        "softsign": lambda a, u: F.softsign(a),
        "lp_pool of two": lambda a, u: F.lp_pool2d(
            square(a).square().unsqueeze(1) + 1, 2.0, (2, 1), 1
        ).flatten(1),
        "rrelu": lambda a, u: F.rrelu(a, 0.1, 0.5) * u,
        "norm 1": lambda a, u: a.norm(1, dim=-1, keepdim=True) * u,
        "vector_norm": lambda a, u: torch.linalg.vector_norm(a, 1.5, dim=-1),
    },
    "straight": plain("relu", "relu6", "hardtanh", "hardshrink", "softshrink", "leaky_relu", "hardswish")
    | {
        "threshold": lambda a, u: F.threshold(a, 0.2, -1.0) * u,
        "prelu": lambda a, u: F.prelu(a, WEIGHT),
        "clamp": lambda a, u: torch.clamp(a, -u.abs(), u.abs()) * u,
        "where": lambda a, u: torch.where(a > 0, a * u, u),
    },
    "smooth": plain("elu", "selu", "celu", "gelu", "mish", "silu", "softplus", "logsigmoid", "tanhshrink")
    | plain("erf", "expm1", "atan", "sinc", "asinh", "exp2", "sinh", module=torch)
    | {
        "xlogy": lambda a, u: torch.xlogy(a, u.square() + 1),
        "atan2": lambda a, u: torch.atan2(a, u.square() + 1),
        "hypot": lambda a, u: torch.hypot(a, u + 2),
        "digamma": lambda a, u: torch.digamma(a.square() + 1),
        "lerp": lambda a, u: torch.lerp(a, u, torch.sigmoid(a)),
        "fmod": lambda a, u: torch.fmod(a, u.square() + 1) * u,
        "remainder": lambda a, u: torch.remainder(a, u.square() + 1) * u,
    },
    "norms": {
        "layer_norm": lambda a, u: F.layer_norm(a, (H,), WEIGHT),
        "group_norm": lambda a, u: F.group_norm(a, 2),
        "rms_norm": lambda a, u: F.rms_norm(a, (H,)),
        "normalize": lambda a, u: F.normalize(a, dim=-1),
    },
    "along": {
        "softmax": lambda a, u: a.softmax(-1),
        "log_softmax": lambda a, u: a.log_softmax(-1),
        "logsumexp": lambda a, u: a.logsumexp(-1),
        "max": lambda a, u: a.max(-1, keepdim=True)[0] * u,
        "amin": lambda a, u: a.amin(-1, keepdim=True) * u,
        "median": lambda a, u: a.median(-1, keepdim=True)[0] * u,
        "prod": lambda a, u: a.prod(-1),
        "cumprod": lambda a, u: a.cumprod(-1),
        "var": lambda a, u: a.var(-1),
        "std": lambda a, u: a.std(-1),
        "sort": lambda a, u: a.sort(-1)[0] * u,
        "topk": lambda a, u: a.topk(2, -1)[0].square(),
        "gather": lambda a, u: a.gather(1, u.argsort(-1)) * u,
    },
    "losses": {
        "smooth_l1_loss": lambda a, u: F.smooth_l1_loss(a, u, reduction="none"),
        "huber_loss": lambda a, u: F.huber_loss(a, u, reduction="none"),
        "mse_loss": lambda a, u: F.mse_loss(a, u, reduction="none") * u,
        "with logits": lambda a, u: F.binary_cross_entropy_with_logits(a, u.sigmoid(), reduction="none"),
        "cross_entropy": lambda a, u: F.cross_entropy(a, u.argmax(-1), reduction="none"),
        "kl_div": lambda a, u: F.kl_div(a.log_softmax(-1), u.softmax(-1), reduction="none"),
        "cosine_similarity": lambda a, u: F.cosine_similarity(a, u, -1),
        "pairwise_distance": lambda a, u: F.pairwise_distance(a, u),
    },
}
# PyTorch has no second derivative of these.
ALONE: dict[str, Operation] = {
    "hardsigmoid": lambda a, u: F.hardsigmoid(4 * a) * u,
    "cdist": lambda a, u: torch.cdist(square(a), square(u) + 1),
    "cdist 1": lambda a, u: torch.cdist(square(a), square(u), p=1.0).square(),
}


class Cell(nn.Module):
    def __init__(self, operations: dict[str, Operation]) -> None:
        super().__init__()
        self.hidden_size = H
        self.U, self.W, self.operations = nn.Linear(3, H), nn.Linear(H, H), operations

    def forward(self, x: Tensor, h: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        u = self.U(x)
        a = self.W(h) + u
        return {name: f(a, u) for name, f in self.operations.items()}, torch.tanh(a)


def made(cell: nn.Module) -> tuple[nn.Module, Tensor, Tensor, list[Tensor]]:
    """A cell, x, state, and the direction of second derivatives."""
    cell = cell.double()
    x, h = torch.randn(T, B, 3, dtype=torch.float64), torch.randn(B, H, dtype=torch.float64)
    return (
        cell,
        x.requires_grad_(),
        h.requires_grad_(),
        [torch.randn_like(v) for v in (x, h, *cell.parameters())],
    )


def first(outputs: dict[str, Tensor] | Tensor, wants: list[Tensor], again: bool = False) -> list[Tensor]:
    value = torch.zeros((), dtype=torch.float64)
    for output in outputs.values() if isinstance(outputs, dict) else [outputs]:
        value = value + (output.flatten() * torch.linspace(-1, 2, output.numel(), dtype=torch.float64)).sum()
    return list(torch.autograd.grad(value, wants, create_graph=again, materialize_grads=True))


def second(outputs: dict[str, Tensor] | Tensor, wants: list[Tensor], way: list[Tensor]) -> list[Tensor]:
    along = torch.stack([(g * v).sum() for g, v in zip(first(outputs, wants, True), way, strict=True)]).sum()
    return list(torch.autograd.grad(along, wants, materialize_grads=True))


FEW = ("turned", "norm inf", "det of what has no inverse")  # each by itself: the next test


@pytest.mark.parametrize("group", with_more(["few"], list(GROUPS)))
def test_second_derivatives_are_those_of_the_loop(group: str) -> None:
    few = {name: GROUPS["made of parts"][name] for name in FEW}
    cell, x, h, way = made(Cell(few if group == "few" else GROUPS[group]))
    wants = [x, h, *cell.parameters()]
    (got, _), (expected, _) = elman.Recurrent(cell)(x, h), eager.unroll(cell, x, h)
    for ours, theirs in zip(second(got, wants, way), second(expected, wants, way), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", GROUPS["made of parts"] | GROUPS["made of the same parts"])
def test_what_is_made_of_parts_has_pytorchs_second_derivatives(name: str) -> None:
    """Without a cell around it."""
    operation = (GROUPS["made of parts"] | GROUPS["made of the same parts"])[name]
    wants = [torch.randn(B, H, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    way = [torch.randn_like(v) for v in wants]
    with InParts(ShapeEnv(), twice=True):
        found = second(operation(*wants), wants, way)
    for ours, theirs in zip(found, second(operation(*wants), wants, way), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", with_more(["alone", "weight_norm_rnn"], ["hard_gru"]))
def test_second_derivatives_that_pytorch_does_not_have(name: str) -> None:
    """Or has wrong ones (weight_norm): against central differences of the loop's first ones."""
    cell, x, h, way = made(Cell(ALONE) if name == "alone" else CASES[name].make(3, H))
    wants, step = [x, h, *cell.parameters()], 1e-6
    found = second(elman.Recurrent(cell)(x, h)[0], wants, way)
    beside = []
    for far in (step, -2 * step):
        with torch.no_grad():
            for value, along in zip(wants, way, strict=True):
                value += far * along
        beside.append(first(eager.unroll(cell, x, h)[0], wants))
    for ours, after, before in zip(found, *beside, strict=True):
        torch.testing.assert_close(ours, (after - before) / (2 * step), rtol=1e-6, atol=1e-6)


# PyTorch's own are wrong, or NaN, in some of these ways.
STATISTICS: dict[str, Operation] = {
    **GROUPS["norms"],
    "layer_norm of two dimensions": lambda a, u: (
        F.layer_norm(square(a), (2, 2), WEIGHT.view(2, 2)).flatten(1) * u
    ),
    "torch.layer_norm": lambda a, u: torch.layer_norm(a, (H,), None, WEIGHT) * u,
    "native_layer_norm": lambda a, u: torch.native_layer_norm(a, (H,), WEIGHT, None, 1e-5)[0] * u,
    "group_norm with weights": lambda a, u: (
        F.group_norm(square(a), 2, WEIGHT[:2], WEIGHT[2:4]).flatten(1) * u
    ),
    "torch.group_norm": lambda a, u: torch.group_norm(square(a), 1, None, WEIGHT[:2]).flatten(1) * u,
    "logcumsumexp": lambda a, u: a.logcumsumexp(-1) * u,
    "logcumsumexp of columns": lambda a, u: torch.logcumsumexp(square(a), 1).flatten(1),
}
EVERY: dict[str, dict[str, Operation]] = {"statistics": STATISTICS, **GROUPS}
WAYS: dict[str, Callable[..., Any]] = {
    "reverse over reverse": lambda f, at, way: grad(lambda v: along(grad(f)(v), way))(at),
    "forward over reverse": lambda f, at, way: jvp(grad(f), (at,), (way,))[1],
    "reverse over forward": lambda f, at, way: grad(lambda v: jvp(f, (v,), (way,))[1])(at),
    "forward over forward": lambda f, at, way: jvp(lambda v: jvp(f, (v,), (way,))[1], (at,), (way,))[1],
}


def along(gradient: dict[str, Tensor], way: dict[str, Tensor]) -> Tensor:
    return torch.stack([(gradient[name] * v).sum() for name, v in way.items()]).sum()


# Each entry of the table of parts in a way in which a trace without it fails, and no more: each operation is traced to
# its second derivatives in each way, and that takes seconds.
FORMULAS = {
    "reverse over reverse": ("layer_norm",),
    "forward over reverse": ("group_norm", "logcumsumexp of columns"),
    "reverse over forward": (
        "layer_norm of two dimensions", "group_norm with weights", "torch.group_norm", "logcumsumexp",
    ),
    "forward over forward": ("torch.layer_norm", "native_layer_norm", "rms_norm", "normalize"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("group", "name"),
    [("formulas", name) for name in WAYS]
    + with_more([], [(group, name) for group in EVERY for name in WAYS], together=True),
)
def test_forward_and_reverse_over_each_other(group: str, name: str) -> None:
    """Against central differences of the loop's first derivatives."""
    operations = {n: STATISTICS[n] for n in FORMULAS[name]} if group == "formulas" else EVERY[group]
    cell, x, h, _ = made(Cell(operations))
    at = {"x": x.detach(), "h": h.detach()} | {n: p.detach() for n, p in cell.named_parameters()}
    way, rnn = {name: torch.randn_like(value) for name, value in at.items()}, elman.Recurrent(cell)

    def value(run: Any) -> Callable[[dict[str, Tensor]], Tensor]:
        def of(v: dict[str, Tensor]) -> Tensor:
            with _reparametrize_module(cell, {name: v[name] for name in v if name not in ("x", "h")}):
                outputs, _ = run(v["x"], v["h"])
            return torch.stack([(o * weights(o)).sum() for o in outputs.values()]).sum()

        return of

    def weights(output: Tensor) -> Tensor:
        return torch.linspace(-1, 2, output.numel(), dtype=output.dtype).view(output.shape)

    step, loop = 1e-6, value(lambda x, h: eager.unroll(cell, x, h))
    after, before = (grad(loop)({name: at[name] + far * way[name] for name in at}) for far in (step, -step))
    expected: Any = {name: (after[name] - before[name]) / (2 * step) for name in at}
    found = WAYS[name](value(rnn), at, way)
    wanted = expected if isinstance(found, dict) else along(expected, way)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


def test_second_derivatives_that_nobody_has_are_refused() -> None:
    """And the first ones are right. (From 2.14 on PyTorch has them: then they are its own.)"""
    cell, x, h, way = made(Cell({"far": lambda a, u: torch.cdist(square(a), square(u) + 1, p=math.inf)}))
    wants = [x, h, *cell.parameters()]
    outputs = elman.Recurrent(cell)(x, h)[0]
    try:
        theirs = second(eager.unroll(cell, x, h)[0], wants, way)
    except RuntimeError:
        with pytest.raises(elman.ElmanError, match=r"adjoint(.|\n)*mend: PyTorch has no such"):
            second(outputs, wants, way)
    else:
        torch.testing.assert_close(second(outputs, wants, way), theirs, rtol=1e-10, atol=1e-10)
    for ours, theirs in zip(first(outputs, wants), first(eager.unroll(cell, x, h)[0], wants), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


KINKS: dict[str, Callable[[Tensor], Tensor]] = {
    "hardsigmoid": F.hardsigmoid,
    "abs": torch.abs,
    "softsign": F.softsign,
    "l1_loss": lambda x: F.l1_loss(x, torch.zeros_like(x), reduction="none"),
    "norm 1": lambda x: x.norm(1, dim=-1),
    "norm 3": lambda x: x.norm(3, dim=-1),
    "norm inf": lambda x: x.norm(math.inf, dim=-1),
    "cdist 1": lambda x: torch.cdist(x, x.detach()[:1], p=1.0),
    "cdist 3": lambda x: torch.cdist(x, x.detach()[:1], p=3.0),
    "normalize 1": lambda x: F.normalize(x, 1.0),
}


@pytest.mark.parametrize("name", KINKS)
def test_first_derivatives_at_kinks_stay_pytorchs(name: str) -> None:
    """Of what is made of parts: value and gradient."""
    x = torch.tensor([[0.0, 0.0], [3.0, -3.0], [-4.0, 4.0], [0.0, 2.0], [-0.0, -3.0]], dtype=torch.float64)

    def found() -> list[Tensor]:
        leaf = x.clone().requires_grad_()
        value = KINKS[name](leaf)
        return [
            value.detach(),
            *torch.autograd.grad(
                value, leaf, torch.linspace(1, 2, value.numel(), dtype=x.dtype).view_as(value)
            ),
        ]

    with InParts(ShapeEnv(), twice=True):
        got = found()
    torch.testing.assert_close(got, found(), rtol=1e-15, atol=0)
