"""Draw the rooms of elman and who imports whom: python docs/house.py writes docs/house.svg.

A room stands above all that it imports. An arrow that follows from two others is left out, so that what remains is the
way down. tests/test_house.py holds the picture against the imports.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "docs" / "house.svg"
HIDDEN = {"", "errors", "caches", "_native", "__main__"}  # everybody's, or nobody's
WIDTH, HEIGHT, BESIDE, ABOVE, EDGE = 104, 30, 28, 38, 16


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def imports(tree: Callable[[Path], ast.Module] = parsed) -> dict[str, set[str]]:
    """Room -> the rooms that it imports."""
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / "elman").rglob("*.py")):
        room = path.relative_to(ROOT / "elman").with_suffix("").parts[0]
        if room not in HIDDEN and room != "__init__":
            found.setdefault(room, set()).update(set(_imported(tree(path))) - HIDDEN - {room})
    return {room: others & found.keys() for room, others in found.items()}


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("elman"):
            parts = (node.module or "").split(".")
            yield from [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]


def below(graph: dict[str, set[str]], room: str) -> set[str]:
    """All rooms under one."""
    return graph[room].union(*(below(graph, other) for other in graph[room]))


def reduced(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """Without the arrows that follow from others."""
    return {
        room: others - set().union(*(below(graph, other) for other in others))
        for room, others in graph.items()
    }


def rows(graph: dict[str, set[str]]) -> list[list[str]]:
    """Rooms by floor, from the ground up, each close under who uses it; the longest way down is one column."""
    users = {room: [other for other in graph if room in graph[other]] for room in graph}
    height: dict[str, int] = {}
    floor: dict[str, int] = {}

    def least(room: str) -> int:
        return height.setdefault(room, 1 + max(map(least, graph[room]), default=-1))

    def at(room: str) -> int:
        return floor.setdefault(room, min((at(user) - 1 for user in users[room]), default=least(room)))

    floors: list[list[str]] = [[] for _ in range(1 + max(map(least, graph)))]
    for room in sorted(graph):
        floors[at(room)].append(room)
    for rooms in floors:  # what has no room to spare is the column
        rooms.sort(key=lambda room: (floor[room] != height[room] or not users[room], -len(users[room]), room))
    return floors


def draw(tree: Callable[[Path], ast.Module] = parsed) -> str:
    graph = reduced(imports(tree))
    floors = rows(graph)
    widest = max(map(len, floors))
    width = 2 * EDGE + widest * (WIDTH + BESIDE) - BESIDE
    height = 2 * EDGE + len(floors) * (HEIGHT + ABOVE) - ABOVE
    corner = {
        room: (EDGE + i * (WIDTH + BESIDE),
               height - EDGE - HEIGHT - level * (HEIGHT + ABOVE))
        for level, floor in enumerate(floors)
        for i, room in enumerate(floor)
    }  # fmt: skip
    lines = []
    for room, others in sorted(graph.items()):
        for n, other in enumerate(sorted(others, key=lambda o: corner[o])):
            x, y = corner[room]
            to_x, to_y = corner[other]
            start = x + WIDTH * (n + 1) / (len(others) + 1)
            end = to_x + WIDTH / 2 + max(-WIDTH / 3, min(WIDTH / 3, (start - to_x - WIDTH / 2) / 3))
            lines.append(
                f'<path d="M{start:.0f} {y + HEIGHT:.0f}C{start:.0f} {y + HEIGHT + 22:.0f} {end:.0f} {to_y - 26:.0f} '
                f'{end:.0f} {to_y - 4:.0f}" marker-end="url(#end)"/>'
            )
    boxes = [
        f'<rect x="{x:.0f}" y="{y:.0f}" width="{WIDTH}" height="{HEIGHT}" rx="5"/>'
        f'<text x="{x + WIDTH / 2:.0f}" y="{y + 20:.0f}">{escape(room)}</text>'
        for room, (x, y) in sorted(corner.items())
    ]
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        'role="img">',
        "<title>The rooms of elman</title>",
        "<desc>Each room stands above those that it imports; arrows point to what is used.</desc>",
        "<style>rect{fill:#fff;stroke:#333}text{font:13px system-ui,sans-serif;text-anchor:middle;fill:#111}"
        "path{fill:none;stroke:#667}marker path{fill:#667;stroke:none}"
        "@media(prefers-color-scheme:dark){rect{fill:#222;stroke:#bbb}text{fill:#eee}path{stroke:#99a}"
        "marker path{fill:#99a}}</style>",
        '<defs><marker id="end" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z"/></marker></defs>',
        *lines, *boxes, "</svg>", "",
    ])  # fmt: skip


if __name__ == "__main__":
    HERE.write_text(draw(), "utf-8")
