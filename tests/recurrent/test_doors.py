"""The ways into a program besides a plain call: registered operators, torch.compile, torch.func."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jacrev, vjp, vmap
from torch.utils.checkpoint import checkpoint

import elman
from elman import cells
from elman.errors import InputError
from elman.execute import operator
from elman.recurrent.programs import Argument
from tests import eager, pairwise
from tests.cases import CASES
from tests.pairwise import with_more
from tests.recurrent import compare
from tests.recurrent.compare import Inputs
from tests.recurrent.small import random

Tensor = torch.Tensor
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def layer(name: str = "elman", **options: Any) -> elman.Recurrent:
    return elman.Recurrent(CASES[name].make().double(), **options)


# --- registered operators -------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # opcheck's own, 2.14
@pytest.mark.parametrize("name", with_more(["delayed_rnn"], ["noisy_rnn", "elman", "lstm", "counting_rnn"]))
def test_opcheck(name: str) -> None:
    rnn = layer(name)
    inputs = Inputs.of(CASES[name], 3, 2)
    compare.ours(rnn, inputs)
    assert rnn._calls.latest is not None
    program = rnn._calls.latest.program
    given = {
        port: iter(torch.utils._pytree.tree_leaves(tree))
        for port, tree in (("x", inputs.x), ("state", inputs.state))
    }
    tensors = []
    for port, source in zip(program.inputs, rnn._calls.latest.sources, strict=True):
        argument = isinstance(source, Argument)
        value = next(given[source.name]) if argument else rnn.cell.get_parameter(source.place.path[5:])
        tensors.append(value.detach().requires_grad_(port.differentiable))
    seed = torch.tensor(5) if program.has_noise else None
    wants = frozenset(port.name for port in program.inputs if port.differentiable)
    train = operator.register(program, wants)
    torch.library.opcheck(torch.ops.elman.train.default, (tensors, train, 3, 2, seed, "auto", None, 0))
    run = operator.register(program, None)
    torch.library.opcheck(
        torch.ops.elman.run.default, ([t.detach() for t in tensors], run, 3, 2, seed, "auto", None, 0)
    )


# --- torch.compile --------------------------------------------------------------------------------------------------


@pytest.fixture
def compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(function: Any, **options: Any) -> Any:
    return torch.compile(function, fullgraph=True, backend="aot_eager", **options)


def agrees(rnn: elman.Recurrent, fast: Any, inputs: Inputs) -> None:
    """The compiled call gives the results and gradients of the plain one."""
    wanted, found = compare.wanted_of(rnn, inputs), []
    for run in (fast, rnn):
        torch.manual_seed(5)
        values = compare.flat(*run(inputs.x, inputs.state, steps=inputs.steps, context=inputs.context))
        found.append((values, compare.gradients(values, wanted)))
    for mine, right in zip(*found, strict=True):
        compare.assert_equal(mine, right)


@pytest.mark.parametrize(
    "name",
    with_more(  # others are compiled with lengths: tests/recurrent/test_compiled_pieces.py
        ["gru", "delayed_rnn"],
        ["lstm", "dict_output_rnn", "dict_input_rnn", "swing", "silent_rnn", "named_tuple_lstm", "zoneout_lstm",
         "context_rnn", "loss_rnn"],
    ),
)  # fmt: skip
def test_compiled_calls(name: str, compiler: None) -> None:
    """As the very first call of a layer, and at other T and B."""
    rnn = layer(name)
    fast = compiled(rnn)
    for T, B in ((3, 2), (5, 4), (7, 3)) if name == "gru" or pairwise.exhaustive else ((3, 2),):
        agrees(rnn, fast, Inputs.of(CASES[name], T, B))


@pytest.mark.conformance  # test_compiled_pieces.py has one compilation for all sizes
def test_compiled_with_dynamic_sizes(compiler: None) -> None:
    rnn = layer("lstm", reverse=True)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    fast = torch.compile(rnn, fullgraph=True, backend=counter, dynamic=True)
    for T, B in ((3, 2), (5, 4)):
        agrees(rnn, fast, Inputs.of(CASES["lstm"], T, B))
    assert counter.frame_count == 1


def test_compiled_without_a_state(compiler: None) -> None:
    for rnn in (layer("elman"), layer("learned_start_rnn")):
        x, grads, values = random(3, 2, 5), [], []
        for run in (compiled(rnn), rnn):
            rnn.zero_grad()
            outputs, final = run(x)
            outputs.square().sum().backward()
            values.append(compare.flat(outputs, final))
            grads.append({name: p.grad for name, p in rnn.named_parameters()})
        compare.assert_equal(*values)
        compare.assert_equal(*grads)


def test_compiled_without_gradients(compiler: None) -> None:
    rnn, inputs = layer("gru"), Inputs.of(CASES["gru"], 3, 2)
    fast = compiled(rnn)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            got = compare.flat(*fast(inputs.x, inputs.state))
            compare.assert_equal(got, compare.flat(*rnn(inputs.x, inputs.state)))
    agrees(rnn, fast, inputs)


@pytest.mark.conformance  # test_compiled_pieces.py has a teacher with a weight
def test_compiled_teacher(compiler: None) -> None:
    rnn = elman.Recurrent(cells.Jordan(3, 5, 2).double())
    x, teacher = random(4, 2, 3), random(4, 2, 2, requires_grad=True)
    found = []
    for run in (compiled(rnn), rnn):
        outputs, final = run(x, teacher=teacher)
        found.append((outputs, final, torch.autograd.grad(outputs.square().sum(), teacher)[0]))
    for mine, right in zip(*found, strict=True):
        torch.testing.assert_close(mine, right, **EXACT)


class Model(nn.Module):
    """Two layers with something around them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 5)
        self.first = elman.Recurrent(cells.GRU(5, 7))
        self.second = elman.Recurrent(cells.LSTM(7, 6))
        self.V = nn.Linear(6, 11)

    def forward(self, tokens: Tensor) -> Tensor:
        h, _ = self.first(self.embed(tokens[:-1]))
        h, (final, _) = self.second(h * 2)
        return nn.functional.cross_entropy(self.V(h).flatten(0, 1), tokens[1:].flatten()) + final.mean()


