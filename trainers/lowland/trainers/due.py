"""At which steps of a training something is due beside the step itself."""

import time

from lowland.trainers.recipe import Amount, TrainConfig
from lowland.trainers.tasks import Sizes


class Due:
    """What a recipe wants after which steps.

    Args:
        config: the recipe.
        sizes: what steps and epochs are.
    """

    def __init__(self, config: TrainConfig, sizes: Sizes) -> None:
        self._sizes, self._checkpoints = sizes, config.checkpoints.every
        self.total_steps = self.in_steps(config.length)
        self._log = config.log_every
        self._evaluation = self._between(config.evaluation.every)
        self._measures = self._between(config.measures.every) if config.measures is not None else None
        self._saved_at = time.monotonic()

    def record(self, step: int) -> bool:
        """Whether metrics are recorded after a step."""
        return step % self._log == 0

    def evaluation(self, step: int) -> bool:
        """Whether held-out data are evaluated after a step."""
        return _is_multiple(step, self._evaluation)

    def measures(self, step: int) -> bool:
        """Whether the recipe's measures are taken after a step."""
        return _is_multiple(step, self._measures)

    def checkpoint(self, step: int, *, evaluations: int, evaluated: bool) -> bool:
        """Whether a checkpoint is due by count.

        Args:
            step: that was done.
            evaluations: that there were.
            evaluated: whether the last of them came after this step.
        """
        every = self._checkpoints
        if every is None or every.unit == "minutes":
            return False
        if every.unit == "evaluations":
            return evaluated and _is_multiple(evaluations, int(every.value))
        return _is_multiple(step, int(every.value))

    def checkpoint_by_time(self) -> bool:
        """Whether one is due by this process's clock, which others need not share."""
        every = self._checkpoints
        return every is not None and every.unit == "minutes" and time.monotonic() - self._saved_at >= every.value * 60

    def saved(self) -> None:
        """A checkpoint was saved now."""
        self._saved_at = time.monotonic()

    def in_steps(self, amount: Amount) -> int:
        """An amount of training as steps."""
        sizes = self._sizes
        return amount.in_steps(tokens_per_step=sizes.tokens_per_step, steps_per_epoch=sizes.steps_per_epoch)

    def _between(self, every: Amount | None) -> int | None:
        return None if every is None else self.in_steps(every)


def _is_multiple(count: int, every: int | None) -> bool:
    return every is not None and count % every == 0
