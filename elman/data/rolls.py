"""Sequences of vectors of 0 and 1, such as piano rolls: parts to learn from, to choose by, to measure on.

FILE.mat       traindata, validdata, testdata: cells of arrays [T, I] (Boulanger-Lewandowski and others, 2012)
FILE.jsonl     [[0, 1, 0], [1, 1, 0]], a list for each frame, on each line
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elman.data.files import reading
from elman.data.sequences import read_sequences
from elman.errors import DataError, InputError, NotSupported

MAT, LINES = ".mat", (".jsonl", ".ndjson")
_PARTS = ("traindata", "validdata", "testdata")
_CHANNELS = 10_000


@dataclass(frozen=True)
class Rolls:
    """float32 [T, I] of 0 and 1, all with the same I: to learn from, to choose weights by, to measure on."""

    learnt: list[Tensor]
    chosen: list[Tensor]
    test: list[Tensor]

    @property
    def channels(self) -> int:
        return self.learnt[0].shape[1]

    @property
    def digest(self) -> str:
        digest = hashlib.sha256()
        for part in (self.learnt, self.chosen, self.test):
            for one in part:
                digest.update(b"%d %d " % tuple(one.shape) + np.packbits(one.numpy().astype(bool)).tobytes())
            digest.update(b"|")
        return digest.hexdigest()


def are_rolls(files: Sequence[Path]) -> bool:
    """Whether files are of sequences rather than tables, by their names."""
    return bool(files) and all(file.suffix.lower() in (MAT, *LINES) for file in files)


def read_rolls(files: Sequence[Path], seed: int) -> Rolls:
    """The parts that .mat files have; of JSON lines 80, 10 and 10 % of the sequences, drawn by the seed.

    Raises DataError with file and place.
    """
    parts: tuple[list[Tensor], ...] = ([], [], [])
    for file in files:
        if file.suffix.lower() == MAT:
            for part, rolls in zip(parts, _mat(file), strict=True):
                part += rolls
        else:
            every = read_frames([file])
            order = torch.randperm(len(every), generator=torch.Generator().manual_seed(seed % 2**63)).tolist()
            tenth = len(every) // 10
            for part, rows in zip(
                parts, (order[2 * tenth :], order[:tenth], order[tenth : 2 * tenth]), strict=True
            ):
                part += [every[i] for i in sorted(rows)]
    if not all(parts):
        raise DataError(
            what="there are too few sequences to hold some out", where=", ".join(map(str, files)),
            got=f"{sum(map(len, parts))}", expected="at least 10", mend="give more, or shorter ones",
        )  # fmt: skip
    _expect_alike([one for part in parts for one in part], str(files[0]))
    return Rolls(*parts)


def read_frames(files: Sequence[Path]) -> list[Tensor]:
    """All sequences of files, of .mat those of the part to measure on."""
    frames: list[Tensor] = []
    for file in files:
        if file.suffix.lower() == MAT:
            frames += _mat(file)[2]
        else:
            frames += [roll_of(value, place) for place, value in read_sequences([file])]
    if not frames:
        raise DataError(
            what="there are no sequences", where=", ".join(map(str, files)), mend="give one on each line"
        )
    _expect_alike(frames, str(files[0]))
    return frames


def roll_of(value: Any, where: str, error: type[DataError] | type[InputError] = DataError) -> Tensor:
    """float32 [T, I] of anything that is one, two frames at least."""
    try:
        array = np.asarray(value, dtype=np.float32)
        right = array.ndim == 2 and len(array) > 1 and 0 < array.shape[1] <= _CHANNELS
        right = right and bool(((array == 0) | (array == 1)).all())
        got = (
            f"an array {list(array.shape)}"
            if array.ndim != 2 or not array.size
            else "other numbers, or one frame"
        )
    except (TypeError, ValueError, OverflowError):  # a whole number may have any size
        array, right, got = np.zeros(0), False, str(value)[:60]
    if not right:
        raise error(
            what="this is no sequence of vectors of 0 and 1", where=where, got=got,
            expected="[T, I] of 0 and 1, T of 2 or more", mend="series of numbers are read from tables",
        )  # fmt: skip
    return torch.from_numpy(array.copy())


def _mat(path: Path) -> list[list[Tensor]]:
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise NotSupported(
            what=".mat is read by scipy, which is not installed",
            where=path,
            mend="pip install 'elman[forecast]'",
        ) from error
    with reading(path, "the rolls", "give a .mat file of MATLAB 4 … 7.2") as file:
        try:
            variables = loadmat(file)
        except Exception as error:  # whatever scipy says of what is no such file
            raise DataError(
                what=f"the rolls cannot be read: {str(error)[:200]}",
                where=path,
                mend="give a .mat file of MATLAB 4 … 7.2",
            ) from error
    if missing := [name for name in _PARTS if name not in variables]:
        raise DataError(
            what=f"the file has no {missing[0]}", where=path, got=", ".join(n for n in variables if n[0] != "_")[:200],
            expected=", ".join(_PARTS), mend="give sequences as JSON lines",
        )  # fmt: skip
    return [
        [roll_of(one, f"{path}, {name}[{k}]") for k, one in enumerate(variables[name].reshape(-1))] for name in _PARTS
    ]  # fmt: skip


def _expect_alike(sequences: Sequence[Tensor], where: str) -> None:
    widths = sorted({one.shape[1] for one in sequences})
    if len(widths) > 1:
        raise DataError(
            what="sequences have different numbers of channels", where=where, got=", ".join(map(str, widths)),
            expected="one", mend="give the same channels in all",
        )  # fmt: skip
