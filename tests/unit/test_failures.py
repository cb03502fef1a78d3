"""What is restarted, what is not, and what Ctrl-C leads to; without a cluster."""

import io
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError
from rich.console import Console

from lowland.platform import failures
from lowland.platform.board import Board, Failure, News
from lowland.platform.failures import describe, not_repeated
from lowland.platform.progress import ProgressDisplay
from lowland.platform.ray_run import Interrupt
from lowland.trainers.errors import DataError, NonFiniteError, RunError
from lowland.trainers.monitor import Progress

STEP = Progress(step=1, total_steps=9, tokens=1, loss=None, tokens_per_second=None, phase="training")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (DataError("a shard"), Failure(True, "a shard")),
        (NonFiniteError("step 3"), Failure(False, "step 3")),
        (KeyError("x"), Failure(False, "rank 1 failed: KeyError: 'x'; its traceback is in the log")),
        (RuntimeError("Connection closed by peer"), None),
        (OSError("stale file handle"), None),
    ],
)
def test_only_what_would_repeat_is_not_restarted(error: Exception, expected: Failure | None):
    assert not_repeated(error, 1, "the log") == expected


def test_a_rank_that_died_is_named_before_those_that_its_death_made_fail():
    lost = RuntimeError("Traceback ...\nRuntimeError: Connection closed by peer")
    assert describe({0: lost, 1: ActorDiedError()}) == "the worker of rank 1 died"
    assert describe({0: lost}) == "rank 0 lost its connection to another worker"
    assert describe({0: OSError("no space\nleft"), 1: lost}) == "rank 0 failed: left"


def test_failures_are_counted_and_restarts_end_with_them(monkeypatch: pytest.MonkeyPatch):
    told: list[str] = []
    known = SimpleNamespace(lost=SimpleNamespace(remote=lambda event: told.append(event)))
    monkeypatch.setattr(failures.ray, "get", lambda useless, timeout: useless)
    watch = failures.FailureWatch(known, max_failures=2)
    for _ in range(3):
        watch.after_exception(None, {1: ActorDiedError()})
    assert told == [
        "the worker of rank 1 died; restarting from the last checkpoint (failure 1 of at most 2)",
        "the worker of rank 1 died; restarting from the last checkpoint (failure 2 of at most 2)",
        "the worker of rank 1 died; failure 3, and scaling.max_failures is 2",
    ]
    known.lost.remote = lambda event: True
    with pytest.raises(RunError, match="would repeat"):
        watch.after_exception(None, {1: KeyError("x")})


def test_the_board_keeps_the_first_failure_and_tells_events_once():
    board = Board()
    assert not board.lost("rank 1 died")
    assert board.read(stop=False) == News(events=["rank 1 died"])
    board.fail(Failure(True, "first"))
    board.fail(Failure(False, "second"))
    assert board.lost("rank 0 failed"), "of no use to restart"
    assert board.read(stop=True) == board.read(stop=True) == News(failure=Failure(True, "first"))
    assert board.post(STEP, []), "the wish to stop"


def test_ctrl_c_before_a_step_ends_the_wait_and_later_is_told_once():
    console = Console(file=io.StringIO(), width=200)
    display = ProgressDisplay(console)
    early = Interrupt()
    early.follow(News(), display)
    early.handle(2, None)
    with pytest.raises(KeyboardInterrupt):
        early.follow(News(), display)

    late = Interrupt()
    late.follow(News(progress=STEP), display)
    late.handle(2, None)
    late.follow(News(), display)
    late.follow(News(), display)
    assert console.file.getvalue().count("stopping after this step") == 1  # type: ignore[attr-defined]
    with pytest.raises(KeyboardInterrupt):
        late.handle(2, None)
