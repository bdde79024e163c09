"""The site: Sphinx over the pages that docs/build.py prepares.

Why Sphinx: it is kept up, its search works from a folder without a server, every dead link is a warning and every
warning an error, and furo, its theme, asks nothing of other addresses.
"""

import re

from docutils import nodes

project = "elman"
author = "The elman authors"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_heading_anchors = 4
myst_enable_extensions = ["html_image"]
html_theme = "furo"
html_title = "elman"
html_static_path = ["static"]
html_css_files = ["page.css"]
html_extra_path = ["../build/extra"]
html_copy_source = html_show_sourcelink = False
html_show_sphinx = html_show_copyright = False
nitpicky = True
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_class_signature = "mixed"
# A code block that a lexer cannot read is shown as it is.
highlight_language = "text"
suppress_warnings = ["misc.highlighting_failure"]
UNITS = re.compile(r"(?<=\d) (?=(?:%|\d{3}|[kMG]?B|[µmn]?s)(?![\w.]))")
ESCAPED = {ord(sign): "\\" + sign for sign in "\\*`|_"}


def _text(line: str) -> str:
    """A line of plain text as reStructuredText; what stands between backticks is code."""
    return "".join(
        f"``{part}``" if i % 2 else part.translate(ESCAPED)
        for i, part in enumerate(re.split(r"`([^`\n]+)`", line))
    )


def _docstring(app, what, name, obj, options, lines) -> None:
    """Our docstrings are plain text: paragraphs; what is indented behind an empty line stands as it is, and behind a
    line of text goes on with it, as of an argument."""
    out, literal, hanging = [], False, False
    for line in lines:
        indented, first = line.startswith(" "), not (out and out[-1].strip())
        if indented and not literal and not first:
            out.append("  " + _text(line.strip()))
            hanging = True
            continue
        if indented and not literal:
            out += ["", "::", ""]
        if literal and not indented and line:
            out += [""]
        literal = indented or (literal and not line)
        if literal:
            out.append("    " + line if line else "")
        else:
            begins = re.match(r"[\w, ]+: |Raises |Returns |- ", line) or first or hanging
            out.append(("| " if begins else "  ") + _text(line) if line else "")
        hanging = False
    lines[:] = [*out, ""]


def _told(app, doctree) -> None:
    """A table whose last column has sentences in it says so, to page.css: numbers need no such width."""
    for table in doctree.findall(nodes.table):
        last = [row.children[-1].astext() for row in table.findall(nodes.row)]
        table["classes"] += ["told"] * any(len(text) > 40 for text in last)


def _kept_whole(app, doctree) -> None:
    """No line ends within a number, between it and its unit, or within an option: `--` would stand alone."""
    for text in list(doctree.findall(nodes.Text)):
        if isinstance(text.parent, nodes.literal) or not text.parent.parent:
            continue
        if not any(
            isinstance(at, (nodes.literal_block, nodes.raw)) for at in (text.parent, text.parent.parent)
        ):
            text.parent.replace(text, nodes.Text(UNITS.sub("\u00a0", text)))
    for code in doctree.findall(nodes.literal):
        code["classes"] += ["short"] * (len(code.astext()) <= 22)


def setup(app) -> None:
    app.connect("autodoc-process-docstring", _docstring)
    app.connect("doctree-read", _told)
    app.connect("doctree-read", _kept_whole)
