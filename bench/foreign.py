"""The recurrent layers of flax nnx, equinox and Keras: as their users write them, and the first two as fast as they go.

Each is given the weights of a shipped cell. As written: the package's own jit and gradient around its own layer, of a
loss that weighs outputs and final state. Fast: one `jax.vjp` under `jax.jit` of the module's arrays, with the best of
UNROLLED. Keras runs on torch, batch first, as it wants it. A package that is missing is left out; `missing` says so.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from bench.form import EQUINOX, EQUINOX_FAST, FLAX, FLAX_FAST, KERAS, Contestant, Made, Problem
from bench.jaxed import jax, jnp

Tensor = torch.Tensor
NEEDS = {
    "JAX scan": "jax",
    FLAX: "flax",
    FLAX_FAST: "flax",
    EQUINOX: "equinox",
    EQUINOX_FAST: "equinox",
    KERAS: "keras",
}
UNROLLED = (1, 4)


def missing() -> dict[str, str]:
    """Contestant -> the package that it lacks."""
    return {name: package for name, package in NEEDS.items() if importlib.util.find_spec(package) is None}


def contestants(kind: str, cell: nn.Module) -> list[Contestant]:
    """Those that are installed and have such a cell. kind: "rnn", "gru" or "lstm". A GRU's c has to be zero: flax has
    no such bias, and equinox one for the candidate alone."""
    weights = dict(cell.named_parameters())
    if kind == "gru" and weights["c"].any():
        raise ValueError("flax and equinox have no GRU whose c is not zero")
    lacks = frozenset({"c"} & weights.keys())
    absent, found = missing(), list[Contestant]()
    for name, make, kinds in (
        (FLAX, Flax, ("rnn", "gru", "lstm")),
        (FLAX_FAST, FlaxFast, ("rnn", "gru", "lstm")),
        (EQUINOX, Equinox, ("gru", "lstm")),
        (EQUINOX_FAST, EquinoxFast, ("gru", "lstm")),
    ):
        if name not in absent and kind in kinds:
            found.append(make(name, kind, {n: w for n, w in weights.items() if n not in lacks}, lacks))
    if KERAS not in absent:
        found.append(Keras(KERAS, kind, weights))
    return found


@dataclass(frozen=True)
class Layer(Contestant):
    """A layer of a package. kind: of cell. lacks: weights of the cell that the package's has not; they are zero."""

    name: str
    kind: str
    weights: dict[str, Tensor]
    lacks: frozenset[str] = field(default_factory=frozenset)
    latest: list[Any] = field(
        default_factory=list
    )  # a problem and what was prepared of it: compiling takes seconds

    def training(self, problem: Problem) -> Callable[[], Made]:
        return self._ready(problem)[0]

    def results(self, problem: Problem) -> Made:
        call, read = self._ready(problem)
        return read(call())

    def _ready(self, problem: Problem) -> tuple[Callable[[], Any], Callable[[Any], Made]]:
        if not self.latest or self.latest[0] is not problem:
            self.latest[:] = [problem, self.prepared(problem)]
        return self.latest[1]

    def prepared(self, problem: Problem) -> tuple[Callable[[], Any], Callable[[Any], Made]]:
        """(a training step, what reads its result in the order of the cell's weights): reading is not timed."""
        raise NotImplementedError

    @property
    def sizes(self) -> tuple[int, int]:
        """(I, H)."""
        return self.weights["U"].shape[1], self.weights["W"].shape[1]


# --- JAX --------------------------------------------------------------------------------------------------------------


def _array(tensor: Tensor) -> Any:
    return jnp.array(tensor.detach().numpy())


def _weighed(made: Any, cotangents: Any) -> tuple[Any, Any]:
    """The loss whose gradients are those of the cotangents; what was made goes along."""
    parts = zip(jax.tree.leaves(made), cotangents, strict=True)
    return sum(jnp.vdot(part, cotangent) for part, cotangent in parts), made


class _OnJax(Layer):
    """What is common: forward(parameters, x, state, unroll) -> (outputs, final state), states as the cell has them."""

    def parameters(self) -> Any:
        raise NotImplementedError

    def forward(self, parameters: Any, x: Any, state: Any, unroll: int = 1) -> tuple[Any, Any]:
        raise NotImplementedError

    def gradients(self, parameters: Any) -> dict[str, Any]:
        """The cell's name of a weight -> its gradient, out of the gradient of `parameters`."""
        raise NotImplementedError

    def given(self, problem: Problem) -> tuple[Any, Any]:
        return _array(problem.x), pytree.tree_map(_array, problem.state)

    def read(self, made: Any, gradients: tuple[Any, Any, Any]) -> Made:
        parameters, x, state = gradients
        by_name = self.gradients(parameters)
        return jax.tree.leaves(made), (x, *jax.tree.leaves(state), *(by_name[name] for name in self.weights))

    def inference(self, problem: Problem) -> Callable[[], Any]:
        given, run = (self.parameters(), *self.given(problem)), jax.jit(self.forward)
        return lambda: jax.block_until_ready(run(*given))

    def fast(self, problem: Problem) -> tuple[Callable[[], Any], Callable[[Any], Made]]:
        given = (self.parameters(), *self.given(problem))
        outputs, *final = map(_array, problem.cotangents)
        cotangent = outputs, (final[0] if isinstance(problem.state, Tensor) else tuple(final))

        def step(unroll: int) -> Callable[[], Any]:
            @jax.jit
            def run(given: Any, cotangent: Any) -> Any:
                made, pull = jax.vjp(lambda *a: self.forward(*a, unroll=unroll), *given)
                return made, pull(cotangent)

            return lambda: jax.block_until_ready(run(given, cotangent))

        steps = [step(unroll) for unroll in UNROLLED if unroll <= len(problem.x)]
        return min(steps, key=_seconds) if len(steps) > 1 else steps[0], lambda result: self.read(*result)


