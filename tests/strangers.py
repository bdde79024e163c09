"""What somebody else might send: a run folder, spoiled in one way, and the command line run on it as a user would."""

from __future__ import annotations

import gc
import io
import json
import os
import shutil
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load, save

from elman.app import cli
from elman.training import load_checkpoint, save_checkpoint

KEPT = Path(__file__).parent / "kept_run"
TEXT = KEPT / "text.txt"
CELL = "import pathlib, torch\npathlib.Path(__file__).with_name('RAN').touch()\nclass Cell(torch.nn.GRUCell): pass\n"
COMMANDS: dict[str, list[str]] = {
    "report": ["report", "RUN"],
    "evaluate": ["evaluate", "RUN", str(TEXT)],
    "held out": ["evaluate", "RUN"],
    "generate": ["generate", "RUN", "--length", "3", "--seed", "1"],
    "resume": ["train", "lm", "-", "--out", "RUN", "--steps", "20", "--hidden", "4", "--embedding", "4", "--window",
               "8", "--batch", "4", "--quiet", "--checkpoint-every", "10", "--resume", "auto"],
}  # fmt: skip


@dataclass(frozen=True)
class Said:
    """How a command ended. status: its exit status."""

    status: int
    out: str
    err: str


def elman(*arguments: object, text: bytes = b"") -> Said:
    """A command, in this process, as the entry point runs it. text: its standard input."""
    gc.freeze() if text else None  # what was there before is not what is looked for below
    with pytest.MonkeyPatch.context() as patch:
        out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
        patch.setattr(sys, "argv", ["elman", *map(str, arguments)])
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text), "utf-8"))
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        try:
            cli.main()
            status = 0
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else int(error.code is not None)
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", ResourceWarning
            )  # a copy of the standard input, held by a traceback
            gc.collect() if text else None
        said, told = (stream.buffer.getvalue().decode() for stream in (out, err))  # type: ignore[attr-defined]
        return Said(status, said, told)


def on(run: Path, command: str, *more: str) -> Said:
    words = [str(run) if word == "RUN" else word for word in COMMANDS[command]]
    return elman(*words, *more, text=TEXT.read_bytes() if "-" in words else b"")


def copy(to: Path) -> Path:
    """A run folder of a stranger's."""
    shutil.copytree(KEPT / "run", to)
    return to


# --- ways to spoil it: functions of the folder ------------------------------------------------------------------------

Spoil = Callable[[Path], None]


def content(name: str, raw: bytes) -> Spoil:
    return lambda run: (run / name).write_bytes(raw) and None


def fields(name: str, **values: Any) -> Spoil:
    """Values of a JSON object exchanged; a dotted name is spelt with two underscores."""

    def spoil(run: Path) -> None:
        value = json.loads((run / name).read_bytes())
        for place, new in values.items():
            *outer, last = place.split("__")
            inner = value
            for key in outer:
                inner = inner[key]
            inner[last] = new
        (run / name).write_text(json.dumps(value))

    return spoil


def logged(line: str | bytes) -> Spoil:
    """A line at the end of the log."""

    def spoil(run: Path) -> None:
        with (run / "log.jsonl").open("ab") as file:
            file.write(line.encode() if isinstance(line, str) else line)

    return spoil


def weights(change: Callable[[dict], Any]) -> Spoil:
    def spoil(run: Path) -> None:
        path = run / "model.safetensors"
        path.write_bytes(save(change(load(path.read_bytes()))))

    return spoil


def facts(**values: Any) -> Spoil:
    """A checkpoint that says something else, under a digest of its own."""

    def spoil(run: Path) -> None:
        for path in (run / "checkpoints").iterdir():
            tensors, said = load_checkpoint(path)
            save_checkpoint(path, tensors, {**said, **values})

    return spoil


def tensors(change: Callable[[dict], Any]) -> Spoil:
    def spoil(run: Path) -> None:
        for path in (run / "checkpoints").iterdir():
            inside, said = load_checkpoint(path)
            save_checkpoint(path, change(inside), said)

    return spoil


def instead(name: str, make: Callable[[Path], Any]) -> Spoil:
    """Something else in a file's place."""

    def spoil(run: Path) -> None:
        (run / name).unlink(missing_ok=True)
        make(run / name)

    return spoil


def pipe(path: Path) -> None:
    os.mkfifo(path)


def link(to: str | Path) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(to)
