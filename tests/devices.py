"""The cells of tests/cases.py on another device than the CPU, against the plain loop on the CPU in float64.

    python -m tests.devices cuda    # outputs, gradients, directions, dense and ragged; a language model, drop-ins

For machines that have one; no other test needs it. Ends with 1 where something is wrong.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch.utils import _pytree as pytree

import elman
from tests.cases import CASES, Case
from tests.recurrent import along, compare, ragged
from tests.recurrent.compare import Inputs

Tensor = torch.Tensor
T, B = 6, 3


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.devices", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("device", help="cuda, mps, xpu …")
    parser.add_argument("-k", default="", help="only checks whose name holds this")
    given = parser.parse_args()
    device = torch.device(given.device)
    print(f"PyTorch {torch.__version__}, {device}", flush=True)
    wrong, count, began = 0, 0, time.perf_counter()
    for name, check in checks(device):
        if given.k not in name:
            continue
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
    for name in ("gru", "lstm", "attention_rnn", "layer_norm_rnn"):
        yield f"{name}, in reverse", lambda name=name: _same(CASES[name], device, reverse=True)
        yield (
            f"{name}, under a budget",
            lambda name=name: _same(CASES[name], device, memory=elman.Segments(2)),
        )
        yield f"{name}, forward mode", lambda name=name: _directions(CASES[name], device)
    yield "noise comes from the device, the same for the same seed", lambda: _noise(device)
    yield "steps and the whole agree", lambda: _steps(device)
    yield "torch.compile", lambda: _compiled(device)
    yield "elman.nn against torch.nn", lambda: _drop_in(device)
    yield "learning while it runs", lambda: _online(device)
    yield "a language model learns", lambda: _language(device)


def _said(case: Case) -> dict[str, Tensor]:
    said = ragged.said(T, B)
    return (
        said
        if case.starts and case.name != "slots_rnn"
        else {"lengths": said["lengths"], "mask": said["mask"]}
    )


def _moved(inputs: Inputs, device: torch.device) -> Inputs:
    def leaf(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.detach().to(device).requires_grad_(value.requires_grad)

    parts = {name: pytree.tree_map(leaf, getattr(inputs, name)) for name in ("x", "state", "context")}
    return replace(inputs, **parts)


def _results(
    rnn: elman.Recurrent, inputs: Inputs, run: Callable[..., Any], **said: Any
) -> list[compare.Named]:
    wanted = compare.wanted_of(rnn, inputs)
    values = compare.flat(*run(rnn, inputs, **said))
    return [_home(values), _home(compare.gradients(values, wanted))]


def _home(values: compare.Named) -> compare.Named:
    return {name: None if value is None else value.detach().cpu() for name, value in values.items()}


def _same(case: Case, device: torch.device, said: dict[str, Tensor] | None = None, **options: Any) -> None:
    inputs, said = Inputs.of(case, T, B), said or {}
    right = _results(elman.Recurrent(case.make().double(), **_plain(options)), inputs, ragged.theirs, **said)
    rnn = elman.Recurrent(case.make().double().to(device), **options)
    there = {name: value.to(device) for name, value in said.items()}
    for got, expected in zip(_results(rnn, _moved(inputs, device), ragged.ours, **there), right, strict=True):
        compare.assert_equal(got, expected, 1e-6)  # some kernels of PyTorch's compute in float32 inside


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name == "reverse"}


def _directions(case: Case, device: torch.device) -> None:
    inputs = Inputs.of(case, T, B)
    here, there = (elman.Recurrent(case.make().double().to(d)) for d in ("cpu", device))
    way = along.directions(here, inputs)
    expected = along.pushed(ragged.theirs, here, inputs, way)
    moved = {name: None if value is None else value.to(device) for name, value in way.items()}
    got = along.pushed(ragged.ours, there, _moved(inputs, device), moved)
    compare.assert_equal(_home(got), _home(expected), 1e-6)


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


if __name__ == "__main__":
    main()
