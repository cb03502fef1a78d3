"""The searches that make a comparison, and which of them are left; all of it from storage alone."""

import os
from collections.abc import Mapping
from typing import Any

from lowland.platform.comparison.plan import Kind, Plan
from lowland.platform.recipe import Recipe
from lowland.platform.recipe.dump import flatten
from lowland.platform.search.changes import changed
from lowland.platform.search.first_rung import first_rung
from lowland.platform.search.results import StudyResult, TrialResult, read_study
from lowland.platform.search.setting import Setting, read_setting
from lowland.platform.tracking.store import resolve_uri, sqlite_uri
from lowland.platform.urls import redact
from lowland.search_spaces import Choice, Space
from lowland.trainers.errors import UserError

SEED = "seed"
"""The parameter, and the recipe's field, of searches over seeds."""


def storage_of(plan: Plan) -> str:
    """The storage of a comparison's studies: its folder."""
    return f"{plan.storage.rstrip('/')}/{plan.name}"


def tuning(plan: Plan, arm: str) -> Setting:
    """The search over an arm's space."""
    held = plan.arms[arm]
    recipe = _placed(plan, plan.study(arm, "tuning"), held.recipe, held.chosen_by)
    return _setting(plan, recipe, held.space, trials=plan.trials, budget=plan.budget, policy=plan.policy)


def seeds(plan: Plan, arm: str, parameters: Mapping[str, Any]) -> Setting:
    """The trainings of an arm's best parameters, whole and with each seed, on held-out data of their own."""
    held = plan.arms[arm]
    recipe = _placed(plan, plan.study(arm, "seeds"), winner(plan, arm, parameters), held.reported)
    space = Space(description="Seeds", parameters={SEED: Choice(type="choice", values=plan.seeds)})
    return _setting(plan, recipe, space, trials=len(plan.seeds), budget=None, policy="none").with_(sampler="grid")


def winner(plan: Plan, arm: str, parameters: Mapping[str, Any]) -> Recipe:
    """An arm's recipe with the best parameters, otherwise as it was given."""
    recipe = tuning(plan, arm).bound().apply(parameters)
    given = plan.arms[arm].recipe
    data = {**recipe.model_dump(mode="json", exclude_unset=True), "evaluation": _evaluation(given)}
    return type(recipe).model_validate({**data, **_tracking(given), "storage": given.storage, "name": given.name})


def read_stage(plan: Plan, arm: str, kind: Kind) -> StudyResult | None:
    """What a search has come to; None before it began."""
    storage, name = storage_of(plan), plan.study(arm, kind)
    return read_study(storage, name) if read_setting(storage, name) is not None else None


def unfinished(plan: Plan, arm: str, kind: Kind) -> Setting | None:
    """The search as it is to begin or to go on; None if nothing is left of it, or if it has no winner to train.

    Raises:
        UserError: the seeds are those of a winner that is none any more.
    """
    there = read_setting(storage_of(plan), plan.study(arm, kind))
    searched = read_stage(plan, arm, "tuning")
    if kind == "tuning":
        return tuning(plan, arm) if there is None or searched is None else _go_on(plan, there, searched)
    if searched is None or searched.best is None:
        return None
    wanted = seeds(plan, arm, searched.best.parameters)
    if there is None:
        return wanted
    _refuse_another_winner(plan, arm, there, wanted)
    trained = read_study(storage_of(plan), there.name)
    if there.status == "finished" and not untrained(plan, trained):
        return None
    return there.with_(trials=len(plan.seeds) + failures(trained))


def failures(study: StudyResult) -> int:
    """Trials that were lost for a reason that is not their parameters'."""
    return len(failed(study))


def failed(study: StudyResult) -> list[TrialResult]:
    """Those trials."""
    return [trial for trial in study.trials if trial.status == "failed" and trial.target > 0]


def _go_on(plan: Plan, there: Setting, searched: StudyResult) -> Setting | None:
    """A search as it goes on; again if it found nothing since its trials were lost."""
    if there.status != "finished":
        return there
    if searched.best is not None or not failures(searched):
        return None
    return there.with_(trials=None if plan.trials is None else plan.trials + failures(searched))


def untrained(plan: Plan, trained: StudyResult) -> list[int]:
    """Seeds without a training that came to an end, be it by divergence."""
    done = {trial.parameters.get(SEED) for trial in trained.trials if trial.status in ("finished", "stopped")}
    return [seed for seed in plan.seeds if seed not in done]


def _refuse_another_winner(plan: Plan, arm: str, there: Setting, wanted: Setting) -> None:
    fields = [
        {path: value for path, value in flatten(setting.recipe).items() if not path.startswith("tracking.")}
        for setting in (there, wanted)
    ]
    if fields[0] != fields[1]:
        raise UserError(
            f"{plan.study(arm, 'tuning')} went on after {there.name} had been begun, and has another best trial: the "
            "seeds are not the winner's; compare under another --name"
        )


def _setting(
    plan: Plan, recipe: Recipe, space: Space, *, trials: int | None, budget: str | None, policy: str
) -> Setting:
    return Setting(
        recipe=recipe,
        space=space,
        metric=plan.metric,
        direction=plan.direction,
        trials=trials,
        budget=budget,
        parallel=None,
        sampler=plan.sampler,
        policy=policy,
        first_rung=first_rung(None, policy, space, recipe),
        seed=plan.seed,
        tracking_uri=redact(resolve_uri(recipe.tracking, recipe.storage)),
    )


def _placed(plan: Plan, name: str, recipe: Recipe, evaluation: Mapping[str, Any]) -> Recipe:
    """The recipe of a study: in the comparison's folder, evaluated on its part, and recorded beside the others."""
    data = changed(recipe, {f"evaluation.{field}": value for field, value in evaluation.items()})
    tracking = dict(data.get("tracking", {}))
    if tracking.get("uri") is None and not os.environ.get("MLFLOW_TRACKING_URI"):
        tracking["uri"] = sqlite_uri(plan.storage)
    return type(recipe).model_validate({**data, "name": name, "storage": storage_of(plan), "tracking": tracking})


def _evaluation(given: Recipe) -> dict[str, Any]:
    return given.evaluation.model_dump(mode="json", exclude_unset=True)


def _tracking(given: Recipe) -> dict[str, Any]:
    return {"tracking": given.tracking.model_dump(mode="json", exclude_unset=True)}
