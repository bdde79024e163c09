"""The faults of `make mutants` find their places: one that does not is run by nobody, and nobody is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutants import Mutant, by_hand, keys, native, operations
from tests.mutants.native import with_faults

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    "made", [by_hand, keys, operations], ids=lambda module: module.__name__.split(".")[-1]
)
def test_a_fault_changes_what_is_there(made: object) -> None:
    found: list[Mutant] = list(made.mutants())  # type: ignore[attr-defined]
    texts = {mutant.file: (ROOT / mutant.file).read_text("utf-8") for mutant in found}
    assert len({mutant.name for mutant in found}) == len(found) > 50
    for mutant in found:
        assert mutant.change(texts[mutant.file]) != texts[mutant.file], mutant.name


def test_every_fault_of_the_native_engine_has_its_switch() -> None:
    sources = {p.name: p.read_text("utf-8") for p in (ROOT / "native").iterdir() if p.is_file()}
    made = "".join(with_faults(sources).values())
    for line in native.LINES:
        assert f'FAULT("{line.name}")' in made
    assert len(list(native.mutants())) > 100
