"""`lax.scan` under jit, with U x + b before the scan: what JAX users write for a recurrent layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils import _pytree as pytree

from bench.form import JAX, Contestant, Made, Problem

try:
    import jax
    from jax import numpy as jnp
except ImportError:  # `pip install elman[bench]` brings it
    jax: Any = None
    jnp: Any = None

Tensor = torch.Tensor
Step = Callable[[Any, Any, Any], tuple[Any, Any]]


def version() -> str | None:
    """Of jax; None if it is not installed."""
    return None if jax is None else jax.__version__


# --- one step: (weights, state, U x + b) -> (state, output) -----------------------------------------------------------


def tanh(weights: Any, h: Any, a: Any) -> tuple[Any, Any]:
    h = jnp.tanh(a + h @ weights["W"].T)
    return h, h


def gru(weights: Any, h: Any, a: Any) -> tuple[Any, Any]:
    x_r, x_z, x_n = jnp.split(a, 3, axis=-1)
    h_r, h_z, h_n = jnp.split(h @ weights["W"].T + weights["c"], 3, axis=-1)
    r, z = jax.nn.sigmoid(x_r + h_r), jax.nn.sigmoid(x_z + h_z)
    n = jnp.tanh(x_n + r * h_n)
    h = n + z * (h - n)
    return h, h


def lstm(weights: Any, state: Any, a: Any) -> tuple[Any, Any]:
    h, c = state
    i, f, g, q = jnp.split(a + h @ weights["W"].T, 4, axis=-1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    h = jax.nn.sigmoid(q) * jnp.tanh(c)
    return (h, c), h


# --- the contestant ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Jaxed(Contestant):
    """A shipped cell in JAX. What is ready to be timed holds JAX's own arrays and waits for every result; compilation
    happens at its first call. The products run in the full precision of float32, JAX's default on CPUs."""

    step: Step
    weights: dict[str, Tensor]
    name: str = JAX

    def training(self, problem: Problem) -> Callable[[], Made]:
        """The gradients come from one `jax.vjp`, which `value_and_grad` is made of: the cotangents are given."""
        given, cotangents = self._given(problem), _arrays(problem.cotangents)
        single = isinstance(problem.state, Tensor)
        cotangent = (cotangents[0], cotangents[1] if single else tuple(cotangents[1:]))
        run = jax.jit(lambda given, cotangent: _with_gradients(self.step, given, cotangent))

        def call() -> Made:
            (outputs, final), (weights, x, state) = jax.block_until_ready(run(given, cotangent))
            gradients = (x, *jax.tree.leaves(state), *(weights[name] for name in self.weights))
            return [outputs, *jax.tree.leaves(final)], gradients

        return call

    def inference(self, problem: Problem) -> Callable[[], Any]:
        given, run = self._given(problem), jax.jit(partial(_forward, self.step))
        return lambda: jax.block_until_ready(run(*given))

    def _given(self, problem: Problem) -> tuple[Any, Any, Any]:
        return _arrays((self.weights, problem.x, problem.state))


def _forward(step: Step, weights: Any, x: Any, state: Any) -> tuple[Any, Any]:
    a = x @ weights["U"].T + weights["b"]
    final, outputs = jax.lax.scan(partial(step, weights), state, a)
    return outputs, final


def _with_gradients(step: Step, given: Any, cotangent: Any) -> Any:
    made, pull = jax.vjp(partial(_forward, step), *given)
    return made, pull(cotangent)


def _arrays(tensors: Any) -> Any:
    """Tensors, nested, as JAX's arrays of the same dtype. Without a word to JAX it would turn float64 into float32."""
    if any(leaf.dtype == torch.float64 for leaf in pytree.tree_leaves(tensors)):
        jax.config.update("jax_enable_x64", True)
    return pytree.tree_map(lambda tensor: jnp.array(tensor.detach().numpy()), tensors)
