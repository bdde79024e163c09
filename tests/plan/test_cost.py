"""Costs: the book's network counted by hand, and how they grow."""

from __future__ import annotations

import pytest
import torch

import elman
from elman.errors import InputError
from elman.forcing import force
from elman.plan import cost, plan
from elman.plan.cost import Cost
from elman.plan.pace import GAIN, Counts, Machine, counts
from elman.plan.work import count, duration, size
from tests.circuits import circuit_of, plan_of, training_of

I, H = 5, 7
SHAPES = pytest.mark.parametrize(("T", "B"), [(1, 1), (6, 2), (100, 3), (0, 4), (9, 0)])


@SHAPES
def test_the_books_network_by_hand(T: int, B: int) -> None:
    made = cost(plan_of("elman"), T, B)
    assert made.once == 0, "transpositions only"
    assert made.before == 2 * T * B * I * H, "U x + b, the sum within the product"
    assert made.loop == T * (2 * B * H * H + B * H), "W h and a tanh at each step"
    assert made.after == 0
    assert made.kept == T * B * H * 8, "h in float64"
    assert made.parameters == H * I + H * H + H
    assert made.depth == 2
    assert made.path == 1 + 2 * T
    assert made.total == made.before + made.loop


@SHAPES
def test_its_adjoint_by_hand(T: int, B: int) -> None:
    made = cost(training_of("elman")[1], T, B)
    assert made.loop == T * (2 * B * H * H + 2 * B * H), "g W, a sum, tanh's derivative"
    assert made.after == T * B * (2 * I * H + 2 * H * H + 2 * I * H) + max(T * B, 1) * H, "dU, dW, dx; db"
    assert made.before == 0
    assert made.kept == T * B * 0, "the backward pass takes in what was kept"
    assert made.depth == 3


@pytest.mark.parametrize("name", ["elman", "lstm", "gru", "layer_norm_rnn", "attention_rnn", "cat_rnn"])
def test_work_and_memory_are_linear_in_steps_and_batch(name: str) -> None:
    for made in (plan_of(name), *training_of(name)):
        base, longer, longest = (cost(made, T, 2) for T in (10, 20, 40))
        wide, wider = cost(made, 10, 4), cost(made, 10, 8)
        for part in ("before", "loop", "after", "kept"):
            one, two, four = (getattr(c, part) for c in (base, longer, longest))
            assert four - two == 2 * (two - one), part
            assert [getattr(c, part) for c in (wide, wider)] == [two, four] or part == "loop", part
            # Beside what is done for every row there are gradients of what runs once, a few times the weights.
            assert part == "after" or four == 4 * one, part
            assert 0 <= 2 * one - two <= 4 * base.parameters, part
        assert wider.loop == 2 * wide.loop
        assert longer.once == base.once
        assert longest.parameters == wider.parameters == base.parameters


@pytest.mark.parametrize("name", ["elman", "lstm", "gru", "jordan"])
def test_the_path_grows_by_the_depth_of_the_loop(name: str) -> None:
    for made in (plan_of(name), *training_of(name)):
        at = [cost(made, T, 4) for T in (0, 1, 2, 50)]
        assert at[0].depth > 0
        assert [c.path - at[0].path for c in at] == [T * at[0].depth for T in (0, 1, 2, 50)]
        assert at[0].path == cost(made, 0, 400).path, "a batch is parallel"


def test_without_a_loop_the_path_does_not_grow() -> None:
    made = plan(force(circuit_of("jordan")))
    assert cost(made, 1000, 2).path == cost(made, 1, 2).path
    assert cost(made, 1000, 2).loop == 0
    assert cost(made, 1000, 2).sequential_share == 0
    assert cost(made, 1000, 2).depth == 0


def test_a_weight_is_counted_once_however_often_it_stands() -> None:
    assert cost(plan_of("tied_rnn"), 1, 1).parameters == H * I + H + H * H + H


def test_a_context_is_no_parameter_and_costs_once() -> None:
    made = cost(plan_of("context_rnn"), 10, 3)
    assert made.parameters == I * H + H + H * H + 4 * H + H
    assert made.once == cost(plan_of("context_rnn"), 1000, 3).once
    assert made.once >= 2 * 3 * 4 * H


def test_the_kept_bytes_are_those_of_training() -> None:
    for name, floats in (("elman", 1), ("gru", 5), ("lstm", 6)):
        assert cost(plan_of(name), 3, 2).kept == 3 * 2 * floats * H * 8
        assert cost(training_of(name)[0], 3, 2).kept == 3 * 2 * floats * H * 8


def test_negative_sizes_are_refused() -> None:
    for T, B in ((-1, 2), (2, -1)):
        with pytest.raises(InputError, match="not negative"):
            cost(plan_of("elman"), T, B)


