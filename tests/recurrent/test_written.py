"""What a call does with memory: tensors that lie strangely, memory that is not written yet, and what is written into
before the backward pass.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import elman
from tests import eager, zoo
from tests.cases import CASES
from tests.recurrent import compare
from tests.recurrent.compare import Inputs
from tests.recurrent.small import layer, random

Tensor = torch.Tensor
EXACT = {"rtol": 1e-10, "atol": 1e-10}


@pytest.mark.parametrize("name", ["gru", "lstm", "cat_rnn"])
def test_tensors_that_are_not_contiguous(name: str) -> None:
    rnn, case = layer(name), CASES[name]
    plain = Inputs.of(case, 6, 3)

    def spread(leaf: Any) -> Any:
        wide = torch.zeros(*leaf.shape[1:], leaf.shape[0] * 2, dtype=leaf.dtype)
        view = wide.permute(-1, *range(leaf.dim() - 1))[::2]
        view.copy_(leaf.detach())
        assert view.numel() == 1 or not view.is_contiguous()
        return view.requires_grad_()

    tree = torch.utils._pytree.tree_map(spread, (plain.x, plain.state))
    strange = Inputs(6, 3, *tree, None, None)
    (got, _), (expected, _) = compare.both(rnn, strange), compare.both(rnn, plain)
    compare.assert_equal(got.values, expected.values)
    compare.assert_equal(got.gradients, expected.gradients)


def test_inputs_that_repeat_one_row() -> None:
    rnn, x = layer(), random(5, 1, 5)
    got, _ = rnn(x.expand(5, 3, 5), random(1, 7).expand(3, 7))
    assert torch.equal(got[:, 0], got[:, 2])


def test_cotangents_that_are_not_contiguous() -> None:
    rnn, inputs = layer(), Inputs.of(CASES["gru"], 5, 3)
    found = []
    for run in (compare.ours, compare.theirs):
        outputs, final = run(rnn, inputs)
        loss = outputs.sum() + outputs.transpose(0, 2).flip(0).cumsum(1).square().sum() + final.t().sum()
        found.append(torch.autograd.grad(loss, [inputs.x, inputs.state, *rnn.parameters()]))
    for mine, right in zip(*found, strict=True):
        torch.testing.assert_close(mine, right, **EXACT)


def test_memory_is_never_read_before_it_is_written(poisoned: None) -> None:
    for name in ("gru", "lstm", "delayed_rnn"):
        got, expected = compare.both(layer(name), Inputs.of(CASES[name], 5, 3))
        compare.assert_equal(got.values, expected.values)
        compare.assert_equal(got.gradients, expected.gradients)


class Echo(zoo.Base):
    """Gives out its input, its state before and after the step, and the new state once more."""

    def forward(self, x: Tensor, h: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        new = torch.tanh(self.U(x) + self.W(h))
        return {"x": x, "before": h, "new": new, "again": new}, new


@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
def test_outputs_are_tensors_of_their_own(grad: bool) -> None:
    """Whoever writes into one of them changes neither another output nor what went in."""
    rnn = elman.Recurrent(Echo(3, 4).double())
    x, h = random(5, 2, 3), random(2, 4)
    expected = eager.unroll(rnn.cell, x, h)[0]
    names = ("x", "before", "new", "again", "final")
    for written in names:
        given = x.clone(), h.clone()
        with torch.set_grad_enabled(grad):
            outputs, final = rnn(*given)
            made = {**outputs, "final": final}
            with torch.no_grad():
                made[written].fill_(7.0)
        assert torch.equal(given[0], x), f"writing into {written} changed x"
        assert torch.equal(given[1], h), f"writing into {written} changed the state"
        for name in names:
            if name != written:
                right = expected[name] if name != "final" else expected["new"][-1]
                torch.testing.assert_close(
                    made[name], right, msg=f"writing into {written} changed {name}", **EXACT
                )


@pytest.mark.grid(1)
@pytest.mark.parametrize("way", ["alone", "kept by hooks", "checkpointed", "differentiated twice"])
@pytest.mark.parametrize("name", ["elman", "gru", "lstm", "tied_rnn"])
def test_writing_into_outputs_and_final_states(name: str, way: str) -> None:
    """The gradient goes through what was written; what the backward pass needs is there all the same."""
    rnn, inputs = layer(name), Inputs.of(CASES[name], 4, 2)
    ways = (lambda x: rnn(x, inputs.state)), (lambda x: eager.unroll(rnn.cell, x, inputs.state))
    wanted, found = [inputs.x, *rnn.parameters()], []
    for run, apart in zip(ways, (False, True), strict=True):
        found.append(compare.through_what_is_written(run, inputs.x, wanted, way, apart))
    for mine, right in zip(*found, strict=True):
        torch.testing.assert_close(mine, right, **EXACT)


@pytest.mark.parametrize("victim", ["x", "state", "parameter", "final"])
def test_writing_between_forward_and_backward_is_detected(victim: str) -> None:
    """Gradients of numbers that are no longer there are an error; the final state is not needed, and the first is kept
    with those that follow it."""
    rnn, inputs = layer("gru"), Inputs.of(CASES["gru"], 4, 2)
    outputs, final = compare.ours(rnn, inputs)
    wanted = [inputs.x, inputs.state, *rnn.parameters()]
    right = torch.autograd.grad(outputs.sum(), wanted, retain_graph=True)
    changed = {"x": inputs.x, "state": inputs.state, "parameter": rnn.cell.W, "final": final}[victim]
    with torch.no_grad():
        changed.mul_(3)
    if victim in {"x", "parameter"}:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            torch.autograd.grad(outputs.sum(), wanted)
        return
    got = torch.autograd.grad(outputs.sum(), wanted)
    for mine, expected in zip(got, right, strict=True):
        torch.testing.assert_close(mine, expected, **EXACT)


@pytest.mark.grid(1)
@pytest.mark.parametrize("engine", ["native", "reference"])
@pytest.mark.parametrize(
    "name", ["elman", "lstm", "leaky", "layer_norm_rnn", "weight_norm_rnn", "linear_rnn"]
)
def test_what_the_backward_pass_does_not_read_may_be_written_into(name: str, engine: str) -> None:
    """As a bias: gradients are those of before, or there is PyTorch's error, whichever tensor it is."""
    rnn, inputs = layer(name, engine=engine), Inputs.of(CASES[name], 4, 2)
    wanted = compare.wanted_of(rnn, inputs)
    detected = set()
    for victim, tensor in wanted.items():
        made = [compare.projection(compare.flat(*compare.ours(rnn, inputs))) for _ in range(3)]
        right = torch.autograd.grad(made[0], list(wanted.values()))
        before = tensor.detach().clone()
        with torch.no_grad():
            tensor.mul_(3)
        try:
            got = torch.autograd.grad(made[1], list(wanted.values()))
        except RuntimeError as error:
            assert "modified by an inplace operation" in str(error)  # noqa: PT017 - it may well be none
            detected.add(victim)
        else:
            assert all(map(torch.equal, got, right)), victim
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            torch.autograd.grad(made[2], list(wanted.values()), create_graph=True)
        with torch.no_grad():
            tensor.copy_(before)
    assert detected < wanted.keys()


@pytest.mark.parametrize("victim", ["x", "drive", "W.bias"])
def test_what_is_only_added_may_be_written_into(victim: str) -> None:
    class Driven(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.W, self.hidden_size = nn.Linear(4, 4), 4
            self.register_buffer("drive", torch.zeros(4))

        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return torch.tanh(self.W(h) + x + self.drive)

    rnn, x = elman.Recurrent(Driven().double()), random(5, 2, 4)
    wanted, found = list(rnn.parameters()), []
    for written in (False, True):
        outputs, _ = rnn(x)
        if written:
            with torch.no_grad():
                {"x": x, "drive": rnn.cell.drive, "W.bias": rnn.cell.W.bias}[victim].add_(1)
        found.append(torch.autograd.grad(outputs.sum(), wanted))
    assert all(map(torch.equal, *found))
