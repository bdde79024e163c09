"""The run folder that keeps a model."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from elman.data.files import open_own, read_file, reading, refusing, writing
from elman.data.schema import Check, Odd, each, from_json, number, parsed, plain, record, text, truth, whole
from elman.errors import DataError, InputError
from elman.training.checkpoint import Checkpoints
from elman.training.files import write_atomically
from elman.training.weights import inside, weights_in

# Of run folders, and of what `save_pretrained` writes. 2: digests of all that was read. Raise it where
# an older elman would read a folder wrongly; those from _OLDEST on are read for good (tests/kept_run).
FORMAT, _OLDEST = 2, 2
CONFIG_SIZE = 2**24  # bytes of config.json
_LINE, _LOG = 2**20, 2**31  # bytes of a line of the log, and of all of it

_CONFIG = record(
    {"format": whole(0, 10**9)},
    {
        "task": text(100),
        "training": each(plain, 1000, named=True),
    },
)
_figure = number(-1e30, 1e30, finite=False)
_LOGGED = {
    **dict.fromkeys(("loss", "valid", "lr", "norm"), _figure),
    "done": number(0, 1e15),
    "seconds": number(0, 1e15),
    "best": truth,
    "sample": text(_LINE),
    "plan": text(_LINE),
    "stages": each(number(0, 1e15), 1000, named=True),
}


class Run:
    """A run folder: `config.json`, `model.safetensors`, `log.jsonl`, `checkpoints/`, and what a task keeps. No pickle.

    Made by `Run.create`, `Run.open` or `Run.unfinished`. Every file but the log is written beside and renamed; the log
    grows line by line, and a line cut short by a crash is its last.
    """

    FILES = ("config.json", "model.safetensors", "log.jsonl")

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoints = Checkpoints(folder / "checkpoints")

    @classmethod
    def create(
        cls,
        folder: str | Path,
        config: dict,
        files: Mapping[str, bytes] | None = None,
        *,
        overwrite: bool = False,
        stale: Iterable[str] = (),
    ) -> Run:
        """A new run. Raises InputError if the folder is not empty, unless `overwrite` is set.

        config: the model's settings, and under "training" and "data" what it was trained with and on; JSON
        values. files: what stands beside the weights, by name. stale: names of what stood beside those of the run that
        is replaced.
        """
        folder, files = Path(folder), files or {}
        cls.refuse_taken(folder, overwrite=overwrite)
        with _making(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if overwrite:
                cls(folder).expect_own()
                cls(folder).discard((*files, *stale))
        run = cls(folder)
        run._write("log.jsonl", b"")  # first: by it a folder is known where this did not come to its end
        for name, content in files.items():
            run._write(name, content)
        # Last: a folder with a configuration is a run.
        run._write("config.json", _configuration(config))
        return run

    def discard(self, files: Iterable[str]) -> None:
        """Remove what a run has made, so that its place is free for another. files: the names of its task's."""
        for path in (*(self.folder / name for name in (*self.FILES, *files)), *self.made()):
            path.unlink(missing_ok=True)

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
            there = {path.name for path in folder.iterdir() if path.name[0] != "."} if above == folder else ()
            taken = bool(there) and not _just_begun(folder, there)
        if taken and not overwrite:
            ways = "go on with the run in it by --resume auto, replace it with --overwrite, or choose another --out"
            raise InputError(
                what="the run folder is not empty", where=folder,
                mend=ways if "config.json" in there else "there is no run in it: choose another --out",
            )  # fmt: skip

    @classmethod
    def unfinished(cls, folder: str | Path, config: dict) -> Run | None:
        """The run in a folder that was begun with this configuration; None if there is no run in it.

        More steps or more minutes of training are the same run, which its configuration then says. Raises InputError
        if the run there was begun with another one, naming the first difference.
        """
        run = cls(Path(folder))
        if not (run.folder / "config.json").is_file():
            return None
        run.expect_own()
        there = run.config
        longer = False
        for path, old, new in _differences(there, {"format": FORMAT, **config}):
            if path in ("format", "cell_digest"):  # a cell that was edited is told, by whoever knows it
                continue
            numbers = all(type(one) in (int, float) for one in (old, new))  # a file may say anything
            if path in ("training.steps", "training.minutes") and numbers and new > old:
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

    def expect_own(self) -> None:
        """Raise InputError where what is written into the folder would land, or remove something, elsewhere."""
        for path in (self.checkpoints.folder, self.folder / "tensorboard"):
            if path.is_symlink():
                raise InputError(
                    what="the run folder holds a link where a folder of its own should be", where=path,
                    mend="put a folder in its place, or choose another --out",
                )  # fmt: skip

    def made(self) -> list[Path]:
        """What of ours stands in the folder besides `FILES`."""
        boards = (self.folder / "tensorboard").glob("events.out.tfevents.*")
        return [*self.checkpoints.paths(), *boards, self.folder / "report.html", self.folder / "README.md"]

    @classmethod
    def open(cls, folder: str | Path, *files: str) -> Run:
        """A run that was saved. files: what has to be there besides. Raises DataError if this is none."""
        folder = Path(folder)
        missing = [name for name in (*cls.FILES[:2], *files) if not (folder / name).is_file()]
        if missing:
            raise DataError(
                what="this is no run folder" if len(missing) > 1 else f"the run has no {missing[0]}",
                where=folder,
                got=f"no {', '.join(missing)}"
                if folder.is_dir()
                else "a file"
                if folder.exists()
                else "no such folder",
                mend="give what `elman train … --out` named, after training ended or was stopped by Ctrl-C",
            )
        return cls(folder)

    @property
    def config(self) -> dict[str, Any]:
        """Raises DataError for what no run folder holds."""
        where, mend = self.folder / "config.json", "restore it, or train again"
        raw = read_file(where, CONFIG_SIZE, "the configuration", mend)
        config = from_json(raw, _CONFIG, what="this is no configuration of a run", where=where, mend=mend)
        if not _OLDEST <= config["format"] <= FORMAT:
            raise DataError(
                what="the run was written by another version of elman",
                where=where,
                got=f"format {config['format']}",
                expected=f"format {FORMAT}",
                mend="use that version, or train again",
            )
        return config

    def section(self, name: str, check: Check, what: str, mend: str = "restore it, or train again") -> Any:
        """A part of the configuration, checked. what: to be said where it is not as it should be. Raises DataError."""
        raw = json.dumps(self.config.get(name))
        return from_json(raw, check, what=what, where=f"{self.folder / 'config.json'}, {name}", mend=mend)

    @property
    def weights(self) -> dict[str, Tensor]:
        return weights_in(self.folder / "model.safetensors")

    @property
    def validation(self) -> float | None:
        """Of the weights, the figure by which they were chosen; None if there are none, or none that were validated."""
        from safetensors import SafetensorError

        try:
            with inside(self.folder / "model.safetensors") as file:
                return float((file.metadata() or {})["validation"])
        except (KeyError, ValueError, SafetensorError):  # DataError is a ValueError
            return None

    def log(self, line: dict[str, Any]) -> None:
        """Add a line to the log. A log that cannot be written does not stop a training run."""
        raw = (json.dumps({name: _short(value) for name, value in line.items()}) + "\n").encode()
        with (
            contextlib.suppress(OSError),
            os.fdopen(open_own(self._log, os.O_WRONLY | os.O_APPEND), "ab", buffering=0) as file,
        ):
            end = os.fstat(file.fileno()).st_size
            if file.write(raw) < len(raw):
                os.ftruncate(file.fileno(), end)  # the next line would go on behind a part of this one

    def read_log(self, known: Mapping[str, Check] | None = None) -> Iterator[dict[str, Any]]:
        """The lines of the log, one at a time; what is none, or was cut short, is left out.

        known: checks of names that every task has its own of.
        """
        return (line for line, _ in self._lines(known or {}))

    def begin_log(self, step: int) -> None:
        """Take out what was logged after a step, and what is no line of a log."""
        with _saving(self._log), writing(self._log) as file:
            for line, raw in self._lines({}):
                if line["step"] <= step:
                    file.write(raw.rstrip(b"\n") + b"\n")

    @property
    def _log(self) -> Path:
        return self.folder / "log.jsonl"

    def _lines(self, known: Mapping[str, Check]) -> Iterator[tuple[dict[str, Any], bytes]]:
        check = record({"step": whole(0, 10**15)}, {**_LOGGED, **known})
        if not os.path.lexists(self._log):
            return
        with reading(self._log, "the log", "remove it: a log is no part of the model") as file:
            if os.fstat(file.fileno()).st_size > _LOG:
                raise DataError(
                    what="the log is too large", where=self._log, mend="remove it, or its beginning"
                )
            while raw := file.readline(_LINE):
                whole_line = len(raw) < _LINE or raw.endswith(b"\n")
                while not (raw.endswith(b"\n") or len(raw) < _LINE):  # the rest of one that is too long
                    raw = file.readline(_LINE)
                if whole_line:
                    with contextlib.suppress(Odd):
                        yield parsed(raw, check), raw

    def save(self, model: nn.Module, *, validation: float | None = None) -> None:
        """Write the model's weights. validation: what they reached."""
        from safetensors.torch import save

        weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
        seen: dict[int, str] = {}
        for name, value in weights.items():  # safetensors holds no tensor under two names
            if seen.setdefault(value.data_ptr(), name) != name and value.numel():
                weights[name] = value.clone()
        # One entry: safetensors writes several in any order, and the same weights are to be the same bytes.
        metadata = {"format": "pt"} if validation is None else {"validation": repr(validation)}
        self._write("model.safetensors", save(weights, metadata=metadata))

    def _write(self, name: str, content: bytes) -> None:
        with _saving(self.folder / name):
            write_atomically(self.folder / name, content)


def _just_begun(folder: Path, names: Collection[str]) -> bool:
    """Whether `Run.create` has begun there, and was killed or found no room before there was a run."""
    if "log.jsonl" not in names or not {"config.json", "model.safetensors", "checkpoints"}.isdisjoint(names):
        return False
    return (folder / "log.jsonl").stat().st_size == 0


def _saving(path: Path) -> contextlib.AbstractContextManager[None]:
    return refusing("the run cannot be saved", path, "make room on the disk, or choose another --out")


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
