"""Learning while it runs by braintrace, as its own page shows it, on the stream of bench/online.py.

Its rules compile a whole chunk of the stream, updates and all. Of its GRU they leave out what acts through the reset
gate, and say so in a warning.
"""

from __future__ import annotations

import importlib.util
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch import Tensor

RULES = {"D-RTRL": ("D_RTRL", {}), "pp-prop": ("pp_prop", {"decay_or_rank": 0.9})}


def absent() -> bool:
    return any(importlib.util.find_spec(name) is None for name in ("braintrace", "brainstate", "braintools"))


def learnt(
    rule: str,
    stream: Iterator[tuple[Tensor, Tensor]],
    batch: int,
    width: int,
    every: int,
    rate: Callable[[int], float],
) -> tuple[np.ndarray, int, float]:
    """(losses, bytes of what is carried, microseconds a step of what was compiled before).

    rate: of Adam after so many updates; asked for every chunk of the stream.
    """
    import brainstate
    import braintools
    import braintrace
    import jax
    import jax.numpy as jnp

    class Net(brainstate.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.out = braintrace.nn.GRUCell(1, width), braintrace.nn.Linear(width, 1)

        def update(self, x: Any) -> Any:
            return self.out(self.rnn(x))

    brainstate.random.seed(1)
    name, options = RULES[rule]
    net = Net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        learner = braintrace.compile(
            net, getattr(braintrace, name), jnp.zeros((batch, 1)), batch_size=batch, **options
        )
    optimizer = braintools.optim.Adam(rate(0))
    optimizer.register_trainable_weights(net.states(brainstate.ParamState))

    def update(x: Any, y: Any) -> Any:
        loss = lambda x_t, y_t: jnp.square(learner(x_t) - y_t).mean()  # noqa: E731
        gradients, losses = learner.etrace_grad(x, y, step_fn=loss, reduction="sum", return_value=True)
        optimizer.update(gradients)
        return losses

    chunk = brainstate.transform.jit(lambda x, y: brainstate.transform.for_loop(update, x, y))
    carried = [s.value for s in learner.states().values() if not isinstance(s, brainstate.ParamState)]
    held = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(carried))
    losses, updates, steps, seconds, compiled = [], 0, 0, 0.0, set()
    for pair in stream:
        optimizer.current_lr = jnp.float32(rate(updates))
        whole = len(pair[0]) // every * every
        x, y = (jnp.asarray(part[:whole].numpy()).reshape(-1, every, batch, 1) for part in pair)
        began = time.perf_counter()
        found = np.asarray(chunk(x, y)).ravel()
        if whole in compiled:
            seconds, steps = seconds + time.perf_counter() - began, steps + len(found)
        compiled.add(whole)
        updates += len(x)
        losses.append(found)
    return np.concatenate(losses), held, 1e6 * seconds / max(steps, 1)
