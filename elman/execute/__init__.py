"""execute: plans and tensors in, tensors out; the one place where autograd meets a plan.

`program` prepares a circuit's plans, `body` runs one plan, `doors` are the three ways in: no gradient wanted, eager
gradients, and the transforms of torch.func and torch.compile.
"""

from elman.execute.body import Call
from elman.execute.doors import apply
from elman.execute.program import Program

__all__ = ["Call", "Program", "apply"]
