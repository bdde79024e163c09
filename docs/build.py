"""The site and the notebooks: python docs/build.py [--small] writes site/, with `notebooks` docs/lecture as notebooks.

Every page is run (docs/execute.py), and so are the examples, at their small size. What a page of the lecture prints and
draws is put under its blocks; what another page prints is what it says, or there is no site. `guides` runs these alone.
Equations become MathML, which browsers show by themselves.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from docs.execute import Piece, run  # noqa: E402

DOCS, PAGES, SITE = ROOT / "docs", ROOT / "build" / "pages", ROOT / "site"
EXTRA = ROOT / "build" / "extra"  # files that the site takes as they are
LECTURE = DOCS / "lecture"
# docs/results.md is written by a program, bench/reproduce.py.
RUN = sorted([*(path for path in DOCS.glob("*.md") if path.name != "results.md"), ROOT / "README.md"])
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
GUIDES = [
    "install",
    "first_cell",
    "coming_from",
    "write_a_cell",
    "drawing",
    "dynamics",
    "streams",
    "sequences",
    "memory",
    "gpu",
    "drop_ins",
    "export",
    "serving",
    "language_models",
    "tag",
    "autoencode",
    "classify",
    "forecast",
    "write_a_task",
    "other_cells",
]
INSIDE = ["pipeline", "gradients", "native", "results", "versions"]

# Code, displayed equations, equations in a line; the first that begins wins, so a dollar in code stays a dollar.
SPANS = re.compile(
    r"^```.*?^```$|`[^`\n]+`|\$\$(?P<block>.+?)\$\$|\$(?P<line>[^$\n]+)\$", re.DOTALL | re.MULTILINE
)


def mathml(page: str) -> str:
    """The page with its equations, `$…$` and `$$…$$`, as MathML."""
    from latex2mathml.converter import convert

    def one(found: re.Match[str]) -> str:
        if found["block"]:
            return f'<div class="equation">{convert(" ".join(found["block"].split()), display="block")}</div>'
        return convert(found["line"]) if found["line"] else found[0]

    return SPANS.sub(one, page)


def shown(page: str, pieces: list[Piece]) -> str:
    """The page with what its blocks printed and drew under them."""
    out, at, number = [], 0, 0
    for piece in pieces:
        out.append(page[at : piece.end])
        if piece.said is None and piece.printed:
            out.append(f"\n\n```text\n{piece.printed}\n```\n")
        for svg in piece.svgs:
            number += 1
            out.append(f'\n\n<figure class="drawn">{_own(svg, f"f{number}-")}</figure>\n')
        at = piece.end
    return "".join([*out, page[at:]])


def _own(svg: str, prefix: str) -> str:
    """A picture whose ids are its own, as several stand in a page; on one line, which Markdown leaves alone."""
    for name in set(re.findall(r'\bid="([^"]+)"', svg)):
        svg = re.sub(rf'(?<=[#" ]){re.escape(name)}(?=[")\s])', prefix + name, svg)
    # On a phone a picture is scrolled rather than shrunk until nobody can read it.
    wide = re.search(r'<svg[^>]*? width="([\d.]+)(pt)?"', svg)
    if wide is not None:
        least = 0.75 * float(wide[1]) * (4 / 3 if wide[2] else 1)
        svg = svg.replace("<svg", f'<svg style="min-width:{least:.0f}px"', 1)
    # Dark or light is what the reader chose for the page, and else what the system says.
    svg = re.sub(r"@media ?\(prefers-color-scheme: ?dark\) ?\{((?:[^{}]+\{[^{}]*\})+)\s*\}", _by_theme, svg)
    return re.sub(r"\s*\n\s*", " ", svg)


def _by_theme(found: re.Match[str]) -> str:
    rules = re.findall(r"([^{}]+)(\{[^{}]*\})", found[1])

    def under(body: str) -> str:
        return "".join(
            ", ".join(f"{body} {part.strip()}" for part in what.split(",")) + then for what, then in rules
        )

    return f"{under('body[data-theme=dark]')} @media (prefers-color-scheme:dark){{{under('body[data-theme=auto]')}}}"


def lecture(small: bool) -> dict[Path, str]:
    """File -> the page of the lecture, run."""
    pages = {}
    for path in sorted(LECTURE.glob("[0-9]*.md")):
        began, page = time.perf_counter(), path.read_text("utf-8")
        pages[path] = shown(page, run(page, str(path.relative_to(ROOT)), figures=True, small=small))
        print(f"{path.name:32} {time.perf_counter() - began:6.1f} s", flush=True)
    return pages


def guides(pages: Sequence[Path] = RUN, examples: Sequence[Path] = EXAMPLES) -> None:
    """Run pages that are taken as they are, and examples, each in an empty folder, with the same random numbers.

    AssertionError where a block prints something else than its page says, or an example has not learnt what it says;
    a warning is an error as well.
    """
    for path in pages:
        _alone(path, lambda path=path: run(path.read_text("utf-8"), str(path)))
    for path in examples:
        _alone(path, lambda path=path: example(path))


def example(path: Path) -> None:
    """Run an example at its small size: it asserts by itself that it has learnt what it says, and says it in a few
    lines."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        runpy.run_path(str(path))["main"](small=True)
    lines = out.getvalue().splitlines()
    assert 1 <= len(lines) <= 12, f"{path}: {len(lines)} lines"