def test_a_compiled_model_trains_as_the_plain_one(compiler: None) -> None:
    losses = []
    for wrap in (compiled, lambda model: model):
        torch.manual_seed(0)
        model = Model().double()
        optimiser = torch.optim.SGD(model.parameters(), 0.5)
        run, tokens = wrap(model), torch.randint(11, (9, 4))
        for _ in range(4):
            optimiser.zero_grad()
            loss = run(tokens)
            loss.backward()
            optimiser.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-10)


@pytest.mark.conformance
@pytest.mark.slow
def test_inductor(compiler: None) -> None:
    torch.manual_seed(0)
    model = Model()
    tokens = torch.randint(11, (6, 3))
    expected = model(tokens)
    expected.backward()
    right = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    got = torch.compile(model, fullgraph=True)(tokens)
    got.backward()
    torch.testing.assert_close(got, expected)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, right[name], msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.conformance  # tests/recurrent/test_compiled_programs.py changes numbers, without gradients
def test_a_number_changed_after_compiling(compiler: None) -> None:
    """A compiled graph honours numbers as a plain call does, those in objects and containers too."""
    rnn, inputs = layer("leaky"), Inputs.of(CASES["leaky"], 3, 2)
    fast = compiled(rnn)
    agrees(rnn, fast, inputs)
    rnn.cell.alpha = 0.9
    agrees(rnn, fast, inputs)
    rnn.cell.alpha = 0.5
    agrees(rnn, fast, inputs)


