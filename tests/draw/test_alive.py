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
from elman.draw.example import ExampleRun, backward, example
from elman.draw.told import Told, loss, told
from elman.draw.variables import equations
from tests.draw.things import thing
from tests.pairwise import with_more


def played(name: str, steps: int) -> tuple[ExampleRun, tuple[Told, ...]]:
    circuit = thing(name)
    rows = told(circuit, equations(circuit))
    return example(circuit, rows, loss(circuit, rows), steps), rows


@pytest.mark.parametrize("name", ["elman", "jordan", "gru", "lstm", "readout", "autonomous"])
def test_numbers_are_those_of_unfold_and_autograd(name: str) -> None:
    circuit, steps = thing(name), 4
    run, _ = played(name, steps)
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


@pytest.mark.parametrize("name", ["readout", "both"])
def test_a_and_delta_and_y_hat_are_those_of_the_equations(name: str) -> None:
    steps = 3
    run, rows = played(name, steps)
    p, h, made = run.inputs, torch.zeros(1, 4), []
    for t in range(steps):
        a = (h @ p["W_weight"].T + p["x_0"][t] @ p["U_weight"].T + p["U_bias"]).requires_grad_()
        h = torch.tanh(a)
        o = h @ p["V_weight"].T + p["V_bias"]
        y_hat = torch.exp(o) / torch.exp(o).sum()
        made.append({"a": a, "h": h, "o": o, "ŷ": y_hat, "L": -y_hat[:, int(p["x_1"][t])].log()})
    total = torch.cat([step["L"] for step in made]).sum()
    key = {row.name: row.key for row in rows}
    assert [row.name for row in rows if row.delta] == ["a"]
    for t, step in enumerate(made, 1):
        for what, value in step.items():
            torch.testing.assert_close(run.values[key[what], t], value.detach())
            if what != "ŷ":
                (gradient,) = torch.autograd.grad(total, value, retain_graph=True)
                torch.testing.assert_close(run.gradients[key[what], t], gradient)


@pytest.mark.parametrize(
    ("name", "forward", "back", "loss_said"),
    [
        ("both", ["x", "y", "a", "h", "o", "ŷ", "L"], ["∂L/∂L", "∂L/∂o", "∂L/∂h", "δ"], "L = Σ L(t)"),
        ("elman", ["x", "a", "h", "L"], ["∂L/∂h", "δ"], "L = Σ L(t) with L(t) = ½‖h(t)‖²"),
        # no name in the code for what its only tanh takes
        ("autonomous", ["a", "s", "L"], ["∂L/∂s", "δ"], "L = Σ L(t) with L(t) = ½‖s(t)‖²"),
    ],
)
def test_a_step_is_told_in_order_and_nothing_twice(
    tmp_path: Path, name: str, forward: list[str], back: list[str], loss_said: str
) -> None:
    text = page(tmp_path, name)
    said = [event["text"] for event in plays(text)["2"]]
    assert [one.split("(")[0] for one in said if "(1) = " in one] == forward + back
    assert re.search(f'<p id="loss">{re.escape(loss_said)}: ', text)
    assert {event["node"] for event in plays(text)["2"]} - {None} <= set(
        re.findall(r'data-node="([^"]+)"', text)
    )


def page(tmp_path: Path, name: str) -> str:
    return elman.draw(thing(name)).save(tmp_path / "a.html").read_text("utf-8")


def plays(text: str) -> dict[str, list[dict[str, Any]]]:
    return json.loads(re.search(r'id="plays">(.*?)</script>', text, re.S)[1])  # type: ignore[index]


def test_one_file_without_anything_from_elsewhere(tmp_path: Path) -> None:
    text = page(tmp_path, "gru")
    assert not re.search(r"(src|href)\s*=|url\(|@import|https?://(?!www\.w3\.org/2000/svg)", text)
    assert text.count("<figure") == 7
    said = [event["text"] for event in plays(text)["2"]]
    first = next(i for i, text in enumerate(said) if text.startswith("∂L/∂"))
    assert [text.split(" ")[0] for text in said[:first] if text.startswith("L(")] == ["L(1)", "L(2)"]
    assert said[first].startswith("∂L/∂h(2)")
    assert said[-1].startswith("dc, summed from step 2 to 1")


