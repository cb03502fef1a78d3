"""Learning-rate schedules as functions of the step."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from lowland.trainers.recipe import ScheduleConfig
from lowland.trainers.schedules import lr_factor

NAMES = ("constant", "linear", "cosine", "wsd")


def factors(total: int, *, tokens_per_step: int = 1000, **fields: object) -> list[float]:
    config: ScheduleConfig = TypeAdapter(ScheduleConfig).validate_python(fields)
    return [lr_factor(config, step, total=total, tokens_per_step=tokens_per_step) for step in range(total)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("warmup", ["4 steps", "4%", "4k tokens", "3001 tokens"])
def test_warm_up_rises_in_equal_parts_to_the_peak(name: str, warmup: str) -> None:
    assert factors(100, name=name, warmup=warmup)[:4] == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize(
    ("fields", "last"),
    [
        ({"name": "constant"}, 1.0),
        ({"name": "linear"}, 0.0),
        ({"name": "linear", "final": 0.3}, 0.3),
        ({"name": "cosine"}, 0.1),
        ({"name": "cosine", "final": 0}, 0.0),
        ({"name": "wsd"}, 0.0),
        ({"name": "wsd", "final": 0.2, "shape": "linear"}, 0.2),
    ],
)
@pytest.mark.parametrize("warmup", ["0%", "10%"])
def test_ends_where_the_recipe_says(fields: dict[str, object], last: float, warmup: str) -> None:
    assert factors(200, warmup=warmup, **fields)[-1] == pytest.approx(last, abs=1e-12)


def test_linear_is_straight_and_cosine_is_half_way_in_the_middle() -> None:
    assert factors(4, name="linear") == pytest.approx([0.75, 0.5, 0.25, 0.0])
    assert factors(100, name="cosine", final=0.0)[49] == pytest.approx(0.5)


@pytest.mark.parametrize("cooldown", ["20%", "20 steps", "20k tokens"])
def test_wsd_holds_the_peak_until_its_cooldown(cooldown: str) -> None:
    found = factors(100, name="wsd", warmup="10%", cooldown=cooldown)
    assert found[9:80] == [1.0] * 71
    assert found[80] == pytest.approx(1 - math.sqrt(1 / 20))
    assert found[89] == pytest.approx(1 - math.sqrt(1 / 2))


def test_wsd_without_cooldown_is_constant() -> None:
    assert factors(10, name="wsd", cooldown="0%") == [1.0] * 10


@given(
    name=st.sampled_from(NAMES),
    total=st.integers(1, 300),
    warmup=st.integers(0, 100),
    cooldown=st.integers(0, 100),
    final=st.floats(0, 1),
)
def test_rises_then_never_rises_again_within_bounds(
    name: str, total: int, warmup: int, cooldown: int, final: float
) -> None:
    fields: dict[str, object] = {"name": name, "warmup": f"{warmup}%"}
    if name != "constant":
        fields["final"] = final
    if name == "wsd":
        fields["cooldown"] = f"{cooldown}%"
    found = factors(total, **fields)
    rise = round(warmup / 100 * total)
    assert all(0 <= factor <= 1 for factor in found)
    assert all(factor > 0 for factor in found[:rise]), "no step of the warm-up is lost"
    assert found[:rise] == sorted(found[:rise])
    falling = found[max(0, rise - 1) :]
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(falling))
    assert all(factor >= final - 1e-12 for factor in found[rise:] if name != "constant")


@given(total=st.integers(1, 200), step=st.integers(0, 199))
def test_depends_on_the_step_alone(total: int, step: int) -> None:
    """A resume asks in the middle, without what came before."""
    whole = factors(total, name="cosine", warmup="10%")
    config: ScheduleConfig = TypeAdapter(ScheduleConfig).validate_python({"name": "cosine", "warmup": "10%"})
    if step < total:
        assert lr_factor(config, step, total=total, tokens_per_step=7) == whole[step]
