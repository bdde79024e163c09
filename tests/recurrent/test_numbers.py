"""Numbers at the edge: NaN and infinity travel as in the eager loop, denormals are there, saturated gates have the
gradient that they have there; and a call gives the same bits again. docs/gradients.md promises it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

import elman
from elman.engines.native import why_not_built
from tests import eager
from tests.cases import CASES
from tests.recurrent import compare
from tests.recurrent.compare import Inputs

Tensor = torch.Tensor
native = pytest.param(
    "native", marks=pytest.mark.skipif(why_not_built() is not None, reason="there is no compiled part")
)
engines = pytest.mark.parametrize("engine", ["reference", native])
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
WHERE = ("x", "state", "weight", "cotangent")


def as_in_the_loop(
    rnn: elman.Recurrent, x: Tensor, state: Any, cotangent: float | None = None
) -> list[Tensor]:
    """Results and gradients of the layer, which are asserted to be those of the eager loop, NaN for NaN."""
    found = []
    states = torch.utils._pytree.tree_leaves(state)
    leaves = [x.requires_grad_(), *(s.requires_grad_() for s in states), *rnn.parameters()]
    for run in (lambda: rnn(x, state), lambda: eager.unroll(rnn.cell, x, state)):
        outputs, final = run()
        weight = torch.linspace(-1, 1, outputs.numel(), dtype=x.dtype).reshape(outputs.shape)
        if cotangent is not None:
            weight[1, 1, 0] = cotangent
        loss = (outputs * weight).sum() + sum(s.sum() for s in torch.utils._pytree.tree_leaves(final))
        gradients = torch.autograd.grad(loss, leaves)
        found.append([outputs, *torch.utils._pytree.tree_leaves(final), *gradients])
    tolerance = 1e-10 if x.dtype == torch.float64 else 1e-4
    for ours, theirs in zip(*found, strict=True):
        # What one unit in the last place of a full gate makes is as large as the inputs that it multiplies.
        size = max(1.0, float(theirs.detach().nan_to_num(0, 0, 0).abs().max()))
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * size, equal_nan=True)
    return found[0]


@pytest.mark.grid
@engines
@dtypes
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("name", ["elman", "gru", "lstm", "layer_norm_rnn", "torch_rnn_relu"])
def test_nan_and_infinity_travel_as_in_the_loop(
    name: str, where: str, number: float, dtype: torch.dtype, engine: str
) -> None:
    rnn = elman.Recurrent(CASES[name].make().to(dtype), engine=engine)
    inputs = Inputs.of(CASES[name], 4, 3, dtype)
    with torch.no_grad():
        first = torch.utils._pytree.tree_leaves(inputs.state)[0]
        target = {"x": inputs.x[2, 1], "state": first[1], "weight": next(rnn.parameters())[0]}.get(where)
        if target is not None:
            target.view(-1)[0] = number
    found = as_in_the_loop(rnn, inputs.x, inputs.state, number if where == "cotangent" else None)
    if name != "torch_rnn_relu":  # of which a unit that is off lets nothing through
        assert not all(value.isfinite().all() for value in found)
    if where == "x":  # what is not finite stays in its row
        assert found[0][:, [0, 2]].isfinite().all()
        assert found[0][:2].isfinite().all()


class Decay(nn.Module):
    """h is halved at every step, down through the denormals to zero."""

    hidden_size = 9

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return 0.5 * h + x


@engines
@dtypes
def test_denormals_are_numbers(dtype: torch.dtype, engine: str) -> None:
    """Neither outputs nor gradients are flushed to zero early."""
    tiny = torch.finfo(dtype).tiny
    x, state = torch.zeros(80, 2, 9, dtype=dtype), torch.full((2, 9), 2.0**10 * tiny, dtype=dtype)
    outputs, _, _, d_state, *_ = as_in_the_loop(elman.Recurrent(Decay(), engine=engine), x, state)
    below = (outputs > 0) & (outputs < tiny)
    assert below[:, 0, 0].sum() == (23 if dtype == torch.float32 else 52)
    assert torch.equal(outputs, eager.unroll(Decay(), x, state)[0])
    assert d_state.isfinite().all()


@pytest.mark.grid
@engines
@dtypes
@pytest.mark.parametrize("size", [15.0, 40.0, 1e3, 1e20])
@pytest.mark.parametrize("name", ["elman", "gru", "lstm"])
def test_saturated_gates_have_the_gradient_of_the_loop(
    name: str, size: float, dtype: torch.dtype, engine: str
) -> None:
    """Zero, or what is left of it near one; never NaN, however far out."""
    rnn = elman.Recurrent(CASES[name].make().to(dtype), engine=engine)
    inputs = Inputs.of(CASES[name], 5, 3, dtype)
    x = (inputs.x.detach() * size).requires_grad_()
    for value in as_in_the_loop(rnn, x, inputs.state):
        assert value.isfinite().all()


def test_a_gate_just_before_it_is_full() -> None:
    """σ'(z) = σ(1 - σ) of what σ has become in this precision: as PyTorch has it, number for number."""

    class Gate(nn.Module):
        hidden_size = 40

        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return torch.sigmoid(x) * h

    x = torch.linspace(-60, 60, 40).expand(1, 2, 40).clone()
    _, _, d_x, *_ = as_in_the_loop(elman.Recurrent(Gate()), x, torch.ones(2, 40))
    assert (d_x.abs() > 0).sum() > 20


