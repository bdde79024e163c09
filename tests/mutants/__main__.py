"""The command: see `tests/mutants/__init__.py`."""

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
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.mutants import Mutant, Stale

ROOT = Path(__file__).resolve().parents[2]
COPIED = (
    "elman",
    "tests",
    "examples",
    "docs",
    "bench",
    "native",
    "pyproject.toml",
    "Makefile",
    "README.md",
    "CONTRIBUTING.md",
)
LONG = 600  # seconds, after which tests are told to hang: by the fault, or because the machine is busy
_HUNG = "no end"
_FIRST = 12  # tests that are tried first
_FAILED = 1  # pytest's exit status, where tests have failed
_NOT_RUN = 70  # one that pytest does not have


class Outcome(NamedTuple):
    """word: killed, survived, or what is wrong with the mutant. by: the first test that failed, or why."""

    word: str
    by: str
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutants",
        description="Put small faults into a copy of the package, and run tests.",
    )
    parser.add_argument("words", nargs="*", help="only mutants whose name or description holds one of these")
    parser.add_argument("--conformance", action="store_true", help="run grids as a whole")
    parser.add_argument("--list", action="store_true", help="say which there are, and run none")
    parser.add_argument("--explained", action="store_true", help="run those whose survival is explained, too")
    parser.add_argument("--without", nargs="*", default=[], help="leave out those with one of these words")
    parser.add_argument(
        "--one-in", type=int, default=1, metavar="N", help="a part of them, the same every time: one in N"
    )
    parser.add_argument("--after", default="", help="go on behind the mutant of this name")
    given = parser.parse_args()
    _import_what_takes_long()
    from tests.mutants.explained import reason

    chosen = [m for m in _every() if (not given.words or _has(m, given.words)) and not _has(m, given.without)]
    chosen = [m for m in chosen if zlib.crc32(m.name.encode()) % given.one_in == 0]
    chosen = chosen[[m.name for m in chosen].index(given.after) + 1 if given.after else 0 :]
    counts, killers, killed = Counter[tuple[str, str]](), Counter[str](), dict[str, str]()
    first: dict[
        str, dict[str, None]
    ] = {}  # of mutants with the same tests: those that noticed, the latest last
    began = time.monotonic()
    with _copy() as copy:
        more = ["--conformance"] if given.conformance else []
        for mutant in chosen:
            why = reason(mutant)
            if given.list or (why and not given.explained and mutant.name not in given.words):
                made = Outcome("explained" if why else "there", why or mutant.breaks, 0.0)
            else:
                made = _run(mutant, copy, more, first.setdefault(mutant.tests, {}))
                if why and made.word == "survived":
                    made = made._replace(word="explained", by=why)
            counts[mutant.kind, made.word] += 1
            if made.word == "killed":
                killers[made.by.partition("::")[0]] += 1
                killed.setdefault(made.by, mutant.name)
            print(
                f"{made.word:9} {made.seconds:4.0f} s  {mutant.name}: {mutant.breaks}\n{'':18}{made.by}",
                flush=True,
            )
        flawed = _fail_without(copy, killed, more)
    for test in flawed:
        print(f"{test} fails without a fault as well: what it killed counts for nothing, as {killed[test]}")
    print("\n| faults | killed | explained | other |\n| --- | --- | --- | --- |")
    for kind in dict.fromkeys(kind for kind, _ in counts):
        words = {word: count for (k, word), count in counts.items() if k == kind}
        rest = ", ".join(f"{n} {word}" for word, n in words.items() if word not in ("killed", "explained"))
        print(f"| {kind} | {words.get('killed', 0)} | {words.get('explained', 0)} | {rest or 0} |")
    print("\n| test file | kills |\n| --- | --- |")
    for file, count in killers.most_common():
        print(f"| {file} | {count} |")
    print(f"\n{len(chosen)} faults, {(time.monotonic() - began) / 60:.0f} minutes")
    sys.exit(bool(flawed) or not {word for _, word in counts} <= {"killed", "explained", "there"})


def _every() -> list[Mutant]:
    from tests.mutants import by_hand, code, keys, native, operations

    made = [*by_hand.mutants(), *operations.mutants(), *keys.mutants(), *code.mutants(), *native.mutants()]
    assert len({m.name for m in made}) == len(made)
    assert "elman._native" not in sys.modules  # it can be loaded once
    return made


