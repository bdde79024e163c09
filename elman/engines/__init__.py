"""Engines run the loop of a plan. The order in which they are tried stands here and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from elman.engines.base import Engine, LoopResult
from elman.engines.cuda import Cuda
from elman.engines.native import Native
from elman.engines.reference import Reference
from elman.engines.speed import machine
from elman.errors import InputError, NotSupported
from elman.plan.form import Loop

ENGINES: tuple[Engine, ...] = (Native(), Cuda(), Reference())

__all__ = ["ENGINES", "Engine", "LoopResult", "by_operations", "choose", "machine", "report", "sparing"]


def choose(wanted: str | Engine, loop: Loop, device: torch.device) -> Engine:
    """An engine, by itself or by its name, or for "auto" the first that supports the loop.

    Raises InputError for an unknown name, NotSupported if that engine cannot run this loop: it never falls back.
    """
    if wanted == "auto":
        return next(engine for engine in ENGINES if engine.supports(loop, device) is None)
    named = next((engine for engine in ENGINES if engine.name == wanted), None)
    engine = wanted if isinstance(wanted, Engine) else named
    if engine is None:
        names = ", ".join(f'"{each.name}"' for each in ENGINES)
        raise InputError(
            what="there is no such engine", where="engine=", got=wanted, expected=f'"auto", {names}'
        )
    if (reason := engine.supports(loop, device)) is not None:
        raise NotSupported(
            what=f"engine '{engine.name}' cannot run this loop: {reason}",
            where="engine=",
            mend='use engine="auto"',
        )
    return engine


def by_operations(wanted: str | Engine) -> Engine:
    """The engine that computes by PyTorch's operations alone. Raises NotSupported where another one is named."""
    able = next(engine for engine in ENGINES if engine.by_operations)
    if wanted in ("auto", able, able.name):
        return able
    raise NotSupported(
        what=f"engine '{wanted}' computes by itself, and a mode that is active, or the class of a tensor, wants to see "
        "operations of PyTorch's", where="engine=", mend='use engine="auto"',
    )  # fmt: skip


def sparing(wanted: str | Engine, device: torch.device) -> str | Engine:
    """The same choice for a call under a budget: none that "auto" takes holds memory from one call to the next."""
    if wanted == "auto" and any(engine.holds_memory and device.type == engine.kind for engine in ENGINES):
        return next(engine.name for engine in ENGINES if not engine.holds_memory and engine.kind is None)
    return wanted


def report(name: str | Engine, loops: Mapping[str, Loop], device: torch.device) -> str:
    """Which engine runs each of some loops (by what they are for), and why those before it do not."""
    reports = {what: _report(name, loop, device) for what, loop in loops.items()}
    if len(set(reports.values())) == 1:
        return next(iter(reports.values()))
    return "; ".join(f"{what}: {line}" for what, line in reports.items())


def _report(name: str | Engine, loop: Loop, device: torch.device) -> str:
    engine = choose(name, loop, device)
    if name != "auto":
        return engine.describe()
    passed = [other for other in ENGINES[: ENGINES.index(engine)] if other.kind in (None, device.type)]
    return engine.describe() + "".join(
        f" (not {each.name}: {each.supports(loop, device)})" for each in passed
    )
