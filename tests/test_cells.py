"""The shipped cells against torch's and against their written equations; every cell of the tables in eager PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from elman import cells
from elman.errors import ElmanError, InputError
from elman.trace.initial import initial_state
from tests import eager
from tests.cases import CASES, DTYPES, REFUSED, Case, Refused
from tests.tensors import differentiable, tensors

Tensor = torch.Tensor
T, B, I, H = 6, 3, 5, 17
EXACT = {"rtol": 0, "atol": 1e-12}

every_case = pytest.mark.parametrize("case", CASES.values(), ids=str)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def run(case: Case, cell: nn.Module, T: int, B: int, dtype: torch.dtype = torch.float64) -> tuple[list, list]:
    """(inputs that want gradients, results that have them) of a case on random numbers, its own start if it has one."""
    g = generator()
    x, state, context = case.x(T, B, g, dtype), case.state(B, g, dtype), case.context(B, g, dtype)
    leaves = differentiable(x, state, context)
    if isinstance(getattr(cell, "start", None), Tensor):
        leaves, state = differentiable(x, context), cell.initial_state(B)
    outputs, final = eager.unroll(cell, x, state, context=context, steps=case.steps(T))
    return leaves, [leaf for leaf in tensors(outputs, final) if leaf.requires_grad]


# --- shipped cells ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(cells.Elman, nn.RNNCell), (cells.GRU, nn.GRUCell), (cells.LSTM, nn.LSTMCell)],
)
def test_a_cell_with_torchs_weights_is_torchs_cell(ours: type, theirs: type, bias: bool) -> None:
    cell, other = ours(I, H, bias=bias).double(), theirs(I, H, bias=bias).double()
    with torch.no_grad():
        cell.U.copy_(other.weight_ih)
        cell.W.copy_(other.weight_hh)
        if bias and hasattr(cell, "c"):
            cell.b.copy_(other.bias_ih)
            cell.c.copy_(other.bias_hh)
        elif bias:
            cell.b.copy_(other.bias_ih + other.bias_hh)
    g = generator()
    x = torch.randn(T, B, I, dtype=torch.float64, generator=g, requires_grad=True)
    h = torch.randn(B, H, dtype=torch.float64, generator=g, requires_grad=True)
    c = torch.randn(B, H, dtype=torch.float64, generator=g, requires_grad=True)
    state, leaves = ((h, c), [x, h, c]) if ours is cells.LSTM else (h, [x, h])
    made, gradients = [], []
    for each in (cell, other):
        outputs, final = eager.unroll(each, x, state)
        made.append(tensors(outputs, final))
        weights = [each.U, each.W] if each is cell else [each.weight_ih, each.weight_hh]
        weights += ([each.b] if each is cell else [each.bias_ih]) if bias else []
        loss = sum((out * out.detach().cos()).sum() for out in made[-1])
        gradients.append(torch.autograd.grad(loss, [*leaves, *weights]))
    torch.testing.assert_close(made[0], made[1], **EXACT)
    torch.testing.assert_close(gradients[0], gradients[1], **EXACT)


def test_jordan_is_its_equation() -> None:
    cell = cells.Jordan(I, H, 4).double()
    x, o = torch.randn(B, I).double(), torch.randn(B, 4).double()
    for row in range(B):
        h = [
            torch.tanh(cell.b[i] + sum(cell.W[i, k] * o[row, k] for k in range(4)) + cell.U[i].dot(x[row]))
            for i in range(H)
        ]
        expected = [cell.c[k] + sum(cell.V[k, i] * h[i] for i in range(H)) for k in range(4)]
        torch.testing.assert_close(cell(x, o)[row], torch.stack(expected), **EXACT)


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_leaky_is_its_equation(alpha: float) -> None:
    cell = cells.Leaky(I, H, alpha).double()
    x, h = torch.randn(B, I).double(), torch.randn(B, H).double()
    for row in range(B):
        a = [cell.b[i] + cell.W[i].dot(h[row]) + cell.U[i].dot(x[row]) for i in range(H)]
        expected = [(1 - alpha) * h[row, i] + alpha * torch.tanh(a[i]) for i in range(H)]
        torch.testing.assert_close(cell(x, h)[row], torch.stack(expected), **EXACT)


@pytest.mark.parametrize("name", ["elman", "jordan", "gru", "lstm", "leaky"])
def test_weights_start_uniform_in_their_range(name: str) -> None:
    cell = CASES[name].make(40, 60)
    bound = 1 / math.sqrt(60)
    for weight in cell.parameters():
        assert weight.abs().max() <= bound
    for weight in (cell.U, cell.W):  # large enough to tell: 2·bound/√12 is the deviation of a uniform number
        assert abs(weight.std().item() / (2 * bound / math.sqrt(12)) - 1) < 0.05
        assert weight.max() > 0.95 * bound
        assert weight.min() < -0.95 * bound


@pytest.mark.parametrize("name", ["elman", "jordan", "gru", "lstm", "leaky"])
def test_no_bias_means_weights_only(name: str) -> None:
    makers = {
        "jordan": lambda: cells.Jordan(I, H, 4, bias=False),
        "leaky": lambda: cells.Leaky(I, H, bias=False),
    }
    kinds = {"elman": cells.Elman, "gru": cells.GRU, "lstm": cells.LSTM}
    cell = makers[name]() if name in makers else kinds[name](I, H, bias=False)
    assert {key for key, _ in cell.named_parameters()} == {"U", "W", "V"} - (
        set() if name == "jordan" else {"V"}
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("make", "widths"), [(lambda: cells.LSTM(I, H), (H, H)), (lambda: cells.Jordan(I, H, 4), (4,))]
)
def test_a_start_of_zeros_has_the_parameters_dtype(make, widths, dtype: torch.dtype) -> None:  # type: ignore[no-untyped-def]
    cell = make().to(dtype)
    start = tensors(cell.initial_state(B))
    assert [(tuple(s.shape), s.dtype, s.requires_grad) for s in start] == [
        ((B, w), dtype, False) for w in widths
    ]
    assert not any(s.any() for s in start)
    assert [s.device.type for s in tensors(make().to("meta").initial_state(B))] == ["meta"] * len(widths)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: cells.Elman(0, 3), "Elman(input_size=…)"),
        (lambda: cells.GRU(3, -1), "GRU(hidden_size=…)"),
        (lambda: cells.LSTM(3, 2.0), "got: 2.0"),
        (lambda: cells.LSTM(True, 2), "got: True"),
        (lambda: cells.Jordan(3, 2, 0), "Jordan(output_size=…)"),
        (lambda: cells.Leaky(3, 2, 0.0), "0 < alpha <= 1"),
        (lambda: cells.Leaky(3, 2, 1.5), "0 < alpha <= 1"),
        (lambda: cells.Leaky(3, 2, math.nan), "0 < alpha <= 1"),
    ],
)
def test_a_wrong_size_is_an_error_that_says_which(make, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError) as error:
        make()
    assert words in str(error.value)


# --- the table --------------------------------------------------------------------------------------------------------

# Gradients that autograd does not give: nothing flows into them.
WITHOUT_GRADIENT = {"cut_rnn": 1}


@every_case
def test_every_case_runs_and_has_finite_gradients(case: Case) -> None:
    cell = case.make().double()
    leaves, results = run(case, cell, T, B)
    wants = [*leaves, *cell.parameters()]
    gradients = torch.autograd.grad([r.cos().sum() for r in results], wants, allow_unused=True)
    missing = [g for g in gradients if g is None]
    assert len(missing) == WITHOUT_GRADIENT.get(case.name, 0)
    assert all(r.isfinite().all() for r in results)
    assert all(g.isfinite().all() for g in gradients if g is not None)
    assert all(g.any() for g in gradients if g is not None and g.numel()), "a gradient is zero everywhere"


@pytest.mark.conformance
@every_case
def test_values_stay_small_over_many_steps(case: Case) -> None:
    """The map contracts, or parity in float32 would measure chaos: two starts end in one place."""
    if case.noise or case.name in {"spiking_rnn", "straight_through_rnn", "rounded_rnn", "latch_rnn"}:
        pytest.skip("it jumps")
    if case.name == "antisymmetric_rnn":
        pytest.skip("it is made not to forget")
    cell, g = case.make().double(), generator()
    x, context = case.x(200, 2, g), case.context(2, g)
    finals = []
    with torch.no_grad():
        for _ in range(2):
            state = case.state(2, g)
            if case.name == "counting_rnn":
                state = (state[0], torch.zeros_like(state[1]))
            finals.append(tensors(eager.unroll(cell, x, state, context=context, steps=case.steps(200))[1]))
    assert all(f.double().abs().max() < 250 for f in finals[0])
    assert max((a.double() - b.double()).abs().max().item() for a, b in zip(*finals, strict=True)) < 0.1


@every_case
def test_the_rows_of_a_batch_are_sequences_of_their_own(case: Case) -> None:
    if case.noise:
        pytest.skip("it draws other numbers for other batches")
    cell, g = case.make().double(), generator()
    x, state, context = case.x(T, B, g), case.state(B, g), case.context(B, g)
    together = eager.unroll(cell, x, state, context=context, steps=case.steps(T))
    for row in range(B):
        alone = eager.unroll(
            cell, rows(x, row, 1), rows(state, row, 0), context=rows(context, row, 0), steps=case.steps(T)
        )
        expected = tensors(rows(together[0], row, 1), rows(together[1], row, 0))
        torch.testing.assert_close(tensors(alone), expected, **EXACT)


def rows(tree: object, row: int, dim: int) -> object:
    """One row of every tensor of a tree, as a batch of one."""
    return pytree.tree_map(lambda v: v.narrow(dim, row, 1) if isinstance(v, Tensor) else v, tree)


@pytest.mark.conformance  # about the table of cases, not about elman
@every_case
def test_it_is_said_whether_the_gradient_is_the_derivative(case: Case) -> None:
    if case.noise:
        pytest.skip("it draws other numbers at every evaluation")
    cell = case.make(2, 3).double()
    g = generator()
    x, state, context = (
        case.x(3, 2, g, n_in=2, n_hidden=3),
        case.state(2, g, n_in=2, n_hidden=3),
        case.context(2, g),
    )
    wants = [*differentiable(x, state, context), *cell.parameters()]

    def results(*_: Tensor) -> tuple[Tensor, ...]:
        made = eager.unroll(cell, x, state, context=context, steps=case.steps(3))
        return tuple(leaf for leaf in tensors(*made) if leaf.requires_grad)

    with torch.random.fork_rng():
        torch.manual_seed(2)
        assert torch.autograd.gradcheck(results, wants, raise_exception=False, fast_mode=True) == case.honest
        if case.honest:
            assert second_derivatives_hold(results, wants) == case.twice


def second_derivatives_hold(results: Callable[..., tuple[Tensor, ...]], wants: list[Tensor]) -> bool:
    try:
        return torch.autograd.gradgradcheck(results, wants, raise_exception=False, fast_mode=True)
    except RuntimeError as error:
        if "is not implemented" not in str(error):
            raise
        return False  # PyTorch has no second derivative of one of its operations


@pytest.mark.conformance
@every_case
def test_second_derivatives_are_there(case: Case) -> None:
    if not case.twice:
        pytest.skip("it has none")
    cell = case.make().double()
    leaves, results = run(case, cell, 3, 2)
    wants = [*leaves, *cell.parameters()]
    first = torch.autograd.grad([r.cos().sum() for r in results], wants, create_graph=True, allow_unused=True)
    flowing = [g.square().sum() for g in first if g is not None and g.requires_grad]
    assert flowing
    second = torch.autograd.grad(flowing, wants, allow_unused=True)
    assert all(g.isfinite().all() for g in second if g is not None)


@pytest.mark.conformance  # about the table of cases, not about elman
@every_case
def test_it_is_said_whether_the_output_is_in_the_state(case: Case) -> None:
    cell, g = case.make().double(), generator()
    x, state, context = eager.at(case.x(1, B, g), 0), case.state(B, g), case.context(B, g)
    output, new = eager.step(cell, x, state, context)
    found = any(mine is entry for mine in tensors(output) for entry in tensors(new))
    assert found == case.teachable


@every_case
def test_it_is_said_whether_it_starts_without_a_state(case: Case) -> None:
    cell, g = case.make().double(), generator()
    x, context = eager.at(case.x(1, B, g), 0), case.context(B, g)
    if not case.starts:
        with pytest.raises(ElmanError, match=r"initial_state\(batch\)"):
            initial_state(cell, x, context)
        return
    start, given = initial_state(cell, x, context), case.state(B, g)
    assert pytree.tree_structure(start) == pytree.tree_structure(given)
    assert [(s.shape, s.dtype) for s in tensors(start)] == [(s.shape, s.dtype) for s in tensors(given)]


@pytest.mark.conformance  # about the table of cases, not about elman
@every_case
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_state_keeps_its_shapes_and_dtypes(case: Case, dtype: torch.dtype) -> None:
    cell, g = case.make().to(dtype), generator()
    x, state, context = case.x(2, B, g, dtype), case.state(B, g, dtype), case.context(B, g, dtype)
    _, final = eager.unroll(cell, x, state, context=context, steps=case.steps(2))
    assert [(f.shape, f.dtype) for f in tensors(final)] == [(s.shape, s.dtype) for s in tensors(state)]


def test_a_case_gives_the_same_numbers_in_every_dtype() -> None:
    case = CASES["lstm"]
    wide, narrow = (case.x(T, B, generator(), dtype) for dtype in (torch.float64, torch.float32))
    torch.testing.assert_close(wide.float(), narrow)
    torch.testing.assert_close(case.make().state_dict(), case.make().state_dict(), rtol=0, atol=0)


# --- cells that can not be circuits -----------------------------------------------------------------------------------


@pytest.mark.parametrize("refused", REFUSED.values(), ids=str)
def test_a_refused_cell_runs_in_eager_pytorch(refused: Refused) -> None:
    """What is wrong with it is not that it does not run."""
    with torch.no_grad():
        made = refused.make()(refused.x(generator()), refused.state(generator()))
    assert all(leaf.isfinite().all() for leaf in tensors(made))


def test_a_refusal_is_asked_for_its_words() -> None:
    refused = REFUSED["mean_over_the_batch"]
    assert refused.complaints("the Batch is mixed") == []
    assert refused.complaints("no") == ["batch or row"]
