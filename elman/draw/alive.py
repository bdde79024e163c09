"""A picture alive, in one HTML file that needs nothing from elsewhere.

It holds the picture for every τ from 0 to `MOST`, and the numbers of an example for each, so that what runs in the
browser only shows: alive.js, which works from the keyboard and moves nothing for those who want no motion.
"""

from __future__ import annotations

import html
import json
from importlib import resources
from typing import Any

import torch

from elman.circuit import Circuit, Kind
from elman.draw import book
from elman.draw.example import Example, example
from elman.draw.scene import Scene
from elman.draw.svg import COLORS, svg
from elman.draw.variables import Equations, equations

MOST = 6  # steps that the slider unfolds
_SHOWN = 3  # numbers of a value that are written


def page(scene: Scene, circuit: Circuit | None, unfold: int | bool | None) -> str:
    """The text of the file; circuit: what is drawn, None for a layer or model, which is shown as it is."""
    pictures, plays, eq = {"": scene}, {}, None
    if circuit is not None:
        eq = equations(circuit)
        pictures = {"0": book.folded(eq)} | {str(t): book.unfolded(eq, t) for t in range(1, MOST + 1)}
        if not any(out.kind is Kind.SUM for out in circuit.outputs):
            plays = _plays(circuit, eq)
    start = (
        ""
        if circuit is None
        else str(min(unfold, MOST) if unfold not in (None, True) else 3 if unfold else 0)
    )
    title = html.escape(scene.title)
    shown = "\n".join(
        f'<figure data-tau="{tau}"{"" if tau == start else " hidden"}>{svg(picture, f"tau{tau}")}</figure>'
        for tau, picture in pictures.items()
    )
    weights = "".join(
        f'<button type="button" class="weight" data-weight="{html.escape(name)}" aria-pressed="false">'
        f'<span style="background:{COLORS[i % len(COLORS)]}"></span>{html.escape(name)}</button>'
        for i, name in enumerate(scene.parameters)
    )
    slider = (
        f'<label for="tau">τ, steps to unfold for: <output id="steps">{start}</output></label>'
        f'<input id="tau" type="range" min="0" max="{MOST}" step="1" value="{start}">'
        if circuit is not None
        else ""
    )
    buttons = (
        '<button type="button" id="play">Play</button><button type="button" id="next">Next step</button>'
        '<button type="button" id="back">Begin again</button>'
        if plays
        else ""
    )
    numbers = (
        '<p id="now" aria-live="polite">Play: numbers of a small example go forward, and the gradient comes back.</p>'
        '<ol id="log" tabindex="0" aria-label="What was computed so far"></ol>'
        if plays
        else ""
    )
    data = json.dumps(plays, ensure_ascii=False).replace("<", "\\u003c")
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{_file("alive.css")}</style></head>
<body><main><h1>{title}</h1>
<div class="controls">{slider}{buttons}</div>
<div class="weights" role="group" aria-label="Parameters: light up every copy">{weights}</div>
<div class="pictures">{shown}</div>
{numbers}</main>
<script type="application/json" id="plays">{data}</script>
<script>{_file("alive.js")}</script></body></html>
"""


def _file(name: str) -> str:
    return resources.files("elman.draw").joinpath(name).read_text("utf-8")


def _plays(circuit: Circuit, eq: Equations) -> dict[str, list[dict[str, Any]]]:
    """For every τ what is shown one after the other: {node, text}; nothing where the example cannot be run."""
    try:
        return {str(tau): _events(example(circuit, eq, tau), eq, tau) for tau in range(1, MOST + 1)}
    except Exception:  # numbers that mean nothing, in code that may raise anything
        return {}


def _events(run: Example, eq: Equations, steps: int) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    shown = [v for v in eq.variables if v.name and v.role != "before"]
    for t in range(1, steps + 1):
        for v in shown:
            if (v.key, t) in run.values:
                events.append(_event(v.key, t, f"{v.name}({t}) = {_number(run.values[v.key, t])}"))
        events.append({"node": None, "text": f"L({t}) = {run.losses[t - 1]:.3g}", "back": False})
    for t, so_far in zip(range(steps, 0, -1), run.sums, strict=False):
        for v in reversed(shown):
            if (v.key, t) in run.gradients and v.role != "input":
                events.append(
                    _event(v.key, t, f"∂L/∂{v.name}({t}) = {_number(run.gradients[v.key, t])}", True)
                )
        for name, total in so_far.items():
            events.append({
                "node": None, "weight": name, "back": True,
                "text": f"d{name}, summed from step {steps} to {t} = {_number(total)}",
            })  # fmt: skip
    return events


def _event(key: str, t: int, text: str, back: bool = False) -> dict[str, Any]:
    return {"node": f"{key}@{t}", "text": text, "back": back}


def _number(value: torch.Tensor) -> str:
    flat = value.flatten()
    said = ", ".join(f"{float(one):.3f}" for one in flat[:_SHOWN])
    return f"[{said}{', …' if flat.numel() > _SHOWN else ''}]"


__all__ = ["MOST", "page"]
