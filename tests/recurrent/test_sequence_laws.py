"""Laws of sequences, and generated cells on generated lengths, masks and resets. Cells without noise."""

from __future__ import annotations

from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

import elman
from elman.segments.timeline import Packing, RaggedTimeline, Timeline
from tests.cases import CASES
from tests.pairwise import examples
from tests.random_cells import RandomCell
from tests.recurrent import ragged
from tests.recurrent.compare import Inputs
from tests.strategies import random_cells
from tests.tensors import differentiable

Tensor = torch.Tensor
EXACT = {"rtol": 1e-10, "atol": 1e-10}
few = examples(3, 60)
T = 6


@st.composite
def told(draw: st.DrawFn, T: int = T) -> dict[str, Tensor]:
    """Lengths, a mask and resets of one to five rows, of which some or all may be left out."""
    B = draw(st.integers(1, 5))
    row = st.lists(st.booleans(), min_size=B, max_size=B)
    table = st.lists(row, min_size=T, max_size=T).map(lambda rows: torch.tensor(rows))
    found = {
        "lengths": draw(st.none() | st.lists(st.integers(0, T), min_size=B, max_size=B).map(torch.tensor)),
        "mask": draw(st.none() | table),
        "reset": draw(st.none() | table),
    }
    given = {name: value for name, value in found.items() if value is not None}
    return given or {"lengths": torch.full((B,), T)}


def rows_of(said: dict[str, Tensor]) -> int:
    return next(iter(said.values())).shape[-1]


def take(said: dict[str, Tensor], rows: Any) -> dict[str, Tensor]:
    """The same for some of the rows."""
    return {name: value[rows] if name == "lengths" else value[:, rows] for name, value in said.items()}


def run(name: str, x: Tensor, state: Any, reverse: bool = False, **said: Tensor) -> list[Tensor]:
    """(outputs, final states…)."""
    outputs, final = elman.Recurrent(CASES[name].make().double(), reverse=reverse)(x, state, **said)
    return [outputs, *pytree.tree_leaves(final)]


def problem(name: str, B: int) -> tuple[Tensor, Any]:
    generator = torch.Generator().manual_seed(B)
    return CASES[name].x(T, B, generator), CASES[name].state(B, generator)


def rows(state: Any, which: Any) -> Any:
    return pytree.tree_map(lambda leaf: leaf[which], state)


either = pytest.mark.parametrize("name", ["lstm", "learned_start_rnn"])


@either
@few
@hypothesis.given(told(), st.booleans(), st.randoms(use_true_random=False))
def test_rows_know_nothing_of_each_other(
    name: str, said: dict[str, Tensor], reverse: bool, random: Any
) -> None:
    """Batched = unbatched, and a permuted batch gives the permuted result."""
    x, h = problem(name, rows_of(said))
    whole = run(name, x, h, reverse, **said)
    order = list(range(rows_of(said)))
    random.shuffle(order)
    permuted = run(name, x[:, order], rows(h, order), reverse, **take(said, order))
    for mine, right in zip(permuted, whole, strict=True):
        torch.testing.assert_close(mine, right[:, order] if mine.dim() == 3 else right[order], **EXACT)
    for b in range(rows_of(said)):
        alone = run(name, x[:, b : b + 1], rows(h, slice(b, b + 1)), reverse, **take(said, slice(b, b + 1)))
        for mine, right in zip(alone, whole, strict=True):
            torch.testing.assert_close(mine, right.narrow(-2, b, 1), **EXACT)


@either
@few
@hypothesis.given(st.lists(st.integers(0, T), min_size=1, max_size=5), st.booleans())
def test_padded_is_unpadded(name: str, lengths: list[int], reverse: bool) -> None:
    x, h = problem(name, len(lengths))
    whole = run(name, x, h, reverse, lengths=torch.tensor(lengths))
    for b, n in enumerate(lengths):
        alone = run(name, x[:n, b : b + 1], rows(h, slice(b, b + 1)), reverse)
        torch.testing.assert_close(whole[0][:n, b : b + 1], alone[0], **EXACT)
        assert not whole[0][n:, b].any()
        for mine, right in zip(whole[1:], alone[1:], strict=True):
            torch.testing.assert_close(mine[b : b + 1], right, **EXACT)


