"""Calls under a budget: the numbers of a call without one, whatever is stored."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence
from torch.profiler import ProfilerActivity, profile
from torch.utils import _pytree as pytree

import elman
from elman import Segments
from elman.caches import Recent
from elman.engines.native import why_not_built
from elman.errors import ElmanError, InputError, InputTypeError, NotSupported
from elman.execute import segmented
from elman.plan.footprint import Counted
from elman.recurrent import programs
from tests.cases import CASES
from tests.pairwise import with_more
from tests.recurrent import compare, ragged
from tests.recurrent.compare import Inputs
from tests.recurrent.small import layer

Tensor = torch.Tensor
ROOT = Path(__file__).resolve().parents[2]
ways = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
MEMORY = [Segments(1), Segments(3), Segments(100), "1 MB", "60 kB"]


@pytest.fixture
def compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def unbounded_and(rnn: elman.Recurrent, memory: Any, inputs: Inputs, **said: Any) -> list[compare.Result]:
    """The same call twice: without a budget, and with one."""
    wanted = compare.wanted_of(rnn, inputs)
    wanted |= {key: v for key, v in said.items() if isinstance(v, Tensor) and v.requires_grad}
    made = []
    for rnn.memory in (None, memory):
        values = compare.flat(*ragged.ours(rnn, inputs, **said))
        made.append(compare.Result(values, compare.gradients(values, wanted)))
    return made


def agree(rnn: elman.Recurrent, memory: Any, inputs: Inputs, **said: Any) -> None:
    expected, got = unbounded_and(rnn, memory, inputs, **said)
    compare.assert_equal(got.values, expected.values)
    compare.assert_equal(got.gradients, expected.gradients)


@pytest.mark.grid
@ways
@pytest.mark.parametrize("memory", MEMORY, ids=str)
@pytest.mark.parametrize("cut", [(), ("lengths",), ("reset",), ("lengths", "mask", "reset")], ids=" ".join)
@pytest.mark.parametrize("name", ["elman", "gru", "lstm", "jordan", "learned_start_rnn"])
def test_budgets_and_layouts(name: str, cut: tuple[str, ...], memory: Any, reverse: bool) -> None:
    told = ragged.said(9, 4)
    agree(
        layer(name, reverse=reverse), memory, Inputs.of(CASES[name], 9, 4), **{key: told[key] for key in cut}
    )


@pytest.mark.parametrize("name", with_more(
    ["context_rnn", "loss_rnn", "delayed_rnn", "counting_rnn", "noisy_rnn", "silent_rnn", "linear_rnn", "cut_rnn"],
    list(CASES),
))  # fmt: skip
def test_any_cell(name: str) -> None:
    inputs = Inputs.of(CASES[name], 7, 3)
    agree(layer(name), Segments(2), inputs)
    told = ragged.said(7, 3)
    if not CASES[name].starts:
        del told["reset"]
    try:
        elman.Recurrent(layer(name).cell)(
            inputs.x, inputs.state, steps=inputs.steps, context=inputs.context, **told
        )
    except ElmanError:
        return  # it cannot be cut without a budget either
    agree(layer(name, reverse=True), Segments(3), inputs, **told)


@pytest.mark.parametrize("engine", ["reference", "native"])
def test_against_the_definition(engine: str) -> None:
    for reverse in (False, True):
        rnn = layer("lstm", reverse=reverse, memory=Segments(2), engine=engine)
        compare.assert_equal(*[r.gradients for r in compare.both(rnn, Inputs.of(CASES["lstm"], 7, 2))])
        ragged.agree(rnn, Inputs.of(CASES["lstm"], 7, 4), **ragged.said(7, 4))


@ways
@pytest.mark.parametrize("weight", [None, "bools", "numbers"])
def test_teacher(reverse: bool, weight: str | None) -> None:
    """The next step sees the teacher, the final state is the cell's own: a segment hands on the one, not the other."""
    inputs = Inputs.of(CASES["jordan"], 7, 3)
    rnn = layer("jordan", reverse=reverse)
    like = rnn(inputs.x, inputs.state)[0]
    teacher = torch.randn(like.shape, dtype=like.dtype, requires_grad=True)
    taught: dict[str, Any] = {"teacher": teacher}
    if weight == "bools":
        taught["teacher_weight"] = torch.rand(7, 3) < 0.5
    elif weight == "numbers":
        taught["teacher_weight"] = torch.rand(7, 3, dtype=torch.float64, requires_grad=True)
    agree(rnn, Segments(2), inputs, **taught)
    agree(rnn, Segments(3), inputs, **taught, **ragged.said(7, 3))
    agree(
        rnn, Segments(2), inputs, **taught, lengths=torch.tensor([7, 4, 2])
    )  # rows end in different segments


