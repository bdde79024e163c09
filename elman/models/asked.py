"""What is asked of a model: checked before; and where a text that it writes ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from elman.errors import InputError, InputTypeError, expect


def expect_prompt(prompt: Tensor | Sequence[int], own_tokenizer: bool) -> Tensor:
    """int64 [P], P >= 1. Raises InputError and InputTypeError. own_tokenizer: the model knows its symbols."""
    if isinstance(prompt, str):
        raise InputTypeError(
            what="a prompt is numbers of symbols", where="prompt", got="a text", expected="int64 [P], or a list",
            mend="tokenizer.encode(text) gives them, tokenizer.decode(…) makes a text of what is written; "
            + ("model.tokenizer is the model's" if own_tokenizer else "Tokenizer.load reads that of a run"),
        )  # fmt: skip
    prompt = torch.as_tensor(prompt, dtype=torch.int64)
    if prompt.ndim != 1 or len(prompt) == 0:
        raise InputError(
            what="the prompt must be symbols in a row, at least one", where="prompt",
            got=f"shape {tuple(prompt.shape)}", expected="[P], P >= 1",
            mend="begin with a newline where there is nothing else to begin with",
        )  # fmt: skip
    return prompt


def expect_ways(
    temperature: float, length: int, top_k: int | None, top_p: float | None, samples: int | None
) -> None:
    """Raise InputError where it cannot be written so: see `LanguageModel.generate_iter`."""
    for name, value, right, mend in (
        (
            "temperature",
            temperature,
            temperature == 0 or 1e-6 <= temperature <= 1e6,
            "take 0, or 1e-6 to 1e6: 1 writes as the model predicts, less is safer, 0 takes the likeliest",
        ),
        ("length", length, length >= 0, "take 0 or more"),
        ("top_k", top_k, top_k is None or top_k >= 1, "take 1 or more, or leave it out"),
        ("top_p", top_p, top_p is None or 0 < top_p <= 1, "take a probability above 0, or leave it out"),
        ("samples", samples, samples is None or samples >= 1, "take 1 or more, or leave it out"),
    ):
        if not right:
            raise InputError(what=f"{name} cannot be that", where=name, got=value, mend=mend)


def expect_seed(seed: Any) -> None:
    """Raise InputError or InputTypeError for what no random numbers can begin with."""
    what, mend = "a seed is a whole number", "give one, such as 0"
    expect(seed, int, what, "seed", mend)
    if not -(2**63) <= seed < 2**64:
        raise InputError(what=what, where="seed", got=seed, expected="-2⁶³ … 2⁶⁴ - 1", mend=mend)


def is_gap(label: Any) -> bool:
    """Whether there is no label: None, NaN, or a gap of pandas."""
    try:
        return label is None or bool(label != label)
    except (TypeError, ValueError):  # of pandas.NA nobody knows whether it is itself
        return True


def until(written: Iterator[list[int]], stop: set[int], one: bool) -> Iterator[Any]:
    """What is written until every sample has met a symbol of `stop`; `one`: the symbols of one sample by themselves."""
    stopped: list[bool] = []
    for symbols in written:
        yield symbols[0] if one else symbols
        if stop:
            stopped = [
                a or b in stop for a, b in zip(stopped or [False] * len(symbols), symbols, strict=True)
            ]
            if all(stopped):
                return


__all__ = ["expect_prompt", "expect_seed", "expect_ways", "is_gap", "until"]
