"""DiLoCo: an outer Nesterov step on what many inner steps moved (Douillard et al., arXiv 2311.08105)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from lowland.optim.base import require
from lowland.optim.layout import Fragment, Layout, local
from lowland.optim.ranks import Ranks
from lowland.optim.wrapper import Wrapper

__all__ = ["DiLoCo"]

ANCHOR, VELOCITY = "anchor", "outer_momentum"


class DiLoCo(Wrapper):
    """Every H steps of the base one step of Nesterov momentum, from the weights of the last one.

    With anchor theta, inner weights theta_m of worker group m = 1..M after H inner steps from theta, outer
    momentum v, outer learning rate eta and outer decay mu:

        Delta  = (1 / M) * sum over m of (theta - theta_m)
        v      <- mu v + Delta
        theta  <- theta - eta (Delta + mu v)          all groups go on from theta

    The base's state persists, in each group its own.  eta = 1 and mu = 0 with one group is the base alone, to the bit;
    mu = 0 is Lookahead with alpha = eta.  Evaluation and export are at theta: what was moved since the last outer
    step is not in it, so train a multiple of H steps.

    A base with momentum goes on moving as before after an outer step.  With few inner steps, less than its momentum
    remembers (1 / (1 - beta)), it and the outer momentum can drive each other apart: take H >= 10, or mu = 0.5.

    With several groups the ranks of a group exchange gradients and those of different groups do not: whoever makes the
    gradients sees to that (the engine torch does).  Weights are averaged over all ranks at each outer step.

    Memory: 8 bytes per parameter (anchor, outer momentum).  Messages: with several groups one all-reduce of the weights
    every H steps.  No extra passes.

    Args:
        base: the inner optimizer.
        every: inner steps between two outer steps (H), >= 1.
        lr: outer learning rate (eta), > 0; about 0.4 for one group, 0.6 for two to four, 0.8 for eight.  It depends
            on the number of groups, and not on the size of the model.
        momentum: decay of the outer momentum (mu), in [0, 1).
        groups: worker groups (M), >= 1, each of equally many consecutive ranks of `process_group`.
        process_group: all ranks that hold the same pieces, in whatever group; None is all ranks.

    Raises:
        ValueError: an argument is outside its range; the message names it.
        RuntimeError: at the first outer step: the ranks cannot be cut into so many groups.

    Source: Charles et al., Communication-Efficient Language Model Training Scales Reliably and Robustly,
    arXiv 2503.09799 (defaults).
    """

    def __init__(
        self,
        base: Optimizer,
        *,
        every: int = 30,
        lr: float = 0.4,
        momentum: float = 0.9,
        groups: int = 1,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        require(every >= 1, f"every >= 1 must hold, got {every}")
        require(lr > 0, f"lr > 0 must hold, got {lr}")
        require(0 <= momentum < 1, f"momentum in [0, 1) must hold, got {momentum}")
        require(groups >= 1, f"groups >= 1 must hold, got {groups}")
        self.groups = groups
        self._every, self._lr, self._momentum = every, lr, momentum
        self._process_group = process_group
        self._steps = 0
        super().__init__(base)

    def evaluation_weights(self, fragment: Fragment) -> Tensor:
        """Those of the last outer step."""
        anchor: Tensor | None = self.state.get(fragment.tensor, {}).get(ANCHOR)
        return fragment.tensor.detach() if anchor is None else anchor

    def landed(self) -> bool:
        """Counts a step of several passes, and takes the outer step if it is due."""
        self._steps += 1
        due = self._steps % self._every == 0
        if due:
            self._outer_step(self.layout.fragments)
        return due

    def _settle(self) -> None:
        if not self.several_passes:
            self._steps += 1

    def _step(self) -> None:
        for fragment in self._shown():
            self._create({}, fragment)
        super()._step()

    def _after(self, layout: Layout, fragments: Sequence[Fragment]) -> None:
        if not self.several_passes and self._steps % self._every == 0:
            # A parameter without a gradient now may have moved before.
            self._outer_step(self._shown())

    @torch.no_grad()
    def _outer_step(self, fragments: Sequence[Fragment]) -> None:
        for fragment in fragments:
            state, weights = self._create({}, fragment), local(fragment.tensor.data)
            anchor, velocity = local(state[ANCHOR]), local(state[VELOCITY])
            outer_step_(weights, self._average(weights), anchor, velocity, lr=self._lr, momentum=self._momentum)

    def _average(self, weights: Tensor) -> Tensor:
        """The mean of the groups' weights; the same to the bit on every rank, as all-reduce gives it."""
        if self.groups == 1:
            return weights
        size = dist.get_world_size(self._process_group) if dist.is_initialized() else 1
        if size % self.groups:
            raise RuntimeError(f"groups ({self.groups}) must divide the number of ranks, which is {size}")
        total = weights.float().clone()
        Ranks(self._process_group, weights.device).add(total)
        return total.div_(size)

    def _create(self, group: Mapping[str, Any], fragment: Fragment) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[fragment.tensor]
        if ANCHOR not in state:
            state[ANCHOR] = fragment.tensor.detach().clone().float()
        if VELOCITY not in state:
            state[VELOCITY] = torch.zeros_like(fragment.tensor, dtype=torch.float32)
        return state

    def _shared(self) -> dict[str, float]:
        return {"steps": self._steps}

    def _load_shared(self, state: Mapping[str, float]) -> None:
        self._steps = int(state.get("steps", 0))


def outer_step_(
    weights: Tensor, average: Tensor, anchor: Tensor, velocity: Tensor, *, lr: float, momentum: float
) -> None:
    """One outer step, in place: `weights` and `anchor` become the new weights; `average` are those of the groups."""
    delta = anchor - average
    velocity.mul_(momentum).add_(delta)
    # theta - eta Delta, written so that eta = 1 gives the average itself to the bit.
    anchor.copy_(average + (1 - lr) * delta - lr * momentum * velocity)
    weights.copy_(anchor)
