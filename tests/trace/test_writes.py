"""In-place operations inside a step: who reads later gets what was written, who read before what was there."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import fx, nn

import elman
from elman.errors import TraceError
from elman.trace.writes import is_write, without_plain_writes
from tests import eager

Tensor = torch.Tensor


def _view_read_later(z: Tensor) -> Tensor:
    part = z[:, :2]
    z.mul_(1.5)
    return z * part.sum(1, keepdim=True)


def _base_read_later(z: Tensor) -> Tensor:
    z[:, :2].mul_(1.5)
    return z


def _value_before(z: Tensor) -> Tensor:
    before = z * 2
    z.add_(1)
    return z * before


def _two_names(z: Tensor) -> Tensor:
    y = z.mul_(1.5)
    return z.tanh_() * y


def _mask(z: Tensor) -> Tensor:
    mask = z > 0
    mask &= z < 0.5
    mask |= z > 1
    return torch.where(mask, z, 0.1 * z)


def _cast(z: Tensor) -> Tensor:
    n = (3 * z).detach().long()
    n.mul_(2).bitwise_and_(3)
    return z + n


def _pieces(z: Tensor) -> Tensor:
    a, b = z.unsafe_chunk(2, 1)
    return torch.cat([a.sigmoid_(), b.tanh_()], 1)


def _read_by_itself(z: Tensor) -> Tensor:
    turned = z.flip(1)
    z.add_(turned)
    turned.zero_()
    return z + turned


def _to_a_power(z: Tensor) -> Tensor:
    z **= 2
    return z.pow_(1.5).float_power(1.0).type_as(z)


def _list(z: Tensor) -> Tensor:
    torch._foreach_clamp_max_([z], 20.0)
    return z


def _clipped(z: Tensor) -> Tensor:
    return nn.functional.hardtanh_(z)


def _complex(z: Tensor) -> Tensor:
    torch.view_as_complex(z.view(-1, 2, 2)).mul_(1j)
    return z


WRITES: dict[str, Callable[[Tensor], Tensor]] = {
    name.removeprefix("_").replace("_", " "): function
    for name, function in list(globals().items())
    if callable(function) and name.startswith("_") and getattr(function, "__module__", "") == __name__
}


class Writing(nn.Module):
    """A step that writes in every way, each into a tensor of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.W, self.U = nn.Linear(4, 4), nn.Linear(3, 4)

    def forward(self, x: Tensor, h: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        z = self.W(h) + self.U(x)
        return {name: torch.tanh(write(z * 1.5)) for name, write in WRITES.items()}, torch.tanh(z)


def test_a_write_is_seen_by_who_reads_later() -> None:
    cell, x, h = Writing().double(), torch.randn(3, 2, 3).double(), torch.randn(2, 4).double()
    (made, _), (expected, _) = elman.Recurrent(cell)(x, h), eager.unroll(cell, x, h)
    wants, found = list(cell.parameters()), []
    for name in WRITES:
        torch.testing.assert_close(made[name], expected[name], msg=lambda m, name=name: f"{name}: {m}")
    for values in (made, expected):
        total = sum(weight * values[name].sum() for weight, name in enumerate(WRITES, 1))
        found.append(torch.autograd.grad(total, wants))
    torch.testing.assert_close(*found)


class WritesPieces(nn.Linear):
    hidden_size = 4

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        a, b = super().forward(h + x).chunk(2, -1)
        return torch.cat([a.tanh_(), b], -1)


def test_a_write_that_autograd_refuses_is_told_with_its_line_and_a_mend_that_helps() -> None:
    with pytest.raises(
        TraceError, match=r"autograd refuses(.|\n)*a\.tanh_\(\)(.|\n)*mend: [^\n]* v = v\.clone\(\)"
    ):
        elman.Recurrent(WritesPieces(4, 4))(torch.randn(3, 2, 4))


def recorded(write: Callable[[Tensor], Tensor]) -> fx.Graph:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    with FakeTensorMode():
        return make_fx(lambda z: write(z + 0))(torch.ones(2, 4)).graph


@pytest.mark.parametrize(
    "write", [_value_before, _two_names, _mask, _cast, _pieces], ids=lambda f: f.__name__[1:]
)
def test_what_nobody_else_reads_is_not_recorded_again(write: Callable[[Tensor], Tensor]) -> None:
    graph = recorded(write)
    assert without_plain_writes(graph)
    assert not any(map(is_write, graph.nodes))
    assert all("val" in node.meta for node in graph.nodes if node.op == "call_function")


@pytest.mark.parametrize("write", [_view_read_later, _base_read_later], ids=lambda f: f.__name__[1:])
def test_what_somebody_else_reads_stays(write: Callable[[Tensor], Tensor]) -> None:
    graph = recorded(write)
    assert not without_plain_writes(graph)
    assert any(map(is_write, graph.nodes))


class Step(nn.Module):
    hidden_size = 4

    def __init__(self, write: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.write = write

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        z = x + h
        self.write(z)
        return z


def test_a_write_that_gives_nothing_is_seen_far_from_where_cells_are_tried() -> None:
    """The numbers with which circuit and cell are compared are not as large as 20."""
    cell, x = Step(lambda z: torch._foreach_clamp_max_([z], 20.0)), torch.full((5, 2, 4), 9.0)
    assert (elman.Recurrent(cell)(x)[1] == 20).all()


@torch.library.custom_op("elman_tests::saturate", mutates_args={"z"})
def saturate(z: Tensor) -> None:
    z.clamp_(max=20)


@saturate.register_fake
def _(z: Tensor) -> None:
    return None


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda z: saturate(z.detach()), "saturate"),
        (lambda z: z.unfold(1, 2, 2).mul_(3), "views"),
        (lambda z: torch.as_strided(z, (z.shape[0], 2), (4, 2), 1).mul_(3), "as_strided"),
    ],
    ids=["custom operation", "unfold", "as_strided"],
)
def test_a_write_that_no_circuit_can_hold_is_refused(write: Callable[[Tensor], object], words: str) -> None:
    with pytest.raises(TraceError, match=words):
        elman.Recurrent(Step(write))(torch.zeros(3, 2, 4))
