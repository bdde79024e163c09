"""Documentation is run: the Python blocks of a page, in order, in one namespace.

A text block directly behind a Python block is what the block prints. Everything else that a block brings forth is
collected: what it prints, figures of matplotlib, and its last expression where that draws itself (`_repr_svg_`).
"""

from __future__ import annotations

import ast
import contextlib
import io
import re
import types
from dataclasses import dataclass, field
from typing import Any

# A Python block, and the text block directly behind it: what it prints.
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\s*^```text\n(.*?)^```$)?", re.DOTALL | re.MULTILINE)

# Of Okabe and Ito 2008, told apart by the colour-blind and readable on white and on black; the lines differ besides.
COLOURS = ["#0077BB", "#D55E00", "#009E73", "#BB5599", "#997700"]
LINES = ["-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1))]
INK = "#010203"  # becomes the colour of the text around the figure


@dataclass(frozen=True)
class Piece:
    """A Python block of a page, run. start, end: where it stands; svgs: what it drew."""

    start: int
    end: int
    code: str
    said: str | None
    printed: str
    svgs: list[str] = field(default_factory=list)


def trimmed(text: str) -> str:
    return re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE).strip("\n")


def run(page: str, name: str, *, figures: bool = False, **given: Any) -> list[Piece]:
    """Run the blocks of a page; AssertionError where one prints something else than it says.

    given: what the namespace holds from the start, such as `small` of the lecture.
    """
    # A module of its own: pickling and dataclasses look for the module in which a class was made.
    space: dict[str, Any] = vars(types.ModuleType("page")) | given
    blocks = list(BLOCK.finditer(page))
    assert blocks, "a page without an example"
    assert len(re.findall("^```text$", page, re.MULTILINE)) == sum(
        block[2] is not None for block in blocks
    ), "a text block that stands behind no Python block"
    pieces = []
    with _figures(figures):
        for block in blocks:
            # Empty lines before it, so that an error names the line of the page.
            line = page.count("\n", 0, block.start(1))
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                last = _execute("\n" * line + block[1], name, space)
            printed = trimmed(out.getvalue())
            if block[2] is not None:
                assert printed == trimmed(block[2]), f"{name}:{line + 1}"
            svgs = [last._repr_svg_()] if hasattr(last, "_repr_svg_") else []
            pieces.append(
                Piece(
                    block.start(),
                    block.end(),
                    block[1],
                    block[2],
                    printed,
                    svgs + _drawn(f"{name}:{line + 1}"),
                )
                if figures
                else Piece(block.start(), block.end(), block[1], block[2], printed)
            )
    return pieces


def _execute(code: str, name: str, space: dict[str, Any]) -> Any:
    """Run a block; what its last expression is, as in a notebook."""
    tree = ast.parse(code, name)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, name, "exec"), space)
    return (
        eval(compile(ast.Expression(last.value), name, "eval"), space) if isinstance(last, ast.Expr) else None
    )


@contextlib.contextmanager
def _figures(wanted: bool) -> Any:
    """matplotlib as the pages want it: no screen, text stays text, colours that suit a light and a dark page."""
    if not wanted:
        yield
        return
    import matplotlib
    import torch
    from cycler import cycler

    ink = dict.fromkeys(
        [
            "text.color",
            "axes.edgecolor",
            "axes.labelcolor",
            "xtick.color",
            "ytick.color",
            "legend.labelcolor",
        ],
        INK,
    )
    dtype = torch.get_default_dtype()
    with contextlib.ExitStack() as after, matplotlib.rc_context():
        after.callback(torch.set_default_dtype, dtype)
        matplotlib.use("svg", force=True)
        matplotlib.rcParams.update(
            ink
            | {
                "svg.fonttype": "none", "savefig.transparent": True, "legend.framealpha": 0, "legend.fontsize": 9,
                "font.family": "sans-serif", "figure.figsize": (6.4, 3.2), "figure.constrained_layout.use": True,
                "axes.spines.top": False, "axes.spines.right": False, "figure.titlesize": 11, "axes.titlesize": 10,
                "axes.prop_cycle": cycler(color=COLOURS) + cycler(linestyle=LINES),
            }
        )  # fmt: skip
        yield


def _drawn(where: str) -> list[str]:
    """The figures of matplotlib that are open, as SVG, and closed. The title of a figure is its alternative text."""
    import matplotlib
    from matplotlib import pyplot

    svgs = []
    for number in pyplot.get_fignums():
        figure = pyplot.figure(number)
        title = figure.get_suptitle()
        assert title, f"{where}: a figure without a suptitle, which is also what is read aloud"
        matplotlib.rcParams["svg.hashsalt"] = f"{where}:{number}"  # the same page twice is the same bytes
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
        pyplot.close(figure)
        svg = file.getvalue().replace(INK, "currentColor")
        svg = re.sub(r" <metadata>.*?</metadata>\n", "", svg[svg.index("<svg") :], flags=re.DOTALL)
        svgs.append(svg.replace("<svg", f'<svg role="img" aria-label="{title}"', 1))
    return svgs
