"""A scene as SVG: one file without anything from elsewhere, whose text is text.

Colours stand in attributes, as any reader of SVG knows them, and once more in a style sheet for dark surroundings.
Those of parameters are Okabe and Ito's, which people who see colours differently can tell apart; dashes tell them
apart in print.
"""

from __future__ import annotations

from xml.sax.saxutils import escape, quoteattr

from elman.draw.measure import FONTS
from elman.draw.scene import Edge, Group, Node, Scene, Text

MARGIN = 18.0
# Ink on white, and the same on near-black; contrast with the ground is at least 4.5 : 1 in both.
INK, PAPER, SOFT, SHADE = "#1b1b1f", "#ffffff", "#5c5f66", "#f1f3f6"
DARK_INK, DARK_PAPER, DARK_SOFT, DARK_SHADE = "#ececf1", "#16171b", "#a9adb6", "#24262d"
COLORS = ("#0063a6", "#b84a00", "#00795a", "#a03a78", "#7a6000", "#1a7f9c", "#8a2be2")
DARK_COLORS = ("#6cb8f0", "#ff9a52", "#3ccf9f", "#f090c4", "#e6c84a", "#7ddcf5", "#c9a2ff")
DASHES = ("", "9 3", "2 3", "9 3 2 3", "14 4", "5 5", "1 4")


def svg(scene: Scene, ident: str = "elman", role: str = "img") -> str:
    """The text of an SVG file.

    ident: what its ids begin with, where several stand on one page. role: "group" where parts of it can be pressed.
    """
    wide, high = size(scene)
    scene = scene.moved(MARGIN - scene.box.left, MARGIN - scene.box.top)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="elman-picture" viewBox="0 0 {_n(wide)} {_n(high)}" '
        f'width="{_n(wide)}" height="{_n(high)}" role="{role}" aria-labelledby="{ident}-title {ident}-desc" '
        f"font-family={quoteattr(FONTS)}>",
        f'<title id="{ident}-title">{escape(scene.title)}</title>',
        f'<desc id="{ident}-desc">{escape(scene.description)}</desc>',
        f"<style>{style()}</style>",
        f'<rect class="paper" width="100%" height="100%" rx="6" fill="{PAPER}"/>',
        *(_group(group) for group in scene.groups),
        *(_edge(edge) for edge in scene.edges),
        *(_node(node) for node in scene.nodes),
        *(_text(text) for text in scene.texts),
        "</svg>",
    ]
    return "\n".join(part for part in parts if part)


def size(scene: Scene) -> tuple[float, float]:
    """Width and height of its file, in pixels."""
    box = scene.box
    return box.right - box.left + 2 * MARGIN, box.bottom - box.top + 2 * MARGIN


def style() -> str:
    """What changes where the surroundings are dark; all else stands in attributes."""
    dark = [
        f".paper{{fill:{DARK_PAPER}}}.ink{{fill:{DARK_INK}}}.line{{stroke:{DARK_INK}}}.soft{{fill:{DARK_SOFT}}}",
        f".body{{fill:{DARK_PAPER};stroke:{DARK_INK}}}.shade{{fill:{DARK_SHADE}}}.frame{{stroke:{DARK_SOFT}}}",
    ]
    for i, color in enumerate(DARK_COLORS):
        dark.append(f".p{i}.line{{stroke:{color}}}.p{i}.ink{{fill:{color}}}.p{i}.body{{stroke:{color}}}")
    return f"@media (prefers-color-scheme:dark){{.elman-picture {' .elman-picture '.join(_rules(''.join(dark)))}}}"


def _rules(text: str) -> list[str]:
    return [f"{rule}}}" for rule in text.split("}") if rule]


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _weights(weights: tuple[str, ...]) -> str:
    return f" data-weights={quoteattr(' '.join(weights))}" if weights else ""


def _class(kind: str, color: int | None) -> str:
    return kind if color is None else f"{kind} p{color % len(COLORS)}"


def _ink(color: int | None) -> str:
    return INK if color is None else COLORS[color % len(COLORS)]


def _text(text: Text) -> str:
    soft = text.role in ("note", "stage")
    kind = _class("soft" if soft else "ink", text.color)
    fill = SOFT if soft else _ink(text.color)
    weight = ' font-weight="600"' if text.role in ("stage", "title") else ""
    anchor = "" if text.anchor == "start" else f' text-anchor="{text.anchor}"'
    return (
        f'<text class="{kind}" x="{_n(text.x)}" y="{_n(text.y + 0.36 * text.size)}" font-size="{_n(text.size)}"'
        f'{anchor}{weight} fill="{fill}">{escape(text.text)}</text>'
    )


