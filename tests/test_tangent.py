"""The tangent circuit: laws, and forward mode through `elman.Recurrent` against the loop over the same cell."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import jvp
from torch.utils import _pytree as pytree

import elman
from elman.adjoint import cotangent_ports
from elman.circuit import graphs
from elman.circuit.form import Circuit
from elman.errors import InputError, InputTypeError
from tests import ways
from tests.cases import CASES
from tests.circuits import circuit_of
from tests.pairwise import with_more
from tests.recurrent import compare, ragged
from tests.recurrent.along import directions, pushed
from tests.recurrent.compare import Inputs
from tests.recurrent.small import layer

Tensor = torch.Tensor
EACH = ["lstm", "columns_rnn", "token_rnn", "noisy_rnn"]
MORE = [
    name for name, case in CASES.items()
    if name not in (*EACH, "straight_through_rnn", "lying_rnn", "spiking_rnn", "clipped_rnn", "flattened_first_rnn")
    and (case.twice or name == "hard_gru")
]  # fmt: skip


def agree(rnn: elman.Recurrent, inputs: Inputs, where: Any = compare, **said: Any) -> None:
    way = directions(rnn, inputs)
    for name in ("teacher", "teacher_weight"):
        if isinstance(said.get(name), Tensor) and said[name].is_floating_point():
            way[name] = torch.randn_like(said[name])
    got, expected = (pushed(run, rnn, inputs, way, **said) for run in (where.ours, where.theirs))
    compare.assert_equal(got, expected)
    assert any(value is not None and value.any() for value in got.values())


# --- against the loop ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", with_more(EACH, MORE))
def test_directions_are_those_of_the_loop(name: str) -> None:
    agree(layer(name), Inputs.of(CASES[name], 4, 3))


@pytest.mark.grid(1)
@pytest.mark.parametrize("cut", [("lengths",), ("reset",), ("lengths", "mask", "reset")], ids=" ".join)
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("name", with_more(["elman"], ["gru", "lstm", "context_rnn", "learned_start_rnn"]))
def test_ragged_and_cut(name: str, reverse: bool, cut: tuple[str, ...]) -> None:
    told = ragged.said(6, 4)
    agree(
        layer(name, reverse=reverse), Inputs.of(CASES[name], 6, 4), ragged, **{key: told[key] for key in cut}
    )


@pytest.mark.parametrize(
    ("cut", "reverse"),
    with_more([(("lengths", "mask", "reset"), True)], [((), False), (("reset",), False)], True),
)
def test_ragged_and_cut_of_a_cell_that_draws(cut: tuple[str, ...], reverse: bool) -> None:
    def example(T: int, B: int, _: torch.Generator) -> tuple[Any, Any, Any]:
        inputs = Inputs.of(CASES["dropout_rnn"], T, B)
        x, state = pytree.tree_map(torch.Tensor.detach, (inputs.x, inputs.state))
        return x, state, None

    cell: Any = CASES["dropout_rnn"].make().double()
    cell.initial_state = lambda rows: torch.zeros(rows, cell.hidden_size, dtype=torch.float64)
    ways.directions(ways.Call(cell, example, 6, 4, said=cut, reverse=reverse))


def test_a_teacher_and_its_weight_have_directions() -> None:
    inputs = Inputs.of(CASES["jordan"], 5, 3)
    teacher = torch.randn(5, 3, 4, dtype=torch.float64)
    agree(layer("jordan"), inputs, ragged, teacher=teacher)
    agree(
        layer("jordan"), inputs, ragged, teacher=teacher, teacher_weight=torch.rand(5, 3, dtype=torch.float64)
    )


@pytest.mark.parametrize(
    ("name", "engine"), with_more([("elman", "native")], [("gru", "native"), ("gru", "reference")], True)
)
def test_what_changes_alone(name: str, engine: str) -> None:
    """Whatever has no direction is as if it had one of zeros; states change only with what leads to them."""
    rnn, inputs = layer(name, engine=engine), Inputs.of(CASES[name], 4, 3)
    bias = "b" if name == "elman" else "c"
    for among in (("x",), ("state",), ("U",), (bias, "x"), ("W", "state")):
        way = directions(rnn, inputs, among)
        compare.assert_equal(*(pushed(run, rnn, inputs, way) for run in (compare.ours, compare.theirs)))


@pytest.mark.parametrize("memory", [elman.Segments(2), "1 MB"], ids=str)
def test_under_a_budget(memory: Any) -> None:
    rnn, inputs, told = layer("elman"), Inputs.of(CASES["elman"], 6, 4), ragged.said(6, 4)
    for said in ({}, {"lengths": told["lengths"]}):
        way, found = directions(rnn, inputs), []
        for rnn.memory in (None, memory):
            found.append(pushed(ragged.ours, rnn, inputs, way, **said))
        compare.assert_equal(*found)


def test_a_step_has_directions() -> None:
    rnn = layer("lstm")
    x, h = torch.randn(3, 5).double(), tuple(torch.randn(3, 7).double() for _ in range(2))
    for guard in (torch.enable_grad(), torch.no_grad()):
        with guard:
            for _ in range(2):
                got, expected = (
                    jvp(lambda x, run=run: run(x, h), (x,), (torch.ones_like(x),))
                    for run in (rnn.step, lambda x, h: (rnn.cell(x, h)[0], rnn.cell(x, h)))
                )
                for mine, theirs in zip(*map(pytree.tree_leaves, (got, expected)), strict=True):
                    torch.testing.assert_close(mine, theirs)
                with forward_ad.dual_level():
                    o, _ = rnn.step(forward_ad.make_dual(x, torch.ones_like(x)), h)
                    along = forward_ad.unpack_dual(o).tangent
                torch.testing.assert_close(along, expected[1][0])


# --- laws -----------------------------------------------------------------------------------------------------------


def numbers(ports: Any, seed: int, rows: int = 3) -> dict[str, Tensor]:
    """Random numbers for one step of every port."""
    generator = torch.Generator().manual_seed(seed)
    return {
        port.name: torch.randn([*([rows] if port.rows else []), *port.shape], generator=generator, dtype=port.dtype)
        for port in ports
    }  # fmt: skip


def step(circuit: Circuit, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Output port -> what comes out of one step."""
    found = graphs.run(circuit.graph, values, 3)
    return {
        out.name: values[out.wire.name] if out.wire.is_input else found[out.wire.name]
        for out in circuit.outputs
    }


