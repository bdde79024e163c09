"""Layers and whole models: a frame for every recurrence, with its own picture in it, and a plain box for the rest.

What comes first stands lowest. Layers of one kind in a row are drawn once, with their number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from elman.circuit import Circuit
from elman.draw.lines import bent
from elman.draw.measure import width
from elman.draw.scene import Box, Edge, Group, Node, Scene, Text
from elman.errors import StateError
from elman.recurrent import Bidirectional, Recurrent
from elman.recurrent.stack import Compound

Draw = Callable[[Circuit], Scene]
_PAD, _HEAD, _ROOM = 16.0, 30.0, 34.0  # inside a frame, its heading, between two parts
_APART = 72.0  # two pictures in a frame, which are not one row


@dataclass(frozen=True)
class _Part:
    """What is drawn as one: a title, and pictures side by side with a word for each.

    kind: what two parts must share to be drawn as one.
    """

    title: str
    scenes: tuple[tuple[str, Scene], ...] = ()
    kind: object = None


def composed(module: torch.nn.Module, draw: Draw, opened: str = "") -> Scene:
    """The picture of a module that holds recurrences.

    draw: makes that of a circuit. opened: the numbers of the repeats, "0 2", that are drawn layer by layer.
    """
    rows: list[list[_Part]] = []
    for part in _parts(module, draw):
        if rows and part.kind is not None and rows[-1][0].kind == part.kind:
            rows[-1].append(part)
        else:
            rows.append([part])
    name = type(module).__name__
    inputs = Node("in", 0, 0, 44, 44, "variable", (Text(0, 0, "x"),), "x", None, "input")
    pieces, places, descriptions, repeats = [Scene("", "", (inputs,))], [(inputs.box, "in")], [], 0
    for number, parts in enumerate(rows):
        part, many = parts[0], len(parts) > 1
        title = f"{len(parts)} × {part.title}" if many else part.title
        key = f"repeat {repeats}" if many else f"part {number}"
        below = places[-1][0].top - _ROOM
        if many and str(repeats) in opened.split():
            scene = _opened(title, key, parts, number, below)
        else:
            scene = _closed(title, key, part, str(number), below)
        repeats += many
        pieces.append(scene)
        places.append((scene.box, f"part {number}"))
        descriptions.append(
            title + (": " + " ".join(s.description for _, s in part.scenes) if part.scenes else "")
        )
    y = places[-1][0].top - _ROOM - 22
    out = Node("out", 0, y, 44, 44, "variable", (Text(0, y, "o"),), "o")
    pieces.append(Scene("", "", (out,)))
    places.append((out.box, "out"))
    edges = [_up(low, high, a, b) for (low, a), (high, b) in zip(places, places[1:], strict=False)]
    description = f"{name}, from the input up: " + "; ".join(descriptions) + "."
    parameters = dict.fromkeys(p for parts in rows for _, s in parts[0].scenes for p in s.parameters)
    whole = _together(pieces)
    return replace(
        whole, title=name, description=description, edges=(*whole.edges, *edges), parameters=tuple(parameters)
    )


def _together(scenes: Sequence[Scene]) -> Scene:
    """Several pictures in one."""
    return Scene(
        "",
        "",
        tuple(node for scene in scenes for node in scene.nodes),
        tuple(edge for scene in scenes for edge in scene.edges),
        tuple(group for scene in scenes for group in scene.groups),
        tuple(text for scene in scenes for text in scene.texts),
    )


def _up(low: Box, high: Box, source: str, target: str) -> Edge:
    return Edge(source, target, bent([(0.0, low.top), (0.0, high.bottom)]))


def _closed(title: str, key: str, part: _Part, ident: str, bottom: float) -> Scene:
    """One part; for several of a kind, with their number."""
    return _framed(title, key, part, ident, bottom) if part.scenes else _boxed(title, key, ident, bottom)


def _opened(title: str, key: str, parts: Sequence[_Part], number: int, bottom: float) -> Scene:
    """Parts of one kind one above the other in a frame of their own."""
    y, inner, edges = bottom - _PAD, [], []
    for i, part in enumerate(parts):
        scene = _closed(
            f"{part.title}, {i + 1} of {len(parts)}", f"part {number}.{i}", part, f"{number}.{i}", y
        )
        if inner:
            edges.append(_up(inner[-1].box, scene.box, f"part {number}.{i - 1}", f"part {number}.{i}"))
        inner.append(scene)
        y = scene.box.top - _ROOM
    box = _together(inner).box
    half = max(-box.left, box.right, width(title, 15) / 2) + _PAD
    heading = Text(-half + _PAD, box.top - 15, title, 15, "start", "stage")
    frame = Group(Box(-half, box.top - _HEAD, half, bottom), (heading,), key)
    whole = _together([Scene("", "", groups=(frame,)), *inner])
    return replace(whole, edges=(*whole.edges, *edges))


def _parts(module: torch.nn.Module, draw: Draw) -> Iterator[_Part]:
    """The parts of a module in the order in which they stand in it; those without parameters are left out."""
    if isinstance(module, Compound):
        module = module.as_layer()
    if isinstance(module, Recurrent):
        yield _layer(module, draw)
    elif isinstance(module, Bidirectional):
        ways = [("forward", module.forward_layer), ("backward", module.backward_layer)]
        layers = [(word, _layer(layer, draw)) for word, layer in ways]
        scenes = tuple((word, scene) for word, part in layers for _, scene in part.scenes)
        cells = (module.forward_layer.cell, module.backward_layer.cell)
        titles = " ‖ ".join(dict.fromkeys(type(cell).__name__ for cell in cells))
        kind = tuple(part.kind for _, part in layers)
        yield _Part(f"Bidirectional, {titles}", scenes, kind if scenes else None)
    elif not any(isinstance(part, (Recurrent, Compound)) for part in module.modules()):
        if any(True for _ in module.parameters()):
            yield _Part(_word(module), kind=_word(module))
    else:
        for child in module.children():
            yield from _parts(child, draw)


def _layer(layer: Recurrent, draw: Draw) -> _Part:
    title = type(layer.cell).__name__ + (", from the last step to the first" if layer.reverse else "")
    try:
        scene = draw(layer.circuit)
    except StateError:  # never called: what it would compute is not known yet
        return _Part(f"{title} (not called yet)", kind=title)
    return _Part(title, (("", scene),), (title, scene.description))


def _word(module: torch.nn.Module) -> str:
    """`Linear(256, 50)`: a module by its class and sizes."""
    sizes = [f"{name} {tuple(value.shape)}" for name, value in module.named_parameters(recurse=False)]
    weight = getattr(module, "weight", None)
    if isinstance(weight, torch.Tensor) and weight.dim() == 2:
        turned = isinstance(module, torch.nn.Linear)
        a, b = weight.shape[::-1] if turned else weight.shape
        return f"{type(module).__name__} {a} → {b}"
    return f"{type(module).__name__}" + (f" {', '.join(sizes)}" if sizes and len(sizes) < 3 else "")


def _boxed(title: str, key: str, ident: str, bottom: float) -> Scene:
    wide = width(title, 15) + 28
    node = Node(f"part {ident}", 0, bottom - 20, wide, 40, "module", (Text(0, bottom - 20, title),), key)
    return Scene("", "", (node,))


def _framed(title: str, key: str, part: _Part, number: str, bottom: float) -> Scene:
    """The pictures of a part side by side in a frame, whose middle is at 0 and whose lower side at `bottom`."""
    nodes, edges, groups, texts = [], [], [], []
    boxes = [scene.box for _, scene in part.scenes]
    words = any(word for word, _ in part.scenes)
    wides = [
        max(box.right - box.left, width(word, 13)) for box, (word, _) in zip(boxes, part.scenes, strict=True)
    ]
    inner = sum(wides) + _APART * (len(wides) - 1)
    whole = max(inner, width(title, 15)) + 2 * _PAD
    x = -inner / 2
    high = max(box.bottom - box.top for box in boxes)
    foot = bottom - _PAD - (20 if words else 0)
    for i, ((word, scene), box, wide) in enumerate(zip(part.scenes, boxes, wides, strict=True)):
        here = scene.moved(x + wide / 2 - (box.left + box.right) / 2, foot - box.bottom)
        ident = f"{number}.{i} "
        nodes += [replace(node, id=ident + node.id) for node in here.nodes]
        edges += [
            replace(edge, source=ident + edge.source, target=ident + edge.target) for edge in here.edges
        ]
        groups += here.groups
        texts += here.texts
        if word:
            texts.append(Text(x + wide / 2, foot + 14, word, 13, role="note"))
        x += wide + _APART
    top = foot - high - _HEAD
    heading = Text(-whole / 2 + _PAD, top + 15, title, 15, "start", "stage")
    frame = Group(Box(-whole / 2, top, whole / 2, bottom), (heading,), key)
    return Scene("", "", tuple(nodes), tuple(edges), (frame, *groups), tuple(texts))


__all__ = ["composed"]
