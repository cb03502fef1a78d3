"""One training on Ray Train, watched from the driver."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig
from ray.train.v2.api.config import LoggingConfig
from rich.console import Console

from lowland.platform.board import Failure, News, create_board
from lowland.platform.controllers import Trainer
from lowland.platform.failures import FailureWatch, describe, last_line
from lowland.platform.progress import ProgressDisplay
from lowland.platform.recipe import Recipe
from lowland.platform.runs import RunFolder
from lowland.platform.worker import work
from lowland.trainers.errors import RunError, UserError

COLLECTIVE_SECONDS = 900
"""A collective that waits longer fails the attempt; torch's 30 minutes are long for GPUs to stand idle."""
POLL_SECONDS = 0.5
"""Each look at the board costs some milliseconds of a core that a worker may be training on."""
BOARD_SECONDS = 10.0


def run_on_ray(recipe: Recipe, folder: RunFolder, task: dict[str, Any], console: Console) -> dict[str, Any]:
    """Trains on the connected cluster until the end, an error, or Ctrl-C.

    The first Ctrl-C (or SIGTERM) asks the training to save and end after its step; a second one, or the first
    before any step was made, ends this call at once.

    Args:
        recipe: the run.
        folder: its folder.
        task: what `lowland.platform.worker.work` takes, without `board`.
        console: where progress is shown.

    Returns:
        `FitResult` as data.

    Raises:
        UserError: the training met something that can be corrected.
        RunError: it failed.
        KeyboardInterrupt: Ctrl-C ended the wait.
    """
    board = create_board()
    fitting = Fitting(_trainer(recipe, folder, {**task, "board": board}))
    reader = _BoardReader(board)
    with ProgressDisplay(console) as display, interrupts() as interrupt:
        try:
            while not fitting.done.wait(POLL_SECONDS):
                interrupt.follow(_show(reader.news(interrupt.asked), display), display)
        except KeyboardInterrupt:
            board.read.remote(True)  # on a connection that stays, the workers are to end by themselves
            raise
        _show(reader.news(interrupt.asked, BOARD_SECONDS), display)
        last = _show(reader.news(interrupt.asked, BOARD_SECONDS), display)
    return _answer(fitting, last.failure, folder)


def _trainer(recipe: Recipe, folder: RunFolder, task: dict[str, Any]) -> Trainer:
    scaling = recipe.scaling
    resources = {"CPU": scaling.cpus_per_worker}
    if scaling.gpus_per_worker:
        resources["GPU"] = scaling.gpus_per_worker
    return Trainer(
        work,
        train_loop_config=task,
        torch_config=TorchConfig(timeout_s=COLLECTIVE_SECONDS),
        scaling_config=ScalingConfig(
            num_workers=scaling.workers,
            use_gpu=bool(scaling.gpus_per_worker),
            resources_per_worker=resources,
            placement_strategy=scaling.placement,
            accelerator_type=scaling.accelerator_type,
        ),
        run_config=RunConfig(
            # Ray silently resumes a name that was used before; the attempt makes it new each time.
            name=f"attempt-{task['attempt']}",
            storage_path=f"{folder.uri}/ray",
            failure_config=FailureConfig(max_failures=scaling.max_failures),
            logging_config=LoggingConfig(log_level="ERROR"),
            callbacks=[FailureWatch(task["board"], scaling.max_failures)],
        ),
    )


class Fitting:
    """`fit()` of a trainer or tuner in a thread, so that this one can show progress and hear Ctrl-C.

    In the main thread Ray would take SIGINT for itself and kill the workers before they save.
    """

    def __init__(self, trainer: Any) -> None:
        self.done = threading.Event()
        self.result: Any = None
        self.error: BaseException | None = None
        threading.Thread(target=self._run, args=(trainer,), name="lowland-fit", daemon=True).start()

    def _run(self, trainer: Any) -> None:
        try:
            self.result = trainer.fit()
        except BaseException as error:
            self.error = error
        finally:
            self.done.set()


class Interrupt:
    """What Ctrl-C and SIGTERM ask for; the signal's handler only notes it, since it may come at any moment."""

    def __init__(self) -> None:
        self.asked = False
        self._told = False
        self._trained = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The first signal is noted, the second ends the wait."""
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def follow(self, news: News, display: ProgressDisplay) -> None:
        """Says what the wish to stop leads to; before the first step there is nothing to save or to wait for."""
        self._trained = self._trained or news.progress is not None
        if self.asked and not self._trained:
            raise KeyboardInterrupt
        if self.asked and not self._told:
            self._told = True
            display.event("stopping after this step; a checkpoint is saved (Ctrl-C again stops at once)")


@contextmanager
def interrupts() -> Iterator[Interrupt]:
    """Hears SIGINT and SIGTERM, where this is the main thread."""
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    before = {number: signal.signal(number, interrupt.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _BoardReader:
    """Reads the board without ever waiting for it longer than asked to: one question is under way at a time."""

    def __init__(self, board: Any) -> None:
        self._board = board
        self._reply: Any = None

    def news(self, stop: bool, timeout: float = 0.0) -> News:
        """What is new; nothing if the board is slow, or gone: then training goes on unseen."""
        if self._reply is None:
            self._reply = self._board.read.remote(stop)
        if not ray.wait([self._reply], timeout=timeout)[0]:
            return News()
        reply, self._reply = self._reply, None
        try:
            news: News = ray.get(reply)
        except RayError:
            return News()
        return news


def _show(news: News, display: ProgressDisplay) -> News:
    for event in news.events:
        display.event(event)
    if news.progress is not None:
        display.update(news.progress)
    return news


def _answer(fitting: Fitting, failure: Failure | None, folder: RunFolder) -> dict[str, Any]:
    if failure is not None:
        raise (UserError if failure.user else RunError)(failure.message)
    if fitting.error is not None:
        raise RunError(_explain(fitting.error, folder)) from fitting.error
    answer: dict[str, Any] | None = fitting.result.return_value
    if answer is None:
        raise RunError(f"the workers gave no result; their output is in {folder.uri}/logs")
    return answer


def _explain(error: BaseException, folder: RunFolder) -> str:
    """Why the last attempt failed, and where the rest is."""
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    why = describe(failures) if failures else last_line(error)
    return f"{why}; all output of the workers is in {folder.uri}/logs"
