"""The search benchmark in parts: which runs a part has, and how parts become one."""

import argparse
import json
from pathlib import Path

import pytest
from search_efficiency import cells, merged, numbers


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
