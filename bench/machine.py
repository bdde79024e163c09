"""What a figure means nothing without: machine, instruction sets, threads, versions, commit."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import torch

import elman
from bench import jaxed
from elman.engines import ENGINES
from elman.engines.native import isa, why_not_built


def about(engine: str, dtype: torch.dtype) -> dict[str, str]:
    """The header of every report."""
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg()) if hasattr(os, "getloadavg") else "unknown"
    tried = "" if engine != "auto" else f": {', then '.join(each.name for each in ENGINES)}"
    return {
        "machine": f"{processor()}, {os.cpu_count()} cores; load {load}",
        "instructions": f"torch {torch.backends.cpu.get_cpu_capability()}, ours {isa() or why_not_built()}",
        "engine": f"{engine}{tried}; {str(dtype).removeprefix('torch.')}",
        "threads": str(torch.get_num_threads()),
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, elman {elman.__version__}, "
        + (f"jax {jaxed.version()}" if jaxed.version() else "no jax"),
        "commit": commit(),
    }


def busy() -> bool:
    """Other processes use much of this machine."""
    return hasattr(os, "getloadavg") and os.getloadavg()[0] > 0.7 * (os.cpu_count() or 1)


def processor() -> str:
    """The name that the processor gives itself, where the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def commit() -> str:
    """The commit, with a word if files differ from it; "unknown" outside a repository."""
    here = Path(__file__).parent
    try:
        head, changed = (
            subprocess.run(
                ["git", *words], cwd=here, check=True, capture_output=True, text=True
            ).stdout.strip()
            for words in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head}, with changes" if changed else head
