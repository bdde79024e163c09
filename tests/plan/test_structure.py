"""The structure of plans, as tables: what is in the loop, what was moved out of it, and what is kept."""

from __future__ import annotations

import functools
from collections import Counter

import pytest
import torch

import elman
from elman.circuit.form import Circuit, Kind, op_name
from elman.forcing import force
from elman.noise import is_random
from elman.plan import Loop, Plan
from elman.plan.cut import pair
from elman.trace import trace
from tests.cases import CASES

H = 7 * 8  # bytes of one row of h in float64 at the tables' hidden width of 7


@functools.cache
def circuit_of(name: str) -> Circuit:
    case = CASES[name]
    x, context = case.x(1, 2), case.context(2)
    first = torch.utils._pytree.tree_map(lambda leaf: leaf[0] if isinstance(leaf, torch.Tensor) else leaf, x)
    return trace(case.make().double(), first, case.state(2), context)


@functools.cache
def plans(name: str, policy: str = "cut") -> tuple[Plan, Plan]:
    """Forward and backward plan of training."""
    both = pair(circuit_of(name), policy=policy)
    return elman.plan(both.forward), elman.plan(both.backward)


def loop_of(plan: Plan) -> Loop:
    assert plan.loop is not None
    return plan.loop


def names(nodes: list[torch.fx.Node]) -> Counter[str]:
    return Counter(op_name(node) for node in nodes)


PRODUCTS = ("mm", "addmm", "bmm")


def products(nodes: list[torch.fx.Node]) -> int:
    return sum(count for name, count in names(nodes).items() if name in PRODUCTS)


def test_the_books_network_has_one_product_and_one_tanh_in_its_loop() -> None:
    plan = elman.plan(circuit_of("elman"))
    assert names(loop_of(plan).nodes()) == {"addmm": 1, "tanh": 1}
    assert products(plan.before.nodes()) == 1, "U x + b, for all steps at once"
    assert products(plan.after.nodes()) == 0


def test_the_adjoint_of_the_books_network_has_one_product_in_its_loop() -> None:
    _, backward = plans("elman")
    assert names(loop_of(backward).nodes()) == {"add": 1, "tanh_backward": 1, "mm": 1}
    assert not loop_of(backward).sums, "no gradient is added up step by step"
    outside = {"d_U", "d_W", "d_b", "d_x"}
    made = {port: value for port, value in backward.outputs.items() if port in outside}
    assert set(made) == outside
    assert set(made.values()) <= set(backward.after.outputs())
    assert products(backward.after.nodes()) == 3, "dU, dW and dx"


# Cell -> operations in the loop, forward and backward: as they are, and no more than the prototypes' (see `BOUNDS`).
SIZES = {
    "elman": (2, 3), "jordan": (3, 4), "gru": (14, 12), "lstm": (14, 15), "leaky": (5, 5),
    "torch_rnn_tanh": (2, 3), "torch_gru": (14, 12), "torch_lstm": (14, 15), "layer_norm_lstm": (17, 17),
    "mgu": (9, 15), "dale_rnn": (5, 5), "two_level_gru": (32, 25), "cat_rnn": (2, 3), "delayed_rnn": (2, 3),
    "context_rnn": (2, 3), "token_rnn": (2, 3), "lying_rnn": (2, 4), "zoneout_lstm": (16, 20),
}  # fmt: skip
BOUNDS = {
    "elman": (3, 3), "torch_rnn_tanh": (3, 3), "gru": (14, 13), "torch_gru": (14, 13), "lstm": (15, 15),
    "torch_lstm": (15, 15), "jordan": (5, 8), "layer_norm_lstm": (28, 43),
}  # fmt: skip


@pytest.mark.parametrize("name", SIZES)
def test_operations_in_the_loop(name: str) -> None:
    sizes = tuple(len(loop_of(plan).nodes()) for plan in plans(name))
    assert sizes == SIZES[name]
    bound = BOUNDS.get(name, sizes)
    assert sizes[0] <= bound[0] and sizes[1] <= bound[1]


# Cell -> what is kept for the backward pass, in rows of h per row and step: by a minimum cut, and states only.
KEPT = {"elman": (1, 1), "gru": (5, 1), "lstm": (6, 2), "torch_lstm": (6, 2), "layer_norm_rnn": (2, 1), "leaky": (2, 1)}


