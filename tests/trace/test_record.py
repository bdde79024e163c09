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
from tests.cases import CASES, SELDOM, Case
from tests.pairwise import with_more

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


# Whatever operation a step of another case has, or its gradient, one of these has as well.
EACH = (
    "linear_rnn", "addressing_rnn", "latch_rnn", "layer_norm_rnn", "token_rnn", "weight_norm_rnn", "loss_rnn",
    "convolutional_rnn", "rounded_rnn", "dropout_rnn", "attention_rnn", "dict_output_rnn", "clipped_rnn", "lying_rnn",
    "straight_through_rnn", "counting_rnn", "flattened_first_rnn", "in_place_rnn",
)  # fmt: skip


@pytest.mark.parametrize("name", with_more(EACH, [name for name in CASES if name not in EACH]))
def test_it_writes_down_what_make_fx_does(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    cell = case.make().double()
    with monkeypatch.context() as alone:
        alone.setattr(JOINT, "record_anything", refuses)
        ours = traced(cell, case).recorded().joint
    monkeypatch.setattr(JOINT, "record", by_make_fx)
    theirs = traced(cell, case, check=False).recorded().joint
    for mine, other in zip(described(ours), described(theirs), strict=True):
        assert mine == other


@pytest.mark.conformance
def test_the_first_of_them_have_each_operation() -> None:
    met: dict[bool, set[str]] = {True: set(), False: set()}
    for name in [name for name in CASES if name not in SELDOM]:
        joint = traced(CASES[name].make().double(), CASES[name], check=False).recorded().joint
        met[name in EACH] |= {str(node.target) for node in joint.graph.nodes if node.op == "call_function"}
    assert met[False] - met[True] == set()


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
