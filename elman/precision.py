"""The precision of float32 products, which is PyTorch's to keep: `torch.set_float32_matmul_precision`.

"ieee" or "none": as they are; "bf16": factors may be rounded to bfloat16; "tf32": to TF32, which CPUs do not have.
PyTorch's public names by backend are `torch.backends.mkldnn.matmul.fp32_precision` and the like.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch

# By backend, "mkldnn" (CPUs) or "cuda".
of_products = {
    backend: partial(torch._C._get_fp32_precision_getter, backend, "matmul") for backend in ("mkldnn", "cuda")
}
EXACT = ("ieee", "none")


@contextmanager
def products_in(precision: str, backend: str = "mkldnn") -> Iterator[None]:
    """Inside, the products of a backend have this precision, in all threads."""
    before, set_to = of_products[backend](), torch._C._set_fp32_precision_setter
    set_to(backend, "matmul", precision)
    try:
        yield
    finally:
        # This stays where the precision was said of more than these products, of all of PyTorch or of the backend.
        set_to(backend, "matmul", "none")
        if of_products[backend]() != before:
            set_to(backend, "matmul", before)
