"""Training and measuring sequence models, and the run folder that keeps them.

A model here is any `torch.nn.Module` with

    model.loss(x, y, state) -> (mean nats over all symbols of the window, state)         # x, y: [T, B]

Nothing is printed: `fit` is a generator, and whoever runs it draws what it yields.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from elman.data import Tokenizer, windows
from elman.errors import DataError, ElmanError, InputError

FORMAT = 1  # of the run folder


@dataclass(frozen=True)
class Step:
    """One step of training.

    step: its number, from 1. done: the share of the run that is over, 0 … 1. loss: of its window, mean nats
    per symbol. lr: the learning rate it was made with. norm: of the gradient, before clipping. symbols:
    trained on so far. seconds: since the run began.
    """

    step: int
    done: float
    loss: float
    lr: float
    norm: float
    symbols: int
    seconds: float


def detach(state: Any) -> Any:
    """The same state without its history: gradients stop here (truncated back-propagation through time).

    state: a tensor, None, or any nesting of tuples, NamedTuples, lists and dicts of them.
    """
    if isinstance(state, Tensor):
        return state.detach()
    if isinstance(state, dict):
        return {name: detach(part) for name, part in state.items()}
    if isinstance(state, tuple) and hasattr(state, "_fields"):
        return type(state)(*map(detach, state))
    if isinstance(state, tuple | list):
        return type(state)(map(detach, state))
    return state


def fit(
    model: Any,
    tokens: Tensor,
    *,
    steps: int | None = None,
    minutes: float | None = None,
    window: int = 64,
    batch: int = 32,
    lr: float = 4e-3,
    clip: float = 1.0,
    weight_decay: float = 0.01,
    warmup: int = 100,
    seed: int = 0,
) -> Iterator[Step]:
    """Train a model by truncated back-propagation through time with the state carried; yields every step.

    AdamW; the gradient is clipped to the norm `clip`; the learning rate rises over `warmup` steps (at most a
    tenth of the run) and falls on a cosine to zero at the end of the run, which is `steps` steps or `minutes`
    minutes by the clock. Leaving the loop early leaves the model as it is then.

    tokens: int64 [N]. window: T, steps through which gradients flow. batch: B, lanes of the text side by
    side.

    Raises InputError for settings that cannot be, and ElmanError when the loss is no number any more.

    Source: Loshchilov and Hutter, Decoupled weight decay regularization, 2019; Pascanu et al., On the
    difficulty of training recurrent neural networks, 2013 (clipping).
    """
    if (steps is None) == (minutes is None):
        raise InputError(
            what="how long to train is given twice" if steps else "how long to train is not given",
            where="steps, minutes",
            mend="give either steps or minutes",
        )
    limits = {"steps": steps, "minutes": minutes, "lr": lr, "clip": clip}
    for name, value in limits.items():
        if value is not None and not value > 0:
            raise InputError(
                what=f"{name} must be above 0", where=name, got=value, mend="leave it out for the default"
            )
    stream = windows(tokens, window, batch, seed)
    return _fit(model, stream, steps, minutes, lr, clip, weight_decay, warmup)


def pick_threads(model: Any, tokens: Tensor, window: int, batch: int) -> int:
    """How many threads train fastest right now: all that torch has, or one.

    PyTorch's threads wait for one another in every product, so where another program keeps a core busy, two threads
    can be ten times slower than one. A few steps on a copy of the model tell. Only training by the clock asks: its
    result depends on the speed anyway, and the number of threads changes the last bits of a product.
    """
    most = torch.get_num_threads()
    if most == 1:
        return 1
    trial = copy.deepcopy(model)
    first = next(windows(tokens, window, batch))
    took: dict[int, float] = {}
    try:
        for threads in (1, most):
            torch.set_num_threads(threads)
            times: list[float] = []
            while len(times) < 6 and (len(times) < 2 or sum(times) < 1.0):
                start = time.perf_counter()
                trial.loss(first.x, first.y)[0].backward()
                times.append(time.perf_counter() - start)
            took[threads] = statistics.median(times[1:])
    finally:
        torch.set_num_threads(most)
    return min(took, key=lambda threads: took[threads])


def _fit(
    model: Any,
    stream: Iterator,
    steps: int | None,
    minutes: float | None,
    lr: float,
    clip: float,
    weight_decay: float,
    warmup: int,
) -> Iterator[Step]:
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    device = parameters[0].device
    # Decay is for the matrices of products. Pulling biases to zero makes no model simpler.
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.99), fused=True)
    warmup = min(warmup, max(steps // 10, 1)) if steps else warmup
    began = time.monotonic()
    state, step, symbols, done = None, 0, 0, 0.0
    while done < 1:
        item = next(stream)
        state = None if item.fresh else detach(state)
        rate = lr * min(1.0, (step + 1) / max(warmup, 1)) * 0.5 * (1 + math.cos(math.pi * done))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss, state = model.loss(item.x.to(device), item.y.to(device), state)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters, clip)
        if not math.isfinite(loss.item()) or not math.isfinite(norm.item()):
            raise ElmanError(
                what="the training diverged: the loss or its gradient is no finite number any more",
                where=f"step {step + 1}",
                got=f"loss {loss.item():.4g}, gradient norm {norm.item():.4g}",
                mend=f"train again with a lower learning rate (it was {lr:g}) or a lower clip",
            )
        optimizer.step()
        step += 1
        symbols += item.x.numel()
        seconds = time.monotonic() - began
        done = step / steps if steps else seconds / (60 * minutes)  # type: ignore[operator]
        yield Step(step, min(done, 1.0), loss.item(), rate, norm.item(), symbols, seconds)


def means(steps: Iterable[Step], every: int = 10) -> Iterator[Step]:
    """Of every `every` steps one: the last, with the mean of their losses. The rest of fewer comes last."""
    losses: list[float] = []
    last = None
    for last in steps:
        losses.append(last.loss)
        if len(losses) == every:
            yield _mean(last, losses)
            losses, last = [], None
    if last is not None:
        yield _mean(last, losses)


def _mean(step: Step, losses: list[float]) -> Step:
    return Step(**{**vars(step), "loss": sum(losses) / len(losses)})


@dataclass(frozen=True)
class Evaluation:
    """nats: -log p summed over `symbols`, which are all of the text but the first."""

    nats: float
    symbols: int

    @property
    def nats_per_symbol(self) -> float:
        return self.nats / self.symbols

    @property
    def bits_per_symbol(self) -> float:
        """For symbols that are characters: bits per character."""
        return self.nats_per_symbol / math.log(2)


def evaluate(
    model: Any, tokens: Tensor, *, window: int = 1000, progress: Callable[[int, int], None] | None = None
) -> Evaluation:
    """-log p(x(2), …, x(N) | x(1)) of a whole text, as one stream with the state carried: exact.

    tokens: int64 [N], N >= 2. window: steps per call; it bounds memory and does not change the figure.
    progress: called with (symbols done, symbols in all) after each window.
    """
    total = len(tokens) - 1
    if total < 1:
        raise InputError(
            what="the text is too short to predict a symbol from another",
            where="tokens",
            got=f"{len(tokens)} symbols",
            expected="at least 2",
            mend="give more text",
        )
    device = next(model.parameters()).device
    nats, state, training = 0.0, None, model.training
    model.eval()
    try:
        with torch.no_grad():
            for t in range(0, total, window):
                end = min(t + window, total)
                x, y = tokens[t:end, None].to(device), tokens[t + 1 : end + 1, None].to(device)
                loss, state = model.loss(x, y, state)
                nats += loss.item() * (end - t)
                if progress is not None:
                    progress(end, total)
    finally:
        model.train(training)
    return Evaluation(nats, total)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that at any moment, power failures included, the old or the new one is there."""
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(beside, 0o666 & ~umask)  # mkstemp makes files for the owner alone
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(beside)
        raise
    with contextlib.suppress(OSError):  # not every file system syncs folders
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


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
