"""Steps that a GPU leaves out by itself."""

import torch
from torch.optim import Optimizer

from lowland.optim.sgd import SGD

__all__ = ["skips_on_device"]


def skips_on_device(optimizer: Optimizer) -> bool:
    """Whether a step changes nothing, no counter either, where `found_inf`, a tensor that the optimizer is given, is 1.

    That is torch's protocol for scaled losses; the host need not know the tensor's value.  Subclasses may do more in a
    step, and torch's own SGD takes whatever is in memory for its momentum if the first step is left out.
    """
    return type(optimizer) in (torch.optim.Adam, torch.optim.AdamW, SGD) and getattr(
        optimizer, "_step_supports_amp_scaling", False
    )
