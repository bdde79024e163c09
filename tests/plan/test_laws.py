"""Planned = unfolded, forward and backward, for every case; rows of different lengths = each row alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import fx

from elman.circuit.form import Circuit, Kind
from elman.engines.reference import Reference
from elman.errors import CircuitError
from elman.execute.executable import Call, run
from elman.plan.form import Loop, Plan
from elman.segments.timeline import Timeline
from tests.cases import CASES
from tests.circuits import (
    SEED,
    assert_close,
    backward_inputs,
    circuit_of,
    cotangents,
    exposed_of,
    gradients,
    pair_of,
    plan_of,
    problem,
    training_of,
    unfolded,
)

Tensor = torch.Tensor
REVERSED = [
    "elman",
    "lstm",
    "delayed_rnn",
    "dropout_rnn",
    "lying_rnn",
    "context_rnn",
    "twin_rnn",
    "attention_rnn",
]
WAYS = [*((name, False) for name in CASES), *((name, True) for name in REVERSED)]


@pytest.mark.grid(1)
@pytest.mark.parametrize(("name", "reverse"), WAYS)
@pytest.mark.usefixtures("poisoned")
def test_planned_is_unfolded(name: str, reverse: bool) -> None:
    at = problem(name, 3, 2, reverse=reverse)
    with torch.no_grad():
        got = run(plan_of(name, reverse).check(), at.call(), at.inputs)
        expected = unfolded(at.circuit, 3)(at.inputs)
    assert_close(got, expected)
    assert got.keys() == expected.keys()


@pytest.mark.grid(1)
@pytest.mark.parametrize(
    ("name", "reverse", "policy"),
    [
        *((name, reverse, "cut") for name, reverse in WAYS),
        *(
            pytest.param(name, False, "states", marks=[] if i % 8 == 0 else pytest.mark.conformance)
            for i, name in enumerate(CASES)
        ),
    ],
)
@pytest.mark.usefixtures("poisoned")
def test_the_planned_gradient_is_the_eager_loops(name: str, reverse: bool, policy: str) -> None:
    """The two plans of training, one handing what it keeps to the other; noise is drawn anew in each."""
    at = problem(name, 3, 2, reverse=reverse)
    both, (forward, backward) = pair_of(name, reverse, policy), training_of(name, reverse, policy)
    expected = at.unrolled()
    given = cotangents(expected)
    with torch.no_grad():
        made = run(forward, at.call(), at.inputs)
        assert_close({name: made[name] for name in expected}, expected)
        exposed = unfolded(exposed_of(name, reverse), 3)(at.inputs)
        known = backward_inputs(at.circuit, both.backward, at.inputs, exposed, given, 3, 2)
        # What is kept comes from the forward plan and from nowhere else.
        known = {key: value for key, value in known.items() if key not in both.kept.values()}
        known |= {inside: made[port] for port, inside in both.kept.items()}
        got = run(backward, at.call(), known)
    assert_close(
        {key.removeprefix("d_"): value for key, value in got.items()}, gradients(expected, given, at.leaves())
    )


@pytest.mark.parametrize("name", ["elman", "lstm", "delayed_rnn", "noisy_rnn", "swing", "context_rnn"])
@pytest.mark.parametrize(("T", "B"), [(0, 2), (1, 1), (7, 3), (33, 1)])
def test_one_plan_for_every_length_and_batch(name: str, T: int, B: int) -> None:
    at = problem(name, T, B)
    with torch.no_grad():
        assert_close(run(plan_of(name), at.call(), at.inputs), at.unrolled())


def test_no_rows_at_all() -> None:
    at = problem("lstm", 3, 0)
    with torch.no_grad():
        made = run(plan_of("lstm"), at.call(), at.inputs)
    assert made["h_final"].shape == (0, 7)
    assert made["output"].shape == (3, 0, 7)


# --- rows that end early ------------------------------------------------------------------------------------


def pack(value: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """[T, B, …] -> [N, …]."""
    steps = [value[t, : sum(n > t for n in lengths)] for t in range(max(lengths))]
    return torch.cat(steps)


def row_of(packed: Tensor, lengths: tuple[int, ...], row: int) -> Tensor:
    """One row's steps out of packed rows: [length, …]."""
    firsts = [sum(min(n, t) for n in lengths) for t in range(lengths[row])]
    return torch.stack([packed[first + row] for first in firsts])


