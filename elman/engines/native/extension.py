"""The part that is compiled from native/, with the names and sizes that it was compiled with (native/program.hpp)."""

from __future__ import annotations

from typing import Any

try:
    from elman import _native as compiled
except ImportError:  # no compiler was there when elman was installed: nothing is lowered, nothing is run
    compiled: Any = None


def why_not_built() -> str | None:
    """None if the compiled part is there, else why not."""
    if compiled is not None:
        return None
    return "its compiled part is missing: install elman where a C++ compiler is at hand"


def isa() -> str | None:
    """The best instruction set of this machine: "avx512", "avx2" or "plain"; None without the compiled part."""
    return None if compiled is None else compiled.instruction_sets()[0]
