"""What `make test` takes of a grid of parameters: few of it, and whatever may meet does meet."""

from __future__ import annotations

import itertools

import pytest
import torch

from tests.pairwise import cover

GRIDS = [(72, 2), (7, 2, 5, 3), (71, 3, 4, 2, 2), (5, 5, 13, 2, 3), (4,), (1, 1)]


def rows_of(sizes: tuple[int, ...]) -> list[tuple[int, ...]]:
    return list(itertools.product(*map(range, sizes)))


@pytest.mark.parametrize("strength", [1, 2])
@pytest.mark.parametrize("sizes", GRIDS, ids=str)
def test_everything_meets(sizes: tuple[int, ...], strength: int) -> None:
    rows = rows_of(sizes)
    taken = [rows[i] for i in cover(rows, strength)]
    for places in itertools.combinations(range(len(sizes)), min(strength, len(sizes))):
        together = {tuple(row[i] for i in places) for row in taken}
        assert together == set(itertools.product(*(range(sizes[i]) for i in places)))
    most = sorted(sizes)[-strength:]
    assert len(taken) <= 1.4 * (most[0] * most[-1] if len(most) == strength == 2 else most[-1])


def test_the_values_of_a_small_parameter_are_taken_about_as_often() -> None:
    rows = rows_of((72, 2))
    assert 24 <= sum(rows[i][1] for i in cover(rows, 1)) <= 48


def test_holes_in_a_grid_are_not_asked_for() -> None:
    rows = [(a, b, c) for a, b, c in rows_of((3, 3, 3)) if a <= b]
    pairs = {(i, j, row[i], row[j]) for row in rows for i, j in ((0, 1), (0, 2), (1, 2))}
    taken = [rows[k] for k in cover(rows)]
    assert {(i, j, row[i], row[j]) for row in taken for i, j in ((0, 1), (0, 2), (1, 2))} == pairs


def test_it_is_the_same_in_every_process() -> None:
    rows = [
        ("lstm", 1.5, True),
        ("lstm", 2.5, False),
        ("gru", 1.5, False),
        ("gru", 2.5, True),
        ("gru", 1.5, True),
    ]
    assert cover(rows) == cover(list(rows)) == cover([tuple(row) for row in rows])


@pytest.mark.grid
@pytest.mark.parametrize("third", range(4))
@pytest.mark.parametrize("second", ["a", "b", "c"])
@pytest.mark.parametrize("first", [torch.float32, torch.float64])
def test_a_grid(first: torch.dtype, second: str, third: int, request: pytest.FixtureRequest) -> None:
    """Of these 24 some 12 run, or those that are asked for."""
    mine = [item for item in request.session.items if item.nodeid.partition("[")[0].endswith("::test_a_grid")]
    if not request.config.getoption("conformance"):
        assert len(mine) < 16
