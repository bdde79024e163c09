"""No role hangs on how a user spells a key or a parameter: first and second derivatives, and the unfolded graph."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import elman
from elman.circuit.form import Kind
from elman.errors import CircuitError
from elman.plan.cut import pair
from tests.circuits import circuit_of
from tests.pairwise import with_more
from tests.recurrent import compare
from tests.recurrent.compare import Inputs

Tensor = torch.Tensor
# What elman itself makes of the name `h`, of `x`, or of nothing.
OURS = (
    "h_next", "h_final", "h_before", "h_t0", "x_t0", "x_t1", "d_x", "d_h", "g_output", "g_h_final", "ct_o", "noise_0",
    "captured_0", "o", "o_1", "output", "output_t0", "rows", "timeline", "teacher", "teacher_weight", "kept", "kept_h",
    "tanh", "mm", "x", "h", "state", "x_t0_2", "h_next_2",
)  # fmt: skip


class Named(nn.Module):
    """h ← tanh(x + p₀ h + (p₁ + …) sin h), its parameters called as one likes."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self.hidden_size, self.names = 2, names
        for i, name in enumerate(names):
            self.register_parameter(name, nn.Parameter(torch.tensor([0.3, -0.2]) * (i + 1)))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        first, *more = (getattr(self, name) for name in self.names)
        return torch.tanh(x + first * h + sum(more) * torch.sin(h))


class Keyed(nn.Module):
    """Two states under keys that one likes."""

    def __init__(self, a: str, b: str) -> None:
        super().__init__()
        self.keys, self.W, self.V = (a, b), nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor, s: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        a, b = (s[key] for key in self.keys)
        new = {
            self.keys[0]: torch.tanh(self.W(a) + x * b),
            self.keys[1]: torch.sigmoid(self.V(b) + a),
        }
        return {self.keys[1]: new[self.keys[0]] * new[self.keys[1]], self.keys[0]: a}, new


def _check(rnn: elman.Recurrent, state: object) -> None:
    x = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    inputs = Inputs(4, 3, x, state, None, None)
    found = []
    for run in (compare.ours, compare.theirs):
        wanted = compare.wanted_of(rnn, inputs)
        first = compare.gradients(compare.flat(*run(rnn, inputs)), wanted, create_graph=True)
        found.append((compare.flat(*run(rnn, inputs)), first, compare.gradients(first, wanted)))
    for mine, right in zip(*found, strict=True):
        compare.assert_equal(mine, right)


def _leaf() -> Tensor:
    return torch.randn(3, 2, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("at", with_more([0, 20], [10]))
def test_parameters_may_have_any_name(at: int) -> None:
    names = OURS[at : at + 10]
    rnn = elman.Recurrent(Named(names).double())
    _check(rnn, _leaf())
    circuit = rnn.circuit
    x, h = torch.randn(3, 2, 2, dtype=torch.float64), torch.randn(2, 2, dtype=torch.float64)
    owned = {port.path.removeprefix("cell."): port.name for port in circuit.inputs_of(Kind.CONSTANT)}
    given = {owned[name]: value.detach() for name, value in rnn.cell.named_parameters()}
    (sequence,) = circuit.inputs_of(Kind.SEQUENCE)
    (state,) = circuit.inputs_of(Kind.STATE)
    made = elman.unfold(circuit, 3)({**given, sequence.name: x, state.name: h})
    torch.testing.assert_close(made[circuit.outputs_of(Kind.SEQUENCE)[0].name], rnn(x, h)[0].detach())


@pytest.mark.parametrize(
    "keys",
    with_more(
        [("a_before", "a")],
        [("t0", "x_t0"), ("a", "a_next"), ("a_next", "a"), ("a", "a_final"), ("x", "x_next")],
    ),
)
def test_states_may_have_any_key(keys: tuple[str, str]) -> None:
    _check(elman.Recurrent(Keyed(*keys).double()), {key: _leaf() for key in keys})


def test_what_the_backward_pass_reads_must_be_kept() -> None:
    """The starting state has the name of the sequence h(t-1) and must never take its place."""
    both = pair(circuit_of("elman"))
    less = {out: port for out, port in both.kept.items() if port != "h"}
    with pytest.raises(CircuitError, match="reads state before each step, and it is not kept"):
        replace(both, kept=less).check()
    with pytest.raises(CircuitError, match="nobody gives it out"):
        replace(both, kept=both.kept | {"kept typo": "typo"}).check()


MASK = torch.tensor([True, False])


class Masked(nn.Module):
    """Uses a tensor of its module's, and a number that becomes one: its derivative meets them in another order."""

    hidden_size = 2

    def __init__(self) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.tensor([[0.3, -0.4], [0.5, 0.2]]))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        z = x + h @ self.W
        return torch.tanh(torch.where(MASK, z * z, 0.0))


def test_second_derivatives_with_tensors_from_elsewhere() -> None:
    _check(elman.Recurrent(Masked().double()), _leaf())
