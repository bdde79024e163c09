"""The living picture: its numbers are those of `unfold` and autograd, and a browser shows them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

import elman
from elman.circuit.form import Kind
from elman.draw.example import example
from elman.draw.variables import equations
from tests.draw.things import thing


@pytest.mark.parametrize("name", ["elman", "jordan", "gru", "lstm", "readout", "autonomous"])
def test_numbers_are_those_of_unfold_and_autograd(name: str) -> None:
    circuit, steps = thing(name), 4
    eq = equations(circuit)
    run = example(circuit, eq, steps)
    leaves = {
        port.name: run.inputs[port.name].clone().requires_grad_()
        for port in circuit.inputs_of(Kind.CONSTANT)
        if not port.rows
    }
    whole = elman.unfold(circuit, steps)({**run.inputs, **leaves})
    out = circuit.outputs_of(Kind.SEQUENCE)[0]
    o = whole[out.name]
    key = circuit.wire(out.wire).name
    for t in range(steps):
        torch.testing.assert_close(run.values[key, t + 1], o[t].detach())
    total = o.sum() if o.dim() < 3 else o.square().sum() / 2
    torch.testing.assert_close(torch.tensor(sum(run.losses)), total.detach())
    gradients = torch.autograd.grad(total, list(leaves.values()))
    for port, gradient in zip(leaves, gradients, strict=True):
        torch.testing.assert_close(
            run.sums[-1][port.removesuffix("_weight").replace("_bias", ".bias")], gradient
        )
    if (
        out.path == "output" and o.dim() == 3
    ):  # the loss's own share of ∂L/∂o(τ) is all of it at the last step
        torch.testing.assert_close(run.gradients[key, steps], o[-1].detach())


def page(tmp_path: Path, name: str) -> str:
    return elman.draw(thing(name)).save(tmp_path / "a.html").read_text("utf-8")


def test_one_file_without_anything_from_elsewhere(tmp_path: Path) -> None:
    text = page(tmp_path, "gru")
    assert not re.search(r"(src|href)\s*=|url\(|@import|https?://(?!www\.w3\.org/2000/svg)", text)
    assert text.count("<figure") == 7
    plays = json.loads(re.search(r'id="plays">(.*?)</script>', text, re.S)[1])  # type: ignore[index]
    said = [event["text"] for event in plays["2"]]
    first = next(i for i, text in enumerate(said) if text.startswith("∂L/∂"))
    assert [text.split(" ")[0] for text in said[:first] if text.startswith("L(")] == ["L(1)", "L(2)"]
    assert said[first].startswith("∂L/∂h(2)")
    assert said[-1].startswith("dc, summed from step 2 to 1")


# What a reader does, told to the page itself; what he then sees is written into its title.
_READER = """
<script>
const see = () => [...document.querySelectorAll("#log li")].map((li) => li.textContent);
const seen = {};
const slider = document.getElementById("tau");
seen.start = [...document.querySelectorAll("figure")].filter((f) => !f.hidden).map((f) => f.dataset.tau);
slider.value = "2"; slider.dispatchEvent(new Event("input"));
seen.unfolded = [...document.querySelectorAll("figure")].filter((f) => !f.hidden).map((f) => f.dataset.tau);
for (let i = 0; i < 400; i += 1) document.getElementById("next").click();
seen.log = see();
document.getElementById("back").click();
seen.again = see();
const weight = document.querySelector(".weight");
weight.click();
seen.lit = document.querySelectorAll("figure:not([hidden]) g.lit").length;
weight.click();
seen.dark = document.querySelectorAll("figure:not([hidden]) g.lit").length;
seen.wide = document.documentElement.scrollWidth <= window.innerWidth;
document.title = JSON.stringify(seen);
</script>
"""


@pytest.mark.parametrize("size", ["390,800", "1280,900"])
def test_a_browser_shows_it(tmp_path: Path, size: str) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium is installed")
    text = page(tmp_path, "elman").replace("</body>", f"{_READER}</body>")
    (tmp_path / "b.html").write_text(text, "utf-8")
    made = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
         f"--window-size={size}", "--dump-dom", f"file://{tmp_path / 'b.html'}"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    title = re.search(r"<title>(\{.*?\})</title>", made.stdout, re.S)
    assert title is not None, made.stderr[-500:]
    seen: dict[str, Any] = json.loads(title[1].replace("&amp;", "&"))
    plays = json.loads(re.search(r'id="plays">(.*?)</script>', text, re.S)[1])  # type: ignore[index]
    assert seen["start"] == ["0"]
    assert seen["unfolded"] == ["2"]
    assert seen["log"] == [event["text"] for event in plays["2"]]
    assert seen["again"] == []
    assert seen["lit"] == 2  # U, once a step
    assert seen["dark"] == 0
    assert seen["wide"]
