"""Faults of keys: each thing that a trace key, a call's key or a cache compares, left out of the comparison."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.mutants import Mutant, appended
from tests.mutants.kinds import applied, faults, left_out

ELMAN = Path(__file__).resolve().parents[2] / "elman"
_TRACE = (
    "recurrent/test_keys.py recurrent/test_trace_key.py recurrent/test_trace_key_weights.py",
    "trace/test_sees.py trace/test_sees_refused.py",
    "recurrent/test_changes.py",
    "recurrent/test_turns.py -k device",
)
_BOUND = (
    "recurrent/test_turns.py recurrent/test_bound.py recurrent/test_bound_left.py recurrent/test_changes.py",
    "recurrent/test_trace_key.py recurrent/test_trace_key_weights.py",
)
_EDGES = "recurrent/test_edges.py recurrent/test_written.py"
_STARTS = "recurrent/test_starts.py recurrent/test_bound.py recurrent/test_bound_left.py"
_PASSES = ("engines/test_passes.py", "engines/test_products.py", "engines/test_native.py")
_NATIVE = ("engines/test_native_operations.py", "engines/test_native.py -k cases")
# (file, functions, groups of tests): everything there that is compared; without functions, all that is noted.
PLACES: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("trace/walk.py", (), _TRACE),
    ("trace/watch.py", ("Watched.unchanged.unchanged", "Watched._same"), _TRACE),
    ("trace/fingerprint.py", ("Seen.holds", "by_path"), _TRACE),
    ("recurrent/programs.py", ("Programs.initial", "Programs.seen"), ("recurrent/test_turns.py", *_TRACE)),
    ("recurrent/bound.py", ("Arguments.of", "BoundCall.holds", "BoundCall.serves", "BoundCall.starts_like",
     "BoundCall.fits"), _BOUND),
    ("execute/segmented.py", ("run_of",), ("recurrent/test_memory.py",)),
    ("engines/native/builder.py", ("Builder.number", "Builder.in_order", "Builder._pack"), _NATIVE),
)  # fmt: skip
# Named tuples that are parts of keys: each field, no longer compared.
FIELDS = (
    (
        "recurrent/programs.py",
        "Shapes",
        (
            "recurrent/test_turns.py recurrent/test_bound.py recurrent/test_bound_left.py recurrent/test_changes.py",
            "recurrent/test_trace_key.py recurrent/test_trace_key_weights.py test_forcing.py",
        ),
    ),
    ("circuit/structure.py", "TensorSpec", _BOUND),
)
# What a program keeps, under one key whatever was asked for.
KEPT = {
    "_training": f"recurrent/test_requires_grad.py {_EDGES}",
    "_needed": f"recurrent/test_requires_grad.py {_EDGES}",
    "_stepping": f"{_EDGES} {_STARTS} engines/test_native.py",
    "_adjoints": f"{_EDGES} recurrent/test_doors.py recurrent/test_requires_grad.py",
    "entries": "recurrent/test_compiled_programs.py recurrent/test_doors.py",
}
# Cached functions: each argument, left out of the key.
CACHED = (
    ("trace/names.py", "names_of", _TRACE),
    ("trace/names.py", "is_library", _TRACE),
    ("engines/native/engine.py", "_multiplier", _PASSES),
    ("execute/executable.py", "_executable", ("plan/test_laws.py", "test_adjoint.py")),
    ("circuit/operations.py", "_unlisted", ("circuit/test_operations.py",)),
    ("circuit/rows.py", "_factor", ("circuit/test_rows.py",)),
    (
        "segments/layout.py",
        "Layout.whole",
        (
            _BOUND[0],
            f"{_EDGES} recurrent/test_sequences.py recurrent/test_sequences_refused.py",
        ),
    ),
)
_UNSEEN = """
def _unseen(one):
    return tuple(None if name == "{field}" else value for name, value in zip(one._fields, one))


{name}.__eq__ = lambda self, other: type(other) is type(self) and _unseen(self) == _unseen(other)
{name}.__ne__ = lambda self, other: not self == other
{name}.__hash__ = lambda self: hash(_unseen(self))
"""
_ONE = """
class _One(dict):
    def get(self, key, default=None):
        return super().get(None, default)

    def __setitem__(self, key, value):
        super().__setitem__(None, value)

    def __getitem__(self, key):
        return super().__getitem__(None)

    def __contains__(self, key):
        return super().__contains__(None)


_begin = Program.__init__


def _init(self, *args, **kwargs):
    _begin(self, *args, **kwargs)
    self.{name} = _One()


Program.__init__ = _init
"""
_FORGETFUL = """
_kept, _whole = {{}}, {name}.__wrapped__


def _forgetful(*args):
    key = args[:{position}] + args[{after}:]
    if key not in _kept:
        _kept[key] = _whole(*args)
    return _kept[key]


{name} = {bound}
"""


def mutants() -> Iterator[Mutant]:
    for file, functions, tests in PLACES:
        for fault in faults((ELMAN / file).read_text("utf-8"), left_out):
            function = fault.name.partition(" ")[0]
            noted = " left out" in fault.name or " statement" in fault.name
            if function in functions or (not functions and noted and fault.old != "kind"):
                yield _fault(f"{file} {fault.name}", file, applied(fault.name, left_out), fault.breaks, tests)
    for file, name, tests in FIELDS:
        for field in _fields(file, name):
            yield _fault(
                f"{file} {name} without {field}", file, appended(_UNSEEN.format(name=name, field=field)),
                f"calls that differ in {field} take one program", tests,
            )  # fmt: skip
    for name, tests in KEPT.items():
        yield _fault(
            f"execute/program.py {name} without a key", "execute/program.py", appended(_ONE.format(name=name)),
            "what was made first is taken for everything", (tests,),
        )  # fmt: skip
    for file, name, tests in CACHED:
        method = "." in name
        for position, argument in enumerate(_parameters(file, name)):
            more = _FORGETFUL.format(
                name=f"{name.split('.')[0]}.__dict__['{name.split('.')[1]}'].__func__" if method else name,
                position=position + method, after=position + 1 + method, bound="_forgetful",
            )  # fmt: skip
            if method:
                more = more.rpartition("\n\n\n")[0] + f"\n\n\n{name} = classmethod(_forgetful)\n"
            yield _fault(
                f"{file} {name} without {argument}", file, appended(more),
                f"what was made for one {argument} is taken for another", tests,
            )  # fmt: skip


def _fault(name: str, file: str, change: object, breaks: str, tests: tuple[str, ...]) -> Mutant:
    return Mutant(name, "keys and caches", f"elman/{file}", change, breaks, tests)  # type: ignore[arg-type]


def _found(file: str, name: str) -> ast.AST:
    """A class or function, read and not imported: the process that forks for each fault must not have the package."""
    found: ast.AST = ast.parse((ELMAN / file).read_text("utf-8"))
    for part in name.split("."):
        found = next(node for node in found.body if getattr(node, "name", None) == part)  # type: ignore[attr-defined]
    return found


def _fields(file: str, name: str) -> list[str]:
    return [node.target.id for node in _found(file, name).body if isinstance(node, ast.AnnAssign)]  # type: ignore[attr-defined, union-attr]


def _parameters(file: str, name: str) -> list[str]:
    return [argument.arg for argument in _found(file, name).args.args if argument.arg != "cls"]  # type: ignore[attr-defined]
