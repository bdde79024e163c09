"""What the library keeps between calls, bounded and listed in one place."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Sized
from contextlib import suppress
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

_F = TypeVar("_F", bound=Callable[..., Any])


class CacheSize(NamedTuple):
    """entries: how many there are now. limit: how many there may be; None where they live as long as what they belong
    to (a layer, a loop, a compiled graph)."""

    entries: int
    limit: int | None


_LISTED: dict[str, tuple[Callable[[], int], int | None]] = {}


def caches() -> dict[str, CacheSize]:
    """Every cache of the library: what it keeps -> how many entries there are, and may be."""
    return {what: CacheSize(count(), limit) for what, (count, limit) in _LISTED.copy().items()}


def listed(what: str, cache: Sized | Callable[[], int], limit: int | None = None) -> None:
    """Have a cache, or a function that counts its entries, listed."""
    _LISTED[what] = (cache if callable(cache) else cache.__len__), limit


def cached(what: str, limit: int) -> Callable[[_F], _F]:
    """`functools.lru_cache`, listed."""

    def decorate(function: _F) -> _F:
        kept = lru_cache(maxsize=limit)(function)
        listed(what, lambda: kept.cache_info().currsize, limit)
        return kept  # type: ignore[return-value]

    return decorate


def listed_in(what: str, count: Callable[[Any], int], each: int | None = None) -> Callable[[Any], None]:
    """Have caches that live in objects listed, added up: call what is returned on every such object.

    count: of one. each: how many entries one may have, which is said in the list.
    """
    owners: set[weakref.ref[Any]] = set()  # no WeakSet: other threads may not add to it while one reads it

    def counted() -> int:
        there = [ref() for ref in owners.copy()]
        return sum(count(owner) for owner in there if owner is not None)

    listed(what if each is None else f"{what}, {each} each", counted)
    return lambda owner: owners.add(weakref.ref(owner, owners.discard))


class Recent(OrderedDict[Any, Any]):
    """The entries that were used last, at most `limit`; one too many for a moment where threads write at once."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def keep(self, key: Any, value: Any) -> None:
        self[key] = value
        with suppress(KeyError):  # another thread has put so many in since that it is gone
            self.move_to_end(key)
        while len(self) > self.limit:
            self.popitem(last=False)

    @property
    def latest(self) -> tuple[Any, Any]:
        """(key, value) of what was used last; (None, None) where there is nothing."""
        return next(reversed(self.items()), (None, None))
