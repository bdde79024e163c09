"""What is read from a file that anybody may have written: JSON, checked by type and range before it is used.

    SIZES = record({"hidden": whole(1, 2**20)}, {"tie": truth, "names": each(text(100), 1000)})
    sizes = from_json(raw, SIZES, what="this is no configuration", where=path, mend="restore it")

A check is a function of a value and of its place in the file; it raises `Odd`. What a record does not name may be
anything.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from elman.errors import DataError

Check = Callable[[Any, str], None]
# Bytes, and lists and objects, each of which takes as much memory as thirty of its bytes in a file.
_LONGEST, _PARTS = 2**25, 2**21
_NESTED = 32  # of anything in a file of ours; what walks through it may call itself


class Odd(ValueError):
    """A value that cannot be what it stands for. place: in the file, dotted; "" for all of it."""

    def __init__(self, place: str, got: object, expected: str) -> None:
        super().__init__(f"{place or 'all of it'}: {expected} expected, got {got}")
        self.place, self.got, self.expected = place, got, expected


def parsed(raw: bytes | str, check: Check) -> Any:
    """The value of JSON that passes a check. Raises Odd."""
    if len(raw) > _LONGEST:
        raise Odd("", f"{len(raw):,} bytes", f"at most {_LONGEST:,}")
    parts = raw.count("[") + raw.count("{") if isinstance(raw, str) else raw.count(b"[") + raw.count(b"{")
    if parts > _PARTS:
        raise Odd("", f"{parts:,} lists and objects", f"at most {_PARTS:,}")
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise Odd("", str(error)[:200], "JSON") from error
    check(value, "")
    level = [value]
    for _ in range(_NESTED):
        level = [part for one in level if isinstance(one, (dict, list)) for part in _parts(one)]
    if level:
        raise Odd("", "more", f"values nested at most {_NESTED} deep")
    return value


def from_json(raw: bytes | str, check: Check, *, what: str, where: object, mend: str) -> Any:
    """`parsed`, of a file that is to be named: raises DataError."""
    try:
        return parsed(raw, check)
    except Odd as odd:
        place = f"{where}, {odd.place}" if odd.place else where
        raise DataError(what=what, where=place, got=odd.got, expected=odd.expected, mend=mend) from odd


def record(needed: Mapping[str, Check], known: Mapping[str, Check] | None = None) -> Check:
    """An object with these names. known: those that may be left out."""
    checks = {**needed, **(known or {})}

    def check(value: Any, place: str) -> None:
        _expect(isinstance(value, dict), value, place, "an object")
        for name, own in checks.items():
            inner = f"{place}.{name}" if place else name
            if name in value:
                own(value[name], inner)
            elif name in needed:
                raise Odd(inner, "nothing", "a value")

    return check


def each(own: Check, most: int, *, named: bool = False) -> Check:
    """A list of at most so many values; named: an object of any names."""

    def check(value: Any, place: str) -> None:
        _expect(isinstance(value, dict if named else list), value, place, "an object" if named else "a list")
        if len(value) > most:
            raise Odd(place, f"{len(value):,} values", f"at most {most:,}")
        for key, part in value.items() if named else enumerate(value):
            own(part, f"{place}[{_short(key)}]")

    return check


def whole(least: int, most: int) -> Check:
    """A whole number."""

    def check(value: Any, place: str) -> None:
        right = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
        _expect(right, value, place, f"a whole number of {least} … {most}")

    return check


def number(least: float, most: float, *, finite: bool = True) -> Check:
    """A number; finite: neither an infinity nor NaN."""

    def check(value: Any, place: str) -> None:
        right = isinstance(value, (int, float)) and not isinstance(value, bool)
        odd = right and not finite and isinstance(value, float) and not math.isfinite(value)
        _expect(right and (odd or least <= value <= most), value, place, f"a number of {least:g} … {most:g}")

    return check


def text(most: int) -> Check:
    """A string of at most so many characters."""

    def check(value: Any, place: str) -> None:
        _expect(isinstance(value, str) and len(value) <= most, value, place, f"a text of at most {most:,}")

    return check


def file_name(value: Any, place: str) -> None:
    """What a system takes for the name of a file."""
    right = isinstance(value, str) and 0 < len(value) <= 4096 and "\0" not in value
    _expect(right, value, place, "the name of a file")


def truth(value: Any, place: str) -> None:
    _expect(isinstance(value, bool), value, place, "true or false")


def plain(value: Any, place: str) -> None:
    """A number, a text, true, false or null."""
    _expect(not isinstance(value, (dict, list)), value, place, "a plain value")


def maybe(own: Check) -> Check:
    """That, or null."""
    return lambda value, place: None if value is None else own(value, place)


def _parts(one: dict | list) -> Any:
    return one.values() if isinstance(one, dict) else one


def _expect(right: bool, value: Any, place: str, expected: str) -> None:
    if not right:
        raise Odd(place, _short(value), expected)


def _short(value: Any) -> str:
    """A value in few letters. Of an object or a list, what it is: to write it out may take long."""
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    if isinstance(value, str):
        return repr(value[:60]) + ("…" if len(value) > 60 else "")
    if isinstance(value, int) and abs(value) > 10**40:
        return "a longer number"
    return str(value)[:60]
