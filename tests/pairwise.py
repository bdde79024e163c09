"""Fewer tests with nearly the same power: of a grid of parameters, enough that every two values meet.

    @pytest.mark.grid      # every pair of values of two parameters that the grid holds is in one of the tests that run
    @pytest.mark.grid(1)   # every value is

tests/conftest.py leaves the rest to `make conformance`, which runs everything. What is wrong shows nearly always for
one value of one parameter, or for two values that meet; a fault that needs three is what conformance is for.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Sequence
from typing import Any

import hypothesis
import pytest

exhaustive = False  # set by tests/conftest.py before any test is collected: `make conformance`


def examples(few: int, many: int) -> hypothesis.settings:
    """How many random examples a property is tried on: so many, and so many for `make conformance`."""
    return hypothesis.settings(max_examples=many if exhaustive else few)


def with_more(few: Iterable[Hashable], more: Iterable[Hashable], together: bool = False) -> list[Any]:
    """Values of a parameter (`together`: of several): a few that stand for all, and what `make conformance` adds."""
    marked = pytest.mark.conformance
    few = [*few]
    if few and not exhaustive:  # tests that would only be left out again are quicker not made
        return few
    return [*few, *(pytest.param(*(value if together else [value]), marks=marked) for value in more)]


def cover(rows: Sequence[Sequence[Hashable]], strength: int = 2) -> list[int]:
    """Which rows to take, in order, so that whatever `strength` columns hold together in some row is in one of them.

    The same rows give the same answer. Greedy: always a row that adds most; of several a random one, or the last
    parameter to be covered would hardly change.
    """
    adds = [
        {
            (places, tuple(row[i] for i in places))
            for places in itertools.combinations(range(len(row)), strength)
        }
        if len(row) >= strength
        else {tuple(row)}
        for row in rows
    ]
    seen: set[Hashable] = set()
    taken: list[int] = []
    generator = random.Random(0)
    queue = [(-len(new), generator.random(), i) for i, new in enumerate(adds)]
    heapq.heapify(queue)
    while queue:
        promised, place, i = heapq.heappop(queue)
        new = adds[i] - seen
        if len(new) < -promised:  # others have added meanwhile what it would have added
            if new:
                heapq.heappush(queue, (-len(new), place, i))
            continue
        seen |= new
        taken.append(i)
    return sorted(taken)


def left_out(items: Sequence[pytest.Item]) -> set[pytest.Item]:
    """Those of the tests marked as a grid that the others make up for, and those marked for conformance alone."""
    grids: defaultdict[tuple[str, int], list[pytest.Function]] = defaultdict(list)
    out = {item for item in items if item.get_closest_marker("conformance")}
    for item in items:
        marker = item.get_closest_marker("grid")
        if marker and isinstance(item, pytest.Function) and item not in out:
            grids[item.nodeid.partition("[")[0], *(marker.args or (2,))].append(item)
    for (_, strength), tests in grids.items():
        rows = [_values(test) for test in tests]
        taken = {tests[i] for i in cover(rows, strength)}
        out |= {test for test in tests if test not in taken}
    return out


def seldom(items: Sequence[pytest.Item], table: Collection[str], few: Collection[str]) -> set[pytest.Item]:
    """Of tests that run nearly all of a table, named by one parameter, those of a few names."""
    tests: defaultdict[str, list[tuple[str, pytest.Item]]] = defaultdict(list)
    for item in items:
        if isinstance(item, pytest.Function) and hasattr(item, "callspec"):
            said = {str(value) for value in item.callspec.params.values()} & set(table)
            if not item.get_closest_marker("conformance"):
                tests[item.nodeid.partition("[")[0]] += [(name, item) for name in said]
    whole = [named for named in tests.values() if len({name for name, _ in named}) > 0.8 * len(table)]
    return {item for named in whole for name, item in named if name in few}


def _values(test: pytest.Function) -> list[Hashable]:
    """The test's parameters, in the order of their names; every object counts as another."""
    plain = (str, int, float, bool, type(None))
    return [
        (name, value if isinstance(value, plain) else id(value))
        for name, value in sorted(test.callspec.params.items())
    ]
