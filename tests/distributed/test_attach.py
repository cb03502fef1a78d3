"""lowland's optimizers in a DeepSpeed loop that is not lowland's."""

import pytest
from support.full import full
from support.own_loops import refusal, refused_layout, refused_optimizer, small_model, trained, unsharded
from support.processes import Ranks

pytestmark = pytest.mark.processes


@pytest.mark.parametrize(("stage", "accumulation"), [(1, 2), (2, 1), (3, 2), full(1, 1), full(2, 2), full(3, 1)])
def test_a_loop_of_ones_own_equals_one_process(two: Ranks, stage: int, accumulation: int) -> None:
    found, expected, start = (
        two(trained, stage, accumulation, True)[0],
        unsharded(),
        dict(small_model().named_parameters()),
    )
    for name, weight in expected.items():
        apart = (found[name] - weight).norm() / (weight - start[name].detach()).norm()
        assert apart < 1e-5, name


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_without_attach_it_refuses(two: Ranks, stage: int) -> None:
    for message in two(refusal, stage):
        assert "has no layout" in message
        assert "lowland.trainers.engines.attach" in message


@pytest.mark.parametrize(
    ("stage", "fault"),
    [(2, "missing"), (3, "twice"), (3, "shifted"), full(3, "missing"), full(2, "twice"), full(2, "shifted")],
)
def test_a_layout_that_is_not_that_of_the_live_weights_is_refused_on_every_rank(
    two: Ranks, stage: int, fault: str
) -> None:
    """However it came about; what only rank 0 got wrong, rank 1 refuses too instead of waiting for it."""
    for message in two(refused_layout, stage, fault):
        assert "does not match the model's weights in" in message


def test_optimizers_that_cannot_be_attached_are_refused(one: Ranks) -> None:
    assert "SAM takes several gradients" in one(refused_optimizer, "sam")[0]
    assert "SGD is not one of lowland's" in one(refused_optimizer, "sgd")[0]
