"""Every rule of elman/export/onnx, on operations that hardly any cell has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import elman
from elman.export.onnx.operators import RULES
from tests.export.running import close, run, session, tensors
from tests.pairwise import with_more

F = nn.functional
I, H = 4, 6

Many = dict[str, Callable[[Tensor], Any]]

# Of x [B, 4], numbers between -2 and 2.
GROUPS: dict[str, Many] = {
    "pointwise": {
        "rsub": lambda x: 3 - x,
        "add alpha": lambda x: torch.add(x, x, alpha=0.5),
        "rounded down": lambda x: torch.div(x, 0.3, rounding_mode="floor"),
        "rounded": lambda x: torch.div(x, 0.3, rounding_mode="trunc"),
        "floor_divide": lambda x: torch.floor_divide(x, 0.3),
        "whole numbers": lambda x: (5 * x).long() // 3 + (7 * x).long() % 3 - (x * 9).long() // -2,
        "fmod": lambda x: torch.fmod(x, 0.3),
        "remainder": lambda x: torch.remainder(x, 0.3),
        "pow": lambda x: x.abs() ** 1.7 + 2**x + x**3,
        "where": lambda x: torch.where(x > 0, 1.0, x) + torch.where(x < 0, x, 2.0),
        "truths": lambda x: torch.where(x > 1, x < 3, x < -1),
        "masked_fill": lambda x: x.masked_fill(x > 1, -3),
        "clamp": lambda x: x.clamp(-1, 1) + x.clamp(min=0.2) + x.clamp_max(0.4) + torch.clamp(x, x - 1, x.abs()),
        "lerp": lambda x: torch.lerp(x, x * x, 0.3) + torch.lerp(x, -x, x.abs()),
        "addcmul": lambda x: torch.addcmul(x, x, x, value=0.5) + torch.addcdiv(x, x, x.abs() + 1, value=0.5),
        "sign": lambda x: x.sign() + x.sgn(),
        "logarithms": lambda x: (x.abs() + 0.5).log() + x.abs().log1p() + x.expm1(),
        "small": lambda x: (x * 1e-6).log1p() * 1e6 + (x * 1e-6).expm1() * 1e6,
        "roots": lambda x: x.abs().sqrt() + (x.abs() + 0.5).rsqrt() + (x.abs() + 0.5).reciprocal() + x.square(),
        "rounding": lambda x: x.round() + x.floor() * 2 + x.ceil() * 3 + x.trunc() * 4,
        "waves": lambda x: x.erf() + x.sin() + x.cos() + (x / 2).tan() + x.atan() + x.sinh() + x.cosh(),
        "comparisons": lambda x: [x < 1, x <= 1, x > x.abs(), x >= x, x == x.abs(), x != x.abs(), x.long() > 0.5],
        "logic": lambda x: [(x > 0) & (x < 1), (x > 0) | (x < -1), (x > 0) ^ (x < 1), ~(x > 0)],
        "bits": lambda x: [(9 * x).long() & 3, (9 * x).long() | 4, (9 * x).long() ^ 5, ~(9 * x).long()],
        "logical": lambda x: [x.logical_not(), x.logical_and(x > 1), x.logical_or(x > 1), x.logical_xor(x > 1)],
        "activations": lambda x: [
            x.relu(), F.leaky_relu(x, 0.2), F.elu(x, 0.7), F.selu(x), F.gelu(x), F.gelu(x, approximate="tanh"),
            F.silu(x), F.mish(x), F.softplus(x, 2), F.softplus(40 * x), F.logsigmoid(x), F.logsigmoid(40 * x),
            F.hardsigmoid(3 * x), F.hardswish(3 * x), F.hardtanh(x), F.relu6(9 * x), F.prelu(x, x.new_full((1,), 0.3)),
            F.celu(x, 0.6), F.dropout(x, 0.5, False),
        ],
        "dtypes": lambda x: [x.double() * 2, x.long(), x.bool(), (x > 0).float() + 1, x.to(torch.int32)],
        "max and min": lambda x: [torch.maximum(x, x * x), torch.minimum(x, x * x), torch.max(x, -x), torch.min(x, -x)],
    },
    "addressing": {
        "reshape": lambda x: [x.reshape(-1, 2, 2), x.unflatten(1, (2, 2)), x.reshape(-1, 2, 2).flatten(1)],
        "turned": lambda x: [x.t().t(), x.unsqueeze(2).transpose(1, 2), x.reshape(-1, 2, 2).movedim(1, 2)],
        "squeeze": lambda x: [x.unsqueeze(1).squeeze(1), x.unsqueeze(2).squeeze(-1)],
        "expand": lambda x: [x.unsqueeze(1).expand(-1, 3, -1), x.repeat(1, 2), x.unsqueeze(0).repeat(2, 1, 1)[0]],
        "slice": lambda x: [x[:, 1:], x[:, :-1], x[:, ::2], x[:, 1], x[..., -1], x[:, None, 2:4]],
        "split": lambda x: [*x.split(3, 1), *x.split([1, 3], 1), *x.chunk(2, 1), *x.unbind(1)],
        "triangles": lambda x: [x.reshape(-1, 2, 2).tril(), x.reshape(-1, 2, 2).triu(1)],
        "flip": lambda x: [x.flip(1), x.roll(1, 1), x.roll(-3, 1), x.reshape(-1, 2, 2).flip([1, 2])],
        "cat": lambda x: [torch.cat([x, x * 2], 1), torch.stack([x, x * 2], 1), F.pad(x, (1, 2), value=3)],
        "scatters": lambda x: [
            torch.slice_scatter(x, x[:, :2] * 0, 1, 1, 3), torch.select_scatter(x, x[:, 0] * 0, 1, 2),
            x.scatter(1, (x.abs() * 2).long() % 4, 7.0), x.scatter(1, (x[:, :1].abs()).long(), x[:, :1]),
            x.scatter_add(1, (x.abs() * 2).long() % 4, x), x.index_add(1, torch.tensor([1, 1, 3]), x[:, :3], alpha=2),
        ],
        "gathers": lambda x: [
            x.gather(1, (x.abs() * 2).long() % 4), x.index_select(1, torch.tensor([3, 0])), x[:, [1, 1, 2]],
            x.reshape(-1, 2, 2)[:, [0, 1], [1, 0]], x.t()[[0, -1]].t(),
        ],
        "made": lambda x: [
            torch.zeros_like(x), torch.ones_like(x), torch.full_like(x, 2.5), x.new_zeros(3) + x[:, :3],
            x.new_full((4,), 2.0) * x, torch.arange(4) + x, torch.arange(1, 9, 2, dtype=x.dtype) * x,
            torch.eye(4)[0] * x, torch.ones(4) * x, torch.full((4,), 0.3) * x,
        ],
    },
    "features": {
        "sums": lambda x: [x.sum(1), x.sum(1, True), (x > 0).sum(1), x.mean(1), x.reshape(-1, 2, 2).sum((1, 2))],
        "extremes": lambda x: [x.amax(1), x.amin(1, True), *x.max(1), *x.min(1, True), x.argmax(1), x.argmin(1)],
        "truths": lambda x: [(x > 0).any(1), (x > 0).all(1, True), (x > -9).all(1)],
        "running": lambda x: [x.cumsum(1), x.prod(1), x.reshape(-1, 2, 2).prod(2, True), (x > 0).cumsum(1)],
        "exponential": lambda x: [x.logsumexp(1), x.softmax(1), x.log_softmax(-1), (x * 50).logsumexp(1, True)],
        "spread": lambda x: [x.var(1), x.var(1, correction=0, keepdim=True), *torch.var_mean(x, 1), x.std(1)],
        "norms": lambda x: [x.norm(dim=1), *(torch.linalg.vector_norm(x, p, 1) for p in (1, 3, torch.inf, -torch.inf))],
        "layer norm": lambda x: [F.layer_norm(x, (4,)), F.layer_norm(x, (4,), x.new_ones(4) * 2, x.new_ones(4))],
        "order": lambda x: [*x.topk(2, 1), *x.topk(3, 1, largest=False), *x.sort(1), *x.sort(1, descending=True)],
        "products": lambda x: [
            x @ torch.ones(4, 3), x.reshape(-1, 2, 2) @ x.reshape(-1, 2, 2),
            F.linear(x, torch.ones(2, 4), torch.ones(2)),
            torch.baddbmm(x.reshape(-1, 2, 2), x.reshape(-1, 2, 2), x.reshape(-1, 2, 2), beta=0.5, alpha=2),
            torch.addmm(torch.ones(3), x, torch.ones(4, 3), beta=0.5, alpha=2),
        ],
        "convolutions": lambda x: [
            F.conv1d(x.unsqueeze(1), torch.ones(2, 1, 3), padding=1, stride=2),
            F.conv_transpose1d(x.unsqueeze(1), torch.ones(1, 2, 3), padding=1, stride=2, output_padding=1),
            F.conv2d(x.reshape(-1, 2, 2, 1), torch.ones(4, 1, 2, 1), torch.ones(4), groups=2, dilation=1),
        ],
    },
}  # fmt: skip


class Shown(nn.Module):
    """A cell that gives out what functions make of its input, and of its state in the loop. Its numbers are exact, so
    that none falls on the other side of a jump."""

    def __init__(self, functions: Many) -> None:
        super().__init__()
        self.functions, self.hidden_size = functions, I

    def forward(self, x: Tensor, h: Tensor) -> tuple[Any, Tensor]:
        return [[f(x.detach()), f(h.detach())] for f in self.functions.values()], (
            0.4 * h + 0.7 * x
        ).sin() * 2


def eighths(*sizes: int) -> Tensor:
    """Of which none is zero, and none its neighbour's equal, halved as often as a test does."""
    return torch.randint(-16, 17, sizes) / 8 + 1 / 64 + torch.arange(sizes[-1]) / 2**14


