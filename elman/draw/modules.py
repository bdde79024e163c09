"""Layers and whole models: a frame for every recurrence, with its own picture in it, and a plain box for the rest.

What comes first stands lowest. Layers of one kind in a row are drawn once, with their number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch

from elman.circuit import Circuit
from elman.draw.layered import Link, Size, layered
from elman.draw.lines import bent
from elman.draw.measure import width
from elman.draw.scene import SIZE, Box, Edge, Group, Node, Point, Scene, Text
from elman.errors import StateError
from elman.recurrent import Bidirectional, Compound, Flow, Piece, Recurrent, Stack

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
    count = _Count(draw, frozenset(opened.split()))
    known = isinstance(module, Flow) or _is_chain(module)
    if known:
        ends = [Piece("in", "x"), Piece("all", module, ("in",)), Piece("out", "o", ("all",))]
        whole, descriptions = _flowing(module.flow() if isinstance(module, Flow) else ends, count)
    else:
        column = _column(module, count)
        box, words = column.scene.box, "Its parts. Which of them reads which is not drawn."
        note = Text((box.left + box.right) / 2, box.bottom + 24, words, 13, role="note")
        whole, descriptions = replace(column.scene, texts=(*column.scene.texts, note)), column.descriptions
    name = type(module).__name__
    how = "from the input up" if known else "the parts, whose order is not known"
    description = f"{name}, {how}: " + "; ".join(descriptions) + "."
    return replace(
        whole, title=name, description=description, parameters=tuple(dict.fromkeys(count.parameters))
    )


@dataclass
class _Count:
    """What is counted while a picture is made. parts, repeats: how many there were. parameters: of circuits in it."""

    draw: Draw
    opened: frozenset[str]
    parts: int = 0
    repeats: int = 0
    parameters: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Column:
    """Parts one above the other. low, high: the ids of the first and the last."""

    scene: Scene
    low: str
    high: str
    descriptions: tuple[str, ...]


def _is_chain(module: torch.nn.Module) -> bool:
    """Whether each part is known to read the one before it, and nothing else."""
    if isinstance(module, torch.nn.Sequential):
        return all(map(_is_chain, module.children()))
    plain = not any(isinstance(part, (Recurrent, Compound)) for part in module.modules())
    return plain or isinstance(module, (Recurrent, Bidirectional, Stack, Compound))


def _column(module: torch.nn.Module, count: _Count) -> _Column:
    rows: list[list[_Part]] = []
    for part in _parts(module, count.draw):
        if rows and part.kind is not None and rows[-1][0].kind == part.kind:
            rows[-1].append(part)
        else:
            rows.append([part])
    chain = len(rows) == 1 or _is_chain(module)
    scenes, ids, descriptions, edges, below = [], [], [], [], 0.0
    for parts in rows:
        part, many, number = parts[0], len(parts) > 1, count.parts
        title = f"{len(parts)} × {part.title}" if many else part.title
        key = f"repeat {count.repeats}" if many else f"part {number}"
        if many and str(count.repeats) in count.opened:
            scene = _opened(title, key, parts, number, below, chain)
        else:
            scene = _closed(title, key, part, str(number), below)
        count.repeats += many
        count.parts += 1
        count.parameters += [p for _, s in part.scenes for p in s.parameters]
        if scenes and chain:
            edges.append(_up(scenes[-1].box, scene.box, ids[-1], f"part {number}"))
        scenes.append(scene)
        ids.append(f"part {number}")
        descriptions.append(
            title + (": " + " ".join(s.description for _, s in part.scenes) if part.scenes else "")
        )
        below = scene.box.top - _ROOM
    whole = _together(scenes)
    return _Column(replace(whole, edges=(*whole.edges, *edges)), ids[0], ids[-1], tuple(descriptions))


def _flowing(pieces: Sequence[Piece], count: _Count) -> tuple[Scene, list[str]]:
    """Pieces with lines from each to those that read it, sources below; and what they are, in words."""
    read = {name for piece in pieces for name in piece.reads}
    columns = {piece.name: _piece(piece, piece.name in read, count) for piece in pieces}
    boxes = {name: column.scene.box for name, column in columns.items()}
    sizes = {name: Size(-box.left, box.right, box.bottom - box.top) for name, box in boxes.items()}
    links = [Link(source, piece.name) for piece in pieces for source in piece.reads]
    placed = layered(sizes, links, row_gap=_ROOM)
    scenes, here = [], {}
    for name, column in columns.items():
        (x, y), box = placed.places[name], boxes[name]
        here[name] = column.scene.moved(x, -y - (box.top + box.bottom) / 2)  # sources stand below
        scenes.append(here[name])
    edges = []
    for link, way in zip(links, placed.ways, strict=True):
        (x0, _), (x1, _) = way[0], way[-1]
        passed = [(x, -y) for i, (x, y) in enumerate(way[1:-1]) if i % 3]  # past rows; the others lie between
        points = [(x0, here[link.source].box.top), *passed, (x1, here[link.target].box.bottom)]
        edges.append(Edge(columns[link.source].high, columns[link.target].low, _upright(points)))
    whole = _together(scenes)
    words = {piece.name: piece.what if isinstance(piece.what, str) else _word(piece.what) for piece in pieces}
    told = [
        "; ".join(columns[piece.name].descriptions) + f", reads {' and '.join(words[r] for r in piece.reads)}"
        for piece in pieces
        if piece.reads
    ]
    return replace(whole, edges=(*whole.edges, *edges)), told


def _piece(piece: Piece, is_read: bool, count: _Count) -> _Column:
    """A module as a column; words as a node: round where it goes in or comes out."""
    if isinstance(piece.what, torch.nn.Module):
        return _column(piece.what, count)
    ends = not piece.reads or not is_read
    wide = max(width(piece.what, SIZE) + (28 if ends else 20), 44)
    state = "plain" if piece.reads else "input"
    shape = "variable" if ends else "operation"
    text = (Text(0, 0, piece.what),)
    node = Node(piece.name, 0, 0, wide, 44 if ends else 32, shape, text, piece.what, None, state)
    return _Column(Scene("", "", (node,)), piece.name, piece.name, (piece.what,))


def _upright(points: Sequence[Point]) -> tuple[Point, ...]:
    """Curves through points that are upright at each of them."""
    curve = [points[0]]
    for (x0, y0), (x1, y1) in pairwise(points):
        middle = (y0 + y1) / 2
        curve += [(x0, middle), (x1, middle), (x1, y1)]
    return tuple(curve)


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


def _opened(
    title: str, key: str, parts: Sequence[_Part], number: int, bottom: float, chain: bool
) -> Scene:  # fmt: skip
    """Parts of one kind one above the other in a frame of their own. chain: each reads the one below it."""
    y, inner, edges = bottom - _PAD, [], []
    for i, part in enumerate(parts):
        scene = _closed(
            f"{part.title}, {i + 1} of {len(parts)}", f"part {number}.{i}", part, f"{number}.{i}", y
        )
        if inner and chain:
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
    if isinstance(module, Stack):
        for k, layer in enumerate(module):
            how = _between(module, k)
            yield from (
                replace(part, title=part.title + how, kind=part.kind and (part.kind, how))
                for part in _parts(layer, draw)
            )
        return
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


def _between(stack: Stack, k: int) -> str:
    """What happens to that which layer k reads, besides."""
    norm = type(stack.norms[k - 1]).__name__ if k and getattr(stack, "norms", None) is not None else ""
    added = "added to what it reads" if stack.residual[k] else ""
    return "".join(f", {words}" for words in (norm and f"{norm} before it", added) if words)


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
