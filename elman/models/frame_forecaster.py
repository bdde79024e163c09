"""What `Forecaster` does of vectors of 0 and 1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elman.data import ragged
from elman.data.rolls import roll_of
from elman.errors import InputError
from elman.models import pretrained
from elman.models.asked import expect_seed
from elman.models.frame_network import (
    AVERAGE,
    BATCH,
    DECAY,
    FILE,
    FrameNetwork,
    frames_begun,
    frames_opened,
    kept_frames,
    nats_per_frame,
    stack_for,
)
from elman.training import Measure, Training, fitted

STEPS = 1500
_DRAWN = 200


class Frames:
    """A network of vectors, and the end of what it learnt from, [T, I]."""

    def __init__(self, network: FrameNetwork, tail: Tensor) -> None:
        self.network, self.tail = network, tail

    @classmethod
    def fitted(
        cls, sequences: Any, valid: Any, model: dict[str, Any], *, batch: int | None, patience: int | None,
        watch: Callable[[Any], None], seed: int, steps: int | None, minutes: float | None, lr: float | None,
        weight_decay: float | None, average: float | None, progress: bool | None = None,
    ) -> Frames:  # fmt: skip
        """valid: what the weights are chosen by; None: one in ten, which are not learnt from."""
        learnt = read(sequences, "sequences")
        aside = read(valid, "valid") if valid is not None else learnt[len(learnt) - len(learnt) // 10 :]
        if valid is None and aside:
            learnt = learnt[: -len(aside)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network, parts = frames_begun(learnt, **{**stack_for(sum(map(len, learnt))), **given(model)})
            training = Training(
                network, ragged(parts, None, batch or max(min(BATCH, len(parts) // 4), 1), seed),
                steps=STEPS if steps is None and minutes is None else steps, minutes=minutes,
                lr=lr or network.learning_rate, weight_decay=DECAY if weight_decay is None else weight_decay,
                average=AVERAGE if average is None else average, seed=seed,
            )  # fmt: skip

            def look() -> Measure:
                return Measure(nats_per_frame(network, aside or learnt), "cross entropy", "nats per frame")

            fitted(training, look, patience=patience if aside else None, watch=watch, progress=progress)
        return cls(network.eval(), learnt[-1])

    def paths(self, horizon: int, x: Any, count: int, seed: int) -> np.ndarray:
        """[count, horizon, I]."""
        expect_seed(seed)
        given = self.tail if x is None else self._like(roll_of(x, "frame", InputError))
        return self.network.paths(given, count, horizon, seed).numpy()

    def predict(self, horizon: int, x: Any, seed: int) -> np.ndarray:
        """[horizon, I], how likely each channel is to be 1."""
        return self.paths(horizon, x, _DRAWN, seed).mean(0)

    def nats(self, sequences: Any) -> float:
        return nats_per_frame(self.network, [self._like(one) for one in read(sequences, "sequences")])

    def step(self, x: Any, state: Any) -> tuple[np.ndarray, Any]:
        frame = self._like(roll_of([x, x], "step(x)", InputError))[:1]
        logits, state = self.network.step(frame, state)
        return torch.sigmoid(logits[0]).numpy(), state

    def save(self, folder: str | Path) -> None:
        pretrained.save(folder, self.network.settings, self.network, {FILE: kept_frames([self.tail])})

    @classmethod
    def opened(cls, config: dict[str, Any], folder: Path, **opening: Any) -> Frames:
        tail, network = frames_opened(config, folder, **opening)
        return cls(network, tail)

    def _like(self, x: Tensor) -> Tensor:
        if x.shape[1] != self.tail.shape[1]:
            raise InputError(
                what="frames have other channels than those learnt from", where="sequences", got=x.shape[1],
                expected=self.tail.shape[1], mend="give the same",
            )  # fmt: skip
        return x


def given(settings: dict[str, Any]) -> dict[str, Any]:
    """Those that were set."""
    return {name: value for name, value in settings.items() if value is not None}


def read(sequences: Any, where: str) -> list[Tensor]:
    """Sequences [T, I] of 0 and 1, all with the same I."""
    if not isinstance(sequences, Sequence) and getattr(sequences, "ndim", 0) != 3:
        raise InputError(
            what="of vectors there are several sequences", where=where, got=type(sequences).__name__,
            expected="a list of arrays [T, I]", mend="put one sequence into a list",
        )  # fmt: skip
    rolls = [roll_of(one, f"{where}[{i}]", InputError) for i, one in enumerate(sequences)]
    if not rolls or len({one.shape[1] for one in rolls}) > 1:
        raise InputError(
            what="there are no sequences" if not rolls else "sequences have different numbers of channels", where=where,
            got=", ".join(str(one.shape[1]) for one in rolls[:10]),
            mend="give at least one, all with the same channels",
        )  # fmt: skip
    return rolls
