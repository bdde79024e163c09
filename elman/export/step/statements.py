"""A step's operations as statements: loops over numbers, which C and JavaScript write nearly alike.

`TargetLanguage` says where they differ. What stands in braces in a form is an operand's element: {a}, {b}, {c}; names
of functions stand in front of a bracket and are looked up by the language.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from elman.errors import NotSupported
from elman.export.step.flat import Flat, FlatOp, Operand, without_form

# Element by element. Truths are the numbers 0 and 1.
FORMS: dict[str, str] = {
    **{name: f"{name}({{a}})" for name in ("exp", "expm1", "log", "log1p", "tanh", "sigmoid", "sqrt", "floor", "ceil")},
    **{name: f"{name}({{a}})" for name in ("trunc", "erf", "sin", "cos", "atan")},
    "neg": "-{a}", "abs": "fabs({a})", "sign": "({a} > 0) - ({a} < 0)", "rsqrt": "1 / sqrt({a})",
    "reciprocal": "1 / {a}", "relu": "{a} < 0 ? 0 : {a}", "round": "rint({a})", "square": "{a} * {a}",
    "add": "{a} + {b}", "sub": "{a} - {b}", "mul": "{a} * {b}", "div": "{a} / {b}", "maximum": "maximum({a}, {b})",
    "minimum": "minimum({a}, {b})", "pow": "pow({a}, {b})", "fmod": "fmod({a}, {b})", "atan2": "atan2({a}, {b})",
    "remainder": "remainder_of({a}, {b})", "floordiv": "floordiv({a}, {b})", "tanh_backward": "{a} * (1 - {b} * {b})",
    "sigmoid_backward": "{a} * (1 - {b}) * {b}", "fma": "{a} * {b} + {c}", "fnma": "{c} - {a} * {b}",
    "fms": "{a} * {b} - {c}", "lerp": "lerp({a}, {b}, {c})", "threshold_backward": "{b} <= {c} ? 0 : {a}",
    "clamp": "minimum(maximum({a}, {b}), {c})",
    **{
        prefix + name: f"({{a}} {sign} {{b}})"
        for prefix in ("", "int_")
        for name, sign in {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}.items()
    },
    **{f"copy{n}": "{a}" for n in (1, 4, 8)}, **{f"where{n}": "{a} != 0 ? {b} : {c}" for n in (1, 4, 8)},
    "bool_and": "({a} != 0) & ({b} != 0)", "bool_or": "({a} != 0) | ({b} != 0)", "bool_xor": "({a} != 0) != ({b} != 0)",
    "bool_not": "({a} == 0)", "real_to_bool": "({a} != 0)", "int_to_bool": "({a} != 0)", "bool_to_real": "{a}",
    "bool_to_int": "({a} != 0)", "int_to_real": "real_of({a})", "real_to_int": "whole_of({a})",
    "int_add": "int_add({a}, {b})", "int_sub": "int_sub({a}, {b})", "int_mul": "int_mul({a}, {b})",
    "int_remainder": "int_remainder({a}, {b}, BAD)", "int_floordiv": "int_floordiv({a}, {b}, BAD)",
    "int_maximum": "{a} > {b} ? {a} : {b}", "int_minimum": "{a} < {b} ? {a} : {b}",
}  # fmt: skip
_CALL = re.compile(r"\b([a-z_][a-z0-9_]*)\(")


@dataclass(frozen=True)
class TargetLanguage:
    """How a language says it.

    index, real, whole: how a variable is declared. element: of a memory at an address. address: the same as what a
    function is handed. matrix: an array as a product is handed it. number: a literal. call: the name of a function.
    bad: what is done about an index that is none. failing: what a function that may meet one is handed.
    """

    index: str
    real: str
    whole: str
    element: Callable[[str, str], str]
    address: Callable[[str, int], str]
    matrix: Callable[[str], str]
    number: Callable[[float | int], str]
    call: Callable[[str], str]
    bad: str
    failing: str


def statements(flat: Flat, language: TargetLanguage) -> list[str]:
    """Lines, one loop or call after another. Raises NotSupported for an operation without a form."""
    return [line for step in flat.steps for line in _Writing(step, language).lines()]


class _Writing:
    def __init__(self, step: FlatOp, language: TargetLanguage) -> None:
        self.step, self.to = step, language

    def lines(self) -> list[str]:
        code, places = self.step.code, self.step.places
        if code == "product":
            return self._product()
        if code in FORMS:
            form, assigned = FORMS[code], places[0]
            named = {
                letter: self.at(place, self.step.size)
                for letter, place in zip("abc", places[1:], strict=False)
            }
            expression = self.calls(form).format(**named)
            return self.loops(self.step.size, [f"{self.at(assigned, self.step.size)} = {expression};"])
        along = getattr(self, f"_{code}", None)
        if along is None:
            raise without_form(code, "export()")
        return along()

    # --- pieces -----------------------------------------------------------------------------------------------------

    def calls(self, form: str) -> str:
        form = _CALL.sub(lambda match: f"{self.to.call(match[1])}(", form)
        return form.replace("BAD", self.to.failing)

    def at(self, place: Operand | None, size: Sequence[int], more: str = "") -> str:
        """The element of an operand at the indices i, j, k, l of the loops; more: added to the address."""
        assert place is not None
        if not place.memory:
            return self.to.number(place.number)
        return self.to.element(place.memory, address(place, size, more))

    def loops(self, size: Sequence[int], body: Sequence[str]) -> list[str]:
        heads = [
            f"for ({self.to.index} {name} = 0; {name} < {count}; {name}++)"
            for name, count in zip("ijkl", size, strict=False)
            if count != 1
        ]
        lines = [f"{'    ' * n}{head}" for n, head in enumerate(heads)]
        if len(body) == 1:
            return [*lines, f"{'    ' * len(heads)}{body[0]}"]
        around = "    " * max(len(heads) - 1, 0)
        lines = [*lines[:-1], f"{lines[-1]} {{"] if lines else ["{"]
        return [*lines, *(f"{around}    {line}" for line in body), f"{around}}}"]

    def along(self, body: Sequence[str]) -> list[str]:
        """Of an operation on lines: the loops around them."""
        return self.loops((*self.step.size[:3], 1), body)

    def line(self, place: Operand | None, index: str = "l") -> str:
        """An operand's element `index` of the line."""
        assert place is not None
        return self.at(place, (*self.step.size[:3], 1), times(index, place.strides[3]))

    def head(self, index: str = "l", first: int = 0, count: int | None = None) -> str:
        n = self.step.size[3] if count is None else count
        return f"for ({self.to.index} {index} = {first}; {index} < {n}; {index}++)"

    # --- products ---------------------------------------------------------------------------------------------------

    def _product(self) -> list[str]:
        out, left, start, weight = self.step.places
        assert out
        assert left
        assert weight
        n, k = self.step.size[3], self.step.k
        begin = Operand("", number=0.0) if start is None else start
        same = begin.memory == out.memory and begin.offset == out.offset
        element = f"{self.at(out, self.step.size)} = {self.at(begin, self.step.size)};"
        lines = [] if same else self.loops(self.step.size, [element])
        if not left.memory:
            raise NotSupported(what="a product of numbers that are all the same", where="export()")
        # The left operand's own stride is 1, out's too: so says the lowering.
        ends = [self.to.address(place.memory, place.offset) for place in (left, out)]
        given = [self.to.matrix(weight.memory), n, k, *ends]
        return [*lines, f"{self.to.call('product')}({', '.join(map(str, given))});"]

    def _matmul(self) -> list[str]:
        out, left, right, start = self.step.places
        assert out
        assert left
        assert right
        size = self.step.size
        a = replaced(left, (0, left.strides[1], left.strides[2], 0))
        b = replaced(right, (0, right.strides[1], 0, right.strides[3]))
        begin = self.to.number(0.0) if start is None else self.at(start, size)
        return self.loops(size, [
            f"{self.to.real} t = 0;",
            f"{self.head('m', count=self.step.k)} t += {self.at(a, size, times('m', left.strides[3]))}"
            f" * {self.at(b, size, times('m', right.strides[2]))};",
            f"{self.at(out, size)} = {begin} + t;",
        ])  # fmt: skip

    # --- along lines ------------------------------------------------------------------------------------------------

    def _sum(self) -> list[str]:
        out, x = self.step.places
        return self.along(
            [f"{self.to.real} t = 0;", f"{self.head()} t += {self.line(x)};", f"{self.line(out, '0')} = t;"]
        )

    def _prod(self) -> list[str]:
        out, x = self.step.places
        return self.along(
            [f"{self.to.real} t = 1;", f"{self.head()} t *= {self.line(x)};", f"{self.line(out, '0')} = t;"]
        )

    def _any(self) -> list[str]:
        return self._logical("0", "|=")

    def _all(self) -> list[str]:
        return self._logical("1", "&=")

    def _logical(self, start: str, how: str) -> list[str]:
        out, x = self.step.places
        return self.along([
            f"{self.to.index} t = {start};",
            f"{self.head()} t {how} {self.line(x)} != 0;",
            f"{self.line(out, '0')} = t;",
        ])  # fmt: skip

    def _amax(self) -> list[str]:
        return self._extreme(">", False)

    def _amin(self) -> list[str]:
        return self._extreme("<", False)

    def _argmax(self) -> list[str]:
        return self._extreme(">", True)

    def _argmin(self) -> list[str]:
        return self._extreme("<", True)

    def _extreme(self, sign: str, where: bool) -> list[str]:
        """NaN is larger and smaller than everything, as in torch."""
        value, at, x = self.step.places if where else (self.step.places[0], None, self.step.places[1])
        body = self._found(x, sign)
        if value is not None:
            body.append(f"{self.line(value, '0')} = {self.line(x, 'f')};")
        if at is not None:
            body.append(f"{self.line(at, '0')} = f;")
        return self.along(body)

    def _found(self, x: Operand | None, sign: str) -> list[str]:
        here, best = self.line(x), self.line(x, "f")
        return [
            f"{self.to.index} f = 0;",
            f"{self.head(first=1)} if ({best} == {best} && ({here} != {here} || {here} {sign} {best})) f = l;",
        ]

    def _cumsum(self) -> list[str]:
        out, x = self.step.places
        return self.along(
            [f"{self.to.real} t = 0;", f"{self.head()} {self.line(out)} = t += {self.line(x)};"]
        )

    def _softmax(self) -> list[str]:
        out, x = self.step.places
        exp = self.to.call("exp")
        return self.along([
            *self._found(x, ">"),
            f"{self.to.real} top = {self.line(x, 'f')}, t = 0;",
            f"{self.head()} t += {self.line(out)} = {exp}({self.line(x)} - top);",
            f"{self.head()} {self.line(out)} /= t;",
        ])  # fmt: skip

    def _log_softmax(self) -> list[str]:
        out, x = self.step.places
        exp, log = self.to.call("exp"), self.to.call("log")
        return self.along([
            *self._found(x, ">"),
            f"{self.to.real} top = {self.line(x, 'f')}, t = 0;",
            f"{self.head()} t += {exp}({self.line(x)} - top);",
            f"t = {log}(t);",
            f"{self.head()} {self.line(out)} = {self.line(x)} - top - t;",
        ])  # fmt: skip

    def _layer_norm(self) -> list[str]:
        out, mean, inverse, x, scale, shift = self.step.places
        n, sqrt = self.step.size[3], self.to.call("sqrt")
        body = [
            f"{self.to.real} mean = 0, t = 0;",
            f"{self.head()} mean += {self.line(x)};",
            f"mean /= {n};",
            f"{self.head()} t += ({self.line(x)} - mean) * ({self.line(x)} - mean);",
            f"t = 1 / {sqrt}(t / {n} + {self.to.number(self.step.number)});",
        ]
        if out is not None:
            scaled = "" if scale is None else f" * {self.line(scale)}"
            shifted = "" if shift is None else f" + {self.line(shift)}"
            body.append(f"{self.head()} {self.line(out)} = ({self.line(x)} - mean) * t{scaled}{shifted};")
        body += [f"{self.line(mean, '0')} = mean;"] if mean is not None else []
        body += [f"{self.line(inverse, '0')} = t;"] if inverse is not None else []
        return self.along(body)

    def _gather(self) -> list[str]:
        out, x, index = self.step.places
        return self._indexed(x, index, lambda place: f"{self.at(out, self.step.size)} = {place};")

    _int_gather = _gather

    def _scatter(self) -> list[str]:
        return self._scattered("=")

    _int_scatter = _scatter

    def _scatter_add(self) -> list[str]:
        return self._scattered("+=")

    _int_scatter_add = _scatter_add

    def _scattered(self, how: str) -> list[str]:
        out, x, index = self.step.places
        return self._indexed(out, index, lambda place: f"{place} {how} {self.at(x, self.step.size)};")

    def _indexed(
        self, chosen: Operand | None, index: Operand | None, move: Callable[[str], str]
    ) -> list[str]:
        """chosen: where indices choose along a dimension of length k."""
        assert chosen is not None
        size = self.step.size
        still = replaced(chosen, (*chosen.strides[:3], 0))
        behind = [f"if (f < 0) f += {self.step.k};"] if self.step.number else []
        return self.loops(size, [
            f"{self.to.whole} f = {self.at(index, size)};",
            *behind,
            f"if (f < 0 || f >= {self.step.k}) {{ {self.to.bad} }}",
            f"else {move(self.at(still, size, times('f', chosen.strides[3])))}",
        ])  # fmt: skip


def replaced(place: Operand, strides: tuple[int, ...]) -> Operand:
    return Operand(place.memory, place.offset, strides, place.number)


def times(index: str, stride: int) -> str:
    if not stride or index == "0":
        return ""
    return index if stride == 1 else f"{stride} * {index}"


def address(place: Operand, size: Sequence[int], more: str = "") -> str:
    """What an operand's element lies at, of the indices i, j, k, l."""

    def terms() -> Iterator[str]:
        if place.offset:
            yield str(place.offset)
        for name, stride, count in zip("ijkl", place.strides, size, strict=False):
            if count != 1 and stride:
                yield times(name, stride)
        if more:
            yield more

    return " + ".join(terms()).replace("+ -", "- ") or "0"
