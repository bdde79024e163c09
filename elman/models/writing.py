"""Text that a model writes: symbols become characters as they come, up to a text that ends it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from elman.data import Tokenizer
from elman.models.language import LanguageModel


def continuation(
    model: LanguageModel, tokenizer: Tokenizer, prompt: str, length: int, stop: str | None = None, **how: Any
) -> Iterator[str]:
    """The text that a model writes after a prompt, in pieces as they come; it ends before `stop`, should that come.

    how: further arguments of `LanguageModel.generate_iter`.
    """
    tokens = model.generate_iter(tokenizer.encode(prompt), length, exclude=_never(tokenizer), **how)
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
    written = model.generate(
        tokenizer.encode(prompt), length, exclude=_never(tokenizer), samples=samples, **how
    )
    texts = [tokenizer.decode(tokens) for tokens in written]
    return [text if not stop else text.partition(stop)[0] for text in texts]
