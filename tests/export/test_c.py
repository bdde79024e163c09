"""A step in C: compiled with every warning an error, watched by sanitizers, its numbers those of the cell."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import elman
from elman.data import Tokenizer
from elman.engines.native.extension import compiled
from elman.errors import ElmanError, InputError, NotSupported
from elman.export.c.text import pieces_of
from elman.export.step.single import Single, single
from elman.export.step.statements import FORMS, _Writing
from elman.models.autoencoding import AutoencoderNetwork
from elman.models.sequence_classifier import SequenceClassifier
from tests.cases import CASES
from tests.export.compiled import FLAGS, SANITIZE, build, by_cell, compiler, dequantised, run, written
from tests.pairwise import with_more

STEPS = 5
# Sums in another order, and libm's functions in place of ours: at most 6.3e-7 of the largest number, over all cases.
TOLERANCE = 1e-6
CASES_IN_C = [name for name, case in CASES.items() if not case.noise and case.contexts is None]
FEW = ("counting_rnn", "loss_rnn")
BUILDS = {"sanitized": ("gcc", "-O1", *SANITIZE), "gcc": ("gcc", "-O2"), "clang": ("clang", "-O2"),
          "double": ("gcc", "-O2", "-DELMAN_FLOAT=double")}  # fmt: skip


def close(got: np.ndarray, expected: np.ndarray) -> None:
    """Equal but for `TOLERANCE` of the largest number."""
    assert got.shape == expected.shape
    assert np.abs(got - expected).max(initial=0) <= TOLERANCE * np.abs(expected).max(initial=0)


def leaves(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


@pytest.mark.parametrize("how", with_more(["sanitized"], ["gcc", "clang", "double"]))
@pytest.mark.parametrize("name", with_more(FEW, [name for name in CASES_IN_C if name not in FEW]))
def test_steps_are_those_of_the_cell(name: str, how: str, tmp_path: Path) -> None:
    case, generator = CASES[name], torch.Generator().manual_seed(0)
    x, state = case.x(STEPS, 1, generator, torch.float32), case.state(1, generator, torch.float32)
    first = pytree.tree_map(lambda leaf: leaf[0] if isinstance(leaf, Tensor) else leaf, x)
    step = Single.of(name, case.make().eval(), first, state)
    flat = written(tmp_path, step)
    xs = [[leaf[t] for leaf in leaves(x)] for t in range(STEPS)]
    for got, expected in zip(run(build(tmp_path, *BUILDS[how]), flat, xs), by_cell(step, xs), strict=True):
        close(got, expected)


def _classifier() -> tuple[Any, list[Tensor]]:
    model = SequenceClassifier(9, 3, cell="gru", hidden=6, layers=2, embedding=4, pooling="max+mean+attention+last",
                               both=False, norm=True, residual=True)  # fmt: skip
    return model, [torch.tensor([k]) for k in (1, 4, 5, 2)]


def _far() -> tuple[Any, list[Tensor]]:
    model = SequenceClassifier(2, 3, False, cell="gru", hidden=6, layers=1, both=False)
    model.standardise([torch.tensor([[1e8 + 3, 1.0], [1e8 + 30, 2.0]], dtype=torch.float64)])
    return model, [torch.tensor([[1e8 + 8 * k, float(k)]]) for k in range(4)]


def _language() -> tuple[Any, list[Tensor]]:
    model = elman.models.LanguageModel(9, cell=["lstm", "elman"], hidden=6, embedding=6, tie=True)
    return model, [torch.tensor([k]) for k in (1, 4, 5, 2)]


def _numbers() -> tuple[Any, list[Tensor]]:
    inner = elman.nn.GRU(3, 5, num_layers=2)
    stack = elman.Stack(inner, elman.Recurrent(elman.cells.Leaky(5, 5)), residual=[False, True])
    x = torch.randn(4, 1, 3)
    stack(x)
    return stack, list(x)


@pytest.mark.parametrize("make", with_more([_language, _far], [_classifier, _numbers]))
def test_models_are_their_own_steps(make: Any, tmp_path: Path) -> None:
    module, xs = make()
    flat = written(tmp_path, single(module))
    got, _ = run(build(tmp_path, "gcc", "-O1", *SANITIZE), flat, [[x] for x in xs])
    state, expected = None, []
    with torch.no_grad():
        for x in xs:
            out, state = module.eval().step(x, state)
            expected.append(out[0].double().numpy())
    close(got, np.stack(expected))


def test_eight_bits_are_a_scale_for_each_row(tmp_path: Path) -> None:
    model, xs = _language()
    flat = written(tmp_path, single(model), "int8")
    (got, end), small = run(build(tmp_path, "gcc", "-O2"), flat, [[x] for x in xs]), dequantised(model)
    for a, b in zip((got, end), by_cell(single(small), [[x] for x in xs]), strict=True):
        close(a, b)
    assert "float w_embedding_weight[]" not in (tmp_path / "step.c").read_text()
    with torch.no_grad():
        assert not np.allclose(got[0], model.step(xs[0])[0][0], rtol=1e-4, atol=0)


def test_a_symbol_that_is_none_shows(tmp_path: Path) -> None:
    model, _ = _language()
    flat = written(tmp_path, single(model))
    out, end = run(build(tmp_path, "gcc", "-O1", *SANITIZE), flat, [[torch.tensor([8])], [torch.tensor([9])]])
    assert np.isfinite(out[0]).all()
    assert np.isnan(out[1]).all()
    assert np.isnan(end).all()


@pytest.mark.parametrize("kind", with_more(["characters"], ["bpe", "bytes", "words"]))
def test_a_language_model_is_a_program(kind: str, tmp_path: Path) -> None:
    text = 'The "quick" brown fox??/ isn\'t naïve;\n\\n said *he*. ' * 3
    tokenizer = Tokenizer.of(kind, text, {"words": 20, "bpe": 280}.get(kind))
    model = elman.models.LanguageModel(tokenizer.size, cell="gru", hidden=8, embedding=8)
    model.tokenizer = tokenizer
    nn.init.normal_(model.readout.weight)
    elman.export(model, tmp_path / "model.c", prefix="fox")
    made = subprocess.run(
        [compiler("gcc"), *FLAGS, *SANITIZE, "-DFOX_MAIN", "model.c", "-o", "model", "-lm"], cwd=tmp_path,
        capture_output=True, text=True,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr[-2000:]
    for prompt in ("The quick", ""):
        unknown = [] if tokenizer.unknown is None else [tokenizer.unknown]
        symbols = model.generate(tokenizer.encode(prompt or "\n"), 30, temperature=0, exclude=unknown)
        pieces = [pieces_of(tokenizer)[k] for k in symbols]
        if kind == "words":
            pieces = [piece if piece == b"\n" else b" " + piece for piece in pieces]
        said = subprocess.run([tmp_path / "model", prompt, "30"], capture_output=True, check=True).stdout
        assert said == (prompt or "\n").encode() + b"".join(pieces) + b"\n"
    drawn = [subprocess.run([tmp_path / "model", "T", "40", "1", seed], capture_output=True, check=True).stdout
             for seed in ("1", "1", "2")]  # fmt: skip
    assert drawn[0] == drawn[1] != drawn[2]


def test_every_code_has_a_form() -> None:
    along = {name.removeprefix("_") for name in vars(_Writing)}
    missing = set(compiled.CODES) - FORMS.keys() - along
    # Numbers are literals, a step of a cell has no backward pass, and narrow weights are a stream's own business.
    backward = {"softmax_backward", "log_softmax_backward", "layer_norm_backward"}
    assert missing == {"fill", "int_fill", "product_bfloat16", "product_int8"} | backward


class Evil(nn.Module):
    def forward(self, x: dict[str, Tensor], h: Tensor) -> Tensor:
        return torch.tanh(sum(x.values()) + h)


def test_words_of_a_stranger_stay_in_their_comment(tmp_path: Path) -> None:
    words = ["*/ #error a", "/* b", "??/\n#error c", "é\\"]
    step = Single.of("*/\n#error", Evil(), {word: torch.zeros(1, 2) for word in words}, torch.zeros(1, 2))
    written(tmp_path, step)
    build(tmp_path, "gcc")


def test_a_small_processor_compiles_it(tmp_path: Path) -> None:
    name = compiler("arm-none-eabi-gcc")
    written(tmp_path, single(_language()[0]), "int8")
    flags = (*FLAGS, "-Os", "-mcpu=cortex-m4", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16")
    made = subprocess.run([name, *flags, "-c", "step.c"], cwd=tmp_path, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr[-2000:]


class Noisy(nn.Module):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return x + h + torch.rand_like(h)

    def initial_state(self, batch: int) -> Tensor:
        return torch.zeros(batch, 2)


def _called(layer: Any, dtype: torch.dtype = torch.float32) -> Any:
    layer(torch.zeros(1, 1, 2, dtype=dtype))
    return layer


GRU = elman.cells.GRU


REFUSED = {
    "both directions": lambda: _called(elman.Bidirectional(GRU(2, 2), GRU(2, 2))),
    "its first step is the sequence's last": lambda: _called(elman.Recurrent(GRU(2, 2), reverse=True)),
    "random numbers": lambda: _called(elman.Recurrent(Noisy())),
    "in float32": lambda: _called(elman.Recurrent(GRU(2, 2).double()), torch.float64),
    "not known yet": lambda: elman.Recurrent(GRU(2, 2)),
    "told something about each sequence": lambda: elman.models.LanguageModel(5, hidden=2, condition=3),
    "no step": lambda: nn.Linear(2, 2),
}  # fmt: skip


@pytest.mark.parametrize("why", REFUSED)
def test_what_is_refused(why: str, tmp_path: Path) -> None:
    with pytest.raises(ElmanError, match=re.escape(why)):
        elman.export(REFUSED[why](), tmp_path / "a.c")
    assert not list(tmp_path.iterdir())


class Gammas(nn.Module):
    hidden_size = 3

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(torch.lgamma(h.square() + x.square() + 1))


def test_the_mend_of_what_has_no_form_helps(tmp_path: Path) -> None:
    layer = elman.Recurrent(Gammas())
    layer(torch.zeros(2, 1, 3))
    with pytest.raises(
        NotSupported, match=r"no form for aten\.lgamma(?s:.*)export to \.pt2, which holds any"
    ):
        elman.export(layer, tmp_path / "a.c")
    assert elman.export(layer, tmp_path / "a.pt2") == (tmp_path / "a.pt2",)
    with pytest.raises(NotSupported) as caught:  # which no target has
        elman.export(_called(elman.Recurrent(Noisy())), tmp_path / "a.c")
    assert ".pt2" not in str(caught.value)
    assert "outside of the step" in str(caught.value)


def test_options_are_looked_at(tmp_path: Path) -> None:
    model = _language()[0]
    refused: tuple[dict[str, Any], ...] = ({"weights": "float16"}, {"prefix": "a b"}, {"prefix": "1"})
    for how in refused:
        with pytest.raises(InputError):
            elman.export(model, tmp_path / "a.c", **how)
    with torch.no_grad():
        model.embedding.weight[1, 1] = torch.inf
    with pytest.raises(InputError, match="not finite"):
        elman.export(model, tmp_path / "a.c", weights="int8")
    with pytest.raises(NotSupported, match="no page"):
        elman.export(nn.Linear(1, 1), tmp_path / "a.html")
    coder, reader = AutoencoderNetwork(5, hidden=3, embedding=2), SequenceClassifier(5, 2, hidden=3, layers=1)
    with pytest.raises(NotSupported, match=r"no page for an auto-encoder(?s:.*)to \.onnx or \.pt2"):
        elman.export(coder, tmp_path / "a.html")
    with pytest.raises(NotSupported, match=r"an auto-encoder has no step(?s:.*)--to onnx"):
        elman.export(coder, tmp_path / "a.c")
    with pytest.raises(NotSupported, match=r"--one-direction"):
        elman.export(reader, tmp_path / "a.c")
    assert not list(tmp_path.iterdir())
