"""A model as a page: a browser writes, tags and classifies what Python does with the same weights."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import elman
from docs.browse import browser, chromium, complaints, title
from elman.data import Tokenizer
from elman.data.words import plain
from elman.errors import InputError, NotSupported
from elman.export.page.script import function, packed
from elman.export.step.flat import Array, Flat
from elman.export.step.single import Single
from tests.cases import CASES
from tests.export.compiled import by_cell, dequantised
from tests.export.test_c import CASES_IN_C, STEPS, close, leaves
from tests.pairwise import with_more

# What a stranger's vocabulary may hold.
STRANGE = "The quick <b>fox</b>, isn't it? </script><script>alert(1)</script>&amp; “naïve” \u2028 😀\n"


# How far to the right anything reaches at the width of a phone.
_WIDEST = """(document.body.style.width = "360px",
    Math.max(...[...document.querySelectorAll("main *:not(.scroll *)")].map((e) => e.getBoundingClientRect().right)))"""


def seen(page: Path, script: str) -> Any:
    """What a script gives, run in the page in a browser without a screen. Whatever the console says is an error."""
    path = browser()
    if path is None:
        pytest.skip("no chromium is installed")
    told = f"<script>document.title = JSON.stringify((() => {{ {script} }})());</script></body>"
    beside = page.with_name("told.html")
    beside.write_text(page.read_text("utf-8").replace("</body>", told), "utf-8")
    made = chromium(path, beside.as_uri(), "--dump-dom")
    assert not complaints(made.stderr)
    return json.loads(title(made.stdout))


def language(kind: str, text: str) -> elman.models.LanguageModel:
    tokenizer = Tokenizer.of(kind, text, {"words": 20, "bpe": 280}.get(kind))
    model = elman.models.LanguageModel(tokenizer.size, cell="gru", hidden=8, layers=2, embedding=8)
    model.tokenizer = tokenizer
    nn.init.normal_(model.readout.weight)
    return model


def greedy(model: elman.models.LanguageModel, prompt: str, length: int) -> str:
    """What it adds to a prompt."""
    tokenizer = model.tokenizer
    assert tokenizer is not None
    read = tokenizer.encode(prompt)
    unknown = [] if tokenizer.unknown is None else [tokenizer.unknown]
    symbols = model.generate(read, length, temperature=0, exclude=unknown)
    return tokenizer.decode([*read.tolist(), *symbols]).removeprefix(tokenizer.decode(read))


@pytest.mark.parametrize("kind", with_more(["characters"], ["bpe", "bytes", "words"]))
def test_a_page_writes_what_python_writes(kind: str, tmp_path: Path) -> None:
    model = language(kind, STRANGE)
    (page,) = elman.export(model, tmp_path / "model.html", title="<i>fox</i>")
    text = page.read_text("utf-8")
    assert not re.search(r"""(src|href)\s*=\s*["']?\w|url\(|@import|https?://""", text.replace(STRANGE, ""))
    assert text.count("<script") == 3
    assert "<i>fox" not in text
    probes = ["The quick", "isn't\n\n it", "zebra 中", ""]
    found = seen(page, f"""
        const box = document.getElementById("text");
        const type = (said) => {{
          box.value = said;
          box.dispatchEvent(new Event("input"));
          elman.write(0); // what is not read yet is read now
          return [...elman.model.out];
        }};
        const first = type("The quick"), more = elman.write(30, 0);
        type("The qui"); type("The slow"); type("");
        return {{
          more, value: document.getElementById("next").children.length, wide: {_WIDEST},
          same: String(type("The quick")) === String(first), state: [...elman.model.state],
          symbols: {json.dumps(probes)}.map((said) => elman.encode(said)),
        }};""")  # fmt: skip
    small = dequantised(model)
    tokenizer = model.tokenizer
    assert tokenizer is not None
    expected = greedy(small, "The quick", 30)
    assert found["more"] == expected[: len(found["more"])]
    assert len(expected) <= len(found["more"]) + (tokenizer.unknown is None)  # half a character is held back
    assert found["same"]
    assert found["symbols"] == [tokenizer.encode(said).tolist() for said in probes]
    assert found["wide"] <= 361
    assert found["value"] == 8
    _, state = small(tokenizer.encode("The quick")[:, None])
    close(np.array(found["state"]), torch.cat(state, 1)[0].detach().double().numpy())


