"""Wrong labels, put in on purpose: a pure function of labels and seed.

The original labels are kept beside, so that what a model learnt and what it merely memorised can be told apart.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lowland.trainers.engines import Engine
from lowland.trainers.methods.base import Method, Outputs
from lowland.trainers.world import World

CIFAR10_PAIRS = (0, 1, 0, 5, 7, 3, 6, 7, 8, 1)
"""Where asymmetric noise takes each class of CIFAR-10: bird to airplane, cat to dog and back, deer to horse, truck to
automobile; the others stay (Patrini et al., 2017)."""


def symmetric_noise(labels: Tensor, classes: int, rate: float, seed: int, *, own_too: bool = False) -> Tensor:
    """Gives round(rate n) examples another label, each other class alike.

    Args:
        labels: int64 [n], each in [0, classes).
        classes: at least 2.
        rate: in [0, 1].
        seed: the same labels and seed give the same noise, on any machine.
        own_too: draw from all classes, the own one too, as most published results do: rate (classes - 1) / classes of
            the labels are wrong then.

    Returns:
        int64 [n], a copy.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = _chosen(len(labels), rate, generator)
    noisy = labels.clone()
    if own_too:
        noisy[chosen] = torch.randint(classes, (len(chosen),), generator=generator)
    else:
        steps = torch.randint(1, classes, (len(chosen),), generator=generator)
        noisy[chosen] = (labels[chosen] + steps) % classes
    return noisy


def asymmetric_noise(labels: Tensor, target: Sequence[int], rate: float, seed: int) -> Tensor:
    """Gives round(rate n_c) examples of each class c the label target[c], as similar classes are confused.

    Args:
        labels: int64 [n]
        target: the class that each is taken for; itself leaves it clean.
        rate: in [0, 1].
        seed: as of `symmetric_noise`.

    Returns:
        int64 [n], a copy.
    """
    generator = torch.Generator().manual_seed(seed)
    noisy = labels.clone()
    for label, taken_for in enumerate(target):
        members = (labels == label).nonzero()[:, 0]
        noisy[members[_chosen(len(members), rate, generator)]] = taken_for
    return noisy


def next_class(classes: int) -> tuple[int, ...]:
    """Each class taken for the next, the last for the first."""
    return (*range(1, classes), 0)


def _chosen(count: int, rate: float, generator: torch.Generator) -> Tensor:
    return torch.randperm(count, generator=generator)[: round(rate * count)]


COUNTS = ("changed", "unchanged", "memorised", "corrected", "unchanged_correct")


def noise_report(logits: Tensor, noisy: Tensor, clean: Tensor) -> Tensor:
    """How a model stands to labels that were changed and to those that were not, as sums to be added up over batches.

    Args:
        logits: [n, K]
        noisy: int64 [n], the labels trained on.
        clean: int64 [n], the original ones.

    Returns:
        float32 [5], on the device of the logits, as `COUNTS` names them: `changed` and `unchanged` (examples),
        `memorised` (changed examples predicted as the wrong label), `corrected` (changed ones predicted as the
        original), `unchanged_correct`.
    """
    predicted, changed = logits.argmax(dim=1), noisy != clean
    flags = (
        changed,
        ~changed,
        changed & (predicted == noisy),
        changed & (predicted == clean),
        ~changed & (predicted == clean),
    )
    return torch.stack(flags).sum(dim=1).float()


class LabelNoise(Method):
    """Counts how the model stands to the labels that were changed; the change itself is made in the data.

    Args:
        noisy: int64 [examples of the training set], the labels trained on.
        clean: likewise the original ones.
    """

    name = "label_noise"

    def __init__(self, noisy: Tensor, clean: Tensor) -> None:
        self._noisy, self._clean = noisy, clean
        self._sums = torch.zeros(len(COUNTS))
        self._world: World | None = None

    def attach(self, engine: Engine, world: World) -> None:
        """Notes over whom counts are added up, and counts on their device: a GPU need not be waited for."""
        self._world = world
        self._noisy, self._clean = self._noisy.to(world.device), self._clean.to(world.device)
        self._sums = self._sums.to(world.device)

    def extra(self, outputs: Outputs) -> None:
        """Counts each example once a step, and adds nothing."""
        if outputs.rows is None or not torch.is_grad_enabled() or not self.first_pass:
            return
        self._sums += noise_report(outputs.logits.detach(), self._noisy[outputs.rows], self._clean[outputs.rows])

    def metrics(self) -> dict[str, float]:
        """Since the last call, of training examples: shares of changed and of unchanged labels; collective."""
        assert self._world is not None
        values = dict(zip(COUNTS, self._world.sum(self._sums.tolist()), strict=True))
        self._sums.zero_()
        found: dict[str, float] = {}
        if values["changed"]:
            found |= {name: values[name] / values["changed"] for name in ("memorised", "corrected")}
        if values["unchanged"]:
            found["unchanged_accuracy"] = values["unchanged_correct"] / values["unchanged"]
        return found
