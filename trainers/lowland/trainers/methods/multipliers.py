"""Lagrange multipliers: how they follow the violations of their constraints.

min f subject to g <= 0 and h = 0 becomes: descend f + mu' (g, h) in the weights, ascend it in mu, and keep the mu of
inequalities at 0 or above.  nuPI (Sohrabi et al., *On PI controllers for updating Lagrange multipliers in constrained
optimization*, 2024) takes a smoothed difference of the violations in, which damps the oscillation of plain ascent.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class NuPIState:
    """What nuPI keeps of each multiplier, float64 [m]."""

    multipliers: Tensor
    smoothed: Tensor
    """xi"""
    begun: Tensor
    """1 where a violation has been seen."""


def nupi_step(
    state: NuPIState,
    violations: Tensor,
    seen: Tensor,
    *,
    lr: float,
    ki: float,
    kp: float,
    nu: float,
    start: Literal["zeros", "first"],
) -> NuPIState:
    """One step of all multipliers, not yet projected.

        xi_t = nu xi_{t-1} + (1 - nu) e_t
        mu_{t+1} = mu_t + lr (ki e_t + kp (xi_t - xi_{t-1}))

    kp = 0 is gradient ascent.  nu = beta, ki = a / (1 - beta), kp = -a beta / (1 - beta)^2 with xi_0 = 0 is Polyak's
    heavy ball.

    Args:
        state: of the last step.
        violations: e_t, float64 [m].
        seen: bool [m]: whose violation this step measured; the others stay as they are.
        lr: rate.
        ki: integral gain, on the violation.
        kp: proportional gain, on the change of its average.
        nu: of the average, in (-1, 1).
        start: xi_0 is 0 (`zeros`), or the first violation (`first`), by which the first step is ki e_1 alone.
    """
    before = state.smoothed
    if start == "first":
        before = torch.where(state.begun > 0, before, violations)
    smoothed = nu * before + (1 - nu) * violations
    moved = state.multipliers + lr * (ki * violations + kp * (smoothed - before))
    return NuPIState(
        torch.where(seen, moved, state.multipliers),
        torch.where(seen, smoothed, state.smoothed),
        torch.where(seen, torch.ones_like(state.begun), state.begun),
    )


@dataclass(frozen=True)
class AdamState:
    """What Adam keeps of each multiplier, float64 [m]."""

    multipliers: Tensor
    first: Tensor
    second: Tensor
    steps: Tensor


def adam_ascent(
    state: AdamState, violations: Tensor, seen: Tensor, *, lr: float, betas: tuple[float, float], eps: float = 1e-8
) -> AdamState:
    """One ascent step by Adam, not yet projected; arguments as of `nupi_step`."""
    steps = state.steps + 1
    first = betas[0] * state.first + (1 - betas[0]) * violations
    second = betas[1] * state.second + (1 - betas[1]) * violations.square()
    away = (first / (1 - betas[0] ** steps)) / ((second / (1 - betas[1] ** steps)).sqrt() + eps)
    moved = AdamState(state.multipliers + lr * away, first, second, steps)
    return AdamState(
        *(
            torch.where(seen, getattr(moved, name), getattr(state, name))
            for name in ("multipliers", "first", "second", "steps")
        )
    )


class Multipliers:
    """The multipliers of m constraints and their optimizer; the same on every rank, since violations are.

    Args:
        inequality: for each constraint whether it is one, and so has a multiplier of at least 0.
        optimizer: `nupi`, or `adam`; gradient ascent is nuPI without kp.
        lr: rate.
        ki, kp, nu, start: of nuPI.
        betas: of Adam.
    """

    def __init__(
        self,
        inequality: list[bool],
        *,
        optimizer: Literal["nupi", "adam"] = "nupi",
        lr: float = 0.01,
        ki: float = 1.0,
        kp: float = 0.0,
        nu: float = 0.0,
        start: Literal["zeros", "first"] = "first",
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        self._inequality = torch.tensor(inequality)
        zeros = torch.zeros(len(inequality), dtype=torch.float64)
        self._lr, self._ki, self._kp, self._nu, self._start, self._betas = lr, ki, kp, nu, start, betas
        self._state: NuPIState | AdamState
        if optimizer == "nupi":
            self._state = NuPIState(zeros, zeros, zeros)
        else:
            self._state = AdamState(zeros, zeros, zeros, zeros)

    @property
    def values(self) -> Tensor:
        """float64 [m], on the CPU."""
        return self._state.multipliers

    def step(self, violations: Tensor, seen: Tensor | None = None) -> None:
        """Follows the violations (positive is violated), float64 [m]; those not `seen` stay."""
        seen = torch.ones(len(violations), dtype=torch.bool) if seen is None else seen
        violations = torch.where(seen, violations, torch.zeros_like(violations))
        state = self._state
        if isinstance(state, NuPIState):
            state = nupi_step(
                state, violations, seen, lr=self._lr, ki=self._ki, kp=self._kp, nu=self._nu, start=self._start
            )
        else:
            state = adam_ascent(state, violations, seen, lr=self._lr, betas=self._betas)
        kept = torch.where(self._inequality, state.multipliers.clamp(min=0), state.multipliers)
        self._state = replace(state, multipliers=kept)

    def state(self) -> dict[str, Tensor]:
        """Everything that `load` needs."""
        return {f"dual/{name}": getattr(self._state, name) for name in type(self._state).__dataclass_fields__}

    def load(self, state: dict[str, Tensor]) -> None:
        """Restores `state`."""
        names = type(self._state).__dataclass_fields__
        self._state = type(self._state)(*(state[f"dual/{name}"] for name in names))
