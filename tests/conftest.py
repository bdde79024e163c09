"""What holds for every test: seeds, threads, hypothesis profiles, and no traces left for the next test."""

# ruff: noqa: E402
from __future__ import annotations

import gc

# Importing PyTorch, and tracing, make millions of objects that stay: looking through them for garbage as often as
# Python does by itself was a fifth of the tests' time.
gc.set_threshold(100_000, 20, 20)

import contextlib
import logging
import os
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from torch import nn

from elman.caches import Recent
from elman.recurrent import programs
from tests import pairwise
from tests.cases import CASES, SELDOM

SEED = 0

# torch.manual_seed tells devices that are not there as well, and keeps for them a traceback of who did: a millisecond.
ACCELERATED = torch.accelerator.is_available()

# `make test` runs a process for each core, and the number of threads changes the last bits of a product. A test that
# is about threads sets their number itself and puts it back.
THREADS = 1
torch.set_num_threads(THREADS)

# PyTorch keeps a journal of what it does with symbolic sizes; with pytest listening, that is a third of every trace.
logging.getLogger("torch.__trace").setLevel(logging.CRITICAL)

# Tests meet more cells than a program does: none is traced again because others have been met in between.
programs._SHARED.limit = 1024

# Scratch memory of the native engine is full of NaN at the beginning of every call: a value that is read before it is
# written shows in the result.
with contextlib.suppress(ImportError):  # no compiler was there when elman was installed
    from elman import _native

    _native.poison(True)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--conformance", action="store_true", help="run everything, grids as a whole (make conformance)"
    )


def pytest_configure(config: pytest.Config) -> None:
    pairwise.exhaustive = config.getoption("conformance")


@pytest.hookimpl(trylast=True)  # of what -k and -m have chosen: a test that is named runs
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    out: set[pytest.Item] = set()
    if not config.getoption("conformance"):
        out = pairwise.seldom(items, CASES, SELDOM)
        out |= pairwise.left_out([item for item in items if item not in out])
    if out:
        config.hook.pytest_deselected(items=list(out))
        items[:] = [item for item in items if item not in out]
    if hasattr(config, "workerinput"):  # one of several processes
        items.sort(key=_place)


def _place(item: pytest.Item) -> tuple[bool, str]:
    """Tests of one cell lie side by side, so that mostly one process alone traces it; what takes long comes first."""
    call = getattr(item, "callspec", None)
    said = () if call is None else (call.params.get("case"), call.params.get("name"))
    cells = [str(one) for one in said if str(one) in CASES]
    return item.get_closest_marker("slow") is None, cells[0] if cells else ""


def pytest_collection() -> None:
    """What is imported stays: nothing of it is garbage."""
    gc.disable()


def pytest_collection_finish() -> None:
    """And later collections of garbage need not walk through all of PyTorch every time."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _compiles_anew(request: pytest.FixtureRequest) -> None:
    """PyTorch stops compiling a function that was compiled often, by whichever test: those of that name begin anew."""
    if "compil" in request.node.nodeid and "torch._dynamo" in sys.modules:
        sys.modules["torch._dynamo"].reset()


@pytest.fixture(scope="session", autouse=True)
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What commands keep for the next time, those in processes of their own too, goes where pytest cleans up."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("OMP_NUM_THREADS", str(THREADS))  # of what tests start
        yield


@pytest.fixture(scope="session", autouse=True)
def _short_samples() -> None:
    """Runs write a little at every look, and there are many of them."""
    if lm := sys.modules.get("elman.tasks.lm"):
        lm.SAMPLED = 8


class _TorchGenerator:
    """torch's default generator as hypothesis wants one.

    It is seeded anew for every example, so an example that failed fails again when it is shrunk and replayed.
    """

    def seed(self, seed: int) -> None:
        torch.default_generator.manual_seed(seed)

    def getstate(self) -> torch.Tensor:
        return torch.get_rng_state()

    def setstate(self, state: torch.Tensor) -> None:
        torch.set_rng_state(state)


_torch_generator = _TorchGenerator()  # hypothesis keeps a weak reference only
hypothesis.register_random(_torch_generator)

# The first trace in a process takes seconds, so a deadline per example would measure the order of the tests.
_common = {
    "deadline": None,
    "max_examples": 10,
    "print_blob": True,
    "suppress_health_check": [hypothesis.HealthCheck.too_slow],
}
hypothesis.settings.register_profile("dev", **_common)
hypothesis.settings.register_profile("ci", derandomize=True, **_common)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "dev")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """The same random numbers in a test whichever tests ran before it."""
    random.seed(SEED)
    np.random.seed(SEED)
    if ACCELERATED:
        torch.manual_seed(SEED)
    else:
        torch.default_generator.manual_seed(SEED)


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    """`torch.set_num_threads`, put back behind the test."""
    yield torch.set_num_threads
    torch.set_num_threads(THREADS)


@pytest.fixture(autouse=True)
def _leaves_no_trace() -> Iterator[None]:
    """A test that changes torch's global state and does not put it back would change the tests after it."""
    yield
    left = {
        "default dtype": (torch.get_default_dtype(), torch.float32),
        "grad mode": (torch.is_grad_enabled(), True),
        "inference mode": (torch.is_inference_mode_enabled(), False),
        "threads": (torch.get_num_threads(), THREADS),
        "deterministic algorithms": (torch.are_deterministic_algorithms_enabled(), False),
    }
    changed = {name: got for name, (got, expected) in left.items() if got != expected}
    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(True)
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(False)
    assert not changed, f"the test left torch changed: {changed}"


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Fresh memory is full of NaN, so a value that is read before it is written shows in the result."""
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = before


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the cells that are traced from here on; programs of other tests are not reused."""
    found: list[str] = []
    original = programs.trace

    def counted(cell: nn.Module, *args: Any, **kwargs: Any) -> Any:
        found.append(type(cell).__name__)
        return original(cell, *args, **kwargs)

    monkeypatch.setattr(programs, "trace", counted)
    monkeypatch.setattr(programs, "_SHARED", Recent(256))
    return found
