"""Text that a model writes: symbols become characters as they come, up to a text that ends it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Any

from elman.data import Tokenizer
from elman.models import LanguageModel


def shown(text: str) -> str:
    """Text that a model wrote as a terminal may show it; as it is where it goes to a file or another program.

    Control characters move the cursor or do worse, and those that set a direction of writing turn round what comes
    after: they become �.
    """
    return _ODD.sub("�", text) if sys.stdout.isatty() else text


_ODD = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def continuation(
    model: LanguageModel, tokenizer: Tokenizer, prompt: str, length: int, stop: str | None = None, **how: Any
) -> Iterator[str]:
    """The text that a model writes after a prompt, in pieces as they come; it ends before `stop`, should that come.

    how: further arguments of `LanguageModel.generate`.
    """
    tokens = model.generate(tokenizer.encode(prompt), length, exclude=_never(tokenizer), **how)
    pieces = tokenizer.stream(tokens)
    return pieces if not stop else _before(stop, pieces)


def _never(tokenizer: Tokenizer) -> list[int]:
    """What is not written: the symbol for what nobody knows."""
    return [] if tokenizer.unknown is None else [tokenizer.unknown]


def _before(stop: str, pieces: Iterator[str]) -> Iterator[str]:
    """What comes before a text; what may be its beginning is held back until it is known."""
    held = ""
    for piece in pieces:
        held += piece
        at = held.find(stop)
        if at >= 0:
            yield held[:at]
            return
        safe = next(k for k in range(len(held) + 1) if stop.startswith(held[k:]))
        yield held[:safe]
        held = held[safe:]
    yield held


def continuations(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: str,
    length: int,
    samples: int,
    stop: str | None,
    **how: Any,
) -> list[str]:
    """Several texts, written side by side."""
    steps = model.generate(
        tokenizer.encode(prompt), length, exclude=_never(tokenizer), samples=samples, **how
    )
    texts = [tokenizer.decode(list(tokens)) for tokens in zip(*steps, strict=True)] or [""] * samples
    return [text if not stop else text.partition(stop)[0] for text in texts]
