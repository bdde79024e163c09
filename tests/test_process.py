"""What belongs to the whole process: several threads, PyTorch's switches, generators and modes."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import nn
from torch._C._functorch import peek_interpreter_stack
from torch.fx import _symbolic_trace

import elman
from elman.execute import Program
from elman.models import LanguageModel
from elman.recurrent import calls
from elman.trace import joint
from elman.trace.call import skeleton_of, swapped
from elman.trace.outside import LOCK
from tests.pairwise import with_more

WAIT = 30  # seconds, for what never takes one


class Plain(nn.Module):
    """A cell of its own shape: no other test has traced it."""

    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.hidden_size = width
        self.W, self.U = nn.Linear(3, width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.W(x) + self.U(h))


class Dropped(Plain):
    def forward(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        return super().forward(nn.functional.dropout(x, 0.5), h + 0.1 * torch.randn_like(h))


class Convolved(Plain):
    def forward(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        taps = torch.ones(1, 1, 3, dtype=h.dtype)
        return nn.functional.conv1d(super().forward(x, h)[:, None], taps, padding=1)[:, 0] / 3


class Failing(Plain):
    def forward(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        made = super().forward(x, h)
        return made * 2 if bool(made.sum() > 0) else made


class Raising(Plain):
    def forward(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("a mistake of the user's")


class Stopping(Plain):
    def forward(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        if type(x) is not torch.Tensor:  # a fake one
            raise KeyboardInterrupt
        return super().forward(x, h)


class Poisson(Plain):
    def forward(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        return super().forward(x, h) + torch.poisson(torch.ones_like(h))


def looped(cell: nn.Module, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    made = []
    for t in range(len(x)):
        h = cell(x[t], h)
        made.append(h)
    return torch.stack(made)


def process() -> dict[str, Any]:
    """What a library must leave as it was."""
    return {
        "dtype": torch.get_default_dtype(),
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "cpu generator": torch.get_rng_state().tolist(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "oneDNN": (
            torch.backends.mkldnn.enabled, torch.backends.mkldnn.deterministic, torch.backends.mkldnn.allow_tf32,
            torch.backends.mkldnn.fp32_precision,
        ),
        "NNPACK": torch._C._get_nnpack_enabled(),
        "warnings": list(warnings.filters),
        "logging": {
            name: (logger.level, logger.disabled, list(logger.handlers), list(logger.filters))
            for name, logger in logging.Logger.manager.loggerDict.items()
            if isinstance(logger, logging.Logger)
        },
        "logging everywhere": logging.root.manager.disable,
        "transforms": peek_interpreter_stack(),
        "fx": _symbolic_trace.is_fx_tracing(),
        "call": nn.Module.__call__,
        "getattr": nn.Module.__getattr__,
        "autocast": torch.is_autocast_enabled("cpu"),
        "dispatch": torch._C._len_torch_dispatch_stack(),
        "functions": torch._C._len_torch_function_stack(),
        "garbage": (gc.isenabled(), gc.get_threshold()),
    }  # fmt: skip


def differences(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    """New loggers come with modules that are imported when they are needed."""
    after["logging"] = {name: after["logging"][name] for name in before["logging"]}
    return {name for name in before if before[name] != after[name]}


@contextlib.contextmanager
def no_seeds(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Every seed that is given to a device's generator, or to all of them."""
    seeds: list[Any] = []
    with monkeypatch.context() as patch:
        for module, name in (
            (torch, "manual_seed"), (torch.random, "manual_seed"), (torch.cuda, "manual_seed_all"),
            (torch.cuda, "manual_seed"), (torch.mps, "manual_seed"), (torch.xpu, "manual_seed_all"),
        ):  # fmt: skip
            patch.setattr(module, name, seeds.append)
        yield seeds


