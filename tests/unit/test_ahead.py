"""Steps that are taken early are the stream's, in its order, and so are its errors."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowland.trainers.ahead import StepsAhead
from lowland.trainers.tasks import StepInputs

CPU = torch.device("cpu")


def stream(taken: list[int], end: int) -> Iterator[StepInputs]:
    """So many steps of two micro-batches, then an error."""
    for number in range(end):
        taken.append(number)
        yield StepInputs([{"x": torch.tensor(number), "y": None}, {"x": torch.tensor(-number)}], 1, str(number))
    raise RuntimeError("no more")


@given(st.lists(st.integers(0, 3), max_size=6))
def test_whenever_they_are_fetched_steps_come_in_order_and_one_ahead_at_most(fetches: list[int]) -> None:
    taken: list[int] = []
    steps = StepsAhead(stream(taken, len(fetches)), CPU)
    for number, times in enumerate(fetches):
        step = steps.take()
        assert step.description == str(number)
        assert [int(micro["x"]) for micro in step.micro_batches] == [number, -number]
        for _ in range(times):
            steps.fetch()
        assert len(taken) == min(number + 1 + (times > 0), len(fetches))
    steps.fetch()  # the step that is under way ends as if nothing were wrong
    with pytest.raises(RuntimeError, match="no more"):
        steps.take()
