"""Rules of elman/export/onnx where numbers are infinite, none, or zero, and in float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import elman
from elman.errors import NotSupported
from tests.export.running import run, session
from tests.export.test_rules import Many

F = nn.functional
SINGLE, DOUBLE = torch.float32, torch.float64
inf, nan = torch.inf, torch.nan

NUMBERS = [
    nan,
    inf,
    -inf,
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    -2.5,
    1e30,
    -1e30,
    1e-30,
    2.5,
    0.3,
    -7.0,
    88.0,
    -89.0,
    3.0,
]
# Of x [B, 2], all pairs of NUMBERS; a, b = x[:, 0], x[:, 1].
GROUPS: dict[str, Many] = {
    "asked": {
        "none": lambda x: [x.isnan(), x.bool().isnan(), (x > 0).long().isnan()],
        "infinite": lambda x: [x.isinf(), x.isposinf(), x.isneginf(), (x > 0).isinf(), x.isfinite()],
        "compared": lambda x: [x[:, 0] < x[:, 1], x[:, 0] >= x[:, 1], x[:, 0] == x[:, 1], x[:, 0] != x[:, 1]],
    },
    "filled in": {
        "as it is": torch.nan_to_num,
        "all three": lambda x: torch.nan_to_num(x, 1.0, 2.0, 3.0),
        "one": lambda x: [torch.nan_to_num(x, nan=-1.5), torch.nan_to_num(x, posinf=7), torch.nan_to_num(x, neginf=0)],
        "whole numbers": lambda x: torch.nan_to_num((x > 0).long() * 3, 7, 8, 9),
        "left out": lambda x: [x.nansum(1), x.nanmean(1)],
    },
    "the larger": {
        "fmax": lambda x: torch.fmax(x[:, 0], x[:, 1]),
        "fmin": lambda x: torch.fmin(x[:, 0], x[:, 1]),
        "of whole numbers": lambda x: [torch.fmax((x > 0).long() * 3, (x < 2).long() * 2), torch.fmin(x > 0, x < 2)],
        "maximum": lambda x: [torch.maximum(x[:, 0], x[:, 1]), torch.minimum(x[:, 0], x[:, 1])],
        "clamp": lambda x: [torch.clamp(x[:, 0], min=x[:, 1]), torch.clamp(x[:, 0], max=x[:, 1]), x.clamp(-1, 1)],
        "along": lambda x: [x.amax(1), x.amin(1, True), *x.max(1), *x.min(1, True), x.argmax(1), x.argmin(1, True)],
        "of all": lambda x: [torch.vmap(torch.max)(x), torch.vmap(torch.argmin)(x)],
        "norm": lambda x: [torch.linalg.vector_norm(x, p, 1) for p in (inf, -inf)],
    },
    "functions": {
        "sign": lambda x: [x.sign(), x.trunc(), x.floor(), x.round(), x.frac()],
        "decimals": lambda x: [torch.round(x, decimals=2), torch.round(x, decimals=-1)],
        "small": lambda x: [x.expm1(), x.log1p(), torch.special.xlog1py(x[:, 0], x[:, 1]), F.celu(x), F.elu(x)],
        "powers": lambda x: [x.exp2(), x.log2(), x.log10(), torch.xlogy(x[:, 0], x[:, 1]), torch.special.entr(x)],
        "rests": lambda x: [torch.remainder(x[:, 0], x[:, 1]), torch.fmod(x[:, 0], x[:, 1]), x.remainder(-0.7)],
        "kinks": lambda x: [F.leaky_relu(x), F.leaky_relu(x, 0.3), F.hardtanh(x), F.softplus(x), F.mish(x), F.silu(x)],
        "waves": lambda x: [(x / 7).tan(), (x / 9).sinh(), x.clamp(-80, 80).sinh(), (x / 2).cosh(), F.softsign(x)],
    },
    "places": {
        "diagonal": lambda x: [
            torch.stack([x, 2 * x, 3 * x], 2).diagonal(k, *dims)
            for k, dims in ((0, (1, 2)), (1, (1, 2)), (-1, (2, 1)), (-1, (-2, -1)))
        ],
        "windows": lambda x: [x.repeat(1, 3).unfold(1, 2, 3), x.repeat(1, 3).unsqueeze(2).unfold(-2, 4, 1)],
    },
}  # fmt: skip
# What ONNX Runtime has for float32 alone.
SINGLES: Many = {
    "asin": torch.asin, "acos": torch.acos, "asinh": torch.asinh, "acosh": torch.acosh, "atanh": torch.atanh,
    "atan": torch.atan, "erf": torch.erf,
    "gelu": lambda x: F.gelu(x.nan_to_num(0, 9, -9)),  # of an infinite number PyTorch's is NaN or not, by its dtype
    "atan2": lambda x: torch.atan2(x[:, 0], x[:, 1]),
}  # fmt: skip


class Shown(nn.Module):
    hidden_size = 2

    def __init__(self, functions: Many) -> None:
        super().__init__()
        self.functions = functions

    def forward(self, x: Tensor, h: Tensor) -> tuple[list[Tensor], Tensor]:
        given = [f(value) for value in (x.detach(), h.detach()) for f in self.functions.values()]
        return [
            tensor for some in given for tensor in (some if isinstance(some, (list, tuple)) else [some])
        ], h + 0 * x


def held(functions: Many, dtype: torch.dtype, path: Path) -> None:
    """Before the loop and in it, with every pair of numbers."""
    numbers = torch.tensor(NUMBERS, dtype=dtype)
    pairs = torch.cartesian_prod(numbers, numbers)
    layer = elman.Recurrent(Shown(functions), engine="reference")
    with torch.no_grad():
        layer(torch.rand(1, 3, 2, dtype=dtype) / 2, torch.rand(3, 2, dtype=dtype) / 2)
        (path,) = elman.export(layer, path)
        expected = Shown(functions)(pairs, pairs)[0]
    found = run(session(path), pairs.unsqueeze(0), pairs)
    assert len(found) == len(expected) + 1
    for number, (mine, right) in enumerate(zip(found, expected, strict=False)):
        torch.testing.assert_close(
            torch.from_numpy(mine)[0], right, equal_nan=True, atol=1e-7 if dtype == SINGLE else 1e-15,
            rtol=1e-5 if dtype == SINGLE else 1e-11, msg=lambda m, number=number: f"result {number}: {m}",
        )  # fmt: skip


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE])
@pytest.mark.parametrize("name", list(GROUPS))
def test_every_pair_of_odd_numbers(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    held(GROUPS[name], dtype, tmp_path / "a.onnx")


def test_what_is_there_for_float32_alone(tmp_path: Path) -> None:
    held(SINGLES, SINGLE, tmp_path / "a.onnx")


@pytest.mark.parametrize("name", ["atan", "gelu", "atan2"])
def test_it_is_refused_in_float64(name: str, tmp_path: Path) -> None:
    """ONNX Runtime does not open such a file."""
    layer = elman.Recurrent(Shown({name: SINGLES[name]})).double()
    layer(torch.randn(2, 3, 2, dtype=DOUBLE))
    with pytest.raises(NotSupported, match="of float64"):
        elman.export(layer, tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())