@pytest.mark.parametrize(
    "kind", with_more([Dropped, Convolved, Raising, Stopping], [Plain, Failing, Poisson])
)
def test_nothing_of_the_process_stays_changed(kind: type[Plain], monkeypatch: pytest.MonkeyPatch) -> None:
    layer = elman.Recurrent(kind())
    x, h = torch.randn(4, 2, 3), torch.zeros(2, 5)
    elman.trace(Plain(6), x[0], torch.zeros(2, 6))  # what is imported lazily is there
    before = process()
    # With its own start, and with a state. One cell that can be traced is verified, every way that it can be run.
    states = (None,) if kind is Convolved else (None, h)
    with no_seeds(monkeypatch) as seeds:
        for state in states:
            try:
                if kind is Dropped:
                    elman.trace(layer.cell, x[0], state)
                else:
                    elman.verify(layer.cell, x[0], state, engines=["reference"])
            except (elman.ElmanError, KeyboardInterrupt):
                assert kind in (Failing, Raising, Stopping, Poisson)
            else:
                assert kind in (Plain, Dropped, Convolved)
    assert differences(before, process()) == set()
    assert not seeds
    if kind in (
        Plain,
        Convolved,
    ):  # derivatives are derived at the first call that wants them, and need no generator
        layer(x)[0].sum().backward()
        assert differences(before, process()) == set()


def test_cells_are_traced_where_flags_are_frozen() -> None:
    """As PyTorch's own helpers for tests leave them."""
    frozen = torch.backends.__allow_nonbracketed_mutation_flag  # type: ignore[attr-defined]
    try:
        torch.backends.disable_global_flags()
        cell, x, h = Convolved(7), torch.randn(4, 2, 3), torch.zeros(2, 7)
        assert torch.allclose(elman.Recurrent(cell)(x, h)[0], looped(cell, x, h), atol=1e-6)
    finally:
        torch.backends.__allow_nonbracketed_mutation_flag = frozen  # type: ignore[attr-defined]


# --- threads ------------------------------------------------------------------------------------------------------


def test_two_threads_trace_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One is stopped in the middle of a trace until the other has come to the same place, or waits for it."""
    inside, both = [], threading.Barrier(2)
    original = joint._named

    def meet(*args: Any, **kwargs: Any) -> Any:
        inside.append(threading.get_ident())
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(0.3)  # broken where one thread waits for the other to be done, as it should
        assert set(inside) == {threading.get_ident()}, "two traces at once"
        made = original(*args, **kwargs)
        inside.remove(threading.get_ident())
        return made

    monkeypatch.setattr(joint, "_named", meet)
    before = process()

    def work(width: int) -> None:
        torch.manual_seed(width)
        cell, x, h = Plain(width), torch.randn(4, 2, 3), torch.zeros(2, width)
        expected = looped(cell, x, h)
        wanted = torch.autograd.grad(expected.square().sum(), list(cell.parameters()))
        made = elman.Recurrent(cell)(x, h)[0]
        found = torch.autograd.grad(made.square().sum(), list(cell.parameters()))
        for ours, theirs in zip((made, *found), (expected, *wanted), strict=True):
            assert torch.allclose(ours, theirs, atol=1e-5)

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(work, width) for width in (8, 9)]:
            done.result(WAIT)
    assert differences(before, process()) <= {"cpu generator"}


def test_one_layer_in_two_threads() -> None:
    """Calls of two widths from two threads, in turns: what one has learnt is never taken for the other's."""
    layer = elman.Recurrent(Wide())
    inputs = [torch.randn(4, 2, 3), torch.randn(4, 2, 3, dtype=torch.float64)]
    expected = [looped(layer.cell, x, torch.zeros(2, 3, dtype=x.dtype)) for x in inputs]
    turns = threading.Barrier(2)

    def work(which: int) -> None:
        for _ in range(6):
            turns.wait(WAIT)
            made = layer(inputs[which], torch.zeros(2, 3, dtype=inputs[which].dtype))[0]
            assert torch.allclose(made, expected[which], atol=1e-5)

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(work, which) for which in (0, 1)]:
            done.result(WAIT)


