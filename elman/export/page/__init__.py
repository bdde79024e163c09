"""A model as one HTML page that needs nothing from elsewhere: it runs where it is read.

The step is a function in JavaScript (`script.py`), run.js what it calls; write.js is the page of a language model,
read.js that of a tagger or a classifier, forecast.js that of a forecaster (`forecast.py`), page.js, layers.js and
page.css what they share.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from elman.data import Tokenizer
from elman.data.tagged import LONGEST
from elman.data.words import plain
from elman.errors import InputError, NotSupported
from elman.export.options import option
from elman.export.page.content import Content, facts, layers_of
from elman.export.page.forecast import forecasts
from elman.export.page.script import function, packed
from elman.export.step.flat import Array, Flat
from elman.export.step.quantised import HELP, KINDS, expect_kind
from elman.export.step.single import called, has_step, single
from elman.models import LanguageModel
from elman.models.coding import BEGIN, END
from elman.models.evaluating import evaluating
from elman.models.forecast_network import ForecastNetwork
from elman.models.sequence_classifier import SequenceClassifier
from elman.models.tagging import TagNetwork
from elman.training import write_atomically


@dataclass(frozen=True)
class Options:
    """Of `.html`."""

    weights: str | None = option(None, HELP)
    title: str | None = option(
        None, "What stands above the page, and in its tab. (default: the name of the file, or of its folder)"
    )


def write(module: nn.Module, path: Path, options: Options) -> list[Path]:
    """Write the page."""
    weights = expect_kind(options.weights, KINDS, "int8")
    # `elman export RUN` writes RUN/model.html.
    title = options.title or (path.stem if path.stem != "model" else path.resolve().parent.name)
    kinds: dict[type, Callable[[Any], Content]] = {
        LanguageModel: _writes, SequenceClassifier: _classifies, TagNetwork: _tags, ForecastNetwork: forecasts,
    }  # fmt: skip
    make = next((make for kind, make in kinds.items() if isinstance(module, kind)), None)
    if make is None:
        raise NotSupported(
            what=f"there is no page for {called(module)}", where="export(module, '.html')",
            expected="a language model, a classifier, a tagger, or a forecaster of series",
            mend=f"export it to {'.c, ' if has_step(module) else ''}.onnx or .pt2",
        )  # fmt: skip
    with evaluating(module), torch.no_grad():
        text = _page(make(module), title, weights)
    write_atomically(path, text.encode())
    return [path]


def _page(content: Content, title: str, weights: str) -> str:
    arrays = [
        Array(name, value.detach().cpu().float().flatten(), _row(value))
        for name, value in content.arrays.items()
    ]
    functions = []
    for name, flat in content.programs.items():
        functions.append(
            f"{json.dumps(name)}: ((weights) => ({function(flat)})((name) => weights({name!r} + ' ' + name)))"
        )
        arrays += [Array(f"{name} {array.name}", array.values, array.row) for array in flat.arrays]
    index, data = packed(arrays, weights)
    about = {**content.about, "arrays": index}
    script = "\n".join([
        '"use strict";', "(() => {", _file("run.js"), f"const programs = {{{', '.join(functions)}}};", _file("page.js"),
        _file("layers.js"),
        'const weights = remembered(unpacked(about.arrays, one("weights").textContent));',
        _file(content.script), "})();",
    ])  # fmt: skip
    name = plain(title)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{name}</title><style>
{_file("page.css")}</style></head>
<body><main><h1><bdi>{name}</bdi></h1>
{content.body}<h2>State</h2><div id="state"></div>
<noscript><p>The model runs in this page, for which JavaScript has to be on.</p></noscript></main>
<script type="application/json" id="about">{_json(about)}</script>
<script type="text/plain" id="weights">{data}</script>
<script>
{script}
</script></body></html>
"""


def _row(value: Tensor) -> int | None:
    return value.shape[1] if value.dim() == 2 else None


def _json(value: Any) -> str:
    """JSON that ends no element and holds no half of a pair of characters."""
    text = json.dumps(value, ensure_ascii=False).replace("<", "\\u003c").replace("\u2028", "\\u2028")
    return re.sub(r"[\ud800-\udfff\x00-\x1f]", lambda match: f"\\u{ord(match[0]):04x}", text).replace(
        "\u2029", "\\u2029"
    )


def _file(name: str) -> str:
    return resources.files("elman.export.page").joinpath(name).read_text("utf-8")


# --- a language model -----------------------------------------------------------------------------------------------


def _writes(model: LanguageModel) -> Content:
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise InputError(
            what="the model does not know which text its symbols stand for", where="tokenizer",
            mend="model.tokenizer = Tokenizer.load(RUN / 'tokenizer.json')",
        )  # fmt: skip
    flat = Flat.of(single(model))
    states = [
        {"name": _layer(leaf.path), "from": leaf.offset, "to": leaf.offset + leaf.width}
        for leaf in flat.states
        if leaf.memory == "state"
    ]
    about = {"states": states, **_symbols(tokenizer)}
    body = f"""{facts(model, f"A language model over {tokenizer.size:,} {plain(_UNITS[tokenizer.kind])},")}\
<label for="text">Type: it reads along. Or let it write on.</label>
<textarea id="text" spellcheck="false" autocomplete="off" autocapitalize="off" dir="auto"></textarea>
<div class="controls"><button type="button" id="write" aria-pressed="false">Write on</button>
<label for="temperature">Temperature <output id="heat" for="temperature">0.80</output>\
<input id="temperature" type="range" min="0" max="1.5" step="0.05" value="0.8"></label>
<label><input id="fast" type="checkbox">as fast as it goes</label>
<button type="button" id="clear">Clear</button></div>
<p id="said" class="soft"></p>
<h2>What may come next</h2><ol id="next" class="bars" aria-label="The likeliest symbols: a click writes one"></ol>
"""
    return Content({"step": flat}, {}, "write.js", body, about)


