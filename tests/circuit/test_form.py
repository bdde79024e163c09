"""Circuit.check: every rule of the form, broken once, is found and named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from elman.circuit import graphs
from elman.circuit.form import (
    Circuit,
    InPort,
    Kind,
    OutPort,
    Wire,
    describe,
    op_name,
    placeholder,
    results_of,
)
from elman.errors import CircuitError
from tests.cases import CASES, SELDOM
from tests.circuits import adjoint_of, circuit_of, pair_of
from tests.pairwise import with_more

aten = torch.ops.aten


def copied() -> Circuit:
    """The book's network with a graph of its own."""
    return replace(circuit_of("elman"), graph=graphs.copy(circuit_of("elman").graph))


def with_port(circuit: Circuit, name: str, **changes: object) -> Circuit:
    return replace(
        circuit, inputs=tuple(replace(p, **changes) if p.name == name else p for p in circuit.inputs)
    )


def with_output(circuit: Circuit, name: str, **changes: object) -> Circuit:
    return replace(
        circuit, outputs=tuple(replace(o, **changes) if o.name == name else o for o in circuit.outputs)
    )


def node(circuit: Circuit, part: str):  # type: ignore[no-untyped-def]
    return next(n for n in circuit.graph.nodes if part in n.name and n.op == "call_function")


def unknown_wire(c: Circuit) -> Circuit:
    return with_output(c, "output", wire=Wire.result("elsewhere"))


def delay_of_nothing(c: Circuit) -> Circuit:
    return with_port(c, "h", next=Wire.result("elsewhere"))


def delay_of_another_shape(c: Circuit) -> Circuit:
    return with_port(c, "h", next=Wire.input("x"))


def delay_of_another_dtype(c: Circuit) -> Circuit:
    return with_port(c, "h", dtype=torch.float32)


def delay_at_a_constant(c: Circuit) -> Circuit:
    return with_port(c, "x", next=Wire.result("h_next"))


def placeholder_without_port(c: Circuit) -> Circuit:
    return replace(c, inputs=tuple(p for p in c.inputs if p.name != "b"))


def port_without_placeholder(c: Circuit) -> Circuit:
    extra = InPort("more", Kind.SEQUENCE, (3,), torch.float64, torch.device("cpu"), True, "more")
    return replace(c, inputs=(*c.inputs, extra))


def sum_that_goes_in(c: Circuit) -> Circuit:
    return with_port(c, "x", kind=Kind.SUM)


def constant_that_comes_out(c: Circuit) -> Circuit:
    return with_output(c, "output", kind=Kind.CONSTANT)


def noise_that_comes_out(c: Circuit) -> Circuit:
    return with_output(c, "output", kind=Kind.NOISE)


def noise_without_distribution(c: Circuit) -> Circuit:
    return with_port(c, "x", kind=Kind.NOISE)


def distribution_without_noise(c: Circuit) -> Circuit:
    return with_port(c, "x", draw="normal")


def two_inputs_of_one_name(c: Circuit) -> Circuit:
    return replace(c, inputs=(*c.inputs, c.input("U")))


def output_named_as_an_input(c: Circuit) -> Circuit:
    return replace(c, outputs=(*c.outputs, OutPort("x", Kind.SEQUENCE, Wire.result("h_next"), "x")))


def teacher_of_nothing(c: Circuit) -> Circuit:
    return with_port(c, "x", teaches="elsewhere")


def in_place(c: Circuit) -> Circuit:
    node(c, "tanh").target = aten.tanh_.default
    return c


def no_description(c: Circuit) -> Circuit:
    del node(c, "tanh").meta["val"]
    return c


def a_module(c: Circuit) -> Circuit:
    one = node(c, "tanh")
    with c.graph.inserting_before(one):
        called = c.graph.create_node("call_method", "tanh", (one.args[0],), {}, name="called")
    called.meta["val"] = one.meta["val"]
    return c


def a_tuple_as_output(c: Circuit) -> Circuit:
    out = next(n for n in c.graph.nodes if n.op == "output")
    out.args = (tuple(results_of(c.graph).values()),)
    return c


