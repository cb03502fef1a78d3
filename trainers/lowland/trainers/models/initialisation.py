"""Initial weights that are larger, smaller, or of low rank, which decides between lazy and rich training.

A large scale makes training lazy: weights and the tangent kernel hardly move (Chizat et al., arXiv 1812.07956).  Low
rank at the same norm makes it richer (Liu et al., arXiv 2310.08513).
"""

import torch
from torch import Tensor, nn

__all__ = ["reshape_initial_weights"]


@torch.no_grad()
def reshape_initial_weights(module: nn.Module, *, scale: float, rank: int | None) -> None:
    """Changes every trainable matrix and filter bank in place; 1 and None leave all bits as they are.

    Args:
        module: freshly initialised.
        scale: what weights of two and more dimensions are multiplied by, > 0.
        rank: largest rank of each, flattened to its first dimension; its Frobenius norm stays.
    """
    for weight in module.parameters():
        if weight.dim() < 2 or not weight.requires_grad:
            continue
        if rank is not None and rank < min(len(weight), weight[0].numel()):
            weight.copy_(_of_rank(weight, rank))
        if scale != 1:
            weight.mul_(scale)


def _of_rank(weight: Tensor, rank: int) -> Tensor:
    flat = weight.reshape(len(weight), -1).float()
    u, s, v = torch.linalg.svd(flat, full_matrices=False)
    low = u[:, :rank] * s[:rank] @ v[:rank]
    rescaled: Tensor = low * (flat.norm() / low.norm())
    return rescaled.reshape(weight.shape).to(weight.dtype)
