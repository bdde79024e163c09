"""Convolutions inside a step, of every kind: the native engine gives what PyTorch's own gives, forward and adjoint."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from elman.engines.native import Native, why_not_built
from elman.engines.reference import Reference
from elman.execute.program import Program
from elman.plan.form import Loop
from elman.trace import trace
from tests.engines.loops import CPU, given
from tests.engines.test_native import ENGINES, assert_same
from tests.pairwise import with_more

pytestmark = pytest.mark.skipif(why_not_built() is not None, reason=f"native engine: {why_not_built()}")

Tensor = torch.Tensor
NATIVE, REFERENCE = Native(), Reference()


@dataclass(frozen=True)
class Kind:
    """A convolution of a state [B, channels, *size]."""

    name: str
    layer: type[nn.Module]
    channels: int
    size: tuple[int, ...]
    out: int
    kernel: int | tuple[int, ...]
    more: dict[str, object] = field(default_factory=dict)

    def make(self) -> nn.Module:
        return self.layer(self.channels, self.out, self.kernel, **self.more)

    def __str__(self) -> str:
        return self.name


UNEVEN = {"stride": (2, 1), "padding": (0, 2), "dilation": (1, 3), "groups": 2}
TURNED = {"stride": (3, 2), "dilation": (2, 1), "groups": 2}
KINDS = (
    Kind("line", nn.Conv1d, 3, (9,), 4, 3),
    Kind("one tap", nn.Conv1d, 3, (5,), 2, 1),
    Kind("one place", nn.Conv1d, 2, (5,), 3, 5),
    Kind("padded", nn.Conv1d, 2, (5,), 2, 3, {"padding": 4}),
    Kind("strided", nn.Conv1d, 2, (10,), 5, 3, {"stride": 2}),
    Kind("gaps", nn.Conv1d, 1, (9,), 2, 2, {"stride": 3}),
    Kind("dilated", nn.Conv1d, 2, (7,), 1, 3, {"dilation": 2, "padding": 3}),
    Kind("groups", nn.Conv1d, 4, (7,), 6, 3, {"groups": 2}),
    Kind("each channel", nn.Conv1d, 3, (7,), 3, 3, {"groups": 3, "padding": 1}),
    Kind("without bias", nn.Conv1d, 3, (4,), 4, 2, {"bias": False}),
    Kind("circular", nn.Conv1d, 2, (6,), 2, 3, {"padding": 1, "padding_mode": "circular"}),
    Kind("picture", nn.Conv2d, 3, (5, 17), 5, 3, {"padding": 1}),
    Kind("uneven", nn.Conv2d, 2, (6, 7), 4, (3, 2), UNEVEN),
    Kind("space", nn.Conv3d, 2, (3, 4, 3), 2, 2, {"stride": (1, 2, 1), "padding": 1}),
    Kind("turned", nn.ConvTranspose1d, 3, (4,), 4, 3, {"stride": 2, "padding": 1, "output_padding": 1}),
    Kind("turned, cut", nn.ConvTranspose1d, 1, (9,), 2, 2, {"padding": 3}),
    Kind("turned picture", nn.ConvTranspose2d, 4, (3, 3), 6, (2, 3), TURNED),
)  # fmt: skip


# What they show, others show with more besides.
SIMPLER = (
    "line", "one tap", "padded", "without bias", "strided", "gaps", "dilated", "groups", "circular", "turned",
)  # fmt: skip


class Convolving(nn.Module):
    """h = tanh(h + x + a weighted sum over the convolution of h): its shape need not be the state's."""

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        self.W = kind.make()
        with torch.no_grad():
            like = self.W(torch.zeros(1, kind.channels, *kind.size))
        self.register_buffer("v", torch.randn(like.shape[1:], generator=torch.Generator().manual_seed(3)))

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.tanh(self.W(h))
        dims = list(range(1, y.dim()))
        return y, torch.tanh(h + x + 0.1 * (y * self.v).sum(dims, keepdim=True))


def loops(kind: Kind, dtype: torch.dtype) -> dict[str, Loop]:
    cell = Convolving(kind).to(dtype)
    x = torch.zeros(2, kind.channels, *kind.size, dtype=dtype)
    program = Program(trace(cell, x, x.clone(), check=False))
    training = program.training(frozenset(p.name for p in program.inputs if p.differentiable))
    plans = {"inference": program.plan, "forward": training.forward, "backward": training.backward}
    return {what: plan.loop for what, plan in plans.items() if plan.loop is not None}


@pytest.mark.grid(1)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(
    "kind",
    with_more([k for k in KINDS if k.name not in SIMPLER], [k for k in KINDS if k.name in SIMPLER]),
    ids=str,
)
def test_loops(kind: Kind, dtype: torch.dtype) -> None:
    for what, loop in loops(kind, dtype).items():
        assert "convolution" in str(loop.graph), what
        for native in ENGINES.values():
            assert native.supports(loop, CPU) is None, what
            for sizes in ([2, 1], [7, 7, 7, 3]):
                at = given(loop, sizes, batch=sizes[0], scale=0.3)
                assert_same(at.run(native), at.run(REFERENCE), 1e-10 if dtype == torch.float64 else 1e-4)


def test_several_pictures_in_a_row() -> None:
    """The batch folded into more pictures than rows: [B · 3, 2, 5]."""

    class Many(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.W = nn.Conv1d(2, 2, 3, padding=1)

        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return torch.tanh(x + self.W(h.reshape(-1, 2, 5)).reshape(-1, 30))

    program = Program(trace(Many().double(), *torch.zeros(2, 2, 30, dtype=torch.float64)))
    training = program.training(frozenset(p.name for p in program.inputs if p.differentiable))
    for plan in (program.plan, training.forward, training.backward):
        assert plan.loop is not None
        assert NATIVE.supports(plan.loop, CPU) is None
        at = given(plan.loop, [3, 3, 2], scale=0.3)
        assert_same(at.run(NATIVE), at.run(REFERENCE))
        assert plan.loop.sums == (), "gradients of weights are made after the loop"


def test_a_kernel_for_each_row_is_refused_by_name() -> None:
    class Dynamic(nn.Module):
        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            made = torch.nn.functional.conv1d(h.unsqueeze(0), x.unsqueeze(1), padding=1, groups=h.shape[0])
            return torch.tanh(made.squeeze(0))

    with pytest.raises(Exception, match=r"batch|rows"):
        trace(
            Dynamic().double(), torch.zeros(2, 3, dtype=torch.float64), torch.zeros(2, 5, dtype=torch.float64)
        )
