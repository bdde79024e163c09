"""Files -> batches: reading, splitting, tokenizers, and what training walks through.

    files --read_corpus--> Corpus(train, held_out) --learn--> Tokenizer --tokenise--> Tokens --windows--> x, y [T, B]

Nothing here holds a whole text: a `Text` is read a block at a time, `Tokens` are a file of which slices are
read as int64 tensors. Everything that goes to a model is time-major.
"""

from elman.data.batches import Batch, Batches, Ragged, ragged
from elman.data.cache import cache_folder, learn, tokenise
from elman.data.corpus import BUILT_IN, HELD_OUT, Corpus, built_in_text, read_corpus, reread_held_out
from elman.data.text import Text, open_text, read_text
from elman.data.tokenizer import KINDS, UNKNOWN, Tokenizer
from elman.data.tokens import Counts, Tokens
from elman.data.windows import Windows, windows

__all__ = [
    "BUILT_IN",
    "HELD_OUT",
    "KINDS",
    "UNKNOWN",
    "Batch",
    "Batches",
    "Corpus",
    "Counts",
    "Ragged",
    "Text",
    "Tokenizer",
    "Tokens",
    "Windows",
    "built_in_text",
    "cache_folder",
    "learn",
    "open_text",
    "ragged",
    "read_corpus",
    "read_text",
    "reread_held_out",
    "tokenise",
    "windows",
]
