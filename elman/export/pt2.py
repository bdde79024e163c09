"""A module as torch.export's file: PyTorch runs it, without elman."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from elman.errors import NotSupported
from elman.export.options import option


@dataclass(frozen=True)
class Options:
    """Of `.pt2`."""

    lengths: bool = option(False, "Take lengths [B] as well.")


def write(module: torch.nn.Module, path: Path, options: Options) -> list[Path]:
    """Write it and return the paths."""
    raise NotSupported(what="this target is not written yet", where=path)
