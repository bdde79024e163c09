"""The native engine gives what the reference engine gives, for every loop, and the same bits however it is run."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time

import pytest
import torch

import elman
from elman.engines import choose
from elman.engines.native import Native, isa, why_not_built
from elman.engines.reference import Reference
from elman.errors import InputError, NotSupported
from tests.cases import CASES
from tests.engines.loops import CPU, Given, given, loops_at, loops_of
from tests.pairwise import with_more

pytestmark = pytest.mark.skipif(why_not_built() is not None, reason=f"native engine: {why_not_built()}")

Tensor = torch.Tensor
NATIVE, REFERENCE = Native(), Reference()
# Cells whose step holds what the engine has no form for, with the reason that it gives.
REFUSED = {"clipped_rnn": ("", "", "sums over rows inside the loop")}
SIZES = ([3] * 5, [1], [5, 5, 3, 3, 1], [7, 7, 7, 6])


def instruction_sets() -> list[str]:
    if why_not_built() is not None:
        return ["plain"]
    from elman import _native

    return list(_native.instruction_sets())


ENGINES = {name: Native(name) for name in instruction_sets()} if why_not_built() is None else {}


@pytest.fixture(params=instruction_sets())
def native(request: pytest.FixtureRequest) -> Native:
    return ENGINES[request.param]


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            got[name],
            value,
            rtol=tolerance,
            atol=tolerance,
            equal_nan=True,
            msg=lambda m, name=name: f"{name}: {m}",
        )


def assert_same_bits(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(got[name].nan_to_num(7.0), value.nan_to_num(7.0)), name


# --- every loop of every case ---------------------------------------------------------------------------------------


@pytest.mark.grid(1)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("name", [name for name in CASES if name not in REFUSED])
def test_loops_of_the_cases(name: str, sizes: list[int], reverse: bool, threads: int, native: Native) -> None:
    for what, loop in loops_of(name).items():
        assert native.supports(loop, CPU) is None, what
        at = given(loop, sizes, batch=sizes[0] + (sizes[0] != sizes[-1]))  # one row may have no step
        assert_same(_with_threads(threads, at, reverse, native), at.run(REFERENCE, reverse))


@pytest.mark.parametrize("name", REFUSED)
def test_reasons(name: str) -> None:
    assert tuple(
        (NATIVE.supports(loop, CPU) or "").removeprefix("it has no form for ") for loop in loops_of(name).values()
    ) == REFUSED[name]  # fmt: skip


SHIPPED = (
    "elman",
    "jordan",
    "gru",
    "lstm",
    "leaky",
    "layer_norm_rnn",
    "layer_norm_lstm",
    "heads_rnn",
    "attention_rnn",
)


WIDTHS = [(1, 1), (17, 34), (130, 68), (34, 17), (68, 130)]
# Each is a trace: every width and either dtype with one of the cells.
TRACED = [
    ("lstm", (130, 68), torch.float32), ("lstm", (1, 1), torch.float64),
    ("layer_norm_rnn", (17, 34), torch.float32), ("layer_norm_rnn", (130, 68), torch.float64),
]  # fmt: skip
OTHERS = [
    one for one in itertools.product(SHIPPED[:6], WIDTHS, (torch.float32, torch.float64)) if one not in TRACED
]


@pytest.mark.grid
@pytest.mark.parametrize(("steps", "batch"), [(1, 1), (2, 2), (63, 13), (5, 33)])
@pytest.mark.parametrize("at", with_more(TRACED, OTHERS), ids=str)
def test_odd_sizes(
    at: tuple[str, tuple[int, int], torch.dtype], steps: int, batch: int, native: Native
) -> None:
    name, (n_in, n_hidden), dtype = at
    scale = 0.5 / n_hidden**0.5
    for loop in loops_at(name, n_in, n_hidden, dtype).values():
        assert native.supports(loop, CPU) is None
        run = given(loop, [batch] * steps, scale=scale)
        # float32: bounded by what rounding alone does in this many contracting steps
        assert_same(run.run(native), run.run(REFERENCE), 1e-10 if dtype == torch.float64 else 2e-4)


@pytest.mark.parametrize(
    "name",
    with_more(("layer_norm_rnn",), [n for n in SHIPPED if n != "layer_norm_rnn"]),
)
def test_float32_is_as_near_to_float64_as_torch(name: str) -> None:
    """Outputs of a whole call: error against float64 at most four times torch's own, floor 1e-6."""
    case, (T, B, I, H) = CASES[name], (63, 13, 34, 36)
    errors = {}
    exact = _outputs(case, torch.float64, "reference", T, B, I, H)
    for engine in ("native", "reference"):
        errors[engine] = [
            float((a.double() - b).abs().max())
            for a, b in zip(_outputs(case, torch.float32, engine, T, B, I, H), exact, strict=True)
        ]
    for ours, torchs in zip(errors["native"], errors["reference"], strict=True):
        assert ours <= max(4 * torchs, 1e-6)


