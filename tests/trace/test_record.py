"""What elman writes down of a step is what PyTorch's own recorder does, which is left to what is unusual."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import elman
from elman.circuit.form import Circuit, Joint
from elman.trace import record
from tests.cases import CASES, Case

Tensor = torch.Tensor
JOINT = importlib.import_module("elman.trace.joint")


def by_make_fx(
    function: Callable[[list[Tensor]], Sequence[Tensor]], inputs: Sequence[Tensor], apart: Mapping[Any, Any]
) -> record.Recorded:
    return record.record_anything(function, inputs, apart)


def refuses(*_: Any) -> record.Recorded:
    raise AssertionError("make_fx was asked")


def traced(cell: nn.Module, case: Case, check: bool = True) -> Circuit:
    x = pytree.tree_map_only(Tensor, lambda value: value[0], case.x(1, 3))
    return elman.trace(cell, x, case.state(3), case.context(3), check=check)


def described(joint: Joint) -> list[Any]:
    """All that a joint says; sizes as they are called, and where values lie."""

    def value_of(value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return [value_of(part) for part in value]
        if not isinstance(value, Tensor):
            return str(value)
        return value.dtype, value.device, str(value.shape), str(value.stride())

    nodes = [
        (n.name, n.op, str(n.target), str(n.args), str(n.kwargs), value_of(n.meta.get("val")), n.meta.get("primal"))
        for n in joint.graph.nodes
    ]  # fmt: skip
    ports = [port for port, _ in joint.captured]
    return [*nodes, joint.results, joint.cotangents, joint.gradients, joint.flowing, joint.noise, ports]


@pytest.mark.parametrize("case", CASES.values(), ids=str)
def test_it_writes_down_what_make_fx_does(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = case.make().double()
    with monkeypatch.context() as alone:
        alone.setattr(JOINT, "record_anything", refuses)
        ours = traced(cell, case).recorded().joint
    monkeypatch.setattr(JOINT, "record", by_make_fx)
    theirs = traced(cell, case, check=False).recorded().joint
    for mine, other in zip(described(ours), described(theirs), strict=True):
        assert mine == other


class Unusual(nn.Module):
    """It takes a number out of a tensor of its own making, which make_fx works out."""

    hidden_size = 4

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(x + h) * torch.tensor(0.5).item()


def test_the_unusual_goes_to_make_fx(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def noting(*args: Any) -> record.Recorded:
        asked.append("make_fx")
        return record.record_anything(*args)

    monkeypatch.setattr(JOINT, "record_anything", noting)
    cell, x = Unusual(), torch.randn(3, 2, 4)
    hs, _ = elman.Recurrent(cell)(x)
    assert asked == ["make_fx"]
    h = torch.zeros(2, 4)
    for t in range(3):
        h = cell(x[t], h)
        torch.testing.assert_close(hs[t], h)


def test_nobody_else_is_asked_for_ordinary_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever PyTorch's version: else every trace would be made twice."""
    monkeypatch.setattr(JOINT, "record_anything", refuses)
    for cell in (elman.cells.Elman(3, 4), elman.cells.LSTM(3, 4), nn.GRUCell(3, 4)):
        elman.Recurrent(cell)(torch.randn(3, 2, 3))[0].sum().backward()
