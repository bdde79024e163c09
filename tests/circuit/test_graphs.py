"""The few ways in which graphs are rewritten."""

from __future__ import annotations

import pytest
import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from elman.circuit import graphs
from elman.circuit.form import results_of
from elman.errors import CircuitError
from tests.circuits import circuit_of, problem

aten = torch.ops.aten


MODE = FakeTensorMode()


def fake(*shape: int) -> torch.Tensor:
    with MODE:
        return torch.empty(shape)


def small() -> tuple[fx.Graph, dict[str, fx.Node]]:
    """out = tanh(a + b), twice; dead = -a."""
    graph = fx.Graph()
    a = graphs.add_placeholder(graph, "a", fake(3))
    b = graphs.add_placeholder(graph, "b", fake(3))
    one = graphs.insert(graph, aten.add.Tensor, a, b)
    two = graphs.insert(graph, aten.add.Tensor, a, b)
    first, second = graphs.insert(graph, aten.tanh.default, one), graphs.insert(graph, aten.tanh.default, two)
    dead = graphs.insert(graph, aten.neg.default, a)
    graph.output({"first": first, "second": second})
    return graph, {"a": a, "b": b, "one": one, "first": first, "second": second, "dead": dead}


def computing(graph: fx.Graph) -> list[str]:
    return [node.name for node in graph.nodes if node.op == "call_function"]


INPUTS = {"a": torch.tensor([0.1, 0.2, 0.3]), "b": torch.tensor([1.0, -1.0, 0.0])}
EXPECTED = torch.tanh(INPUTS["a"] + INPUTS["b"])


def test_run_is_the_graph() -> None:
    made = graphs.run(small()[0], INPUTS, 3)
    assert set(made) == {"first", "second"}
    assert torch.equal(made["first"], EXPECTED)


def test_insert_describes_its_value() -> None:
    circuit = circuit_of("elman")
    graph = graphs.copy(circuit.graph)
    tanh = next(node for node in graph.nodes if "tanh" in node.name)
    with graph.inserting_after(tanh):
        new = graphs.insert(graph, aten.sum.dim_IntList, tanh, [0], like=tanh)
    assert tuple(new.meta["val"].shape) == (7,)
    assert new.meta.get("primal") == tanh.meta.get("primal")


def test_equal_calls_become_one() -> None:
    graph, _ = small()
    graphs.merge_equal(graph)
    made = results_of(graph)
    assert made["first"] is made["second"]
    assert torch.equal(graphs.run(graph, INPUTS, 3)["second"], EXPECTED)


@pytest.mark.parametrize(("one", "other"), [(1, 1.0), (True, 1), (0.0, -0.0), (2, 3)])
def test_calls_that_only_look_equal_stay_two(one: object, other: object) -> None:
    graph = fx.Graph()
    a = graphs.add_placeholder(graph, "a", fake(3))
    graph.output({
        "one": graphs.insert(graph, aten.mul.Tensor, a, one), "other": graphs.insert(graph, aten.mul.Tensor, a, other)
    })  # fmt: skip
    graphs.merge_equal(graph)
    assert len(computing(graph)) == 2


def test_calls_that_differ_in_a_keyword_stay_two() -> None:
    graph = fx.Graph()
    a = graphs.add_placeholder(graph, "a", fake(3))
    graph.output({f"times {k}": graphs.insert(graph, aten.add.Tensor, a, a, alpha=k) for k in (2, 3)})
    graphs.merge_equal(graph)
    assert len(computing(graph)) == 2


def test_what_is_dead_goes_and_ports_stay() -> None:
    graph, nodes = small()
    graphs.add_placeholder(graph, "unread", fake(1))
    graphs.drop_dead(graph)
    assert nodes["dead"].name not in computing(graph)
    assert [n.target for n in graph.nodes if n.op == "placeholder"] == ["a", "b", "unread"]


def test_extract_keeps_names_and_takes_only_what_is_needed() -> None:
    graph, nodes = small()
    new = graphs.extract(graph, {"out": nodes["first"]})
    assert computing(new) == [nodes["one"].name, nodes["first"].name]
    assert torch.equal(graphs.run(new, INPUTS, 3)["out"], EXPECTED)
    new.lint()


def test_extract_stops_where_it_is_told() -> None:
    graph, nodes = small()
    new = graphs.extract(graph, {"out": nodes["first"]}, {nodes["one"]: "given"})
    assert [n.target for n in new.nodes if n.op == "placeholder"] == ["given"]
    made = graphs.run(new, {"given": torch.tensor([0.5])}, 1)
    assert torch.equal(made["out"], torch.tanh(torch.tensor([0.5])))


def test_a_copy_is_equal_and_apart() -> None:
    circuit = circuit_of("lstm")
    graph = graphs.copy(circuit.graph)
    assert [n.name for n in graph.nodes if n.op != "output"] == [
        n.name for n in circuit.graph.nodes if n.op != "output"
    ]
    at = problem("lstm", 1, 2)
    inputs = {n: v[0] if n == "x" else v for n, v in at.inputs.items()}
    one, other = graphs.run(circuit.graph, inputs, 2), graphs.run(graph, inputs, 2)
    assert all(torch.equal(one[name], other[name]) for name in one)
    count = len(computing(circuit.graph))
    out = next(n for n in graph.nodes if n.op == "output")
    out.args = ({},)
    graphs.drop_dead(graph)
    assert computing(graph) == []
    assert len(computing(circuit.graph)) == count


def test_placeholders_are_added_once() -> None:
    graph, nodes = small()
    graphs.with_placeholders(graph, [("a", nodes["a"].meta["val"]), ("new", fake(2))])
    assert sorted(str(n.target) for n in graph.nodes if n.op == "placeholder") == ["a", "b", "new"]
    graph.lint()


def test_ancestors() -> None:
    _, nodes = small()
    assert graphs.ancestors([nodes["first"]]) == {nodes["a"], nodes["b"], nodes["one"], nodes["first"]}


def test_a_placeholder_that_is_not_there() -> None:
    with pytest.raises(CircuitError, match="no wire 'z'"):
        graphs.placeholder(small()[0], "z")
