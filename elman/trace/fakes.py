"""Fake tensors for ports, with one symbolic batch size.

With sympy behind it: imported where a trace begins, since a program that only imports elman should not wait for it.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch._guards import GuardSource, Source
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, SLoc

from elman.circuit.form import InPort

# The batch size that the tracer pretends to see where it needs a number: a prime that is nobody's width.
PRETENDED_BATCH = 1187


class _Batch(Source):
    """Where the symbolic batch size comes from, in the words of the tracer."""

    @property
    def _name_template(self) -> str:
        return "batch"

    @functools.cached_property
    def name(self) -> str:
        return "batch"

    @functools.cached_property
    def guard_source(self) -> GuardSource:
        return GuardSource.CONSTANT


class _Placeless(ShapeEnv):
    """It notes what was decided by the batch size and not where: to find a line, PyTorch imports what exports models,
    which takes half a second."""

    def _get_stack_summary(self, *args: Any, **kwargs: Any) -> Any:
        return SLoc(None, None), ""


class _Mode(FakeTensorMode):
    """The mode without what keeps its operations from being compiled: nobody compiles a trace."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.dispatch(func, types, args, kwargs or {})


class Fakes:
    """Fake tensors for ports, with one symbolic batch size.

    places: note for each decision by the batch size at which line it was taken.
    """

    def __init__(self, places: bool = False) -> None:
        kind = ShapeEnv if places else _Placeless
        self.env = kind(allow_scalar_outputs=False, allow_dynamic_output_shape_ops=False)
        self.mode = _Mode(shape_env=self.env, allow_non_fake_inputs=True)
        # Hardly anything is met twice, and PyTorch would keep it after the trace.
        self.mode.cache_enabled = False
        source = _Batch()
        symbol = self.env.create_symbol(PRETENDED_BATCH, source, DimDynamic.DYNAMIC)
        self.batch = self.env.create_symintnode(symbol, hint=PRETENDED_BATCH, source=source)

    def like(self, port: InPort) -> torch.Tensor:
        size = ((self.batch,) if port.rows else ()) + port.shape
        with self.mode:
            return torch.empty(size, dtype=port.dtype, device=port.device)