# --- bits -----------------------------------------------------------------------------------------------------------


def bits(name: str, engine: str, said: bool) -> str:
    """A digest of all that a training call gives."""
    case = CASES[name]
    rnn = elman.Recurrent(case.make(), engine=engine)
    inputs = Inputs.of(case, 33, 7, torch.float32)
    torch.manual_seed(5)
    lengths = {"lengths": torch.tensor([33, 1, 9, 0, 33, 20, 2])} if said else {}
    values = compare.flat(*rnn(inputs.x, inputs.state, context=inputs.context, **lengths))
    gradients = compare.gradients(values, compare.wanted_of(rnn, inputs))
    digest = hashlib.sha256()
    for value in (*values.values(), *gradients.values()):
        digest.update(b"" if value is None else value.detach().numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.grid
@engines
@pytest.mark.parametrize(
    ("name", "said"),
    [("lstm", False), ("lstm", True), ("noisy_rnn", False), ("noisy_rnn", True), ("attention_rnn", False)],
)
def test_a_call_gives_the_same_bits_again(name: str, said: bool, engine: str) -> None:
    assert bits(name, engine, said) == bits(name, engine, said)


@pytest.mark.conformance
def test_another_process_gives_the_same_bits() -> None:
    """No choice is made by timing, and no order by addresses or hashes."""
    code = "from tests.recurrent.test_numbers import bits; print(bits('gru', 'auto', True))"
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", f"import torch; torch.set_num_threads({torch.get_num_threads()}); {code}"],
            capture_output=True, text=True, env={**os.environ, "PYTHONHASHSEED": seed}, check=False,
        )  # fmt: skip
        assert done.stdout.strip() == bits("gru", "auto", True), done.stderr


@pytest.mark.skipif(why_not_built() is not None, reason="there is no compiled part")
@pytest.mark.parametrize("name", ["noisy_rnn", "bernoulli_rnn", "dropout_rnn"])
def test_the_random_numbers_of_a_call_are_the_same_on_every_engine(name: str) -> None:
    found = []
    for engine in ("reference", "native"):
        rnn = elman.Recurrent(CASES[name].make().double(), engine=engine)
        inputs = Inputs.of(CASES[name], 20, 3)
        values = compare.flat(*compare.ours(rnn, inputs))
        found.append(values | compare.gradients(values, compare.wanted_of(rnn, inputs)))
    compare.assert_equal(*found)
