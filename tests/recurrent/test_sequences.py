"""Lengths, masks, resets: every call is what its definition says, piece by piece."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import elman
from elman import cells, noise
from elman.circuit.form import Kind
from elman.errors import NotSupported
from elman.segments import Layout
from tests import zoo
from tests.cases import CASES, Case
from tests.pairwise import with_more
from tests.recurrent import compare, ragged
from tests.recurrent.compare import Inputs
from tests.recurrent.small import layer, random

Tensor = torch.Tensor
EXACT = {"rtol": 1e-10, "atol": 1e-10}
CPU = torch.device("cpu")
ways = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
engines = pytest.mark.parametrize("engine", ["reference", "native"])


# --- the definition -------------------------------------------------------------------------------------------------

WHOLE = [["lengths"], ["reset"], ["lengths", "mask", "reset"]]


@pytest.mark.grid
@engines
@ways
@pytest.mark.parametrize(
    "name", with_more(["jordan", "gru", "lstm", "learned_start_rnn"], ["elman", "leaky"])
)
def test_every_choice_equals_the_definition(name: str, reverse: bool, engine: str) -> None:
    rnn = layer(name, reverse=reverse, engine=engine)
    for T, B in ((1, 1), (1, 4), (9, 4)):
        told = ragged.said(T, B, seed=T)
        for names in itertools.chain(WHOLE, [["mask"], ["mask", "reset"]] if name == "gru" else []):
            given = {key: told[key] for key in names}
            got = ragged.agree(rnn, Inputs.of(CASES[name], T, B), **given)
            outside = ~ragged.happens(T, B, **given)
            assert not got.values["outputs"][outside].any()
            assert not got.gradients["x"][outside].any()


@pytest.mark.grid(1)
@pytest.mark.parametrize("engine", ["reference", "auto"])
@pytest.mark.parametrize(
    "name",
    with_more(
        ["context_rnn", "attention_rnn", "loss_rnn", "token_rnn", "dict_input_rnn", "slots_rnn", "heads_rnn",
         "delayed_rnn", "counting_rnn", "latch_rnn", "swing", "dict_output_rnn", "silent_rnn", "spiking_rnn",
         "linear_rnn", "columns_rnn", "merged_heads_rnn", "nodes_rnn"],
        ["layer_norm_lstm", "dale_rnn", "two_level_gru", "gates_first_gru", "stacked_inputs_rnn"],
    ),
)  # fmt: skip
def test_many_cells_equal_the_definition(name: str, engine: str) -> None:
    """With NaN, and indices that are none, where nothing happens. Each engine runs one way, to save time."""
    case: Case = CASES[name]
    rnn = layer(name, reverse=engine == "auto", engine=engine)
    inputs, told = Inputs.of(case, 7, 4), ragged.said(7, 4)
    if not case.starts:
        del told["reset"]  # nobody knows what a new sequence would start from
    inputs.x = ragged.poisoned(inputs.x, ragged.happens(7, 4, **told))
    got = ragged.agree(rnn, inputs, **told)
    for found in (*got.values.values(), *got.gradients.values()):
        assert found is None or not found.isnan().any()


@pytest.mark.parametrize(
    "name", with_more(["zoneout_lstm", "noisy_rnn"], ["zoneout_lstm_eval", "dropout_rnn"])
)
def test_noise_is_drawn_for_the_steps_that_happen(name: str) -> None:
    """The cell fed with the very numbers gives the same; so the backward pass has drawn the same numbers again."""
    case, T, B = CASES[name], 6, 4
    told = ragged.said(T, B)
    if not case.starts:
        del told["reset"]
    rnn, inputs = layer(name), Inputs.of(case, T, B)
    wanted = compare.wanted_of(rnn, inputs)
    values = compare.flat(*ragged.ours(rnn, inputs, **told))
    torch.manual_seed(5)
    seed = int(torch.randint(2**62, ()).item())
    layout = Layout.of(T, B, CPU, **told)
    assert layout.packing is not None
    ports = rnn.circuit.inputs_of(Kind.NOISE)
    drawn = [noise.draw_rows(port, i, seed, 0, layout.packing.rows) for i, port in enumerate(ports)]
    placed = [layout.unpack(numbers) for numbers in drawn]
    others = compare.flat(
        *ragged.theirs(
            rnn, inputs, replay=lambda t, b: noise.Replay([v[t, b : b + 1] for v in placed]), **told
        )
    )
    compare.assert_equal(values, others)
    compare.assert_equal(compare.gradients(values, wanted), compare.gradients(others, wanted))


def test_rows_of_noise_do_not_depend_on_where_they_are_cut() -> None:
    rnn = layer("noisy_rnn")
    ragged.ours(rnn, Inputs.of(CASES["noisy_rnn"], 2, 2))
    (port,) = rnn.circuit.inputs_of(Kind.NOISE)
    whole = noise.draw_rows(port, 0, 3, 0, 1500)
    assert torch.equal(noise.draw_rows(port, 0, 3, 500, 1100), whole[500:1100])
    assert whole.unique().numel() > 0.99 * whole.numel()


@pytest.mark.grid(1)
@ways
@pytest.mark.parametrize("name", ["lstm", "learned_start_rnn"])
def test_second_derivatives(name: str, reverse: bool) -> None:
    rnn, inputs, told = layer(name, reverse=reverse), Inputs.of(CASES[name], 5, 3), ragged.said(5, 3, 2)
    found = []
    for run in (ragged.ours, ragged.theirs):
        wanted = compare.wanted_of(rnn, inputs)
        first = compare.gradients(compare.flat(*run(rnn, inputs, **told)), wanted, create_graph=True)
        found.append((first, compare.gradients(first, wanted)))
    for mine, right in zip(*found, strict=True):
        compare.assert_equal(mine, right)


@pytest.mark.conformance
def test_transforms_of_torch_func() -> None:
    rnn, x, told = layer("gru"), random(5, 3, 5), ragged.said(5, 3)
    parameters = {name: p.detach() for name, p in rnn.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(rnn, parameters, (x,), told)[0].square().sum()

    got = torch.func.grad(loss, argnums=(0, 1))(parameters, x)
    x.requires_grad_()
    rnn(x, **told)[0].square().sum().backward()
    torch.testing.assert_close(got, ({n: p.grad for n, p in rnn.named_parameters()}, x.grad), **EXACT)
    start = random(3, 7)
    slope = torch.func.grad(lambda h: rnn(x.detach(), h, **told)[0].square().sum())
    second = torch.func.jacrev(slope)(start)
    right = torch.autograd.functional.jacobian(slope, start)
    torch.testing.assert_close(second, right, **EXACT)
    with pytest.raises(NotSupported, match="transform"):
        torch.func.vmap(lambda n: rnn(x, lengths=n)[0])(torch.tensor([[1, 2, 3], [5, 5, 0]]))


@pytest.mark.grid(1)
@pytest.mark.parametrize("transform", ["grad", "jvp", "vmap"])
@pytest.mark.parametrize("said", ["a list", "lengths", "mask", "reset"])
def test_what_numpy_and_lists_say_inside_of_a_transform(said: str, transform: str) -> None:
    """A tensor that is made while torch.func is about would be one of the transform's."""
    rnn, x = (
        elman.Recurrent(cells.GRU(3, 4).double(), batch_first=False),
        torch.randn(5, 2, 3, dtype=torch.float64),
    )
    lengths, happens = np.array([5, 2]), np.arange(10).reshape(5, 2) % 3 > 0
    given = {"a list": {"lengths": [5, 2]}, "lengths": {"lengths": lengths}}.get(said, {said: happens})
    tensors = {name: torch.as_tensor(value) for name, value in given.items()}

    def through(told: dict[str, Any]) -> Any:
        def run(x: torch.Tensor) -> torch.Tensor:
            return rnn(x, **told)[0].sum()

        if transform == "jvp":
            return torch.func.jvp(run, (x,), (x.cos(),))
        return torch.func.grad(run)(x) if transform == "grad" else torch.func.vmap(run)(x[None])

    torch.testing.assert_close(through(given), through(tensors), rtol=0, atol=0)