def _layer(path: str) -> str:
    """What a part of the state, such as `state[0][1]`, is called."""
    match = re.fullmatch(r"state\[(\d+)\](.*)", path)
    return path if match is None else f"layer {int(match[1]) + 1} {match[2]}".strip()


_UNITS = {"characters": "characters", "bytes": "bytes", "words": "words", "bpe": "pieces of words"}


def _symbols(tokenizer: Tokenizer) -> dict[str, Any]:
    """How a text becomes symbols, and these a text."""
    vocabulary = tokenizer.backend.get_vocab()
    pieces = sorted(vocabulary, key=vocabulary.__getitem__)
    about: dict[str, Any] = {
        "kind": tokenizer.kind, "symbols": tokenizer.symbols, "pieces": pieces, "unknown": tokenizer.unknown,
    }  # fmt: skip
    if tokenizer.unknown is None:
        about["bytes"] = [list(raw) for raw in tokenizer.raw]
        letters = {raw[0]: piece for raw, piece in zip(tokenizer.raw, pieces, strict=True) if len(raw) == 1}
        about["letters"] = [letters[byte] for byte in range(256)]
        about["merges"] = tokenizer.merges
    return about


# --- a classifier, a tagger -----------------------------------------------------------------------------------------


def _classifies(model: SequenceClassifier) -> Content:
    coding = model.coding
    if coding is None:
        raise InputError(
            what="the network does not know the names of its labels", where="coding",
            mend="network.coding = elman.models.coding.Coding.load(RUN)",
        )  # fmt: skip
    like = model.readout.weight
    programs, layers, width = layers_of(model.stack, like.new_zeros(1, _reads(model)), "read")
    arrays = {"readout.weight": like, "readout.bias": model.readout.bias}
    if model.symbols:
        arrays["embedding.weight"] = model.embedding.weight
    if "attention" in model.pools:
        arrays |= {"attention.weight": model.attention.weight, "attention.bias": model.attention.bias}
    about = {
        "task": "classify", "layers": layers, "width": width, "pools": model.pools, "symbols": model.symbols,
        "temperature": float(model.temperature), "labels": [str(label) for label in coding.labels],
        "characters": coding.characters, "first": END + 1, "begin": BEGIN, "end": END, "vectors": [],
    }  # fmt: skip
    if not model.symbols:  # here, since arrays are float32
        about |= {"mean": model.mean.tolist(), "deviation": model.deviation.tolist()}
    ask = "Type: it says what it takes it for." if model.symbols else (
        f"A step on each line, {model.settings['inputs']} numbers apart by spaces."
    )  # fmt: skip
    body = f"""{facts(model, f"A classifier with {len(coding.labels)} labels,")}<label for="text">{ask}</label>
<textarea id="text" spellcheck="false" autocomplete="off" autocapitalize="off" dir="auto"></textarea>
<p id="said" aria-live="polite"></p>
<ol id="labels" class="bars wide" aria-label="Labels"></ol>
"""
    return Content(programs, arrays, "read.js", body, about)


def _reads(model: SequenceClassifier) -> int:
    return model.settings["embedding"] if model.symbols else model.settings["inputs"]


def _tags(network: TagNetwork) -> Content:
    lexicon = network.lexicon
    if lexicon is None:
        raise InputError(
            what="the network does not know the names of its tags", where="lexicon",
            mend="network.lexicon = the Lexicon that it learnt with",
        )  # fmt: skip
    like, settings = network.readout.weight, network.settings
    letter = network.characters.weight
    spelled = 2 * settings["spelling"]
    programs, spelling, _ = layers_of(network.spelling, like.new_zeros(1, letter.shape[1]), "spell")
    more, layers, width = layers_of(
        network.stack, like.new_zeros(1, settings["embedding"] + spelled + settings["width"]), "read"
    )
    arrays = {
        "words.weight": network.words.weight, "characters.weight": letter, "readout.weight": like,
        "readout.bias": network.readout.bias,
    }  # fmt: skip
    if settings["width"]:
        arrays["vectors"] = network.vectors
    if network.crf is not None:
        arrays |= {name: getattr(network.crf, name) for name in ("transitions", "begin", "end")}
    about = {
        "task": "tag", "layers": layers, "width": width, "spelling": spelling, "tags": lexicon.tags,
        "words": lexicon.words, "letters": lexicon.characters, "vectors": lexicon.vectors if settings["width"] else [],
        "longest": LONGEST, "crf": network.crf is not None,
    }  # fmt: skip
    body = f"""{facts(network, f"A tagger with {len(lexicon.tags)} tags,")}\
<label for="text">Type sentences, one on each line, words apart by spaces.</label>
<textarea id="text" spellcheck="false" autocomplete="off" autocapitalize="off" dir="auto"></textarea>
<p id="said" class="soft"></p><div id="tags"></div>
"""
    return Content(programs | more, arrays, "read.js", body, about)
