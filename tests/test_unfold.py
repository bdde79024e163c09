"""Unfolding: an acyclic graph that shares its parameters, runs, and whose autograd gradient is BPTT."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

import elman
from elman.circuit.form import Kind
from elman.errors import CircuitError, InputError
from elman.unfold import Unfolded, unfold
from tests.cases import CASES
from tests.circuits import adjoint_of, assert_close, circuit_of, cotangents, gradients, problem, unfolded

Tensor = torch.Tensor
HONEST = [name for name, case in CASES.items() if case.honest]
DIRECTIONS = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])


@pytest.mark.grid(1)
@DIRECTIONS
@pytest.mark.parametrize("name", CASES)
def test_it_computes_what_the_eager_loop_computes(name: str, reverse: bool) -> None:
    at = problem(name, 3, 2, reverse=reverse)
    assert_close(unfolded(at.circuit, 3).check()(at.inputs), at.unrolled())


@pytest.mark.parametrize("name", HONEST)
def test_its_gradient_is_back_propagation_through_time(name: str) -> None:
    at = problem(name, 3, 2)
    got, expected = unfolded(at.circuit, 3)(at.inputs), at.unrolled()
    given = cotangents(expected)
    assert given
    assert_close(gradients(got, given, at.leaves()), gradients(expected, given, at.leaves()))


@pytest.mark.parametrize("name", ["elman", "lstm", "delayed_rnn", "noisy_rnn", "attention_rnn"])
def test_its_gradient_in_reverse(name: str) -> None:
    at = problem(name, 3, 2, reverse=True)
    got, expected = unfolded(at.circuit, 3)(at.inputs), at.unrolled()
    given = cotangents(expected)
    assert_close(gradients(got, given, at.leaves()), gradients(expected, given, at.leaves()))


@pytest.mark.parametrize("name", CASES)
def test_one_step_is_the_cell(name: str) -> None:
    at = problem(name, 1, 2)
    assert_close(unfolded(at.circuit, 1).check()(at.inputs), at.unrolled())


@DIRECTIONS
@pytest.mark.parametrize(
    "name", ["elman", "twin_rnn", "delayed_rnn", "counting_rnn", "swing", "dict_output_rnn", "silent_rnn"]
)
def test_no_step_hands_on_the_state(name: str, reverse: bool) -> None:
    at = problem(name, 0, 2, reverse=reverse)
    made = unfold(at.circuit, 0).check()(at.inputs)
    expected = at.unrolled()
    assert made.keys() == expected.keys()
    for value, other in ((made[key], expected[key]) for key in made):
        assert value.shape == other.shape
        assert value.dtype == other.dtype
        assert torch.equal(value, other)


def test_no_step_has_no_gradient() -> None:
    """Of an adjoint with no step, every sum is zeros in its own shape, rows or none."""
    adjoint = adjoint_of("attention_rnn")  # its context has rows
    made = unfold(adjoint, 0).check()
    given = {
        name: torch.randn([2 if size == "B" else int(size) for size in shape], dtype=torch.float64)
        for name, shape in made.inputs.items()
    }
    found = made(given)
    sums = adjoint.outputs_of(Kind.SUM)
    ports = {port.name: port for port in adjoint.inputs}
    assert {ports[str(out.gradient_of)].rows for out in sums} == {False, True}
    for out in sums:
        port = ports[str(out.gradient_of)]
        assert torch.equal(
            found[out.name], torch.zeros([*([2] if port.rows else []), *port.shape], dtype=torch.float64)
        )


@DIRECTIONS
@pytest.mark.parametrize(
    "name", ["elman", "lstm", "delayed_rnn", "zoneout_lstm", "swing", "counting_rnn", "jordan"]
)
def test_a_sequence_in_two_pieces_is_the_whole(name: str, reverse: bool) -> None:
    T, cut = 5, 2
    at = problem(name, T, 2, reverse=reverse)
    whole = unfolded(at.circuit, T)(at.inputs)
    timed = {port.name for port in at.circuit.inputs_of(Kind.SEQUENCE, Kind.NOISE)}

    def piece(part: slice, states: dict[str, Tensor]) -> dict[str, Tensor]:
        given = {key: value[part] if key in timed else value for key, value in at.inputs.items()}
        return unfolded(at.circuit, len(range(T)[part]))(given | states)

    parts = [slice(0, cut), slice(cut, T)][:: -1 if reverse else 1]
    first = piece(parts[0], {})
    states = {p.name: first[f"{p.name}_final"] for p in at.circuit.inputs_of(Kind.STATE)}
    second = piece(parts[1], states)
    for out in at.circuit.outputs:
        if out.kind is Kind.SEQUENCE:
            pieces = [first[out.name], second[out.name]][:: -1 if reverse else 1]
            torch.testing.assert_close(torch.cat(pieces), whole[out.name], rtol=0, atol=0)
        else:
            torch.testing.assert_close(second[out.name], whole[out.name], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["elman", "tied_rnn", "weight_norm_rnn", "time_constants", "context_rnn"])
def test_constants_are_shared_between_the_steps(name: str) -> None:
    circuit = circuit_of(name)
    graph = unfolded(circuit, 4).graph
    count = Counter(str(node.target) for node in graph.nodes if node.op == "placeholder")
    for port in circuit.inputs:
        if port.kind is Kind.CONSTANT:
            assert count[port.name] == 1
        elif port.kind is Kind.SEQUENCE:
            assert [count[f"{port.name}_t{t}"] for t in range(4)] == [1] * 4
        elif port.kind is Kind.STATE:
            assert count[port.name] == 1, "only the first state comes from outside"


def test_every_step_is_a_copy_of_the_circuit() -> None:
    circuit = circuit_of("elman")
    graph = unfolded(circuit, 3).graph
    step = [node for node in circuit.graph.nodes if node.op == "call_function"]
    copies = [node for node in graph.nodes if node.op == "call_function"]
    assert len(copies) == 3 * len(step), "the once-part is copied too: the graph is the meaning, not a plan"
    assert {f"{node.name}_t{t}" for node in step for t in range(3)} == {node.name for node in copies}
    order = {node: i for i, node in enumerate(graph.nodes)}
    assert all(order[source] < order[node] for node in copies for source in node.all_input_nodes)


def test_a_negative_number_of_steps_is_refused() -> None:
    with pytest.raises(InputError, match="unfolded backward"):
        unfold(circuit_of("elman"), -1)


def test_a_missing_input_is_named() -> None:
    at = problem("elman", 2, 2)
    del at.inputs["U"]
    with pytest.raises(InputError, match="input 'U' is missing"):
        unfolded(at.circuit, 2)(at.inputs)


def test_the_check_finds_a_constant_that_is_not_shared() -> None:
    made = unfold(circuit_of("elman"), 2)
    for node in made.graph.nodes:
        if node.op == "placeholder" and node.target == "W":
            with made.graph.inserting_after(node):
                again = made.graph.create_node("placeholder", "W", (), {}, name="W_again")
            again.meta["val"] = node.meta["val"]
            break
    with pytest.raises(CircuitError, match="constant 'W' is not shared"):
        made.check()


def test_the_check_finds_a_node_without_a_description() -> None:
    made = unfold(circuit_of("elman"), 2)
    node = next(node for node in made.graph.nodes if node.name == "tanh_t1")
    del node.meta["val"]
    with pytest.raises(CircuitError, match="tanh_t1"):
        Unfolded(made.circuit, 2, made.graph).check()


def test_reversing_twice_is_the_same() -> None:
    circuit = circuit_of("lstm")
    twice = replace(replace(circuit, reverse=True), reverse=False)
    at = problem("lstm", 3, 2)
    assert_close(unfold(twice, 3)(at.inputs), unfolded(circuit, 3)(at.inputs), 0)


def test_surplus_inputs_and_wrong_shapes_are_named() -> None:
    at = problem("elman", 3, 2)
    for wrong, words in (
        ({"typo": torch.zeros(2)}, "no input 'typo'"),
        ({"x": torch.zeros(9, 2, 5)}, "'x' does not fit"),
        ({"h": torch.zeros(3, 7)}, "'h' does not fit"),
        ({"W": torch.zeros(7)}, "'W' does not fit"),
    ):
        with pytest.raises(InputError, match=words):
            unfolded(at.circuit, 3)(at.inputs | wrong)


def test_inputs_say_their_names_and_parameters_keep_theirs() -> None:
    class Cell(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden_size = 4
            self.W = torch.nn.Linear(4, 4, bias=False)

        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return torch.tanh(x + self.W(h))

    cell, x, h = Cell(), torch.randn(3, 2, 4), torch.randn(2, 4)
    unrolled = unfold(elman.trace(cell, x[0]), 3)  # the initial state is found
    assert unrolled.inputs == {"W_weight": [4, 4], "x": [3, "B", 4], "h": ["B", 4]}
    given = {"x": x, "h": h}
    named = unrolled({**dict(cell.named_parameters()), **given})
    assert_close(named, unrolled({"W_weight": cell.W.weight, **given}))
    with pytest.raises(InputError, match="given twice"):
        unrolled({"W.weight": cell.W.weight, "W_weight": torch.zeros(4, 4), **given})
    with pytest.raises(InputError, match=r"no input 'V\.weight'"):
        unrolled({"V.weight": cell.W.weight, **given})
