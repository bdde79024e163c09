"""The run folder that keeps a model."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from elman.data import Tokenizer
from elman.errors import DataError, InputError
from elman.training.checkpoint import Checkpoints
from elman.training.files import write_atomically

FORMAT = 2  # of the run folder; 2: digests of whole texts, and of the tokenizer


class Run:
    """A run folder: `config.json`, `model.safetensors`, `tokenizer.json`, `log.jsonl`, `checkpoints/`. No pickle.

    Made by `Run.create`, `Run.open` or `Run.unfinished`. Every file but the log is written beside and renamed; the log
    grows line by line, and a line cut short by a crash is its last.
    """

    FILES = ("config.json", "model.safetensors", "tokenizer.json", "log.jsonl")

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoints = Checkpoints(folder / "checkpoints")

    @classmethod
    def create(
        cls, folder: str | Path, config: dict, tokenizer: Tokenizer, *, overwrite: bool = False
    ) -> Run:
        """A new run. Raises InputError if the folder is not empty, unless `overwrite` is set.

        config: the model's settings, and under "training" and "data" what it was trained with and on; JSON
        values.
        """
        folder = Path(folder)
        cls.refuse_taken(folder, overwrite=overwrite)
        with _making(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if overwrite:
                for path in (*(folder / name for name in cls.FILES), *cls(folder).made()):
                    path.unlink(missing_ok=True)
        run = cls(folder)
        run._write("tokenizer.json", tokenizer.to_json().encode())
        run._write("log.jsonl", b"")
        # Last: a folder with a configuration is a run.
        run._write("config.json", _configuration(config))
        return run

    @classmethod
    def refuse_taken(cls, folder: str | Path, *, overwrite: bool = False) -> None:
        """Raise what `create` would raise for this folder, as far as that is known before; nothing is made."""
        folder = Path(folder)
        with _making(folder):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                os.lstat(folder)  # a name that cannot be
            above = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
            if not above.is_dir():
                raise NotADirectoryError(20, "there is a file in its place")
            if not os.access(above, os.W_OK | os.X_OK):
                raise PermissionError(13, "Permission denied")
            # A lock, and what was begun and not renamed, are no run.
            taken = above == folder and any(not path.name.startswith(".") for path in folder.iterdir())
        if taken and not overwrite:
            raise InputError(
                what="the run folder is not empty",
                where=folder,
                mend="go on with the run in it by --resume auto, replace it with --overwrite, or choose another --out",
            )

    @classmethod
    def unfinished(cls, folder: str | Path, config: dict) -> Run | None:
        """The run in a folder that was begun with this configuration; None if there is no run in it.

        More steps or more minutes of training are the same run, which its configuration then says. Raises InputError
        if the run there was begun with another one, naming the first difference.
        """
        run = cls(Path(folder))
        if not (run.folder / "config.json").is_file():
            return None
        there = run.config
        longer = False
        for path, old, new in _differences(there, {"format": FORMAT, **config}):
            if (
                path in ("training.steps", "training.minutes")
                and old is not None
                and new is not None
                and new > old
            ):
                longer = True
                continue
            raise InputError(
                what="the run was begun with other settings", where=f"{run.folder / 'config.json'}, {path}",
                got=new, expected=old, mend="repeat the command that began it, replace it with --overwrite, or choose "
                "another --out",
            )  # fmt: skip
        if longer:
            run._write("config.json", _configuration(config))
        return run

    def made(self) -> list[Path]:
        """What of ours stands in the folder besides `FILES`."""
        boards = (self.folder / "tensorboard").glob("events.out.tfevents.*")
        return [*self.checkpoints.paths(), *boards, self.folder / "report.html"]

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

    @property
    def validation(self) -> float | None:
        """Of the weights, mean nats per symbol; None if there are none, or none that were validated."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.folder / "model.safetensors", "pt") as file:
                return float((file.metadata() or {})["validation"])
        except (OSError, KeyError, ValueError, SafetensorError):
            return None

    def log(self, line: dict[str, Any]) -> None:
        """Add a line to the log. A log that cannot be written does not stop a training run."""
        with contextlib.suppress(OSError), (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({name: _short(value) for name, value in line.items()}) + "\n")

    def read_log(self) -> list[dict[str, Any]]:
        """The lines of the log; one that was cut short is left out."""
        found = []
        with contextlib.suppress(OSError):
            for line in (self.folder / "log.jsonl").read_text("utf-8").splitlines():
                with contextlib.suppress(ValueError):
                    found.append(json.loads(line))
        return found

    def begin_log(self, step: int) -> None:
        """Take out what was logged after a step."""
        kept = [line for line in self.read_log() if line["step"] <= step]
        self._write("log.jsonl", "".join(json.dumps(line) + "\n" for line in kept).encode())

    def save(self, model: nn.Module, *, validation: float | None = None) -> None:
        """Write the model's weights. validation: what they reached."""
        from safetensors.torch import save

        weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
        seen: dict[int, str] = {}
        for name, value in weights.items():  # safetensors holds no tensor under two names
            if seen.setdefault(value.data_ptr(), name) != name and value.numel():
                weights[name] = value.clone()
        # One entry: safetensors writes several in any order, and the same weights are to be the same bytes.
        said = {"format": "pt"} if validation is None else {"validation": repr(validation)}
        self._write("model.safetensors", save(weights, metadata=said))

    def _write(self, name: str, content: bytes) -> None:
        try:
            write_atomically(self.folder / name, content)
        except OSError as error:
            raise DataError(
                what=f"the run cannot be saved: {error.strerror or error}",
                where=self.folder / name,
                mend="make room on the disk or choose another --out",
            ) from error


def _configuration(config: dict) -> bytes:
    return (json.dumps({"format": FORMAT, **config}, indent=2) + "\n").encode()


@contextlib.contextmanager
def _making(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: of names that no file can have
        raise DataError(
            what=f"the run folder cannot be made: {getattr(error, 'strerror', None) or error}",
            where=folder,
            mend="choose another --out",
        ) from error


def _differences(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(where, old, new) of every value in which two configurations differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*old, *(name for name in new if name not in old)]:
            yield from _differences(old.get(name), new.get(name), f"{path}.{name}" if path else name)
    elif old != new:
        yield path, old, new


def _short(value: Any) -> Any:
    match value:
        case float():
            return float(f"{value:.6g}")
        case list():
            return [_short(part) for part in value]
        case dict():
            return {name: _short(part) for name, part in value.items()}
    return value
