"""A prompt is read in blocks by the model's planned pass: what feeds the loop for all steps of a block at once.

A state has the bits that single steps of a stream make, whichever way it came about: so a text is the same whether its
beginning was read, written or remembered, and whatever else went on. The planned pass takes products over all rows of a
block, whose sums a library may take in another order. Whether it does depends on the shapes alone, and blocks are all
of one shape: a probe when the server starts compares both ways to the last bit. Where they differ (a norm between
layers, which the pass takes with PyTorch's kernel) prompts are read by the batch's steps alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from elman.circuit.structure import fill, flatten
from elman.models import LanguageModel
from elman.serve.prefixes import State

BLOCK = 64  # symbols: some milliseconds, which the others wait
_PROBES = 4


class Reader:
    """stream: of the model, without rows; it is used here, and left without rows.

    initial: the state `[1, …]` from which texts begin. exact: whether blocks give the bits of single steps.
    """

    def __init__(self, model: LanguageModel, stream: Any) -> None:
        self.model, self.stream = model, stream
        if not len(stream):
            stream.add()
        stream.step(np.zeros(1, np.int64))
        stream.reset()
        self.initial, self.structure = flatten(stream.state, "state")
        self.exact = self._probe()
        stream.drop(range(len(stream)))

    def block(self, symbols: np.ndarray, state: State) -> State:
        """The state after a block int64 [BLOCK]."""
        with torch.no_grad():
            x = torch.from_numpy(np.ascontiguousarray(symbols))[:, None]
            return [t.detach() for t in flatten(self.model.read(x, fill(self.structure, state)), "state")[0]]

    def _probe(self) -> bool:
        draw = np.random.default_rng(0)
        state = self.initial
        for _ in range(_PROBES):
            symbols = draw.integers(0, self.model.settings["vocabulary"], BLOCK)
            for symbol in symbols:
                self.stream.step(np.array([symbol]))
            state = self.block(symbols, state)
            stepped, _ = flatten(self.stream.state, "state")
            if not all(map(torch.equal, state, stepped)):
                return False
        return True
