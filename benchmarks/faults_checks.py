"""What must hold of a search that lost processes, read from what it left: its journal, its logs, and MLflow."""

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from faults_optimizer import MARK
from mlflow import MlflowClient

from lowland.platform.search.results import StudyResult, read_study
from lowland.platform.tracking.store import prepare_environment

MADE = re.compile(rf"{MARK} (\d+) at ([0-9.]+)")
SET_STATE, SET_VALUE = 6, 7
"""Numbers of records in Optuna's journal."""
FINISHED = 1
Place = tuple[int, int]
"""Trial and resource."""
Values = dict[Place, float]


@dataclass
class Found:
    """What a search left."""

    wrong: list[str] = field(default_factory=list)
    trials: int = 0
    values: int = 0
    """At the end, and those that the journal had at a kill and then no more."""
    lost: int = 0
    """Of these, how many are gone, are others than they were, or were written more than once."""
    segments: int = 0
    """Trained, repeated ones not counted."""
    repeated: int = 0
    """Parts of segments that were trained again."""
    steps: int = 0
    again: int = 0
    """Steps made once more."""
    runs: int = 0
    """MLflow runs of trials."""


def written(journal: Path) -> tuple[Values, set[int], Counter[Place]]:
    """Values, finished trials, and how often each value was written, by the journal's own records."""
    values, finished, times = Values(), set[int](), Counter[Place]()
    for line in journal.read_bytes().splitlines(keepends=True) if journal.is_file() else []:
        if not line.endswith(b"\n"):
            break  # being written
        record = json.loads(line)
        if record["op_code"] == SET_VALUE:
            place = record["trial_id"], record["step"]
            values[place] = record["intermediate_value"]
            times[place] += 1
        if record["op_code"] == SET_STATE and record["state"] == FINISHED:
            finished.add(record["trial_id"])
    return values, finished, times


def not_kept(
    values: Values, times: Counter[Place], before: list[tuple[Values, set[int]]]
) -> tuple[set[Place], set[Place]]:
    """Places whose value is gone, and those whose value is another than it was or was written more than once."""
    had = [item for earlier, _ in before for item in earlier.items()]
    gone = {place for place, _ in had if place not in values}
    other = {place for place, value in had if place not in gone and values[place] != value}
    return gone, other | {place for place, count in times.items() if count > 1}


def check(
    storage: Path, name: str, *, trials: int, workers: int, kills: int, before: list[tuple[Values, set[int]]]
) -> Found:
    """Everything.

    Args:
        storage: the folder of studies.
        name: of the study.
        trials: that it was to begin.
        workers: of each.
        kills: of processes.
        before: values and finished trials that the journal had at the moments of kills.
    """
    found, study = Found(), read_study(str(storage), name)
    values, finished, times = written(storage / name / "trials.journal")
    for had, ended in before:
        if not had.items() <= values.items() or not ended <= finished:
            found.wrong.append("what the journal had at a kill is not in it at the end")
    found.wrong += [f"the value of {place} was written {count} times" for place, count in times.items() if count > 1]
    begun = [trial for trial in study.trials if trial.target]
    found.trials, found.values = len(begun), sum(len(trial.curve) for trial in begun)
    found.segments = found.values
    gone, other = not_kept(values, times, before)
    found.values += len(gone)
    found.lost = len(gone | other)
    if len(begun) != trials:
        found.wrong.append(f"{len(begun)} trials began, not {trials}")
    states = Counter(trial.status for trial in begun)
    if set(states) - {"finished", "paused"} or not states["finished"]:
        found.wrong.append(f"trials ended {dict(states)}")
    _check_ledger(study, found)
    for trial in begun:
        logs, places = storage / name / f"trial-{trial.number:04}" / "logs", sorted(trial.curve)
        _check_steps(logs, places, kills, found)
        found.wrong += [
            f"{logs.parent.name}: rank {rank} made other steps than rank 0"
            for rank in range(1, workers)
            if set(steps_of(logs, rank)) != set(steps_of(logs, 0))
        ]
    _check_tracking(storage, study, found)
    return found


def _check_ledger(study: StudyResult, found: Found) -> None:
    counted = sum(trial.reached for trial in study.trials) / study.full
    ledger = study.ledger
    if ledger is None or abs(ledger.trainings - counted) > 1e-9:
        found.wrong.append(f"the ledger has {ledger and ledger.trainings} trainings, the values {counted}")


def steps_of(logs: Path, rank: int) -> list[int]:
    """The steps that a rank of a trial made, in order of time."""
    text = "".join(file.read_text(errors="replace") for file in sorted(logs.glob(f"*-rank-{rank}.log")))
    return [step for _, step in sorted((float(when), int(step)) for step, when in MADE.findall(text))]


def _check_steps(logs: Path, places: list[int], kills: int, found: Found) -> None:
    """No step is missing; what was made again lies within one segment each time."""
    made = steps_of(logs, 0)
    if set(made) != set(range(1, places[-1] + 1)):
        found.wrong.append(f"{logs.parent.name}: steps {sorted(set(made))} for values at {places}")
    back = [(last, following) for last, following in pairwise(made) if following <= last]
    for last, following in back:
        if not any(start < following and last <= end for start, end in pairwise([0, *places])):
            found.wrong.append(f"{logs.parent.name}: step {last} was followed by {following}, beyond one segment")
    if len(back) > kills:
        found.wrong.append(f"{logs.parent.name}: begun again {len(back)} times after {kills} kills")
    found.repeated += len(back)
    found.steps += len(made)
    found.again += len(made) - len(set(made))


def _check_tracking(storage: Path, study: StudyResult, found: Found) -> None:
    """One run of the study, one of each trial, each value and each step's loss once, all closed."""
    prepare_environment()
    client = MlflowClient(f"sqlite:///{storage}/mlflow.db")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()], max_results=10_000)
    parents = [run for run in runs if run.data.tags.get("lowland.study") == study.name]
    ids = {run.info.run_id for run in parents}
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") in ids]
    found.runs = len(children)
    if len(parents) != 1:
        found.wrong.append(f"{len(parents)} MLflow runs of the study")
    counts = Counter(int(run.data.tags["lowland.trial"]) for run in children)
    expected = Counter(trial.number for trial in study.trials if trial.target)
    if counts != expected:
        found.wrong.append(f"MLflow runs by trial {dict(counts)}")
    states = Counter(run.info.status for run in [*parents, *children])
    if set(states) != {"FINISHED"}:
        found.wrong.append(f"MLflow runs ended {dict(states)}")
    for run in children:
        number = int(run.data.tags["lowland.trial"])
        curve = next(trial.curve for trial in study.trials if trial.number == number)
        losses = sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, study.metric))
        if losses != sorted(curve.items()):
            found.wrong.append(f"trial {number}: MLflow has {losses}, the study {sorted(curve.items())}")
        steps = sorted(m.step for m in client.get_metric_history(run.info.run_id, "train/loss"))
        if steps != list(range(1, max(curve) + 1)):
            found.wrong.append(f"trial {number}: MLflow has the losses of steps {steps}")
