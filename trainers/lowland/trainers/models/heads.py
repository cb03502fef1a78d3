"""Classifiers other than a linear layer."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ETFClassifier"]


class ETFClassifier(nn.Module):
    """Logits are cosines of features with the class vectors, times a scale.

    Args:
        vectors: [K, d], norm 1.
        scale: what cosines are multiplied by.

    Both are buffers, so that no optimizer sees them and exports hold them.
    """

    vectors: Tensor
    scale: Tensor

    def __init__(self, vectors: Tensor, scale: float) -> None:
        super().__init__()
        self.register_buffer("vectors", vectors)
        self.register_buffer("scale", torch.tensor(scale))

    def forward(self, features: Tensor) -> Tensor:
        """[..., d] to [..., K], in fp32."""
        with torch.autocast(features.device.type, enabled=False):
            return self.scale.float() * F.linear(F.normalize(features.float(), dim=-1), self.vectors.float())
