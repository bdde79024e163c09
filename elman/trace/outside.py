"""Tracing steps out of whatever surrounds the call: torch.func transforms, compilation, inference mode, autocast."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import torch
from torch._C._autograd import _top_saved_tensors_default_hooks
from torch._C._functorch import is_functorch_wrapped_tensor, peek_interpreter_stack
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch._guards import tracing
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.autograd.forward_ad import _set_fwd_grad_enabled
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.utils import parametrize
from torch.utils import checkpoint
from torch.utils._python_dispatch import _disable_current_modes

from elman.precision import EXACT, of_products, products_in
from elman.trace.batches import unbatched
from elman.trace.watch import GLOBAL_HOOKS, of_users

_P = ParamSpec("_P")
_T = TypeVar("_T")


class _Alone:
    """A lock that one thread holds, as often as it likes. Garbage collection waits until nobody holds it.

    A trace makes some hundred thousand objects that stay, and looking through them again and again for garbage was a
    fifth of its time. What is asked to happen at a collection (`gc.callbacks`) does not happen in the middle of a step.
    """

    def __init__(self) -> None:
        self._lock, self._depth, self._collects = threading.RLock(), 0, False

    def __enter__(self) -> None:
        self._lock.acquire()
        if not self._depth:
            self._collects = gc.isenabled()
            gc.disable()
        self._depth += 1

    def __exit__(self, *error: object) -> None:
        self._depth -= 1
        if not self._depth and self._collects:
            gc.enable()
        self._lock.release()

    def after_fork(self) -> None:
        """In a child, which has not the thread that might let go."""
        if self._depth and self._collects:
            gc.enable()
        self._lock, self._depth = threading.RLock(), 0


# Whoever traces, or derives something from a trace, holds it: tracing touches what belongs to the whole process
# (PyTorch's switches, its patches of torch.nn.Module), and notes of what is derived are written on graphs that programs
# share. What is already there is read without it: a dict's entry or an attribute is there whole, or not yet.
LOCK = _Alone()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=LOCK.after_fork)


def locked(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """The function, run by one thread at a time."""

    @functools.wraps(function)
    def holding(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        with LOCK:
            return function(*args, **kwargs)

    return holding


class derived(functools.cached_property[_T]):
    """A property that is worked out when it is first needed, by one thread at a time, and then is an attribute."""

    if not TYPE_CHECKING:

        def __get__(self, instance: Any, owner: Any = None) -> Any:
            with LOCK:
                return super().__get__(instance, owner)


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


@contextlib.contextmanager
def _kept() -> Iterator[None]:
    """Inside, a checkpoint in a step keeps what it computes: later the weights that it was computed from are gone."""
    hook, checkpoint._checkpoint_hook = checkpoint._checkpoint_hook, contextlib.nullcontext  # type: ignore[misc,assignment]
    try:
        yield
    finally:
        checkpoint._checkpoint_hook = hook  # type: ignore[misc]


@contextlib.contextmanager
def _uncached() -> Iterator[None]:
    """Inside, parametrized weights are computed anew, and not kept."""
    before, parametrize._cache_enabled = parametrize._cache_enabled, 0
    try:
        yield
    finally:
        parametrize._cache_enabled = before


@contextlib.contextmanager
def _untracked() -> Iterator[None]:
    """Inside, PyTorch's own trackers do not see which modules are called."""
    before = [(hooks, dict(hooks)) for hooks in GLOBAL_HOOKS]
    try:
        for hooks, every in before:
            hooks.clear()
            hooks.update(of_users(every))
        yield
    finally:
        for hooks, every in before:
            hooks.clear()
            hooks.update(every)


@contextlib.contextmanager
def outside() -> Iterator[None]:
    """Inside, one thread at a time, PyTorch is in its ordinary state: no transform or mode, gradients, no autocast, and
    no product in fewer bits than its factors have."""
    with LOCK, contextlib.ExitStack() as stack:
        stack.enter_context(tracing(None))
        stack.enter_context(unset_fake_temporarily())
        stack.enter_context(_disable_current_modes())
        if peek_interpreter_stack() is not None:
            stack.enter_context(temporarily_clear_interpreter_stack())
        stack.enter_context(unbatched())
        # A checkpoint around the call packs what autograd saves; what a trace saves is no part of it.
        if _top_saved_tensors_default_hooks(False) is not None:
            stack.enter_context(saved_tensors_hooks(_same, _same))
        if torch.is_anomaly_enabled():  # it looks for NaN in fake tensors
            stack.enter_context(torch.autograd.set_detect_anomaly(False))
        if parametrize._cache_enabled:  # fake weights would stay in it
            stack.enter_context(_uncached())
        stack.enter_context(_kept())
        if any(GLOBAL_HOOKS):
            stack.enter_context(_untracked())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        # Dual numbers of a user's are none of the trace's, and those of a tangent's step are pushed by that alone.
        stack.enter_context(_set_fwd_grad_enabled(False))
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        for backend, precision in of_products.items():
            if precision() not in EXACT:
                stack.enter_context(products_in("ieee", backend))
        yield


def is_plain(value: torch.Tensor) -> bool:
    """Whether a tensor holds numbers of its own that can be read: not fake, not wrapped by a transform."""
    return (
        type(value) in (torch.Tensor, torch.nn.Parameter)
        and not is_functorch_wrapped_tensor(value)
        and value.device.type != "meta"
    )


def readable(value: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """The tensor itself if its numbers can be read, else one of the same shape with numbers made up."""
    if is_plain(value):
        return value.detach()
    size = tuple(int(s) for s in value.shape)
    if value.dtype.is_floating_point:
        return (torch.randn(size, generator=generator, dtype=torch.float64) * 0.1).to(value.dtype)
    return torch.zeros(size, dtype=value.dtype)
