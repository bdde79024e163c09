"""The native engine's tests under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer (docs/native.md).

    python -m tests.sanitize                  # or: make sanitize. Everything: half an hour on two cores
    python -m tests.sanitize --short          # five minutes: one instruction set, fewer tests
    python -m tests.sanitize thread -k fork   # one of the sanitizers; what else is said is pytest's

The compiled part is built anew for each, into build/sanitize, and stands in for the installed one in processes of their
own. There the sanitizers' libraries are loaded first, so that PyTorch's memory is watched as well. Ends with 1 if a
test fails or a sanitizer has something to say. GCC and Linux; where something is missing it says so and ends with 2.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "sanitize"
SUPPRESSIONS = ROOT / "tests" / "sanitize.supp"
KINDS = {"address": "address,undefined", "thread": "thread"}
LIBRARIES = {"address": ("libasan.so", "libubsan.so"), "thread": ("libtsan.so",)}
# Python and PyTorch keep much until they end: nothing of that is a leak of ours.
OPTIONS = {
    "address": {
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    },
    "thread": {"TSAN_OPTIONS": f"halt_on_error=1:die_after_fork=0:suppressions={SUPPRESSIONS}"},
}
BOTH = [
    "tests/engines",
    "tests/recurrent/test_dropout.py",
    "tests/test_noise.py",
    "tests/test_online.py",
    "tests/test_online_rules.py",
]
TESTS = {
    "address": [
        *BOTH,
        "tests/recurrent/test_sequences.py",
        "tests/recurrent/test_sequences_refused.py",
        "tests/recurrent/test_teachers.py",
        "tests/recurrent/test_packed_sequence.py",
        "tests/recurrent/test_stream.py",
        "tests/recurrent/test_bound.py",
        "tests/recurrent/test_bound_left.py",
        "tests/recurrent/test_repeat.py",
        "tests/recurrent/test_laid.py",
    ],
    "thread": [*BOTH, "tests/recurrent/test_laid.py"],
}
SHORT = {
    "address": [
        "tests/engines/test_native.py",
        "tests/engines/test_lookups.py",
        "tests/engines/test_packed.py",
        "tests/engines/test_passes.py",
        "tests/recurrent/test_bound.py",
        "tests/recurrent/test_bound_left.py",
        "tests/recurrent/test_repeat.py",
        "tests/recurrent/test_laid.py",
        "-k",
        "cases or index or lookups or passes or change or looks_like or turns or packs or fewer_bits or laid",
    ],
    "thread": [
        "tests/engines/test_threads.py",
        "tests/engines/test_native.py",
        "tests/engines/test_packed.py",
        "tests/engines/test_passes.py",
        "tests/recurrent/test_laid.py",
        "-k",
        "threads or once or interrupt or packs",
    ],
}
# sitecustomize.py of every Python that the tests start: the module that was built is elman._native.
STAND_IN = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("elman._native", {path!r})
sys.modules["elman._native"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kinds", nargs="*", help="address (with undefined) or thread; both", default=[])
    parser.add_argument("--short", action="store_true", help="one instruction set, fewer tests")
    said, more = parser.parse_known_args()
    wrong = set(said.kinds) - KINDS.keys()
    if wrong:
        parser.error(f"no sanitizer of ours: {', '.join(wrong)}; there are {', '.join(KINDS)}")
    if sys.platform != "linux" or not shutil.which("g++"):
        print("sanitize: it takes Linux and g++")
        sys.exit(2)
    failed = []
    for kind in said.kinds or KINDS:
        module = build(kind, said.short)
        if kind == "address":
            failed += [f"{kind}: {file}" for file in native_tests(kind, said.short)]
        if run(kind, module, [*(SHORT if said.short else TESTS)[kind], *more]):
            failed.append(f"{kind}: pytest")
    print(f"sanitize: {', '.join(failed)}" if failed else "sanitize: clean")
    sys.exit(bool(failed))


def build(kind: str, short: bool) -> Path:
    """The compiled part with a sanitizer in it, made by CMake; what has not changed is not compiled again."""
    from tests.precision import reduces

    environment = tools()
    folder = BUILD / (f"{kind}-short" if short else kind)
    # AVX-512 is the same source as AVX2, and takes as long again to compile; with AMX there is more (native/amx.hpp).
    sets = "plain" if short else "plain;avx2" + (";avx512;amx" if reduces() else "")
    configure = [
        "cmake", "-G", "Ninja", "-S", str(ROOT), "-B", str(folder), f"-DPython_EXECUTABLE={sys.executable}",
        f"-DELMAN_SANITIZE={KINDS[kind]}", f"-DELMAN_ISAS={sets}",
    ]  # fmt: skip
    for command in (configure, ["ninja", "-C", str(folder)]):
        done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
        if done.returncode:
            print(done.stdout, done.stderr, sep="\n")
            print(f"sanitize: {kind} could not be built")
            sys.exit(2)
    return folder / f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"


def tools() -> dict[str, str]:
    """The environment in which to build: with nanobind, and CMake and Ninja where the system has none."""
    folder = BUILD / "tools"
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    environment["PATH"] = f"{folder / 'bin'}{os.pathsep}{environment['PATH']}"
    pinned = next(
        line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("nanobind==")
    )
    wanted = [name for name in ("cmake", "ninja") if not shutil.which(name, path=environment["PATH"])]
    wanted += [] if (folder / "nanobind").is_dir() else [pinned]
    if wanted:
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "-q", "--target", str(folder), *wanted], check=True
        )
    return environment


def native_tests(kind: str, short: bool) -> list[str]:
    """What fails of native/tests, which needs neither Python nor PyTorch."""
    failed = []
    sets = (
        {"plain": []}
        if short or platform.machine() != "x86_64"
        else {"plain": [], "avx2": ["-mavx2", "-mfma"]}
    )
    for file, arguments in (("functions.cpp", ["0.02"]), ("products.cpp", [])):
        for isa, flags in sets.items():
            program = BUILD / f"{kind}-{isa}-{file}".removesuffix(".cpp")
            compiled = subprocess.run(
                ["g++", "-O1", "-g", "-std=c++17", "-fno-math-errno", "-fno-trapping-math", *flags,
                 f"-DELMAN_ISA={isa}", f"-fsanitize={KINDS[kind]}", "-fno-sanitize-recover=undefined",
                 f"-I{ROOT / 'native'}", str(ROOT / "native" / "tests" / file), "-o", str(program)], check=False,
            )  # fmt: skip
            if compiled.returncode or subprocess.run([program, *arguments], check=False).returncode:
                failed.append(f"{file} ({isa})")
    return failed


def run(kind: str, module: Path, arguments: list[str]) -> bool:
    """Run tests with a module in place of the installed one: whether something is wrong."""
    names = (*LIBRARIES[kind], "libstdc++.so.6")  # the last: exceptions are thrown through the sanitizer
    found = [
        subprocess.run(["g++", f"-print-file-name={n}"], capture_output=True, text=True, check=True).stdout
        for n in names
    ]
    site = module.parent / "site"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(STAND_IN.format(path=str(module)))
    environment = {
        **os.environ, **OPTIONS[kind], "LD_PRELOAD": ":".join(path.strip() for path in found),
        "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    # ThreadSanitizer wants to know where memory will lie.
    fixed = ["setarch", platform.machine(), "-R"] if kind == "thread" and shutil.which("setarch") else []
    # A sanitizer ends the process when it has spoken: pytest must not have caught what it said.
    command = [
        *fixed,
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--capture=sys",
        *arguments,
    ]
    print(f"sanitize: {KINDS[kind]}: pytest {' '.join(arguments)}", flush=True)
    return bool(subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode)


if __name__ == "__main__":
    main()