def _alone(path: Path, runs: Callable[[], object]) -> None:
    import numpy as np
    import torch

    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), warnings.catch_warnings():
        warnings.simplefilter("error")
        # PyTorch's own, when its inductor backend is imported.
        warnings.filterwarnings("ignore", "`torch.jit.script(_method)?` is deprecated")
        runs()
    print(f"{path.name:32} {time.perf_counter() - began:6.1f} s", flush=True)


# Rooms whose public names the reference tells of, behind those of `elman` itself.
ROOMS = ["cells", "nn", "models", "dynamics", "online", "data", "training", "errors"]


def reference() -> str:
    """The page of the public names, from their docstrings."""
    import importlib
    import inspect

    import elman

    said = (
        "The public names of elman, from their docstrings. Letters: T time steps, B batch, I input, H hidden units, "
        "V classes; tensors over time are `[T, B, …]`."
    )
    out = ["# Reference", "", said, ""]
    groups = {"elman": elman} | {f"elman.{name}": importlib.import_module(f"elman.{name}") for name in ROOMS}
    for title, room in groups.items():
        out += [f"## {title}", ""]
        for name in sorted(getattr(room, "__all__", None) or [n for n in vars(room) if n[0].isupper()]):
            found = getattr(room, name)
            kind = "class" if inspect.isclass(found) else "function" if callable(found) else None
            if kind is None or not found.__module__.startswith(title):
                continue
            if room is not elman and getattr(elman, name, None) is found:
                continue
            kind = "exception" if kind == "class" and issubclass(found, BaseException) else kind
            out += ["```{eval-rst}", f".. auto{kind}:: {title}.{name}"]
            out += ["   :members:", "   :exclude-members: extra_repr"] * (kind == "class") + ["```", ""]
    return "\n".join(out)


