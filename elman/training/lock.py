"""One process to a run folder."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from elman.data.files import open_own
from elman.errors import DataError, StateError


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Inside, no other process can enter for the same folder. Raises StateError if one is in there.

    The lock belongs to the process, not to the file: the system lets go of it however the process ends.
    Raises DataError where `.lock` is a link, or anything else than what is written here.
    """
    path = folder / ".lock"
    try:
        handle = open_own(path, os.O_RDWR)
    except OSError as error:
        raise _unusable(path, error.strerror or str(error)) from error
    try:
        taken = _take(handle)
        held = os.read(handle, 64)
        if not taken:
            holder = held.decode(errors="replace").strip()
            raise StateError(
                what="another process is training in this run folder", where=folder,
                got=f"process {holder}" if holder else None, mend="wait for it, stop it, or choose another --out",
            )  # fmt: skip
        if not re.fullmatch(rb"\d{0,20}\n?", held):  # it may be somebody's file under a second name
            raise _unusable(path, "it holds something else")
        try:
            os.ftruncate(handle, 0)
            os.lseek(handle, 0, os.SEEK_SET)
            os.write(handle, f"{os.getpid()}\n".encode())
        except OSError:  # a full disk: who holds the lock is not told, and it holds all the same
            pass
        yield
    finally:
        os.close(handle)


def _unusable(path: Path, problem: str) -> DataError:
    return DataError(
        what=f"the run folder cannot be locked: {problem}",
        where=path,
        mend="remove it, or choose another --out",
    )


def _take(handle: int) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except OSError:
            return False
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
