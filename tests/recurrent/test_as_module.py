"""A layer as a module: copies, files, dtypes, hooks and names."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import elman
from elman import cells
from tests import eager
from tests.cases import CASES
from tests.pairwise import with_more
from tests.recurrent import compare
from tests.recurrent.compare import Inputs
from tests.recurrent.small import layer, random

Tensor = torch.Tensor
EXACT = {"rtol": 1e-10, "atol": 1e-10}


# --- as a module ----------------------------------------------------------------------------------------------------


def test_deepcopy_and_pickle() -> None:
    rnn, x = layer("lstm"), random(3, 2, 5)
    expected, _ = rnn(x)
    stream = io.BytesIO()
    torch.save(rnn, stream)
    stream.seek(0)
    for other in (
        copy.deepcopy(rnn),
        pickle.loads(pickle.dumps(rnn)),
        torch.load(stream, weights_only=False),
    ):
        assert torch.equal(other(x)[0], expected)
        with torch.no_grad():
            other.cell.W.zero_()
        assert not torch.equal(other(x)[0], expected)
        assert torch.equal(rnn(x)[0], expected), "a copy has weights of its own"


def test_state_dict() -> None:
    rnn, x = layer("lstm"), random(3, 2, 5)
    stream = io.BytesIO()
    torch.save(rnn.state_dict(), stream)
    stream.seek(0)
    other = elman.Recurrent(cells.LSTM(5, 7).double())
    other(x)
    other.load_state_dict(torch.load(stream))
    assert list(rnn.state_dict()) == ["cell.U", "cell.W", "cell.b"]
    assert torch.equal(other(x)[0], rnn(x)[0])
    other.load_state_dict({name: value.clone() for name, value in rnn.state_dict().items()}, assign=True)
    assert torch.equal(other(x)[0], rnn(x)[0])


def test_to_another_dtype_after_a_call() -> None:
    case = CASES["lstm"]
    rnn = elman.Recurrent(case.make())
    rnn(torch.zeros(2, 1, 5))
    rnn.to(torch.float64)
    got, expected = compare.both(rnn, Inputs.of(case, 3, 2))
    compare.assert_equal(got.values, expected.values)
    compare.assert_equal(got.gradients, expected.gradients)


def test_hooks_of_the_layer_run() -> None:
    rnn, seen = layer(), []
    rnn.register_forward_hook(lambda module, args, result: seen.append("forward"))
    rnn.register_full_backward_hook(lambda module, gin, gout: seen.append("backward"))
    x = random(3, 2, 5, requires_grad=True)
    rnn(x)[0].sum().backward()
    assert seen == ["forward", "backward"]


def test_hooks_on_tensors_and_parameters_run() -> None:
    rnn, x = layer(), random(3, 2, 5, requires_grad=True)
    rnn.cell.W.register_hook(lambda g: g * 0)
    x.register_hook(lambda g: g * 2)
    outputs, _ = rnn(x)
    outputs.register_hook(lambda g: g * 3)
    outputs.sum().backward()
    other = random(1)
    assert not rnn.cell.W.grad.any()
    y = x.detach().clone().requires_grad_()
    eager.unroll(rnn.cell, y, torch.zeros(2, 7, dtype=torch.float64))[0].sum().backward()
    torch.testing.assert_close(x.grad, 6 * y.grad, **EXACT)
    assert other.shape == (1,)


def test_a_hook_of_the_cell_is_part_of_the_step() -> None:
    """Removing it, too, is a change of the cell."""
    rnn, x = layer(), random(3, 2, 5)
    plain, _ = rnn(x)
    handle = rnn.cell.register_forward_hook(lambda module, args, result: result * 0.5)
    state = torch.zeros(2, 7, dtype=torch.float64)
    torch.testing.assert_close(rnn(x)[0], eager.unroll(rnn.cell, x, state)[0], **EXACT)
    handle.remove()
    torch.testing.assert_close(rnn(x)[0], plain, **EXACT)


class Named(nn.Module):
    """Parameters with the names that circuits use for themselves."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.hidden_size = 4
        for i, name in enumerate(names):
            self.register_parameter(name, nn.Parameter(torch.full((4,), 0.1 * (i + 1))))

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        a = x
        for parameter in self.parameters():
            a = a + parameter * torch.sin(a + h * parameter)
        h = torch.tanh(a + 0.1 * torch.randn_like(h))
        return h * a, h


NAMES = (
    "o", "h", "x", "h_next", "output", "h_final", "g_output", "g_h_final", "d_h", "d_x", "rows", "timeline", "noise_0",
    "ct_o", "captured_0", "mm", "add", "tanh", "h_before", "x_next", "state", "kept",
)  # fmt: skip


@pytest.mark.conformance  # tests/test_names.py gives parameters most of these names
@pytest.mark.parametrize(
    "names", with_more([NAMES], [(name,) for name in ("o", "h_next", "d_x", "noise_0", "tanh")]), ids="-".join
)
def test_parameters_may_have_any_name(names: tuple[str, ...]) -> None:
    rnn = elman.Recurrent(Named(*names).double())
    x, h = random(4, 2, 4, requires_grad=True), random(2, 4, requires_grad=True)
    got, expected = compare.both(rnn, Inputs(4, 2, x, h, None, None))
    compare.assert_equal(got.values, expected.values)
    compare.assert_equal(got.gradients, expected.gradients)