def living() -> str:
    """The living picture of the home page: the cell on it, small enough to read its numbers."""
    import torch

    import elman

    torch.manual_seed(0)
    page = re.search(
        r"^```python\n(.*?)^rnn = ", (DOCS / "index.md").read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    assert page is not None, "docs/index.md has no cell"
    space: dict[str, Any] = {"__name__": "index"}
    exec(page[1], space)
    drawing = elman.draw(space["Leaky"](3, 4), torch.zeros(1, 3), unfold=3)
    EXTRA.mkdir(parents=True, exist_ok=True)
    return drawing.save(EXTRA / "alive.html").name


def contents(title: str, names: list[str]) -> str:
    return "\n".join(["```{toctree}", ":hidden:", f":caption: {title}", "", *names, "```", ""])


def site(small: bool) -> None:
    from sphinx.cmd.build import build_main

    shutil.rmtree(PAGES, ignore_errors=True)
    (PAGES / "lecture").mkdir(parents=True)
    for picture in DOCS.glob("*.svg"):
        shutil.copy(picture, PAGES)
    # In a process beside the lecture's, with one thread, as the number of threads changes the last bits of a product.
    beside = subprocess.Popen(
        [sys.executable, __file__, "guides"], env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    try:
        pages = lecture(small)
        if beside.wait():
            sys.exit("the site is not built: a page or an example does not do what it says, see above")
    finally:
        beside.kill()
    for path, page in pages.items():
        (PAGES / "lecture" / path.name).write_text(mathml(page), "utf-8")
    for path in DOCS.glob("*.md"):
        (PAGES / path.name).write_text(mathml(path.read_text("utf-8")), "utf-8")
    print(f"the home page's picture: {living()}")
    (PAGES / "reference.md").write_text(reference(), "utf-8")
    nav = [
        contents("The lecture", ["lecture/index"]),
        contents("Guides", GUIDES),
        contents("How it works", INSIDE),
        contents("API", ["reference"]),
    ]
    with (PAGES / "index.md").open("a", encoding="utf-8") as file:
        file.write("\n" + "\n".join(nav))
    names = [path.stem for path in pages]
    index = (LECTURE / "index.md").read_text("utf-8")
    (PAGES / "lecture" / "index.md").write_text(
        f"{index}\n" + contents("The lecture", names).replace(":hidden:\n", ""), "utf-8"
    )
    shutil.rmtree(SITE, ignore_errors=True)
    if build_main(
        [
            "-q",
            "-W",
            "--keep-going",
            "-b",
            "html",
            "-d",
            str(ROOT / "build" / "doctrees"),
            "-c",
            str(DOCS),
            str(PAGES),
            str(SITE),
        ]
    ):
        sys.exit("the site is not built: see the warnings above")
    for path in SITE.rglob("*.html"):
        outside = re.findall(
            r'<(?:script|img|iframe)[^>]+src="(?:https?:)?//[^"]+"|<link[^>]+href="(?:https?:)?//[^"]+"',
            path.read_text("utf-8"),
        )
        assert not outside, f"{path}: {outside[0]}"
    print(f"site: {SITE / 'index.html'}")


def notebook(page: str) -> dict[str, Any]:
    """A page as a notebook. Solutions are cells whose source is folded."""
    page = re.sub(r"</?details>\n?", "", re.sub(r"<summary>(.*?)</summary>", r"**\1**", page))
    cells, at = (
        [
            _cell(
                "code",
                "small = True  # False: the sizes of the site, some minutes in all\n%matplotlib inline",
            )
        ],
        0,
    )
    for block in re.finditer(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE):
        cells += [_cell("markdown", page[at : block.start()]), _cell("code", block[1])]
        at = block.end()
    cells.append(_cell("markdown", page[at:]))
    return {
        "cells": [cell for cell in cells if cell["source"]],
        "metadata": {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}},
        "nbformat": 4,
        "nbformat_minor": 4,
    }


def _cell(kind: str, text: str) -> dict[str, Any]:
    extra: dict[str, Any] = {"execution_count": None, "outputs": []} if kind == "code" else {}
    return {"cell_type": kind, "metadata": {}, "source": text.strip("\n").splitlines(keepends=True)} | extra


def notebooks(run_them: bool) -> None:
    folder = ROOT / "build" / "notebooks"
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(LECTURE.glob("[0-9]*.md")):
        written = json.dumps(notebook(path.read_text("utf-8")), ensure_ascii=False, indent=1)
        to = folder / f"{path.stem}.ipynb"
        to.write_text(written + "\n", "utf-8")
        if run_them:
            began = time.perf_counter()
            run_notebook(to)
            print(f"{to.name:32} {time.perf_counter() - began:6.1f} s", flush=True)
    print(f"notebooks: {folder}")


def run_notebook(path: Path) -> None:
    """Run the cells of a notebook in order in a Python of its own, in an empty folder, as a reader of it alone would.

    It needs no Jupyter: of what IPython adds to Python, our cells have `%matplotlib inline` alone, which is left out.
    """
    cells = json.loads(path.read_text("utf-8"))["cells"]
    code = [
        "".join(cell["source"]).replace("%matplotlib inline", "")
        for cell in cells
        if cell["cell_type"] == "code"
    ]
    program = "".join(f"exec(compile({cell!r}, 'cell {n}', 'exec'))\n" for n, cell in enumerate(code, 1))
    with tempfile.TemporaryDirectory() as folder:
        made = subprocess.run(
            [sys.executable, "-"], input=f"import matplotlib\nmatplotlib.use('agg')\n{program}", cwd=folder, text=True,
            capture_output=True, check=False,
        )  # fmt: skip
    if made.returncode:
        sys.exit(f"{path.name} does not run:\n{made.stderr}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=escape(__doc__.splitlines()[0]))
    parser.add_argument("what", nargs="?", choices=["site", "guides", "notebooks"], default="site")
    parser.add_argument("--small", action="store_true", help="experiments at the size of a test")
    parser.add_argument("--run", action="store_true", help="run the notebooks, each by itself")
    said = parser.parse_args()
    if said.what == "site":
        site(said.small)
    elif said.what == "guides":
        guides()
    else:
        notebooks(said.run)
