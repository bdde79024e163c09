"""elman.export to .onnx: ONNX Runtime gives elman's numbers, at sizes that nobody exported."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import elman
from elman import cells, models
from elman.errors import InputError, NotSupported, StateError
from elman.models.autoencoding import AutoencoderNetwork
from elman.models.forecast_network import ForecastNetwork
from elman.models.frame_network import FrameNetwork
from elman.models.sequence_classifier import SequenceClassifier
from elman.models.tagging import TagNetwork
from tests import pairwise
from tests.cases import CASES
from tests.export.running import close, double, drawn, run, session, tensors

Tensor = torch.Tensor
I, H, V = 5, 7, 11

# What has no form in ONNX, by the reason.
RANDOM = {"bernoulli_rnn", "noisy_rnn"}
SIZES = ((1, 1), (7, 5), (1000, 5))


def held(
    path: Path, module: nn.Module, call: Callable[..., Any], given: tuple[Any, ...], what: object
) -> None:
    """The graph of `path` against a call of the module."""
    with torch.no_grad():
        close(run(session(path), *given), tensors(call(module, *given)), what)


FEW = ("smooth_rnn",)  # of many operations


@pytest.mark.parametrize("name", pairwise.with_more(FEW, sorted(CASES.keys() - set(FEW))))
@pytest.mark.parametrize("padded", pairwise.with_more([True], [False]))
def test_every_case_in_onnx_runtime(name: str, padded: bool, tmp_path: Path) -> None:
    case = CASES[name]
    layer = elman.Recurrent(case.make().float().eval(), batch_first=False)
    path = tmp_path / f"{name}.onnx"
    x, state, context = drawn(case, 4, 3)
    with torch.no_grad():
        layer(x, state, steps=case.steps(4), context=context)
    if name in RANDOM:
        with pytest.raises(NotSupported, match=r"(?s)random numbers.*mend: draw the numbers outside"):
            elman.export(layer, path, lengths=padded)
        return
    assert elman.export(layer, path, lengths=padded) == (path,)
    onnx.checker.check_model(str(path), full_check=True)
    exactly = copy.deepcopy(layer).double() if pairwise.exhaustive else None
    graph = session(path)
    for T, B in SIZES if pairwise.exhaustive else SIZES[:2]:
        x, state, context = drawn(case, T, B, seed=T)
        lengths = torch.randint(0, T + 1, (B,)) if padded else None
        told = {"steps": case.steps(T), "lengths": lengths}
        for start in (state, None) if case.starts else (state,):
            with torch.no_grad():
                right = tensors(layer(x, start, context=context, **told))
                exact = exactly and tensors(
                    exactly(double(x), double(start), context=double(context), **told)
                )
            first = torch.ones(T, dtype=torch.bool) if x is None else x
            close(run(graph, first, lengths, context, start), right, f"{name} T {T} B {B}", exact)


def layers() -> dict[str, Callable[[], nn.Module]]:
    R = elman.Recurrent
    return {
        "reversed": lambda: R(cells.LSTM(I, H), reverse=True, batch_first=True),
        "both ways": lambda: elman.Bidirectional(cells.LSTM(I, H), cells.Jordan(I, H, 4)),
        "stack": lambda: elman.Stack(
            R(cells.Leaky(I, H)), elman.Bidirectional(cells.GRU(H, H), cells.LSTM(H, H)), elman.nn.LSTM(2 * H, H, 2),
            dropout=0.5, norms=[nn.LayerNorm(H), nn.LayerNorm(2 * H)],
        ),
        "nn.RNN": lambda: elman.nn.RNN(I, H, nonlinearity="relu"),
        "nn.GRU": lambda: elman.nn.GRU(I, H, 2, bidirectional=True, dropout=0.5),
        "nn.LSTM": lambda: elman.nn.LSTM(I, H, 2, batch_first=True, proj_size=3),
    }  # fmt: skip


@pytest.mark.parametrize("name", pairwise.with_more(["both ways"], sorted(layers().keys() - {"both ways"})))
def test_layers_of_layers(name: str, tmp_path: Path) -> None:
    """With lengths; in time-major order and batch first."""
    layer, path = layers()[name](), tmp_path / "a.onnx"
    first = getattr(layer, "batch_first", False)
    turn = (lambda x: x.transpose(0, 1)) if first else (lambda x: x)
    layer.eval()(turn(torch.zeros(2, 1, I)))
    elman.export(layer, path, lengths=True)
    for T, B in ((1, 1), (9, 5)):
        x, lengths = turn(torch.randn(T, B, I)), torch.randint(0, T + 1, (B,))
        held(path, layer, lambda m, x, n: m(x, lengths=n), (x, lengths), name)


def networks() -> dict[str, tuple[nn.Module, bool, Callable[[int, int], tuple[Tensor, ...]]]]:
    """Name -> (model, whether it takes lengths, what it is called with)."""

    def far(model: Any) -> Any:
        model.standardise([1e8 + torch.randn(20, I, dtype=torch.float64)])
        return model

    def ids(T: int, B: int) -> Tensor:
        return torch.randint(2, V, (T, B))

    def some(T: int, B: int) -> Tensor:
        return torch.randint(1, T + 1, (B,))

    def words(T: int, B: int) -> tuple[Tensor, ...]:
        sizes = torch.tensor([4, 1, 2, 3])
        return (
            ids(T, B),
            torch.zeros(T, B).long(),
            torch.randint(0, 6, (4, 4)),
            sizes,
            ids(T, B) % 4,
            some(T, B),
        )

    deep = {"hidden": H, "embedding": I, "layers": 2}
    return {
        "language": (
            models.LanguageModel(V, "lstm", norm=True, residual=True, **deep), False, lambda T, B: (ids(T, B),),
        ),
        "tied": (models.LanguageModel(V, "gru", hidden=H, embedding=H, tie=True), False, lambda T, B: (ids(T, B),)),
        "told": (
            models.LanguageModel(V, "gru", condition=3, **deep), False, lambda T, B: (ids(T, B), torch.randn(B, 3)),
        ),
        "adaptive": (models.LanguageModel(V, cutoffs=[4, 8], **deep), False, lambda T, B: (ids(T, B),)),
        "classifier": (
            SequenceClassifier(V, 4, pooling="max+mean+last+attention", **deep), True,
            lambda T, B: (ids(T, B), some(T, B)),
        ),
        "far": (
            far(SequenceClassifier(I, 4, False, **deep)), True,
            lambda T, B: (1e8 + torch.randn(T, B, I, dtype=torch.float64), some(T, B)),
        ),
        "reader of numbers": (
            far(AutoencoderNetwork(channels=I, **deep)), True,
            lambda T, B: (1e8 + torch.randn(T, B, I, dtype=torch.float64), some(T, B)),
        ),
        "tagger": (TagNetwork(5, V, 6, spelling=3, **deep), True, words),
        "reader": (AutoencoderNetwork(symbols=V, **deep), True, lambda T, B: (ids(T, B), some(T, B))),
        "frames": (FrameNetwork(I, hidden=H), True, lambda T, B: (torch.randn(T, B, I), some(T, B))),
        "forecast": (
            ForecastNetwork([1, 2, 7], 2, 10, 5, "quantiles", hidden=H), False,
            lambda T, B: (torch.randn(T, B, 6), torch.randn(T, B, 2)),
        ),
    }  # fmt: skip


CALLED = {
    "told": lambda m, x, context: m(x, context=context),
    "reader": lambda m, *given: m.encode(*given),
    "reader of numbers": lambda m, *given: m.encode(*given),
}


@pytest.mark.parametrize("name", pairwise.with_more([], sorted(networks())))
def test_models(name: str, tmp_path: Path) -> None:
    model, lengths, given = networks()[name]
    path = tmp_path / "a.onnx"
    elman.export(model.train(), path, lengths=lengths)
    assert model.training
    for T, B in ((1, 1), (8, 4)):
        held(path, model.eval(), CALLED.get(name, lambda m, *given: m(*given)), given(T, B), name)


# --- what stands in a file -------------------------------------------------------------------------------------------


class Own(nn.Module):
    """h(t) = tanh(W h(t-1) + U x(t)), then something."""

    def __init__(self, then: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.hidden_size, self.then = H, then
        self.U, self.W = nn.Linear(I, H), nn.Linear(H, H, bias=False)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.then(torch.tanh(self.W(h) + self.U(x)))


def test_a_graph_in_the_users_words(tmp_path: Path) -> None:
    """Names of inputs, outputs, sizes and weights; U x before the loop; a state that may be left out."""
    layer = elman.Recurrent(cells.LSTM(I, H))
    layer(torch.zeros(2, 1, I))
    (path,) = elman.export(layer, tmp_path / "lstm.onnx", lengths=True)
    graph = onnx.load(path).graph
    sizes = {
        one.name: [d.dim_param or d.dim_value for d in one.type.tensor_type.shape.dim] for one in graph.input
    }
    assert sizes == {"x": ["T", "B", I], "lengths": ["B"], "state[0]": [0, H], "state[1]": [0, H]}
    assert [one.name for one in graph.output] == ["output", "final state[0]", "final state[1]"]
    weights = {one.name for one in graph.initializer}
    assert weights >= {"cell.U", "cell.W", "cell.b", "state[0]", "state[1]"}
    (scan,) = (node for node in graph.node if node.op_type == "Scan")
    inner = next(a.g for a in scan.attribute if a.name == "body")
    assert [node.op_type for node in inner.node].count("Gemm") == 1
    assert [node.op_type for node in graph.node].count("Gemm") == 1
    x, every = torch.randn(9, 4, I), torch.full((4,), 9)
    runs, whole = session(path), run(session(path), x, every)
    half = run(runs, x[:5], every - 4)
    rest = run(runs, x[5:], every - 5, [torch.from_numpy(state) for state in half[1:]])
    for one, other in zip(whole[1:], rest[1:], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_weights_beside(tmp_path: Path) -> None:
    layer = elman.Recurrent(cells.Elman(I, 64))
    layer(torch.zeros(2, 1, I))
    path = tmp_path / "a.onnx"
    assert elman.export(layer, path, external=True) == (path, tmp_path / "a.onnx.data")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.onnx", "a.onnx.data"]
    held(path, layer, lambda m, x: m(x), (torch.randn(3, 2, I),), "external")


def refused() -> dict[str, tuple[Callable[[], Any], type[Exception], str]]:
    def of(then: Callable[[Tensor], Tensor], **how: Any) -> Callable[[Path], Any]:
        def call(path: Path) -> None:
            layer = elman.Recurrent(Own(then))
            layer(torch.zeros(2, 1, I))
            elman.export(layer, path, **how)

        return call

    none = elman.Recurrent(cells.GRU(I, H))
    plain = of(torch.sin)
    return {
        "an operation": (of(torch.special.bessel_j0), NotSupported, r"(?s)bessel_j0.*Own, .*test_onnx.py:\d+ `"),
        "before any call": (lambda path: elman.export(none, path), StateError, "call the module once"),
        "another option": (of(torch.sin, color=3), InputError, "no such option"),
        "weights": (of(torch.sin, weights="int8"), InputError, "no such option"),
        "another ending": (lambda path: plain(path.with_suffix(".exe")), InputError, ".onnx, .pt2"),
        "a module": (lambda path: elman.export(nn.Linear(2, 2), path), TypeError, "cannot be exported"),
        "lengths": (
            lambda path: elman.export(models.LanguageModel(V, hidden=H), path, lengths=True), NotSupported,
            "no lengths",
        ),
    }  # fmt: skip


@pytest.mark.parametrize("what", list(refused()))
def test_what_has_no_form_is_refused(what: str, tmp_path: Path) -> None:
    call, kind, words = refused()[what]
    with pytest.raises(kind, match=words):
        call(tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []


class Turning(nn.Module):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        turn = torch.polar(torch.ones(2), torch.ones(2))
        return torch.tanh(
            x + torch.view_as_real(torch.view_as_complex(h.unflatten(-1, (2, 2))) * turn).flatten(-2)
        )

    def initial_state(self, batch: int) -> Tensor:
        return torch.zeros(batch, 4)


@pytest.mark.parametrize("taken_apart", [True, False])
def test_what_has_no_form_is_said_also_where_pytorch_takes_nothing_apart(
    taken_apart: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of some loops it does not: "scan might be aliasing the input or the output"."""

    def aliasing(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("scan might be aliasing the input or the output!")

    if not taken_apart:
        monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions", aliasing)
    layer = elman.Recurrent(Turning())
    layer(torch.randn(3, 2, 4))
    with pytest.raises(NotSupported, match=r"no form in ONNX(?s:.*)test_onnx.py"):
        elman.export(layer, tmp_path / "turning.onnx")
    assert not list(tmp_path.iterdir())
