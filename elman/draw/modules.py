"""Layers and whole models: a frame for every recurrence, with its own picture in it, and a plain box for the rest.

What comes first stands lowest. Layers of one kind in a row are drawn once, with their number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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


@dataclass(frozen=True)
class _Part:
    """What is drawn as one: a title, pictures side by side with a word for each, and how often it occurs in a row.

    kind: what two parts must share to be drawn as one.
    """

    title: str
    scenes: tuple[tuple[str, Scene], ...] = ()
    kind: object = None
    number: int = 1


def composed(module: torch.nn.Module, draw: Draw) -> Scene:
    """The picture of a module that holds recurrences; draw: makes that of a circuit."""
    parts: list[_Part] = []
    for part in _parts(module, draw):
        if parts and part.kind is not None and parts[-1].kind == part.kind:
            parts[-1] = replace(parts[-1], number=parts[-1].number + 1)
        else:
            parts.append(part)
    name = type(module).__name__
    y, made, places = 0.0, [], []
    inputs = Node("in", 0, 0, 44, 44, "variable", (Text(0, 0, "x"),), "x", None, "input")
    places.append((inputs.box, inputs.id))
    y = inputs.box.top - _ROOM
    nodes, edges, groups, texts = [inputs], [], [], []
    for number, part in enumerate(parts):
        title = f"{part.number} × {part.title}" if part.number > 1 else part.title
        scene = _boxed(title, number, y) if not part.scenes else _framed(title, part, number, y)
        box = scene.box
        nodes += scene.nodes
        edges += scene.edges
        groups += scene.groups
        texts += scene.texts
        places.append((box, f"part {number}"))
        made.append(
            f"{title}" + (": " + " ".join(s.description for _, s in part.scenes) if part.scenes else "")
        )
        y = box.top - _ROOM
    out = Node("out", 0, y - 22, 44, 44, "variable", (Text(0, y - 22, "o"),), "o")
    nodes.append(out)
    places.append((out.box, "out"))
    for (low, a), (high, b) in zip(places, places[1:], strict=False):
        edges.append(Edge(a, b, bent([(0.0, low.top), (0.0, high.bottom)])))
    said = f"{name}, from the input up: " + "; ".join(made) + "."
    parameters = tuple(dict.fromkeys(p for part in parts for _, s in part.scenes for p in s.parameters))
    return Scene(name, said, tuple(nodes), tuple(edges), tuple(groups), tuple(texts), parameters)


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
        titles = " ‖ ".join(dict.fromkeys(part.title for _, part in layers))
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


def _boxed(title: str, number: int, bottom: float) -> Scene:
    wide = width(title, 15) + 28
    node = Node(f"part {number}", 0, bottom - 20, wide, 40, "module", (Text(0, bottom - 20, title),), title)
    return Scene("", "", (node,))


def _framed(title: str, part: _Part, number: int, bottom: float) -> Scene:
    """The pictures of a part side by side in a frame, whose middle is at 0 and whose lower side at `bottom`."""
    nodes, edges, groups, texts = [], [], [], []
    boxes = [scene.box for _, scene in part.scenes]
    words = any(word for word, _ in part.scenes)
    wides = [
        max(box.right - box.left, width(word, 13)) for box, (word, _) in zip(boxes, part.scenes, strict=True)
    ]
    inner = sum(wides) + 2 * _PAD * (len(wides) - 1)
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
        x += wide + 2 * _PAD
    top = foot - high - _HEAD
    heading = Text(-whole / 2 + _PAD, top + 15, title, 15, "start", "stage")
    frame = Group(Box(-whole / 2, top, whole / 2, bottom), (heading,), f"part {number}")
    return Scene("", "", tuple(nodes), tuple(edges), (frame, *groups), tuple(texts))


__all__ = ["composed"]
