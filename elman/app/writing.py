"""What a command writes: text of a model as a terminal may show it, lines to a file or another program, tables."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from elman.data.files import refusing, writing

FORMS = ("jsonl", "csv")


def shown(text: str) -> str:
    """Text that a model wrote as a terminal may show it; as it is where it goes to a file or another program.

    Control characters move the cursor or do worse, and those that set a direction of writing turn round what comes
    after: they become �.
    """
    return _ODD.sub("�", text) if sys.stdout.isatty() else text


_ODD = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def put(lines: Iterable[str], out: Path | None) -> None:
    """Write lines: each to standard output as soon as it is known; or a file, which is whole or as it was."""
    if out is None:
        for line in lines:
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()
        return
    with refusing("the file cannot be written", out, "choose another --out"), writing(out) as file:
        file.writelines(f"{line}\n".encode() for line in lines)


def rows(records: Iterable[Any], columns: Iterable[str], form: str) -> Iterator[str]:
    """Named tuples as JSON lines, or as the lines of a CSV table with its header; what is nan as null, or as nothing.

    Numbers are rounded to a millionth.
    """
    if form == "csv":
        yield _row(columns)
    for record in records:
        cells = {
            name: value if not isinstance(value, float) else None if math.isnan(value) else round(value, 6)
            for name, value in record._asdict().items()
        }
        yield json.dumps(cells, ensure_ascii=False) if form == "jsonl" else _row(cells.values())


def _row(cells: Iterable[Any]) -> str:
    line = io.StringIO()
    csv.writer(line).writerow(cells)  # it quotes what its own line ends hold
    return line.getvalue().removesuffix("\r\n")
