"""The page at /: type, let the model write on, and watch its units. One file, with the styles and the strips of cells
of the page that `elman export --to html` writes."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from importlib import resources

from fastapi import Response

from elman.data.words import plain
from elman.serve.scheduler import Scheduler


def page(name: str, scheduler: Scheduler) -> Response:
    model = scheduler.model
    count = sum(p.numel() for p in model.parameters())
    settings = model.settings
    cell = settings["cell"] if isinstance(settings["cell"], str) else "recurrent"
    layers = f"{settings['layers']} layer" + "s" * (settings["layers"] > 1)
    facts = f"A language model of {count:,} weights: {plain(cell)}, {layers} of {settings['hidden']} units."
    about = json.dumps({"model": name}).replace("<", "\\u003c")
    style = _file("elman.export.page", "page.css") + _file("elman.serve", "page.css")
    script = f'"use strict";(() => {{\n{_file("elman.export.page", "page.js")}\n{_file("elman.serve", "page.js")}}})();'
    told = {"NAME": plain(name), "FACTS": facts, "ABOUT": about, "STYLE": style, "SCRIPT": script}
    text = re.sub("@([A-Z]+)@", lambda match: told[match[1]], _file("elman.serve", "page.html"))
    policy = (
        f"default-src 'none'; connect-src 'self'; style-src {_digest(style)}; script-src {_digest(script)}; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {
        "content-security-policy": policy,
        "cache-control": "no-cache",
        "referrer-policy": "no-referrer",
    }
    return Response(text.encode(), headers=headers, media_type="text/html; charset=utf-8")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _file(package: str, name: str) -> str:
    return resources.files(package).joinpath(name).read_text("utf-8")
