"""The neural tangent kernel of a batch, and how far it is from where it began: lazy or rich training.

With J_ic the gradient of example i's output c by the parameters, the class-summed kernel of n examples is

    K_ij = sum_c <J_ic, J_jc>

and its alignment with one-hot targets Y [n, C], both centred, is <K, Y Y^T> / (|K| |Y Y^T|) (Baratin et al.,
arXiv 2008.00938).  A lazy training leaves K where it was at initialisation; a rich one turns it to the targets.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from lowland.trainers.measures.alignment import centred

__all__ = ["ntk", "projected_ntk", "target_alignment"]


def ntk(outputs: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """The class-summed kernel, float64 [n, n], by n C backward passes; n gradients are held at a time.

    Args:
        outputs: [n, C], with the graph of a forward pass.
        parameters: what the kernel is over.
    """
    total = torch.zeros(len(outputs), len(outputs), dtype=torch.float64)
    for output in outputs.unbind(1):
        total += _gram([_gradient(value, parameters) for value in output])
    return total


def projected_ntk(
    forward: Callable[[int], Tensor], examples: int, parameters: Sequence[Tensor], seeds: Iterable[int]
) -> Tensor:
    """The mean over random projections r ~ N(0, I) of the kernels of <r, output>; float64 [n, n].

    Each has the class-summed kernel as its expectation, and needs one backward pass an example however many outputs
    there are (classes, or positions times tokens).

    Args:
        forward: an example's output, any shape, the same for all, with its graph.
        examples: n.
        parameters: what the kernel is over.
        seeds: one a projection, at least one.
    """
    kernels = []
    for seed in seeds:
        rows = []
        for index in range(examples):
            output = forward(index)
            generator = torch.Generator().manual_seed(seed)
            projection = torch.randn(output.shape, generator=generator).to(output)
            rows.append(_gradient((output * projection).sum(), parameters))
        kernels.append(_gram(rows))
    return torch.stack(kernels).mean(0)


def target_alignment(kernel: Tensor, labels: Tensor) -> float:
    """The alignment of a kernel [n, n] with labels (int64 [n]), both centred, in [-1, 1]; 0 where either is zero."""
    targets = torch.nn.functional.one_hot(labels.cpu()).double()
    targets = targets - targets.mean(0)
    kernel = centred(kernel.double().cpu())
    norms = float(kernel.norm() * (targets @ targets.T).norm())
    return float((targets * (kernel @ targets)).sum()) / norms if norms else 0.0


def _gradient(value: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if f is None else f for f, p in zip(found, parameters, strict=True)]


def _gram(rows: Sequence[Sequence[Tensor]]) -> Tensor:
    """Scalar products of n gradients, tensor by tensor: float64 [n, n]."""
    total = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for pieces in zip(*rows, strict=True):
        stacked = torch.stack([piece.flatten() for piece in pieces]).float()
        total += (stacked @ stacked.T).cpu().double()
    return total