@pytest.mark.parametrize("which", with_more(["state"], ["teacher"]))
def test_arguments_that_do_not_fit_are_refused_while_compiling(which: str, compiler: None) -> None:
    rnn = elman.Recurrent(cells.Jordan(3, 5, 2))
    given = {"state": torch.zeros(1, 2)} if which == "state" else {"teacher": torch.zeros(4, 1, 2)}
    with pytest.raises(Exception, match=r"batch size of the sequences|disagree about T or B"):
        torch.compile(rnn, backend="aot_eager")(torch.zeros(4, 3, 3), **given)


def test_train_and_eval_after_compiling(compiler: None) -> None:
    rnn, inputs = layer("dropout_rnn"), Inputs.of(CASES["dropout_rnn"], 3, 2)
    fast = compiled(rnn)
    agrees(rnn, fast, inputs)
    rnn.eval()
    agrees(rnn, fast, inputs)
    rnn.cell.train()
    agrees(rnn, fast, inputs)


def test_requires_grad_after_compiling(compiler: None) -> None:
    rnn, inputs = layer("elman"), Inputs.of(CASES["elman"], 3, 2)
    fast = compiled(rnn)
    agrees(rnn, fast, inputs)
    rnn.cell.W.requires_grad_(False)
    outputs, _ = fast(inputs.x, inputs.state)
    outputs.sum().backward()
    assert rnn.cell.W.grad is None
    assert rnn.cell.U.grad is not None
    rnn.cell.W.requires_grad_(True)
    agrees(rnn, fast, inputs)


def test_errors_while_compiling_are_ours(compiler: None) -> None:
    rnn, packed = layer("elman"), nn.utils.rnn.pack_sequence([random(3, 5)])
    with pytest.raises(Exception, match="a PackedSequence is not"):
        torch.compile(rnn, backend="aot_eager")(packed)
    with pytest.raises(Exception, match="one length for each sequence"):
        torch.compile(rnn, backend="aot_eager")(random(3, 2, 5), lengths=torch.tensor([3]))
    with pytest.raises(InputError, match="between none and all of the steps"):
        torch.compile(rnn, backend="aot_eager")(random(3, 2, 5), lengths=torch.tensor([3, 4]))


FIRST = """
import warnings
warnings.simplefilter("error")
import torch, elman
from elman import cells
torch.manual_seed(0)
rnn = elman.Recurrent(cells.LSTM(3, 4))
fast = torch.compile(rnn, fullgraph=True, backend="aot_eager")
x = torch.randn(5, 2, 3)
outputs, (h, c) = fast(x)
outputs.sum().backward()
gradient = rnn.cell.W.grad.clone()
rnn.zero_grad()
again, _ = rnn(x)
again.sum().backward()
assert torch.allclose(outputs, again) and torch.allclose(gradient, rnn.cell.W.grad)
print("same")
"""


@pytest.mark.conformance
@pytest.mark.slow
def test_compiled_as_the_first_thing_a_process_does() -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FIRST)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "same"


# --- torch.func -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", with_more(["straight_through_rnn"], ["zoneout_lstm", "gru", "lstm", "cat_rnn"])
)
def test_grad(name: str) -> None:
    rnn, inputs = layer(name), Inputs.of(CASES[name], 3, 2)
    compare.ours(rnn, inputs)

    def loss(x: Tensor) -> Tensor:
        torch.manual_seed(5)
        outputs, _ = rnn(x, inputs.state)
        return outputs.square().sum()

    right = torch.autograd.grad(loss(inputs.x), inputs.x)[0]
    torch.testing.assert_close(grad(loss)(inputs.x), right, **EXACT)


def test_grad_as_the_very_first_call() -> None:
    rnn = elman.Recurrent(cells.Elman(5, 9).double())
    x = random(3, 2, 5)
    got = grad(lambda x: rnn(x)[0].square().sum())(x)
    y = x.clone().requires_grad_()
    torch.testing.assert_close(got, torch.autograd.grad(rnn(y)[0].square().sum(), y)[0], **EXACT)


