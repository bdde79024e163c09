"""The weights of a model in a file: `model.safetensors`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from torch import Tensor

from elman.data.files import reading
from elman.errors import DataError, InputError

_HEADER = 2**24  # bytes
_WHAT, _MEND = "the weights", "restore the file, or train again"


@contextmanager
def inside(path: Path, what: str = _WHAT, mend: str = _MEND) -> Iterator[Any]:
    """A safetensors file, opened to read parts of it, if it is a file at all. Raises DataError or SafetensorError."""
    from safetensors import safe_open

    with reading(path, what, mend) as file:
        _expect_header(file, path, what)
        own = f"/proc/self/fd/{file.fileno()}"  # the same file, for a library that takes names in UTF-8 alone
        with safe_open(own if os.path.exists(own) else path, "pt") as opened:
            yield opened


def shapes_in(path: Path) -> dict[str, list[int]]:
    """The shapes of the weights in a file, of which nothing else is read. Raises DataError."""
    from safetensors import SafetensorError

    try:
        with inside(path) as file:
            return {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 it is no dict
    except (SafetensorError, TypeError) as error:
        raise _unreadable(path, error) from error


def weights_in(path: Path) -> dict[str, Tensor]:
    """The weights in a file. Raises DataError, and InputError where they are larger than this machine's memory."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    with reading(path, _WHAT, _MEND) as file:
        _expect_header(file, path, _WHAT)
        expect_room(os.fstat(file.fileno()).st_size, path)
        raw = file.read()
    try:
        return load(raw)
    except (
        SafetensorError,
        KeyError,
        ValueError,
        TypeError,
    ) as error:  # KeyError: of a kind that PyTorch lacks
        raise _unreadable(path, error) from error


def _expect_header(file: IO[bytes], path: Path, what: str) -> None:
    """Raise DataError for a header that says more than any model of ours has tensors."""
    size = int.from_bytes(file.read(8), "little")
    file.seek(0)
    if size > _HEADER:
        raise DataError(what=f"{what} cannot be read: the header is too large", where=path, mend=_MEND)


def expect_room(size: int, where: object) -> None:
    """Raise InputError for what takes more bytes than this machine has memory."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not every system tells
        return
    if size > memory:
        raise InputError(
            what="the model is larger than the memory of this machine", where=where, got=f"{size / 2**30:,.1f} GB",
            expected=f"at most {memory / 2**30:,.1f} GB", mend="take a smaller one, or another machine",
        )  # fmt: skip


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(what=f"the weights cannot be read: {error}", where=path, mend=_MEND)