LENGTHS = [(5, 3, 3, 1), (4, 4, 2), (3, 2, 1), (6, 1), (2,)]
# The book's network, two states, constants with rows, a draw without rows, integers, noise.
LOOPS = [
    "elman",
    "lstm",
    "context_rnn",
    "attention_rnn",
    "shared_noise",
    "counting_rnn",
    "noisy_rnn",
    "layer_norm_lstm",
]


class SharedNoise(torch.nn.Module):
    """One draw for all rows of a step, and all units."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_size = 7
        self.W = torch.nn.Linear(7, 7, dtype=torch.float64)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.W(h) + x + torch.randn(7, dtype=x.dtype))


def loop_of(name: str) -> Loop:
    if name == "shared_noise":
        from elman.plan import plan
        from elman.trace import trace

        example = torch.zeros(2, 7, dtype=torch.float64)
        found = plan(trace(SharedNoise(), example, example, check=False)).loop
    else:
        found = plan_of(name).loop
    assert found is not None
    return found


def described(loop: Loop, name: str) -> Tensor:
    """The fake tensor behind an input of a loop."""
    return next(n.meta["val"] for n in loop.graph.nodes if n.op == "placeholder" and n.target == name)


def random_like(fake: Tensor, lead: tuple[int, ...], skip: int) -> Tensor:
    shape = (*lead, *(int(size) for size in fake.shape[skip:]))
    if fake.dtype.is_floating_point:
        return torch.randn(shape, dtype=fake.dtype)
    return torch.randint(0, 2, shape).to(fake.dtype)


def sizes(lengths: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sum(n > t for n in lengths) for t in range(max(lengths)))


def room(loop: Loop, rows: int, steps: int) -> dict[str, Tensor]:
    out = next(node for node in loop.graph.nodes if node.op == "output").args[0]
    made = {}
    for name in loop.emits:
        like = out[name].meta["val"]
        lead = (steps, *like.shape) if name in loop.stepped else (rows, *like.shape[1:])
        made[name] = torch.full([int(s) for s in lead], -77, dtype=like.dtype)
    return made


def run_uneven(loop: Loop, lengths: tuple[int, ...], reverse: bool) -> None:
    T, B = max(lengths), len(lengths)
    constants = {
        name: random_like(described(loop, name), (B,), 1)
        if name in loop.rowed
        else random_like(described(loop, name), (), 0)
        for name in loop.constants
    }
    sequences = {
        name: random_like(described(loop, name), (T,), 0)
        if name in loop.stepped
        else random_like(described(loop, name), (T, B), 1)
        for name in loop.sequences
    }
    fed = {state.name for state in loop.states}
    placeholders = {n.target for n in loop.graph.nodes if n.op == "placeholder"}
    starts = {name: random_like(described(loop, name), (B,), 1) for name in fed & placeholders}
    assert starts.keys() == fed
    packed = {n: v if n in loop.stepped else pack(v, lengths) for n, v in sequences.items()}
    out = room(loop, sum(lengths), T)
    made = Reference().run(loop, constants | packed | starts, sizes(lengths), reverse, out)
    total: dict[str, Tensor] = {}
    for row, n in enumerate(lengths):
        alone = {name: v[row : row + 1] if name in loop.rowed else v for name, v in constants.items()}
        alone |= {name: v[:n] if name in loop.stepped else v[:n, row] for name, v in sequences.items()}
        alone |= {name: v[row : row + 1] for name, v in starts.items()}
        mine = room(loop, n, n)
        single = Reference().run(loop, alone, (1,) * n, reverse, mine)
        for name, value in single.finals.items():
            torch.testing.assert_close(made.finals[name][row : row + 1], value, rtol=1e-12, atol=1e-12)
        for name in loop.emits:
            if name not in loop.stepped:
                torch.testing.assert_close(
                    row_of(out[name], lengths, row), mine[name], rtol=1e-12, atol=1e-12
                )
        for name, value in single.sums.items():
            total[name] = total.get(name, torch.zeros_like(value)) + value
    assert_close(made.sums, total)


@pytest.mark.grid
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.usefixtures("poisoned")
def test_rows_of_different_lengths_are_rows_alone(name: str, lengths: tuple[int, ...], reverse: bool) -> None:
    run_uneven(loop_of(name), lengths, reverse)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize(
    "name", ["elman", "gru", "layer_norm_rnn", "heads_rnn", "attention_rnn", "delayed_rnn"]
)
@pytest.mark.usefixtures("poisoned")
def test_backward_loops_with_rows_of_different_lengths(name: str, reverse: bool) -> None:
    loop = training_of(name)[1].loop
    assert loop is not None
    run_uneven(loop, (5, 3, 3, 1), reverse)


def test_sums_of_rows_that_end_early() -> None:
    """A loop made by hand: two sums, one over rows and one of a number for each step."""
    graph = fx.Graph()
    circuit = circuit_of("elman")
    fake = next(n.meta["val"] for n in circuit.graph.nodes if n.target == "h")
    from elman.circuit.graphs import add_placeholder, aten, insert

    h, x = add_placeholder(graph, "h", fake), add_placeholder(graph, "x", fake)
    new = insert(graph, aten.add.Tensor, h, x)
    over = insert(graph, aten.sum.dim_IntList, new, [0])
    square = insert(graph, aten.mm.default, insert(graph, aten.permute.default, new, [1, 0]), new)
    graph.output({"h next": new, "kept": new, "over": over, "square": square})
    from elman.plan.form import LoopState

    loop = Loop(
        graph,
        (),
        ("x",),
        (LoopState("h", "h next"),),
        ("kept",),
        ("over", "square"),
        frozenset(),
        frozenset(),
    )
    loop.check("by hand")
    for reverse in (False, True):
        for lengths in LENGTHS:
            run_uneven(loop, lengths, reverse)


# --- the check ----------------------------------------------------------------------------------------------


def fresh(name: str) -> Plan:
    from elman.plan import plan

    return plan(circuit_of(name))


def test_the_check_finds_an_input_that_nobody_makes() -> None:
    broken = fresh("elman")
    node = next(n for n in broken.before.graph.nodes if n.op == "placeholder" and n.target == "x")
    node.target = "elsewhere"
    with pytest.raises(CircuitError, match="'elsewhere' is used before it is made") as caught:
        broken.check()
    assert "before" in str(caught.value)


def test_the_check_finds_an_output_that_is_gone() -> None:
    broken = fresh("elman")
    out = next(n for n in broken.before.graph.nodes if n.op == "output")
    made = dict(out.args[0])
    gone = broken.loop.sequences[0]
    del made[gone]
    out.args = (made,)
    with pytest.raises(CircuitError, match="used before it is made") as caught:
        broken.check()
    assert "loop" in str(caught.value)


def test_the_check_finds_two_values_of_one_name() -> None:
    broken = fresh("elman")
    out = next(n for n in broken.after.graph.nodes if n.op == "output")
    sequence = broken.loop.sequences[0]
    out.args = (out.args[0] | {sequence: next(iter(broken.after.graph.nodes))},)
    with pytest.raises(CircuitError, match=f"'{sequence}' is made twice"):
        broken.check()


def test_the_check_finds_a_port_without_a_value() -> None:
    broken = fresh("lstm")
    with pytest.raises(CircuitError, match="nobody makes 'nothing' for output port 'output'"):
        replace(broken, outputs=broken.outputs | {"output": "nothing"}).check()


def test_the_check_finds_a_result_that_the_loop_does_not_have() -> None:
    broken = fresh("elman")
    assert broken.loop is not None
    with pytest.raises(CircuitError, match="'nothing' is no result of the loop"):
        replace(broken, loop=replace(broken.loop, emits=(*broken.loop.emits, "nothing"))).check()
    with pytest.raises(CircuitError, match="is no input of the loop"):
        replace(broken, loop=replace(broken.loop, sequences=())).check()


def test_the_check_finds_what_writes_in_place() -> None:
    broken = fresh("elman")
    node = next(n for n in broken.loop.graph.nodes if "tanh" in n.name)
    node.target = torch.ops.aten.tanh_.default
    with pytest.raises(CircuitError, match="writes into its operand"):
        broken.check()


def test_the_order_of_stages_is_checked() -> None:
    """What the loop gives out is not there before the loop."""
    broken = fresh("elman")
    with pytest.raises(CircuitError, match="used before it is made"):
        replace(broken, before=replace(broken.after, name="before"), after=broken.before).check()


# --- the timeline -------------------------------------------------------------------------------------------

SIZES = [(0, 2), (1, 1), (1, 3), (4, 1), (5, 3), (3, 0), (0, 0)]


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize(("T", "B"), SIZES)
def test_the_operations_on_time(T: int, B: int, reverse: bool) -> None:
    line = Timeline(T, B, reverse)
    value, start = torch.randn(T, B, 3, 2), torch.randn(B, 3, 2)
    order = range(T)[:: -1 if reverse else 1]
    assert list(line.batch_sizes) == [B] * T
    packed = line.pack(value)
    assert packed.shape == (T * B, 3, 2)
    assert torch.equal(line.unpack(packed), value)

    def shifted(first: Tensor) -> Tensor:
        seen, before = {}, first
        for t in order:
            seen[t], before = before, value[t]
        return torch.stack([seen[t] for t in range(T)]) if T else value

    assert torch.equal(line.unpack(line.shift(packed, start)), shifted(start))
    assert torch.equal(line.unpack(line.shift(packed, None)), shifted(torch.zeros_like(start)))
    for begin in (start, None):
        ended = value[order[-1]] if T else (torch.zeros_like(start) if begin is None else begin)
        got = line.last(packed, begin)
        assert torch.equal(got, ended)
        assert not T or not B or got.data_ptr() != packed.data_ptr()
    torch.testing.assert_close(line.total(packed), value.sum(0))
    assert torch.equal(line.times(start, True), start * T)
    assert torch.equal(line.unpack(line.spread(start, 0)), start.expand(T, B, 3, 2))
    assert torch.equal(line.spread(start[:, 0, 0].sum(), -1), start[:, 0, 0].sum().expand(T * B))
    # Rows in another dimension: [3, B, 2] -> [3, N, 2], the row index fast within a step.
    moved = line.spread(start.transpose(0, 1), 1)
    assert torch.equal(moved.transpose(0, 1).reshape(T, B, 3, 2), start.expand(T, B, 3, 2))


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize(("T", "B"), SIZES)
def test_a_trail_is_a_view_of_the_same_delay(T: int, B: int, reverse: bool) -> None:
    line = Timeline(T, B, reverse)
    start = torch.randn(B, 3)
    sequence, delay = line.trail(torch.empty(T + 1, B, 3), start)
    assert sequence.shape == delay.shape == (T, B, 3)
    sequence.copy_(torch.randn(T, B, 3))
    assert torch.equal(line.pack(delay), line.shift(line.pack(sequence).clone(), start))
    assert delay.untyped_storage().data_ptr() == sequence.untyped_storage().data_ptr()


def test_a_call_draws_what_the_problem_holds() -> None:
    """The comparisons above would hold for noise that is never drawn; here it differs from seed to seed."""
    at = problem("noisy_rnn", 3, 2)
    with torch.no_grad():
        one = run(plan_of("noisy_rnn"), Call(3, 2, SEED, "reference"), at.inputs)
        other = run(plan_of("noisy_rnn"), Call(3, 2, SEED + 1, "reference"), at.inputs)
    assert not torch.equal(one["output"], other["output"])


def test_kinds_of_a_circuit_and_its_plan_agree() -> None:
    circuit: Circuit = circuit_of("lstm")
    assert set(plan_of("lstm").outputs) == {out.name for out in circuit.outputs}
    assert {out.kind for out in circuit.outputs} == {Kind.SEQUENCE, Kind.STATE}
