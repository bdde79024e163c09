"""A step as a C file and its header: C99, no memory of its own, nothing but math.h and string.h."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from elman.errors import InputError
from elman.export.c.text import main_for
from elman.export.options import option
from elman.export.step.flat import Flat, Leaf
from elman.export.step.quantised import HELP, QuantisedRows, expect_kind, rows_of
from elman.export.step.single import single
from elman.export.step.statements import TargetLanguage, statements
from elman.training import write_atomically

_WIDTH = 110  # columns of a table of numbers


@dataclass(frozen=True)
class Options:
    """Of `.c`."""

    weights: str | None = option(None, HELP)
    prefix: str = option("elman", "What the names of its functions and macros begin with.", metavar="NAME")


def write(module: nn.Module, path: Path, options: Options) -> list[Path]:
    """Write the step and its header beside it."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,40}", options.prefix):
        raise InputError(
            what="the prefix is a name in C",
            where="export(prefix=)",
            got=options.prefix[:50],
            mend="take such as elman",
        )
    step = Source(
        Flat.of(single(module)), expect_kind(options.weights, ("float32", "int8"), "float32"), options.prefix,
        path.with_suffix(".h").name,
    )  # fmt: skip
    write_atomically(path.with_suffix(".h"), step.header().encode())
    write_atomically(path, step.source(main_for(module, step.flat, options.prefix)).encode())
    return [path, path.with_suffix(".h")]


class Source:
    """The two texts. header: its name."""

    def __init__(self, flat: Flat, weights: str, prefix: str, header: str) -> None:
        self.flat, self.prefix, self.upper, self.name = flat, prefix, prefix.upper(), header
        self.rows: dict[str, QuantisedRows] = {}
        if weights == "int8":
            self.rows = {
                a.name: rows_of(a) for a in flat.arrays if a.row is not None and a.values.is_floating_point()
            }
        self.used: set[str] = set()

    @property
    def kept(self) -> int:
        """Numbers of the state; a whole number takes the room of two."""
        return self.flat.state + 2 * self.flat.kept

    def header(self) -> str:
        flat, P = self.flat, self.upper
        real = f"{P}_FLOAT"
        guard = re.sub(r"\W", "_", f"{P}_{self.name}".upper())
        given = [f"const {real} *x"] if flat.reals or not flat.ids else []
        given += [f"const int32_t *{'ids' if flat.reals else 'x'}"] if flat.ids else []
        self.arguments = ", ".join([*given, f"{real} *state", f"{real} *out"])
        sizes = {
            "X": flat.reals,
            "IDS": flat.ids,
            "OUT": flat.outs,
            "STATE": self.kept,
            "SCRATCH": flat.scratch,
        }
        macros = "\n".join(
            f"#define {P}_{name} {size}" for name, size in sizes.items() if size or name not in ("X", "IDS")
        )
        return f"""{_said(flat, self.prefix, self.kept)}
#ifndef {guard}
#define {guard}

#include <stdint.h>

#ifndef {real}
#define {real} float
#endif

{macros}

#ifdef __cplusplus
extern "C" {{
#endif

/* Where a sequence begins. state: room for {P}_STATE + {P}_SCRATCH numbers. */
void {self.prefix}_init({real} *state);

/* One step. The memories do not overlap. An index that is none of a table makes all that comes out, and the state,
 * NaN. */
void {self.prefix}_step({self.arguments});

#ifdef __cplusplus
}}
#endif

#endif
"""

    def source(self, more: str) -> str:
        self.header()
        flat, P = self.flat, self.upper
        body = statements(flat, self._language())
        whole = f"    int64_t whole[{flat.wholes}];\n" if flat.wholes else ""
        size = f"{flat.kept} * sizeof(int64_t)"
        take = f"    memcpy(whole, state + {flat.state}, {size});\n" if flat.kept else ""
        give = f"    memcpy(state + {flat.state}, whole, {size});\n" if flat.kept else ""
        fails = any("bad" in line for line in body)
        scratch = (
            f"    real *scratch = state + {P}_STATE;\n" if any("scratch" in line for line in body) else ""
        )
        bad = (
            f"    if (bad) {{\n        for (int i = 0; i < {P}_OUT; i++) out[i] = NAN;\n"
            f"        for (int i = 0; i < {flat.state}; i++) state[i] = NAN;\n    }}\n"
            if fails
            else ""
        )
        unused = "".join(
            f"    (void){name};\n"
            for name, count, word in (("x", flat.reals, "x["), ("out", flat.outs, "out"), ("ids", flat.ids, "ids["))
            if (count or name != "ids") and not any(word in line or f"{name} +" in line for line in body)
            and not (name == "x" and flat.ids and not flat.reals)
        )  # fmt: skip
        lines = "\n".join(f"    {line}" for line in body)
        arguments = self.arguments.replace("int32_t *x", "int32_t *ids") if not flat.reals else self.arguments
        return f"""{_said(flat, self.prefix, self.kept)}
#include <math.h>
#include <string.h>

#include "{self.name}"

typedef {P}_FLOAT real;

{"".join(self._arrays())}
{"".join(_helpers(self.used))}void {self.prefix}_init({P}_FLOAT *state) {{
{self._start()}}}

void {self.prefix}_step({arguments}) {{
{scratch}{whole}{"    int bad = 0;" + chr(10) if fails else ""}{unused}{take}{lines}
{give}{bad}}}
{more}"""

    # --- pieces -----------------------------------------------------------------------------------------------------

    def _language(self) -> TargetLanguage:
        def element(memory: str, at: str) -> str:
            if memory == "ids":
                return f"(int64_t)ids[{at}]"
            if memory in self.rows:
                row = self.flat.array(memory).row
                return f"({memory}[{at}] * (real){memory}_scale[({at}) / {row}])"
            return f"{memory}[{at}]"

        def call(name: str) -> str:
            if name == "product" and self.rows:
                name = "product8"
            self.used.add(name)
            return f"elman_{name}"

        def address(memory: str, offset: int) -> str:
            if memory in {a.name for a in self.flat.arrays}:
                raise InputError(what="a product of constants", where="export()")
            return f"{memory} + {offset}" if offset else memory

        def matrix(name: str) -> str:
            return f"{name}, {name}_scale" if self.rows else name

        return TargetLanguage(
            "int", "real", "int64_t", element, address, matrix, _number, call, "bad = 1;", "&bad"
        )

    def _arrays(self) -> Iterator[str]:
        for array in self.flat.arrays:
            rows = self.rows.get(array.name)
            if rows is not None:
                yield _table("signed char", array.name, map(str, rows.numbers.flatten().tolist()))
                yield _table("float", f"{array.name}_scale", map(_float, rows.scales.tolist()))
            elif array.values.dtype is torch.int64:
                yield _table("int64_t", array.name, (f"{one}" for one in array.values.tolist()))
            else:
                yield _table("float", array.name, map(_float, array.values.to(torch.float32).tolist()))

    def _start(self) -> str:
        reals, wholes = self.flat.start
        text = ""
        if any(reals):
            numbers = _table("float", "start", map(_float, reals))
            text += "".join(f"    {line}\n" for line in numbers.splitlines())
            text += f"    for (int i = 0; i < {len(reals)}; i++) state[i] = start[i];\n"
        elif reals:
            text += f"    for (int i = 0; i < {len(reals)}; i++) state[i] = 0;\n"
        if wholes:
            text += f"    static const int64_t whole[] = {{{', '.join(map(str, wholes))}}};\n"
            text += f"    memcpy(state + {self.flat.state}, whole, sizeof whole);\n"
        return text or "    (void)state;\n"


