"""What a call does at its edges: no step, no row, dtypes and modes, parts of its results, arguments that do not fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import elman
from elman import cells
from elman.errors import InputError, InputTypeError, NotSupported
from tests import eager, zoo
from tests.cases import CASES
from tests.pairwise import with_more
from tests.recurrent import compare
from tests.recurrent.compare import Inputs
from tests.recurrent.small import layer, random

Tensor = torch.Tensor
EXACT = {"rtol": 1e-10, "atol": 1e-10}


# --- sizes ----------------------------------------------------------------------------------------------------------


@pytest.mark.grid
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize(
    "name", ["elman", "gru", "lstm", "delayed_rnn", "swing", "zoneout_lstm", "context_rnn", "loss_rnn"]
)
@pytest.mark.parametrize("size", [(0, 3), (1, 3), (4, 0), (0, 0)], ids=str)
def test_no_step_and_no_row(name: str, size: tuple[int, int], reverse: bool) -> None:
    T, B = size
    rnn = layer(name, reverse=reverse)
    got, expected = compare.both(rnn, Inputs.of(CASES[name], T, B))
    compare.assert_equal(got.values, expected.values)
    compare.assert_equal(got.gradients, expected.gradients)


def test_no_step_as_the_very_first_call() -> None:
    rnn = elman.Recurrent(cells.Elman(3, 11))
    h = torch.randn(2, 11, requires_grad=True)
    outputs, final = rnn(torch.zeros(0, 2, 3), h)
    assert outputs.shape == (0, 2, 11)
    assert torch.equal(final, h)
    final.sum().backward()
    assert torch.equal(h.grad, torch.ones(2, 11))


def test_no_step_as_the_very_first_call_on_tokens() -> None:
    rnn = layer("token_rnn")
    outputs, _ = rnn(torch.zeros(0, 2, dtype=torch.int64))
    assert outputs.shape == (0, 2, 7)


def test_the_final_state_of_no_step_is_not_the_users_tensor() -> None:
    rnn, h = layer(), random(2, 7)
    before = h.clone()
    with torch.no_grad():
        _, final = rnn(random(0, 2, 5), h)
        final.zero_()
    assert torch.equal(h, before)


# --- dtypes, modes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", with_more(["gru", "layer_norm_rnn"], ["elman", "lstm", "zoneout_lstm"]))
def test_bfloat16(name: str) -> None:
    case = CASES[name]
    rnn = elman.Recurrent(case.make().bfloat16())
    inputs = Inputs.of(case, 6, 3, torch.bfloat16)
    got, loop = compare.both(rnn, inputs)
    for mine, other in ((got.values, loop.values), (got.gradients, loop.gradients)):
        assert {n: v.dtype for n, v in mine.items() if v is not None} == {
            n: v.dtype for n, v in other.items() if v is not None
        }
        for key, distance in compare.distances(mine, other).items():
            assert distance < 0.06, f"{key}: {distance}"


def test_inputs_without_gradient_and_frozen_parameters() -> None:
    case = CASES["lstm"]
    for frozen in ((), ("U",), ("W", "b"), ("U", "W", "b")):
        rnn, inputs = layer("lstm"), Inputs.of(case, 4, 2)
        for name in frozen:
            rnn.cell.get_parameter(name).requires_grad_(False)
        inputs.x.requires_grad_(len(frozen) != 1)
        inputs.state[0].requires_grad_(len(frozen) != 2)
        values = compare.flat(*compare.ours(rnn, inputs))
        others = compare.flat(*compare.theirs(rnn, inputs))
        assert {n: v.requires_grad for n, v in values.items()} == {
            n: v.requires_grad for n, v in others.items()
        }
        wanted = {n: t for n, t in compare.wanted_of(rnn, inputs).items() if t.requires_grad}
        compare.assert_equal(compare.gradients(values, wanted), compare.gradients(others, wanted))


def test_nothing_wants_a_gradient() -> None:
    rnn = layer().requires_grad_(False)
    outputs, final = rnn(random(3, 2, 5))
    assert outputs.grad_fn is None
    assert not final.requires_grad


def test_no_grad() -> None:
    rnn, inputs = layer(), Inputs.of(CASES["gru"], 4, 2)
    expected = compare.ours(rnn, inputs)
    with torch.no_grad():
        outputs, final = compare.ours(rnn, inputs)
    assert not outputs.requires_grad
    assert not final.requires_grad
    torch.testing.assert_close((outputs, final), tuple(t.detach() for t in expected), **EXACT)


def test_inference_mode() -> None:
    """Also as the very first call: what was traced and planned in there serves training afterwards."""
    rnn = elman.Recurrent(cells.Elman(3, 13))
    x = torch.randn(4, 2, 3)
    with torch.inference_mode():
        inside, _ = rnn(torch.randn(2, 1, 3))
        assert inside.is_inference()
        inside, _ = rnn(x)
    outputs, _ = rnn(x)
    assert not outputs.is_inference()
    torch.testing.assert_close(inside.clone(), outputs.detach())
    outputs.sum().backward()
    assert rnn.cell.W.grad is not None


def test_autocast_runs_in_the_precision_of_the_parameters() -> None:
    for name in ("gru", "torch_lstm", "context_rnn"):
        case = CASES[name]
        rnn = elman.Recurrent(case.make())
        inputs = Inputs.of(case, 5, 3, torch.float32)
        expected = compare.flat(*compare.ours(rnn, inputs))
        with torch.autocast("cpu", torch.bfloat16):
            got = compare.flat(*compare.ours(rnn, inputs))
        compare.assert_equal(got, expected, 0)
        low = Inputs.of(case, 5, 3, torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16):
            got = compare.flat(*compare.ours(rnn, low))
        assert {value.dtype for value in got.values()} == {torch.float32}
        compare.projection(got).backward()
        assert low.x.grad.dtype == torch.bfloat16
    rnn = elman.Recurrent(cells.GRU(5, 7))
    with torch.autocast("cpu", torch.bfloat16):
        outputs, _ = rnn(torch.randn(3, 2, 5))
    assert outputs.dtype == torch.float32


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("gradients", [False, True])
def test_steps_under_autocast_do_too(gradients: bool, compiled: bool) -> None:
    rnn = elman.Recurrent(cells.GRU(5, 7))
    step = torch.compile(rnn.step, backend="eager") if compiled else rnn.step
    x, h = torch.randn(2, 5), torch.randn(2, 7)
    with torch.set_grad_enabled(gradients):
        expected = step(x, h)
        with torch.autocast("cpu", torch.bfloat16):
            for _ in range(3):
                for got, wanted in zip(step(x, h), expected, strict=True):
                    assert torch.equal(got, wanted)
            assert step(x.bfloat16(), h.bfloat16())[0].dtype is torch.float32
        for got, wanted in zip(step(x, h), expected, strict=True):
            assert torch.equal(got, wanted)


def test_the_teacher_under_autocast() -> None:
    rnn = elman.Recurrent(cells.Jordan(3, 5, 2))
    x, teacher = torch.randn(3, 2, 3), torch.randn(3, 2, 2).bfloat16()
    expected, _ = rnn(x, teacher=teacher.float())
    with torch.autocast("cpu", torch.bfloat16):
        got, _ = rnn(x, teacher=teacher)
    assert torch.equal(got, expected)


def test_another_default_dtype() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        rnn = elman.Recurrent(cells.Elman(3, 4))
        outputs, _ = rnn(torch.randn(3, 2, 3))
        assert outputs.dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


# --- steps=, context=, outputs --------------------------------------------------------------------------------------


def test_the_rules_of_steps() -> None:
    rnn, h = layer("swing"), random(2, 7)
    outputs, _ = rnn(None, h, steps=3)
    assert outputs.shape == (3, 2, 2)
    with pytest.raises(InputError, match="steps"):
        rnn(None, h)
    with pytest.raises(InputError, match="negative"):
        rnn(None, h, steps=-1)
    with pytest.raises(InputError, match="state"):
        rnn(None, steps=3)
    with pytest.raises(InputError, match="twice"):
        layer()(random(3, 2, 5), steps=3)


def test_a_context_of_another_batch_is_refused() -> None:
    with pytest.raises(InputError, match="context"):
        layer("context_rnn")(random(3, 2, 5), context=random(3, 4))


def test_a_context_starts_from_zeros_too() -> None:
    rnn = layer("context_rnn")
    x, context = random(3, 2, 5), random(2, 4)
    got, _ = rnn(x, context=context)
    expected, _ = eager.unroll(rnn.cell, x, torch.zeros(2, 7, dtype=torch.float64), context=context)
    torch.testing.assert_close(got, expected, **EXACT)


def test_nothing_kept_per_step() -> None:
    outputs, final = layer("silent_rnn")(random(4, 2, 5))
    assert outputs is None
    assert final.shape == (2, 7)
    final.sum().backward()


def test_a_loss_per_step() -> None:
    losses, _ = layer("loss_rnn")((random(4, 2, 5), torch.randint(6, (4, 2))))
    assert losses.shape == (4, 2)
    losses.mean().backward()


@pytest.mark.parametrize("which", ["outputs", "final", "one of the state", "one of the outputs"])
def test_backward_of_a_part_only(which: str) -> None:
    name = "dict_output_rnn" if which == "one of the outputs" else "lstm"
    rnn, inputs = layer(name), Inputs.of(CASES[name], 4, 2)
    wanted, found = compare.wanted_of(rnn, inputs), []
    for run in (compare.ours, compare.theirs):
        outputs, final = run(rnn, inputs)
        part = {
            "outputs": lambda o=outputs: o,
            "final": lambda f=final: f[0] + 2 * f[1],
            "one of the state": lambda f=final: f[1],
            "one of the outputs": lambda o=outputs: o["scale"],
        }[which]()
        found.append(compare.gradients({"part": part}, wanted))
    compare.assert_equal(*found)


def test_backward_twice_through_one_graph() -> None:
    rnn, inputs = layer(), Inputs.of(CASES["gru"], 4, 2)
    outputs, _ = compare.ours(rnn, inputs)
    first = torch.autograd.grad(outputs.sum(), inputs.x, retain_graph=True)[0]
    second = torch.autograd.grad(outputs.sum(), inputs.x)[0]
    assert torch.equal(first, second)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(outputs.sum(), inputs.x)


def test_gradients_add_up_over_calls() -> None:
    rnn, x = layer(), random(3, 2, 5)
    rnn(x)[0].sum().backward()
    once = {name: p.grad.clone() for name, p in rnn.named_parameters()}
    rnn(x)[0].sum().backward()
    for name, p in rnn.named_parameters():
        torch.testing.assert_close(p.grad, 2 * once[name], **EXACT)


def test_second_derivatives_of_a_backward_that_is_not_linear() -> None:
    """Made of parts they would be others than the loop's: a clipped sum is not the sum of what is clipped."""
    inputs, rnn = Inputs.of(CASES["clipped_rnn"], 3, 2), layer("clipped_rnn")
    outputs, _ = rnn(inputs.x, inputs.state)
    first = torch.autograd.grad(outputs.sum(), inputs.x, retain_graph=True)[0]
    assert first.isfinite().all()
    with pytest.raises(NotSupported, match="not linear in the gradient"):
        torch.autograd.grad(outputs.sum(), inputs.x, create_graph=True)


