"""Labels corrected by the predictions of another network, as in CrossSplit: pure functions of probabilities.

Kim, Baratin, Zhang, Lacoste-Julien, *CrossSplit: mitigating label noise memorization through data splitting* (ICML
2023).  The label y of an example is replaced by a mixture with the prediction p of a network that has not seen it:

    J = JSD(y, p)                                          0 where they agree
    J_n = clip((J - min) / (max - min), 0, 1)              min and max over examples with the same label
    beta = gamma (J_n - 1/2) + 1/2,   s = beta p + (1 - beta) y
"""

import math

import torch
from torch import Tensor


def divergence(targets: Tensor, predictions: Tensor) -> Tensor:
    """Jensen-Shannon divergence in nats, in [0, ln 2]: [n], of probabilities [n, K] each."""
    middle = (targets + predictions) / 2
    apart = (torch.special.entr(targets) + torch.special.entr(predictions)) / 2
    found: Tensor = (torch.special.entr(middle) - apart).sum(dim=1).clamp(min=0)
    return found


def normalised(divergences: Tensor, least: Tensor, most: Tensor) -> Tensor:
    """J_n [n], in [0, 1]; J / ln 2 where a class has no two different divergences yet.

    Args:
        divergences: J, [n].
        least: of the examples with the same label, [n]; likewise `most`.
        most: see there.
    """
    inside = ((divergences - least) / (most - least)).clamp(0, 1)
    return torch.where(most > least, inside, divergences / math.log(2))


def coefficients(normalised_divergences: Tensor, gamma: float) -> Tensor:
    """beta [n]: how much the peer's prediction counts; from (1 - gamma) / 2 to (1 + gamma) / 2."""
    return gamma * (normalised_divergences - 0.5) + 0.5


def corrected(labels: Tensor, predictions: Tensor, beta: Tensor) -> Tensor:
    """s [n, K], of one-hot labels and the peer's predictions, [n, K] each, and beta [n]."""
    return beta[:, None] * predictions + (1 - beta[:, None]) * labels


def sharpened(probabilities: Tensor, temperature: float) -> Tensor:
    """p^(1/T) / sum p^(1/T), [n, K]: as it is at T = 1, towards one-hot for smaller T."""
    if temperature == 1:
        return probabilities
    # The largest is 1 then: without that, all powers of small probabilities would round to 0.
    powers = (probabilities / probabilities.amax(dim=1, keepdim=True)) ** (1 / temperature)
    return powers / powers.sum(dim=1, keepdim=True)


def imbalance(mean: Tensor) -> Tensor:
    """KL(uniform || mean prediction) in nats, of [K]: 0 where all classes are predicted equally often."""
    return -math.log(len(mean)) - mean.log().mean()