@pytest.mark.conformance
@pytest.mark.parametrize("name", list(GROUPS))
def test_rules(name: str, tmp_path: Path) -> None:
    layer = elman.Recurrent(Shown(GROUPS[name]))
    with torch.no_grad():
        layer(eighths(6, 3, I), eighths(3, I))
        (path,) = elman.export(layer, tmp_path / "a.onnx")
        graph = session(path)
        for T, B in ((1, 1), (8, 5)):
            x, h = eighths(T, B, I), eighths(B, I)
            close(run(graph, x, h), tensors(layer(x, h)), name)


@pytest.mark.parametrize("dtype", with_more([torch.float64], [torch.float32]))
def test_softplus_is_the_number_itself_above_its_threshold(dtype: torch.dtype, tmp_path: Path) -> None:
    functions: Many = {
        "as it is": lambda x: F.softplus(9 * x), "beta": lambda x: F.softplus(x, 2.0, 1.0),
        "below 1": lambda x: F.softplus(x, 0.5, 0.3), "beta below 0": lambda x: F.softplus(x, -2.0, 0.3),
        "threshold below 0": lambda x: F.softplus(x, 1, -1),
    }  # fmt: skip
    layer, x, h = elman.Recurrent(Shown(functions)), eighths(4, 3, I).to(dtype), 5 * eighths(3, I).to(dtype)
    with torch.no_grad():
        outputs = layer(x, h)
        (path,) = elman.export(layer, tmp_path / "a.onnx")
    found = run(session(path), x, h)
    close(found, tensors(outputs))
    if dtype == torch.float64:
        for mine, its in zip(found, tensors(outputs), strict=True):
            torch.testing.assert_close(torch.from_numpy(mine), its, rtol=1e-10, atol=1e-10)