def test_a_chaotic_cell(native: Native) -> None:
    """Differences double at every step, so a few steps show whether any is larger than torch's own."""
    cell = elman.cells.Elman(5, 34)
    x, g = torch.randn(5, 3, 5, dtype=torch.float64), torch.Generator().manual_seed(4)
    with torch.no_grad():
        cell.W.copy_(torch.randn(34, 34, generator=g) * 0.5)  # of norm 6
        out = {}
        for engine, dtype in (
            ("reference", torch.float64),
            ("reference", torch.float32),
            ("native", torch.float32),
        ):
            out[engine, dtype] = elman.Recurrent(cell.to(dtype), engine=engine)(x.to(dtype))[0].double()
    exact = out["reference", torch.float64]
    torchs, ours = (float((out[e, torch.float32] - exact).abs().max()) for e in ("reference", "native"))
    assert ours <= max(4 * torchs, 1e-6)


def _outputs(case, dtype: torch.dtype, engine: str, T: int, B: int, I: int, H: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(5)
    cell = case.make(I, H)
    with torch.no_grad():
        for p in cell.parameters():
            p *= 0.5
    layer = elman.Recurrent(cell.to(dtype), engine=engine)
    x, state, context = (
        f(*a, g, dtype, I, H) for f, a in ((case.x, (T, B)), (case.state, (B,)), (case.context, (B,)))
    )
    out, final = layer(x, state, context=context, steps=case.steps(T))
    leaves = [t for t in torch.utils._pytree.tree_leaves((out, final)) if t.dtype.is_floating_point]
    gradients = torch.autograd.grad(sum(t.sin().sum() for t in leaves), list(cell.parameters()))
    return [t.detach() for t in (*leaves, *gradients)]


# --- bits -----------------------------------------------------------------------------------------------------------

BITS = ("elman", "gru", "lstm", "layer_norm_lstm", "slots_rnn", "fast_weights_rnn", "attention_rnn")


def _with_threads(n: int, at: Given, reverse: bool = False, engine: Native = NATIVE) -> dict[str, Tensor]:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(n)
        return at.run(engine, reverse)
    finally:
        torch.set_num_threads(before)


@pytest.mark.grid
@pytest.mark.parametrize("threads", [2, 3, 4])  # more threads than rows: columns are shared out
@pytest.mark.parametrize(
    "sizes",
    with_more([[33] * 12, [1] * 90, [40, 40, 31, 31, 31, 9, 9, 2, 1]], [[3] * 50, [2] * 70]),
    ids=lambda sizes: f"{len(sizes)} steps of {sizes[0]} rows",
)
@pytest.mark.parametrize(
    "name",
    with_more(("gru", "layer_norm_lstm"), [name for name in BITS if name not in ("gru", "layer_norm_lstm")]),
)
@pytest.mark.parametrize("n_hidden", [17, 130])
def test_bits_do_not_depend_on_threads(name: str, n_hidden: int, sizes: list[int], threads: int) -> None:
    for loop in loops_at(name, 5, n_hidden, torch.float32).values():
        at = given(loop, sizes, scale=0.5 / n_hidden**0.5)
        assert_same_bits(_with_threads(threads, at), _with_threads(1, at))


@pytest.mark.grid
@pytest.mark.parametrize(
    "name", with_more(("gru", "layer_norm_lstm", "attention_rnn"), (BITS[0], BITS[2], *BITS[4:6]))
)
@pytest.mark.parametrize("reverse", [False, True])
def test_bits_of_a_row_do_not_depend_on_the_batch(name: str, reverse: bool, native: Native) -> None:
    for loop in loops_at(name, 5, 17, torch.float32).values():
        sizes = [14, 14, 9, 9, 6, 5, 1]
        together = given(loop, sizes, batch=15, scale=0.1)
        whole = together.run(native, reverse)
        offsets = [sum(sizes[:t]) for t in range(len(sizes))]
        for row in (0, 4, 5, 8, 13):
            steps = sum(size > row for size in sizes)
            index = torch.tensor([offsets[t] + row for t in range(steps)])
            alone = Given(loop, {}, [1] * steps)
            for name_, value in together.values.items():
                if name_ in loop.sequences:
                    alone.values[name_] = value[index]
                elif name_ in loop.rowed or any(s.name == name_ for s in loop.states):
                    alone.values[name_] = value[row : row + 1]
                else:
                    alone.values[name_] = value
            made = alone.run(native, reverse)
            for key, value in whole.items():
                expected = value[row : row + 1] if key.endswith(" final") else value[index]
                assert torch.equal(made[key], expected), (key, row)
        for state in loop.states:  # the row without a step
            assert torch.equal(whole[f"{state.name} final"][14], together.values[state.name][14])


@pytest.mark.parametrize("name", with_more(BITS[1:4:2], (*BITS[::2], BITS[5])))
def test_a_stretch_of_time_goes_on_from_a_stored_state(name: str) -> None:
    for what, loop in loops_at(name, 5, 17, torch.float32).items():
        reverse = what == "backward"
        whole = given(loop, [4] * 9, scale=0.2)
        first, second = (Given(loop, dict(whole.values), [4] * n) for n in (5, 4))
        halves = ((first, 0, 20), (second, 20, 36)) if not reverse else ((second, 20, 36), (first, 0, 20))
        pieces = {}
        for at, begin, stop in halves:
            at.values |= {name_: whole.values[name_][begin:stop] for name_ in loop.sequences}
            pieces[begin] = at.run(NATIVE, reverse)
            for state in loop.states:
                (second if not reverse else first).values[state.name] = pieces[begin][f"{state.name} final"]
        expected = whole.run(NATIVE, reverse)
        for key in expected:
            if key.endswith(" final"):
                assert torch.equal(pieces[0 if reverse else 20][key], expected[key])
            else:
                assert torch.equal(torch.cat([pieces[0][key], pieces[20][key]]), expected[key])


def test_a_training_step_gives_the_same_bits_again() -> None:
    cell = elman.cells.GRU(20, 40)
    layer, x = elman.Recurrent(cell, engine="native"), torch.randn(50, 9, 20)

    def step() -> tuple[Tensor, ...]:
        return torch.autograd.grad(layer(x)[0].sin().sum(), list(cell.parameters()))

    for again, first in zip(step(), step(), strict=True):
        assert torch.equal(again, first)


# --- memory that is laid out in other ways --------------------------------------------------------------------------


def test_strides() -> None:
    """Sequences as slices and expanded, weights turned, states as columns: the same as their copies."""
    loop = loops_at("lstm", 5, 17, torch.float32)["forward"]
    at = given(loop, [6] * 5, scale=0.2)
    expected = at.run(NATIVE)
    for name, value in list(at.values.items()):
        wide = torch.full((*value.shape[:-1], value.shape[-1] + 3), float("nan"))
        wide[..., 1:-2] = value
        turned = value.t().contiguous().t() if value.dim() == 2 else value
        for other in (wide[..., 1:-2], turned):
            assert_same_bits(Given(loop, at.values | {name: other}, at.sizes).run(NATIVE), expected)
    for name in loop.sequences:
        one = at.values[name][:1].expand_as(at.values[name])
        spread = Given(loop, at.values | {name: one}, at.sizes).run(NATIVE)
        assert_same_bits(spread, Given(loop, at.values | {name: one.contiguous()}, at.sizes).run(NATIVE))


def test_rows_that_lie_further_apart_than_32_bits_can_say() -> None:
    """Memory that is asked for and hardly touched: 12 GiB of addresses, some pages of memory."""
    loop = loops_at("elman", 5, 17, torch.float32)["inference"]
    at = given(loop, [1] * 4, scale=0.3)
    (name,) = loop.sequences
    try:
        far = torch.empty(3 * 2**30 + 17).as_strided((4, 17), (2**30, 1))
    except RuntimeError:
        pytest.skip("this machine gives no addresses without memory")
    far.copy_(at.values[name])
    assert_same_bits(Given(loop, at.values | {name: far}, at.sizes).run(NATIVE), at.run(NATIVE))


@pytest.mark.parametrize("name", ["elman", "lstm", "counting_rnn"])
def test_nothing_to_do(name: str) -> None:
    for loop in loops_of(name).values():
        for sizes, batch in (([], 3), ([0, 0], 0), ([], 0)):
            at = given(loop, sizes, batch=batch)
            assert_same_bits(at.run(NATIVE), at.run(REFERENCE))


def test_a_million_steps() -> None:
    loop = loops_at("elman", 1, 1, torch.float32)["inference"]
    at = given(loop, [1] * 1_000_000, scale=0.5)
    made = at.run(NATIVE)
    assert all(value.isfinite().all() for value in made.values())
    short = given(loop, [1] * 10, scale=0.5)
    short.values = {n: v[-10:] if n in loop.sequences else v for n, v in at.values.items()}
    # The map contracts: after ten steps nothing is left of where it started.
    short.values[loop.states[0].name] = made[loop.emits[0]][-11:-10]
    assert torch.equal(short.run(NATIVE)[loop.emits[0]], made[loop.emits[0]][-10:])


def test_nan_stays_in_its_row() -> None:
    loop = loops_at("lstm", 5, 34, torch.float32)["forward"]
    at = given(loop, [9] * 4, scale=0.2)
    clean = at.run(NATIVE)
    name = loop.sequences[0]
    at.values[name][9 + 4] = float("nan")  # row 4 at step 1
    dirty = at.run(NATIVE)
    for key, value in clean.items():
        rows = value.shape[0] // 4 if not key.endswith(" final") else 9
        for i in range(value.shape[0]):
            if i % rows != 4:
                assert torch.equal(dirty[key][i], value[i]), key
    assert dirty[f"{loop.states[0].name} final"][4].isnan().all()


# --- refusals -------------------------------------------------------------------------------------------------------


def test_what_it_does_not_run() -> None:
    loop = loops_of("elman")["inference"]
    assert NATIVE.supports(loop, torch.device("cuda")) == "it runs on CPUs, not on cuda"
    case, g = CASES["clipped_rnn"], torch.Generator().manual_seed(0)
    layer = elman.Recurrent(case.make().double(), engine="native")
    with pytest.raises(
        NotSupported, match=r"engine 'native' cannot run this loop: it has no form for sums over rows"
    ):
        layer(case.x(3, 2, g), case.state(2, g))[0].sum().backward()
    automatic = elman.Recurrent(case.make().double())
    automatic(case.x(3, 2, g), case.state(2, g))[0].sum().backward()
    assert "sums over rows inside the loop" in str(automatic.explain())


def test_half_precision_is_left_to_the_reference() -> None:
    layer = elman.Recurrent(elman.cells.Elman(3, 4).bfloat16())
    layer(torch.randn(2, 2, 3, dtype=torch.bfloat16))
    assert "bfloat16" in str(layer.explain())


class Shaking(torch.nn.Module):
    """What it draws is the same for all rows."""

    hidden_size = 4

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(x + h * torch.rand(4, dtype=h.dtype))


def test_what_has_no_rows_is_read_step_by_step(native: Native) -> None:
    plan = elman.plan(elman.trace(Shaking().double(), *torch.zeros(2, 2, 4, dtype=torch.float64)))
    assert plan.loop is not None
    assert plan.loop.stepped != frozenset()
    for reverse in (False, True):
        at = given(plan.loop, [7, 7, 3, 1])
        assert_same(at.run(native, reverse), at.run(REFERENCE, reverse))


class Choosing(torch.nn.Module):
    """Reads its state at a place that the input says."""

    hidden_size = 4

    def __init__(self) -> None:
        super().__init__()
        self.W = torch.nn.Linear(4, 4)

    def forward(self, at: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(self.W(h) + h.gather(1, at))


def test_an_index_out_of_range() -> None:
    layer = elman.Recurrent(Choosing(), engine="native")
    assert layer(torch.tensor([[[3]], [[0]]]), torch.ones(1, 4))[0].isfinite().all()
    with pytest.raises(InputError, match="an index inside the recurrence is out of range"):
        layer(torch.tensor([[[3]], [[4]]]), torch.ones(1, 4))


# --- threads and processes ------------------------------------------------------------------------------------------


def test_python_threads_share_a_program() -> None:
    loop = loops_at("gru", 5, 68, torch.float32)["forward"]
    at = given(loop, [8] * 60, scale=0.1)
    expected, found = at.run(NATIVE), []
    threads = [threading.Thread(target=lambda: found.append(at.run(NATIVE))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for one in found:
        assert_same_bits(one, expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child() -> None:
    """After parallel work in the parent the engine still runs in a child, with one thread."""
    loop = loops_at("gru", 5, 68, torch.float32)["forward"]
    at = given(loop, [8] * 60, scale=0.1)
    expected = _with_threads(2, at)
    out = {name: torch.zeros_like(expected[name]) for name in loop.emits}
    torch.set_num_threads(2)
    try:
        child = os.fork()
        if child == 0:  # torch itself may hang here, if it wants its threads: nothing large of its own
            status = 4
            try:
                NATIVE.run(loop, at.values, at.sizes, False, out)
                status = 0 if all((out[k].numpy() == expected[k].numpy()).all() for k in out) else 3
            finally:
                os._exit(status)
    finally:
        torch.set_num_threads(1)
    deadline = time.monotonic() + 60
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.01)
    if ended == (0, 0):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        pytest.fail("the child waits for threads that it does not have")
    assert os.waitstatus_to_exitcode(ended[1]) == 0


def test_the_choice_of_engines() -> None:
    loop = loops_of("elman")["inference"]
    assert choose("auto", loop, CPU).name == "native"
    assert choose("reference", loop, CPU).name == "reference"
    assert isa() in ("plain", "avx2", "avx512")
