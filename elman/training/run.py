"""The run folder that keeps a model."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor, nn

from elman.data import Tokenizer
from elman.errors import DataError, InputError
from elman.training.files import write_atomically
from elman.training.fit import Step

FORMAT = 1  # of the run folder


class Run:
    """A run folder: `config.json`, `model.safetensors`, `tokenizer.json`, `log.jsonl`. No pickle.

    Made by `Run.create` or `Run.open`. Every file but the log is written beside and renamed; the log grows
    line by line, and a line cut short by a crash is its last.
    """

    FILES = ("config.json", "model.safetensors", "tokenizer.json", "log.jsonl")

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def create(
        cls, folder: str | Path, config: dict, tokenizer: Tokenizer, *, overwrite: bool = False
    ) -> Run:
        """A new run. Raises InputError if the folder is not empty, unless `overwrite` is set.

        config: the model's settings, and under "training" and "data" what it was trained with and on; JSON
        values.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            occupied = any(folder.iterdir())
            if occupied and overwrite:
                for name in cls.FILES:
                    (folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise DataError(
                what=f"the run folder cannot be made: {error.strerror or error}",
                where=folder,
                mend="choose another --out",
            ) from error
        if occupied and not overwrite:
            raise InputError(
                what="the run folder is not empty",
                where=folder,
                mend="choose another --out, or replace the run in it with --overwrite",
            )
        run = cls(folder)
        run._write("config.json", (json.dumps({"format": FORMAT, **config}, indent=2) + "\n").encode())
        run._write("tokenizer.json", tokenizer.to_json().encode())
        run._write("log.jsonl", b"")
        return run

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """A run that was saved. Raises DataError if this is none."""
        folder = Path(folder)
        missing = [name for name in cls.FILES[:3] if not (folder / name).is_file()]
        if missing:
            raise DataError(
                what="this is no run folder" if len(missing) > 1 else f"the run has no {missing[0]}",
                where=folder,
                got="no such folder" if not folder.is_dir() else f"no {', '.join(missing)}",
                mend="give what `elman train lm --out` named, after training ended or was stopped by Ctrl-C",
            )
        return cls(folder)

    @property
    def config(self) -> dict:
        where = self.folder / "config.json"
        try:
            config = json.loads(where.read_bytes())
            made = config["format"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                what=f"this is no configuration of a run: {error}",
                where=where,
                mend="restore it, or train again",
            ) from error
        if made != FORMAT:
            raise DataError(
                what="the run was written by another version of elman",
                where=where,
                got=f"format {made}",
                expected=f"format {FORMAT}",
                mend="use that version, or train again",
            )
        return config

    @property
    def tokenizer(self) -> Tokenizer:
        where = self.folder / "tokenizer.json"
        return Tokenizer.from_json(where.read_text("utf-8"), where)

    @property
    def weights(self) -> dict[str, Tensor]:
        from safetensors import SafetensorError
        from safetensors.torch import load

        where = self.folder / "model.safetensors"
        try:
            return load(where.read_bytes())
        except SafetensorError as error:
            raise DataError(
                what=f"the weights cannot be read: {error}",
                where=where,
                mend="restore the file, or train again",
            ) from error

    def log(self, step: Step) -> None:
        """Add a line to the log."""
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({name: _short(value) for name, value in vars(step).items()}) + "\n")

    def save(self, model: nn.Module) -> None:
        """Write the model's weights."""
        from safetensors.torch import save

        weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
        self._write("model.safetensors", save(weights, metadata={"format": "pt"}))

    def _write(self, name: str, content: bytes) -> None:
        try:
            write_atomically(self.folder / name, content)
        except OSError as error:
            raise DataError(
                what=f"the run cannot be saved: {error.strerror or error}",
                where=self.folder / name,
                mend="make room on the disk or choose another --out",
            ) from error


def _short(value: float) -> float:
    return float(f"{value:.6g}") if isinstance(value, float) else value