BROKEN: list[tuple[Callable[[Circuit], Circuit], str, str]] = [
    (unknown_wire, "there is no wire 'elsewhere'", "output port 'output'"),
    (delay_of_nothing, "its delay comes from 'elsewhere', which is no wire", "input port 'h'"),
    (delay_of_another_shape, "a delay must keep shape and dtype", "input port 'h'"),
    (delay_of_another_dtype, "a delay must keep shape and dtype", "input port 'h'"),
    (teacher_of_nothing, "it teaches 'elsewhere', which is no output", "input port 'x'"),
    (delay_at_a_constant, "its delay comes from 'h_next'", "input port 'x'"),
    (placeholder_without_port, "placeholder 'b' has no port", "Elman"),
    (port_without_placeholder, "the port has no placeholder in the step", "input port 'more'"),
    (sum_that_goes_in, "sum cannot go in", "input port 'x'"),
    (constant_that_comes_out, "constant cannot come out", "output port 'output'"),
    (noise_that_comes_out, "noise cannot come out", "output port 'output'"),
    (noise_without_distribution, "a distribution belongs to noise", "input port 'x'"),
    (distribution_without_noise, "a distribution belongs to noise", "input port 'x'"),
    (two_inputs_of_one_name, "port 'U' is named twice", "Elman"),
    (output_named_as_an_input, "port 'x' is named twice", "Elman"),
    (in_place, "aten.tanh_.default writes into its operand", "node 'tanh'"),
    (no_description, "carries no value description", "node 'tanh'"),
    (a_module, "a node of kind call_method has no place", "node 'called'"),
]


@pytest.mark.parametrize(
    ("make_broken", "what", "where"), BROKEN, ids=lambda value: getattr(value, "__name__", "")
)
def test_a_broken_rule_is_named(make_broken: Callable[[Circuit], Circuit], what: str, where: str) -> None:
    whole = copied().check()
    broken = make_broken(whole)
    with pytest.raises(CircuitError) as caught:
        broken.check()
    assert what in caught.value.what
    assert where in str(caught.value.where)


def test_an_output_that_is_no_dict_is_found() -> None:
    from elman.circuit.form import check_graph

    with pytest.raises(CircuitError, match="must be a dict of results"):
        check_graph(a_tuple_as_output(copied()).graph, "here")


# One has rows that others come before.
SOME = [*[name for name in CASES if name not in SELDOM][::8], "stacked_inputs_rnn"]


@pytest.mark.parametrize("name", with_more(SOME, [name for name in CASES if name not in SOME]))
def test_every_circuit_holds_the_rules(name: str) -> None:
    for circuit in (circuit_of(name), adjoint_of(name), pair_of(name).forward, pair_of(name).backward):
        assert circuit.check() is circuit
        assert circuit.name in str(circuit)
        for port in circuit.inputs:
            assert port.name in str(circuit)


def test_a_circuit_can_be_read() -> None:
    text = str(circuit_of("elman"))
    assert text.splitlines()[0] == "circuit Elman"
    assert "state    h [B, 7] <- delay of h_next" in text
    assert "constant U [7, 5]" in text
    assert "sequence x [B, 5]" in text
    assert "= tanh(" in text
    assert "time runs backward" in str(adjoint_of("elman"))


def test_wires_and_delays() -> None:
    circuit = circuit_of("elman")
    assert circuit.wire(Wire.result("h_next")) is circuit.results()["h_next"]
    assert circuit.wire(Wire.input("x")) is placeholder(circuit.graph, "x")
    assert [(port.name, op_name(fed)) for port, fed in circuit.delays()] == [("h", "tanh")]
    assert describe(circuit.wire(Wire.result("h_next"))).startswith("tanh(")
    with pytest.raises(CircuitError, match="there is no wire 'elsewhere'"):
        circuit.wire(Wire.input("elsewhere"))
    assert [port.name for port in circuit.inputs_of(Kind.CONSTANT)] == ["U", "W", "b"]
    assert [out.name for out in circuit.outputs_of(Kind.STATE)] == ["h_final"]


def test_what_can_have_a_gradient() -> None:
    port = InPort("p", Kind.CONSTANT, (3,), torch.float32, torch.device("cpu"), False, "p")
    assert port.differentiable
    assert replace(port, dtype=torch.complex64).differentiable
    assert not replace(port, dtype=torch.int64).differentiable
    assert not replace(port, frozen=True).differentiable
    assert not replace(port, kind=Kind.NOISE, draw="normal").differentiable
