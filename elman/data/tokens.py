"""A text as symbols, in memory or in a file."""

from __future__ import annotations

import os
import weakref
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from elman.errors import DataError, InputError

_SMALL = 2**24  # bytes of a file that are copied into memory


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

    def __init__(self, array: np.ndarray | _File, vocabulary: int, counts: Counts | None = None) -> None:
        self.array, self.vocabulary, self.counts = array, vocabulary, counts

    @classmethod
    def open(cls, path: Path, vocabulary: int, counts: Counts) -> Tokens:
        """The symbols in a file: a copy of a small one; of a large one each slice is read when it is asked for.

        A large one is not mapped into memory, where a file that somebody cuts would end the process without a word.
        """
        kind = width(vocabulary)
        if path.stat().st_size <= _SMALL or not hasattr(os, "pread"):
            return cls(np.fromfile(path, dtype=kind), vocabulary, counts)
        return cls(_File(path, kind, vocabulary), vocabulary, counts)

    def __len__(self) -> int:
        return len(self.array)

    def frequencies(self) -> np.ndarray:
        """How often each symbol comes: [vocabulary]."""
        counts = np.zeros(self.vocabulary, dtype=np.int64)
        for start in range(0, len(self), _SMALL):
            counts += np.bincount(self.array[start : start + _SMALL], minlength=self.vocabulary)
        return counts

    def __getitem__(self, part: slice) -> Tensor:
        return torch.from_numpy(self.array[part].astype(np.int64))


class _File:
    """Symbols in a file as an array of which there are slices only. Raises DataError if it is cut or written over."""

    def __init__(self, path: Path, kind: np.dtype, vocabulary: int) -> None:
        self.path, self.kind, self.vocabulary = path, kind, vocabulary
        self.handle = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.handle)
        self.size = os.fstat(self.handle).st_size // kind.itemsize

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, part: slice) -> np.ndarray:
        start, stop, step = part.indices(self.size)
        if step != 1:
            raise InputError(
                what="symbols in a file are read in a row", where="tokens", got=f"steps of {step}",
                mend="take tokens[a:b][::n]",
            )  # fmt: skip
        wanted, parts = max(stop - start, 0) * self.kind.itemsize, []
        while wanted > 0:  # a system reads at most 2 GB at once
            raw = os.pread(self.handle, wanted, stop * self.kind.itemsize - wanted)
            if not raw:
                raise self._spoiled("it is shorter than it was")
            parts.append(raw)
            wanted -= len(raw)
        symbols = np.frombuffer(b"".join(parts), dtype=self.kind)
        if len(symbols) and int(symbols.max()) >= self.vocabulary:
            raise self._spoiled("it holds what is no symbol")
        return symbols

    def _spoiled(self, got: str) -> DataError:
        return DataError(
            what="the file of symbols changed while it was in use", where=self.path, got=got,
            mend="repeat the command: the file is made again, and --resume auto goes on with a run",
        )  # fmt: skip


def width(vocabulary: int) -> np.dtype:
    """The smallest unsigned integers that number a vocabulary."""
    return np.dtype(np.uint8 if vocabulary <= 2**8 else np.uint16 if vocabulary <= 2**16 else np.uint32)
