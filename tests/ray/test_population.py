"""A population on a cluster: a copy goes on from its parent's weights, with its own rate, as a run that says so."""

from pathlib import Path
from typing import Any

import pytest
from support.ray_runs import client, recipe, screen, written

from lowland.platform.search.results import read_study
from lowland.platform.search.start import begin
from lowland.platform.search.tune import tune

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

SECTIONS: dict[str, Any] = {
    "length": "51 steps",
    "schedule": {"name": "constant"},
    "evaluation": {"every": None},
    "checkpoints": {"every": None, "export": False},
    "tracking": {"system_metrics": False},
    "scaling": {"workers": 1},
}
SPACE = """
description: A rate
parameters:
  optimizer.lr: {type: float, low: 3.0e-4, high: 3.0e-2, log: true}
"""


def test_a_copy_goes_on_from_its_parents_weights(cluster: None, text: Path, tmp_path: Path):
    (tmp_path / "rate.yaml").write_text(SPACE)
    base = recipe(text, tmp_path / "runs", "population", **SECTIONS)
    options: dict[str, Any] = {"trials": 2, "parallel": "1", "sampler": "random", "policy": "pbt", "intervals": 2}
    console = screen()
    outcome = tune(begin(base, [str(tmp_path / "rate.yaml")], **options), address=None, console=console)
    assert outcome.status == "finished", written(console)
    found = read_study(base.storage, "population")
    assert [trial.begun_at for trial in found.trials] == [0, 0, 26]
    child = found.trials[2]
    assert child.origin is not None
    parent, loser = found.trials[child.origin.parent], found.trials[child.origin.replaces]
    assert parent.curve[26] < loser.curve[26]
    assert [set(parent.curve), set(loser.curve), set(child.curve)] == [{26, 51}, {26}, {51}]
    assert child.parameters["optimizer.lr"] != parent.parameters["optimizer.lr"]
    assert found.ledger is not None
    assert found.ledger.steps == 2 * 51, "what the parent trained is counted once"

    store = client(tmp_path / "runs")
    runs = store.search_runs([store.get_run(outcome.parent_run_id).info.experiment_id])
    by_trial = {run.data.tags["lowland.trial"]: run for run in runs if "lowland.trial" in run.data.tags}
    assert (len(runs), len(by_trial)) == (4, 3)
    run_of_parent, run_of_child = by_trial[str(parent.number)], by_trial["2"]
    tags = run_of_child.data.tags
    assert tags["lowland.forked_from"] == run_of_parent.info.run_id
    assert (tags["lowland.forked_from_trial"], tags["lowland.forked_at_step"]) == (str(parent.number), "26")
    assert by_trial[str(loser.number)].data.tags["lowland.trial.fate"] == "stopped"
    assert {run.info.status for run in runs} == {"FINISHED"}

    def losses(run: Any) -> dict[int, float]:
        return {m.step: m.value for m in store.get_metric_history(run.info.run_id, "train/loss")}

    of_parent, of_child = losses(run_of_parent), losses(run_of_child)
    assert min(of_child) == 27
    assert of_child[27] == of_parent[27], "the same weights and the same rows"
    assert of_child[29] != of_parent[29], "and from there another rate"
