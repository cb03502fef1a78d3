"""CrossSplit: two networks on disjoint halves correct each other's labels and learn from each other's images.

Kim, Baratin, Zhang, Lacoste-Julien, *CrossSplit: mitigating label noise memorization through data splitting* (ICML
2023).  A network cannot have learnt the wrong labels of a half that it was never shown.  So its predictions there
correct the labels that its peer, the network of that half, is trained on (`label_correction`).  The same predictions,
sharpened, are what it is itself to say of these examples, which it sees without their labels.  Beyond the paper, they
may be those of averaged weights (`averaged`), which are right more often while the learning rate is high.

Each example of a batch is thus labelled for one network and unlabelled for the other.  Those at even places are of
the first network's half, those at odd places of the second's (`HalvesOrder`).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from lowland.trainers.engines import Engine
from lowland.trainers.methods.averaged import WeightAverage
from lowland.trainers.methods.base import GlobalBatch, Method, Outputs
from lowland.trainers.methods.label_correction import (
    coefficients,
    corrected,
    divergence,
    imbalance,
    normalised,
    sharpened,
)
from lowland.trainers.world import World


def in_turn(first: Tensor, second: Tensor) -> Tensor:
    """The rows of both, [2n, ...]: first[0], second[0], first[1], …"""
    return torch.stack([first, second], dim=1).flatten(0, 1)


@dataclass(frozen=True, kw_only=True)
class CrossSplitSettings:
    """What CrossSplit does when; points are steps, lengths too."""

    classes: int
    accumulation: int
    """Micro-batches of a rank and step."""
    steps_per_epoch: float
    warmup: int
    """Step until which each network learns the labels of its half as they are."""
    correction: bool = True
    gammas: tuple[float, ...] = (1.0,)
    gamma_until: tuple[int, ...] = ()
    """Steps after the warm-up until which each gamma but the last holds, ascending."""
    temperature: float = 0.5
    """T, in (0, 1]."""
    unlabelled: float = 30.0
    """Largest factor of the loss of unlabelled examples; 0 leaves them out."""
    ramp: int = 0
    """Steps in which that factor rises from 0."""
    balance: float = 1.0
    """Factor of `imbalance`."""
    confidence_penalty: float = 0.0
    """Factor of the entropy of predictions that is rewarded in the warm-up."""
    average: float = 0.0
    """What averaged weights, which predict instead of the networks' own, keep of themselves in a step; 0 is none."""

    def gamma(self, step: int) -> float:
        """At a step from `warmup` on."""
        return self.gammas[sum(step - self.warmup >= until for until in self.gamma_until)]

    def unlabelled_factor(self, step: int) -> float:
        """At a step from `warmup` on."""
        return self.unlabelled * (min(1.0, (step - self.warmup) / self.ramp) if self.ramp else 1.0)

    def window(self, step: int) -> int:
        """Epochs counted from the end of the warm-up; -1 is its last one, in which divergences are first noted."""
        return math.floor((step - self.warmup) / self.steps_per_epoch)

    @property
    def views_from(self) -> int:
        """Step from which the peers' predictions are needed."""
        return max(0, math.ceil(self.warmup - self.steps_per_epoch))


_SUMS = ("count", "changed", "beta", "beta_changed", "peer_right", "target_right", "errors")


