"""Sequences, a line each: plain lines of text, or JSON lines; and what they are made of.

Albers                                      # a text, in any file
"Albers"   {"text": "Albers"}               # the same in a file that ends in .jsonl
["New", "York"]                             # symbols that are longer than a character
[[0, 1, 0], [1, 1, 0]]                      # an array [T, I], of numbers
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from elman.data.files import reading
from elman.data.kinds import HEAD, mend_of, refuse_strange
from elman.data.schema import Odd, each, parsed, record, text, truth, whole
from elman.data.utf16 import as_utf8
from elman.errors import DataError

END, UNKNOWN = (
    0,
    1,
)  # symbols that every alphabet has: where a sequence ends, and what was not there in training
LONGEST = 10_000  # steps of a sequence
_RAW = 2**24  # bytes of a line of JSON
_CHANNELS = 10_000
_JSON = (".jsonl", ".ndjson")
_CHECK = record(
    {
        "symbols": each(text(LONGEST), 2**20),
        "joined": truth,
        "channels": whole(0, _CHANNELS),
        "binary": truth,
    }
)


def read_sequences(
    files: Iterable[Path], in_json: bool = False, blanks: bool = False
) -> Iterator[tuple[str, Any]]:
    """(file:line, sequence) of files, "-" for standard input, each as soon as it is read; empty lines are passed over.

    in_json: lines of standard input are JSON, as those of .jsonl. blanks: an empty line is (file:line, None).

    Raises DataError with file and line for what cannot be read.
    """
    for file in files:
        quoted = in_json if str(file) == "-" else file.suffix in _JSON
        most = _RAW if quoted else 4 * LONGEST
        name = "standard input" if str(file) == "-" else file
        with _opened(file) as opened:
            lines, number = as_utf8(opened, name), 0
            while raw := lines.readline(most + 3):
                number += 1
                place = f"{file}:{number}"
                if number == 1:
                    refuse_strange(raw[:HEAD], name)
                line = _line(raw, place, most)
                if line.strip():
                    yield place, _from_json(line, place) if quoted else _text(line, place)
                elif blanks:
                    yield place, None


@contextmanager
def _opened(file: Path) -> Iterator[IO[bytes]]:
    if str(file) == "-":
        yield sys.stdin.buffer
        return
    with reading(file, "the sequences", "give a file of text, or of JSON lines (.jsonl)") as lines:
        yield lines


def _line(raw: bytes, place: str, most: int) -> str:
    raw = raw.rstrip(b"\r\n").removeprefix(b"\xef\xbb\xbf")
    if len(raw) > most:
        raise _too_long(place, f"more than {most:,} bytes")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            what="the line is no UTF-8", where=place, got=f"byte 0x{raw[error.start]:02x} at {error.start}",
            mend=mend_of(raw, place.rpartition(":")[0]),
        ) from error  # fmt: skip


def _text(line: str, place: str) -> str:
    if len(line) > LONGEST:
        raise _too_long(place, f"{len(line):,} characters")
    return line


def _too_long(place: str, got: str) -> DataError:
    return DataError(
        what="the line is too long", where=place, got=got, expected=f"one sequence of at most {LONGEST:,} steps",
        mend="cut it into lines",
    )  # fmt: skip


def _from_json(line: str, place: str) -> Any:
    try:
        value = parsed(line, lambda value, where: None)
        if isinstance(value, dict):
            value = value.get("text")
        if not isinstance(value, (str, list)) or not value:
            raise Odd(
                "", type(value).__name__, 'a text, {"text": …}, or a list of symbols or of lists of numbers'
            )
        return value
    except Odd as odd:
        raise DataError(
            what="this is no sequence in JSON", where=place, got=odd.got, expected=odd.expected, mend="mend the line"
        ) from odd  # fmt: skip


@dataclass(frozen=True)
class Form:
    """What sequences are made of, and their way to numbers and back.

    symbols: in order, numbered from 2; none for arrays. joined: a sequence is a text, not a list of symbols.
    channels: I of arrays [T, I]. binary: they hold 0 and 1 alone.
    """

    symbols: tuple[str, ...] = ()
    joined: bool = True
    channels: int = 0
    binary: bool = False

    @classmethod
    def of(cls, sequences: Sequence[Any]) -> Form:
        """The form of sequences. Raises Odd, whose place is the index of the first that is not as those before."""
        if not len(sequences):
            raise Odd("", "no sequences", "at least one")
        if all(isinstance(one, str) for one in sequences):
            return cls(tuple(sorted({symbol for one in sequences for symbol in one})))
        if isinstance(sequences[0], (list, tuple)) and all(isinstance(s, str) for s in sequences[0]):
            form = cls(joined=False)
            for i, one in enumerate(sequences):
                form._split(one, str(i))
            return cls(tuple(sorted({symbol for one in sequences for symbol in one})), joined=False)
        first = _array(sequences[0], "0")
        form, binary = cls(channels=first.shape[1]), True
        for i, one in enumerate(sequences):
            binary = binary and bool(((x := form.encode(one, str(i))) == 0).logical_or(x == 1).all())
        return cls(channels=first.shape[1], binary=binary)

    @property
    def size(self) -> int:
        """V, with the end and what is unknown; 0 for arrays."""
        return 0 if self.channels else len(self.symbols) + 2

    def encode(self, sequence: Any, place: str = "sequence") -> Tensor:
        """int64 [T]; float64 [T, I], of binary ones float32. Raises Odd."""
        if self.channels:
            x = _array(sequence, place)
            if x.shape[1] != self.channels:
                raise Odd(place, f"{x.shape[1]} channels", f"{self.channels}")
            if self.binary and not ((x == 0) | (x == 1)).all():
                raise Odd(place, "other numbers", "0 and 1 alone")
            return x.float() if self.binary else x
        numbers = self._numbers
        return torch.tensor([numbers.get(symbol, UNKNOWN) for symbol in self._split(sequence, place)])

    def decode(self, x: Tensor) -> Any:
        """A text, a list of symbols, or an array, of what `encode` gives."""
        if self.channels:
            return x.cpu().numpy()
        symbols = ["\ufffd" if k == UNKNOWN else self.symbols[k - 2] for k in x.tolist()]
        return "".join(symbols) if self.joined else symbols

    def line(self, sequence: Any) -> str:
        """A sequence as `read_sequences` reads it."""
        if isinstance(sequence, np.ndarray):
            return json.dumps(sequence.astype(int).tolist() if self.binary else sequence.round(4).tolist())
        return sequence if self.joined and "\n" not in sequence else json.dumps(sequence, ensure_ascii=False)

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), ensure_ascii=False).encode()

    @classmethod
    def from_json(cls, raw: bytes) -> Form:
        """Raises Odd."""
        fields = parsed(raw, _CHECK)
        if bool(fields["channels"]) == bool(fields["symbols"]) or len(set(fields["symbols"])) < len(
            fields["symbols"]
        ):
            raise Odd("symbols", f"{len(fields['symbols'])}", "symbols, each once, or channels")
        names = ("symbols", "joined", "channels", "binary")
        return cls(**{**{name: fields[name] for name in names}, "symbols": tuple(fields["symbols"])})

    @property
    def _numbers(self) -> dict[str, int]:
        numbers = self.__dict__.get("_found")
        if numbers is None:
            numbers = {symbol: k for k, symbol in enumerate(self.symbols, 2)}
            object.__setattr__(self, "_found", numbers)
        return numbers

    def _split(self, sequence: Any, place: str) -> Sequence[str]:
        kind = str if self.joined else (list, tuple)
        if not isinstance(sequence, kind) or not all(isinstance(s, str) for s in sequence):
            raise Odd(place, type(sequence).__name__, "a text" if self.joined else "a list of symbols")
        if not 1 <= len(sequence) <= LONGEST:
            raise Odd(place, f"{len(sequence):,} symbols", f"1 … {LONGEST:,}")
        return sequence


def _array(value: Any, place: str) -> Tensor:
    try:
        x = value if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value, dtype=np.float64))
    except (TypeError, ValueError, OverflowError) as error:  # a whole number may have any size
        raise Odd(place, type(value).__name__, "an array [T, I] of numbers") from error
    x = x.detach().double().cpu()
    if x.ndim != 2 or not 1 <= len(x) <= LONGEST or not 1 <= x.shape[1] <= _CHANNELS:
        raise Odd(place, f"shape {list(x.shape)}", f"[T, I], T of 1 … {LONGEST:,}, I of 1 … {_CHANNELS:,}")
    if not (there := x.float().isfinite()).all():  # standardised or not, a network reads float32
        step = int((~there).any(1).nonzero()[0])
        raise Odd(place, f"NaN or infinity at step {step}", "numbers")
    return x
