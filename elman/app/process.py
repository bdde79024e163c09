"""What a command does to the process that it has for itself."""

from __future__ import annotations

import ctypes
import gc
import os

_TRIM, _MAP = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
_KEPT = 2**30


def settle(trains: bool) -> None:
    """Once, before anything else. trains: whether what follows trains."""
    gc.set_threshold(10_000, 10, 10)  # importing PyTorch makes millions of objects that stay
    if trains:
        keep_freed_memory()


def keep_freed_memory() -> bool:
    """Have the C library keep up to a gigabyte of memory that was freed, where it is glibc and the user has not said
    otherwise. Whether it does.

    It gives more than 32 or 64 MB back at the end of each step, and at the next one each page of it is a fault: of two
    GRU layers of 384, 3,000 a step, a twentieth of its time.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version()
        return all(libc.mallopt(what, _KEPT) == 1 for what in (_MAP, _TRIM))
    except (AttributeError, OSError):
        return False