def test_an_adjoint_plays_too(tmp_path: Path) -> None:
    circuit, steps = elman.adjoint(thing("elman")), 3
    run = backward(circuit, told(circuit, equations(circuit)), steps)
    whole = elman.unfold(circuit, steps)(run.inputs)
    for out in circuit.outputs_of(Kind.SUM):
        torch.testing.assert_close(run.sums[-1][f"∇{out.path.split('.')[-1]}"], whole[out.name])
    text = elman.draw(circuit).save(tmp_path / "a.html").read_text("utf-8")
    said = [event["text"] for event in plays(text)["2"]]
    assert said[0].startswith("∇o(2) =")
    assert said[-1].startswith("∇b, summed from step 2 to 1 =")
    assert {event["node"] for event in plays(text)["2"]} <= set(re.findall(r'data-node="([^"]+)"', text))


def test_operations_alive_are_operations(tmp_path: Path) -> None:
    text = elman.draw(thing("gru"), level="ops").save(tmp_path / "a.html").read_text("utf-8")
    assert text.count("<figure") == 4
    assert "step by step" in text


# What a reader does, told to the page itself; what he then sees is written into its title.
_READER = """
<script>
const see = () => [...document.querySelectorAll("#log li")].map((li) => li.textContent);
const seen = {};
const slider = document.getElementById("tau");
const shown = [...document.querySelectorAll("figure")].find((f) => !f.hidden).firstElementChild;
const [at, page] = [shown, document.querySelector("main")].map((e) => e.getBoundingClientRect());
seen.aside = Math.abs(at.left + at.right - page.left - page.right) / 2;
seen.larger = at.width / shown.getAttribute("width");
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


# Layers of one kind in a row open on a click, and close by keyboard.
_OPENER = """
<script>
const visible = () => [...document.querySelectorAll("figure")].find((f) => !f.hidden);
const words = () => [...visible().querySelectorAll("text")].map((t) => t.textContent);
const frame = () => visible().querySelector("[role=button]");
const seen = {closed: words(), expanded: [frame().getAttribute("aria-expanded")]};
frame().dispatchEvent(new MouseEvent("click"));
seen.open = words();
seen.expanded.push(frame().getAttribute("aria-expanded"));
seen.focused = document.activeElement === frame();
frame().dispatchEvent(new KeyboardEvent("keydown", {key: "Enter"}));
seen.again = words();
seen.wide = document.documentElement.scrollWidth <= window.innerWidth;
document.title = JSON.stringify(seen);
</script>
"""


@pytest.mark.parametrize("size", with_more(["390,800"], ["1280,900"]))
def test_a_browser_opens_layers(tmp_path: Path, size: str) -> None:
    model = elman.models.LanguageModel(11, hidden=4, layers=3, embedding=4)
    drawing = elman.draw(model, torch.zeros(3, 2, dtype=torch.long))
    seen = read(tmp_path, drawing.save(tmp_path / "a.html").read_text("utf-8"), _OPENER, size)
    assert "3 × GRU" in seen["closed"]
    assert seen["again"] == seen["closed"]
    assert {"GRU, 1 of 3", "GRU, 2 of 3", "GRU, 3 of 3"} <= set(seen["open"])
    assert seen["expanded"] == ["false", "true"]
    assert seen["focused"]
    assert seen["wide"]


@pytest.mark.parametrize("size", with_more(["1280,900"], ["390,800"]))
def test_a_browser_shows_it(tmp_path: Path, size: str) -> None:
    text = page(tmp_path, "elman")
    seen = read(tmp_path, text, _READER, size)
    assert seen["aside"] < 1, "in the middle of the page"
    assert 1.2 < seen["larger"] < 1.7, "a small picture uses some of the room"
    assert seen["start"] == ["0"]
    assert seen["unfolded"] == ["2"]
    assert seen["log"] == [event["text"] for event in plays(text)["2"]]
    assert seen["again"] == []
    assert seen["lit"] == 2  # U, once a step
    assert seen["dark"] == 0
    assert seen["wide"]


def read(tmp_path: Path, text: str, script: str, size: str) -> dict[str, Any]:
    """What a script finds in a page in a browser of a size."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium is installed")
    (tmp_path / "b.html").write_text(text.replace("</body>", f"{script}</body>"), "utf-8")
    made = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
         f"--window-size={size}", "--dump-dom", f"file://{tmp_path / 'b.html'}"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    title = re.search(r"<title>(\{.*?\})</title>", made.stdout, re.S)
    assert title is not None, made.stderr[-500:]
    return json.loads(title[1].replace("&amp;", "&"))