@pytest.mark.parametrize("both, crf", with_more([(True, True)], [(False, False)], together=True))
def test_a_page_tags_what_python_tags(both: bool, crf: bool, tmp_path: Path) -> None:
    sentences = [["the", "cat", "sat", "."], ["a", "rat", "ran"]] * 4
    tagger = elman.models.Tagger(
        cell="elman",
        hidden=6,
        layers=1,
        embedding=4,
        spelling=3,
        steps=2,
        both=both,
        crf=crf,
        residual=True,
        norm=True,
    )
    tagger.fit(sentences, [["D", "N", "<b>", "P"], ["D", "N", "<b>"]] * 4)
    (page,) = elman.export(tagger.network, tmp_path / "tagger.html", weights="float32")
    asked = [["the", "cat", "ran", "."], ["Zebra", "sat"], ["."]]
    found = seen(page, f"""
        const box = document.getElementById("text");
        box.value = "a cat\\n\\nthe rat ran.";
        box.dispatchEvent(new Event("input"));
        return {{
          tags: {json.dumps(asked)}.map((words) => elman.tagged(words)), wide: {_WIDEST},
          words: [...document.querySelectorAll("#tags bdi")].map((word) => word.textContent),
        }};""")  # fmt: skip
    assert found["tags"] == tagger.predict(asked)
    assert found["words"] == ["a", "cat", "the", "rat", "ran", "."]
    assert found["wide"] <= 361


@pytest.mark.conformance
@pytest.mark.parametrize("weights", ["float32", "float16", "int8"])
@pytest.mark.parametrize(
    "x", [["abc", "bcd", "xyz", "zyx"], [[[1.0, 2.0]] * 3, [[0.0, 1e8 + 3], [1.0, 1e8]]] * 2]
)
def test_a_page_classifies_as_python_does(x: Any, weights: str, tmp_path: Path) -> None:
    labels = ["<b>one", "<b>one", "two", "two"]
    model = elman.models.Classifier(
        cell="elman", hidden=6, embedding=4, steps=4, pooling="max+mean+attention+last"
    )
    model.fit(x * 4, labels * 4)
    (page,) = elman.export(model.model_, tmp_path / "labels.html", weights=weights)
    said = x if isinstance(x[0], str) else ["\n".join(f"{a} {b}" for a, b in one) for one in x]
    found = seen(page, f"return {json.dumps(said)}.map((one) => [...elman.classified(one)]);")
    if weights == "int8":
        model.model_ = dequantised(model.model_)
    elif weights == "float16":
        with torch.no_grad():
            for value in model.model_.parameters():
                value.copy_(value.half().float() if value.dim() == 2 else value)
    np.testing.assert_allclose(found, model.predict_proba(x), rtol=2e-6)


def forecaster(law: str) -> elman.models.Forecaster:
    """Of two series of counts a month, one of them with gaps."""
    generator, months = np.random.default_rng(0), [f"{2000 + k // 12}-{k % 12 + 1:02}-01" for k in range(60)]
    y = generator.poisson(20 + 10 * np.sin(np.arange(60) * np.pi / 6)).astype(float)
    gaps = np.where(np.arange(60) % 7 == 3, np.nan, y[::-1])
    frame = {
        "unique_id": ["one"] * 60 + ["</script>two"] * 60,
        "ds": months * 2,
        "y": [*y, *gaps],
        "kind": ["a"] * 60 + ["b"] * 60,
    }
    model = elman.models.Forecaster(
        horizon=3, distribution=law, static=["kind"], hidden=6, layers=2, steps=20, folds=0, cell="elman"
    )
    return model.fit(frame)


