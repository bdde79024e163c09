"""Does the suite notice? Small faults, put into a copy of the package one at a time, and the tests that should go red.

    python -m tests.mutants                # all of them: some minutes; ends with 1 if one survives
    python -m tests.mutants plan engines   # those whose file or description holds one of these words
    python -m tests.mutants --conformance  # with the grids as a whole: does the thinned suite kill what the whole does?

Run by hand when the suite is made smaller, or a part of the library is rewritten. A fault is killed when a test fails
with it, and the same test passes without it. One that survives wants a test; one whose text is not there any more wants
a look.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.mutants_table import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parent.parent
COPIED = (
    "elman",
    "tests",
    "examples",
    "docs",
    "bench",
    "native",
    "pyproject.toml",
    "README.md",
    "CONTRIBUTING.md",
)
LONG = 600  # seconds, after which tests are told to hang: by the fault, or because the machine is busy
_HUNG = "no end"
_FAILED = 1  # pytest's exit status, where tests have failed
_NOT_RUN = 70  # one that pytest does not have


class Outcome(NamedTuple):
    """word: killed, survived, hung, or what is wrong with the mutant. by: the first test that failed."""

    word: str
    by: str
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__.split("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("words", nargs="*", help="only mutants whose file or description holds one of these")
    parser.add_argument("--conformance", action="store_true", help="run grids as a whole")
    given = parser.parse_args()
    chosen = [m for m in MUTANTS if not given.words or any(w in f"{m.file} {m.breaks}" for w in given.words)]
    more = ["--conformance"] if given.conformance else []
    _import_what_takes_long()
    counts: dict[str, int] = {}
    with _copy() as copy:
        for mutant in chosen:
            made = _run(mutant, copy, more)
            counts[made.word] = counts.get(made.word, 0) + 1
            print(
                f"{made.word:9} {made.seconds:5.0f} s  {mutant.file}: {mutant.breaks}\n{made.by:>19}",
                flush=True,
            )
    print(", ".join(f"{count} {word}" for word, count in sorted(counts.items())))
    sys.exit(counts.keys() != {"killed"})


def _import_what_takes_long() -> None:
    """Each mutant runs in a fork of this process, which has everything but the package itself."""
    import hypothesis  # noqa: F401
    import networkx  # noqa: F401
    import pytest  # noqa: F401
    import torch
    import torch._dynamo
    import torch.fx.experimental.symbolic_shapes

    torch.set_num_threads(1)


@contextmanager
def _copy() -> Iterator[Path]:
    """The package and its tests in a folder of their own, the native engine with them."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in COPIED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
            elif (ROOT / name).exists():
                shutil.copy(ROOT / name, copy / name)
        native = importlib.util.find_spec("elman._native")
        if native is not None and native.origin is not None and not list((copy / "elman").glob("_native*")):
            shutil.copy(native.origin, copy / "elman")
        yield copy


def _run(mutant: Mutant, copy: Path, more: list[str]) -> Outcome:
    path, began = copy / "elman" / mutant.file, time.monotonic()
    original = path.read_text() if path.exists() else ""
    if original.count(mutant.old) != 1:
        return Outcome("stale", f"its text is there {original.count(mutant.old)} times", 0.0)
    wanted = [
        f"tests/{arg}" if arg.startswith(("test_", *_ROOMS)) else arg for arg in shlex.split(mutant.tests)
    ]
    path.write_text(original.replace(mutant.old, mutant.new))
    try:
        status, by = _pytest(copy, [*wanted, *more])
    finally:
        path.write_text(original)
    if status == 0:
        word = "survived"
    elif status == _FAILED and by and _pytest(copy, [by, *more])[0] != 0:
        word = "flawed"  # the test fails without it, too
    elif status == _FAILED:
        word = "killed"
    elif by == _HUNG:
        word = "hung"
    else:
        word, by = "flawed", by or f"pytest ended with {status}: {(copy / 'said').read_text()[-500:]}"
    return Outcome(word, by, time.monotonic() - began)


_ROOMS = tuple(f"{folder.name}/" for folder in (ROOT / "tests").iterdir() if folder.is_dir())


def _pytest(copy: Path, args: list[str]) -> tuple[int, str]:
    """(exit status of pytest, the first test that failed, or _HUNG) in a fork whose package is the copy."""
    told = copy / "told"
    told.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        try:
            os.setpgid(0, 0)
            os._exit(_become(copy, args, told))
        except BaseException:
            traceback.print_exc()
        finally:  # whatever happens, this is not the process that goes on
            os._exit(_NOT_RUN)
    deadline = time.monotonic() + LONG
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return code, told.read_text() if told.exists() else "it ended the process" if code < 0 else ""
        time.sleep(0.1)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return 2, _HUNG


def _become(copy: Path, args: list[str], told: Path) -> int:
    """Run tests of the copy in this process."""
    import pytest

    class Telling:
        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            if report.failed and not told.exists():
                told.write_text(report.nodeid)

        def pytest_collectreport(self, report: pytest.CollectReport) -> None:
            if report.failed and not told.exists():
                told.write_text(report.nodeid)

    said = os.open(copy / "said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.chdir(copy)
    for name in [name for name in sys.modules if name.partition(".")[0] in ("elman", "tests")]:
        del sys.modules[name]
    # An editable installation finds the package by a finder of its own, before any path is looked at.
    sys.meta_path = [finder for finder in sys.meta_path if "editable" not in type(finder).__module__]
    sys.path[:] = [str(copy), *(path for path in sys.path if path and Path(path).resolve() != ROOT)]
    os.environ["PYTHONPATH"] = str(copy)  # of what tests start
    sys.dont_write_bytecode = True
    import elman

    if not Path(elman.__file__).is_relative_to(copy):
        return _NOT_RUN
    return int(
        pytest.main(["-x", "-q", "--assert=plain", "-p", "no:cacheprovider", *args], plugins=[Telling()])
    )


if __name__ == "__main__":
    main()
