"""ConFIG: the direction that makes equal angles with the gradients of all losses.

Liu, Chu, Thuerey, *ConFIG: towards conflict-free training of physics informed neural networks* (2025), eqs. 2 and 3.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def conflict_free(gradients: Tensor, preference: Sequence[float] | None = None) -> Tensor:
    """One gradient for m losses: positive along each of theirs, as long as their projections on it together.

    d = pinv(unit rows) w, u = d / |d|, result (sum_i g_i . u) u.  It is found in the span of the gradients, from
    their m x m products, in float64: m^2 dot products and one sum.  Opposite gradients of equal
    preference give 0, as do gradients that are all 0.

    Args:
        gradients: [m, n], of the same batch over all ranks: the map is not linear, so that averages over ranks come
            before.
        preference: w, above 0: cosines with the result are in these proportions; None is all alike.

    Returns:
        [n], of the gradients' type.
    """
    wide = gradients.double()
    norms = wide.norm(dim=1)
    used = norms > 0
    if not bool(used.any()):
        return torch.zeros_like(gradients[0])
    units = wide[used] / norms[used, None]
    wanted = torch.ones(len(gradients), dtype=wide.dtype, device=wide.device)
    if preference is not None:
        wanted = torch.tensor(preference, dtype=wide.dtype, device=wide.device)
    # pinv(U) = U' pinv(U U')
    mixture = torch.linalg.pinv(units @ units.T, hermitian=True) @ wanted[used]
    direction = mixture @ units
    length = direction.norm()
    if float(length) < 1e-12:
        return torch.zeros_like(gradients[0])
    direction = direction / length
    result: Tensor = (wide @ direction).sum() * direction
    return result.to(gradients.dtype)
