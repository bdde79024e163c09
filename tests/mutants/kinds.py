"""Standard faults of Python code, found in its syntax tree, each with a name that stays as long as the code does."""

from __future__ import annotations

import ast
import functools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

from tests.mutants import Stale

_NEGATED = {
    ast.Eq: "!=", ast.NotEq: "==", ast.Lt: ">=", ast.GtE: "<", ast.Gt: "<=", ast.LtE: ">", ast.Is: "is not",
    ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in",
}  # fmt: skip
_EDGE = {ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">"}
_TEXTS = (ast.JoinedStr, ast.List, ast.Tuple)


class Fault(NamedTuple):
    """name: function, kind and a number in it. start, end: of the text that is replaced by `new`."""

    name: str
    start: int
    end: int
    old: str
    new: str

    @property
    def breaks(self) -> str:
        return f"{_short(self.old)} -> {_short(self.new)}"


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) < 60 else f"{text[:57]}…"


@functools.lru_cache(4)  # of one file after the other
def faults(
    text: str, kinds: Callable[[Code], Iterator[tuple[str, ast.AST, str]]] | None = None
) -> list[Fault]:
    """All that `kinds` (every standard one) can do to a file, in order."""
    code, counts, found = Code(text), Counter[str](), []
    for where, node in code.walk(code.tree, ""):
        for kind, part, new in (kinds or standard)(code, node):  # type: ignore[call-arg, arg-type]
            label = f"{where} {kind}".strip()
            counts[label] += 1
            start, end = code.span(part)
            found.append(Fault(f"{label} {counts[label]}", start, end, code.text[start:end], new))
    return found


def applied(
    name: str, kinds: Callable[..., Iterator[tuple[str, ast.AST, str]]] | None = None
) -> Callable[[str], str]:
    """The change of the fault of a name."""

    def change(text: str) -> str:
        for fault in faults(text, kinds):
            if fault.name == name:
                return text[: fault.start] + fault.new + text[fault.end :]
        raise Stale("there is no such place any more")

    return change


class Code:
    """The text of a file, its tree, and where in the text each node lies."""

    def __init__(self, text: str) -> None:
        self.text, self.tree = text, ast.parse(text)
        self._lines = [0]
        for line in text.splitlines(keepends=True):
            self._lines.append(self._lines[-1] + len(line))
        self._source = text.splitlines(keepends=True)

    def span(self, node: ast.AST) -> tuple[int, int]:
        return self._at(node.lineno, node.col_offset), self._at(node.end_lineno, node.end_col_offset)  # type: ignore[attr-defined]

    def _at(self, line: int, column: int) -> int:
        return self._lines[line - 1] + len(self._source[line - 1].encode()[:column].decode())

    def of(self, node: ast.AST) -> str:
        start, end = self.span(node)
        return self.text[start:end]

    def walk(self, node: ast.AST, where: str) -> Iterator[tuple[str, ast.AST]]:
        """Every node that computes, and the function it stands in: no words, types, refusals or decorators."""
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "bases", "type_params"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if not isinstance(child, ast.AST) or isinstance(
                    child, (ast.Raise, ast.Assert, ast.JoinedStr, ast.Import)
                ):
                    continue
                if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
                    continue
                inside = where
                if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
                    inside = f"{where}.{child.name}".lstrip(".")
                yield inside, child
                yield from self.walk(child, inside)


def standard(code: Code, node: ast.AST) -> Iterator[tuple[str, ast.AST, str]]:
    """(kind, what is replaced, by what)"""
    match node:
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            for kind, turned in (("negated", _NEGATED), ("edge", _EDGE)):
                if type(op) in turned:
                    yield kind, node, f"({code.of(left)} {turned[type(op)]} {code.of(right)})"
        case ast.BoolOp(op=op, values=values):
            word = "or" if isinstance(op, ast.And) else "and"
            yield "and/or", node, f"({f' {word} '.join(f'({code.of(v)})' for v in values)})"
            for value in values:
                yield "condition", value, "True" if isinstance(op, ast.And) else "False"
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield "not", node, f"({code.of(operand)})"
        case ast.UnaryOp(op=ast.USub(), operand=operand) if not isinstance(operand, ast.Constant):
            yield "sign", node, f"({code.of(operand)})"
        case ast.Constant(value=int() as value) if not isinstance(value, bool):
            yield "+1", node, str(value + 1)
        case ast.Constant(value=bool() as value):
            yield "turned", node, str(not value)
        case ast.BinOp(left=left, op=ast.Sub(), right=right):
            yield "swapped", node, f"({code.of(right)} - {code.of(left)})"
            yield "term", node, f"({code.of(left)})"
        case ast.BinOp(left=left, op=ast.Add(), right=right) if not isinstance(left, _TEXTS):
            yield "term", node, f"({code.of(left)})"
        case ast.If(test=test) | ast.IfExp(test=test) if not isinstance(
            test, (ast.Compare, ast.BoolOp, ast.UnaryOp)
        ):
            yield "negated", test, f"not ({code.of(test)})"
        case ast.Expr(value=ast.Call()) | ast.AugAssign():
            yield "statement", node, "pass"


def verdicts(code: Code, node: ast.AST) -> Iterator[tuple[str, ast.AST, str]]:
    """Of rules for rows: conditions turned, and what is returned: rows kept apart meet, and the other way round."""
    match node:
        case ast.Return(value=value) if value is not None:
            for part in ast.walk(value):
                if isinstance(part, ast.Name) and part.id in ("ROWWISE", "SUMMED"):
                    yield "turned", part, '_mixing("")' if part.id == "ROWWISE" else "ROWWISE"
                if (
                    isinstance(part, ast.Call)
                    and isinstance(part.func, ast.Name)
                    and part.func.id == "_mixing"
                ):
                    yield "turned", part, "ROWWISE"
    for kind, part, new in standard(code, node):
        if kind == "negated":
            yield kind, part, new


def left_out(code: Code, node: ast.AST) -> Iterator[tuple[str, ast.AST, str]]:
    """What is compared or kept, one thing less: parts of keys, conditions, statements that note something."""
    match node:
        case (
            ast.Call(
                func=ast.Attribute(attr="append", value=ast.Attribute(attr="found")),
                args=[ast.Tuple(elts=elements)],
            )
            | ast.Assign(targets=[ast.Name(id="key" | "specs")], value=ast.Tuple(elts=elements))
            | ast.Return(value=ast.Tuple(elts=[ast.Constant(), *elements]))
        ):
            for element in elements:
                if not isinstance(element, ast.Constant) and code.of(element) != "path":
                    yield "left out", element, "*()" if isinstance(element, ast.Starred) else "None"
        case ast.BoolOp(op=ast.And(), values=values):
            for value in values:
                yield "condition", value, "True"
        case ast.Call(func=ast.Attribute(attr="Watch"), args=args):
            for arg in args:
                yield "not watched", arg, "[]"
        case ast.Expr(value=ast.Call(func=ast.Attribute(attr="append" | "dict", value=holder))):
            if not code.of(holder).endswith("found"):
                yield "statement", node, "pass"
        case ast.Compare(ops=[ast.NotEq() | ast.IsNot()]):
            yield "not compared", node, "False"