def _said(flat: Flat, prefix: str, kept: int) -> str:
    """What goes in and comes out, as a comment."""

    def lines(word: str, leaves: Sequence[Leaf]) -> Iterator[str]:
        for leaf in leaves:
            where = f"{leaf.memory}[{leaf.offset}]" + (
                f" … [{leaf.offset + leaf.width - 1}]" if leaf.width != 1 else ""
            )
            sizes = f" [{', '.join(map(str, leaf.sizes))}]" if leaf.sizes else ""
            yield f" *   {word:6} {where}: {_plain(leaf.path)}{sizes}"

    ports = [*lines("in", flat.inputs), *lines("state", flat.states), *lines("out", flat.outputs)]
    body = "\n".join(ports)
    return f"""/* A step of {_plain(flat.name)}, written by elman.
 *
 *   real state[{prefix.upper()}_STATE + {prefix.upper()}_SCRATCH];
 *   {prefix}_init(state);
 *   for each step: {prefix}_step(x, state, out);
 *
{body}
 */"""


def _plain(text: str) -> str:
    """Letters that end no comment and are nothing but ASCII."""
    letters = re.sub(r"[^ -~]|\\", "?", text).replace("*/", "* /").replace("/*", "/ *")
    return re.sub(r"\?(?=\?)", "? ", letters)


def _table(kind: str, name: str, numbers: Any) -> str:
    lines, line = [], ""
    for number in numbers:
        if len(line) + len(number) + 2 > _WIDTH:
            lines.append(line)
            line = ""
        line += f"{number}, "
    lines.append(line)
    body = "\n".join(f"    {one.rstrip()}" for one in lines)
    return f"static const {kind} {name}[] = {{\n{body}\n}};\n"


def _float(number: float) -> str:
    """A float32, exactly."""
    if not math.isfinite(number):
        return "NAN" if number != number else "INFINITY" if number > 0 else "-INFINITY"
    text = f"{number:.9g}"
    return f"{text}f" if re.search(r"[.e]", text) else f"{text}.0f"


def _number(number: float | int) -> str:
    if isinstance(number, (bool, int)):
        return str(int(number))
    return f"(real){_float(number).removesuffix('f')}" if math.isfinite(number) else f"({_float(number)})"