class CrossSplit(Method):
    """Corrected targets of a training of two networks, and the terms of its loss.

    The least and largest divergence of each half and class are those of the epoch before, as its steps met them: a
    pass of its own over the data at each epoch's start, as published, would cost a quarter more.

    Args:
        settings: see there.
        clean: int64 [examples of the training set], labels before label noise, for metrics alone.
    """

    name = "cross_split"

    def __init__(self, settings: CrossSplitSettings, clean: Tensor) -> None:
        self.settings, self._clean = settings, clean
        self.of_batch = settings.balance > 0
        self._step, self._calls = 0, 0
        self._guesses: list[Tensor] = []
        self._window: int | None = None
        shape = (2, 2 * settings.classes)
        self._bounds = torch.full(shape, math.inf)
        """(least, minus largest) divergence of [half 0's classes, half 1's classes]; infinite for a class not met."""
        self._next_bounds = torch.full(shape, math.inf)
        self._pending: Tensor | None = None
        self._sums = torch.zeros(len(_SUMS))
        self._world: World | None = None
        self._networks: nn.Module | None = None
        self.average: WeightAverage | None = None
        """Of both networks, for predictions."""

    def attach(self, engine: Engine, world: World) -> None:
        """Moves to the training's device."""
        self._world = world
        if self.average is not None:
            self.average.network.to(world.device)
            self._networks = engine.module.get_submodule("network")
        self._clean = self._clean.to(world.device)
        self._bounds, self._next_bounds = self._bounds.to(world.device), self._next_bounds.to(world.device)
        self._sums = self._sums.to(world.device)

    @property
    def warming_up(self) -> bool:
        """Whether labels are learnt as they are."""
        return self._step < self.settings.warmup

    def begin_step(self, step: int) -> None:
        """Takes over the weights of the step before, and the bounds of the epoch that has ended."""
        if self.average is not None and self._networks is not None and step:
            self.average.move(self._networks, step)
        self._step, self._calls, self._guesses, self._pending = step, 0, [], None
        window = self.settings.window(step)
        if window != self._window:
            self._bounds, self._window = self._next_bounds, window
            self._next_bounds = torch.full_like(self._bounds, math.inf)

    def guesses(self, labels: Tensor, rows: Tensor, predict: Callable[[], Tensor]) -> Tensor:
        """What the peer says of each example: probabilities [B, K], the same in all passes of a step.

        Args:
            labels: int64 [B].
            rows: int64 [B], their numbers in the training set.
            predict: asked in the first pass alone.
        """
        index = self._calls % self.settings.accumulation
        if self._calls < self.settings.accumulation:
            self._guesses.append(predict())
            self._note(labels, rows, self._guesses[index])
        self._calls += 1
        return self._guesses[index]

    def targets(self, labels: Tensor, guesses: Tensor) -> tuple[Tensor, Tensor]:
        """What examples are to be for the network of their half, and for the other: [B, K] each."""
        settings = self.settings
        targets = functional.one_hot(labels, settings.classes).to(guesses)
        if settings.correction:
            beta = self._beta(labels, divergence(targets, guesses))
            targets = sharpened(corrected(targets, guesses, beta), settings.temperature)
        return targets, sharpened(guesses, settings.temperature)

    def factor(self, outputs: Outputs) -> Tensor:
        """2: a network's loss is the mean over its half of the batch."""
        return torch.full_like(outputs.losses, 2)

    def extra(self, outputs: Outputs) -> Tensor | None:
        """The squared error on unlabelled examples; in the warm-up the reward of entropy."""
        settings = self.settings
        if self.warming_up:
            if not settings.confidence_penalty:
                return None
            chances = torch.softmax(outputs.logits, dim=1)
            entropies: Tensor = torch.special.entr(chances).sum(dim=1)
            return -2 * settings.confidence_penalty * entropies
        if outputs.other_logits is None or outputs.other_targets is None:
            return None
        errors = (torch.softmax(outputs.other_logits, dim=1) - outputs.other_targets).square().mean(dim=1)
        if self.first_pass and torch.is_grad_enabled():
            self._sums[_SUMS.index("errors")] += errors.detach().sum()
        return 2 * settings.unlabelled_factor(self._step) * errors

    def scalars(self, outputs: Outputs) -> dict[str, Tensor]:
        """Both networks' probabilities of each example, 0 for one that a network does not see."""
        if self.warming_up or not self.of_batch:
            return {}
        own = torch.softmax(outputs.logits, dim=1)
        other = torch.zeros_like(own) if outputs.other_logits is None else torch.softmax(outputs.other_logits, dim=1)
        first, second = in_turn(own[0::2], other[1::2]), in_turn(other[0::2], own[1::2])
        columns = torch.cat([first, second], dim=1).unbind(dim=1)
        return {f"network_{i // own.shape[1]}_class_{i % own.shape[1]}": column for i, column in enumerate(columns)}

    def penalty(self, batch: GlobalBatch) -> Tensor | None:
        """`imbalance` of each network's mean prediction over the global batch."""
        if not batch.scalars:
            return None
        sums = torch.stack(list(batch.scalars.values())).sum(dim=1)
        first, second = (part / part.detach().sum() for part in sums.chunk(2))
        return self.settings.balance * (imbalance(first) + imbalance(second))

    def after_step(self, engine: Engine, world: World, batch: GlobalBatch | None) -> None:
        """Keeps the least and largest divergences of all ranks."""
        if self._pending is None:
            return
        if world.size > 1:
            dist.all_reduce(self._pending, op=dist.ReduceOp.MIN)
        self._next_bounds = torch.minimum(self._next_bounds, self._pending)

    def state(self) -> dict[str, Tensor]:
        """The bounds, and the epoch that they are of; averaged weights."""
        window = torch.tensor(self.settings.window(0) if self._window is None else self._window)
        averaged = self.average.state() if self.average is not None else {}
        return {"bounds": self._bounds, "next_bounds": self._next_bounds, "window": window, **averaged}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restores them."""
        device = self._bounds.device
        self._bounds, self._next_bounds = state["bounds"].to(device), state["next_bounds"].to(device)
        self._window = int(state["window"])
        if self.average is not None:
            self.average.load_state(state)

    def metrics(self) -> dict[str, float]:
        """Since the last call, over training examples, once there are predictions of the peer; collective.

        `peer_right` and `target_right` are shares whose original label is found, before any noise; `beta_changed` and
        `beta_unchanged` mean coefficients of labels that noise changed and of the others.
        """
        assert self._world is not None
        values = dict(zip(_SUMS, self._world.sum(self._sums.tolist()), strict=True))
        self._sums.zero_()
        count, changed = values["count"], values["changed"]
        if not count:
            return {}
        found = {"peer_right": values["peer_right"] / count, "target_right": values["target_right"] / count}
        if self.warming_up:
            return found
        found |= {"gamma": self.settings.gamma(self._step), "unlabelled_loss": values["errors"] / count}
        if changed:
            found["beta_changed"] = values["beta_changed"] / changed
        if changed < count:
            found["beta_unchanged"] = (values["beta"] - values["beta_changed"]) / (count - changed)
        return found

    def _beta(self, labels: Tensor, divergences: Tensor) -> Tensor:
        least, negative_most = self._bounds[:, self._of_class(labels)]
        return coefficients(normalised(divergences, least, -negative_most), self.settings.gamma(self._step))

    def _of_class(self, labels: Tensor) -> Tensor:
        """The column of the bounds for each example."""
        halves = torch.arange(len(labels), device=labels.device) % 2
        return halves * self.settings.classes + labels

    def _note(self, labels: Tensor, rows: Tensor, guesses: Tensor) -> None:
        targets = functional.one_hot(labels, self.settings.classes).to(guesses)
        found = divergence(targets, guesses)
        if self._pending is None:
            self._pending = torch.full_like(self._bounds, math.inf)
        index = self._of_class(labels)
        for row, values in zip(self._pending, (found, -found), strict=True):
            row.scatter_reduce_(0, index, values, "amin")
        clean = self._clean[rows]
        changed, beta = (labels != clean).to(found), self._beta(labels, found)
        if not self.warming_up:
            targets = self.targets(labels, guesses)[0]
        right = [(one.argmax(dim=1) == clean).to(found) for one in (guesses, targets)]
        self._sums[:6] += torch.stack([torch.ones_like(found), changed, beta, changed * beta, *right]).sum(dim=1)
