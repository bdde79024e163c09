"""The native code's own tests, compiled for every instruction set and run where this machine can."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from tests import pairwise

NATIVE = Path(__file__).parent.parent / "native"
COMPILER = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
FLAGS = ["-std=c++17", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wextra"]
# The loops of `products` are templates, which take twice as long to compile at -O2; what runs is over at once.
OPTIMISED = {"functions": "-O2", "products": "-O1"}
SETS = {"plain": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    SETS |= {"avx2": ["-mavx2", "-mfma"], "avx512": ["-march=x86-64-v4"]}


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler is at hand")
@pytest.mark.grid(1)  # what differs between them is the vector type, which both of the programs go through
@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("what", OPTIMISED)
def test_native(what: str, name: str, tmp_path: Path) -> None:
    program = tmp_path / what
    source = NATIVE / "tests" / f"{what}.cpp"
    command = [
        str(COMPILER),
        OPTIMISED[what],
        *FLAGS,
        *SETS[name],
        f"-DELMAN_ISA={name}",
        "-I",
        str(NATIVE),
        str(source),
    ]
    runs = name in _usable()
    goal = ["-o", str(program)] if runs else ["-fsyntax-only"]
    made = subprocess.run([*command, *goal], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    if not runs:
        pytest.skip(f"it compiles; this machine does not run {name}")
    share = "1" if pairwise.exhaustive else "0.1"  # of the random numbers that functions are tried on
    done = subprocess.run([str(program), share], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def _usable() -> list[str]:
    try:
        from elman import _native
    except ImportError:
        return ["plain"]
    return list(_native.instruction_sets())
