"""The cells of tests/cases.py on another device than the CPU, against the plain loop on the CPU in float64.

    python -m tests.devices cuda    # outputs, gradients of both orders, directions, ragged; models, commands, drop-ins

For machines that have one; no other test needs it. Ends with 1 where something is wrong.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import elman
from tests import recordings
from tests.cases import CASES, Case
from tests.moved import B, T, home, moved_to, results
from tests.recurrent import along, compare, ragged
from tests.recurrent.compare import Inputs

Tensor = torch.Tensor
TASKS = {
    "lm": ("text.txt", "the cat sat on the mat; the rat sat on the cat.\n" * 200),
    "tag": ("words.txt", "the DET\ncat NOUN\nsat VERB\n\na DET\nrat NOUN\n\n" * 60),
    "classify": ("rows.csv", "text,label\n" + "".join(f"{k * 7919:o},{'ab'[k % 2]}\n" for k in range(200))),
    "autoencode": ("lines.txt", "".join(f"{k:b}\n" for k in range(16, 216))),
    "forecast": ("wave.csv", "unique_id,ds,y\n" + "".join(f"a,{k},{k % 12}\n" for k in range(200))),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.devices", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("device", help="cuda, mps, xpu …")
    parser.add_argument("-k", default="", help="only checks whose name holds this")
    parser.add_argument("--part", default="1/1", help="2/4: the second of four parts, for four processes")
    given = parser.parse_args()
    part, parts = (int(number) for number in given.part.split("/"))
    device = torch.device(given.device)
    print(f"PyTorch {torch.__version__}, {device}", flush=True)
    wrong, count, began = 0, 0, time.perf_counter()
    wanted = [(name, check) for name, check in checks(device) if given.k in name]
    for name, check in wanted[part - 1 :: parts]:
        count += 1
        try:
            check()
        except Exception as error:
            wrong += 1
            where = traceback.extract_tb(error.__traceback__)[-1]
            print(f"WRONG {name}: {type(error).__name__} at {where.name}: {str(error)[:300]}", flush=True)
    print(f"{count} checks, {wrong} wrong, {time.perf_counter() - began:.0f} s")
    sys.exit(wrong > 0)


def checks(device: torch.device) -> Iterator[tuple[str, Callable[[], None]]]:
    for case in CASES.values():
        # Other devices draw other numbers; one gradient of a weight knows the batch.
        if not case.noise and case.name != "clipped_rnn":
            yield f"{case.name}, whole", lambda case=case: _same(case, device)
            yield f"{case.name}, ragged", lambda case=case: _same(case, device, _said(case))
        if device.type == "cuda" and case.name != "clipped_rnn":
            yield f"{case.name}, recorded", lambda case=case: recordings.recorded(case, device)
    if device.type == "cuda":
        yield "recordings by threads and streams", lambda: recordings.recorded_by_many(device)
        yield "a recording that fails", lambda: recordings.recording_fails(device)
        yield (
            "what is not recorded leaves the device's random numbers alone",
            lambda: recordings.not_recorded(device),
        )
    for name in ("gru", "lstm", "attention_rnn", "layer_norm_rnn"):
        yield f"{name}, in reverse", lambda name=name: _same(CASES[name], device, reverse=True)
        yield (
            f"{name}, under a budget",
            lambda name=name: _same(CASES[name], device, memory=elman.Segments(2)),
        )
        yield f"{name}, forward mode", lambda name=name: _directions(CASES[name], device)
    for case in CASES.values():
        if case.twice and not case.noise and case.name != "clipped_rnn":
            yield f"{case.name}, second derivatives", lambda case=case: _second(case, device)
    yield "noise comes from the device, the same for the same seed", lambda: _noise(device)
    yield "steps and the whole agree", lambda: _steps(device)
    yield "torch.compile", lambda: _compiled(device)
    yield "elman.nn against torch.nn", lambda: _drop_in(device)
    yield "learning while it runs", lambda: _online(device)
    yield "a language model learns", lambda: _language(device)
    yield "vmap over examples and over weights", lambda: _mapped(device)
    yield "streams", lambda: _streams(device)
    yield "half precision, and autocast", lambda: _autocast(device)
    yield "layers on layers, packed", lambda: _stacked(device)
    yield "swap", lambda: _swapped(device)
    yield "truncated back-propagation", lambda: _truncated(device)
    yield "dynamics", lambda: _dynamics(device)
    yield "moved there and back", lambda: _there_and_back(device)
    yield "tensors of two devices", lambda: _two_devices(device)
    yield "a training that goes on draws the same numbers", lambda: _resumed(device)
    for task in TASKS:
        yield f"elman train {task}, evaluated on the CPU", lambda task=task: _command(task, device)
    mixed = ["--precision", "bfloat16", "--memory", "8 MB", "--dropout", "0.2", "--layers", "2"]
    yield "elman train lm in half precision under a budget", lambda: _command("lm", device, *mixed)
    yield "elman train tag in half precision", lambda: _command("tag", device, *mixed[:2])


def _said(case: Case) -> dict[str, Tensor]:
    said = ragged.said(T, B)
    return (
        said
        if case.starts and case.name != "slots_rnn"
        else {"lengths": said["lengths"], "mask": said["mask"]}
    )


def _same(case: Case, device: torch.device, said: dict[str, Tensor] | None = None, **options: Any) -> None:
    inputs, said = Inputs.of(case, T, B), said or {}
    right = results(elman.Recurrent(case.make().double(), **_plain(options)), inputs, ragged.theirs, **said)
    rnn = elman.Recurrent(case.make().double().to(device), **options)
    there = {name: value.to(device) for name, value in said.items()}
    for got, expected in zip(
        results(rnn, moved_to(inputs, device), ragged.ours, **there), right, strict=True
    ):
        compare.assert_equal(got, expected, 1e-6)  # some kernels of PyTorch's compute in float32 inside


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name == "reverse"}


def _directions(case: Case, device: torch.device) -> None:
    inputs = Inputs.of(case, T, B)
    here, there = (elman.Recurrent(case.make().double().to(d)) for d in ("cpu", device))
    way = along.directions(here, inputs)
    expected = along.pushed(ragged.theirs, here, inputs, way)
    moved = {name: None if value is None else value.to(device) for name, value in way.items()}
    got = along.pushed(ragged.ours, there, moved_to(inputs, device), moved)
    compare.assert_equal(home(got), home(expected), 1e-6)


def _noise(device: torch.device) -> None:
    rnn = elman.Recurrent(CASES["dropout_rnn"].make().to(device))
    x, h = torch.randn(T, B, 5, device=device), torch.zeros(B, 7, device=device)
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(rnn(x, h)[0])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert found[0].device.type == device.type


def _steps(device: torch.device) -> None:
    rnn = elman.Recurrent(elman.cells.GRU(5, 7).to(device))
    x = torch.randn(T, B, 5, device=device)
    for guard in (torch.enable_grad(), torch.no_grad()):
        with guard:
            hs, _ = rnn(x)
            state, outputs = None, []
            for x_t in x:
                o, state = rnn.step(x_t, state)
                outputs.append(o)
            torch.testing.assert_close(torch.stack(outputs), hs)


def _compiled(device: torch.device) -> None:
    rnn = elman.Recurrent(elman.cells.GRU(5, 7).to(device))
    x = torch.randn(T, B, 5, device=device)
    hs, _ = torch.compile(rnn, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(hs, rnn(x)[0])


def _drop_in(device: torch.device) -> None:
    for kind in ("RNN", "GRU", "LSTM"):
        torch.manual_seed(0)
        theirs = getattr(torch.nn, kind)(5, 7, num_layers=2, bidirectional=True).double().to(device)
        ours = getattr(elman.nn, kind)(5, 7, num_layers=2, bidirectional=True).double().to(device)
        ours.load_state_dict(theirs.state_dict())
        x = torch.randn(T, B, 5, dtype=torch.float64, device=device)
        torch.testing.assert_close(ours(x)[0], theirs(x)[0])


def _online(device: torch.device) -> None:
    rnn = elman.Recurrent(elman.cells.LSTM(5, 7).double().to(device))
    x = torch.randn(T, B, 5, dtype=torch.float64, device=device)
    online = elman.Online(rnn)
    for x_t in x:
        online.step(x_t, None, lambda h, _: h.sin().sum())
    got = [p.grad.clone() for p in rnn.parameters() if p.grad is not None]
    rnn.zero_grad()
    rnn(x)[0].sin().sum().backward()
    for mine, parameter in zip(got, rnn.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.grad)


def _language(device: torch.device) -> None:
    torch.manual_seed(0)
    model = elman.models.LanguageModel(11, "gru", hidden=32).to(device)
    text = torch.arange(30, device=device)[:, None].add(torch.arange(10, device=device)) % 11
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss, _ = model.loss(text[:-1], text[1:])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0], losses[::20]
    assert model.generate([3, 4, 5], 5, temperature=0.01) == [6, 7, 8, 9, 10]


def _second(case: Case, device: torch.device) -> None:
    """The gradient of the squared gradient; where the loop has none, nothing is asked."""
    found = []
    for where in ("cpu", device):
        inputs = moved_to(Inputs.of(case, T, B), torch.device(where))
        rnn = elman.Recurrent(case.make().double().to(where))
        wanted = compare.wanted_of(rnn, inputs)
        run = ragged.theirs if where == "cpu" else ragged.ours
        first = compare.gradients(compare.flat(*run(rnn, inputs)), wanted, create_graph=True)
        total = sum(g.square().sum() for g in first.values() if g is not None and g.requires_grad)
        if not isinstance(total, Tensor):
            return
        try:
            grads = torch.autograd.grad(total, list(wanted.values()), allow_unused=True)
        except RuntimeError:
            if where == "cpu":
                return
            raise
        found.append(home(dict(zip(wanted, grads, strict=True))))
    compare.assert_equal(found[1], found[0], 1e-5)


def _gru(device: torch.device, dtype: torch.dtype = torch.float64) -> tuple[elman.Recurrent, Tensor]:
    torch.manual_seed(0)
    cell, x = elman.cells.GRU(5, 7).double(), torch.randn(T, B, 5, dtype=torch.float64)
    return elman.Recurrent(cell.to(device).to(dtype)), x.to(device).to(dtype)


def _mapped(device: torch.device) -> None:
    rnn, x = _gru(device)
    each = torch.func.vmap(lambda one: rnn(one[:, None])[0][:, 0], in_dims=1, out_dims=1)(x)
    torch.testing.assert_close(each, rnn(x)[0])
    weights = dict(rnn.named_parameters())
    loss = lambda w, one: torch.func.functional_call(rnn, w, (one[:, None],))[0].square().sum()  # noqa: E731
    grads = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 1))(weights, x)
    loss(weights, x[:, 0]).backward()
    for name, weight in weights.items():
        torch.testing.assert_close(grads[name][0], weight.grad)


def _streams(device: torch.device) -> None:
    rnn, x = _gru(device)
    stream = rnn.stream(batch=B)
    with torch.no_grad():
        torch.testing.assert_close(torch.stack([stream.step(x_t).clone() for x_t in x]), rnn(x)[0])


def _autocast(device: torch.device) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        rnn, x = _gru(device, dtype)
        rnn(x)[0].float().sum().backward()
        right, xs = _gru(torch.device("cpu"))
        torch.testing.assert_close(rnn(x)[0].cpu().double(), right(xs)[0], atol=0.05, rtol=0.05)
        mixed, x = _gru(device, torch.float32)
        with torch.autocast(device.type, dtype):
            hs = mixed(x)[0]
            loss = hs.float().square().mean()
        loss.backward()
        torch.testing.assert_close(hs.cpu().double(), right(xs)[0], atol=0.05, rtol=0.05)
        assert all(p.grad is not None and p.grad.isfinite().all() for p in mixed.parameters())


def _stacked(device: torch.device) -> None:
    torch.manual_seed(0)
    cells = [elman.cells.GRU(5, 7), elman.cells.LSTM(7, 7)]
    net = elman.Stack(*(elman.Recurrent(cell) for cell in cells)).double()
    both = elman.Bidirectional(elman.cells.GRU(5, 4), elman.cells.GRU(5, 4))
    x, lengths = torch.randn(T, B, 5, dtype=torch.float64), torch.tensor([6, 2, 4])
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
    for layer in (net, both.double()):
        right = layer(x, lengths=lengths)[0], layer(packed)[0].data
        layer.to(device)
        got = layer(x.to(device), lengths=lengths.to(device))[0], layer(packed.to(device=device))[0].data
        for mine, theirs in zip(got, right, strict=True):
            torch.testing.assert_close(mine.cpu(), theirs)


def _swapped(device: torch.device) -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.LSTM(5, 7, num_layers=2, batch_first=True)).double().to(device)
    x = torch.randn(B, T, 5, dtype=torch.float64, device=device)
    theirs = net(x)[0]
    elman.nn.swap(net)
    torch.testing.assert_close(net(x)[0], theirs)


def _truncated(device: torch.device) -> None:
    found = []
    for where in (torch.device("cpu"), device):
        rnn, x = _gru(where)
        for newest in elman.truncated(rnn, [x[:4], x[4:]], k1=2, k2=4):
            newest.outputs.square().sum().backward()
        found.append({name: p.grad.cpu() for name, p in rnn.named_parameters() if p.grad is not None})
    for name, right in found[0].items():
        torch.testing.assert_close(found[1][name], right)


def _dynamics(device: torch.device) -> None:
    found = []
    for where in (torch.device("cpu"), device):
        rnn, x = _gru(where)
        h = torch.zeros(B, 7, dtype=torch.float64, device=where)
        slow = elman.dynamics.gradient_flow(rnn, x)
        exponents = elman.dynamics.lyapunov(rnn, x.repeat(20, 1, 1)[:, :1], h[:1]).exponents
        jacobian = elman.dynamics.jacobian(rnn, x[0], h)
        points = elman.dynamics.fixed_points(rnn, x[0, 0], torch.randn(8, 7, dtype=torch.float64).to(where))
        found.append([value.cpu() for value in (exponents, jacobian, points.points, slow.mean)])
    for right, got in zip(*found, strict=True):
        torch.testing.assert_close(
            got, right, rtol=1e-4, atol=1e-4
        )  # the slowest are so far lost in the rounding of the fastest


def _there_and_back(device: torch.device) -> None:
    """A layer that has run on one device runs on the other, and on the first again."""
    rnn, x = _gru(torch.device("cpu"))
    right = rnn(x)[0]
    for where in (device, torch.device("cpu"), device):
        rnn.to(where)
        torch.testing.assert_close(rnn(x.to(where))[0].cpu(), right)


def _two_devices(device: torch.device) -> None:
    """Refused in words of ours, whichever stays behind."""
    rnn, x = _gru(device)
    for given in ((x.cpu(),), (x, torch.zeros(B, 7, dtype=x.dtype))):
        with pytest.raises(elman.errors.ElmanError, match=device.type):
            rnn(*given)


def _resumed(device: torch.device) -> None:
    tokens = torch.arange(400) * 7 % 11

    def training() -> elman.training.Training:
        torch.manual_seed(0)
        model = elman.models.LanguageModel(11, "gru", hidden=16, layers=2, dropout=0.3).to(device)
        return elman.training.Training(model, elman.data.windows(tokens, 10, 4), steps=8)

    whole = [step.loss for step in training()]
    half = training()
    steps = iter(half)
    first = [next(steps).loss for _ in range(4)]
    kept, on = half.state(), training()
    on.restore(*kept)
    torch.testing.assert_close(first + [step.loss for step in on], whole)


def _command(task: str, device: torch.device, *how: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        name, text = TASKS[task]
        (Path(folder) / name).write_text(text)
        run = str(Path(folder) / "run")
        more = [*how, *(["--horizon", "6"] if task == "forecast" else [])]
        words = f"--hidden 16 --batch 8 --steps 12 --quiet --device {device}".split()
        learn = ["train", task, str(Path(folder) / name), *more, *words, "--out", run]
        for given in (
            learn,
            [*learn, "--resume", "auto", "--steps", "16"],
            ["evaluate", run],
        ):
            said = subprocess.run(
                [sys.executable, "-m", "elman", *given], capture_output=True, text=True, check=False
            )
            assert said.returncode == 0, f"{given[:2]}: {said.stderr[-600:]}"
        log = [json.loads(line) for line in (Path(run) / "log.jsonl").read_text().splitlines()]
        losses = [line["loss"] for line in log if "loss" in line]
        assert losses
        assert all(math.isfinite(loss) for loss in losses), losses


if __name__ == "__main__":
    main()
