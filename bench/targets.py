"""What the native engine must reach, as data: a peer's time / ours for a training step, on two cores with AVX2.

The figures of the prototype, a hand-written loop, are those of the issue that asked for the engine, filled up from the
notes on the prototype. They were measured in this way: one process, in turns, medians.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from bench import measure
from bench.contestants import ENTRIES
from bench.form import HOISTED, JAX, LOOP, TORCH, Shape

ROUNDS = 25  # at most; SECONDS ends most lines sooner
SECONDS = 3.0  # for one cell at one shape
STEPS = {"B1H128": 100, "B16H64": 100, "B32H128": 100, "B32H256": 50, "B64H512": 20, "B64H1024": 10}


@dataclass(frozen=True)
class Target:
    """One cell beside one peer, by shape in the order of STEPS. None: nobody measured it, or it need not be reached."""

    cell: str
    peer: str
    prototype: tuple[float | None, ...]
    reach: tuple[float | None, ...]

    def at(self, shape: str) -> tuple[float | None, float | None]:
        """(the prototype's ratio, the one to reach)."""
        place = list(STEPS).index(shape)
        return self.prototype[place], self.reach[place]


_, NOTHING = None, (None,) * 6
OF_JAX = (2.2, 3, 2.7, 2.3, 2, 1.8)

TARGETS = (
    Target("rnn", TORCH, (16, 9.8, 3.0, 2.1, 1.3, 1.4), (20, 12, 3, 2.1, 1.4, 1.4)),
    Target("rnn", JAX, (1.9, 3.2, 2.7, 2.4, 2.1, 1.85), OF_JAX),
    Target("gru", TORCH, (25, 10, 3.0, 1.9, 1.4, 1.3), (25, 12, 3, 1.9, 1.4, 1.3)),
    Target("gru", JAX, (2.0, 3.0, 3.3, 2.2, 1.7, _), OF_JAX),
    Target("lstm", TORCH, (1.8, 1.6, 1.65, 1.3, 1.1, 1.03), (2.2, 1.8, 1.7, 1.4, 1.15, 1.05)),
    Target("lstm", JAX, (2.7, 2.7, 3.0, 2.4, 1.7, _), OF_JAX),
    Target("leaky", HOISTED, (28, 12.6, 4.1, 2.1, 1.5, 1.3), (_, 13, _, 2.2, _, _)),
    Target("ln", HOISTED, (22, 10, 3.5, 2.0, 1.35, 1.2), (_, 11, _, 2.1, _, _)),
    Target("mgu", HOISTED, (32, 15, 4.9, 3.0, 1.9, 1.5), (_, 15, _, 3, _, _)),
    Target("dale", LOOP, NOTHING, (_, 15, _, 4, _, _)),
    Target("zoneout", LOOP, NOTHING, (_, 15, _, 4, _, _)),
)


@dataclass(frozen=True)
class Line:
    """A target beside what was measured."""

    row: measure.Row
    peer: str
    prototype: float | None
    reach: float | None

    @property
    def ratio(self) -> float:
        return self.row.ratio(self.peer)

    @property
    def met(self) -> bool | None:
        """None where nothing has to be reached."""
        return None if self.reach is None else self.ratio >= self.reach


def lines(cell: str, shape: str, engine: str = "auto", scale: float = 1.0) -> Iterator[Line]:
    """Check and time one cell at one shape beside the peers that have a figure there.

    scale: of the time it takes, for tests. Raises Disagreement if any contestant is wrong.
    """
    wanted = {t.peer: t.at(shape) for t in TARGETS if t.cell == cell and t.at(shape) != (None, None)}
    if not wanted:
        return
    found = measure.contest(
        ENTRIES[cell], Shape.parse(shape), STEPS[shape], engine=engine, dtype=torch.float32
    )
    ways = found.ways(measure.TRAINING, wanted)
    row = found.row(measure.TRAINING, measure.in_turns(ways, max(3, round(scale * ROUNDS)), scale * SECONDS))
    for peer, (prototype, reach) in wanted.items():
        if peer in ways:  # JAX may be missing
            yield Line(row, peer, prototype, reach)
