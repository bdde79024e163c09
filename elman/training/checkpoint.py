"""Checkpoints that a crash cannot spoil: one file each, written beside and renamed, that knows whether it is whole.

A checkpoint is a safetensors file. Its metadata holds the rest of the state as JSON, and a digest of both: a file that
was cut short or changed by so much as a bit is not read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elman.data.files import refusing
from elman.data.schema import parsed, record
from elman.errors import DataError
from elman.training.files import write_atomically
from elman.training.weights import inside

_BYTES = torch.uint8
_MEND = "remove it: the one before it is taken then"
_KEPT = 2  # should the last be spoiled after all, the one before it is there


def save_checkpoint(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write a checkpoint. Raises DataError where that cannot be done; what stood there before is then untouched."""
    from safetensors.torch import save

    encoded = json.dumps(facts)
    metadata = {"format": "pt", "facts": encoded, "digest": _digest(tensors, encoded)}
    with refusing("the checkpoint cannot be written", path, "make room on the disk, or choose another --out"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, save(tensors, metadata=metadata))


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, facts). Raises DataError for what is no checkpoint, or not what was written."""
    from safetensors import SafetensorError

    try:
        with inside(path, "the checkpoint", _MEND) as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 it is no dict
        facts = parsed(metadata["facts"], record({}))
        whole = _digest(tensors, metadata["facts"]) == metadata["digest"]
        problem = "its content is not what was written" if not whole else None
    except DataError:
        raise
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise _broken(path, error) from error
    if problem is not None:
        raise _broken(path, problem)
    return tensors, facts


def _broken(path: Path, problem: object) -> DataError:
    return DataError(what=f"the checkpoint cannot be used: {problem}", where=path, mend=_MEND)


def _digest(tensors: dict[str, Tensor], facts: str) -> str:
    digest = hashlib.blake2b(facts.encode(), digest_size=16)
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.reshape(-1).view(_BYTES).numpy().data if value.numel() else b"")
    return digest.hexdigest()


class Checkpoints:
    """The checkpoints of a run, in a folder of their own, by step; the last one saved and one before it are kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def paths(self) -> list[Path]:
        """The newest first."""
        paths = self.folder.glob("step-*.safetensors")
        return sorted((path for path in paths if not path.is_dir()), reverse=True)

    def save(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> Path:
        """Write one, then remove those that are not needed any more. facts: with "step"."""
        path = self.folder / f"step-{facts['step']:010}.safetensors"
        save_checkpoint(path, tensors, facts)
        # A run that went on from here has passed over those that stand above: they go first.
        for old in sorted(self.paths(), key=lambda one: one > path)[_KEPT:]:
            old.unlink(missing_ok=True)
        for left in self.folder.glob(".step-*"):  # of a process that was killed while it wrote
            left.unlink(missing_ok=True)
        return path

    def newest(
        self,
        notify: Callable[[DataError], None] | None = None,
        take: Callable[[dict[str, Tensor], dict[str, Any]], None] | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest one that is whole, None if there is none. notify: is given the error of each that is not.

        take: is given the content of each that is whole, and raises DataError where it cannot go on from there.
        """
        for path in self.paths():
            try:
                tensors, facts = load_checkpoint(path)
                if take is not None:
                    take(tensors, facts)
                return tensors, facts
            except DataError as error:
                error.where = path
                if notify is not None:
                    notify(error)
        return None