def test_grad_of_grad() -> None:
    rnn, x = layer("elman"), random(3, 2, 5)
    h = random(2, 7)

    def inner(run: Any) -> Any:
        return lambda x: grad(lambda x: run(x, h)[0].square().sum())(x).square().sum()

    got = grad(inner(rnn))(x)
    right = grad(inner(lambda x, h: eager.unroll(rnn.cell, x, h)))(x)
    torch.testing.assert_close(got, right, **EXACT)


@pytest.mark.parametrize("name", with_more(["elman"], ["lstm"]))
def test_gradients_of_parameters_by_functional_call(name: str) -> None:
    rnn, inputs = layer(name), Inputs.of(CASES[name], 3, 2)
    weights = {n: p.detach() for n, p in rnn.named_parameters()}

    def loss(weights: dict[str, Tensor]) -> Tensor:
        outputs, _ = functional_call(rnn, weights, (inputs.x.detach(), inputs.state))
        return outputs.square().sum()

    got = grad(loss)(weights)
    rnn(inputs.x, inputs.state)[0].square().sum().backward()
    for n, p in rnn.named_parameters():
        torch.testing.assert_close(got[n], p.grad, **EXACT)


@pytest.mark.conformance  # tests/test_tangent_transforms.py has transforms of transforms, jacrev among them
def test_vjp_and_jacrev() -> None:
    rnn, x, h = layer("lstm"), random(3, 2, 5), (random(2, 7), random(2, 7))

    def ours(x: Tensor) -> Any:
        return rnn(x, h)

    def theirs(x: Tensor) -> Any:
        return eager.unroll(rnn.cell, x, h)

    values, pull = vjp(ours, x)
    expected, pull_right = vjp(theirs, x)
    compare.assert_equal(compare.flat(*values), compare.flat(*expected))
    cotangents = torch.utils._pytree.tree_map(torch.randn_like, expected)
    torch.testing.assert_close(pull(cotangents), pull_right(cotangents), **EXACT)
    for mine, right in zip(jacrev(lambda x: ours(x)[0])(x), jacrev(lambda x: theirs(x)[0])(x), strict=True):
        torch.testing.assert_close(mine, right, **EXACT)


def test_vmap_over_calls() -> None:
    """Each example a whole batch: as a loop over the examples."""
    rnn, x, h = layer("lstm"), random(4, 3, 2, 5), (random(4, 2, 7), random(2, 7))
    got = vmap(lambda x, h, c: rnn(x, (h, c)), in_dims=(0, 0, None))(x, *h)
    for i in range(4):
        right = rnn(x[i], (h[0][i], h[1]))
        compare.assert_equal(compare.flat(got[0][i], (got[1][0][i], got[1][1][i])), compare.flat(*right))


def test_vmap_over_another_dimension() -> None:
    rnn, x = layer(), random(3, 2, 4, 5)
    h = random(2, 7)
    got = vmap(lambda x: rnn(x, h)[0], in_dims=2, out_dims=1)(x)
    for i in range(4):
        torch.testing.assert_close(got[:, i], rnn(x[:, :, i], h)[0], **EXACT)


def test_vmap_over_weights() -> None:
    """An ensemble."""
    rnn, x, h = layer(), random(3, 2, 5), random(2, 7)
    weights = {
        n: torch.stack([p.detach() * scale for scale in (0.5, 1.0, 1.5)]) for n, p in rnn.named_parameters()
    }
    got = vmap(lambda w: functional_call(rnn, w, (x, h))[0])(weights)
    for i in range(3):
        right = functional_call(rnn, {n: w[i] for n, w in weights.items()}, (x, h))[0]
        torch.testing.assert_close(got[i], right, **EXACT)


