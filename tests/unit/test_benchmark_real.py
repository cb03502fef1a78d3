"""The benchmark of real searches: its recipes and spaces are right, and what its tables say."""

import argparse
from math import inf
from pathlib import Path

import pytest
from real_report import Search, accuracy_of_best, best_after, losses, reached
from real_tasks import EPOCHS, TASKS, recipe, space
from search_real import Cell, Results, cells, numbers

from lowland.platform.recipe import read_recipe
from lowland.platform.search.choices import make_policy
from lowland.platform.search.setting import TICKS
from lowland.platform.search.space import BoundSpace
from lowland.search_spaces import Space

POINTS = [(1.0, "a", 3.0, 0.1), (2.0, "b", 2.0, 0.3), (4.0, "a", 2.5, 0.2), (8.0, "b", 1.0, 0.2)]


def search(method, seed, points, task="digits"):
    return Search(task, method, seed, 10.0, points, trials=2, whole=2)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_recipes_and_spaces_go_together(task):
    base = read_recipe(recipe(task, Path("data"), Path("runs"), seed=1, cpus=1, gpus=1))
    bound = BoundSpace(Space.model_validate(space(task)), base)
    assert 4 <= len(bound.distributions()) <= 6
    assert base.length.value == EPOCHS * base.evaluation.every.value
    first = make_policy("promotion", TICKS).first
    assert first * EPOCHS == TICKS, "the first rung is the first evaluation"


def test_best_after_epochs_and_seconds():
    assert [best_after(POINTS, epochs=n) for n in (0, 1, 3, 9)] == [inf, 3.0, 2.0, 1.0]
    assert [best_after(POINTS, seconds=s) for s in (0.5, 2.0, 7.9, 8.0)] == [inf, 2.0, 2.0, 1.0]
    assert accuracy_of_best(POINTS) == 0.2
    assert accuracy_of_best([]) is None


def test_reaching_a_target_counts_epochs_of_all_trials():
    assert reached(POINTS, 2.0) == (2.0, 2.0)
    assert reached(POINTS, 1.5) == (4.0, 8.0)
    assert reached(POINTS, 0.5) == (inf, inf)


def test_trials_that_came_to_their_end():
    assert search("stock", 0, POINTS).trained_whole == 2
    assert search("stock", 0, POINTS[:3]).trained_whole == 1


def test_tables_compare_with_the_stock_side_seed_by_seed():
    better = [(at, trial, loss - 0.5, accuracy) for at, trial, loss, accuracy in POINTS]
    text = losses([search("lowland", seed, better) for seed in (0, 1)] + [search("stock", s, POINTS) for s in (0, 1)])
    quality, reaching = text.split("\n\n")
    row = next(line for line in quality.splitlines() if line.startswith("| lowland"))
    assert row.endswith("| 0.2000 | -0.5 ± 0 | -0.5 ± 0 |")
    assert "| digits | stock's end: 1 ± 0 | lowland | 2/2 | 4 | 1/1.0 | 8 | 1/1.2 |" in reaching
    later = losses([search("lowland", 0, POINTS[:3]), search("stock", 0, POINTS)])
    assert "| lowland | 0/1 | not |  | not |  |" in later
    nothing = losses([search("lowland", 0, []), search("stock", 0, POINTS)])
    assert "| inf |  |  |  |" in nothing, "no number is no difference"


def test_seconds_from_decisions_to_first_steps_are_told_where_they_are_known():
    timed = Search("digits", "lowland", 0, 10.0, POINTS, trials=2, whole=2, starts=[0.5, 0.25, 4.0])
    told = losses([timed, search("stock", 0, POINTS)]).split("\n\n")[-1]
    assert "digits, lowland: 3 parts of trainings began 0.50 s after" in told
    assert "95 % of them within 0.50 s, all within 4.00 s" in told


def options(out, **changes):
    given = {
        "tasks": ["digits"],
        "methods": ["lowland", "stock"],
        "seeds": numbers("1-2"),
        "seconds": 9.0,
        "cpus": None,
        "gpus_per_trial": 1.0,
        "fixed_warmup": False,
    }
    return argparse.Namespace(
        **{**given, "parallel": 2, "jobs": 1, "cpus_per_trial": 1, "budget": 1, "out": out, **changes},
    )


def test_a_later_call_goes_on_and_refuses_other_settings(tmp_path):
    assert [cell.key for cell in cells(options(tmp_path))][:2] == ["digits-lowland-1", "digits-stock-1"]
    given = options(tmp_path)
    Results(given).add(Cell("digits", "stock", 1), {"points": POINTS, "trials": 2, "starts": [0.5]}, given, "here")
    again = Results(given)
    assert list(again.cells) == ["digits-stock-1"]
    assert again.searches()[0].trained_whole == 0
    assert again.searches()[0].starts == [0.5]
    for other in ({"seconds": 10.0}, {"gpus_per_trial": 0.25}, {"fixed_warmup": True}):
        with pytest.raises(SystemExit, match="give another --out"):
            Results(options(tmp_path, **other))
    assert Results(options(tmp_path, seconds=10.0, budget=0)).searches()


def test_the_warm_up_may_be_left_to_the_recipe():
    for task in TASKS.values():
        assert set(space(task)["parameters"]) - set(space(task, warmup=False)["parameters"]) == {"schedule.warmup"}