def test_it_reads_well() -> None:
    text = str(cost(plan_of("elman"), 100, 3))
    assert "T = 100, B = 3" in text
    assert "201 operations one after the other, 2 at every step" in text
    assert "parameters 91" in text
    assert Cost(1, 1, 0, 0, 0, 0, 0, 0, 0, 0).sequential_share == 0


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (999, "999"), (1230, "1.23 k"), (4.5e6, "4.5 M"), (2e9, "2 G"), (3e15, "3e+03 T")],
)
def test_numbers_for_people(number: float, text: str) -> None:
    assert count(number) == text


def test_bytes_for_people() -> None:
    assert [size(n) for n in (5, 1500, 2.5e6, 7e9)] == ["5 B", "1.5 kB", "2.5 MB", "7 GB"]


# --- time ------------------------------------------------------------------------------------------------------------

MACHINE = Machine(flops=1e11, bandwidth=2e11, call=1e-5)


def test_what_a_step_has_to_do_is_counted() -> None:
    """h W by hand: [B, H] by [H, H] at every step, and U x + b for all at once."""
    T, B = 10, 3
    found, one, few = (
        counts(plan_of("elman"), T, B),
        counts(plan_of("elman"), 1, 5),
        counts(plan_of("elman"), 1, B),
    )
    assert found.flops == 2 * T * B * (I * H + H * H)
    assert (found.read, one.read) == (T * H * H * 8, H * H * 8)
    assert found.packed == one.packed == (I * H + H * H) * 8
    assert few.packed == pytest.approx((I * H + 0.7 * H * H) * 8)  # W is read as it lies
    assert found.curved == T * B * H
    assert found.trained == 0
    assert [counts(made, T, B).trained for made in training_of("elman")] == [1, 1]


def test_a_call_takes_longer_with_more_to_do_and_less_on_a_better_machine() -> None:
    def taken(T: int = 10, B: int = 3, machine: Machine = MACHINE) -> float:
        found = cost(plan_of("gru"), T, B, machine=machine).seconds
        assert found is not None
        return found

    assert 0 < taken(1) < taken() < taken(20) < taken(20, 6)
    for better in (Machine(2e11, 2e11, 1e-5), Machine(1e11, 4e11, 1e-5), Machine(1e11, 2e11, 5e-6)):
        assert taken() / 2 <= taken(machine=better) < taken()
    assert taken(machine=Machine(2e11, 4e11, 5e-6)) == pytest.approx(taken() / 2)
    assert cost(plan_of("gru"), 10, 3).seconds is None
    assert "  time       about " in str(cost(plan_of("gru"), 10, 3, machine=MACHINE))


def test_threads_share_what_is_worth_it() -> None:
    """Rows, or the columns of few; each thread that shares rows reads all weights, and short calls have one thread."""

    made = elman.plan(elman.trace(elman.cells.GRU(I, 128), torch.zeros(2, I), torch.zeros(2, 128)))

    def found(T: int, B: int, threads: int) -> Counts:
        return counts(made, T, B, threads)

    gain = 1 + GAIN
    assert found(100, 32, 2).flops == pytest.approx(found(100, 32, 1).flops / gain)
    assert found(100, 32, 2).read == found(100, 32, 1).read
    assert found(1, 32, 2).read == pytest.approx(found(1, 32, 1).read / gain)
    assert found(100, 1, 2).read == pytest.approx(found(100, 1, 1).read / gain)
    assert found(1, 1, 8) == found(1, 1, 1)
    assert found(100, 32, 8).flops > found(100, 32, 1).flops / 8
    assert [found(100, 32, n).trained for n in (1, 2)] == [0, 0]


def test_more_bytes_than_the_cache_holds_come_slower() -> None:
    sizes = [10**5, 512_000, 10**7, 64_000_000, 10**9]
    found = [MACHINE.bytes_a_second(size) for size in sizes]
    assert found[0] == found[1] == 2e11 > found[2] > found[3] == found[4] == 5e10


def test_a_machine_is_measured_once_and_draws_nothing() -> None:
    before = torch.get_rng_state()
    machine = elman.machine()
    assert machine == elman.machine()
    assert torch.equal(torch.get_rng_state(), before)
    assert min(machine.flops, machine.bandwidth) > 1e6
    assert 0 < machine.call < 1
    assert Counts(flops=1e9).units(machine)["flops"] == pytest.approx(1e9 / machine.flops)


@pytest.mark.parametrize(("seconds", "text"), [(2.5, "2.5 s"), (0.0123, "12.3 ms"), (8.04e-6, "8.04 us")])
def test_times_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text
