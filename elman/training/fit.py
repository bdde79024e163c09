"""Training by truncated back-propagation through time.

Nothing is printed: `fit` is a generator, and whoever runs it draws what it yields.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from elman.data.batches import Batch, Batches
from elman.errors import DataError, ElmanError, InputError
from elman.training.average import Average
from elman.training.facts import check_facts, check_tensors, draw_from, expect_like, generators
from elman.training.processes import Processes
from elman.training.stopwatch import Stages
from elman.training.threads import Threads

# AdamW's weights are a mean over the last 1 / (lr · decay) updates. In passes over the data; tried on a million
# characters of prose: decays of 0.01, 0.1, 0.15, 0.3 and 1 ended at losses of 1.486, 1.450, 1.455, 1.476 and 1.629.
_REMEMBERED, _MOST_DECAY = 5.0, 0.3

# (model, batch, state carried in) -> (what is minimised, a mean over what the batch counts; state to carry on)
Loss = Callable[[Any, Batch, Any], tuple[Tensor, Any]]


@dataclass(frozen=True)
class Step:
    """One step of training.

    step: its number, from 1. done: the share of the run that is over, 0 … 1. loss: of its batch. lr: the learning rate
    it was made with. norm: of the gradient, before clipping. count: trained on so far, in the unit of the
    batches. seconds: since the run began, those of earlier processes included.
    """

    step: int
    done: float
    loss: float
    lr: float
    norm: float
    count: int
    seconds: float


class Diverged(ElmanError):
    """The loss or its gradient is no finite number any more. where: the step, and the part of the model."""


class Training:
    """A training run: truncated back-propagation through time with the state carried, one `Step` after another.

        for step in Training(model, batches, steps=1000):
            …

    AdamW; the gradient is clipped to the norm `clip`; the learning rate rises over `warmup` steps (at most a
    tenth of the run) and falls on a cosine to zero at the end of the run, which is `steps` steps or `minutes`
    minutes by the clock. Leaving the loop early leaves the model as it is then.

    batches: what is read (`elman.data.Batches`); this training alone reads them. loss: what is minimised; by default
    `model.loss(*batch.values, state)`. weight_decay: of AdamW, for matrices; by default as much as lets a weight
    remember about the last five passes over the data, so that little is not learnt by heart and much is not held back.
    average: the decay of an exponential moving average of the weights, which the model has inside of `averaged()`; 0 or
    None for none. What a `Trainer` measures and saves as the model is then the average; 0.998 is over some 500 steps.
    stop: once set, the run ends after the step that is being made.
    processes: those that train together, and their precision; each has a `Training` with the same arguments.

    Between two steps, `state` is everything that the rest of the run depends on besides these arguments, and `restore`
    takes it back: a run by steps then goes on to the same bits, on the same machine with as many threads. A run of more
    steps or minutes goes on where the shorter one was, at the place in its own schedule of learning rates.

    Raises InputError for settings that cannot be, and Diverged when the loss is no number any more.

    Source: Loshchilov and Hutter, Decoupled weight decay regularization, 2019; Wang and Aitchison, How to set AdamW's
    weight decay as you scale model and dataset size, 2024; Pascanu et al., On the difficulty of training recurrent
    neural networks, 2013 (clipping).
    """

    def __init__(
        self, model: Any, batches: Batches, *, loss: Loss | None = None, steps: int | None = None,
        minutes: float | None = None, lr: float = 4e-3, clip: float = 1.0, weight_decay: float | None = None,
        warmup: int = 100, seed: int = 0, average: float | None = None, stop: threading.Event | None = None,
        processes: Processes | None = None,
    ) -> None:  # fmt: skip
        if (steps is None) == (minutes is None):
            raise InputError(
                what="how long to train is given twice" if steps else "how long to train is not given",
                where="steps, minutes",
                mend="give either steps or minutes",
            )
        for name, value in {"steps": steps, "minutes": minutes, "lr": lr, "clip": clip}.items():
            if value is not None and not 0 < value < math.inf:
                raise InputError(
                    what=f"{name} must be above 0", where=name, got=value, mend="leave it out for the default"
                )
        self.model, self.steps, self.minutes, self.lr, self.clip = model, steps, minutes, lr, clip
        self.stop, self.processes = stop or threading.Event(), processes or Processes()
        self.batches, self.loss = batches, loss or _own_loss
        batches.split(self.processes.rank, self.processes.count)
        if weight_decay is None:
            weight_decay = min(batches.count / (_REMEMBERED * lr * batches.size), _MOST_DECAY)
        if not 0 <= weight_decay < math.inf:
            raise InputError(
                what="weight_decay must not be below 0", where="weight_decay", got=weight_decay,
                mend="leave it out for the default",
            )  # fmt: skip
        if not 0 <= (average or 0) < 1:
            raise InputError(
                what="average is the decay of a mean, below 1", where="average", got=average, expected="such as 0.998",
                mend="leave it out for the default",
            )  # fmt: skip
        self.weight_decay = weight_decay
        self.warmup = min(warmup, max(steps // 10, 1)) if steps else warmup
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        # Decay is for the matrices of products. Pulling biases to zero makes no model simpler.
        parts = list(self.parameters.values())
        groups = [
            {"params": [p for p in parts if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in parts if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.99), fused=True)
        self.average = Average(self.parameters, average) if average else None
        self.carried: Any = None
        self.stages = Stages()
        self.threads: Threads | None = None  # that watches how many of them train fastest
        self.step, self.count, self.done, self.seconds = 0, 0, 0.0, 0.0
        self.stopped = False
        if self.processes.rank:
            # What is drawn in one process is not drawn in another. The weights are there already.
            torch.manual_seed(seed + self.processes.rank)

    def __iter__(self) -> Iterator[Step]:
        self.model.train()
        began = time.monotonic() - self.seconds
        while self.done < 1 and not self.stopped:
            self.stages.begin()
            position = self.batches.position
            batch = self._read()
            before = None if batch.fresh else detach(self.carried)
            # A short rise, then half a cosine down to nothing.
            rate = self.lr * min(1.0, (self.step + 1) / max(self.warmup, 1))
            rate *= 0.5 * (1 + math.cos(math.pi * self.done))
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.stages.end("data")
            started = time.perf_counter()
            with self.processes.products():
                mean, self.carried = self._loss(batch, before)
                self.stages.end("forward")
                self.optimizer.zero_grad(set_to_none=True)
                mean.backward()
                self.stages.end("backward")
            loss, seconds, stop = self._shared(mean.item(), time.monotonic() - began)
            if self.processes.count > 1:
                self.stages.end("sharing")
            norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.clip).item()
            if not math.isfinite(loss) or not math.isfinite(norm):
                self.batches.position, self.carried = position, before
                raise self._diverged(loss, norm, lambda batch=batch, before=before: self._loss(batch, before))
            self.optimizer.step()
            self.step += 1
            if self.average is not None:
                self.average.update(self.step)
            self.stages.end("optimiser")
            self.count += batch.count
            self.seconds, self.stopped = seconds, stop
            self.done = self._done()
            if self.threads is not None:
                self.threads.stepped(time.perf_counter() - started)
            yield Step(self.step, min(self.done, 1.0), loss, rate, norm, self.count, seconds)

    def _done(self) -> float:
        """The share of the run that is over."""
        return self.step / self.steps if self.steps else self.seconds / (60 * (self.minutes or 1))

    def _read(self) -> Batch:
        """The next batch, where the model is."""
        device, batch = self.device, next(self.batches)
        there = pytree.tree_map(
            lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, batch.values
        )
        return replace(batch, values=there)

    def _loss(self, batch: Batch, state: Any) -> tuple[Tensor, Any]:
        """Of this process's part, so that the mean over processes is the loss of the whole batch."""
        with self.processes.autocast():
            loss, after = self.loss(self.model, batch, state)
        weight = batch.part * self.processes.count
        return loss if weight == 1 else loss * weight, after

    def _shared(self, loss: float, seconds: float) -> tuple[float, float, bool]:
        """The whole batch's loss, the clock of the first process, whether any is to stop; gradients are shared."""
        mine = (loss / self.processes.count, seconds * self.processes.first, float(self.stop.is_set()))
        loss, seconds, stops = self.processes.share(self.parameters.values(), *mine)
        return loss, seconds, stops > 0

    def _diverged(self, loss: float, norm: float, again: Callable[[], Any]) -> Diverged:
        if math.isfinite(loss):
            # Gradients come from the loss backward: the parts nearest to it are the last to be registered.
            bad = [
                name
                for name, p in self.parameters.items()
                if p.grad is not None and not p.grad.isfinite().all()
            ]
            part = f"the gradient of {bad[-1]} went first" if bad else "the norm of the gradient"
        else:
            part = f"the output of {_first_bad(self.model, again)} in the forward pass"
        return Diverged(
            what="the training diverged: the loss or its gradient is no finite number any more",
            where=f"step {self.step + 1}, {part}",
            got=f"loss {loss:.4g}, gradient norm {norm:.4g}",
            mend=f"train again with a lower learning rate (it was {self.lr:g}) or a lower clip",
        )

    def averaged(self) -> AbstractContextManager[None]:
        """Inside, the model has the averaged weights; without `average` those that it has anyway."""
        return nullcontext() if self.average is None else self.average.taken()

    # --- stopping and going on --------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(iter(self.parameters.values())).device

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors by name, everything else as JSON values), of all processes: every one of them has to ask."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for name, p in self.parameters.items():
            for key, value in self.optimizer.state.get(p, {}).items():
                tensors[f"optimizer.{name}.{key}"] = value
        for name, value in self.average.values.items() if self.average else ():
            tensors[f"average.{name}"] = value
        for name, value in generators(self.device).items():
            tensors[name] = self.processes.gathered(value)
        plain = []
        for i, leaf in enumerate(pytree.tree_leaves(self.carried)):
            plain.append(None if isinstance(leaf, Tensor) else leaf)
            if isinstance(leaf, Tensor):
                tensors[f"carried.{i}"] = self.processes.gathered(leaf.detach())
        facts = {
            "step": self.step, self.batches.unit: self.count, "done": self.done, "seconds": self.seconds,
            "position": list(self.batches.position), "carried": None if self.carried is None else plain,
            "threads": torch.get_num_threads(),
        }  # fmt: skip
        # Each in memory of its own: training goes on, and tied weights are one tensor under two names.
        return {name: value.detach().cpu().clone() for name, value in tensors.items()}, facts

    def restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Go on from a `state`. Raises DataError, with nothing changed, if it belongs to another model or is none."""
        check_facts(facts, self.batches.unit)
        weights = {n.removeprefix("model."): v for n, v in tensors.items() if n.startswith("model.")}
        before = generators(self.device)
        try:
            check_tensors(tensors, self.model.state_dict(), self.parameters)
            for name, p in self.parameters.items() if self.average else ():
                expect_like(f"average.{name}", tensors, p)
            if not self.batches.holds(tuple(facts["position"])):
                raise ValueError(f"there is no position {facts['position']} in the data")
            carried = None if facts["carried"] is None else self._structured(tensors, facts["carried"])
            states = {
                name: tensors[name].view(-1, one.numel()) for name, one in before.items() if name in tensors
            }
            if self.processes.rank < len(states["random"]):
                draw_from({name: each[self.processes.rank] for name, each in states.items()}, self.device)
            self.model.load_state_dict(weights)
        except (KeyError, RuntimeError, ValueError) as error:
            draw_from(before, self.device)
            raise DataError(
                what=f"the checkpoint belongs to another model: {error}", where="Training.restore",
                mend="go on with the model that it was made of",
            ) from error  # fmt: skip
        self.optimizer.state.clear()
        for name, p in self.parameters.items():
            start = f"optimizer.{name}."
            kept = {n.removeprefix(start): v for n, v in tensors.items() if n.startswith(start)}
            self.optimizer.state[p] = {
                key: value.to(p.device).clone()
                for key, value in kept.items()
                if key in ("step", "exp_avg", "exp_avg_sq")
            }
        if self.average is not None:
            for name, value in self.average.values.items():
                value.copy_(tensors[f"average.{name}"])
        self.carried, self.batches.position = carried, tuple(facts["position"])
        self.step, self.count = facts["step"], facts[self.batches.unit]
        self.seconds = facts["seconds"]
        self.done = self._done()  # less than before, where more steps or minutes are given now
        if self.steps is not None:  # the last bits of a product depend on their number
            torch.set_num_threads(facts["threads"])

    def _structured(self, tensors: dict[str, Tensor], plain: list[Any]) -> Any:
        """The carried state in the structure that the model gives it."""
        batches, position = self.batches, self.batches.position
        batches.split(0, 1)  # what is kept is of all processes
        try:
            with torch.no_grad():
                _, like = self.loss(self.model, self._read(), None)
        finally:
            batches.split(self.processes.rank, self.processes.count)
            batches.position = position
        leaves, spec = pytree.tree_flatten(like)
        if len(leaves) != len(plain):
            raise ValueError(f"its state has {len(plain)} parts rather than {len(leaves)}")
        kept = []
        for i, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor):
                expect_like(f"carried.{i}", tensors, leaf)
                kept.append(self.processes.part(tensors[f"carried.{i}"]).to(self.device))
            elif type(plain[i]) is not type(leaf):
                raise ValueError(f"part {i} of its state is {plain[i]!r} rather than {leaf!r}")
            else:
                kept.append(plain[i])
        return pytree.tree_unflatten(kept, spec)


def _own_loss(model: Any, batch: Batch, state: Any) -> tuple[Tensor, Any]:
    return model.loss(*batch.values, state)


def _first_bad(model: nn.Module, again: Callable[[], Any]) -> str:
    """The first part of a model whose output is not finite, when its loss is computed once more."""
    broken: list[str] = []

    def looking(name: str) -> Callable[..., None]:
        def look(module: nn.Module, given: Any, output: Any) -> None:
            if any(
                isinstance(leaf, Tensor) and leaf.is_floating_point() and not leaf.isfinite().all()
                for leaf in pytree.tree_leaves(output)
            ):
                broken.append(name)

        return look

    # Not inside of a layer: a hook on a cell's part would be part of its step.
    parts = {}
    for name, module in model.named_children():
        inner = module.named_children() if isinstance(module, nn.ModuleList) else [("", module)]
        parts |= {f"{name}.{number}".rstrip("."): part for number, part in inner}
    hooks = [part.register_forward_hook(looking(name)) for name, part in parts.items()]
    try:
        with torch.no_grad():
            again()
    finally:
        for hook in hooks:
            hook.remove()
    bad = [name for name, p in model.named_parameters() if not p.isfinite().all()]
    return (broken or bad or ["the loss itself"])[0]


def fit(model: Any, batches: Batches, **settings: Any) -> Iterator[Step]:
    """`Training` as an iterator of its steps; settings are checked now."""
    return iter(Training(model, batches, **settings))


def detach(state: Any) -> Any:
    """The same state without its history: gradients stop here (truncated back-propagation through time).

    state: a tensor, None, or any nesting of tuples, NamedTuples, lists and dicts of them.
    """
    return pytree.tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, state)


def mean_of(step: Step, losses: list[float]) -> Step:
    """A step with the mean of some losses in place of its own."""
    return Step(**{**vars(step), "loss": sum(losses) / len(losses)})