class ChoosesByFloats(zoo.Base):
    places: Tensor

    def __init__(self, n_in: int, n_hidden: int) -> None:
        super().__init__(n_in, n_hidden)
        self.register_buffer("places", torch.tensor([[0.2, 0.7, 0.1, 0.9, 1.0, 0.0]]))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        new = torch.tanh(self.U(x) + self.W(h))
        return new * new.gather(1, (6 * self.places).long().expand(new.shape[0], 6)).prod(1, keepdim=True)


def test_second_derivatives_where_random_numbers_are_no_indices() -> None:
    """Whether the backward is linear is asked with random numbers, which fail in it here."""
    cell, x = ChoosesByFloats(5, 7).double(), random(3, 2, 5)
    found = []
    for outputs in (elman.Recurrent(cell)(x)[0], eager.unroll(cell, x, random(2, 7) * 0)[0]):
        first = torch.autograd.grad(outputs.sin().sum(), cell.W.weight, create_graph=True)[0]
        found.append(torch.autograd.grad(first.sin().sum(), [*cell.parameters()]))
    torch.testing.assert_close(*found)


# --- what does not fit ----------------------------------------------------------------------------------------------


def test_an_unknown_engine() -> None:
    with pytest.raises(InputError, match="no such engine"):
        layer(engine="warp")(random(3, 2, 5))
    assert torch.equal(layer(engine="reference")(random(0, 2, 5))[0], random(0, 2, 7))


