"""Faults that no test notices, and why none could: by their names, or the beginning of them.

Kinds: *equivalent* (the same numbers, plans and words), *slower* (the same numbers, with more work or memory, and no
test of plans says how much), *unreachable* (what it changes does not occur), *guarded* (a later check catches it).
"""

from __future__ import annotations

import re

from tests.mutants import Mutant

EXPLAINED: dict[str, str] = {}


def reason(mutant: Mutant) -> str:
    """Why a fault survives; empty where nobody has said so."""
    return next((why for name, why in EXPLAINED.items() if re.fullmatch(name, mutant.name)), "")
