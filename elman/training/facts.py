"""What a checkpoint says besides its tensors, and whether all of it belongs to a run: checked before any of it is used.

A digest says that a checkpoint is what was written; whoever can write the file can write the digest too.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from elman.data.schema import Odd, each, maybe, number, plain, record, truth, whole
from elman.errors import DataError

_any = number(-1e300, 1e300, finite=False)
# Of `Training`. threads: more than any machine has, as a number that is not the machine's own starts them all.
FACTS = {
    "step": whole(0, 10**15),
    "done": number(0, 1e15),
    "seconds": number(0, 1e15),
    "position": each(whole(0, 10**15), 16),
    "carried": maybe(each(plain, 10_000)),
    "threads": whole(1, max(1024, os.cpu_count() or 1)),
}
# Of `Trainer` besides.
KEPT = {
    "worse": whole(0, 10**15),
    "losses": each(_any, 10_000),
    "best": maybe(_any),
}
_MAYBE = {"stages": each(number(0, 1e15), 1000, named=True), "lower_is_better": truth}


def check_facts(facts: Any, unit: str, *, kept: bool = False) -> None:
    """Raise DataError for facts that no training has, or no `Trainer` (kept). unit: of its batches."""
    try:
        record({**FACTS, unit: whole(0, 10**18), **(KEPT if kept else {})}, _MAYBE)(facts, "")
    except Odd as odd:
        raise DataError(
            what=f"the checkpoint says what cannot be: {odd.place}", where="Training.restore", got=odd.got,
            expected=odd.expected, mend="go on with another one",
        ) from odd  # fmt: skip


def check_tensors(
    tensors: Mapping[str, Tensor], model: Mapping[str, Tensor], parameters: Mapping[str, Tensor]
) -> None:
    """Raise ValueError unless tensors are the weights of a model, AdamW's of its parameters, and random states."""
    for name, value in model.items():
        expect_like(f"model.{name}", tensors, value)
    for name, value in parameters.items():
        mine = [f"optimizer.{name}.{key}" for key in ("step", "exp_avg", "exp_avg_sq")]
        if any(key in tensors for key in mine):  # none before the first step
            for key, like in zip(mine, (torch.zeros(()), value, value), strict=True):
                expect_like(key, tensors, like)
    for name, one in generators(next(iter(parameters.values())).device).items():
        states = tensors.get(name, one)  # a run that goes on upon a GPU may have begun without
        if states.dtype != one.dtype or not states.numel() or states.numel() % one.numel():
            raise ValueError(f"{name} is no state of a generator")


def generators(device: torch.device) -> dict[str, Tensor]:
    """The states of what random numbers are drawn from where a model is on a device, by their names in a checkpoint."""
    states = {"random": torch.get_rng_state()}
    if device.type == "cuda":
        states["random.cuda"] = torch.cuda.get_rng_state(device)
    return states


def draw_from(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Go on drawing from the states of `generators`."""
    torch.set_rng_state(states["random"].clone())
    if "random.cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["random.cuda"].clone(), device)


def fitting(weights: dict[str, Tensor], model: Mapping[str, Tensor], where: object) -> dict[str, Tensor]:
    """The weights, if a model has such. Raises DataError."""
    try:
        for name, value in model.items():
            expect_like(name, weights, value)
    except (KeyError, ValueError) as error:
        raise DataError(
            what=f"the weights are those of another model: {error}", where=where,
            mend="remove the file: the last weights are kept then",
        ) from error  # fmt: skip
    return {name: weights[name] for name in model}


def expect_like(name: str, tensors: Mapping[str, Tensor], like: Tensor) -> None:
    """Raise ValueError unless the tensor of that name has the shape and dtype of another one."""
    value = tensors[name]
    if value.shape != like.shape or value.dtype != like.dtype:
        raise ValueError(
            f"{name} is {list(value.shape)} of {value.dtype} rather than {list(like.shape)} of {like.dtype}"
        )
