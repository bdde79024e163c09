"""What a piece of Python code names: the globals, attributes and modules that it can read when it runs."""

from __future__ import annotations

import dis
import os
import re
import sys
import sysconfig
import types
from dataclasses import dataclass

import torch

from elman.caches import cached

# Code that reads attributes whose names stand nowhere.
_BY_OTHER_MEANS = {
    "getattr", "hasattr", "vars", "dir", "eval", "exec", "locals", "globals", "__dict__", "attrgetter", "methodcaller",
    "getattr_static", "__getattribute__", "asdict", "astuple", "fields",
}  # fmt: skip
_FROM_TEXT = {"eval", "exec", "format", "format_map"}  # of which every word of a text may be a name
_OF_GLOBALS = {"eval", "exec", "globals"}
_LIBRARIES = tuple(
    {
        os.path.join(path, "")
        for path in (
            os.path.dirname(torch.__file__), os.path.dirname(os.path.dirname(__file__)),
            sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"),
        )
    }
)  # fmt: skip


@dataclass(frozen=True)
class Names:
    """globals: names of the module that the code stands in. attributes: of whatever. modules: what it imports.

    by_other_means: it may read attributes that are not among these.
    """

    globals: tuple[str, ...]
    attributes: tuple[str, ...]
    modules: tuple[str, ...]
    by_other_means: bool


@cached("names that code reads", 4096)
def names_of(code: types.CodeType) -> Names:
    """What code names, that of functions inside it included."""
    globals_: dict[str, None] = {}
    modules: dict[str, None] = {}
    attributes: set[str] = set()
    texts: list[str] = []
    matches = False
    pending = [code]
    while pending:
        one = pending.pop()
        attributes.update(one.co_names)
        for constant in one.co_consts:
            if isinstance(constant, types.CodeType):
                pending.append(constant)
            texts += [
                text
                for text in (constant if isinstance(constant, tuple) else [constant])
                if isinstance(text, str)
            ]
        for instruction in dis.get_instructions(one):
            if instruction.opname in (
                "LOAD_GLOBAL",
                "LOAD_NAME",
                "STORE_GLOBAL",
                "LOAD_FROM_DICT_OR_GLOBALS",
            ):
                globals_[instruction.argval] = None
            elif instruction.opname == "IMPORT_NAME":
                modules[instruction.argval] = None
            matches |= instruction.opname == "MATCH_CLASS"  # whose names may be those of `__match_args__`
    attributes.update(filter(str.isidentifier, texts))
    if attributes & _FROM_TEXT:
        attributes.update(word for text in texts for word in re.findall(r"[^\W\d]\w*", text))
    if attributes & _OF_GLOBALS:
        globals_ |= dict.fromkeys(sorted(attributes))
    return Names(
        tuple(globals_),
        tuple(sorted(attributes)),
        tuple(modules),
        matches or bool(attributes & _BY_OTHER_MEANS),
    )


def line_of(code: types.CodeType, name: str) -> str:
    """`file:line` of where code names something."""
    pending, line = [code], code.co_firstlineno
    while pending:
        one = pending.pop()
        pending += [constant for constant in one.co_consts if isinstance(constant, types.CodeType)]
        for instruction in dis.get_instructions(one):
            if instruction.starts_line:
                line = instruction.positions.lineno if instruction.positions is not None else line
            if instruction.argval == name:
                return f"{one.co_filename}:{line}"
    return f"{code.co_filename}:{code.co_firstlineno}"


@cached("modules that are installed or the user's", 4096)
def is_library(module: str | None) -> bool:
    """Whether a module is installed rather than written by the user: PyTorch, Python's own, what pip has brought."""
    if module is None or module == "__main__":
        return False
    loaded = sys.modules.get(module) or sys.modules.get(module.partition(".")[0])
    file = getattr(loaded, "__file__", None)
    if file is None:
        return module.partition(".")[0] in sys.builtin_module_names or module.partition(".")[0] in (
            sys.stdlib_module_names
        )
    path = os.path.abspath(file)
    return path.startswith(_LIBRARIES) or any(
        part in path.split(os.sep) for part in ("site-packages", "dist-packages")
    )