def test_a_packed_sequence() -> None:
    rnn, x = layer(), torch.randn(7, 3, 5, dtype=torch.float64)
    for lengths, ordered in (([3, 7, 2], False), ([7, 7, 7], True), ([6, 3, 1], True)):
        made = []
        for rnn.memory in (None, Segments(2)):
            given = x.clone().requires_grad_()
            packed = pack_padded_sequence(given, torch.tensor(lengths), enforce_sorted=ordered)
            out, h = rnn(packed)
            grads = torch.autograd.grad(out.data.square().sum() + h.sum(), [given, *rnn.parameters()])
            made.append((out.data, h, *grads))
            assert torch.equal(out.batch_sizes, packed.batch_sizes)
        for a, b in zip(*made, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_batch_first_and_other_orders_of_memory() -> None:
    rnn = layer()
    x = torch.randn(3, 7, 5, dtype=torch.float64)
    rnn.batch_first, rnn.order_is_said = True, True
    expected = rnn(x, lengths=torch.tensor([7, 2, 5]))
    rnn.memory = Segments(3)
    torch.testing.assert_close(rnn(x, lengths=torch.tensor([7, 2, 5])), expected)


# --- what is stored -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", [1, 2, 3, 6])
def test_fewer_states_than_segments(stored: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not stored is computed from what is, in the order of the fewest steps."""
    chosen = segmented.schedule

    def fewer(needs: Any, memory: Any, *sizes: Any) -> Any:
        found = chosen(needs, memory, *sizes)
        return segmented.Schedule(found.cuts, min(stored, found.stored), 0, found.peak, 0)

    monkeypatch.setattr(segmented, "schedule", fewer)
    for reverse in (False, True):
        agree(layer(reverse=reverse), Segments(1), Inputs.of(CASES["gru"], 9, 4))
        agree(layer(reverse=reverse), Segments(1), Inputs.of(CASES["gru"], 9, 4), **ragged.said(9, 4))


def test_a_budget_keeps_what_it_can() -> None:
    """With more memory more is stored, and less is computed again; the numbers stay."""
    T, B, rnn = 400, 2, layer("gru", memory="60 kB")
    inputs, advances = Inputs.of(CASES["gru"], T, B), []
    for memory in ("60 kB", "150 kB", "400 kB", "10 MB"):
        agree(rnn, memory, inputs)
        program = rnn._calls.latest.program.carrying_on
        (latest,) = list(program.schedules.values())[-1:]
        assert latest.peak <= rnn.memory
        advances.append(latest.advances / latest.cuts.count)
    assert advances == sorted(advances, reverse=True)
    assert advances[-1] == 0


def most_at_once(run: Callable[[], object]) -> int:
    """Bytes of tensors at the worst moment, besides those that were there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    return max(itertools.accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))


@pytest.mark.grid(1)
@pytest.mark.parametrize("memory", [Segments(40), "500 kB", "1 MB"], ids=str)
@pytest.mark.parametrize("name", ["elman", "gru", "lstm", "jordan"])
def test_what_is_counted_is_enough(name: str, memory: Any) -> None:
    """Of all bytes that are seen at once, beside what is returned and the gradients: and the count is no mere guess."""
    rnn, T, B = elman.Recurrent(CASES[name].make(), memory=memory, batch_first=False), 300, 16
    x = CASES[name].x(T, B, dtype=torch.float32)
    lengths = torch.arange(B) + T - B + 1 if name == "gru" else None

    def run() -> None:
        outputs, _ = rnn(x, lengths=lengths)
        outputs.backward(torch.ones(()).expand(outputs.shape))

    run()
    rnn.zero_grad()
    seen = most_at_once(run)
    outputs, state = rnn(x, lengths=lengths)
    handed = [outputs, *rnn.parameters(), *(state if isinstance(state, tuple) else [state])]
    seen -= sum(t.numel() * t.element_size() for t in handed)
    _, chosen = rnn._calls.latest.program.carrying_on.schedules.latest
    assert 0.4 * chosen.peak < seen <= chosen.peak


# Cells whose passes are run in other ways, or by operations that need room of their own.
HELD = [
    "twin_rnn", "linear_rnn", "ind_rnn", "convolutional_rnn", "conv_lstm", "frames_gru", "merged_heads_rnn", "noisy_rnn"
]  # fmt: skip


@pytest.mark.grid(1)
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("name", with_more(HELD, sorted(CASES.keys() - HELD)))
def test_a_budget_is_held(name: str, ragged: bool) -> None:
    """Gradients that do not lie in order are put in order within it, too."""
    case, T, B = CASES[name], 300, 16
    inputs = Inputs.of(case, T, B)
    x, state, context = pytree.tree_map_only(Tensor, Tensor.detach, (inputs.x, inputs.state, inputs.context))
    lengths = torch.arange(B) + T - B + 1 if ragged else None
    rnn = elman.Recurrent(case.make().double(), memory="1 MB")
    made: list[Tensor] = []

    def run() -> None:
        given = {} if context is None else {"context": context}
        results = rnn(x, state, steps=T if x is None else None, lengths=lengths, **given)
        made[:] = (*pytree.tree_leaves(results), *rnn.parameters())
        outputs = [t for t in pytree.tree_leaves(results[0]) if isinstance(t, Tensor) and t.requires_grad]
        torch.autograd.backward(outputs, [torch.ones((), dtype=t.dtype).expand(t.shape) for t in outputs])

    try:
        run()
    except (InputError, NotSupported):
        return  # the budget is too small, or the cell has none of this
    rnn.zero_grad()
    made.clear()
    seen = most_at_once(run)
    seen -= sum(t.numel() * t.element_size() for t in made if isinstance(t, Tensor))
    assert seen <= rnn.memory


def test_a_schedule_is_made_for_each_kind_of_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that asks for more than another, or that lies in another way, does not run as that one was planned."""
    planned: list[Any] = []
    original = segmented.schedule

    def counted(*args: Any) -> Any:
        planned.append(args)
        return original(*args)

    monkeypatch.setattr(segmented, "schedule", counted)
    monkeypatch.setattr(programs, "_SHARED", Recent(8))  # programs keep what was planned
    rnn, lengths = layer("gru", memory="50 kB"), torch.tensor([6, 4, 2])

    def call(steps: int = 6, rows: int = 3, grad: bool = True, engine: str = "auto", **said: Any) -> None:
        rnn.engine = engine
        inputs = Inputs.of(CASES["gru"], steps, rows)
        with torch.set_grad_enabled(grad):
            rnn(inputs.x, inputs.state, **said)

    def packed() -> None:
        inputs = Inputs.of(CASES["gru"], 6, 3)
        rnn(pack_padded_sequence(inputs.x, lengths), inputs.state)

    halves = torch.zeros(6, 3, dtype=torch.bool)
    halves[3] = True
    kinds: list[Callable[[], None]] = [
        call, lambda: call(grad=False), lambda: call(engine="reference"), lambda: call(rows=2),
        lambda: call(lengths=lengths), packed, lambda: call(lengths=lengths - 1), lambda: call(steps=3, rows=6),
        lambda: call(reset=halves),
    ]  # fmt: skip
    for kind in (*kinds, *kinds):
        before = len(planned)
        kind()
        assert len(planned) - before == (before < len(kinds))
    for one, other in itertools.combinations([args[:4] for args in planned], 2):
        assert one != other, "what is planned differs"
    counted = [isinstance(args[0].backward, Counted) for args in planned]
    native = why_not_built() is None
    assert counted == [native, False, False, *[native] * 6], (
        "where an engine says what it needs, that is what counts"
    )
    extra = [args[0].extra for args in planned]
    assert extra[0] < extra[4] == extra[5], "where rows lie is told by numbers"


def test_a_part_that_is_kept_holds_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where PyTorch runs the stages: a third of a product of 3 x 7 numbers keeps the other two."""
    planned: list[Any] = []
    original = segmented.schedule
    monkeypatch.setattr(segmented, "schedule", lambda *args: (planned.append(args[0]), original(*args))[1])
    monkeypatch.setattr(programs, "_SHARED", Recent(8))
    rnn, inputs = layer("linear_rnn", memory="1 MB"), Inputs.of(CASES["linear_rnn"], 7, 3)
    rnn(inputs.x, inputs.state)
    (training,) = rnn._calls.latest.program.carrying_on._training.values()
    assert planned[0].residuals == training.pair.bytes_per_row + 2 * 7 * 8


def test_a_sequence_in_a_file_is_read_where_it_lies(tmp_path: Path) -> None:
    rnn, numbers = layer(memory=Segments(3)), torch.randn(9, 2, 5, dtype=torch.float64)
    numbers.numpy().tofile(tmp_path / "x")
    mapped = torch.from_file(str(tmp_path / "x"), size=90, dtype=torch.float64).reshape(9, 2, 5)
    torch.testing.assert_close(rnn(mapped), rnn(numbers))


@pytest.mark.conformance
@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="only Linux says how much a process has had"
)
@pytest.mark.parametrize(
    ("steps", "memory", "most"),
    with_more([(100_000, "4 MB", 8e6)], [(1_000_000, "2 MB", 6e6), (1_000_000, "64 MB", 64e6)], True),
)
def test_what_the_operating_system_sees(steps: int, memory: str, most: float) -> None:
    """Residuals alone are 51 MB, or ten times as much."""
    command = [sys.executable, "-m", "bench.memory", f"ours, {memory}", str(steps), memory]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    made = json.loads(done.stdout.splitlines()[-1])
    returned = 3 * 4 * steps  # losses, their gradient, and what took their mean
    assert made["bytes"] < most + returned


