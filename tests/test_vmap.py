"""Several examples at once: as each by itself, whatever differs between them, on both engines."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, vmap
from torch.utils import _pytree as pytree

import elman
from tests import eager, pairwise, zoo_gradients
from tests.cases import CASES
from tests.circuits import circuit_of
from tests.pairwise import with_more

Tensor = torch.Tensor
EXACT = {"rtol": 1e-10, "atol": 1e-10}
V, T, B = 3, 4, 2
CELLS = ["context_rnn", "lstm", "lying_rnn"]
MORE = ["token_rnn", "baddbmm_rnn", "elman", "gru", "layer_norm_rnn", "delayed_rnn", "attention_rnn"]


def weights_of(rnn: elman.Recurrent, generator: torch.Generator) -> dict[str, Tensor]:
    return {
        n: p.detach() + 0.1 * torch.randn(V, *p.shape, dtype=p.dtype, generator=generator)
        for n, p in rnn.named_parameters()
    }


def given(name: str, seed: int) -> tuple[Any, Any, Any]:
    case, g = CASES[name], torch.Generator().manual_seed(seed)
    context = case.context(B, g)
    return case.x(T, B, g), case.state(B, g), {} if context is None else context


def stacked(trees: list[Any]) -> Any:
    return pytree.tree_map(lambda *leaves: torch.stack(leaves), *trees)


def at(tree: Any, i: int) -> Any:
    return pytree.tree_map(lambda leaf: leaf[i], tree)


@pytest.mark.grid(1)
@pytest.mark.parametrize("engine", ["reference", "auto"])
@pytest.mark.parametrize("over", ["inputs", "weights", "all"])
@pytest.mark.parametrize("name", with_more(CELLS, MORE))
def test_examples_are_as_each_by_itself(name: str, over: str, engine: str) -> None:
    """Outputs, final states and the gradients of all weights, per example."""
    rnn = elman.Recurrent(CASES[name].make().double(), engine=engine)
    generator = torch.Generator().manual_seed(0)
    x, state, context = stacked([given(name, i) for i in range(V)])
    weights = weights_of(rnn, generator)
    shared = [over == "weights", over == "inputs"]
    if shared[0]:
        x, state, context = at((x, state, context), 0)
    if shared[1]:
        weights = at(weights, 0)

    def loss(weights: Any, given: Any, run: Any) -> Any:
        found = run(weights, given)
        return sum(
            leaf.square().sum() for leaf in pytree.tree_leaves(found) if leaf.is_floating_point()
        ), found

    def ours(weights: Any, given: Any) -> Any:
        x, state, context = given
        return functional_call(rnn, weights, (x, state), {"context": context if len(context) else None})

    def loop(weights: Any, given: Any) -> Any:
        cell = Functional(rnn.cell, {n.removeprefix("cell."): w for n, w in weights.items()})
        x, state, context = given
        return eager.unroll(cell, x, state, context=context if len(context) else None)

    dims = (None if shared[1] else 0, None if shared[0] else 0)
    got = vmap(grad(lambda w, g: loss(w, g, ours), has_aux=True), dims)(weights, (x, state, context))
    for i in range(V):
        one = weights if shared[1] else at(weights, i)
        one = {n: w.clone().requires_grad_() for n, w in one.items()}
        value, found = loss(one, (x, state, context) if shared[0] else at((x, state, context), i), loop)
        expected = torch.autograd.grad(value, list(one.values()), allow_unused=True)
        for n, e in zip(one, expected, strict=True):
            torch.testing.assert_close(got[0][n][i], torch.zeros_like(one[n]) if e is None else e, **EXACT)
        for mine, right in zip(pytree.tree_leaves(at(got[1], i)), pytree.tree_leaves(found), strict=True):
            torch.testing.assert_close(mine, right, **EXACT)


class Functional(torch.nn.Module):
    def __init__(self, cell: torch.nn.Module, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.run = lambda *args: functional_call(cell, weights, args)

    def forward(self, *args: Any) -> Any:
        return self.run(*args)


def test_the_step_runs_without_a_loop_over_examples() -> None:
    """Weights that all share: one product of more rows. Weights of each: a batch of products; U x before the loop."""
    from elman.plan import plan
    from elman.vmapped import vmapped

    circuit = circuit_of("gru")
    rows = plan(vmapped(circuit, V, ["x", "h"]))
    assert [n.name for n in rows.loop.graph.nodes if n.name.startswith(("mm", "bmm"))] == ["mm_1"]
    ensemble = plan(vmapped(circuit, V, ["U", "W", "b", "c"]))
    assert [n.name for n in ensemble.loop.graph.nodes if n.name.startswith(("mm", "bmm"))] == ["bmm_1"]


def test_ragged_and_reversed() -> None:
    rnn = elman.Recurrent(CASES["elman"].make().double(), reverse=True)
    x, lengths = torch.randn(V, T, B, 5, dtype=torch.float64), torch.tensor([4, 2])
    reset = torch.zeros(T, B, dtype=torch.bool)
    reset[1, 0] = True

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(rnn, weights, (x,), {"lengths": lengths, "reset": reset})[0].square().sum()

    shared = {n: p.detach() for n, p in rnn.named_parameters()}
    several = weights_of(rnn, torch.Generator().manual_seed(1))
    for dims, weights in (((None, 0), shared), ((0, 0), several)):
        got = vmap(grad(loss), dims)(weights, x)
        for i in range(V):
            one = weights if dims[0] is None else at(weights, i)
            right = grad(loss)(one, x[i])
            torch.testing.assert_close(at(got, i), right, **EXACT)


@pytest.mark.conformance
def test_training_an_ensemble() -> None:
    """loss.backward() through a vmap; and a penalty on the gradient, whose own gradient is wanted."""
    rnn = elman.Recurrent(CASES["lstm"].make().double())
    x = torch.randn(T, B, 5, dtype=torch.float64)
    weights = weights_of(rnn, torch.Generator().manual_seed(0))
    found = []
    for run in (
        lambda w: vmap(lambda w, x: functional_call(rnn, w, (x,))[0], (0, None))(w, x),
        lambda w: torch.stack([functional_call(rnn, at(w, i), (x,))[0] for i in range(V)]),
    ):
        leaves = {n: w.clone().requires_grad_() for n, w in weights.items()}
        first = torch.autograd.grad(run(leaves).square().sum(), list(leaves.values()), create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), list(leaves.values()))
        found.append((first, second))
    torch.testing.assert_close(*found, **EXACT)


@pytest.mark.conformance
def test_vmaps_in_vmaps_and_derivatives_of_derivatives() -> None:
    rnn = elman.Recurrent(CASES["gru"].make().double())
    x = torch.randn(2, V, 2, 1, 5, dtype=torch.float64)
    weights = weights_of(rnn, torch.Generator().manual_seed(0))

    def call(w: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(rnn, w, (x,))[0].square().sum()

    got = vmap(vmap(grad(call), (0, 0)), (None, 0))(weights, x)
    again = vmap(vmap(hessian(call, argnums=1), (0, 0)), (None, 0))(weights, x)
    twice = vmap(jacrev(jacrev(call, argnums=1), argnums=1), (0, 0))(weights, x[0])
    for j in range(V):
        for i in range(2):
            torch.testing.assert_close(at(at(got, i), j), grad(call)(at(weights, j), x[i, j]), **EXACT)
            right = torch.autograd.functional.hessian(lambda x, j=j: call(at(weights, j), x), x[i, j])
            torch.testing.assert_close(again[i, j], right, **EXACT)
        right = torch.autograd.functional.hessian(lambda x, j=j: call(at(weights, j), x), x[0, j])
        torch.testing.assert_close(twice[j], right, **EXACT)


@pytest.mark.parametrize("memory", [None, elman.Segments(2)])
def test_batches_of_gradients(memory: Any) -> None:
    rnn = elman.Recurrent(CASES["elman"].make().double(), memory=memory)
    x = torch.randn(5, 1, 5, dtype=torch.float64, requires_grad=True)
    outputs = rnn(x)[0]
    many = torch.randn(V, *outputs.shape, dtype=torch.float64)
    wanted = [x, *rnn.parameters()]
    got = torch.autograd.grad(outputs, wanted, many, is_grads_batched=True, retain_graph=True)
    right = [torch.autograd.grad(outputs, wanted, one, retain_graph=True) for one in many]
    torch.testing.assert_close(list(got), [torch.stack(parts) for parts in zip(*right, strict=True)], **EXACT)
    jacobian = torch.autograd.functional.jacobian
    torch.testing.assert_close(
        jacobian(lambda x: rnn(x)[1], x, vectorize=True), jacobian(lambda x: rnn(x)[1], x), **EXACT
    )


@pytest.mark.parametrize("randomness", with_more(["different"], ["same"]))
def test_noise_is_the_same_in_a_derivative(randomness: str) -> None:
    """f(x) = Σ w o(x) is linear in w, so what grad says of w is o itself: of every example its own."""
    rnn = elman.Recurrent(CASES["noisy_rnn"].make().double())
    x, h = torch.randn(T, B, 5, dtype=torch.float64), torch.zeros(B, 7, dtype=torch.float64)
    shift = torch.zeros(V, dtype=torch.float64)

    def both(shift: Tensor) -> Any:
        """The slope of the outputs along x, by autograd and from its values at another x and the same noise."""

        def run(s: Tensor) -> Tensor:
            return rnn(x + s, h)[0].sum()

        found, back = torch.func.vjp(run, shift)
        return found, back(torch.ones_like(found))[0]

    torch.manual_seed(0)
    values, slopes = vmap(both, randomness=randomness)(shift)
    torch.manual_seed(0)
    near, _ = vmap(both, randomness=randomness)(shift + 1e-6)
    torch.testing.assert_close((near - values) / 1e-6, slopes, rtol=1e-4, atol=1e-4)
    assert len(values.unique()) == (1 if randomness == "same" else V)


def test_each_example_draws_its_own_where_nothing_else_differs() -> None:
    rnn, x = elman.Recurrent(CASES["noisy_rnn"].make().double()), torch.randn(T, B, 5, dtype=torch.float64)
    h = torch.zeros(B, 7, dtype=torch.float64)
    many = vmap(lambda c: rnn(x, h)[0] * c, randomness="different")(torch.ones(V, dtype=torch.float64))
    assert not torch.equal(many[0], many[1])


def test_what_has_no_batching_rule_runs_one_example_after_the_other() -> None:
    rnn, x = (
        elman.Recurrent(CASES["weight_norm_rnn"].make().double()),
        torch.randn(V, T, B, 5, dtype=torch.float64),
    )
    weights = {n: p.detach() for n, p in rnn.named_parameters()}

    def loss(w: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(rnn, w, (x,))[0].square().sum()

    got = vmap(grad(loss), (None, 0))(weights, x)
    for i in range(V):
        torch.testing.assert_close(at(got, i), grad(loss)(weights, x[i]), **EXACT)


def test_a_backward_in_which_rows_meet_does_not_meet_other_examples() -> None:
    """Clipped by the norm of the whole batch: examples are not more rows of it."""
    rnn = elman.Recurrent(zoo_gradients.ClippedRNN(5, 7).double())
    x = torch.randn(V, T, B, 5, dtype=torch.float64)
    got = vmap(grad(lambda x: rnn(x)[0].square().sum()))(x)
    for i in range(V):
        torch.testing.assert_close(got[i], grad(lambda x: rnn(x)[0].square().sum())(x[i]), **EXACT)


@pytest.mark.parametrize("way", ["whole", "lengths", "segments", "stack", "drop-in"])
def test_autograd_functional_takes_many_directions_at_once(way: str) -> None:
    """Forward mode over PyTorch's older vmap, from a layer's first call on; and both orders of second derivatives."""
    cell = CASES["elman"].make().double()
    second = elman.nn.GRU if pairwise.exhaustive else elman.nn.RNN  # whose derivatives are sooner traced
    many = 2 if pairwise.exhaustive else 1  # "stack" has two in `make test`
    layer: Any = {
        "segments": lambda: elman.Recurrent(cell, memory=elman.Segments(2)),
        "stack": lambda: elman.Stack(elman.Recurrent(cell), second(7, 3, dtype=torch.float64)),
        "drop-in": lambda: elman.nn.LSTM(5, 3, num_layers=many, bidirectional=True, dtype=torch.float64),
    }.get(way, lambda: elman.Recurrent(cell))()
    more: Any = {"lengths": torch.tensor([1, 3])} if way == "lengths" else {}
    x = torch.randn(3, 2, 5, dtype=torch.float64)

    def call(x: Tensor) -> Tensor:
        return layer(x, **more)[0]

    def loss(x: Tensor) -> Tensor:
        return call(x).square().sum()

    of = torch.autograd.functional
    forward = of.jacobian(call, x, vectorize=True, strategy="forward-mode")
    torch.testing.assert_close(forward, of.jacobian(call, x), **EXACT)
    right = of.hessian(loss, x)
    torch.testing.assert_close(of.hessian(loss, x, vectorize=True), right, **EXACT)
    if way not in ("stack", "drop-in") or pairwise.exhaustive:  # it takes as long as all the rest
        over = of.hessian(loss, x, vectorize=True, outer_jacobian_strategy="forward-mode")
        torch.testing.assert_close(over, right, **EXACT)


def test_many_directions_meet_the_same_noise() -> None:
    rnn = elman.Recurrent(CASES["noisy_rnn"].make().double())
    x = torch.randn(T, B, 5, dtype=torch.float64)

    def call(x: Tensor) -> Tensor:
        torch.manual_seed(0)
        return rnn(x, torch.zeros(B, 7, dtype=torch.float64))[0]

    of = torch.autograd.functional
    forward = of.jacobian(call, x, vectorize=True, strategy="forward-mode")
    torch.testing.assert_close(forward, of.jacobian(call, x), **EXACT)


def test_linearize_is_refused_by_name() -> None:
    rnn = elman.Recurrent(CASES["elman"].make())
    with pytest.raises(elman.ElmanError, match=r"torch\.func\.linearize") as told:
        torch.func.linearize(lambda x: rnn(x)[0], torch.randn(T, B, 5))
    assert told.value.mend is not None
    assert "torch.func.jvp" in told.value.mend


@pytest.mark.grid(1)
@pytest.mark.parametrize("engine", ["reference", "auto"])
@pytest.mark.parametrize("way", [jacrev, jacfwd])
def test_examples_of_a_matrix_exponential(way: Any, engine: str) -> None:
    """PyTorch's takes no batch that does not lie in one piece."""

    class Turning(torch.nn.Module):
        hidden_size = 3

        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            a = x.unsqueeze(-1) * h.unsqueeze(-2)
            return torch.linalg.matrix_exp(a - a.mT).sum(-1) * 0.3

    x, h = torch.randn(T, B, 3).double(), torch.randn(B, 3).double()

    def plain(v: Tensor) -> Tensor:
        state = h
        for x_t in v:
            state = rnn.cell(x_t, state)
        return state

    rnn = elman.Recurrent(Turning(), engine=engine)
    torch.testing.assert_close(way(lambda v: rnn(v, h)[1])(x), way(plain)(x), **EXACT)
