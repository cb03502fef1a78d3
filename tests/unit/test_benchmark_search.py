"""The search benchmark in parts: which runs a part has, and how parts become one."""

import argparse
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from search_curves import CurveTable
from search_efficiency import cells, merged, numbers
from search_methods import COST_BASE
from search_report import after, left, report
from search_runs import Cell, Recorded, run, run_on


def options(tasks="1000", seeds="3", **more):
    given = {"lcbench": None, "curves": Path("a.parquet"), "every": 1, "methods": ["ours"], "workers": [1, 8]}
    return argparse.Namespace(**given, tasks=numbers(tasks), seeds=numbers(seeds), **more)


def keys(*given):
    return [cell.key for cell in cells(options(*given), frozenset())]


def test_parts_by_seed_and_task_make_the_whole():
    assert keys("1000", "2") == ["a/ours/1/0", "a/ours/8/0", "a/ours/1/1", "a/ours/8/1"]
    assert sorted(keys("1000", "0-1") + keys("1000", "2-2")) == sorted(keys())
    assert keys("1-4") == []
    assert [cell.key for cell in cells(options(), frozenset(keys("1000", "2")))] == keys("1000", "2-2")


def test_results_are_put_together(tmp_path):
    def write(name, *runs):
        kept = {
            f"{task}/{seed}": {"task": task, "method": "ours", "target": target, "cap": cap}
            for task, seed, target, cap in runs
        }
        (tmp_path / name).write_text(json.dumps(kept))
        return tmp_path / name

    first, second = write("a", ("x", 0, 1.5, 16), ("y", 0, 2.5, 16)), write("b", ("x", 1, 1.5, 16))
    assert sorted(merged([first, second])) == ["x/0", "x/1", "y/0"]
    with pytest.raises(ValueError, match=r"task x has target 1\.5 in one of the results, 1\.6 in another"):
        merged([first, write("c", ("x", 1, 1.6, 16))])
    with pytest.raises(ValueError, match="method ours has cap 16"):
        merged([first, write("c", ("x", 1, 1.5, 64))])


def test_what_is_missing_is_told_by_what_such_runs_took():
    done = [{"method": "ours", "workers": 1, "cpu_seconds": seconds} for seconds in (2.0, 4.0)]
    missing = [Cell("a", "ours", 1, seed) for seed in range(4)] + [Cell("a", "tpe", 1, 0)]
    assert left([], done, 2) == ""
    assert left(missing, done, 2).startswith("5 runs are missing: 6 s for 4 of them with 2 processes")
    assert "1 of a kind that was not measured" in left(missing, done, 2)


def table(folder):
    """The file of curves that fall towards (rate - 0.3)^2."""
    rates = [i / 40 for i in range(41)]
    columns = {
        "rate": rates,
        "curve": [[(rate - 0.3) ** 2 + 0.5 / step for step in range(1, 10)] for rate in rates],
        "seconds": [1.0 + rate for rate in rates],
    }
    path = folder / "table.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def test_what_is_chosen_is_the_best_of_those_that_came_furthest(tmp_path):
    curves = Recorded(CurveTable(table(tmp_path)))
    for rate, end in ((0.3, 1), (0.9, 3), (0.5, 3), (1.0, 9)):
        curves.values({"rate": rate}, 0, end)
    chosen = [(round(value - 0.5 / 9, 6), whole) for value, whole in map(curves.chosen, range(1, 5))]
    assert chosen == [(0.0, False), (0.36, False), (0.04, False), (0.49, True)]


def test_what_searches_have_after_few_trainings(tmp_path):
    path = str(table(tmp_path))
    runs = [
        run_on(path, Cell("table", method, 1, seed), 4, (0.0, {})) for method in ("ours", "random") for seed in range(2)
    ]
    assert all(4 <= one["chosen"][-1][0] < 5 for one in runs)
    assert [one["trials"] for one in runs[2:]] == [4, 4]

    def made(method, seed, *chosen):
        return {"task": "a", "method": method, "workers": 1, "seed": seed, "chosen": chosen}

    by_hand = [
        made("ours", 0, (0.5, 3.0, False), (1.9, 2.0, True), (4.0, 1.0, True)),
        made("ours", 1, (0.5, 4.0, False), (2.1, 1.0, True)),
        made("random", 0, (1.0, 6.0, True), (4.0, 4.0, True)),
        made("random", 1, (1.0, 6.0, True), (4.0, 2.0, True)),
    ]
    *_, ours, random = after(dict(enumerate(by_hand)), [2, 4]).splitlines()
    assert ours == "| ours | 1 | 1 | 2 | 1.00, 50% | 0.00, 100% |"
    assert random == "| random | 1 | 1 | 2 | 2.50 (+1.50 ± 0.50), 100% | 1.00 (+1.00 ± 0.50), 100% |"


def test_with_the_cost_in_mind_a_search_ends_at_the_best_of_tpe_or_with_its_seconds(tmp_path):
    path = table(tmp_path)
    curves = CurveTable(path)
    tpe, ours = (run(str(path), Cell("table", method, 1, 0), 6, (0.0, {})) for method in (COST_BASE, "cost: ours"))
    spent, best = tpe["costs"][-1][0], min(value for _, value in tpe["costs"])
    assert tpe["trials"] == 6
    assert spent <= 6 * 2 * curves.full
    assert ours["costs"][-1][1] <= best or ours["costs"][-1][0] >= spent
    assert all(value > best for _, value in ours["costs"][:-1]), "nothing is trained after TPE's best"
    assert "| cost: ours | 1 | 1 |" in report({"tpe": tpe, "ours": ours})
