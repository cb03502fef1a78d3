"""Exponential moving average of the weights, to evaluate and export at."""

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from lowland.optim.base import require
from lowland.optim.layers import evaluation_weights
from lowland.optim.layout import Fragment, Segment, local
from lowland.optim.rounding import round_to_bfloat16
from lowland.optim.wrapper import Wrapper

__all__ = ["EMA", "decay_of"]

SHADOW = "ema"


def decay_of(half_life: float) -> float:
    """The decay per step whose weight halves in so many steps: rho = 2^(-1 / half_life)."""
    return math.exp(-math.log(2) / half_life)


class EMA(Wrapper):
    """Averages the weights over the last steps; training goes on at the weights themselves.

    With decay rho = 2^(-1 / half_life) and the weights theta_t after step t:

        e_t = (1 - rho) / (1 - rho^t) * sum over i = 1..t of rho^(t-i) theta_i

    kept as e_t = e_{t-1} + w_t (theta_t - e_{t-1}), w_t = (1 - rho) / (1 - rho^t): the mean of all weights at
    first, the moving average after a few half-lives; the initial weights are not in it.

    Batch-size rule: what should stay the same is the half-life in samples.  With n samples a step it is
    half_life = samples / n steps, so that a batch kappa times as large has the decay rho^kappa.  Recipes take the
    half-life in samples or tokens and do that.

    Memory: 4 bytes per parameter, 2 in bfloat16, wherever the fragments lie or on the CPU.  No extra passes.

    Args:
        base: the optimizer inside.
        half_life: steps in which the weight of a step halves, > 0.
        dtype: of the average.  bfloat16 is rounded to either neighbour so that it is right on average.
        cpu: keep the average in host memory; costs a transfer of all weights each step.

    Raises:
        ValueError: an argument is outside its range; the message names it.

    Source: Busbridge et al., How to Scale Your EMA, 2023 (rule); Kingma and Ba, 2015 (correction of the start).
    """

    def __init__(
        self,
        base: Optimizer,
        half_life: float,
        *,
        dtype: Literal["float32", "bfloat16"] = "float32",
        cpu: bool = False,
    ) -> None:
        require(half_life > 0, f"half_life > 0 must hold, got {half_life}")
        require(dtype in ("float32", "bfloat16"), f"dtype must be float32 or bfloat16, got {dtype!r}")
        self.decay = decay_of(half_life)
        self._dtype, self._cpu = getattr(torch, dtype), cpu
        self._steps = 0
        super().__init__(base)

    def finish(self) -> None:
        """Takes the weights into the average, if the step was applied and is all of it."""
        applied = self._prepared and self._settled
        super().finish()
        if applied and not self.several_passes:
            self._average()

    def landed(self) -> bool:
        """Takes the weights into the average, after a step of several passes."""
        self._average()
        return False

    def evaluation_weights(self, fragment: Fragment) -> Tensor:
        """The average; before the first step the weights themselves."""
        shadow: Tensor | None = self.state.get(fragment.tensor, {}).get(SHADOW)
        if shadow is None or not self._steps:
            return self._weights(fragment)
        return shadow.to(fragment.tensor.device, torch.float32)

    @torch.no_grad()
    def _average(self) -> None:
        self._steps += 1
        share = (1 - self.decay) / (1 - self.decay**self._steps)
        for fragment in self.layout.fragments:
            weights = self._weights(fragment)
            # A parameter that came later has no average yet.
            known = SHADOW in self.state[fragment.tensor]
            shadow = self._create(self.param_groups[fragment.group], fragment)[SHADOW]
            for segment in fragment.segments:
                self._mix(segment, segment.of(shadow), segment.of(weights), share if known else 1.0)

    def _mix(self, segment: Segment, shadow: Tensor, weights: Tensor, share: float) -> None:
        weights = weights.to(shadow.device, torch.float32)
        if self._dtype == torch.float32:
            shadow.lerp_(weights, share)
            return
        key = self._steps * len(self.layout.parameters) + segment.parameter
        shadow.copy_(round_to_bfloat16(shadow.float().lerp_(weights, share), first=segment.offset, key=key))

    def _weights(self, fragment: Fragment) -> Tensor:
        """What is averaged: what the base would be evaluated at."""
        find = evaluation_weights(self.base)
        return find(fragment) if find else local(fragment.tensor.detach())

    def _create(self, group: Mapping[str, Any], fragment: Fragment) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[fragment.tensor]
        if SHADOW not in state:
            place = "cpu" if self._cpu else fragment.tensor.device
            state[SHADOW] = torch.zeros_like(fragment.tensor, dtype=self._dtype, device=place)
        return state

    def _shared(self) -> dict[str, float]:
        return {"steps": self._steps}

    def _load_shared(self, state: Mapping[str, float]) -> None:
        self._steps = int(state.get("steps", 0))
