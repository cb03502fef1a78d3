"""Which checkpoints stay."""

from hypothesis import given
from hypothesis import strategies as st

from lowland.trainers.checkpoints.retention import to_remove
from lowland.trainers.recipe import CheckpointConfig


def test_the_latest_and_the_best_stay() -> None:
    metrics = {10: 3.0, 20: 1.0, 30: 2.0, 40: 4.0, 50: 5.0}
    assert to_remove(metrics, CheckpointConfig(keep_last=2, keep_best=1)) == [10, 30]
    assert to_remove(metrics, CheckpointConfig(keep_last=1, keep_best=2)) == [10, 40]
    assert to_remove(metrics, CheckpointConfig(keep_last=1, keep_best=0)) == [10, 20, 30, 40]
    assert to_remove(metrics, CheckpointConfig(keep_last=1, keep_best=1, mode="max")) == [10, 20, 30, 40]
    assert to_remove(metrics, CheckpointConfig(keep_last=1, keep_best=2, mode="max")) == [10, 20, 30]


def test_a_checkpoint_without_the_metric_is_never_a_best_one() -> None:
    assert to_remove({10: None, 20: 1.0, 30: None}, CheckpointConfig(keep_last=1, keep_best=2)) == [10]


def test_a_metric_that_is_not_a_number_is_never_a_best_one() -> None:
    nan = float("nan")
    assert to_remove({10: nan, 20: 1.0, 30: nan, 40: 2.0}, CheckpointConfig(keep_last=1, keep_best=1)) == [10, 30]


@given(
    st.dictionaries(st.integers(0, 100), st.none() | st.floats(), max_size=12),
    st.integers(1, 5),
    st.integers(0, 5),
)
def test_never_more_than_asked_and_the_newest_always(
    metrics: dict[int, float | None], keep_last: int, keep_best: int
) -> None:
    kept = set(metrics) - set(to_remove(metrics, CheckpointConfig(keep_last=keep_last, keep_best=keep_best)))
    assert set(sorted(metrics)[-keep_last:]) <= kept
    assert len(kept) <= keep_last + keep_best
