"""A text as symbols, in memory or in a file."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_KEPT = 2**26  # bytes that are read from a file before their pages are given back


@dataclass(frozen=True)
class Counts:
    """What stands in a text behind its first symbol, which nothing predicts.

    characters, bytes: of UTF-8. words: stretches without white space, of the whole text. unknown: symbols `<unk>`.
    """

    characters: int
    bytes: int
    words: int
    unknown: int


class Tokens:
    """The symbols of a text: `len(tokens)`, and slices, which are int64 tensors of their own.

        tokens[5:70]                                # int64 [65]

    array: unsigned integers [N]. vocabulary: V. counts: of the text; None if nobody knows it.
    """

    def __init__(self, array: np.ndarray, vocabulary: int, counts: Counts | None = None) -> None:
        self.array, self.vocabulary, self.counts = array, vocabulary, counts
        self._file: mmap.mmap | None = None
        self._read = 0

    @classmethod
    def open(cls, path: Path, vocabulary: int, counts: Counts) -> Tokens:
        """The symbols in a file, which is mapped into memory: the system reads of it what is asked for."""
        if not path.stat().st_size:  # no system maps nothing
            return cls(np.empty(0, dtype=width(vocabulary)), vocabulary, counts)
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        tokens = cls(np.frombuffer(mapped, dtype=width(vocabulary)), vocabulary, counts)
        tokens._file = mapped
        return tokens

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, part: slice) -> Tensor:
        found = torch.from_numpy(self.array[part].astype(np.int64))
        if self._file is not None:
            # Pages stay with the process until the system runs short of memory, so a pass over a text would seem to
            # need all of it. Giving them back costs nothing: they remain in the system's cache of files.
            self._read += max(len(found) * self.array.itemsize, mmap.PAGESIZE)
            if self._read > _KEPT and hasattr(mmap, "MADV_DONTNEED"):
                self._file.madvise(mmap.MADV_DONTNEED)
                self._read = 0
        return found


def width(vocabulary: int) -> np.dtype:
    """The smallest unsigned integers that number a vocabulary."""
    return np.dtype(np.uint8 if vocabulary <= 2**8 else np.uint16 if vocabulary <= 2**16 else np.uint32)
