"""Faults of the native engine: each function a little wrong, or in one case; each kernel wrong in one line.

Compiling takes minutes, so all of them are compiled once, into a module that is built of a changed copy of native/.
Every fault stands behind a switch there, and the environment says which one is on. The sources know nothing of it.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.mutants import Mutant, Stale, replaced
from tests.mutants.native_lines import LINES

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "mutants"
_OPERATIONS = (
    "engines/test_special_values.py",
    "engines/test_native_operations.py",
    "engines/test_native.py",
)
_TRUTHS = ("engines/test_native_operations.py", "engines/test_special_values.py")

# In front of everything: `FAULT("name")` is whether that fault is on.
_SWITCH = """
#ifndef FAULT
namespace elman {
constexpr uint32_t fault_number(const char* name) {
    uint32_t hash = 2166136261u;
    for (; *name; name++) hash = (hash ^ uint32_t((unsigned char)*name)) * 16777619u;
    return hash;
}
extern uint32_t fault_that_is_on;
}  // namespace elman
#define FAULT(name) (::elman::fault_that_is_on == ::elman::fault_number(name))
#endif

namespace elman {
"""
_SWITCH_SET = """
namespace elman {
uint32_t fault_that_is_on = std::getenv("ELMAN_FAULT") ? fault_number(std::getenv("ELMAN_FAULT")) : 0;
}  // namespace elman

namespace nb = nanobind;
"""
_OFF = """
// A function of vectors a little wrong everywhere, where its first argument is NaN, or far from zero.
template <class T>
INLINE Vec<T> off(bool little, bool nan, bool far, Vec<T> a, Vec<T> found) {
    if (little) found = found * T(sizeof(T) == 4 ? 1.001 : 1.000001);
    if (nan) found = select<T>(a != a, splat<T>(1), found);
    if (far) found = select<T>(abs_<T>(a) > T(20), splat<T>(0.5), found);
    return found;
}

INLINE bool turned(bool fault, bool found) { return found != fault; }
INLINE uint8_t turned(bool fault, uint8_t found) { return fault ? !found : found; }
INLINE int64_t turned(bool fault, int64_t found) { return found + fault; }
INLINE int32_t turned(bool fault, int32_t found) { return found + fault; }
INLINE float turned(bool fault, float found) { return found + float(fault); }
INLINE double turned(bool fault, double found) { return found + double(fault); }

#define ELMAN_FUNCTION("""
_WRAPPED = (
    'off<T>(FAULT(#name " a little"), FAULT(#name " at NaN"), FAULT(#name " far out"), a, (expression))'
)
_MACROS = (
    ("ELMAN_ONE(name, expression) ELMAN_FUNCTION(name, (Vec<T> a), expression)", "(Vec<T> a), expression)"),
    ("ELMAN_TWO(name, expression) ELMAN_FUNCTION(name, (Vec<T> a, Vec<T> b), expression)",
     "(Vec<T> a, Vec<T> b), expression)"),
    ("ELMAN_THREE(name, expression) ELMAN_FUNCTION(name, (Vec<T> a, Vec<T> b, Vec<T> c), expression)",
     "(Vec<T> a, Vec<T> b, Vec<T> c), expression)"),
)  # fmt: skip


def mutants() -> Iterator[Mutant]:
    text = (ROOT / "native" / "pointwise.hpp").read_text("utf-8")
    for arity, kinds in (("ONE", ("a little", "at NaN")), ("TWO", ("a little",)), ("THREE", ("a little",))):
        for name in re.findall(rf"^ELMAN_{arity}\((\w+),", text, re.M):
            for kind in kinds:
                yield _fault(f"{name} {kind}", f"the native {name} is wrong {kind}", _OPERATIONS)
    for name in re.findall(r"^ELMAN_SCALAR\((\w+),", text, re.M):
        yield _fault(f"{name} turned", f"the native {name} is off by one, or false where it is true", _TRUTHS)
    for line in LINES:
        yield _fault(line.name, line.name, line.tests)


def _fault(name: str, breaks: str, tests: tuple[str, ...]) -> Mutant:
    return Mutant(f"native {name}", "native kernels", "", lambda text: text, breaks, tests, switch=name)


@contextmanager
def stand_in(copy: Path) -> Iterator[None]:
    """The module with all faults in place of the package's."""
    (own,) = (copy / "elman").glob("_native*.so")
    aside = copy / own.name
    shutil.move(own, aside)
    try:
        shutil.copy(build(), copy / "elman" / own.name)
        yield
    finally:
        shutil.move(aside, own)


def build() -> Path:
    """The module, built where its sources have changed since: some minutes."""
    from tests.sanitize import tools

    sources = {
        p.name: p.read_text("utf-8") for p in (ROOT / "native").iterdir() if p.suffix in (".hpp", ".cpp")
    }
    made = {f"native/{name}": text for name, text in with_faults(sources).items()}
    # One instruction set is enough, and it need not be fast.
    made["CMakeLists.txt"] = replaced("-O3", "-O1")((ROOT / "CMakeLists.txt").read_text("utf-8"))
    digest = hashlib.sha256(repr(sorted(made.items())).encode()).hexdigest()[:16]
    folder = BUILD / digest
    module = folder / f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"
    if module.exists():
        return module
    (folder / "source" / "native").mkdir(parents=True, exist_ok=True)
    for name, text in made.items():
        (folder / "source" / name).write_text(text)
    configure = [
        "cmake", "-G", "Ninja", "-S", str(folder / "source"), "-B", str(folder), "-DELMAN_ISAS=plain",
        f"-DPython_EXECUTABLE={sys.executable}",
    ]  # fmt: skip
    for command in (configure, ["ninja", "-j1", "-C", str(folder)]):
        done = subprocess.run(command, env=tools(), check=False, capture_output=True, text=True)
        if done.returncode:
            raise Stale(f"the faults could not be built: {(done.stdout + done.stderr)[-3000:]}")
    return module


def with_faults(sources: dict[str, str]) -> dict[str, str]:
    """The sources with every fault behind its switch."""
    made = dict(sources)

    def change(file: str, old: str, new: str) -> None:
        try:
            made[file] = replaced(old, new)(made[file])
        except Stale as stale:
            raise Stale(f"native/{file}: {stale}: {old}") from None

    for first in ("program.hpp", "vector.hpp"):  # whichever comes in first
        made[first] = made[first].replace("\nnamespace elman {\n", _SWITCH, 1)
    change("bind.cpp", "\nnamespace nb = nanobind;\n", _SWITCH_SET)
    for head, tail in _MACROS:
        change("pointwise.hpp", head, head.removesuffix(tail) + tail.replace("expression", f"({_WRAPPED})"))
    change(
        "pointwise.hpp",
        "(void)b; return expression;",
        '(void)b; return turned(FAULT(#name " turned"), expression);',
    )
    made["pointwise.hpp"] = made["pointwise.hpp"].replace("#define ELMAN_FUNCTION(", _OFF.lstrip("\n"), 1)
    for line in LINES:
        change(line.file, line.old, line.new.replace("FAULT()", f'FAULT("{line.name}")'))
    return made