def test_numbers_of_a_cell_in_float64_are_not_rounded(tmp_path: Path) -> None:
    functions: Many = {
        "of Python": lambda x: 0.1 * x + 0.3, "of an operation": lambda x: F.elu(x, 0.7) + x.clamp(-0.1, 0.1),
        "filled": lambda x: torch.full_like(x, 0.1) + torch.lerp(x, 2 * x, 0.3),
    }  # fmt: skip
    layer, x, h = elman.Recurrent(Shown(functions)), eighths(4, 3, I).double(), eighths(3, I).double()
    with torch.no_grad():
        outputs = layer(x, h)
        (path,) = elman.export(layer, tmp_path / "a.onnx")
    for mine, its in zip(run(session(path), x, h), tensors(outputs), strict=True):
        torch.testing.assert_close(torch.from_numpy(mine), its, rtol=1e-12, atol=1e-12)


# What makes truths, and numbers, of truths: ONNX calculates with numbers alone.
TRUTHS: Many = {
    "calculated": lambda x: [(x > 0) * (x < 1), (x > 0) + (x < -1), torch.add(x > 0, x < 1, alpha=False)],
    "signs": lambda x: [(x > 0).sgn(), (x > 0).sign()],
    "larger": lambda x: [torch.maximum(x > 0, x < -1), torch.minimum(x > -1, x < 1), torch.max(x > 0, x < -1)],
    "compared": lambda x: [(x > 0) < (x > 1), (x > 0) <= (x > 1), (x > 0) > (x > 1), (x > 0) >= (x > 1)],
    "extremes": lambda x: [(x > 0).amax(1), (x > 0).amin(1, True), (x > 0).max(1).values, (x > 0).min(1).values],
    "order": lambda x: [(x > 0).sort(1).values, (x > 0).sort(1, descending=True).values],
    "taken apart": lambda x: [torch.logaddexp(x, x * x), x.isfinite(), torch.isclose(x, x.round())],
}  # fmt: skip


def test_truths_are_calculated_with(tmp_path: Path) -> None:
    layer, x, h = elman.Recurrent(Shown(TRUTHS)), eighths(4, 3, I), eighths(3, I)
    with torch.no_grad():
        outputs = layer(x, h)
        (path,) = elman.export(layer, tmp_path / "a.onnx")
    found = run(session(path), x, h)
    close(found, tensors(outputs))
    assert [str(mine.dtype) for mine in found] == [str(its.numpy().dtype) for its in tensors(outputs)]


def test_rules_are_of_operations() -> None:
    assert all(isinstance(key, (torch._ops.OpOverloadPacket, torch._ops.OpOverload)) for key in RULES)