@ways
def test_second_derivatives(reverse: bool) -> None:
    for told in ({}, ragged.said(5, 3, 2)):
        rnn, inputs, found = layer("elman", reverse=reverse), Inputs.of(CASES["elman"], 5, 3), []
        for rnn.memory in (None, Segments(2)):
            wanted = compare.wanted_of(rnn, inputs)
            values = compare.flat(*ragged.ours(rnn, inputs, **told))
            first = compare.gradients(values, wanted, create_graph=True)
            found.append((first, compare.gradients(first, wanted)))
        for mine, right in zip(*found, strict=True):
            compare.assert_equal(mine, right)


def test_transforms_of_torch_func() -> None:
    rnn, x = layer("elman"), torch.randn(5, 3, 5, dtype=torch.float64)
    parameters = {name: p.detach() for name, p in rnn.named_parameters()}

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(rnn, parameters, (x,))[0].square().sum()

    expected = torch.func.grad(loss)(parameters)
    rnn.memory = Segments(2)
    torch.testing.assert_close(torch.func.grad(loss)(parameters), expected, rtol=1e-10, atol=1e-10)


def test_noise_is_the_same_wherever_a_call_is_cut() -> None:
    """And it is drawn again, not stored."""
    rnn = layer("noisy_rnn")
    inputs = Inputs.of(CASES["noisy_rnn"], 40, 3)
    for told in ({}, ragged.said(40, 3)):
        rnn.memory = None
        whole = compare.flat(*ragged.ours(rnn, inputs, **told))
        for rnn.memory in (Segments(1), Segments(7), Segments(16)):
            compare.assert_equal(compare.flat(*ragged.ours(rnn, inputs, **told)), whole)


