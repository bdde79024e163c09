"""Text -> symbols and back, through Hugging Face `tokenizers`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from elman.errors import DataError

if TYPE_CHECKING:
    import tokenizers

UNKNOWN = "<unk>"

# The tokenizer keeps some 200 bytes for every character that it is working on: pieces keep both cores busy, a
# group of pieces bounds the memory.
_PIECE, _GROUP = 4096, 64


class Tokenizer:
    """Text to symbols and back, through Hugging Face `tokenizers`: `tokenizer.json` is read everywhere.

        tokenizer = Tokenizer.characters(text)      # one symbol for each character of the text, and <unk>
        tokens = tokenizer.encode(text)             # int64 [N]
        assert tokenizer.decode(tokens) == text     # exact

    A character that the text did not hold becomes the symbol `<unk>`, number 0.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self.backend = backend

    @classmethod
    def characters(cls, text: str) -> Tokenizer:
        """A tokenizer whose symbols are the characters of `text`, in the order of their code points."""
        from tokenizers import Regex, decoders, models, pre_tokenizers
        from tokenizers import Tokenizer as Backend

        vocabulary = {symbol: number for number, symbol in enumerate([UNKNOWN, *sorted(set(text))])}
        backend = Backend(models.WordLevel(vocabulary, unk_token=UNKNOWN))
        # `.` would leave newlines out.
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
        backend.decoder = decoders.Fuse()  # without a decoder, symbols are joined by spaces
        return cls(backend)

    @classmethod
    def from_json(cls, text: str, where: object = None) -> Tokenizer:
        """The tokenizer of a `tokenizer.json`. Raises DataError if it is none; `where` names the file."""
        from tokenizers import Tokenizer as Backend

        try:
            return cls(Backend.from_str(text))
        except Exception as error:  # the Rust side raises Exception itself
            raise DataError(
                what=f"this is no tokenizer: {error}",
                where=where,
                mend="restore tokenizer.json, or train the model again",
            ) from error

    def to_json(self) -> str:
        return self.backend.to_str(pretty=True)

    @property
    def size(self) -> int:
        """The number of symbols, `<unk>` included."""
        return self.backend.get_vocab_size()

    @property
    def unknown(self) -> int:
        """The number of the symbol that stands for every character that was not in the training text."""
        number = self.backend.token_to_id(UNKNOWN)
        assert number is not None  # every tokenizer that we make has it
        return number

    def encode(self, text: str) -> Tensor:
        """The symbols of a text: int64 [N]. About half a second for a megabyte on two cores."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                what="the text holds half a character (a lone surrogate)",
                where=f"character {error.start}",
                got=repr(text[error.start]),
                mend="give text that was decoded as UTF-8",
            ) from error
        # Cutting anywhere is right for characters, which do not depend on their neighbours.
        pieces = [text[start : start + _PIECE] for start in range(0, len(text), _PIECE)]
        parts = [torch.empty(0, dtype=torch.int64)]
        for start in range(0, len(pieces), _GROUP):
            for piece in self.backend.encode_batch_fast(
                pieces[start : start + _GROUP], add_special_tokens=False
            ):
                parts.append(torch.tensor(piece.ids, dtype=torch.int64))
        return torch.cat(parts)

    def decode(self, tokens: Tensor | Iterable[int]) -> str:
        """The text of symbols: the inverse of `encode`, except that `<unk>` stays what it is."""
        numbers = tokens.tolist() if isinstance(tokens, Tensor) else list(tokens)
        return self.backend.decode(numbers, skip_special_tokens=False)