@pytest.mark.parametrize("name", KEPT)
def test_what_is_kept(name: str) -> None:
    sizes = tuple(pair(circuit_of(name), policy=policy).bytes_per_row / H for policy in ("cut", "states"))
    assert sizes == KEPT[name]


def test_teacher_forcing_leaves_no_loop() -> None:
    forced = force(circuit_of("jordan"))
    assert elman.plan(forced).loop is None
    both = pair(forced)
    assert elman.plan(both.forward).loop is None
    assert elman.plan(both.backward).loop is None


def test_a_delay_on_no_cycle_is_a_shift() -> None:
    plan = elman.plan(circuit_of("delayed_rnn"))
    assert names(plan.before.nodes())["shift"] == 2
    assert [state.name for state in loop_of(plan).states] == [
        port.name for port, _ in circuit_of("delayed_rnn").delays() if port.path == "state['h']"
    ]


def test_what_depends_on_parameters_alone_runs_once() -> None:
    forward, backward = plans("dale_rnn")
    assert names(forward.once.nodes())["abs"] == 1
    for plan in (forward, backward):
        assert "abs" not in names(loop_of(plan).nodes())
    assert not loop_of(backward).sums, "the gradient passes |W| once, after the sum over time"


def test_a_context_is_computed_on_once() -> None:
    plan = elman.plan(circuit_of("context_rnn"))
    assert products(plan.once.nodes()) == 1
    assert products(plan.before.nodes()) == 1
    assert products(loop_of(plan).nodes()) == 1


def test_a_product_of_a_concatenation_is_split() -> None:
    plan = elman.plan(circuit_of("cat_rnn"))
    assert "cat" not in names(loop_of(plan).nodes())
    assert products(plan.before.nodes()) == 1
    assert products(loop_of(plan).nodes()) == 1


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.noise])
def test_noise_is_lifted(name: str) -> None:
    circuit = circuit_of(name)
    assert circuit.inputs_of(Kind.NOISE)
    for plan in plans(name):
        for stage in plan.stages():
            assert not any(is_random(node) for node in stage.nodes())
        assert plan.loop is None or not any(is_random(node) for node in plan.loop.nodes())


ADDED_UP_OUTSIDE = (
    "elman", "jordan", "gru", "lstm", "leaky", "torch_gru", "torch_lstm", "layer_norm_rnn", "layer_norm_lstm", "mgu",
    "dale_rnn", "two_level_gru", "cat_rnn", "context_rnn", "token_rnn", "zoneout_lstm", "weight_norm_rnn", "loss_rnn",
)  # fmt: skip


@pytest.mark.parametrize("name", ADDED_UP_OUTSIDE)
def test_sums_over_time_come_out_of_single_products(name: str) -> None:
    _, backward = plans(name)
    assert not loop_of(backward).sums
    assert not backward.reasons


def test_what_has_no_rule_stays_in_the_loop_and_says_why() -> None:
    forward, _ = plans("convolutional_rnn")
    backward = plans("convolutional_rnn")[1]
    kept = forward.reasons | backward.reasons
    assert not kept or all("elman has no rule" in why or "operand" in why or "linear" in why for why in kept.values())
    assert "convolution" in names(loop_of(forward).nodes())


def test_a_plan_does_not_know_how_long_or_how_wide_a_batch_is() -> None:
    """No stage holds the pretended batch, and sizes are multiples of `rows` or fixed."""
    for name in ("elman", "lstm", "fast_weights_rnn", "heads_rnn"):
        for plan in plans(name):
            for stage in (*plan.stages(), loop_of(plan)):
                text = " ".join(f"{node.args}{node.kwargs}" for node in stage.graph.nodes)
                assert "1187" not in text


@pytest.mark.parametrize("name", CASES)
def test_every_form_of_every_cell_passes_its_check(name: str) -> None:
    circuit = circuit_of(name).check()
    elman.unfold(circuit, 2).check()
    elman.adjoint(circuit).check()
    elman.plan(circuit).check()
    elman.plan(elman.adjoint(circuit)).check()
    for plan in plans(name):
        plan.circuit.check()
        plan.check()