def test_a_cell_that_is_no_module() -> None:
    with pytest.raises(InputTypeError, match="a cell is a"):
        elman.Recurrent(lambda x, h: h)  # type: ignore[arg-type]


F32 = torch.float32


@pytest.mark.parametrize(
    ("x", "state", "words"),
    [
        (torch.zeros(3, 2, 6), None, "x"),  # too wide
        (torch.zeros(3), None, "batch"),
        (torch.zeros(3, 2, 5), torch.zeros(3, 7), "state"),  # another batch
        (torch.zeros(3, 2, 5), torch.zeros(2, 8), "state"),  # too wide
        (torch.zeros(3, 2, 5), (torch.zeros(2, 7), torch.zeros(2, 7)), "state"),  # another structure
        (torch.zeros(3, 2, 5), torch.zeros(2, 7, dtype=torch.float64), "dtype"),
        (torch.zeros(3, 2, 5, dtype=torch.float64), None, "dtype"),
        ({"signal": torch.zeros(3, 2, 5)}, None, "GRU"),
        ([torch.zeros(3, 2, 5), torch.zeros(4, 2, 5)], None, "T or B"),
        ("text", None, "steps"),
        (object(), None, "no tensor"),
    ],
    ids=[
        "width",
        "rank",
        "batch",
        "state-width",
        "structure",
        "state-dtype",
        "dtype",
        "dict",
        "lengths",
        "text",
        "object",
    ],
)
def test_arguments_that_do_not_fit(x: Any, state: Any, words: str) -> None:
    rnn = elman.Recurrent(CASES["gru"].make())
    rnn(torch.zeros(3, 2, 5))
    with pytest.raises(elman.ElmanError, match=words):
        rnn(x, state)
    rnn(torch.zeros(3, 2, 5))
