"""States after texts that were read or written: what begins with one of them goes on from there.

A state is known by a digest of the symbols before it (BLAKE2b of 16 bytes, keyed anew in each process), so what is kept
of a text is as large as its state, however long the text is.
"""

from __future__ import annotations

import secrets
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
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
        self._keep(next(self._digests(symbols, [len(symbols)])), state)

    def keep_all(self, symbols: np.ndarray, states: Iterable[tuple[int, State]]) -> None:
        """states: (how many of the symbols it has seen, state), ascending."""
        pairs = list(states)
        for key, (_, state) in zip(self._digests(symbols, [n for n, _ in pairs]), pairs, strict=True):
            self._keep(key, state)

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
        digest, done = blake2b(key=self._key, digest_size=16), 0
        raw = np.ascontiguousarray(symbols, dtype=np.int64)
        for length in lengths:
            digest.update(raw[done:length].data)
            done = length
            yield length, digest.digest()


def _size(state: State) -> int:
    return _OVERHEAD + sum(tensor.nbytes for tensor in state)