def _seconds(call: Callable[[], Any]) -> float:
    """The best of five calls, after one that compiles."""
    found = []
    for _ in range(6):
        begun = time.perf_counter()
        call()
        found.append(time.perf_counter() - begun)
    return min(found[1:])


class Flax(_OnJax):
    """`nnx.RNN` under `nnx.jit` and `nnx.value_and_grad`."""

    def layer(self, unroll: int = 1) -> Any:
        from flax import nnx

        make = {"rnn": nnx.SimpleCell, "gru": nnx.GRUCell, "lstm": nnx.OptimizedLSTMCell}[self.kind]
        cell = make(*self.sizes, rngs=nnx.Rngs(0))
        for name, (place, transposed) in self.places().items():
            weight = self.weights[name].detach()
            part, which = place
            getattr(getattr(cell, part), which)[...] = _array(weight.T.contiguous() if transposed else weight)
        return nnx.RNN(cell, time_major=True, return_carry=True, unroll=unroll)

    def places(self) -> dict[str, tuple[tuple[str, str], bool]]:
        """The cell's name of a weight -> (where flax has it, whether transposed)."""
        bias = "dense_h" if self.kind == "lstm" else "dense_i"
        return {
            "U": (("dense_i", "kernel"), True),
            "W": (("dense_h", "kernel"), True),
            "b": ((bias, "bias"), False),
        }

    def parameters(self) -> Any:
        from flax import nnx

        return nnx.split(self.layer())[1]

    def forward(self, parameters: Any, x: Any, state: Any, unroll: int = 1) -> tuple[Any, Any]:
        from flax import nnx

        return self.run(nnx.merge(self._graphs[unroll], parameters), x, state)

    @cached_property
    def _graphs(self) -> dict[int, Any]:
        from flax import nnx

        return {unroll: nnx.split(self.layer(unroll))[0] for unroll in UNROLLED}

    @staticmethod
    def run(rnn: Any, x: Any, state: Any) -> tuple[Any, Any]:
        swap = isinstance(state, tuple)
        final, outputs = rnn(x, initial_carry=state[::-1] if swap else state)
        return outputs, (final[::-1] if swap else final)

    def gradients(self, parameters: Any) -> dict[str, Any]:
        found = {}
        for name, ((part, which), transposed) in self.places().items():
            value = parameters["cell"][part][which][...]
            found[name] = value.T if transposed else value
        return found

    def prepared(self, problem: Problem) -> tuple[Callable[[], Any], Callable[[Any], Made]]:
        from flax import nnx

        rnn, given, cotangents = self.layer(), self.given(problem), list(map(_array, problem.cotangents))

        @nnx.jit
        def step(rnn: Any, x: Any, state: Any, cotangents: Any) -> Any:
            def loss(rnn: Any, x: Any, state: Any) -> Any:
                return _weighed(Flax.run(rnn, x, state), cotangents)

            return nnx.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(rnn, x, state)

        return (
            lambda: jax.block_until_ready(step(rnn, *given, cotangents)),
            lambda result: self.read(result[0][1], result[1]),
        )


class FlaxFast(Flax):
    """The same layer, split once, as a function of arrays."""

    def prepared(self, problem: Problem) -> tuple[Callable[[], Any], Callable[[Any], Made]]:
        return self.fast(problem)


