"""A step as a function in JavaScript, and its arrays as base64."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from elman.errors import NotSupported
from elman.export.step.flat import Array, Flat
from elman.export.step.quantised import rows_of
from elman.export.step.statements import TargetLanguage, statements

_MATH = {
    name: f"Math.{name}"
    for name in [
        "exp",
        "expm1",
        "log",
        "log1p",
        "tanh",
        "sqrt",
        "floor",
        "ceil",
        "trunc",
        "sin",
        "cos",
        "atan",
        "atan2",
        "pow",
    ]
}


def function(flat: Flat) -> str:
    """`(w) => ({x, ids, out, state, whole, init, step})`: w gives an array by name; what goes in is written into x and
    ids before a step. Raises NotSupported for what has no form."""
    arrays = {array.name for array in flat.arrays}

    def call(name: str) -> str:
        if name == "int_mul":
            raise NotSupported(
                what="products of whole numbers have no form in a page, whose numbers are exact to 2^53",
                where="export()",
            )
        return _MATH.get(name, f"f.{name}")

    def address(memory: str, offset: int) -> str:
        if memory in arrays:
            raise NotSupported(what="a product of constants has no form in a page", where="export()")
        return f"{memory}, {offset}"

    language = TargetLanguage(
        "let", "let", "let", lambda memory, at: f"{memory}[{at}]", address, lambda name: name, _number, call,
        "throw new RangeError(`there is no ${f}`);", "0",
    )  # fmt: skip
    lines = statements(flat, language)
    reals, wholes = flat.start
    declared = "".join(f'  const {name} = w("{name}");\n' for name in sorted(arrays))
    body = "\n".join(f"    {line}" for line in lines)
    return f"""(w) => {{
{declared}  const x = new Float32Array({flat.reals}), ids = new Int32Array({flat.ids});
  const out = new Float32Array({flat.outs});
  const state = new Float32Array({flat.state}), whole = new Float64Array({flat.wholes});
  const scratch = new Float32Array({flat.scratch});
  const start = [{", ".join(map(_number, reals))}], begun = {json.dumps(wholes)};
  const init = () => {{ state.set(start); whole.set(begun); }};
  const step = () => {{
{body}
  }};
  init();
  return {{x, ids, out, state, whole, init, step}};
}}"""


def packed(arrays: Sequence[Array], weights: str) -> tuple[dict[str, list[Any]], str]:
    """({name: [kind, first byte, numbers, row]}, the bytes in base64). weights: one of `quantised.KINDS`; it is said of
    matrices, others stay in float32."""
    index: dict[str, list[Any]] = {}
    data = bytearray()
    for array in arrays:
        at, row, count = len(data), array.row or 0, array.values.numel()
        if array.values.dtype is torch.int64:
            kind, parts = "float64", [array.values.double()]
        elif weights == "int8" and array.row is not None:
            kind, parts = "int8", [*rows_of(array)]
        else:
            kind = "float16" if weights == "float16" and array.row is not None else "float32"
            parts = [array.values.to(getattr(torch, kind))]
            _expect_finite(array.values, parts[0], array.name)
        index[array.name] = [kind, at, count, row]
        for part in parts:
            data += part.contiguous().numpy().tobytes()
        data += bytes(-len(data) % 8)
    return index, base64.b64encode(bytes(data)).decode()


def _expect_finite(before: Tensor, after: Tensor, name: str) -> None:
    if bool((before.isfinite() & ~after.isfinite()).any()):
        raise NotSupported(what="a weight is too large for float16", where=name, mend='use weights="float32"')


def _number(number: float | int) -> str:
    if isinstance(number, (bool, int)):
        text = str(int(number))
    elif math.isfinite(number):
        text = repr(float(number))
    else:
        text = "NaN" if number != number else "Infinity" if number > 0 else "-Infinity"
    return f"({text})" if text[0] == "-" else text
