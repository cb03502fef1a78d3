"""Spectral decoupling: a quadratic penalty on logits, instead of weight decay.

Pezeshki et al., *Gradient starvation: a learning proclivity in neural networks* (2021), eq. 6: with cross-entropy
alone a feature that is learnt first starves the others of gradient; a penalty on the logits decouples them.
"""

from torch import Tensor

from lowland.trainers.methods.base import Method, Outputs


class SpectralDecoupling(Method):
    """Adds lambda / 2 times the squared norm of (logits - center) to each example's loss.

    DomainBed writes lambda times the *mean* square of the logits; its lambda is `strength` times classes / 2.

    Args:
        strength: lambda, at least 0.
        center: value that logits are drawn to, the same for all classes or one of each.
    """

    name = "spectral_decoupling"

    def __init__(self, strength: float, center: float | tuple[float, ...] = 0.0) -> None:
        self._strength, self._center = strength, center

    def extra(self, outputs: Outputs) -> Tensor:
        """[B], in fp32 whatever the logits are."""
        logits = outputs.logits.float()
        away = logits - logits.new_tensor(self._center)
        return self._strength / 2 * away.square().sum(dim=1)
