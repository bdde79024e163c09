"""The card of a run: written where there is none, and of one that is there only elman's own part."""

from __future__ import annotations

from pathlib import Path

from elman.report import write_card

CONFIG = {"task": "lm", "cell": "gru", "data": {"files": ["# a `book`.txt"]}, "training": {"steps": 20}}


def test_a_card_keeps_what_its_user_wrote(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    write_card(tmp_path, CONFIG, ["1.7 bits per character"])
    text = card.read_text("utf-8")
    assert text.startswith(f"# {tmp_path.name}\n")
    assert "To fill in" in text
    assert '\n        "# a `book`.txt"' in text  # indented: no heading of anybody's
    card.write_text(text.replace("To fill in", "CC0") + "\nMine.\n")
    write_card(tmp_path, CONFIG, ["1.6 bits per character"])
    text = card.read_text("utf-8")
    assert "CC0" in text
    assert text.endswith("Mine.\n")
    assert "1.6 bits" in text
    assert "1.7 bits" not in text
    card.write_text("mine alone")
    write_card(tmp_path, CONFIG, [])
    assert card.read_text("utf-8") == "mine alone"
