"""A classifier that is fixed from the start: a simplex equiangular tight frame.

Yang et al., *Inducing neural collapse in imbalanced learning: do we really need a learnable classifier at the end of
deep neural network?* (2022).  Class vectors m_1..m_K of norm 1 whose pairwise cosines are all -1 / (K - 1), the
geometry that training ends at on balanced data, also where classes are rare.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from lowland.trainers.errors import RecipeError
from lowland.trainers.methods.base import Method, Outputs, Problem
from lowland.trainers.methods.classifier import classifier_of, replace_module
from lowland.trainers.models.heads import ETFClassifier


def simplex_etf(classes: int, width: int, seed: int) -> Tensor:
    """The class vectors in a random orientation: float32 [classes, width] with rows of norm 1.

    sqrt(K / (K - 1)) (I - 1 1' / K) U' for U with orthonormal columns, which needs width >= classes.
    """
    if width < classes:
        raise ValueError(f"{classes} equiangular class vectors of this form need as many dimensions, not {width}")
    generator = torch.Generator().manual_seed(seed)
    orthonormal, _ = torch.linalg.qr(torch.randn(width, classes, generator=generator, dtype=torch.float64))
    centred = torch.eye(classes, dtype=torch.float64) - 1 / classes
    vectors: Tensor = (classes / (classes - 1)) ** 0.5 * centred @ orthonormal.T
    return vectors.float()


class FixedETF(Method):
    """Puts the fixed classifier in the place of the network's.

    Args:
        loss: `dot_regression`, or `cross_entropy` of the scaled cosines with the task's targets.
        scale: of the cosines; dot regression does without, the logits have it.
    """

    name = "fixed_etf"

    def __init__(self, loss: Literal["dot_regression", "cross_entropy"], scale: float) -> None:
        self._loss, self._scale = loss, scale

    def build(self, network: nn.Module, problem: Problem) -> None:
        """Replaces the classifier."""
        if hasattr(network, "config"):
            raise RecipeError(
                f"methods: fixed_etf: {type(network).__name__} is a model of transformers, which reads no such "
                "classifier back; choose an architecture of lowland (resnet...-cifar, wide-resnet...), or remove it"
            )
        name, head = classifier_of(network, self.name)
        if head.in_features < problem.classes or problem.classes < 2:
            raise RecipeError(
                f"methods: fixed_etf needs at least 2 classes and as many features before the classifier; here are "
                f"{problem.classes} classes and {head.in_features} features: choose a wider model, or remove it"
            )
        vectors = simplex_etf(problem.classes, head.in_features, problem.seed)
        replace_module(network, name, ETFClassifier(vectors, self._scale))

    def losses(self, outputs: Outputs) -> Tensor | None:
        """Dot regression, of mixed examples in the proportion of their targets."""
        if self._loss == "cross_entropy":
            return None
        cosines = outputs.logits.float() / self._scale
        return (outputs.targets * (cosines - 1).square()).sum(dim=1) / 2
