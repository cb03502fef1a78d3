"""The queue between a search and its workers: every job ends once, as what it was."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from lowland.platform.search import dispatcher as module
from lowland.platform.search.dispatcher import Dispatcher
from lowland.platform.search.group import outcome_of, why_lost
from lowland.platform.search.jobs import Job, Outcome, Resources
from lowland.trainers.errors import DataError, NonFiniteError, RunError
from lowland.trainers.monitor import Progress

ONE = Resources(1, 1.0, 0, None, "PACK")
TWO = Resources(2, 1.0, 0, None, "PACK")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TAKE_SECONDS", 0.05)
    monkeypatch.setattr(module, "TOGETHER_SECONDS", 0.05)


def job(name: str, resources: Resources = ONE) -> Job:
    return Job(resources, {"recipe": {"name": name}})


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 20))


async def submitted(dispatcher: Dispatcher, *jobs: Job) -> list[asyncio.Task[Outcome]]:
    tasks = [asyncio.create_task(dispatcher.run(each)) for each in jobs]
    await asyncio.sleep(0)
    return tasks


def test_jobs_go_in_order_to_groups_with_their_resources():
    async def scenario() -> None:
        dispatcher = Dispatcher(0)
        tasks = await submitted(dispatcher, job("a"), job("b", TWO), job("c"))
        assert (await dispatcher.look()).demand == {ONE: 2, TWO: 1}
        assert await dispatcher.take(0, TWO) == job("b", TWO)
        assert [await dispatcher.take(1, ONE), await dispatcher.take(2, ONE)] == [job("a"), job("c")]
        assert await dispatcher.take(3, ONE) is None
        assert (await dispatcher.look()).busy == {0, 1, 2}
        for group in range(3):
            await dispatcher.done(group, Outcome("reached", result={"group": group}))
        outcomes = [await task for task in tasks]
        assert [(o.end, o.result["group"], o.attempts) for o in outcomes] == [
            ("reached", 1, 1),
            ("reached", 0, 1),
            ("reached", 2, 1),
        ]

    run(scenario())


def test_a_waiting_group_hears_of_a_new_job_at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "TAKE_SECONDS", 60.0)

    async def scenario() -> None:
        dispatcher = Dispatcher(0)
        taking = asyncio.create_task(dispatcher.take(0, ONE))
        await asyncio.sleep(0.01)
        await submitted(dispatcher, job("a"))
        assert await taking == job("a")

    run(scenario())


def test_a_job_whose_workers_die_is_begun_again_as_often_as_allowed():
    async def scenario() -> None:
        dispatcher = Dispatcher(2)
        (task,) = await submitted(dispatcher, job("a"))
        for group in range(3):
            assert await dispatcher.take(group, ONE) == job("a")
            await dispatcher.trouble(group, "rank 1 failed: disk full")
            await dispatcher.trouble(group, "rank 0 lost its connection")
            await dispatcher.lost(group, "a worker died")
        outcome = await task
        assert (outcome.end, outcome.attempts) == ("failed", 3)
        events = (await dispatcher.look()).events
        assert events == ("a: rank 1 failed: disk full; begun again",) * 2
        assert (await dispatcher.look()).events == ()
        assert outcome.message == "rank 1 failed: disk full; failure 3, and scaling.max_failures is 2"

    run(scenario())


def test_another_group_gets_the_job_of_one_that_is_lost_before_what_waits():
    async def scenario() -> None:
        dispatcher = Dispatcher(1)
        lost, waits = await submitted(dispatcher, job("a"), job("b"))
        await dispatcher.take(0, ONE)
        await dispatcher.lost(0, "no node has room")
        assert await dispatcher.take(1, ONE) == job("a")
        await dispatcher.lost(1, "no node has room")
        assert (await lost).end == "failed"
        assert not waits.done()

    run(scenario())


def test_a_group_that_is_gone_takes_nothing_more_not_even_by_a_question_that_it_left(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "TAKE_SECONDS", 60.0)

    async def scenario() -> None:
        dispatcher = Dispatcher(1)
        asked = asyncio.create_task(dispatcher.take(0, ONE))
        await asyncio.sleep(0.01)
        await dispatcher.lost(0, "the worker of rank 0 died")
        assert await asked is None
        await submitted(dispatcher, job("a"))
        assert await dispatcher.take(0, ONE) is None
        assert await dispatcher.closed(0)
        assert await dispatcher.take(1, ONE) == job("a")
        await dispatcher.done(0, Outcome("reached", result={"of": "workers that outlived their controller"}))
        assert (await dispatcher.look()).busy == {1}
        assert (await dispatcher.look()).came == {0, 1}

    run(scenario())


def test_a_job_that_another_process_asks_for_again_is_the_same_job():
    async def scenario() -> None:
        dispatcher = Dispatcher(0)
        (first,) = await submitted(dispatcher, job("a"))
        assert await dispatcher.take(0, ONE) == job("a")
        first.cancel()  # the process that waited died
        (again,) = await submitted(dispatcher, job("a"))
        assert (await dispatcher.look()).demand == {}
        await dispatcher.done(0, Outcome("reached"))
        assert (await again).end == "reached"
        assert (await dispatcher.run(job("a"))).end == "reached", "it died when the job had ended"
        await submitted(dispatcher, job("a", TWO))
        assert (await dispatcher.look()).demand == {TWO: 1}, "the next segment of the trial is another job"

    run(scenario())


def test_the_first_error_counts_and_ranks_stay_only_if_all_met_it():
    async def scenario() -> None:
        dispatcher = Dispatcher(0)
        (task,) = await submitted(dispatcher, job("a"))
        await dispatcher.take(0, ONE)
        diverged = [dispatcher.met(0, rank, Outcome("diverged", f"rank {rank}"), 2) for rank in range(2)]
        assert await asyncio.gather(*diverged) == [True, True]
        assert (await task).message == "rank 0"
        (task,) = await submitted(dispatcher, job("b"))
        await dispatcher.take(0, ONE)
        assert not await dispatcher.met(0, 1, Outcome("out of memory"), 2), "rank 0 waits for it in a collective"
        assert (await task).end == "out of memory"
        assert await dispatcher.take(0, ONE) is None, "the job is not repeated"

    run(scenario())


def test_a_stop_ends_what_waits_and_asks_what_trains():
    async def scenario() -> None:
        dispatcher = Dispatcher(5)
        trains, waits = await submitted(dispatcher, job("a"), job("b"))
        await dispatcher.take(0, ONE)
        progress = Progress(1, 9, 10, None, None, "training")
        assert not await dispatcher.post(0, progress, [])
        assert (await dispatcher.look()).progress == {"a": progress}
        await dispatcher.stop()
        assert (await waits).end == "interrupted"
        assert await dispatcher.post(0, None, [])
        assert not trains.done(), "its training saves first"
        await dispatcher.lost(0, "its workers died while they were to save")
        assert (await trains).end == "interrupted"
        assert (await dispatcher.run(job("c"))).end == "interrupted"

    run(scenario())


def test_a_closed_group_ends_after_its_job():
    async def scenario() -> None:
        dispatcher = Dispatcher(0)
        await submitted(dispatcher, job("a"))
        await dispatcher.take(0, ONE)
        await dispatcher.close(0)
        assert not await dispatcher.closed(0)
        await dispatcher.done(0, Outcome("reached"))
        assert await dispatcher.take(0, ONE) is None
        assert await dispatcher.closed(0)

    run(scenario())


@pytest.mark.parametrize(
    ("error", "end"),
    [
        (NonFiniteError("step 3"), "diverged"),
        (DataError("no shard"), "refused"),
        (RunError("no room"), "failed"),
        (KeyError("layer"), "failed"),
        (RuntimeError("Connection closed by peer"), None),
    ],
)
def test_errors_are_results_failures_or_reasons_to_begin_again(error: Exception, end: str | None):
    outcome = outcome_of(error, 1, "runs/a/logs/1.log")
    assert (outcome and outcome.end) == end


def test_what_ended_a_group_is_told_in_a_line():
    from ray.exceptions import ActorDiedError
    from ray.train import WorkerGroupError

    assert why_lost(ActorDiedError()) == "the controller of its workers died"
    worker = WorkerGroupError("1 worker failed", {1: RuntimeError("Traceback ...\ndisk full")})
    assert why_lost(worker) == "rank 1 failed: disk full"
    assert why_lost(RuntimeError("no room\nfor 9 CPUs")) == "for 9 CPUs"


def test_a_device_that_is_full_is_a_result():
    import torch

    outcome = outcome_of(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), 1, "log")
    assert outcome == Outcome("out of memory", "rank 1: CUDA out of memory. Tried to allocate 2 GiB")
