"""What an option of a target is: a field of its frozen dataclass, and `--name` of the command."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def option(default: Any, help: str, **how: Any) -> Any:
    """A field that is an option. how: min, max, metavar, as typer has them."""
    return field(default=default, metadata={"help": help, **how})
