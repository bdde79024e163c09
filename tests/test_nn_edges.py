"""Where drop-ins and recurrences leave PyTorch's usual ways: exported, traced, scripted, quantized, written into."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

import elman
from elman import cells
from elman.errors import NotSupported
from elman.nn import swap, unswap
from tests import pairwise
from tests.alone import expect_alone, noted

Tensor = torch.Tensor
KINDS = ("RNN", "GRU", "LSTM")
T, B, I, H = 5, 3, 4, 6


class Model(nn.Module):
    """A recurrent layer between two others."""

    def __init__(self, layer: nn.Module, width: int = H) -> None:
        super().__init__()
        self.inner = nn.Linear(I, I)
        self.rnn = layer
        self.out = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(self.inner(x))[0])


class Padded(Model):
    """The same over padded sequences, the final state as well."""

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Any]:  # type: ignore[override]
        outputs, final = self.rnn(self.inner(x), lengths=lengths)
        return self.out(outputs), final


def swapped(kind: str, **said: Any) -> tuple[Model, Model]:
    """A model of torch.nn's, and the same with its layer swapped."""
    theirs = Model(getattr(nn, kind)(I, H, **said)).eval()
    ours = copy.deepcopy(theirs)
    assert swap(ours).swapped == {"rnn": f"elman.nn.{kind}"}
    return theirs, ours


# --- exported ---------------------------------------------------------------------------------------------------------


def exported() -> dict[str, tuple[Model, bool]]:
    """Models to be exported, and whether they want lengths."""
    gru, lstm = cells.GRU(I, H), cells.LSTM(I, H)
    found: dict[str, tuple[Model, bool]] = {
        "swapped": (swapped("LSTM", num_layers=2)[1], False),
        "recurrent": (Model(elman.Recurrent(gru)), False),
        "reversed": (Padded(elman.Recurrent(lstm, reverse=True)), True),
        "both ways": (Padded(elman.Bidirectional(gru, cells.GRU(I, H)), 2 * H), True),
        "stack": (
            Padded(elman.Stack(elman.Recurrent(gru), elman.Recurrent(cells.LSTM(H, H)), dropout=0.5)),
            True,
        ),
    }
    if not pairwise.exhaustive:  # what these hold is in the others
        del found["recurrent"], found["both ways"], found["reversed"]
    return {name: (model.double().eval(), padded) for name, (model, padded) in found.items()}


@pytest.mark.conformance
def test_files_need_no_elman(tmp_path: Path) -> None:
    """Exported with T and B left open, saved, and loaded where elman cannot be imported: the same numbers."""
    paths = []
    for name, (model, padded) in exported().items():
        D = torch.export.Dim.DYNAMIC
        calls = []
        for steps, batch in ((T, B), (9, 2), (1, 1)) if name != "swapped" else ((T, B), (T, 2)):
            x = torch.randn(steps, batch, I, dtype=torch.float64)
            lengths = torch.arange(batch) * steps // 2
            if padded:
                for b, length in enumerate(lengths):
                    x[int(length) :, b] = torch.nan  # what is not there is never looked at
            given = (x, lengths) if padded else (x,)
            with torch.no_grad():
                calls.append((given, model(*given)))
        shapes = ({0: D, 1: D}, {0: D}) if padded else ({0: D, 1: D},)
        if name == "swapped":
            shapes = ({1: D},)  # torch's own LSTM fixes T
        paths.append(noted(tmp_path / f"{name}.pt2", calls))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's own code, for its own LSTM
            program = torch.export.export(model, calls[0][0], dynamic_shapes=shapes)
            torch.export.save(program, paths[-1])
        assert not [node for node in program.graph.nodes if "elman" in str(node.target)]
    expect_alone(paths, 1e-10)


class Step(nn.Module):
    def __init__(self, layer: elman.Recurrent) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Any:
        return self.layer.step(x)


class Called(nn.Module):
    """A layer called with more than a sequence."""

    def __init__(self, layer: nn.Module, **said: Any) -> None:
        super().__init__()
        self.layer, self.said = layer, said

    def forward(self, x: Tensor) -> Any:
        return self.layer(x, **self.said)