def _group(group: Group) -> str:
    box = group.box
    return (
        f'<g data-group={quoteattr(group.key)}><rect class="shade frame" x="{_n(box.left)}" y="{_n(box.top)}" '
        f'width="{_n(box.right - box.left)}" height="{_n(box.bottom - box.top)}" rx="8" fill="{SHADE}" '
        f'stroke="{SOFT}" stroke-opacity="0.35"/>{"".join(map(_text, group.texts))}</g>'
    )


def _node(node: Node) -> str:
    attributes = f"data-key={quoteattr(node.key)} data-node={quoteattr(node.id)}"
    if node.t is not None:
        attributes += f' data-t="{node.t}"'
    tip = f"<title>{escape(node.tip)}</title>" if node.tip else ""
    return f"<g {attributes}>{tip}{_shape(node)}{''.join(map(_text, node.texts))}</g>"


def _shape(node: Node) -> str:
    box = node.box
    place = f'x="{_n(box.left)}" y="{_n(box.top)}" width="{_n(node.width)}" height="{_n(node.height)}"'
    if node.shape == "gap":
        return ""
    if node.shape == "dot":
        return (
            f'<circle class="ink" cx="{_n(node.x)}" cy="{_n(node.y)}" r="{_n(node.width / 2)}" fill="{INK}"/>'
        )
    if node.shape == "delay":
        return f'<rect class="ink" {place} fill="{INK}"/>'
    color = node.texts[0].color if node.texts else None
    corner = {"variable": node.height / 2, "operation": 7.0, "module": 4.0}[node.shape]
    dashes = ' stroke-dasharray="4 3"' if node.state == "known" else ""
    heavy = 2.2 if node.state == "sum" else 1.5
    shade = "shade " if node.state == "input" else ""
    fill = SHADE if shade else PAPER
    return (
        f'<rect class="{_class("body", color)} {shade}" {place} rx="{_n(corner)}" fill="{fill}" '
        f'stroke="{_ink(color)}" stroke-width="{heavy}"{dashes}/>'
    )


def _edge(edge: Edge) -> str:
    points, head = _with_head(edge.points) if edge.arrow else (edge.points, "")
    d = f"M{_n(points[0][0])} {_n(points[0][1])}"
    for i in range(1, len(points), 3):
        d += "C" + " ".join(f"{_n(x)} {_n(y)}" for x, y in points[i : i + 3])
    # With more parameters than colours, a colour comes again with other dashes.
    turn = 0 if edge.color is None else edge.color + edge.color // len(COLORS)
    dash = "3 4" if edge.dashed else "" if edge.color is None else DASHES[turn % len(DASHES)]
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    t = f' data-t="{edge.t}"' if edge.t is not None else ""
    line = (
        f'<path class="{_class("line", edge.color)}" d="{d}" fill="none" stroke="{_ink(edge.color)}" '
        f'stroke-width="1.6"{dashes}/>'
    )
    tip = ""
    if edge.arrow:
        tip = f'<path class="{_class("ink", edge.color)}" d="{head}" fill="{_ink(edge.color)}"/>'
    return f"<g{_weights(edge.weights)}{t}>{line}{tip}{''.join(map(_text, edge.texts))}</g>"


def _with_head(points: tuple[tuple[float, float], ...]) -> tuple[tuple[tuple[float, float], ...], str]:
    """The line cut short, and the outline of its head."""
    (x1, y1) = points[-1]
    x0, y0 = next(((x, y) for x, y in reversed(points[:-1]) if abs(x - x1) + abs(y - y1) > 0.5), (x1, y1 + 1))
    length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
    ux, uy = (x1 - x0) / length, (y1 - y0) / length
    bx, by = x1 - 9 * ux, y1 - 9 * uy
    head = f"M{_n(x1)} {_n(y1)}L{_n(bx - 4 * uy)} {_n(by + 4 * ux)}L{_n(bx + 4 * uy)} {_n(by - 4 * ux)}Z"
    return (*points[:-1], (x1 - 6 * ux, y1 - 6 * uy)), head


__all__ = ["svg"]
