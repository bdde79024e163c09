"""Text -> symbols -> batches: reading, splitting, the tokenizer, and the windows that training walks through.

    files --read_corpus--> Corpus(train, held_out) --Tokenizer.encode--> [N] --windows--> x [T, B], y [T, B]

A symbol is an int64; a text of N symbols is a tensor [N]. Everything that goes to a model is time-major.
"""

from elman.data.text import (
    BUILT_IN,
    HELD_OUT,
    Corpus,
    built_in_text,
    digest,
    read_corpus,
    read_text,
    reread_corpus,
)
from elman.data.tokenizer import KINDS, UNKNOWN, Tokenizer
from elman.data.windows import Window, windows

__all__ = [
    "BUILT_IN",
    "HELD_OUT",
    "KINDS",
    "UNKNOWN",
    "Corpus",
    "Tokenizer",
    "Window",
    "built_in_text",
    "digest",
    "read_corpus",
    "read_text",
    "reread_corpus",
    "windows",
]
