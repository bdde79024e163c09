"""Every cell of the table, run whole: outputs, final state and every gradient are those of the eager loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import elman
from tests.cases import CASES, Case
from tests.pairwise import with_more
from tests.recurrent import compare
from tests.recurrent.compare import Inputs, Named

Tensor = torch.Tensor
SIZES = ((1, 1), (17, 3), (2, 13))  # 17 steps are more than one block of noise
every_case = pytest.mark.parametrize("case", CASES.values(), ids=str)


def some(*names: str, more: tuple[str, ...] = ()) -> Any:
    """more: what `make conformance` adds."""
    cases = with_more([CASES[name] for name in names], [CASES[name] for name in more])
    return pytest.mark.parametrize("case", cases, ids=str)


@pytest.mark.grid(1)
@every_case
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_a_call_equals_the_eager_loop(case: Case, reverse: bool) -> None:
    rnn = elman.Recurrent(case.make().double(), reverse=reverse)
    for T, B in SIZES:
        got, expected = compare.both(rnn, Inputs.of(case, T, B, seed=T))
        compare.assert_equal(got.values, expected.values)
        compare.assert_equal(got.gradients, expected.gradients)
    ours, loop = compare.each_alone(rnn, Inputs.of(case, 3, 2))
    for name, gradients in loop.items():
        compare.assert_equal(ours[name], gradients)


@some("gru", more=("lstm",))
def test_odd_widths(case: Case) -> None:
    sizes = {"n_in": 3, "n_hidden": 17}
    rnn = elman.Recurrent(case.make(*sizes.values()).double())
    for T, B in ((33, 1), (7, 13)):
        got, expected = compare.both(rnn, Inputs.of(case, T, B, **sizes))
        compare.assert_equal(got.values, expected.values)
        compare.assert_equal(got.gradients, expected.gradients)


@some(
    "lstm",
    more=(
        "competing_rnn", "elman", "noisy_rnn", "jordan", "gru", "leaky", "torch_rnn_relu", "layer_norm_lstm",
        "weight_norm_rnn",
    ),
)  # fmt: skip
def test_float32_is_as_exact_as_eager_pytorch(case: Case) -> None:
    """The distance from the float64 loop is at most four times that of the float32 loop, where the map contracts."""
    exact, rnn = (elman.Recurrent(case.make().to(dtype)) for dtype in (torch.float64, torch.float32))
    with torch.no_grad():
        for parameter in (*exact.parameters(), *rnn.parameters()):
            parameter *= 0.5
    for T, B in ((20, 3), (3, 13)):
        _, reference = compare.both(exact, Inputs.of(case, T, B))
        got, eager = compare.both(rnn, Inputs.of(case, T, B, torch.float32))
        for mine, loop, right in (
            (got.values, eager.values, reference.values),
            (got.gradients, eager.gradients, reference.gradients),
        ):
            distance, allowed = compare.distances(mine, right), compare.distances(loop, right)
            assert list(distance) == list(allowed)
            for name, found in distance.items():
                assert found <= max(4 * allowed[name], 1e-6), (
                    f"{name}: {found:.1e}, eager {allowed[name]:.1e}"
                )


# --- second derivatives ---------------------------------------------------------------------------------------------


def second(run: Any, rnn: elman.Recurrent, inputs: Inputs) -> tuple[Named, Named]:
    """First derivatives of a random projection, and the derivatives of a random projection of those."""
    wanted = compare.wanted_of(rnn, inputs)
    first = compare.gradients(compare.flat(*run(rnn, inputs)), wanted, create_graph=True)
    return first, compare.gradients(first, wanted)


@some(
    "lstm", "noisy_rnn",
    # What a gradient means, when it is not the derivative of what is computed, only the cell's own autograd can say.
    "straight_through_rnn", "lying_rnn",
    more=(
        "token_rnn", "convolutional_rnn", "merged_heads_rnn", "cut_rnn", "conv_lstm", "frames_gru",
        "flattened_first_rnn", "dict_output_rnn", "columns_rnn", "batch_in_the_middle_rnn", "detached_rnn",
        "jordan", "layer_norm_rnn", "zoneout_lstm", "cat_rnn", "tied_rnn", "delayed_rnn", "swing", "loss_rnn",
        "stacked_columns_gru", "nodes_inner_gru", "stacked_inputs_rnn", "kinked_rnn", "smooth_rnn", "rounded_rnn",
        "spiking_rnn", "no_grad_rnn",
    ),
)  # fmt: skip
def test_second_derivatives_are_those_of_the_eager_loop(case: Case) -> None:
    rnn = elman.Recurrent(case.make().double())
    inputs = Inputs.of(case, 4, 3)
    got, expected = second(compare.ours, rnn, inputs), second(compare.theirs, rnn, inputs)
    for mine, right in zip(got, expected, strict=True):
        compare.assert_equal(mine, right)


def test_second_derivatives_in_reverse() -> None:
    rnn = elman.Recurrent(CASES["elman"].make().double(), reverse=True)
    inputs = Inputs.of(CASES["elman"], 4, 3)
    got, expected = second(compare.ours, rnn, inputs), second(compare.theirs, rnn, inputs)
    for mine, right in zip(got, expected, strict=True):
        compare.assert_equal(mine, right)


@pytest.mark.conformance
def test_third_derivatives() -> None:
    """A penalty on the norm of a gradient, differentiated twice more."""
    rnn = elman.Recurrent(CASES["elman"].make(2, 2).double())
    inputs = Inputs.of(CASES["elman"], 3, 2, n_in=2, n_hidden=2)
    found = []
    for run in (compare.ours, compare.theirs):
        wanted = compare.wanted_of(rnn, inputs)
        values = compare.flat(*run(rnn, inputs))
        for _ in range(3):
            values = compare.gradients(values, wanted, create_graph=True)
        found.append(values)
    compare.assert_equal(*found)


@pytest.mark.conformance  # test_second_derivatives_are_those_of_the_eager_loop has them exactly
@some("jordan", "gru", more=("elman", "leaky"))
@pytest.mark.slow
def test_gradgradcheck(case: Case) -> None:
    sizes = {"n_in": 2, "n_hidden": 2}
    rnn = elman.Recurrent(case.make(*sizes.values()).double())
    inputs = Inputs.of(case, 2, 2, **sizes)
    leaves = [inputs.x, inputs.state, *rnn.parameters()]

    def call(x: Tensor, state: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        return rnn(x, state)

    assert torch.autograd.gradcheck(call, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, leaves, fast_mode=True)
