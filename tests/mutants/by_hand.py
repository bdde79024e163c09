"""Faults by hand: slips that somebody could make, and as few tests as will do to notice each."""

from __future__ import annotations

from collections.abc import Iterator

from tests.mutants import Mutant, replaced, slips_of_circuits, slips_of_models, slips_of_runs

SLIPS = (*slips_of_circuits.SLIPS, *slips_of_runs.SLIPS, *slips_of_models.SLIPS)


def mutants() -> Iterator[Mutant]:
    for slip in SLIPS:
        change = replaced(slip.old, slip.new)
        yield Mutant(
            f"{slip.file}: {slip.breaks}", "by hand", f"elman/{slip.file}", change, slip.breaks, (slip.tests,)
        )