@either
@few
@hypothesis.given(told(), st.integers(0, T))
def test_a_split_sequence_is_the_whole(name: str, said: dict[str, Tensor], at: int) -> None:
    x, h = problem(name, rows_of(said))
    happening = ragged.happens(T, rows_of(said), **said)
    # A reset at a step that does not happen is forgotten at the end of a call.
    reset = said.get("reset", torch.zeros_like(happening)) & happening
    whole = run(name, x, h, mask=happening, reset=reset)
    layer = elman.Recurrent(CASES[name].make().double())
    first, state = layer(x[:at], h, mask=happening[:at], reset=reset[:at])
    second, state = layer(x[at:], state, mask=happening[at:], reset=reset[at:])
    for mine, right in zip([torch.cat([first, second]), *pytree.tree_leaves(state)], whole, strict=True):
        torch.testing.assert_close(mine, right, **EXACT)


@either
@few
@hypothesis.given(told())
def test_reversed_twice_is_the_same(name: str, said: dict[str, Tensor]) -> None:
    """A reset stands between two steps: in reversed time, at what was the step before it.

    One before the first step that happens decides what a forward run starts from, and has no counterpart.
    """
    x, h = problem(name, rows_of(said))
    happening = ragged.happens(T, rows_of(said), **said)
    back = {"mask": happening.flip(0)}
    if "reset" in said:
        something_before = happening.cumsum(0) - happening.int() > 0
        said = said | {"reset": said["reset"] & something_before}
        back["reset"] = torch.cat([torch.zeros_like(happening[:1]), said["reset"][1:].flip(0)])
    forward = run(name, x, h, **said)
    backward = run(name, x.flip(0), h, True, **back)
    torch.testing.assert_close(backward[0].flip(0), forward[0], **EXACT)
    for mine, right in zip(backward[1:], forward[1:], strict=True):
        torch.testing.assert_close(mine, right, **EXACT)


class Started(RandomCell):
    """A random cell that begins somewhere."""

    def initial_state(self, batch: int) -> Any:
        states = tuple(torch.full((batch, width), 0.25, dtype=torch.float64) for width in self.program.states)
        return states[0] if len(states) == 1 else states


@pytest.mark.filterwarnings("ignore:var_mean")  # PyTorch's, where no row is left to take the variance of
@few
@hypothesis.given(random_cells(noise=False), told(4), st.booleans(), st.sampled_from(["reference", "auto"]))
def test_a_random_cell_is_what_its_definition_says(
    cell: RandomCell, said: dict[str, Tensor], reverse: bool, engine: str
) -> None:
    rnn = elman.Recurrent(Started(cell.program).double(), reverse=reverse, engine=engine)
    B, generator = rows_of(said), torch.Generator().manual_seed(1)
    x, state = cell.sequence(4, B, generator), cell.start(B, generator)
    if x is not None:
        x = ragged.poisoned(x, ragged.happens(4, B, **said))
    differentiable(x, state)
    ragged.agree(rnn, Inputs(4, B, x, state, None, cell.steps(4)), **said)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("lengths", [[3], [4, 1], [5, 5, 2, 2, 1], [2, 2]], ids=str)
def test_the_operations_on_time(lengths: list[int], reverse: bool) -> None:
    """Each row has what a Timeline of that row alone has."""
    sizes = [sum(n > t for n in lengths) for t in range(lengths[0])]
    packing, B = Packing(sizes, torch.device("cpu")), len(lengths)
    line, value, start = (
        RaggedTimeline(packing, reverse),
        torch.randn(sum(lengths), 3, 2),
        torch.randn(B, 3, 2),
    )
    assert packing.even == (len(set(lengths)) == 1)
    for b, n in enumerate(lengths):
        alone = Timeline(n, 1, reverse)
        mine = torch.tensor([sum(sizes[:t]) + b for t in range(n)])
        row, first = value[mine], start[b : b + 1]
        assert torch.equal(line.shift(value, start)[mine], alone.shift(row, first))
        assert torch.equal(line.shift(value, None)[mine], alone.shift(row, None))
        assert torch.equal(line.last(value, start)[b : b + 1], alone.last(row, first))
        torch.testing.assert_close(line.total(value)[b : b + 1], alone.total(row))
        assert torch.equal(line.times(start, True)[b : b + 1], alone.times(first, True))
        assert torch.equal(line.spread(start, 0)[mine], alone.spread(first, 0))
        moved = line.spread(start.transpose(0, 1), 1)[:, mine]
        assert torch.equal(moved, alone.spread(first.transpose(0, 1), 1))
    several = line.spread(torch.arange(2 * B), 0)  # two rows of the value for each sequence
    assert torch.equal(several, line.spread(torch.arange(2 * B).reshape(B, 2), 0).flatten())
    assert torch.equal(line.spread(start[0, 0, 0], -1), start[0, 0, 0].expand(sum(lengths)))