def test_memory_is_never_read_before_it_is_written(poisoned: None) -> None:
    for name in ("gru", "lstm", "delayed_rnn"):
        told = ragged.said(6, 4)
        if not CASES[name].starts:
            del told["reset"]
        for reverse in (False, True):
            ragged.agree(layer(name, reverse=reverse), Inputs.of(CASES[name], 6, 4), **told)


def test_outputs_are_tensors_of_their_own() -> None:
    """Whoever writes into one of them changes neither the other nor what went in."""
    rnn, x, h = layer(), random(5, 4, 5), random(4, 7)
    for told in (
        ragged.said(5, 4),
        {"lengths": torch.tensor([3] * 4)},
        {"lengths": torch.zeros(4, dtype=int)},
    ):
        expected = rnn(x, h, **told)
        for written in (0, 1):
            given = x.clone(), h.clone()
            with torch.no_grad():
                made = rnn(*given, **told)
                made[written].fill_(7.0)
            assert torch.equal(given[0], x)
            assert torch.equal(given[1], h)
            torch.testing.assert_close(made[1 - written], expected[1 - written].detach(), **EXACT)


# --- where a sequence starts ----------------------------------------------------------------------------------------


def test_nothing_happens() -> None:
    for reverse in (False, True):
        rnn, inputs = layer("lstm", reverse=reverse), Inputs.of(CASES["lstm"], 3, 2)
        for told in (
            {"mask": torch.zeros(3, 2, dtype=torch.bool)},
            {"lengths": torch.zeros(2, dtype=torch.int32), "reset": torch.ones(3, 2, dtype=torch.bool)},
        ):
            got = ragged.agree(rnn, inputs, **told)
            assert not got.values["outputs"].any()
            assert torch.equal(got.values["final[0]"], inputs.state[0])
            rnn(inputs.x, **told)[0].sum().backward()  # it is a call as any other: a loss may be made of it


