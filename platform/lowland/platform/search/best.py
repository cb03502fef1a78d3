"""The trial that a study recommends, and its recipe."""

from lowland.platform.recipe import read_recipe
from lowland.platform.recipe.dump import dump
from lowland.platform.search.results import StudyResult, TrialResult
from lowland.trainers.errors import UserError


def best_recipe(result: StudyResult, number: int | None = None) -> str:
    """A trial's recipe as YAML for `lowland train`, with a run name of its own.

    Args:
        result: the study.
        number: the trial; None is the best one, if the study compares by one metric.

    Raises:
        UserError: there is no such trial, none has a value, the study compares by several metrics, it has no recipe,
            or its recipe is not valid any more.
    """
    trial = chosen(result, number)
    if result.setting is None:
        raise UserError(f"study {result.name!r} was not begun by `lowland tune`: it has no recipe")
    recipe = result.setting.bound().apply(trial.parameters)
    name = f"{result.name}-trial-{trial.number:04}"
    return dump(read_recipe({**recipe.model_dump(mode="json", exclude_unset=True), "name": name}))


def chosen(result: StudyResult, number: int | None) -> TrialResult:
    """The trial of a number; without one, the best.

    Raises:
        UserError: there is none, or several are best, each in its own way.
    """
    if number is not None:
        found = next((trial for trial in result.trials if trial.number == number), None)
        if found is None:
            raise UserError(f"--trial {number}: study {result.name!r} has {len(result.trials)} trials, counted from 0")
        return found
    if result.best is None:
        bounds = result.setting.constraints if result.setting is not None else ()
        kept = f" that keeps {', '.join(bounds)}" if bounds and result.ranked else ""
        raise UserError(f"study {result.name!r} has no trial with a value of {result.metric}{kept} yet")
    if len(result.objectives) > 1:
        front = ", ".join(str(trial.number) for trial in result.front) or "none was trained whole yet"
        raise UserError(
            f"study {result.name!r} compares by {len(result.objectives)} metrics: choose a trial of the front by "
            f"--trial ({front})"
        )
    return result.best