def test_the_backward_pass_may_run_twice() -> None:
    rnn, x = layer(memory=Segments(2)), torch.randn(7, 3, 5, dtype=torch.float64, requires_grad=True)
    loss = rnn(x)[0].square().sum()
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    (again,) = torch.autograd.grad(loss, x)
    assert torch.equal(first, again)


def test_an_input_that_is_written_into_before_the_backward_pass() -> None:
    rnn = layer(memory=Segments(2))
    x = torch.randn(7, 3, 5, dtype=torch.float64)
    loss = rnn(x)[0].square().sum()
    x.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_outputs_may_be_written_into() -> None:
    """Nothing that is stored lies in their memory."""
    found = []
    for memory in (None, Segments(3)):
        rnn, x = (
            layer("elman", memory=memory),
            torch.linspace(-1, 1, 7 * 3 * 5, dtype=torch.float64).reshape(7, 3, 5),
        )
        out, _ = rnn(x)
        loss = (out * 1).square().sum()
        if memory is not None:
            out.detach().zero_()
        loss.backward()
        found.append([p.grad for p in rnn.parameters()])
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)


def test_no_steps_no_rows_and_no_gradients() -> None:
    rnn = layer(memory=Segments(2))
    for T, B in ((0, 3), (4, 0), (0, 0)):
        out, h = rnn(torch.zeros(T, B, 5, dtype=torch.float64))
        assert out.shape[:2] == (T, B)
        assert h.shape[0] == B
    x = torch.randn(5, 3, 5, dtype=torch.float64)
    with torch.no_grad():
        got = rnn(x)
    rnn.memory = None
    torch.testing.assert_close(got, rnn(x))


