"""Fixtures of bound calls."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from elman.recurrent.calls import Calls
from elman.recurrent.single import SingleSteps
from tests.recurrent.bound import WATCHING


@pytest.fixture
def matched(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For every try to use a bound call from here on, whether it matched."""
    tries: list[bool] = []
    going: list[bool] = []  # for the call that is going on, whether it was bound anew

    def calling(kind: type, name: str) -> None:
        call = getattr(kind, name)

        def counted(self: Any, *args: Any) -> Any:
            if going:
                return call(self, *args)
            going.append(False)
            try:
                return call(self, *args)
            finally:
                tries.append(not going.pop())

        monkeypatch.setattr(kind, name, counted)

    def binding(kind: type, name: str) -> None:
        bind = getattr(kind, name)

        def noted(self: Any, *args: Any) -> Any:
            going[-1] = True
            return bind(self, *args)

        monkeypatch.setattr(kind, name, noted)

    again = Calls.again

    def repeating(self: Calls, *args: Any) -> Any:
        results = again(self, *args)
        tries.extend([True] * (results is not None))
        return results

    monkeypatch.setattr(Calls, "again", repeating)
    for kind, name in ((Calls, "whole"), (Calls, "run"), (SingleSteps, "step")):
        calling(kind, name)
    for kind, name in ((Calls, "_bind"), (SingleSteps, "_bind_step")):
        binding(kind, name)
    return tries


@pytest.fixture(params=WATCHING)
def watching(request: pytest.FixtureRequest) -> Iterator[None]:
    with WATCHING[request.param]():
        yield
