"""Learning rates as pure functions of the step."""

import math

from lowland.trainers.recipe.schedule import (
    ConstantSchedule,
    CosineSchedule,
    LinearSchedule,
    ScheduleConfig,
    WSDSchedule,
)


def lr_factor(config: ScheduleConfig, step: int, *, total: int, tokens_per_step: int) -> float:
    """The learning rate of a step as a fraction of the peak.

    The warm-up rises linearly and reaches the peak at step `warmup - 1`, so that no step has rate 0;
    every decay reaches `final` at the last step.

    Args:
        config: the schedule.
        step: from 0 to total - 1.
        total: steps of the whole training.
        tokens_per_step: for amounts in tokens.
    """
    warmup = config.warmup.in_steps(tokens_per_step=tokens_per_step, steps_per_epoch=0, total_steps=total)
    if step < warmup:
        return (step + 1) / warmup
    match config:
        case ConstantSchedule():
            return 1.0
        case LinearSchedule():
            return _between(config.final, 1 - _progress(step, warmup, total))
        case CosineSchedule():
            return _between(config.final, (1 + math.cos(math.pi * _progress(step, warmup, total))) / 2)
        case WSDSchedule():
            cooldown = config.cooldown.in_steps(tokens_per_step=tokens_per_step, steps_per_epoch=0, total_steps=total)
            done = _progress(step, total - cooldown, total) if step >= total - cooldown else 0.0
            return _between(config.final, 1 - (done if config.shape == "linear" else math.sqrt(done)))


def _progress(step: int, start: int, total: int) -> float:
    """How much of the steps from `start` to the last is done after this one, in (0, 1]."""
    return min(1.0, (step - start + 1) / max(1, total - start))


def _between(final: float, factor: float) -> float:
    return final + (1 - final) * factor