# --- functions ------------------------------------------------------------------------------------------------------

_LIBRARY = [
    "exp",
    "expm1",
    "log",
    "log1p",
    "tanh",
    "sqrt",
    "floor",
    "ceil",
    "trunc",
    "erf",
    "sin",
    "cos",
    "atan",
    "fabs",
    "rint",
]
_OWN: dict[str, tuple[str, tuple[str, ...]]] = {
    "sigmoid": ("(real a) { return 1 / (1 + elman_exp(-a)); }", ("exp",)),
    "maximum": ("(real a, real b) { return a > b || a != a ? a : b; }", ()),
    "minimum": ("(real a, real b) { return a < b || a != a ? a : b; }", ()),
    "remainder_of": (
        "(real a, real b) {\n    real r = elman_fmod(a, b);\n    return r != 0 && (r < 0) != (b < 0) ? r + b : r;\n}",
        ("fmod",),
    ),
    "floordiv": (
        "(real a, real b) {\n    real r, f;\n    if (b == 0) return a / b;\n    r = elman_fmod(a, b);\n"
        "    f = (a - r) / b - (r != 0 && (b < 0) != (r < 0));\n"
        "    if (f == 0) return a / b < 0 ? (real)-0.0 : (real)0.0;\n"
        "    return f - elman_floor(f) > (real)0.5 ? elman_floor(f) + 1 : elman_floor(f);\n}",
        ("fmod", "floor"),
    ),
    "lerp": (
        "(real a, real b, real w) {\n"
        "    return w < (real)0.5 && w > (real)-0.5 ? a + w * (b - a) : b - (b - a) * (1 - w);\n}",
        (),
    ),
}  # fmt: skip
_WHOLE: dict[str, str] = {
    "real_of": "static real elman_real_of(int64_t a) { return (real)a; }\n",
    "whole_of": "static int64_t elman_whole_of(real a) { return (int64_t)a; }\n",
    **{
        f"int_{name}": f"static int64_t elman_int_{name}(int64_t a, int64_t b) {{\n"
        f"    return (int64_t)((uint64_t)a {sign} (uint64_t)b);\n}}\n"
        for name, sign in {"add": "+", "sub": "-", "mul": "*"}.items()
    },
    "int_remainder": "static int64_t elman_int_remainder(int64_t a, int64_t b, int *bad) {\n"
    "    if (b == 0) *bad = 1;\n    if (b == 0 || b == -1) return 0;\n"
    "    return a % b + (a % b != 0 && (a % b < 0) != (b < 0) ? b : 0);\n}\n",
    "int_floordiv": "static int64_t elman_int_floordiv(int64_t a, int64_t b, int *bad) {\n"
    "    if (b == 0) *bad = 1;\n    if (b == 0) return 0;\n    if (b == -1) return (int64_t)(0 - (uint64_t)a);\n"
    "    return a / b - (a % b != 0 && (a % b < 0) != (b < 0));\n}\n",
}
_PRODUCT = """/* out[i] += sum of w[i][j] x[j] over j < k, for i < n */
static void elman_product(const float *w, int n, int k, const real *x, real *out) {
    for (int i = 0; i < n; i++, w += k) {
        real a = 0, b = 0, c = 0, d = 0;
        int j = 0;
        for (; j + 4 <= k; j += 4) {
            a += w[j] * x[j];
            b += w[j + 1] * x[j + 1];
            c += w[j + 2] * x[j + 2];
            d += w[j + 3] * x[j + 3];
        }
        for (; j < k; j++) a += w[j] * x[j];
        out[i] += (a + b) + (c + d);
    }
}
"""


def _helpers(used: set[str]) -> Iterator[str]:
    """What is used, each after what it uses itself."""
    wanted = used | {name for one in used if one in _OWN for name in _OWN[one][1]}
    for name in [*_LIBRARY, "pow", "fmod", "atan2"]:
        if name in wanted:
            two = name in ("pow", "fmod", "atan2")
            head = "real a, real b" if two else "real a"
            floats, doubles = ("(float)a, (float)b", "a, b") if two else ("(float)a", "a")
            yield (
                f"static real elman_{name}({head}) {{\n"
                f"    return sizeof(real) == sizeof(float) ? (real){name}f({floats}) : (real){name}({doubles});\n}}\n\n"
            )
    for name, (text, _) in _OWN.items():
        if name in wanted:
            yield f"static real elman_{name}{text}\n\n"
    for name, text in _WHOLE.items():
        if name in wanted:
            yield f"{text}\n"
    if "product" in wanted:
        yield f"{_PRODUCT}\n"
    if "product8" in wanted:
        eight = _PRODUCT.replace(
            "elman_product(const float *w, ", "elman_product8(const signed char *w, const float *s, "
        )
        yield (
            eight.replace("w[i][j] x[j]", "s[i] w[i][j] x[j]").replace(
                "(a + b) + (c + d)", "s[i] * ((a + b) + (c + d))"
            )
            + "\n"
        )
