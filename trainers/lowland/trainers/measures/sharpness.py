"""The loss's rise at distance rho along its gradient: what SAM's first-order ascent finds (arXiv 2010.01412).

    sharpness = L(theta + rho g / |g|) - L(theta),   g = grad L(theta)

For a quadratic with Hessian A it is rho |g| + rho^2/2 g^T A g / |g|^2.
"""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from lowland.trainers.world import World

__all__ = ["sam_sharpness"]


def sam_sharpness(loss: Callable[[], Tensor], parameters: Sequence[Tensor], *, rho: float, world: World) -> float:
    """The rise of a loss; parameters come back from copies, to the bit; collective.

    Args:
        loss: this rank's share of the loss: its sum over the rank's examples, divided by the weight of all ranks'.
        parameters: whole ones, the same on every rank.
        rho: distance in parameter space, >= 0; 0 gives 0.
        world: the ranks among whom the examples are split.
    """
    here = loss()
    gradients = [gradient.detach() for gradient in torch.autograd.grad(here, parameters)]
    if world.size > 1:
        for gradient in gradients:
            dist.all_reduce(gradient)
    norm = float(torch.nn.utils.get_total_norm(gradients))
    copies = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for p, gradient in zip(parameters, gradients, strict=True):
            p.add_(gradient, alpha=rho / norm if norm else 0.0)
        there = loss()
        for p, copy in zip(parameters, copies, strict=True):
            p.copy_(copy)
    before, after = (world.sum([float(value.detach())])[0] for value in (here, there))
    return after - before
