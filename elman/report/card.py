"""The card of a run, README.md: what it learnt from, what it reaches, how it was made, and a licence to fill in."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from elman.data.files import read_file
from elman.data.words import plain
from elman.training import write_atomically

NAME = "README.md"
_BEGIN, _END = "<!-- elman: written anew by every training -->", "<!-- elman: up to here -->"
_SIZE = 2**20  # bytes of a card

_CARD = """# {name}

{facts}

## Licence

To fill in: of the weights, and of the data that they were learnt from.
"""


def write_card(folder: Path, config: Mapping[str, Any], said: Iterable[str]) -> None:
    """Write the card of a run that has ended. said: lines on what its model reaches.

    A card that is there is the user's: only what stands between elman's own marks is written anew. Raises DataError
    where what is there is no such file.
    """
    path, facts = folder / NAME, _facts(config, said)
    if path.exists():
        before, begin, rest = (
            read_file(path, _SIZE, "the card of the run").decode("utf-8", "replace").partition(_BEGIN)
        )
        _, end, after = rest.partition(_END)
        if not (begin and end):
            return
        card = before + facts + after
    else:
        card = _CARD.format(name=_clean(folder.resolve().name), facts=facts)
    write_atomically(path, card.encode())


def _facts(config: Mapping[str, Any], said: Iterable[str]) -> str:
    """Measure, data and settings. In a block that is indented nothing is read as Markdown."""
    model = {name: value for name, value in config.items() if name not in ("data", "training")}
    parts = [_BEGIN, "## What it reaches, on what was held out", _block("\n".join(said))]
    for title, value in (
        ("Data", config.get("data")),
        ("Model", model),
        ("Training", config.get("training")),
    ):
        if value:
            parts += [f"## {title}", _block(json.dumps(value, indent=2, ensure_ascii=False))]
    return "\n\n".join([*parts, _END])


def _block(text: str) -> str:
    return "\n".join(f"    {_clean(line)}" for line in text.splitlines())


def _clean(text: str) -> str:
    """Without control characters, and without what could be one of elman's marks."""
    return html.unescape(plain(text)).replace("<!--", "<! --")
