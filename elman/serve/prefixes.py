"""States after texts that were read or written: what begins with one of them goes on from there.

A state is known by a digest of the symbols before it (BLAKE2b of 16 bytes, keyed anew in each process), so what is kept
of a text is as large as its state, however long the text is.
"""

from __future__ import annotations

import secrets
from collections import Counter, OrderedDict
from collections.abc import Iterator
from hashlib import blake2b

import numpy as np
from torch import Tensor

State = list[Tensor]  # [1, …] each, in the order of the model's state
_OVERHEAD = 400  # bytes of an entry besides its numbers


class Prefixes:
    """The least recently used go first, as soon as all together would take more than so many bytes."""

    def __init__(self, most: int) -> None:
        self.most, self.bytes = most, 0
        self._states: OrderedDict[tuple[int, bytes], State] = OrderedDict()
        self._lengths: Counter[int] = Counter()
        self._key = secrets.token_bytes(16)

    def __len__(self) -> int:
        return len(self._states)

    def keep(self, symbols: np.ndarray, state: State) -> None:
        """symbols: int64 [P], all that the state has seen."""
        self._keep((len(symbols), self.seen(symbols).digest()), state)

    def seen(self, symbols: np.ndarray) -> blake2b:
        """To go on from, with `keep_on`."""
        digest = blake2b(key=self._key, digest_size=16)
        digest.update(_raw(symbols))
        return digest

    def keep_on(self, seen: blake2b, length: int, more: np.ndarray, state: State) -> None:
        """The state after `length` symbols, of which `more` come behind those `seen`, which takes them in."""
        seen.update(_raw(more))
        self._keep((length, seen.digest()), state)

    def _keep(self, key: tuple[int, bytes], state: State) -> None:
        if key in self._states:
            return self._states.move_to_end(key)
        size = _size(state)
        if size > self.most:
            return None
        self._states[key] = state
        self._lengths[key[0]] += 1
        self.bytes += size
        while self.bytes > self.most:
            (length, _), gone = self._states.popitem(last=False)
            self._lengths[length] -= 1
            if not self._lengths[length]:
                del self._lengths[length]
            self.bytes -= _size(gone)
        return None

    def longest(self, symbols: np.ndarray, most: int) -> tuple[int, State | None]:
        """(how many symbols, the state after them) of the longest beginning that is known, of at most so many symbols;
        (0, None) where none is."""
        lengths = sorted(length for length in self._lengths if length <= most)
        for key in reversed(list(self._digests(symbols, lengths))):
            if key in self._states:
                self._states.move_to_end(key)
                return key[0], self._states[key]
        return 0, None

    def _digests(self, symbols: np.ndarray, lengths: list[int]) -> Iterator[tuple[int, bytes]]:
        digest, done = self.seen(symbols[:0]), 0
        for length in lengths:
            digest.update(_raw(symbols[done:length]))
            done = length
            yield length, digest.digest()


def _raw(symbols: np.ndarray) -> memoryview:
    return np.ascontiguousarray(symbols, dtype=np.int64).data


def _size(state: State) -> int:
    return _OVERHEAD + sum(tensor.nbytes for tensor in state)
