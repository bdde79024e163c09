"""Sentences with tags: some that are made up, the settings of a tagger that learns these in a second, and where
real ones lie.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "ud_ewt"
real = pytest.mark.skipif(
    not REAL.is_dir(), reason="English Web Treebank, beside the project, is not part of it"
)

CONLLU = """\
# text = Don't go
1-2\tDon't\t_\t_\t_\t_\t_\t_\t_\t_
1\tDo\tdo\tAUX\tVBP\t_\t3\taux\t_\t_
2\tn't\tnot\tPART\tRB\t_\t3\tadvmod\t_\t_
2.1\tever\t_\t_\t_\t_\t_\t_\t_\t_
3\tgo\tgo\tVERB\tVB\t_\t0\troot\t_\t_

1\tGo\tgo\tVERB\tVB\t_\t0\troot\t_\t_
"""
SMALL: dict[str, Any] = {
    "cell": "elman",
    "hidden": 12,
    "layers": 1,
    "embedding": 8,
    "spelling": 6,
    "dropout": 0.0,
    "word_dropout": 0.0,
    "lr": 0.02,
}


def toy(count: int = 60) -> tuple[list[list[str]], list[list[str]]]:
    """What ends in -s is a verb, but behind "the" a noun: neither a word nor its ending alone is enough."""
    stems = ["run", "walk", "jump", "talk", "look"]
    words, tags = [], []
    for k in range(count):
        one = stems[k % 5] + "s"
        words.append(["the", one, stems[(k + 2) % 5] + "s"] if k % 3 else ["it", one, "the", one])
        tags.append(["DET", "NOUN", "VERB"] if k % 3 else ["PRON", "VERB", "DET", "NOUN"])
    return words, tags
