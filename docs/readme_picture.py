"""The README's picture: python docs/readme_picture.py draws its cell, folded and unfolded, into docs/leaky.svg."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import elman  # noqa: E402
from elman.draw.scene import Scene  # noqa: E402
from elman.draw.svg import svg  # noqa: E402

GAP = 70


def drawn() -> str:
    page = re.search(
        r"^```python\n(.*?)^rnn = ", (ROOT / "README.md").read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    assert page is not None, "README.md has no cell"
    space: dict[str, Any] = {"__name__": "readme"}
    exec(page[1], space)
    cell, x = space["Leaky"](3, 4), torch.zeros(1, 3)
    left, right = (elman.draw(cell, x, unfold=unfold).scene for unfold in (None, True))
    a, b = left.box, right.box
    right = right.moved(a.right + GAP - b.left, (a.top + a.bottom - b.top - b.bottom) / 2)
    both = Scene(
        "The cell Leaky, folded and unfolded",
        f"{left.description} {right.description}",
        *((*getattr(left, part), *getattr(right, part)) for part in ("nodes", "edges", "groups", "texts")),
        left.parameters,
    )
    return svg(both.check()) + "\n"


if __name__ == "__main__":
    (ROOT / "docs" / "leaky.svg").write_text(drawn(), "utf-8")
