"""A picture alive, in one HTML file that needs nothing from elsewhere.

It holds the picture for every τ from 0 to `MOST`, and the numbers of an example for each, so that what runs in the
browser only shows: alive.js, which works from the keyboard and moves nothing for those who want no motion.
"""

from __future__ import annotations

import html
import itertools
import json
from collections.abc import Callable
from importlib import resources
from typing import Any

import torch

from elman.circuit import Circuit, Kind
from elman.draw.example import ExampleRun, backward, example
from elman.draw.scene import Scene
from elman.draw.svg import COLORS, DARK_COLORS, size, svg
from elman.draw.told import Loss, Told, loss, told
from elman.draw.variables import equations

MOST, MOST_OPS = 6, 3  # steps that the slider unfolds, at the level of the book and at that of operations
_SHOWN = 3  # numbers of a value that are written


def page(
    scene: Scene,
    variants: Callable[[Any], Scene] | None,
    circuit: Circuit | None,
    unfold: int | bool | None,
    level: str,
) -> str:
    """The text of the file; the arguments are the fields of a `Drawing`."""
    start, pictures, plays, loss_text = "", {"": scene}, {}, ""
    if circuit is not None and variants is not None:
        most = MOST if level == "book" else MOST_OPS
        pictures = {str(t): variants(t) for t in range(most + 1)}
        plays, loss_text = _plays(circuit) if level == "book" else ({}, "")
        start = str(3 if unfold is True else min(unfold or 0, most))
    elif variants is not None:
        pictures |= {key: variants(key) for key in _openings(scene)}
    title = html.escape(scene.title)
    shown = "\n".join(
        f'<figure data-tau="{tau}" style="{_size(picture)}"{"" if tau == start else " hidden"}>'
        f"{svg(picture, f'tau{n}', 'group')}</figure>"
        for n, (tau, picture) in enumerate(pictures.items())
    )
    weights = "".join(
        f'<button type="button" class="weight" data-weight="{html.escape(name)}" aria-pressed="false">'
        f'<span style="--light:{COLORS[i % len(COLORS)]};--dark:{DARK_COLORS[i % len(COLORS)]}"></span>'
        f"{html.escape(name)}</button>"
        for i, name in enumerate(scene.parameters)
    )
    slider = (
        f'<label for="tau">τ, steps to unfold for: <output id="steps">{start}</output></label>'
        f'<input id="tau" type="range" min="0" max="{len(pictures) - 1}" step="1" value="{start}">'
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
        f'<p id="now" aria-live="polite">{_invitation(circuit)}</p>'
        f'<p id="loss">{loss_text}</p>'
        '<ol id="log" tabindex="0" aria-label="What was computed so far"></ol>'
        if plays
        else ""
    )
    hint = (
        "<p>A frame with a number, as 3 ×, opens on click.</p>"
        if circuit is None and len(pictures) > 1
        else ""
    )
    data = json.dumps(plays, ensure_ascii=False).replace("<", "\\u003c")
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{_file("alive.css")}</style></head>
<body><main><h1>{title}</h1>
<div class="controls">{slider}{buttons}</div>
<div class="weights" role="group" aria-label="Parameters: light up every copy">{weights}</div>
{hint}<div class="pictures" tabindex="0" role="region" aria-label="Picture">{shown}</div>

{numbers}</main>
<script type="application/json" id="plays">{data}</script>
<script>{_file("alive.js")}</script></body></html>
"""


def _size(scene: Scene) -> str:
    """Width and height, by which alive.css chooses how large a picture is shown."""
    wide, high = size(scene)
    return f"--wide:{wide:.0f};--high:{high:.0f}"


def _file(name: str) -> str:
    return resources.files("elman.draw").joinpath(name).read_text("utf-8")


def _invitation(circuit: Circuit | None) -> str:
    if circuit is not None and any(out.kind is Kind.SUM for out in circuit.outputs):
        return "Play: gradients of a small example come back through time, and add up."
    return "Play: numbers of a small example go forward, and the gradient comes back."


def _openings(scene: Scene) -> list[str]:
    """Which repeats may be open: any of up to three, else all of them."""
    repeats = [group.key.split()[1] for group in scene.groups if group.key.startswith("repeat ")]
    if len(repeats) > 3:
        return [" ".join(repeats)]
    return [" ".join(some) for n in range(1, len(repeats) + 1) for some in itertools.combinations(repeats, n)]


def _plays(circuit: Circuit) -> tuple[dict[str, list[dict[str, Any]]], str]:
    """(for every τ what is shown one after the other: {node, text}; how the loss is made); nothing where the example
    cannot be run."""
    rows = told(circuit, equations(circuit))
    try:
        if any(out.kind is Kind.SUM for out in circuit.outputs):
            runs = {tau: backward(circuit, rows, tau) for tau in range(1, MOST + 1)}
            return {str(tau): _events_back(run, rows, tau) for tau, run in runs.items()}, ""
        sent = loss(circuit, rows)
        forth = {tau: example(circuit, rows, sent, tau) for tau in range(1, MOST + 1)}
        return {str(tau): _events(run, rows, sent, tau) for tau, run in forth.items()}, html.escape(sent.text)
    except Exception:  # numbers that mean nothing, in code that may raise anything
        return {}, ""


def _events(run: ExampleRun, rows: tuple[Told, ...], sent: Loss, steps: int) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    for t in range(1, steps + 1):
        for row in rows:
            if (row.key, t) in run.values:
                events.append(_event(row, t, f"{row.name}({t}) = {_number(run.values[row.key, t])}"))
        if not sent.own and (t == steps or not sent.last):
            sign = "L" if sent.last else f"{sent.sign}({t})"
            events.append({"node": None, "text": f"{sign} = {run.losses[t - 1]:.3g}", "back": False})
    for t, so_far in zip(range(steps, 0, -1), run.sums, strict=False):
        for row in reversed(rows):
            if (row.key, t) in run.gradients and row.role not in ("input", "share"):
                text = f"∂L/∂{row.name}({t}) = {_number(run.gradients[row.key, t])}"
                events.append(_event(row, t, f"δ({t}) = {text}" if row.delta else text, True))
        for name, total in so_far.items():
            events.append({
                "node": None, "weight": name, "back": True,
                "text": f"d{name}, summed from step {steps} to {t} = {_number(total)}",
            })  # fmt: skip
    return events


def _events_back(run: ExampleRun, rows: tuple[Told, ...], steps: int) -> list[dict[str, Any]]:
    """Of an adjoint: what comes in and is worked out of it, how the sums grow, from the last step to the first."""
    events: list[dict[str, Any]] = []
    for t, so_far in zip(range(steps, 0, -1), run.sums, strict=True):
        for row in rows:
            if row.role != "sum" and (row.key, t) in run.values:
                text = f"{row.name}({t}) = {_number(run.values[row.key, t])}"
                events.append(_event(row, t, text, row.role != "input"))
        for row in rows:
            if row.role == "sum" and row.name in so_far:
                text = f"{row.name}, summed from step {steps} to {t} = {_number(so_far[row.name])}"
                events.append(_event(row, t, text, True) | {"weight": row.name.removeprefix("∇")})
    return events


def _event(row: Told, t: int, text: str, back: bool = False) -> dict[str, Any]:
    return {"node": f"{row.place}@{t}" if row.place else None, "text": text, "back": back}


def _number(value: torch.Tensor) -> str:
    flat = value.flatten()
    numbers = ", ".join(f"{float(one):.3f}" for one in flat[:_SHOWN])
    return f"[{numbers}{', …' if flat.numel() > _SHOWN else ''}]"


__all__ = ["MOST", "page"]
