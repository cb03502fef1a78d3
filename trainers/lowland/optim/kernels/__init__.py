"""The arithmetic of optimizer steps on lists of tensors, in as few passes over memory as it takes.

Each function has one meaning, written in torch, and may have a faster Triton form for tensors on a GPU.
"""

from lowland.optim.kernels.choice import fused
from lowland.optim.kernels.sums import constant, products, scaled, squares

__all__ = ["constant", "fused", "products", "scaled", "squares"]