class Equinox(_OnJax):
    """`eqx.nn`'s cell in a `lax.scan`, over the rows by `vmap`, under `eqx.filter_jit`."""

    def parameters(self) -> Any:
        import equinox as eqx

        make = {"gru": eqx.nn.GRUCell, "lstm": eqx.nn.LSTMCell}[self.kind]
        cell = make(*self.sizes, key=jax.random.key(0))
        U, W, b = (_array(self.weights[name]) for name in ("U", "W", "b"))
        cell = eqx.tree_at(lambda c: (c.weight_ih, c.weight_hh, c.bias), cell, (U, W, b))
        return eqx.tree_at(lambda c: c.bias_n, cell, jnp.zeros(self.sizes[1])) if self.kind == "gru" else cell

    def gradients(self, parameters: Any) -> dict[str, Any]:
        return {"U": parameters.weight_ih, "W": parameters.weight_hh, "b": parameters.bias}

    def forward(self, parameters: Any, x: Any, state: Any, unroll: int = 1) -> tuple[Any, Any]:
        def step(state: Any, x_t: Any) -> tuple[Any, Any]:
            state = parameters(x_t, state)
            return state, state[0] if isinstance(state, tuple) else state

        def row(x: Any, state: Any) -> tuple[Any, Any]:
            final, outputs = jax.lax.scan(step, state, x, unroll=unroll)
            return outputs, final

        return jax.vmap(row, in_axes=(1, 0), out_axes=(1, 0))(x, state)

    def prepared(self, problem: Problem) -> tuple[Callable[[], Any], Callable[[Any], Made]]:
        import equinox as eqx

        given = (self.parameters(), *self.given(problem))
        cotangents = list(map(_array, problem.cotangents))

        @eqx.filter_jit
        def step(given: Any, cotangents: Any) -> Any:
            @eqx.filter_value_and_grad(has_aux=True)
            def loss(given: Any) -> Any:
                return _weighed(self.forward(*given), cotangents)

            return loss(given)

        return (
            lambda: jax.block_until_ready(step(given, cotangents)),
            lambda result: self.read(result[0][1], result[1]),
        )


class EquinoxFast(Equinox):
    """The scan around the rows, as a function of arrays."""

    def forward(self, parameters: Any, x: Any, state: Any, unroll: int = 1) -> tuple[Any, Any]:
        def step(state: Any, x_t: Any) -> tuple[Any, Any]:
            state = jax.vmap(parameters)(x_t, state)
            return state, state[0] if isinstance(state, tuple) else state

        final, outputs = jax.lax.scan(step, state, x, unroll=unroll)
        return outputs, final

    def prepared(self, problem: Problem) -> tuple[Callable[[], Any], Callable[[Any], Made]]:
        return self.fast(problem)


# --- Keras ------------------------------------------------------------------------------------------------------------


class Keras(Layer):
    """Keras's layer on its torch backend."""

    @property
    def order(self) -> tuple[int, ...]:
        """Its gates by ours, and ours by its: r z n and z r h; i f g o are the same."""
        return {"rnn": (0,), "gru": (1, 0, 2), "lstm": (0, 1, 2, 3)}[self.kind]

    def _gates(self, weight: Tensor) -> Tensor:
        parts = weight.chunk(len(self.order))
        return torch.cat([parts[i] for i in self.order])

    @cached_property
    def layer(self) -> Any:
        os.environ["KERAS_BACKEND"] = "torch"  # read once, when keras is imported
        import keras

        if keras.backend.backend() != "torch":
            raise RuntimeError(f"keras was imported before, on {keras.backend.backend()}")
        layers = keras.layers
        make = {"rnn": layers.SimpleRNN, "gru": layers.GRU, "lstm": layers.LSTM}[self.kind]
        layer = make(self.sizes[1], return_sequences=True, return_state=True)
        layer.build((None, None, self.sizes[0]))
        own = {name: self._gates(weight.detach()) for name, weight in self.weights.items()}
        bias = torch.stack([own["b"], own["c"]]) if self.kind == "gru" else own["b"]
        layer.set_weights([np.ascontiguousarray(w.numpy()) for w in (own["U"].T, own["W"].T, bias)])
        return layer

    def inference(self, problem: Problem) -> Callable[[], Any]:
        run = self._run(problem)[0]

        def call() -> Any:
            with torch.no_grad():
                return run()

        return call

    def _run(self, problem: Problem) -> tuple[Callable[[], list[Tensor]], list[Tensor]]:
        """(forward: [outputs, final state …], what is differentiated)."""
        x = problem.x.detach().transpose(0, 1).contiguous().requires_grad_()
        states = pytree.tree_leaves(problem.state)
        variables = [v.value for v in self.layer.trainable_variables]
        return lambda: list(self.layer(x, initial_state=states)), [x, *states, *variables]

    def prepared(self, problem: Problem) -> tuple[Callable[[], Any], Callable[[Any], Made]]:
        run, leaves = self._run(problem)
        outputs, *final = problem.cotangents
        cotangents = [outputs.transpose(0, 1).contiguous(), *final]

        def step() -> Any:
            made = run()
            return made, torch.autograd.grad(made, leaves, cotangents)

        def read(result: Any) -> Made:
            (outputs, *final), (x, *states, U, W, bias) = result
            found = {"U": self._gates(U.T), "W": self._gates(W.T)}
            if self.kind == "gru":
                found |= {"b": self._gates(bias[0]), "c": self._gates(bias[1])}
            else:
                found["b"] = self._gates(bias)
            rest = (found[name] for name in self.weights)
            return [outputs.transpose(0, 1), *final], (x.transpose(0, 1), *states, *rest)

        return step, read
