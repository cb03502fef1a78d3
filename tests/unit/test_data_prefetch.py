"""Items that several threads make ahead arrive in order, errors in their place, and no thread stays."""

import threading
import time

import pytest

from lowland.trainers.data.prefetch import built_ahead


@pytest.mark.parametrize("depth", [0, 1, 4])
def test_items_come_in_their_order_whichever_is_ready_first(depth):
    def build(index):
        time.sleep(0.02 if index % 3 == 0 else 0)
        return index

    items = built_ahead(build, depth)
    assert [next(items) for _ in range(10)] == list(range(10))
    items.close()


def test_no_more_than_the_depth_is_made_ahead():
    made = []
    items = built_ahead(lambda index: made.append(index) or index, 3)
    next(items)
    items.close()
    assert len(made) <= 4


def test_an_error_is_raised_after_the_items_before_it():
    def build(index):
        if index == 2:
            raise ValueError("spoiled")
        return index

    items = built_ahead(build, 4)
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(ValueError, match="spoiled"):
        next(items)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lowland-prefetch")]
