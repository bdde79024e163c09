"""`python -m bench.gpu`: whole calls on a GPU, beside the plain loop and beside cuDNN, after checking that they agree.

Milliseconds, the least of some rounds in turns, each of which waits for the device.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree

import elman
from bench.contestants import ENTRIES, Entry, loop
from bench.form import LOOP, OURS
from bench.language import Torchs
from elman.data import windows
from elman.engines import cuda
from elman.models import LanguageModel
from elman.training import Training

Tensor = torch.Tensor
SHAPES = ((1, 64), (32, 256), (128, 1024))
CELLS, T, ROUNDS = ("gru", "lstm", "ln"), 100, 7
PLAIN, CUDNN = "elman, reference", "cuDNN"
Way = Callable[[], Any]


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("there is no GPU here")
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, T {T}")
    for name in CELLS:
        for B, H in SHAPES:
            ways, taken = contest(ENTRIES[name], B, H)
            for what, some in ways.items():
                times = least(some)
                words = "  ".join(f"{way} {1e3 * seconds:.2f}" for way, seconds in times.items())
                print(f"{name} B{B} H{H} {what}: {words}; recorded in {1e3 * taken[what]:.0f} ms", flush=True)
    for B, H in SHAPES:
        times = least(lengths(B, H), 3)
        words = "  ".join(f"{way} {1e3 * seconds:.2f}" for way, seconds in times.items())
        print(f"gru B{B} H{H} training, lengths 1 … T: {words}", flush=True)
    for batch, hidden in ((32, 256), (128, 512)):
        ways = language(batch, hidden)
        times = least(ways, 3)
        words = "  ".join(f"{way} {64 * batch / seconds:,.0f}" for way, seconds in times.items())
        print(
            f"language model, GRU of {hidden}, batches of {batch}, characters a second: {words}", flush=True
        )
    passes = [ref() for ref in cuda._PASSES]
    held = sum(one.bytes for each in passes if each is not None for one in each.recordings.values())
    print(f"recordings hold {held / 1e6:.0f} MB")


def contest(entry: Entry, B: int, H: int) -> tuple[dict[str, dict[str, Way]], dict[str, float]]:
    """(what -> name -> a call, what -> seconds that a call of ours takes that records)."""
    cell, g = entry.case.make(H, H).cuda(), torch.Generator().manual_seed(0)
    x = entry.case.x(T, B, g, torch.float32, H, H).cuda().requires_grad_()
    state = pytree.tree_map(lambda t: t.cuda(), entry.case.state(B, g, torch.float32, H, H))
    runs: dict[str, Any] = {
        OURS: elman.Recurrent(cell),
        PLAIN: elman.Recurrent(cell, engine="reference"),
        LOOP: loop(cell),
    }
    weights = list(cell.parameters())

    def training(run: Any) -> list[Tensor]:
        out = run(x, state)[0]
        return [out, *torch.autograd.grad(out.square().sum(), [x, *weights])]

    def inference(run: Any) -> Tensor:
        with torch.no_grad():
            return run(x, state)[0]

    expected, taken = training(runs[LOOP]), {}
    for what, call in (("training", training), ("inference", inference)):
        for _ in range(2):
            torch.cuda.synchronize()
            begun = time.perf_counter()
            call(runs[OURS])
            torch.cuda.synchronize()
            taken[what] = time.perf_counter() - begun
    for name in (OURS, PLAIN):
        for got, want in zip(training(runs[name]), expected, strict=True):
            error = float((got - want).detach().norm() / want.detach().norm())
            assert error < 1e-4, (entry.name, name, error)
    ways = {
        "training": {name: lambda run=run: training(run) for name, run in runs.items()},
        "inference": {name: lambda run=run: inference(run) for name, run in runs.items()},
    }
    if entry.torch is not None:
        layer = entry.torch(H, H).cuda()

        def trained() -> Any:
            out = layer(x)[0]
            return torch.autograd.grad(out.square().sum(), [x, *layer.parameters()])

        def inferred() -> Tensor:
            with torch.no_grad():
                return layer(x)[0]

        ways["training"][CUDNN], ways["inference"][CUDNN] = trained, inferred
    return ways, taken


def lengths(B: int, H: int) -> dict[str, Way]:
    """Training steps of a GRU on batches of other lengths each time."""
    g, cell = torch.Generator().manual_seed(0), elman.cells.GRU(H, H).cuda()
    x, layer = torch.randn(T, B, H, device="cuda", requires_grad=True), torch.nn.GRU(H, H).cuda()

    def drawn() -> Tensor:
        n = torch.randint(1, T + 1, (B,), generator=g)
        n[0] = T
        return n

    def ours(rnn: elman.Recurrent) -> Any:
        out = rnn(x, lengths=drawn())[0]
        return torch.autograd.grad(out.square().sum(), [x, *rnn.parameters()])

    def theirs() -> Any:
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, drawn(), enforce_sorted=False)
        return torch.autograd.grad(layer(packed)[0].data.square().sum(), [x, *layer.parameters()])

    runs = {OURS: elman.Recurrent(cell), PLAIN: elman.Recurrent(cell, engine="reference")}
    return {**{name: lambda run=run: ours(run) for name, run in runs.items()}, CUDNN: theirs}


def language(batch: int, hidden: int) -> dict[str, Way]:
    """Training steps of a language model with AdamW, clipping and reading the text."""
    tokens = torch.randint(65, (1_000_000,), generator=torch.Generator().manual_seed(0))
    models = {
        OURS: LanguageModel(65, "gru", hidden, 1, 64, dropout=0.2),
        CUDNN: Torchs(65, 64, hidden, 1, 0.2),
    }
    runs = {
        name: iter(Training(model.cuda(), windows(tokens, 64, batch), steps=10**6))
        for name, model in models.items()
    }
    return {name: lambda run=run: next(run) for name, run in runs.items()}


def least(ways: dict[str, Way], warm: int = 1) -> dict[str, float]:
    found: dict[str, float] = {}
    for number in range(ROUNDS + warm):
        for name, way in ways.items():
            torch.cuda.synchronize()
            begun = time.perf_counter()
            way()
            torch.cuda.synchronize()
            seconds = time.perf_counter() - begun
            if number >= warm:
                found[name] = min(seconds, found.get(name, seconds))
    return found


if __name__ == "__main__":
    main()
