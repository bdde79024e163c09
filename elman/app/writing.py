"""Text that a model writes, as a terminal may show it."""

from __future__ import annotations

import re
import sys


def shown(text: str) -> str:
    """Text that a model wrote as a terminal may show it; as it is where it goes to a file or another program.

    Control characters move the cursor or do worse, and those that set a direction of writing turn round what comes
    after: they become �.
    """
    return _ODD.sub("�", text) if sys.stdout.isatty() else text


_ODD = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