def test_nothing_happens_at_the_very_first_call() -> None:
    rnn = elman.Recurrent(cells.GRU(3, 11))
    outputs, final = rnn(torch.full((4, 2, 3), torch.nan), lengths=torch.zeros(2, dtype=torch.int64))
    assert torch.equal(outputs, torch.zeros(4, 2, 11))
    assert torch.equal(final, torch.zeros(2, 11))
    tokens = elman.Recurrent(zoo.TokenRNN(6, 9))
    assert not tokens(torch.full((4, 2), 99), lengths=torch.zeros(2, dtype=torch.int64))[0].any()


def test_a_learned_start_collects_from_every_cut() -> None:
    rnn, x = layer("learned_start_rnn"), random(6, 1, 5)
    reset = torch.zeros(6, 1, dtype=torch.bool)
    reset[[2, 4]] = True
    rnn(x, reset=reset)[0].sum().backward()
    got, rnn.cell.start.grad = rnn.cell.start.grad, None
    for piece in x.split(2):
        rnn(piece)[0].sum().backward()
    torch.testing.assert_close(got, rnn.cell.start.grad, **EXACT)


def test_a_state_carried_over_does_not_leak_into_a_new_episode() -> None:
    for reverse in (False, True):
        rnn, x, reset = layer(reverse=reverse), random(5, 2, 5), torch.zeros(5, 2, dtype=torch.bool)
        reset[0] = True
        h = random(2, 7, requires_grad=True)
        outputs, final = rnn(x, h, reset=reset)
        torch.testing.assert_close(outputs, rnn(x, h if reverse else None)[0], **EXACT)
        (gradient,) = torch.autograd.grad(final.sum(), h)
        assert gradient.any() == reverse  # backward, the first step is the last to run


def test_a_reset_needs_a_start() -> None:
    rnn, inputs = layer("two_level_gru"), Inputs.of(CASES["two_level_gru"], 3, 2)
    reset = torch.ones(3, 2, dtype=torch.bool)
    with pytest.raises(elman.ElmanError, match="initial_state"):
        rnn(inputs.x, inputs.state, reset=reset)


# --- as little as possible is done ------------------------------------------------------------------------------------


def test_rows_of_one_length_run_as_a_dense_batch() -> None:
    reset = torch.zeros(12, 3, dtype=torch.bool)
    reset[::4] = True
    layout = Layout.of(12, 3, CPU, reset=reset)
    assert (layout.inner, layout.packing, layout.cuts) == ((4, 9), None, True)
    layout = Layout.of(12, 3, CPU, lengths=torch.tensor([5, 5, 5]))
    x = random(12, 3, 2)
    assert layout.inner == (5, 3)
    assert layout.pack(x).data_ptr() == x.data_ptr()
    whole = Layout.of(12, 3, CPU, lengths=[12] * 3, mask=torch.ones(12, 3, dtype=torch.bool))
    assert not whole.is_cut
    assert whole.pack(x) is x
    assert whole.unpack(x) is x


def test_resets_make_a_loop_shorter() -> None:
    reset = torch.zeros(64, 2, dtype=torch.bool)
    reset[[9, 30, 50]] = True
    layout = Layout.of(64, 2, CPU, reset=reset)
    assert layout.packing is not None
    assert (layout.steps, layout.pieces, layout.packing.rows) == (21, 8, 128)