@functools.cache
def along_of(name: str) -> Circuit:
    return elman.tangent(circuit_of(name))


@pytest.mark.parametrize(
    "name", with_more(["elman", "columns_rnn"], ["gru", "lstm", "layer_norm_rnn", "jordan", "kinked_rnn"])
)
def test_tangent_and_adjoint_are_transposes(name: str) -> None:
    """⟨g, f' v⟩ = ⟨f'ᵀ g, v⟩ for every step."""
    along, back = along_of(name), elman.adjoint(circuit_of(name))
    values = numbers({p.name: p for p in (*along.inputs, *back.inputs)}.values(), 0)
    pushed = step(along, values)
    pulled = graphs.run(back.graph, {p.name: values[p.name] for p in back.inputs}, 3)
    of_output = cotangent_ports(back)
    left = sum(
        (values[of_output[str(out.tangent_of)]] * pushed[out.name]).sum()
        for out in along.outputs
        if out.tangent_of in of_output
    )
    right = sum(
        (pulled[f"d_{port.tangent_of}"] * values[port.name]).sum()
        for port in along.inputs
        if f"d_{port.tangent_of}" in pulled and port.tangent_of is not None
    )
    torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


def test_tangent_of_the_adjoint_is_adjoint_of_the_tangent() -> None:
    """Along v, the gradient of ⟨g, f⟩ changes by the gradient of ⟨g, f' v⟩."""
    circuit = circuit_of("elman")
    inputs = [port.name for port in circuit.inputs]
    first, second = (
        elman.tangent(elman.adjoint(circuit), wrt=inputs),
        elman.adjoint(elman.tangent(circuit), wrt=inputs),
    )
    values = numbers({p.name: p for p in first.inputs}.values(), 1)
    cotangents = cotangent_ports(elman.adjoint(circuit))
    for port in first.inputs:
        if port.tangent_of in cotangents.values():  # the cotangents themselves stay
            values[port.name] = torch.zeros_like(values[port.name])
    shared = {**values}
    for out, port in cotangent_ports(second).items():
        shared[port] = values[cotangents[out.removeprefix("t_")]]
    one = step(first, values)
    other = graphs.run(second.graph, {port.name: shared[port.name] for port in second.inputs}, 3)
    compared = {name: (one[f"t_d_{name}"], other[f"d_{name}"]) for name in inputs if f"d_{name}" in other}
    assert {"U", "W", "x", "h"} <= compared.keys()
    for mine, theirs in compared.values():
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_it_is_linear_in_its_direction() -> None:
    along = along_of("elman")
    values = numbers(along.inputs, 2)
    ways = {port.name for port in along.inputs if port.tangent_of is not None}
    others = {name: torch.randn_like(value) for name, value in values.items() if name in ways}
    a, b = step(along, values), step(along, values | others)
    mixed = {name: 2.0 * values[name] - 3.0 * others[name] for name in ways}
    for name, value in step(along, values | mixed).items():
        torch.testing.assert_close(value, 2.0 * a[name] - 3.0 * b[name], rtol=1e-12, atol=1e-12)


def test_ports_are_dual_to_those_of_the_adjoint() -> None:
    circuit = circuit_of("elman")
    along, back = along_of("elman"), elman.adjoint(circuit)
    ways = {port.tangent_of: port.kind.value for port in along.inputs if port.tangent_of is not None}
    assert ways == {"U": "constant", "W": "constant", "b": "constant", "x": "sequence", "h": "state"}
    assert {out.gradient_of: out.kind.value.replace("sum", "constant") for out in back.outputs} == ways
    assert {out.tangent_of for out in along.outputs} == {out.name for out in circuit.outputs}
    assert not along.reverse
    assert back.reverse


def test_names_are_checked() -> None:
    circuit = circuit_of("elman")
    with pytest.raises(InputError, match=r"no input 'y' that has a direction"):
        elman.tangent(circuit, wrt=["y"])
    with pytest.raises(InputTypeError):
        elman.tangent(circuit, wrt="x")
