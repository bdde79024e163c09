"""Products of float32 made otherwise, for tests that want them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from elman.engines.native.extension import compiled


def reduces() -> bool:
    """Whether the native engine makes them otherwise when it is told that it may: the machine has AMX."""
    return compiled is not None and compiled.has_tiles()


needs_tiles = pytest.mark.skipif(not reduces(), reason="products by tiles need a processor with AMX")


@contextmanager
def precision(wanted: str = "medium") -> Iterator[None]:
    """As users say it."""
    torch.set_float32_matmul_precision(wanted)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")
