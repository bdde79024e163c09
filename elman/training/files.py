"""Files that a crash cannot spoil."""

from __future__ import annotations

from pathlib import Path

from elman.data.files import writing


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that at any moment, power failures included, the old or the new one is there."""
    with writing(path) as file:
        file.write(content)