def _has(mutant: Mutant, words: Sequence[str]) -> bool:
    return any(word in f"{mutant.kind}: {mutant.name}: {mutant.breaks}" for word in words)


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
        if (
            native is not None
            and native.origin is not None
            and not list((copy / "elman").glob("_native*.so"))
        ):
            shutil.copy(native.origin, copy / "elman")
        yield copy


def _run(mutant: Mutant, copy: Path, more: list[str], first: dict[str, None]) -> Outcome:
    """first: tests that have noticed a fault before, and are tried before the others."""
    began = time.monotonic()
    groups = [[*first][: -_FIRST - 1 : -1], *map(_arguments, mutant.tests)]
    try:
        with _broken(mutant, copy):
            for group in filter(None, groups):
                status, by = _pytest(copy, [*group, *more], mutant.switch)
                if status == _FAILED or (status != 0 and group is not groups[0]):
                    break
    except Stale as stale:
        return Outcome("stale", str(stale), 0.0)
    if status == 0:
        word = "survived"
    elif by == _HUNG:
        word = "hung"
    elif status == _FAILED:
        word = "killed"
        if "::" in by:
            first.pop(by, None)
            first[by] = None
    else:
        word, by = "flawed", by or f"pytest ended with {status}: {(copy / 'said').read_text()[-500:]}"
    return Outcome(word, by, time.monotonic() - began)


@contextmanager
def _broken(mutant: Mutant, copy: Path) -> Iterator[None]:
    """The copy with the fault in it."""
    if mutant.switch:
        from tests.mutants.native import stand_in

        with stand_in(copy):
            yield
        return
    path = copy / mutant.file
    original = path.read_text() if path.exists() else ""
    path.write_text(mutant.change(original))
    try:
        yield
    finally:
        path.write_text(original)


def _arguments(group: str) -> list[str]:
    """Tests are named within tests/."""
    return [f"tests/{arg}" if arg.startswith(("test_", *_ROOMS)) else arg for arg in shlex.split(group)]


_ROOMS = tuple(f"{folder.name}/" for folder in (ROOT / "tests").iterdir() if folder.is_dir())


def _fail_without(copy: Path, killed: dict[str, str], more: list[str]) -> list[str]:
    """Those among tests that fail without a fault as well, by themselves or in the company that they were run in: after
    the others of their file."""
    tests = [test for test in killed if "::" in test]
    files = dict.fromkeys(test.partition("::")[0] for test in tests)
    flawed = {file for file in files if _pytest(copy, [file, *more])[0] != 0}
    alone = tests and _pytest(copy, [*tests, *more])[0] != 0
    return [
        test for test in tests
        if test.partition("::")[0] in flawed or (alone and _pytest(copy, [test, *more])[0] != 0)
    ]  # fmt: skip


def _pytest(copy: Path, args: list[str], switch: str = "") -> tuple[int, str]:
    """(exit status of pytest, the first test that failed, or _HUNG) in a fork whose package is the copy."""
    told = copy / "told"
    told.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        try:
            os.setpgid(0, 0)
            os.environ["ELMAN_FAULT"] = switch
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
            by = told.read_text() if told.exists() else ""
            return (_FAILED, by or "it ended the process") if code < 0 else (code, by)
        time.sleep(0.05)
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
    status = pytest.main(["-x", "-q", "--assert=plain", "-p", "no:cacheprovider", *args], plugins=[Telling()])
    if "elman" in sys.modules and not Path(sys.modules["elman"].__file__ or "").is_relative_to(copy):
        return _NOT_RUN
    if status not in (0, _FAILED) and not told.exists():
        return _broke(int(status), copy, told)
    return _FAILED if told.exists() else int(status)


def _broke(status: int, copy: Path, told: Path) -> int:
    """Where pytest could not begin: the package cannot be imported with the fault, or its arguments are wrong."""
    said = (copy / "said").read_text()
    if "conftest" in said and "Error" in said:
        told.write_text("tests/conftest.py: the package cannot be imported")
        return _FAILED
    return status


if __name__ == "__main__":
    main()
