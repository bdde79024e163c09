"""The adjoint is a circuit: run on h(t-1) and cotangents, it gives the gradient; its own adjoint gives the next one."""

from __future__ import annotations

import functools

import pytest
import torch

from elman.adjoint import adjoint, cotangent_ports, expose
from elman.circuit.form import Circuit, Kind, Wire
from elman.errors import InputError, InputTypeError
from elman.trace import trace
from tests.cases import CASES
from tests.circuits import (
    Problem,
    adjoint_of,
    assert_close,
    backward_inputs,
    circuit_of,
    cotangents,
    exposed_of,
    gradients,
    problem,
    unfolded,
)
from tests.pairwise import with_more

Tensor = torch.Tensor
DUAL = {Kind.CONSTANT: Kind.SUM, Kind.SEQUENCE: Kind.SEQUENCE, Kind.STATE: Kind.STATE}
T, B = 3, 2


def by_adjoint(at: Problem, back: Circuit, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Input port -> gradient: the exposed circuit forward, then the adjoint, both unfolded."""
    exposed = exposed_of(at.name, at.circuit.reverse)
    with torch.no_grad():
        values = unfolded(exposed, at.T)(at.inputs)
        made = unfolded(back, at.T)(backward_inputs(at.circuit, back, at.inputs, values, given, at.T, at.B))
    return {name.removeprefix("d_"): value for name, value in made.items()}


REVERSED = [
    "elman",
    "lstm",
    "delayed_rnn",
    "dropout_rnn",
    "lying_rnn",
    "detached_rnn",
    "context_rnn",
    "twin_rnn",
]


@pytest.mark.grid(1)
@pytest.mark.parametrize(
    ("name", "reverse"), [*((name, False) for name in CASES), *((name, True) for name in REVERSED)]
)
def test_it_gives_the_gradient_of_the_eager_loop(name: str, reverse: bool) -> None:
    """Cells with a backward of their own included: straight-through, detach, no_grad, a lie."""
    at = problem(name, T, B, reverse=reverse)
    expected = at.unrolled()
    given = cotangents(expected)
    got = by_adjoint(at, adjoint_of(name, reverse), given)
    assert_close(got, gradients(expected, given, at.leaves()))


@pytest.mark.parametrize("name", ["elman", "lstm", "dropout_rnn", "context_rnn"])
def test_of_one_step_it_is_the_transposed_step(name: str) -> None:
    at = problem(name, 1, B)
    expected = at.unrolled()
    given = cotangents(expected)
    assert_close(by_adjoint(at, adjoint_of(name), given), gradients(expected, given, at.leaves()))


def test_of_no_step_it_hands_on_the_cotangent_of_the_state() -> None:
    at = problem("lstm", 0, B)
    given = {out.name: torch.randn(B, 7, dtype=torch.float64) for out in at.circuit.outputs_of(Kind.STATE)}
    got = by_adjoint(at, adjoint_of("lstm"), given)
    assert torch.equal(got["h"], given["h_final"])
    assert torch.equal(got["c"], given["c_final"])
    assert got["x"].shape == (0, B, 5)
    assert not got["U"].any()
    assert got["U"].shape == at.inputs["U"].shape


@pytest.mark.parametrize("name", CASES)
def test_ports_are_dual_and_time_turns(name: str) -> None:
    circuit, back = circuit_of(name), adjoint_of(name).check()
    assert back.reverse
    assert not adjoint_of(name, True).reverse
    joint = circuit.recorded().joint
    outs = {out.name: out for out in back.outputs}
    for port in circuit.inputs:
        flows = port.differentiable and joint.gradients.get(port.name) is not None
        wires = [*(p.next for p in circuit.inputs), *(out.wire for out in circuit.outputs)]
        wired = flows or Wire.input(port.name) in wires
        if flows:
            assert outs[f"d_{port.name}"].kind is DUAL[port.kind]
        elif not port.differentiable or not wired:
            assert f"d_{port.name}" not in outs
        if any(p.name == port.name for p in back.inputs) and port.kind is not Kind.STATE:
            assert back.input(port.name) == port, "the adjoint sees what the circuit saw"
    assert all(
        port.next is None and port.kind is Kind.SEQUENCE
        for port in back.inputs
        if port.name in {p.name for p in circuit.inputs_of(Kind.STATE)}
    )
    for out in circuit.outputs:
        if out.wire.is_input or out.wire.name not in joint.cotangents:
            continue
        cotangent = back.input(cotangent_ports(back)[out.name])
        dual = {Kind.SEQUENCE: Kind.SEQUENCE, Kind.STATE: Kind.STATE, Kind.SUM: Kind.CONSTANT}[out.kind]
        assert cotangent.kind is dual
    for port in circuit.inputs_of(Kind.STATE):
        if (
            joint.gradients.get(port.name) is not None
            and port.next is not None
            and port.next.name in joint.cotangents
        ):
            (final,) = (out for out in circuit.outputs_of(Kind.STATE) if out.state == port.name)
            cotangent = back.input(cotangent_ports(back)[final.name])
            assert cotangent.next in (Wire.result(f"d_{port.name}"), None)
            assert cotangent.shape == port.shape


def test_the_ports_of_the_books_network() -> None:
    back = adjoint_of("elman")
    assert {port.name: port.kind for port in back.inputs} == {
        "U": Kind.CONSTANT, "W": Kind.CONSTANT, "b": Kind.CONSTANT, "x": Kind.SEQUENCE, "h": Kind.SEQUENCE,
        "g_output": Kind.SEQUENCE, "g_h_final": Kind.STATE,
    }  # fmt: skip
    assert {out.name: out.kind for out in back.outputs} == {
        "d_U": Kind.SUM, "d_W": Kind.SUM, "d_b": Kind.SUM, "d_x": Kind.SEQUENCE, "d_h": Kind.STATE,
    }  # fmt: skip
    assert [(port.name, node.name) for port, node in back.delays()] == [
        ("g_h_final", back.results()["d_h"].name)
    ]
    twice = second_of("elman")
    assert not twice.reverse
    assert twice.input("g_d_U").kind is Kind.CONSTANT
    assert twice.input("g_d_x").kind is Kind.SEQUENCE
    assert twice.input("g_d_h").kind is Kind.STATE
    kinds = {out.name: out.kind for out in twice.outputs}
    assert kinds["d_W"] is Kind.SUM
    assert kinds["d_h"] is Kind.SEQUENCE, "h(t-1) is a sequence to the adjoint"
    assert kinds["d_g_output"] is Kind.SEQUENCE
    assert kinds["d_g_h_final"] is Kind.STATE


# --- the gradients that are asked for -----------------------------------------------------------------------


@pytest.mark.parametrize("wrt", [("x",), ("W",), ("h",), ("U", "b"), ()], ids=str)
def test_only_what_is_wanted_comes_out(wrt: tuple[str, ...]) -> None:
    at = problem("elman", T, B)
    back = adjoint(at.circuit, wrt)
    assert {out.name for out in back.outputs} == {f"d_{name}" for name in wrt}
    expected = at.unrolled()
    given = cotangents(expected)
    everything = gradients(expected, given, at.leaves())
    assert_close(by_adjoint(at, back, given), {name: everything[name] for name in wrt})


def test_what_nobody_wants_is_not_computed() -> None:
    everything, without = adjoint_of("lstm"), adjoint(circuit_of("lstm"), ("x",))

    def products(circuit: Circuit) -> int:
        return sum("mm" in str(node.target) for node in circuit.graph.nodes if node.op == "call_function")

    # Recomputed forward: U x and W h. Backward: dx and dh, and dU and dW.
    assert products(everything) == 6
    assert products(without) == 4


def test_a_buffer_and_an_integer_have_no_gradient() -> None:
    assert "d_sign" not in {out.name for out in adjoint_of("dale_rnn").outputs}
    names = {out.name for out in adjoint_of("counting_rnn").outputs}
    assert "d_h" in names
    assert "d_count" not in names
    assert not [port for port in adjoint_of("counting_rnn").inputs if port.name.endswith("count_final")]


# --- a backward of one's own --------------------------------------------------------------------------------


def test_a_lie_is_told_as_it_is() -> None:
    """Three times the derivative in one step, so in T steps neither the truth nor three times the truth."""
    for steps in (1, T):
        at = problem("lying_rnn", steps, B)
        honest = unfolded(at.circuit, steps)(at.inputs)
        given = {"output": torch.randn(steps, B, 7, dtype=torch.float64)}
        told = by_adjoint(at, adjoint_of("lying_rnn"), given)
        true = gradients(honest, given, at.leaves())
        assert_close(told, gradients(at.unrolled(), given, at.leaves()))
        if steps == 1:
            assert_close(told, {name: 3 * value for name, value in true.items()})
        else:
            assert not torch.allclose(told["U_weight"], 3 * true["U_weight"])


def test_straight_through_is_not_the_zero_of_its_forward_pass() -> None:
    at = problem("straight_through_rnn", T, B)
    given = {"output": torch.randn(T, B, 7, dtype=torch.float64)}
    true = gradients(unfolded(at.circuit, T)(at.inputs), given, at.leaves())
    assert not true["U_weight"].any(), "the sign has no slope"
    assert by_adjoint(at, adjoint_of("straight_through_rnn"), given)["U_weight"].abs().min() > 0


def test_what_is_detached_stays_detached() -> None:
    at = problem("cut_rnn", T, B)
    given = {"output": torch.randn(T, B, 7, dtype=torch.float64)}
    got = by_adjoint(at, adjoint_of("cut_rnn"), given)
    assert "h" not in got or not got["h"].any(), "no gradient crosses a step"
    at = problem("detached_rnn", T, B)
    got = by_adjoint(at, adjoint_of("detached_rnn"), given)
    true = gradients(unfolded(at.circuit, T)(at.inputs), given, at.leaves())
    assert not torch.allclose(got["h"], true["h"]), "the forward graph knows no detach, the joint does"


# --- higher derivatives -------------------------------------------------------------------------------------

_adjoint = functools.cache(adjoint)
_expose = functools.cache(expose)


@functools.cache
def second_of(name: str) -> Circuit:
    return _adjoint(adjoint_of(name))


class Run(torch.autograd.Function):
    """An unfolded circuit as one operation whose derivative is the adjoint circuit, unfolded: to any order."""

    @staticmethod
    def forward(ctx, circuit, steps, batch, *tensors):  # type: ignore[no-untyped-def]
        ctx.circuit, ctx.sizes = circuit, (steps, batch)
        ctx.save_for_backward(*tensors)
        made = unfolded(circuit, steps)({p.name: t for p, t in zip(circuit.inputs, tensors, strict=True)})
        return tuple(made[out.name].clone() for out in circuit.outputs)

    @staticmethod
    def backward(ctx, *given):  # type: ignore[no-untyped-def]
        circuit, sizes = ctx.circuit, ctx.sizes
        inputs = {p.name: t for p, t in zip(circuit.inputs, ctx.saved_tensors, strict=True)}
        back = _adjoint(circuit)
        values = apply(_expose(circuit), sizes, inputs)
        named = {out.name: g for out, g in zip(circuit.outputs, given, strict=True)}
        made = apply(back, sizes, backward_inputs(circuit, back, inputs, values, named, *sizes))
        return (None, None, None, *(made.get(f"d_{p.name}") for p in circuit.inputs))


def apply(circuit: Circuit, sizes: tuple[int, int], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    values = Run.apply(circuit, *sizes, *(inputs[port.name] for port in circuit.inputs))
    return {out.name: value for out, value in zip(circuit.outputs, values, strict=True)}


def derivatives(values: dict[str, Tensor], leaves: dict[str, Tensor], order: int) -> list[dict[str, Tensor]]:
    """[gradient, gradient of a projection of the gradient, …]."""
    found = []
    for number in range(order):
        values = gradients(values, cotangents(values, seed=number), leaves, create_graph=True)
        found.append(values)
    return found


TWICE = [
    "elman", "jordan", "lstm", "layer_norm_rnn", "delayed_rnn", "context_rnn", "noisy_rnn", "detached_rnn", "lying_rnn",
    "rounded_rnn",
]  # fmt: skip


# Draws: tests/test_noise.py; the layers' own, of every cell: tests/test_second_derivatives.py.
FEW = ["delayed_rnn", "detached_rnn"]


@pytest.mark.parametrize("name", with_more(FEW, [name for name in TWICE if name not in FEW]))
def test_its_adjoint_gives_second_derivatives(name: str) -> None:
    at = problem(name, 3, 2)
    got = derivatives(apply(at.circuit, (3, 2), at.inputs), at.leaves(), 2)
    expected = derivatives(at.unrolled(), at.leaves(), 2)
    assert_close(got[0], expected[0])
    assert_close(got[1], expected[1])
    assert any(value.abs().max() > 1e-3 for value in expected[1].values())


def test_second_derivatives_in_reverse() -> None:
    at = problem("elman", 3, 2, reverse=True)
    got = derivatives(apply(at.circuit, (3, 2), at.inputs), at.leaves(), 2)
    expected = derivatives(at.unrolled(), at.leaves(), 2)
    assert_close(got[1], expected[1])


@pytest.mark.conformance
def test_third_derivatives_of_the_books_network() -> None:
    at = problem("elman", 3, 2)
    got = derivatives(apply(at.circuit, (3, 2), at.inputs), at.leaves(), 3)
    expected = derivatives(at.unrolled(), at.leaves(), 3)
    assert_close(got[2], expected[2])
    assert expected[2]["W"].abs().max() > 1e-3


def test_exposing_twice_changes_nothing() -> None:
    once = expose(circuit_of("lstm"))
    assert [out.name for out in expose(once).outputs] == [out.name for out in once.outputs]
    assert [out.name for out in once.outputs][-2:] == ["h_before", "c_before"]


def test_no_name_of_the_cell_is_taken_for_one_of_the_adjoint() -> None:
    """A parameter called g_output, d_h or noise_0 is nobody's cotangent, gradient or draw."""

    class Cell(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name in ("g_output", "d_h", "noise_0"):
                self.register_parameter(name, torch.nn.Parameter(torch.rand(3, dtype=torch.float64)))

        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return torch.tanh(x * self.g_output + self.d_h * h + self.noise_0 * torch.randn_like(h))

    x = torch.randn(2, 3, dtype=torch.float64)
    circuit = trace(Cell(), x, x)
    back = adjoint(circuit)
    assert cotangent_ports(back)["output"] not in {port.name for port in circuit.inputs}
    assert [port.name for port in back.inputs_of(Kind.CONSTANT)] == [
        p.name for p in circuit.inputs_of(Kind.CONSTANT)
    ]
    assert len(back.outputs_of(Kind.SUM)) == 3
    assert len(back.inputs_of(Kind.NOISE)) == 1


@pytest.mark.parametrize("wrt", [["w"], ["typo", "x"]], ids=str)
def test_a_gradient_of_what_is_no_input_is_an_error(wrt: list[str]) -> None:
    with pytest.raises(InputError, match=r"no input '(w|typo)'(.|\n)*U, W, b, x, h"):
        adjoint(circuit_of("elman"), wrt)


def test_names_are_a_collection() -> None:
    with pytest.raises(InputTypeError, match=r"\['x'\]"):
        adjoint(circuit_of("elman"), "x")
