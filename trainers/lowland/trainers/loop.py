"""The training loop: steps, evaluations, checkpoints, and when to stop."""

import math
import time
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from lowland.trainers.ahead import StepsAhead
from lowland.trainers.checkpoints import Checkpointer, TrainState
from lowland.trainers.data.images.elsewhere import Elsewhere
from lowland.trainers.due import Due
from lowland.trainers.engines import Engine, StepOutcome, UnreadOutcome
from lowland.trainers.errors import NonFiniteError
from lowland.trainers.gradients import StepGradients
from lowland.trainers.measures import TrainingMeasures
from lowland.trainers.meter import Meter
from lowland.trainers.monitor import Monitor, Progress
from lowland.trainers.recipe import TrainConfig
from lowland.trainers.schedules import lr_factor
from lowland.trainers.tasks import StepInputs, Task
from lowland.trainers.world import World


@dataclass(frozen=True)
class _Taken:
    """A step of which it is not settled what became of it."""

    number: int
    """Of the step, from 1."""
    loss: Tensor
    """This rank's sum of losses before it."""
    weight: int
    description: str
    """Of its batch."""
    outcome: StepOutcome | UnreadOutcome


class Loop:
    """One training, step by step; every rank runs the same loop and takes the same branches."""

    def __init__(
        self,
        config: TrainConfig,
        task: Task,
        engine: Engine,
        checkpointer: Checkpointer,
        world: World,
        monitor: Monitor,
        until: Fraction = Fraction(1),
        elsewhere: Elsewhere | None = None,
    ) -> None:
        self._elsewhere = elsewhere
        self._config, self._task, self._engine = config, task, engine
        self._checkpointer, self._world, self._monitor = checkpointer, world, monitor
        self._due = Due(config, task.sizes)
        self.total_steps = self._due.total_steps
        measures = config.measures
        self._measures = TrainingMeasures(config, measures, task, engine, world) if measures is not None else None
        self._end = math.ceil(until * self.total_steps)
        self.interrupted = False
        self.last_checkpoint: str | None = None
        self._state = TrainState()
        self._started = time.monotonic()
        self._seconds_before = 0.0
        self._losses: list[tuple[Tensor, int]] = []
        self._taken: _Taken | None = None
        self._gradients = StepGradients(task, engine, world)
        self._meter = Meter(
            world.device,
            tokens_per_step=task.sizes.tokens_per_step,
            examples_per_step=task.sizes.examples_per_step,
            flops_per_step=task.sizes.flops_per_step,
            world_size=world.size,
        )

    def run(self, state: TrainState) -> TrainState:
        """Trains from `state` to `until`, or until the monitor asks to stop; returns where it stands."""
        self._state = state
        self._seconds_before, self._started = state.seconds, time.monotonic()
        steps = self._task.steps(state.examples, self._elsewhere)
        self._ahead = StepsAhead(steps, self._world.device)
        try:
            if state.step == 0:
                self._measure()
            self._meter.reset()
            while self._state.step < self._end and not self.interrupted:
                with self._meter.phase("data"):
                    inputs = self._ahead.take()
                self._step(inputs)
                self._after_step()
        finally:
            steps.close()
        self._count_seconds()
        return self._state

    def _step(self, inputs: StepInputs) -> None:
        state, sizes = self._state, self._task.sizes
        methods = self._task.methods
        read_at, length = methods.schedule(state.step, self.total_steps)
        factor = lr_factor(self._config.schedule, read_at, total=length, tokens_per_step=sizes.tokens_per_step)
        methods.begin_step(state.step)
        loss, outcome = self._passes(inputs, factor)
        self._taken = _Taken(state.step + 1, loss, inputs.weight, inputs.description, outcome)
        if methods.names or isinstance(outcome, StepOutcome):
            self._settle()  # methods act on the weights before the next forward pass
        self._task.stepped(self._engine, applied=outcome.applied)
        self._meter.step()
        self._update(
            step=state.step + 1,
            examples=state.examples + sizes.examples_per_step,
            tokens=state.tokens + sizes.tokens_per_step,
            metrics={**self._state.metrics, "train/lr": self._config.optimizer.lr * factor},
        )

    def _passes(self, inputs: StepInputs, lr_factor: float) -> tuple[Tensor, StepOutcome | UnreadOutcome]:
        """Gradients and step; several times for optimizers that look around.  Returns the loss before the step."""
        first: Tensor | None = None
        evaluations = self._gradients.evaluations(inputs)
        while True:
            with self._meter.phase("forward_backward", on_device=True):
                loss = self._gradients.take(inputs, evaluations)
            self._settle()  # the step before, whose outcome is there while the device has enough to do
            if first is None and self._measures is not None and (self._measures_due(1) or self._state.step == 1):
                # In the second step, whenever it is due: that there is no momentum is to be told early.
                self._measures.see_gradients(self._state.step)
            if self._state.step + 1 < self._end:
                with self._meter.phase("data"):  # an upper bound: the GPU computes in the meantime
                    self._ahead.fetch()
                self._ahead.send()
            with self._meter.phase("optimizer", on_device=True):
                outcome = self._engine.step(lr_factor)
            first = loss if first is None else first
            if not outcome.again:
                return first, outcome

    def _settle(self) -> None:
        """Finds out what became of the latest step, if that is open; before the next one is taken and anything is told.

        Until then a GPU has the next forward and backward pass to do.  Were it read at once, the GPU would wait for all
        that the host does from the gradient norm to that pass.
        """
        taken, self._taken = self._taken, None
        if taken is None:
            return
        outcome = taken.outcome.read()
        self._update(metrics={**self._state.metrics, "train/grad_norm": outcome.grad_norm})
        if outcome.applied:
            self._task.methods.after_step(self._engine)
            self._losses.append((taken.loss, taken.weight))
            self._update(consecutive_skips=0)
        else:
            self._skip(taken)

    def _after_step(self) -> None:
        """Records, evaluates and saves what is due, and sees whether to stop."""
        step, ended = self._state.step, self._state.step == self._end
        if ended or self._due.record(step):
            with self._meter.phase("logging"):
                self._record()
        stop, save_by_time = self._world.agree([self._monitor.stop_requested(), self._due.checkpoint_by_time()])
        self.interrupted = stop and not ended
        with self._meter.pause():
            evaluated = (ended or self._due.evaluation(step)) and not self.interrupted
            if evaluated:
                self._evaluate()
            if evaluated and step == self.total_steps:
                self._show_pictures()
            if self._measures_due(0) and not self.interrupted:
                self._measure()
            by_count = self._due.checkpoint(step, evaluations=self._state.evaluations, evaluated=evaluated)
            if ended or stop or save_by_time or by_count:
                self._save()
        self._show("training")

    def _record(self) -> None:
        """Records the mean training loss and the performance since the last record."""
        self._settle()
        weight = sum(weight for _, weight in self._losses)
        values = self._meter.read()
        if weight:
            total = self._world.sum([float(torch.stack([loss for loss, _ in self._losses]).sum())])[0]
            values["train/loss"] = total / weight
        self._losses = []
        state, sizes = self._state, self._task.sizes
        if sizes.tokens_per_step:
            values["train/tokens"] = float(state.tokens)
        values["train/epoch"] = state.step / sizes.steps_per_epoch
        values["train/skipped_steps"] = float(state.skipped)
        values |= {f"optimizer/{name}": value for name, value in self._engine.optimizer_metrics().items()}
        values |= self._task.methods.metrics()
        self._update(metrics={**state.metrics, **values})
        self._monitor.metrics(state.step, {**values, **_latest(state.metrics, "train/grad_norm", "train/lr")})

    def _evaluate(self) -> None:
        self._settle()
        self._show("evaluating")
        metrics = self._task.evaluate(self._engine)
        self._update(metrics={**self._state.metrics, **metrics}, evaluations=self._state.evaluations + 1)
        self._monitor.metrics(self._state.step, metrics)
        # Those of single classes or groups, one level deeper, are too many for a line.
        shown = ", ".join(
            f"{name.removeprefix('eval/')} {v:.4f}" for name, v in metrics.items() if name.count("/") == 1
        )
        self._monitor.event(f"step {self._state.step}: held-out {shown}")

    def _measures_due(self, ahead: int) -> bool:
        """Whether there is something to measure after so many more steps."""
        step = self._state.step + ahead
        return self._measures is not None and (step == self._end or self._due.measures(step))

    def _measure(self) -> None:
        if self._measures is None:
            return
        self._settle()
        self._show("measuring")
        started = time.monotonic()
        values = {**self._measures.take(self._state.step), "perf/measuring_seconds": time.monotonic() - started}
        self._update(metrics={**self._state.metrics, **values})
        self._monitor.metrics(self._state.step, values)

    def _show_pictures(self) -> None:
        if self._world.rank == 0:
            for name, picture in self._task.pictures().items():
                self._monitor.artifact(name, picture)

    def _save(self) -> None:
        self._settle()
        self._show("saving")
        self._count_seconds()
        self.last_checkpoint = self._checkpointer.save(self._state)
        self._due.saved()
        self._monitor.event(f"step {self._state.step}: checkpoint {self.last_checkpoint}")

    def _skip(self, taken: _Taken) -> None:
        """Counts a step whose gradient was not finite, and stops if the recipe says so."""
        rule, state = self._config.nonfinite, self._state
        self._update(skipped=state.skipped + 1, consecutive_skips=state.consecutive_skips + 1)
        finite = self._world.all(math.isfinite(float(taken.loss)))
        where = f"step {taken.number}: {'a gradient' if finite else 'the loss'} is not finite ({taken.description})"
        if rule.policy == "skip" and self._state.consecutive_skips < rule.max_consecutive:
            self._monitor.event(f"{where}; the step is skipped")
            return
        raise NonFiniteError(
            f"{where}; no weight was changed. Last good checkpoint: {self._checkpointer.newest() or 'none'}. "
            "Lower optimizer.lr, lengthen schedule.warmup, or set nonfinite.policy: skip"
        )

    def _update(self, **changes: object) -> None:
        self._state = self._state.model_copy(update=changes)

    def _count_seconds(self) -> None:
        self._update(seconds=self._seconds_before + time.monotonic() - self._started)

    def _show(self, phase: str) -> None:
        state = self._state
        unit = "tokens" if self._task.sizes.tokens_per_step else "samples"
        loss, speed = (state.metrics.get(name) for name in ("train/loss", f"perf/{unit}_per_second"))
        self._monitor.progress(Progress(state.step, self.total_steps, state.tokens, loss, speed, phase, unit))


def _latest(metrics: dict[str, float], *names: str) -> dict[str, float]:
    return {name: metrics[name] for name in names if name in metrics}
