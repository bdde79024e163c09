"""A step in C, compiled and run on numbers: what tests of it share."""

from __future__ import annotations

import copy
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from elman.circuit.structure import flatten
from elman.export.c import Source
from elman.export.step.flat import Flat
from elman.export.step.single import Single
from elman.trace.call import call_cell, understand

FLAGS = ("-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror")
SANITIZE = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
# Reads T, then the numbers of each step; writes what comes out of each, and the state at the end.
DRIVER = """
#include <stdio.h>
#include <stdlib.h>
#include "step.h"
#ifndef ELMAN_X
#define ELMAN_X 0
#endif
#ifndef ELMAN_IDS
#define ELMAN_IDS 0
#endif
int main(void) {
    /* Memory of exactly that size: a sanitizer sees who goes beyond it. */
    ELMAN_FLOAT *state = malloc((ELMAN_STATE + ELMAN_SCRATCH) * sizeof *state), *x = malloc(ELMAN_X * sizeof *x);
    ELMAN_FLOAT *out = malloc(ELMAN_OUT * sizeof *out);
    int32_t *ids = malloc(ELMAN_IDS * sizeof *ids), steps;
    double number;
    unsigned char *bytes = (unsigned char *)state;
    for (size_t i = 0; i < (ELMAN_STATE + ELMAN_SCRATCH) * sizeof *state; i++) bytes[i] = 0xff;
    if (fread(&steps, sizeof steps, 1, stdin) != 1) return 1;
    elman_init(state);
    for (int t = 0; t < steps; t++) {
        for (int i = 0; i < ELMAN_X; i++) {
            if (fread(&number, sizeof number, 1, stdin) != 1) return 1;
            x[i] = (ELMAN_FLOAT)number;
        }
        for (int i = 0; i < ELMAN_IDS; i++)
            if (fread(&ids[i], sizeof *ids, 1, stdin) != 1) return 1;
        elman_step(CALL state, out);
        for (int i = 0; i < ELMAN_OUT; i++) {
            number = out[i];
            fwrite(&number, sizeof number, 1, stdout);
        }
    }
    for (int i = 0; i < REALS; i++) {
        number = state[i];
        fwrite(&number, sizeof number, 1, stdout);
    }
    free(state), free(x), free(out), free(ids);
    return 0;
}
"""


@cache
def compiler(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} is installed")
    return found


def written(folder: Path, step: Single, weights: str = "float32") -> Flat:
    """step.c, step.h and a driver."""
    flat = Flat.of(step)
    source = Source(flat, weights, "elman", "step.h")
    (folder / "step.h").write_text(source.header())
    (folder / "step.c").write_text(source.source(""))
    call = ", ".join((["x"] if flat.reals or not flat.ids else []) + (["ids"] if flat.ids else [])) + ","
    driver = DRIVER.replace("CALL", call).replace("REALS", str(flat.state))
    (folder / "driver.c").write_text(driver)
    return flat


def build(folder: Path, name: str, *flags: str) -> Path:
    """The program. Warnings are errors."""
    program = folder / "program"
    made = subprocess.run(
        [compiler(name), *FLAGS, *flags, "step.c", "driver.c", "-o", str(program), "-lm"], cwd=folder,
        capture_output=True, text=True,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr[-3000:]
    return program


def run(program: Path, flat: Flat, xs: Sequence[Sequence[Tensor]]) -> tuple[np.ndarray, np.ndarray]:
    """(what comes out [T, …], the reals of the state at the end). xs: of each step the leaves [1, …]."""
    said = np.int32(len(xs)).tobytes()
    for leaves in xs:
        placed = list(zip(leaves, flat.inputs, strict=True))
        for memory, kind in (("x", np.float64), ("ids", np.int32)):
            said += b"".join(
                one.numpy().astype(kind).tobytes() for one, leaf in placed if leaf.memory == memory
            )
    made = subprocess.run([str(program)], input=said, capture_output=True)
    assert made.returncode == 0, made.stderr.decode()[-3000:]
    numbers = np.frombuffer(made.stdout, dtype=np.float64)
    cut = len(xs) * flat.outs
    return numbers[:cut].reshape(len(xs), flat.outs), numbers[cut:]


def by_cell(step: Single, xs: Sequence[Sequence[Tensor]]) -> tuple[np.ndarray, np.ndarray]:
    """The same by the cell itself, step by step."""
    structure = pytree.tree_structure(step.state)
    state, found = step.state, []
    with torch.no_grad():
        for leaves in xs:
            x = pytree.tree_unflatten(list(leaves), pytree.tree_structure(step.x)) if leaves else step.x
            made = call_cell(step.cell, x, state, None, False)
            output, state = understand(made, flatten(state, "state")[1], "cell")
            found.append(_flat(output))
            assert pytree.tree_structure(state) == structure
    return np.stack(found), _flat(state)


def _flat(tree: object) -> np.ndarray:
    leaves = [
        one for one in pytree.tree_leaves(tree) if isinstance(one, Tensor) and one.dtype is not torch.int64
    ]
    return np.concatenate([np.empty(0), *(one.double().flatten().numpy() for one in leaves)])


def dequantised(module: Any) -> Any:
    """A copy whose matrices are what int8 with a scale for each row leaves of them."""
    module = copy.deepcopy(module)
    with torch.no_grad():
        for value in (*module.parameters(), *module.buffers()):
            if value.dim() == 2 and value.numel():
                scale = value.abs().max(1, keepdim=True).values / 127
                value.copy_((value / scale).round() * scale)
    return module