@pytest.mark.parametrize("seed", range(5))
def test_packed_rows_lie_step_after_step(seed: int) -> None:
    """What is packed comes back in place, and each row of a step goes on in the same row of the next."""
    T, B = 11, 5
    told = ragged.said(T, B, seed)
    layout = Layout.of(T, B, CPU, **told)
    packing, place = layout.packing, torch.arange(T * B).reshape(T, B)
    assert packing is not None
    rows = layout.pack(place)
    happens = ragged.happens(T, B, **told)
    assert torch.equal(rows.sort().values, place[happens])
    assert torch.equal(layout.unpack(rows), torch.where(happens, place, 0))
    assert packing.sizes == sorted(packing.sizes, reverse=True)
    steps = rows.split(packing.sizes)
    for now, later in itertools.pairwise(steps):
        assert torch.equal(now[: len(later)] % B, later % B)
        assert (now[: len(later)] < later).all()
    assert torch.equal(rows[packing.ends] % B, steps[0] % B)
    assert int(packing.lengths.sum()) == packing.rows


# --- what all rows share ----------------------------------------------------------------------------------------------


class Penalised(zoo.Base):
    """Gives out numbers for each step rather than for each row; made(W): which."""

    made: Callable[[Tensor], Tensor]

    def forward(self, x: Tensor, h: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        h = torch.tanh(self.U(x) + self.W(h))
        return (h, self.made(self.W.weight)), h


@pytest.mark.grid
@pytest.mark.parametrize("engine", ["auto", "reference"])
@pytest.mark.parametrize("rows", [1, 3, 6])  # as many as there are units, too
@pytest.mark.parametrize(
    "made",
    [lambda W: W.sum(), lambda W: W.square().sum(0), lambda W: W[0, 0] * 3, lambda W: W.sum(0, keepdim=True)],
)
def test_an_output_that_all_rows_share_is_that_of_each(made: Any, rows: int, engine: str) -> None:
    cell = Penalised(5, 6).double()
    cell.made = made
    rnn, x, lengths = elman.Recurrent(cell, engine=engine), random(4, rows, 5), [*range(2, 2 + rows)]
    lengths = [min(length, 4) for length in lengths]
    happens = (torch.arange(4)[:, None] < torch.tensor(lengths)).double()
    for given, weight in (({}, torch.ones(4, rows).double()), ({"lengths": lengths}, happens)):
        (_, penalty), final = rnn(x, **given)
        right = made(cell.W.weight)
        size = (4, rows, *[1] * right.dim())
        torch.testing.assert_close(penalty, right * weight.reshape(size))
        factors = torch.randn_like(penalty)
        mine = torch.autograd.grad((penalty * factors).sum() + final.sum(), [*cell.parameters()])
        h, ended = torch.zeros(rows, 6).double(), None
        for t in range(4):
            h = torch.where(happens[t][:, None] > 0, cell(x[t], h)[1], h) if given else cell(x[t], h)[1]
        ended = h
        loss = (right * weight.reshape(size) * factors).sum() + ended.sum()
        torch.testing.assert_close(mine, torch.autograd.grad(loss, [*cell.parameters()]))
    (outputs, penalty), _ = rnn(x)  # twice
    h, expected = torch.zeros(rows, 6).double(), []
    for t in range(4):
        _, h = cell(x[t], h)
        expected.append(h)
    right = made(cell.W.weight)
    found = []
    for each, shared in (
        (outputs, penalty),
        (torch.stack(expected), right.expand(4, rows, *right.shape)),
    ):
        once = torch.autograd.grad(each.sin().sum() + shared.sin().sum(), cell.W.weight, create_graph=True)[0]
        found.append(torch.autograd.grad(once.sin().sum(), [*cell.parameters()]))
    torch.testing.assert_close(*found)
    with torch.no_grad():
        (_, alone), _ = rnn.step(x[0], h)
    (_, penalty), _ = rnn.step(x[0], h)  # the cell itself
    torch.testing.assert_close(penalty, alone)
    factors = torch.randn_like(penalty)
    right = made(cell.W.weight)
    mine = torch.autograd.grad((penalty * factors).sum(), cell.W.weight)
    torch.testing.assert_close(mine, torch.autograd.grad((right * factors).sum(), cell.W.weight))
