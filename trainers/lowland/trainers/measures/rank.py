"""How many directions a matrix really uses.

For singular values s and p = s / sum(s):

    effective rank      exp(-sum_i p_i log p_i)      Roy and Vetterli, 2007
    participation rank  (sum s)^2 / sum s^2

Both lie between 1 and the number of singular values, equal it where all are equal, and ignore the matrix's scale.
"""

import torch
from torch import Tensor

__all__ = ["effective_rank", "participation_rank"]


def effective_rank(matrix: Tensor) -> float:
    """exp of the entropy of the normalised singular values of [m, n], or [m, ...] flattened; 0 for a zero matrix."""
    values = _singular_values(matrix)
    total = float(values.sum())
    if total == 0:
        return 0.0
    shares = values / total
    return float(torch.special.entr(shares).sum().exp())


def participation_rank(matrix: Tensor) -> float:
    """(sum s)^2 / sum s^2 of the singular values of [m, n], or [m, ...] flattened; 0 for a zero matrix."""
    values = _singular_values(matrix)
    squares = float(values.square().sum())
    return float(values.sum()) ** 2 / squares if squares else 0.0


def _singular_values(matrix: Tensor) -> Tensor:
    """Through the smaller Gram matrix in float64: exact to 1e-8 of the largest, and quick for tall matrices."""
    flat = matrix.detach().reshape(len(matrix), -1).double()
    gram = flat @ flat.T if flat.shape[0] <= flat.shape[1] else flat.T @ flat
    squares: Tensor = torch.linalg.eigvalsh(gram)
    return squares.clamp(min=0).sqrt()
