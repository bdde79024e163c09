"""Everything that elman does without its extras, with what is installed: `.ci/installed` runs it where nothing else is.

python tests/installed.py native | reference: which engine there has to be.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import elman
from elman.engines.native import isa, why_not_built

NEEDED = {"torch", "networkx", "numpy", "tokenizers", "safetensors", "typer", "rich"}
EXTRAS = {
    "accelerate",
    "baselines",
    "bench",
    "dev",
    "docs",
    "draw",
    "forecast",
    "onnx",
    "serve",
    "tensorboard",
}
TEXT = "the quick brown fox jumps over the lazy dog\n" * 200


def main(engine: str) -> None:
    assert Path(elman.__file__).is_relative_to(sys.prefix), f"that is not the installed one: {elman.__file__}"
    assert (Path(elman.__file__).parent / "py.typed").is_file()
    said = importlib.metadata.metadata("elman")
    plain = {
        re.split(r"[^\w-]", one, maxsplit=1)[0]
        for one in said.get_all("Requires-Dist") or []
        if "extra ==" not in one
    }
    assert plain == NEEDED, plain
    assert said["Version"] == elman.__version__
    assert set(said.get_all("Provides-Extra") or []) == EXTRAS

    for name in elman.__all__:
        getattr(elman, name)

    torch.manual_seed(0)
    rnn = elman.Recurrent(elman.cells.GRU(5, 7))
    x = torch.randn(11, 3, 5)
    outputs, state = rnn(x)
    outputs.sum().backward()
    step, _ = rnn.step(x[0], state)
    assert rnn.stream().step(x[0, :1]).shape == step[:1].shape
    explained = str(rnn.explain())
    if engine == "native":
        assert why_not_built() is None, why_not_built()
        assert "native" in explained, explained
        print("native engine:", isa())
    else:
        assert why_not_built() in explained, explained
        print("no native engine, and explain() says so:", why_not_built())
    assert elman.verify(elman.cells.Elman(2, 3), torch.randn(4, 2)).ok

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("text.txt").write_text(TEXT, "utf-8")
        elman.draw(rnn).save("cell.svg")
        run("--help")
        run("train", "lm", "text.txt", "--cell", "gru", "--hidden", "16", "--steps", "20", "--out", "run")
        run("generate", "run", "--length", "20")
        run("draw", "run", "-o", "run.svg")
        for target in ("html", "c") if engine == "native" else ():
            run("export", "run", "--to", target)
        made = sorted(path.name for path in Path().rglob("*") if path.suffix in (".svg", ".html", ".c"))
        wanted = {
            "cell.svg",
            "report.html",
            "run.svg",
            *(["model.c", "model.html"] if engine == "native" else []),
        }
        assert set(made) == wanted, made
        print("made:", *made)
        os.chdir(sys.prefix)
    print(f"installed: {engine} works with", len(list(importlib.metadata.distributions())), "distributions")


def run(*arguments: str) -> None:
    program = Path(sys.prefix) / "bin" / "elman"
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"elman {' '.join(arguments)}\n{done.stdout}{done.stderr}"


if __name__ == "__main__":
    main(sys.argv[1])