@ways
@pytest.mark.parametrize("said", ["lengths", "mask"])
def test_a_batch_in_which_nothing_happens(said: str, reverse: bool) -> None:
    rnn = layer(reverse=reverse)
    nothing = {"lengths": torch.zeros(3, dtype=torch.long), "mask": torch.zeros(5, 3, dtype=torch.bool)}
    inputs = Inputs.of(CASES["gru"], 5, 3)
    agree(rnn, Segments(2), inputs, **{said: nothing[said]})


def test_infinity_in_a_sum_stays() -> None:
    """The rests of sums are those of finite numbers."""
    total = segmented._Sum(torch.zeros(2), None)
    for value in ([1.0, 1.0], [float("inf"), 2.0], [1.0, 3.0]):
        total.add(torch.tensor(value), None)
    assert total.value.tolist() == [float("inf"), 6.0]


def test_sums_over_many_segments_do_not_lose_what_is_small() -> None:
    total, plain = segmented._Sum(torch.zeros(1), None), torch.zeros(1)
    for _ in range(20_000):
        value = torch.tensor([0.1])
        total.add(value, None)
        plain += value
    exact = 20_000 * float(torch.tensor(0.1))
    assert abs(float(total.value) - exact) <= 2e-7 * exact < abs(float(plain) - exact)


@pytest.mark.parametrize("name", with_more(["noisy_rnn"], ["zoneout_lstm", "elman"]))
def test_compiled(name: str, compiler: None) -> None:
    """Dense and ragged, with gradients and without, at sizes that differ."""
    rnn = layer(name, memory=Segments(2))
    fast = torch.compile(rnn, fullgraph=True, backend="aot_eager", dynamic=True)
    for told in ({}, ragged.said(7, 4)):
        if not CASES[name].starts:
            told.pop("reset", None)
        inputs, found = Inputs.of(CASES[name], 7, 4), []
        for run in (rnn, fast):
            torch.manual_seed(5)
            values = compare.flat(*run(inputs.x, inputs.state, **told))
            found.append((values, compare.gradients(values, compare.wanted_of(rnn, inputs))))
        for mine, right in zip(*found, strict=True):
            compare.assert_equal(mine, right)
    with torch.no_grad():
        torch.manual_seed(5)
        expected = rnn(inputs.x, inputs.state)
        torch.manual_seed(5)
        torch.testing.assert_close(fast(inputs.x, inputs.state), expected)
    rnn.memory = 2000  # bytes: noticed by what was compiled, and too few
    with pytest.raises(InputError, match="too small"):
        fast(inputs.x, inputs.state)


def test_layers_of_layers_say_that_their_budget_is_not_compiled(compiler: None) -> None:
    both = elman.Bidirectional(elman.cells.GRU(5, 5), elman.cells.GRU(5, 5), memory="1 MB", batch_first=False)
    with pytest.raises(Exception, match="memory= of several layers is not"):
        torch.compile(both, fullgraph=True, backend="eager")(torch.zeros(3, 2, 5))


# --- what may be said -----------------------------------------------------------------------------------------------


def test_a_budget_that_is_too_small_says_which_is_not() -> None:
    rnn, x = layer(), torch.randn(500, 3, 5, dtype=torch.float64, requires_grad=True)
    rnn.memory = 1000
    with pytest.raises(InputError, match="too small") as caught:
        rnn(x)
    smallest = str(caught.value.expected).removeprefix("at least ")
    rnn.memory = smallest
    rnn(x)[0].sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("memory", ["64", "64 Mb", "-3 MB", 0, -1, "", "MB", "1e3 MB"])
def test_budgets_that_are_none(memory: Any) -> None:
    with pytest.raises(InputError, match="budget"):
        layer(memory=memory)


@pytest.mark.parametrize("memory", [1.5, True, [3], object()])
def test_what_memory_cannot_be(memory: Any) -> None:
    with pytest.raises(InputTypeError, match="budget"):
        layer(memory=memory)


def test_units() -> None:
    assert layer(memory="1.5 kB").memory == 1500
    assert layer(memory="64MiB").memory == 64 * 2**20
    with pytest.raises(InputError, match="at least one step"):
        Segments(0)
    assert "memory=Segments(steps=3)" in repr(layer(memory=Segments(3)))
