"""Products of float32 in bfloat16, for tests that want them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from elman.engines.native.extension import compiled


def reduces() -> bool:
    """Whether the native engine's products are other ones there: the machine has AMX."""
    return compiled is not None and compiled.has_tiles()


needs_tiles = pytest.mark.skipif(not reduces(), reason="products in bfloat16 need a processor with AMX")


@contextmanager
def medium() -> Iterator[None]:
    """As users say it."""
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")