@pytest.mark.parametrize("single", [False, True], ids=["calls", "steps"])
def test_what_a_call_goes_by_is_its_own(single: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Amid a call, another thread makes one of other sizes, which is the layer's latest then."""
    layer, amid = elman.Recurrent(Wide(), batch_first=False), []
    call = layer.step if single else layer
    holder, name = (Program, "step") if single else (calls, "apply")
    run = getattr(holder, name)

    def disturbed(*given: Any) -> Any:
        results = run(*given)
        if amid:
            amid.pop()()
        return results

    monkeypatch.setattr(holder, name, disturbed)
    many, few = ((torch.randn(*([] if single else [4]), B, 3), torch.zeros(B, 3)) for B in (3, 2))
    with torch.no_grad():
        first = call(*many)[0].clone()
        for _ in range(3):
            amid.append(lambda: call(*few))
            assert torch.equal(call(*many)[0], first)
            assert call(*few)[0].shape == few[0].shape
            amid.clear()


def test_a_parameter_that_two_threads_use_for_the_first_time() -> None:
    """PyTorch waits for ever where one enters a Function and the other makes the gradient's place: that is kept."""
    layer = elman.Recurrent(Plain(), batch_first=False)
    with torch.no_grad():
        layer(torch.randn(4, 2, 3))
    for parameter in layer.parameters():
        parameter.view_as(parameter).grad_fn.next_functions[0][0].metadata["seen"] = True
        assert "seen" in parameter.view_as(parameter).grad_fn.next_functions[0][0].metadata


class Wide(nn.Module):
    def forward(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x - 0.5 * h)


def test_what_a_call_learns_is_its_own() -> None:
    """Between a call and what it remembers of it, another thread makes a call of another dtype."""
    layer = elman.Recurrent(Wide())
    x, h = torch.randn(4, 2, 3), torch.zeros(2, 3)
    layer(x, h)
    layer(x.double(), h.double())
    layer(x, h)
    mine = layer._calls.latest
    layer(x.double(), h.double())  # the latest call is no longer the one with x
    assert layer._calls._bound.latest[1].binding is not mine
    layer(x, h)
    assert layer._calls.latest is mine


class Locked(Plain):
    """A cell that cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


@pytest.mark.parametrize("make", [Plain, Locked, lambda: nn.RNNCell(3, 5)])
def test_a_cell_is_never_swapped_in_place(
    make: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread that uses the cell at any moment of a trace finds its own parameters."""
    cell = make()
    x, h = torch.randn(2, 3), torch.zeros(2, 5)
    own = list(cell.parameters())
    moments = []

    @contextlib.contextmanager
    def watched(module: nn.Module, tensors: Any) -> Iterator[None]:
        with swapped(module, tensors):
            moments.append(all(a is b for a, b in zip(cell.parameters(), own, strict=True)))
            yield

    for name in ("elman.trace.call", "elman.trace.initial"):
        monkeypatch.setattr(sys.modules[name], "swapped", watched)
    elman.trace(cell, x)
    layer = elman.Recurrent(cell)
    layer(x[None], h)[0].sum().backward()
    assert moments
    assert all(moments)
    assert all(p.grad is not None for p in own)


def test_the_copy_of_a_cell_that_cannot_be_copied() -> None:
    cell = Locked()
    cell.inner = nn.ModuleList([nn.Linear(2, 2)])
    cell.hook = cell.inner[0].forward  # a method of a module that is copied
    skeleton = skeleton_of(cell)
    assert type(skeleton) is Locked
    assert skeleton.lock is cell.lock
    assert not {id(m) for m in skeleton.modules()} & {id(m) for m in cell.modules()}
    assert skeleton.hook.__self__ is skeleton.inner[0]


@pytest.mark.parametrize("collects", [True, False])
def test_garbage_is_not_collected_in_the_middle_of_a_step(collects: bool) -> None:
    """And what somebody does at every collection (here it asks for the time) is not the step's doing."""
    asked = []

    class Cyclic(Plain):
        def forward(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
            for _ in range(100):
                ring: list[Any] = []
                ring.append(ring)
            return super().forward(x, h)

    def clock(phase: str, info: dict[str, int]) -> None:
        asked.append(time.perf_counter())

    threshold = gc.get_threshold()
    gc.callbacks.append(clock)
    gc.set_threshold(50, *threshold[1:])
    gc.enable() if collects else gc.disable()
    try:
        elman.Recurrent(Cyclic())(torch.randn(4, 2, 3))
        assert gc.isenabled() is collects
    finally:
        gc.callbacks.remove(clock)
        gc.set_threshold(*threshold)
        gc.enable()
    assert bool(asked) is collects


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_fork_while_another_thread_traces() -> None:
    """A child process has the lock, and not the thread that would let go of it: there it is free."""
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with LOCK:
            held.set()
            done.wait(WAIT)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert held.wait(WAIT)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of Python: a fork beside threads
            child = os.fork()
        if child == 0:
            threading.Timer(WAIT / 2, os._exit, (1,)).start()
            with LOCK:
                collects = gc.isenabled()
            os._exit(0 if gc.isenabled() and not collects else 2)
        assert os.waitpid(child, 0)[1] == 0
    finally:
        done.set()
        thread.join(WAIT)


# --- writing ------------------------------------------------------------------------------------------------------


def test_writing_leaves_model_and_generator_alone() -> None:
    model = LanguageModel(11, "gru", hidden=6).train()
    model.layers[0].eval()  # frozen by its owner
    modes = [module.training for module in model.modules()]
    before = torch.get_rng_state()
    symbols = model.generate_iter([1, 2], 20, seed=3)
    for _ in range(3):
        next(symbols)
        assert [module.training for module in model.modules()] == modes
        assert torch.equal(torch.get_rng_state(), before)
    del symbols
    assert [module.training for module in model.modules()] == modes


def test_writing_that_fails_leaves_model_and_generator_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = LanguageModel(11, "gru", hidden=6).train()
    before = torch.get_rng_state()

    def fail(*args: Any, **kwargs: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(elman.Recurrent, "forward", fail)
    with pytest.raises(MemoryError):
        next(model.generate_iter([1, 2], 20, seed=3))
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)


def test_other_numbers_are_no_other_recurrence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing at another temperature, or with another top_k or top_p, traces nothing."""
    from elman.recurrent import programs

    model = LanguageModel(11, "gru", hidden=6)
    model.generate([1, 2], 5, seed=1, temperature=0.9, top_k=3, top_p=0.7)
    monkeypatch.setattr(programs, "trace", None)
    texts = {
        tuple(model.generate([1, 2], 12, seed=1, temperature=t, top_k=k, top_p=p))
        for t, k, p in ((0.9, 3, 0.7), (0.2, 5, 0.7), (1.5, 9, 0.9))
    }
    assert len(texts) > 1


@pytest.mark.parametrize(
    "said", [{}, {"MALLOC_TRIM_THRESHOLD_": "131072"}], ids=["", "where the user says so"]
)
def test_training_by_command_keeps_memory_that_was_freed(said: dict[str, str]) -> None:
    """48 MB that are filled again and again: the C library gives them back each time, and each page is a fault."""
    code = (
        "import resource\n"
        "from elman.app.process import keep_freed_memory\n"
        "kept = keep_freed_memory()\n"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "def fill(): return bytearray(48_000_000)\n"  # by malloc, as PyTorch's tensors are
        "for _ in range(5): fill()\n"  # until all holes are large enough
        "before = faults()\n"
        "for _ in range(3): fill()\n"
        "print(kept, faults() - before)"
    )
    kept_out = {
        name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))
    }
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**kept_out, **said}, check=True
    )
    kept, faults = done.stdout.split()
    if kept == "False" and not said:
        pytest.skip("the C library is another one")
    # Pages of 4 kB, or of 64 kB where the machine has such ones.
    assert (int(faults) < 300) is (kept == "True") is not said, done.stdout