class Attending(nn.Module):
    """Reads a context, starts from a state of its own, and gives out its state."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.RNNCell(I, H)

    def initial_state(self, batch: int) -> Tensor:
        return torch.ones(batch, H)

    def forward(self, x: Tensor, h: Tensor, context: Tensor) -> Tensor:
        return self.cell(x + context, h)


@pytest.mark.conformance
def test_export_of_calls_with_more() -> None:
    """One step; a context and a state of the cell's own; a teacher; a mask; gradients on or off."""
    x = torch.randn(T, B, I)
    gru = elman.Recurrent(cells.GRU(I, H))
    mask = torch.rand(T, B) > 0.3
    jordan = elman.Recurrent(cells.Jordan(I, H, 2), reverse=True)
    models: dict[str, tuple[nn.Module, Tensor]] = {
        "step": (Step(gru), x[0]),
        "context": (Called(elman.Recurrent(Attending()), context=torch.randn(B, I)), x),
        "state": (Called(gru, state=torch.randn(B, H), mask=mask), x),
        "teacher": (Called(jordan, teacher=torch.randn(T, B, 2)), x),
        "weight": (
            Called(jordan, teacher=torch.randn(T, B, 2), teacher_weight=torch.rand(T, B), mask=mask),
            x,
        ),
    }
    for i, (name, (model, given)) in enumerate(models.items()):
        for gradients in (True, False) if pairwise.exhaustive else (i % 2 == 0,):
            with torch.set_grad_enabled(gradients):
                program = torch.export.export(model.eval(), (given,))
            got, expected = program.module()(given), model(given)
            torch.testing.assert_close(got, expected, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(
    "what", ["strict", "random numbers", "reset", "jit.trace", "jit.script", "make_fx", "stack"]
)
def test_what_cannot_be_exported_is_refused_then(what: str) -> None:
    """Rather than where the file is loaded; and nothing is recorded as a constant."""
    x = torch.randn(T, B, I)
    layer = elman.Recurrent(cells.GRU(I, H))
    layer(x)
    model: nn.Module = Model(layer)
    reset = torch.ones(T, B, dtype=torch.bool)
    calls: dict[str, Callable[[], Any]] = {
        "strict": lambda: torch.export.export(model, (x,), strict=True),
        "random numbers": lambda: torch.export.export(elman.Recurrent(Noisy()), (x, torch.zeros(B, H))),
        "reset": lambda: torch.export.export(Called(layer, reset=reset), (x,)),
        "jit.trace": lambda: torch.jit.trace(model, x),
        "jit.script": lambda: torch.jit.script(model),
        "make_fx": lambda: make_fx(model)(x),
        "stack": lambda: make_fx(Called(elman.Stack(layer), lengths=torch.tensor([1, 2, 3])))(x),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and says so
        with pytest.raises(NotSupported):
            calls[what]()


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.RNNCell(I, H)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.cell(x, nn.functional.dropout(h, 0.5, self.training))


# --- traced, scripted, quantized --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", pairwise.with_more(["LSTM"], ["RNN", "GRU"]))
def test_drop_ins_are_traced_as_torchs(kind: str) -> None:
    theirs, ours = swapped(kind)
    x, other = torch.randn(T, B, I), torch.randn(T + 2, B - 1, I)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own code, for its own layers
        traced = torch.jit.trace(ours, x)
        graph = str(traced.rnn.graph)
        assert f"aten::{theirs.rnn.mode.lower()}" in graph
        torch.testing.assert_close(traced(other), theirs(other))
    torch.testing.assert_close(make_fx(ours)(x)(2 * x), theirs(2 * x))
    leaf = torch.fx.symbolic_trace(ours)
    assert [node.target for node in leaf.graph.nodes if node.op == "call_module"] == ["inner", "rnn", "out"]
    torch.testing.assert_close(leaf(other), theirs(other))


def test_a_scripted_model_is_torchs() -> None:
    theirs, ours = swapped("GRU")
    layer, x = ours.rnn, torch.randn(T, B, I)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        scripted = torch.jit.script(ours)
    assert any("elman.nn.swap(model)" in str(warning.message) for warning in seen)
    torch.testing.assert_close(scripted(x), theirs(x))
    assert ours.rnn is layer
    assert type(layer) is nn.GRU
    assert swap(ours).swapped == {"rnn": "elman.nn.GRU"}


@pytest.mark.parametrize("kind", KINDS)
def test_dynamic_quantization(kind: str) -> None:
    """It finds layers by their class, and says or does what it does to torch's."""
    theirs, ours = swapped(kind)
    x = torch.randn(T, B, I)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # quantization is deprecated, and says so
        for said in ({}, {"qconfig_spec": {getattr(nn, kind)}, "dtype": torch.float16}):
            if kind == "RNN" and said:
                continue  # torch itself does not know how
            one, other = (torch.ao.quantization.quantize_dynamic(model, **said) for model in (theirs, ours))
            assert [_torchs(type(m)) for m in one.modules()] == [_torchs(type(m)) for m in other.modules()]
            torch.testing.assert_close(other(x), one(x))


def _torchs(kind: type) -> str:
    return f"{kind.__module__.replace('elman.nn', 'torch.nn.modules.rnn')}.{kind.__qualname__}"


def test_classes_are_found_as_torchs() -> None:
    class Own(elman.nn.GRU):
        pass

    assert elman.nn.GRU == nn.GRU
    assert nn.GRU == elman.nn.GRU
    assert {nn.GRU: 1}[elman.nn.GRU] == 1
    assert len({elman.nn.GRU, elman.nn.LSTM, nn.RNN, Own}) == 4
    assert Own not in (nn.GRU, elman.nn.GRU)
    assert elman.nn.GRU != "GRU"


# --- swapped and back -------------------------------------------------------------------------------------------------


class Odd(nn.GRU):
    pass


def test_unswap() -> None:
    model = nn.ModuleDict({"a": nn.GRU(I, H), "b": nn.Sequential(nn.LSTM(H, 2)), "own": Odd(2, 2)})
    seen: list[str] = []
    model["a"].register_forward_hook(lambda module, args, out: seen.append(type(module).__module__))
    layers, weights = [model["a"], model["b"][0]], dict(model.named_parameters())
    x = torch.randn(T, B, I)
    before = model["a"](x)[0]
    swap(model)
    again = swap(model)
    assert again.swapped == {}
    assert "a: left, it is elman.nn.GRU already" in str(again)
    model["a"](x)
    report = unswap(model)
    assert report.swapped == {"a": "torch.nn.GRU", "b.0": "torch.nn.LSTM"}
    assert report.left == {"own": "Odd has a forward of its own"}
    assert [type(layer) for layer in layers] == [nn.GRU, nn.LSTM]
    assert layers[0] is model["a"]
    assert all(weight is weights[name] for name, weight in model.named_parameters())
    assert vars(layers[1]).keys() == vars(nn.LSTM(1, 1)).keys()
    assert torch.equal(model["a"](x)[0], before)
    assert seen == ["torch.nn.modules.rnn", "elman.nn", "torch.nn.modules.rnn"]
    assert unswap(model).left["a"] == "it is torch.nn.GRU already"
    assert "no recurrent layer" in str(unswap(nn.Linear(1, 1)))


@pytest.mark.parametrize("kind", pairwise.with_more(["GRU"], ["RNN", "LSTM"]))
def test_swapped_models_are_carried_about(kind: str) -> None:
    theirs, ours = swapped(kind, bidirectional=True)
    theirs, ours, x = theirs.rnn, ours.rnn, torch.randn(T, B, I)
    expected = theirs(x)[0]
    file = io.BytesIO()
    torch.save(ours, file)
    file.seek(0)
    copies = {
        "deepcopy": copy.deepcopy(ours), "pickle": pickle.loads(pickle.dumps(ours)),
        "file": torch.load(file, weights_only=False), "shared": copy.deepcopy(ours).share_memory(),
        "replica": ours._replicate_for_data_parallel(),
    }  # fmt: skip
    replica = copies["replica"]
    for name, weight in ours.named_parameters():
        setattr(replica, name, weight)  # as torch.nn.parallel.replicate goes on
    assert replica._elman[0] is not ours._elman[0]
    for made in copies.values():
        assert type(made) is getattr(elman.nn, kind)
        torch.testing.assert_close(made(x)[0], expected)
    half = copy.deepcopy(ours).bfloat16()(x.bfloat16())[0]
    # Outputs lie in -1 … 1, where bfloat16 rounds by 2⁻⁹; over T steps torch.nn's own in bfloat16 is off by up to 0.01.
    torch.testing.assert_close(half.float(), expected, rtol=0.0, atol=0.015)


@pytest.mark.parametrize(
    "missing", [("_flat_weights",), ("_flat_weights", "_flat_weights_names", "proj_size")]
)
def test_pickles_of_old_versions(missing: tuple[str, ...]) -> None:
    layer = elman.nn.GRU(I, H, num_layers=2)
    old = {name: value for name, value in layer.__getstate__().items() if name not in missing}
    found = elman.nn.GRU.__new__(elman.nn.GRU)
    found.__setstate__(old)
    x = torch.randn(T, B, I)
    torch.testing.assert_close(found(x)[0], layer(x)[0])
    unswap(found)
    torch.testing.assert_close(found(x)[0], layer(x)[0])


# --- written into -----------------------------------------------------------------------------------------------------


@pytest.mark.grid(1)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "said", [{}, {"num_layers": 2, "batch_first": True}, {"bidirectional": True}], ids=str
)
def test_outputs_may_be_written_into(kind: str, said: dict[str, Any]) -> None:
    theirs = getattr(nn, kind)(I, H, dtype=torch.float64, **said)
    ours = copy.deepcopy(theirs)
    swap(ours)
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    found = []
    for layer in (theirs, ours):
        outputs, final = layer(x)
        outputs *= 0.5
        outputs[:, 0] = 0
        nn.ReLU(inplace=True)(outputs)
        ends = pytree.tree_leaves(final)
        for end in ends:
            end.mul_(2)
        loss = torch.stack([value.pow(3).sum() for value in (outputs, *ends)]).sum()
        found.append(torch.autograd.grad(loss, [x, *layer.parameters()]))
    torch.testing.assert_close(found[1], found[0])
