"""Training by truncated back-propagation through time.

Nothing is printed: `fit` is a generator, and whoever runs it draws what it yields.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from elman.data import windows
from elman.errors import ElmanError, InputError


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
