"""elman.export to .pt2: PyTorch alone runs it, at sizes that nobody exported."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import elman
from elman import cells, models
from elman.errors import NotSupported
from tests import pairwise
from tests.alone import expect_alone, noted
from tests.cases import CASES
from tests.export.running import close, drawn, tensors
from tests.export.test_onnx import RANDOM, H, I, V, layers


@pytest.mark.slow
def test_a_file_holds_nothing_of_elmans(tmp_path: Path) -> None:
    """With the sizes open, and a state that goes in; here and, by `make conformance`, in a process of its own."""
    layer = elman.Recurrent(cells.LSTM(I, H))
    start = layer(torch.zeros(2, 3, I))[1]
    elman.export(layer, tmp_path / "a.pt2", lengths=True, state=True)
    program, calls = torch.export.load(tmp_path / "a.pt2"), []
    assert not [node for node in program.graph.nodes if "elman" in str(node.target)]
    for T, B in ((1, 1), (9, 4)):
        x, lengths = torch.randn(T, B, I), torch.randint(0, T + 1, (B,))
        state = tuple(torch.randn(B, *value.shape[1:]) for value in start)
        with torch.no_grad():
            right = layer(x, state, lengths=lengths)
            close(tensors(program.module()(x, lengths, state)), tensors(right), f"T {T} B {B}")
        calls.append(((x, lengths, state), right))
    if pairwise.exhaustive:  # a process that imports PyTorch
        expect_alone([noted(tmp_path / "a.pt2", calls)], 1e-5)


def test_a_file_has_no_gradients(tmp_path: Path) -> None:
    """Those of PyTorch's own loop would not be the cell's, whose backward here is another function's."""
    layer = elman.Recurrent(CASES["straight_through_rnn"].make().float())
    x, state, _ = drawn(CASES["straight_through_rnn"], 4, 3)
    layer(x, state)
    elman.export(layer, tmp_path / "a.pt2", state=True)
    program = torch.export.load(tmp_path / "a.pt2").module()
    found = program(x.requires_grad_(), state)
    assert not any(leaf.requires_grad for leaf in (*tensors(found), *program.parameters()))
    assert all(parameter.requires_grad for parameter in layer.parameters())


@pytest.mark.conformance
def test_a_model_runs_without_elman(tmp_path: Path) -> None:
    """In a process of its own."""
    model = models.LanguageModel(V, "gru", hidden=H, embedding=I, layers=2).eval()
    elman.export(model, tmp_path / "lm.pt2")
    x = torch.randint(0, V, (6, 2))
    with torch.no_grad():
        expect_alone([noted(tmp_path / "lm.pt2", [((x,), model(x))])], 1e-5)


@pytest.mark.conformance
def test_every_case_runs_without_elman(tmp_path: Path) -> None:
    paths = []
    for name, case in CASES.items():
        if name in RANDOM:
            continue
        layer = elman.Recurrent(case.make().float().eval(), batch_first=False)
        x, state, context = drawn(case, 4, 3)
        layer(x, state, steps=case.steps(4), context=context)
        path = tmp_path / f"{name}.pt2"
        elman.export(layer, path, state=True)
        calls = []
        for T, B in ((1, 1), (7, 5), (100, 2)):
            x, state, context = drawn(case, T, B, seed=T)
            first = torch.ones(T, dtype=torch.bool) if x is None else x
            plain = tuple(state) if name == "named_tuple_lstm" else state
            with torch.no_grad():
                results = layer(x, state, steps=case.steps(T), context=context)
            given = (first, plain) if context is None else (first, context, plain)
            calls.append((given, results))
        paths.append(noted(path, calls))
    expect_alone(paths, 1e-5)


def test_a_cell_that_draws_is_told_what_helps(tmp_path: Path) -> None:
    class Drawing(torch.nn.Module):
        hidden_size = 3

        def forward(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
            return torch.tanh(h + x + torch.randn_like(x))

    layer = elman.Recurrent(Drawing())
    layer(torch.zeros(2, 1, 3))
    with pytest.raises(NotSupported, match=r"(?s)random numbers.*mend: draw the numbers outside of the step"):
        elman.export(layer, tmp_path / "a.pt2")
    with pytest.raises(NotSupported, match=r"(?s)random numbers.*mend: call model\.eval"):
        torch.export.export(layer.train(), (torch.zeros(2, 1, 3),), strict=False)


@pytest.mark.conformance
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # of inductor's own code
def test_compiled_ahead_of_time(tmp_path: Path) -> None:
    """AOTInductor makes one library of it, loop and all, with T and B open."""
    layer = elman.Recurrent(cells.LSTM(I, H))
    layer(torch.zeros(2, 3, I))
    (path,) = elman.export(layer, tmp_path / "lstm.pt2")
    made = torch._inductor.aoti_compile_and_package(
        torch.export.load(path), package_path=str(tmp_path / "compiled.pt2")
    )
    run = torch._inductor.aoti_load_package(made)
    for T, B in ((1, 1), (7, 5), (1000, 2)):
        x = torch.randn(T, B, I)
        with torch.no_grad():
            close(tensors(run(x)), tensors(layer(x)), f"T {T} B {B}")


@pytest.mark.parametrize("name", pairwise.with_more([], sorted(layers())))
def test_layers_of_layers(name: str, tmp_path: Path) -> None:
    layer = layers()[name]().eval()
    x = torch.zeros(2, 3, I)
    layer(x)
    elman.export(layer, tmp_path / "a.pt2", lengths=True)
    program = torch.export.load(tmp_path / "a.pt2").module()
    for T, B in ((1, 1), (9, 5)):
        x, lengths = torch.randn(T, B, I), torch.randint(0, T + 1, (B,))
        x = x.transpose(0, 1) if getattr(layer, "batch_first", False) else x
        with torch.no_grad():
            close(tensors(program(x, lengths)), tensors(layer(x, lengths=lengths)), name)
