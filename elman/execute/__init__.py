"""execute: plans and tensors in, tensors out; the one place where autograd meets a plan.

`program` prepares a circuit's plans, `executable` runs one plan, which `emit` writes as one function. `autograd` has
the three ways in: no gradient wanted, eager gradients, transforms of torch.func; `operator` that of torch.compile.
"""

from elman.execute.autograd import apply, apply_again, ending
from elman.execute.executable import Call
from elman.execute.program import Program

__all__ = ["Call", "Program", "apply", "apply_again", "ending"]
