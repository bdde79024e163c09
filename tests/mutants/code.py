"""Faults of the rules: of adjoint, plan, rows, segments, and what runs them.

Every one of verdict, rows and linear, the rules for what an operation does to rows; of the other files a sample, chosen
by a digest of the names, so that it stays the same where the code does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from tests.mutants import Mutant
from tests.mutants.kinds import applied, faults, standard, verdicts

ELMAN = Path(__file__).resolve().parents[2] / "elman"
_LAWS = "plan/test_laws.py"
_EDGES = "recurrent/test_edges.py recurrent/test_written.py"
_RAGGED = (
    "recurrent/test_sequences.py recurrent/test_teachers.py recurrent/test_sequences_refused.py",
    "recurrent/test_sequence_laws.py recurrent/test_compiled_pieces.py",
)
_ROWS = (
    "circuit/test_table.py circuit/test_rows.py",
    "plan/test_linear.py plan/test_laws.py",
    "plan/test_structure.py",
)
# file: (how many, or 0 for all, and groups of tests)
FILES: dict[str, tuple[int, tuple[str, ...]]] = {
    "circuit/verdict.py": (0, (*_ROWS, "circuit/test_form.py trace/test_refused.py")),
    "circuit/rows.py": (0, (*_ROWS, "circuit/test_form.py")),
    "circuit/linear.py": (0, _ROWS),
    "adjoint.py": (5, ("test_adjoint.py", f"{_LAWS} {_EDGES}", "recurrent/test_memory.py")),
    "plan/cut.py": (5, ("plan/test_structure.py", _LAWS, f"recurrent/test_cut.py {_EDGES}")),
    "plan/stages.py": (
        2,
        ("plan/test_borders.py", _LAWS, "plan/test_structure.py test_adjoint.py", _EDGES),
    ),
    "plan/builders.py": (4, (_LAWS, "plan/test_structure.py recurrent/test_cut.py", _EDGES)),
    "plan/sink.py": (
        3,
        ("plan/test_borders.py", "plan/test_structure.py engines/test_entrances.py", "plan/test_explain.py"),
    ),
    "plan/rewrite.py": (4, ("plan/test_structure.py", _LAWS, "recurrent/test_attention.py")),
    "plan/regions.py": (3, ("plan/test_structure.py", _LAWS)),
    "plan/memory.py": (3, ("plan/test_memory.py", "recurrent/test_memory.py")),
    "forcing.py": (2, ("test_forcing.py",)),
    "noise.py": (3, ("test_noise.py",)),
    "unfold.py": (3, ("test_unfold.py", _LAWS)),
    "segments/layout.py": (6, _RAGGED),
    "segments/pieces.py": (6, ("recurrent/test_cut.py", *_RAGGED)),
    "segments/timeline.py": (3, (*_RAGGED, _LAWS)),
    "segments/move.py": (
        4,
        ("recurrent/test_cut.py", *_RAGGED, "test_tangent.py test_tangent_transforms.py", "test_vmap.py"),
    ),
    "segments/padded.py": (4, _RAGGED[::-1]),
    "segments/segment.py": (2, ("recurrent/test_memory.py", "recurrent/test_truncated.py")),
    "execute/segmented.py": (4, ("recurrent/test_memory.py", "recurrent/test_memory_layers.py")),
    "recurrent/truncated.py": (4, ("recurrent/test_truncated.py",)),
}  # fmt: skip


def mutants() -> Iterator[Mutant]:
    for file, (count, tests) in FILES.items():
        kinds = verdicts if file.startswith("circuit/") else standard
        found = faults((ELMAN / file).read_text("utf-8"), kinds)
        if count:
            chosen = set(
                sorted(found, key=lambda f: hashlib.sha256(f"{file} {f.name}".encode()).digest())[:count]
            )
            found = [fault for fault in found if fault in chosen]
        kind = "rules for rows" if file.startswith("circuit/") else "adjoint, plan, segments"
        for fault in found:
            yield Mutant(
                f"{file} {fault.name}", kind, f"elman/{file}", applied(fault.name, kinds), fault.breaks, tests
            )