@pytest.mark.parametrize("law", with_more(["gaussian"], ["quantiles", "student-t", "negative-binomial"]))
def test_a_page_forecasts_what_python_forecasts(law: str, tmp_path: Path) -> None:
    model, count = forecaster(law), 1000
    (page,) = elman.export(model, tmp_path / "series.html", weights="float32")
    found = seen(page, f"""
        const own = ({{y}}) => y.map((value) => value ?? NaN);
        document.getElementById("text").value += " 21 22";
        elman.act(true);
        return {{
          forecasts: elman.about.series.map((one) => elman.forecasted(one, own(one), {count})), wide: {_WIDEST},
          longer: elman.forecasted(elman.about.series[0], elman.parsed(document.getElementById("text").value), {count}),
          names: [...document.querySelectorAll("option")].map((one) => one.textContent),
          rows: [...document.querySelectorAll("#table td:first-child")].map((one) => one.textContent),
        }};""")  # fmt: skip
    names = ["one", "</script>two"]
    assert found["names"] == names
    assert found["rows"] == ["2005-03-01", "2005-04-01", "2005-05-01"], "two months have been added"
    assert found["wide"] <= 361
    made = model.predict(paths=1500)
    months = [f"{2002 + k // 12}-{k % 12 + 1:02}-01" for k in range(38)]
    y = [*model._ends[1].series[0].y[-36:], 21.0, 22.0]
    longer = {"unique_id": ["one"] * 38, "kind": ["a"] * 38, "ds": months, "y": y}
    wanted = [made, model.predict(frame=longer, paths=1500)]
    for which, ours in enumerate([*found["forecasts"], found["longer"]]):
        theirs, rows = wanted[which // 2], slice(3 * (which % 2), 3 * (which % 2) + 3)
        middle = np.array(theirs["0.5"])[rows]
        width = (
            1e-4
            if law == "quantiles"
            else 0.15 * (np.array(theirs["0.9"]) - np.array(theirs["0.1"]))[rows].max()
        )
        np.testing.assert_allclose(np.array(ours["quantiles"])[:, 4], middle, rtol=1e-5, atol=width)
        np.testing.assert_allclose(ours["mean"], np.array(theirs["mean"])[rows], rtol=1e-5, atol=width)


def test_a_page_tells_numbers_that_lie_far_from_0_apart(tmp_path: Path) -> None:
    y = [1e8 + 0.25 * (k % 7) for k in range(60)]
    model = elman.models.Forecaster(
        horizon=3, distribution="quantiles", hidden=4, steps=1, folds=0, cell="elman"
    ).fit(y)
    (page,) = elman.export(model, tmp_path / "series.html", weights="float32")
    found = seen(page, """
        elman.act(true);
        return {
          text: document.getElementById("text").value,
          medians: [...document.querySelectorAll("#table td:nth-child(3)")].map((one) => one.textContent),
          ticks: [...document.querySelectorAll("#chart text[text-anchor=end]")].map((one) => one.textContent),
        };""")  # fmt: skip
    assert found["text"].split()[-2:] == ["100000000.5", "100000000.75"]
    assert len(set(found["ticks"])) == len(found["ticks"]) > 2
    made = model.predict()
    assert [float(value.replace(",", "")) for value in found["medians"]] == pytest.approx(
        made["0.5"], rel=0, abs=2e-3
    )


def test_a_page_reads_the_numbers_of_a_series_alone() -> None:
    days = [f"2020-01-{k:02}" for k in range(1, 31)]
    frame = {"unique_id": ["a"] * 30, "ds": days, "y": [float(k % 7) for k in range(30)], "rain": [1.0] * 30}
    model = elman.models.Forecaster(
        horizon=2, cell="elman", hidden=4, layers=1, steps=1, folds=0, past=["rain"]
    ).fit(frame)
    with pytest.raises(NotSupported, match=r"other columns.*\n.*\n.*rain"):
        elman.export(model, "series.html")
    model.network.ends = None
    with pytest.raises(InputError, match="does not know the series"):
        elman.export(model, "series.html")


@pytest.mark.conformance
def test_steps_in_a_browser_are_those_of_the_cell(tmp_path: Path) -> None:
    """All cases in one page."""
    functions, arrays, given, expected = [], [], {}, {}
    for name in CASES_IN_C:
        case, generator = CASES[name], torch.Generator().manual_seed(0)
        x, state = case.x(STEPS, 1, generator, torch.float32), case.state(1, generator, torch.float32)
        first = pytree.tree_map(lambda leaf: leaf[0] if isinstance(leaf, Tensor) else leaf, x)
        step = Single.of(name, case.make().eval(), first, state)
        flat = Flat.of(step)
        functions.append(f"{name}: ({function(flat)})((name) => weights('{name} ' + name))")
        arrays += [Array(f"{name} {array.name}", array.values, array.row) for array in flat.arrays]
        xs = [[leaf[t] for leaf in leaves(x)] for t in range(STEPS)]
        given[name] = [
            {memory: [float(number) for value, leaf in zip(one, flat.inputs, strict=True) if leaf.memory == memory
                      for number in value.flatten()] for memory in ("x", "ids")}
            for one in xs
        ]  # fmt: skip
        expected[name] = by_cell(step, xs)
    said, data = packed(arrays, "float32")
    run = (Path(elman.__file__).parent / "export/page/run.js").read_text("utf-8")
    page = tmp_path / "cases.html"
    page.write_text(f"""<!doctype html><meta charset="utf-8"><title></title><body><script>{run}
        const weights = unpacked({json.dumps(said)}, "{data}"), cases = {{{", ".join(functions)}}};</script></body>""")
    found = seen(
        page,
        f"""
        const given = {json.dumps(given)}, found = {{}};
        for (const [name, steps] of Object.entries(given)) {{
          const program = cases[name], out = steps.map(({{x, ids}}) => {{
            program.x.set(x); program.ids.set(ids); program.step();
            return [...program.out];
          }});
          found[name] = [out, [...program.state]];
        }}
        return found;""",
    )
    for name, (out, state) in expected.items():
        close(np.array(found[name][0]).reshape(out.shape), out)
        close(np.array(found[name][1]), state)


def test_titles_are_shown_as_they_are() -> None:
    assert plain("<a & b>\x00\ud800\n\t") == "&lt;a &amp; b&gt;��\n\t"