def test_vmap_and_noise() -> None:
    rnn, x = layer("noisy_rnn"), random(3, 4, 2, 5)
    h = random(2, 7)
    rnn(x[0], h)

    def call(x: Tensor) -> Tensor:
        return rnn(x, h)[0]

    with pytest.raises((elman.ElmanError, RuntimeError), match="random"):
        vmap(call, in_dims=1)(x)
    same = vmap(call, in_dims=1, randomness="same")(x[:, :1].expand_as(x))
    assert torch.equal(same[0], same[1])
    different = vmap(call, in_dims=1, randomness="different")(x[:, :1].expand_as(x))
    assert not torch.equal(different[0], different[1])


def per_sample(run: Any, weights: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return run(weights, x.unsqueeze(1)).square().sum()

    return vmap(grad(loss), in_dims=(None, 1))(weights, x)


@pytest.mark.parametrize("name", with_more(["elman"], ["lstm", "gru"]))
def test_gradients_per_sample(name: str) -> None:
    """Right, or refused with an error of ours."""
    rnn, x = layer(name), random(3, 4, 5)
    state = CASES[name].state(1)
    weights = {n: p.detach() for n, p in rnn.named_parameters()}
    try:
        got = per_sample(lambda w, x: functional_call(rnn, w, (x, state))[0], weights, x)
    except elman.ElmanError:
        return
    for i in range(4):
        rnn.zero_grad()
        rnn(x[:, i : i + 1], state)[0].square().sum().backward()
        for n, p in rnn.named_parameters():
            torch.testing.assert_close(got[n][i], p.grad, **EXACT)


def test_a_backward_pass_under_vmap() -> None:
    rnn, x, h = layer(), random(2, 1, 5, requires_grad=True), random(1, 7)
    outputs, _ = rnn(x, h)
    many = random(3, *outputs.shape)
    got = vmap(lambda v: torch.autograd.grad(outputs, x, v, retain_graph=True)[0])(many)
    for i in range(3):
        right = torch.autograd.grad(outputs, x, many[i], retain_graph=True)[0]
        torch.testing.assert_close(got[i], right, **EXACT)


@pytest.mark.conformance  # test_grad_of_grad has the derivative of a gradient
def test_create_graph() -> None:
    """A penalty on the norm of the gradient, as in training a critic."""
    rnn, x = layer(), random(3, 2, 5, requires_grad=True)
    state = random(2, 7)
    found = []
    for run in (lambda: rnn(x, state), lambda: eager.unroll(rnn.cell, x, state)):
        rnn.zero_grad()
        first = torch.autograd.grad(run()[0].sum(), x, create_graph=True)[0]
        (first.norm() - 1).square().backward()
        found.append({n: p.grad for n, p in rnn.named_parameters()})
    compare.assert_equal(*found)


def test_a_first_call_may_be_checkpointed() -> None:
    """It is traced out of the hooks of the checkpoint, which would run the call again to find what the trace saved."""
    torch.manual_seed(0)
    rnn = elman.Recurrent(elman.cells.Elman(2, 5)).double()
    x = torch.randn(4, 3, 2, dtype=torch.float64)
    outputs, _ = checkpoint(rnn, x, use_reentrant=False)
    made = torch.autograd.grad(outputs.square().sum(), rnn.cell.W)
    wanted = torch.autograd.grad(rnn(x)[0].square().sum(), rnn.cell.W)
    torch.testing.assert_close(made, wanted)


def test_checkpointing() -> None:
    """torch.utils.checkpoint runs the call again in the backward pass, with the noise of the first time."""
    rnn, x, h = layer("noisy_rnn"), random(3, 2, 5, requires_grad=True), random(2, 7)
    torch.manual_seed(5)
    right = torch.autograd.grad(rnn(x, h)[0].square().sum(), x)[0]
    torch.manual_seed(5)
    outputs, _ = checkpoint(rnn, x, h, use_reentrant=False)
    torch.testing.assert_close(torch.autograd.grad(outputs.square().sum(), x)[0], right, **EXACT)
