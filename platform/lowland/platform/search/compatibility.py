"""Which metrics, bounds, samplers and policies go together in one search."""

from collections.abc import Iterator, Sequence

from lowland.platform.resource_checks import reader_cpus
from lowland.platform.search.explore import Explorer
from lowland.platform.search.objectives import COSTS, Objective
from lowland.platform.search.setting import TICKS, Setting
from lowland.search_spaces import Unbounded
from lowland.trainers.errors import UserError

SEVERAL = ("tpe", "nsga2", "gp", "random", "quasi-random", "grid")
"""Samplers that take several metrics."""
BLIND = ("cmaes", "random", "quasi-random", "grid")
"""Samplers that do not see which trials broke a bound."""
PBT = "pbt"
LOCAL = "pareto"
"""The sampler that looks around trials, and so needs no ends."""


def read_objectives(metrics: Sequence[str], direction: str) -> list[Objective]:
    """What a search compares, the first one first.

    Args:
        metrics: each as `Objective.parse` reads it.
        direction: of the only metric, if it says nothing itself.

    Raises:
        UserError: one is written wrongly, or there twice.
    """
    if direction not in ("minimize", "maximize"):
        raise UserError(f"--direction {direction}: minimize or maximize")
    if len(metrics) == 1 and ":" not in metrics[0]:
        return [Objective.parse(f"{metrics[0]}:{direction}")]
    if direction != "minimize":
        raise UserError("--direction is of a single metric: write the direction after the metric, as acc:maximize")
    found = [Objective.parse(text) for text in metrics]
    names = [objective.metric for objective in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"--metric {twice} is given twice")
    if not found:
        raise UserError("--metric: a search needs one")
    return found


def check(setting: Setting) -> None:
    """Refuses what does not go together.

    Raises:
        UserError: says what, and what would.
    """
    if reader_cpus(setting.recipe):
        raise UserError("data.reader: ray: trainings of a search fill the cluster's CPUs; set data.reader: local")
    _check_costs(setting)
    check_budget(setting)
    _check_unbounded(setting)
    if setting.others:
        _check_several(setting)
    if setting.policy == PBT:
        _check_population(setting)
    elif setting.perturb or setting.intervals != Setting.model_fields["intervals"].default:
        raise UserError("--perturb and --intervals are of --policy pbt alone: leave them out, or add it")


def notes(setting: Setting) -> Iterator[str]:
    """What is allowed and better known, a line each."""
    if setting.bounds and setting.sampler in BLIND:
        yield f"note: --sampler {setting.sampler} does not see constraints: it proposes where they break as anywhere"
    open_ended = _unbounded(setting)
    if open_ended and (setting.limit is None or setting.limit.device_seconds is None):
        yield f"note: {', '.join(open_ended)} may grow, and costs with it; only a --budget in hours or money ends that"
    if setting.policy == PBT:
        names = Explorer(setting.bound(), setting.perturb).names
        yield (
            f"a population of {setting.trials}: after each of {setting.intervals} intervals copies of the best replace "
            f"the worst quarter; copies change {', '.join(names)}"
        )
    improving = [b.metric for b in setting.bounds if b.metric.startswith(("eval/", "train/")) and b.metric not in COSTS]
    if improving and setting.policy != "none":
        yield (
            f"note: {improving[0]} gets better by training, and a trial that breaks a constraint where trials are "
            "compared is stopped there; with --policy none constraints are seen at the end only"
        )


def _check_costs(setting: Setting) -> None:
    names = [setting.metric, *(o.metric for o in setting.others), *(b.metric for b in setting.bounds)]
    if "gpu-hours" in names and not setting.recipe.scaling.gpus_per_worker:
        raise UserError("--metric gpu-hours: trainings of this recipe hold no GPU; take cpu-hours or seconds")


def check_budget(setting: Setting) -> None:
    """Refuses a budget that is written wrongly or never spent.

    Raises:
        UserError: it is.
    """
    limit = setting.limit
    if limit is not None and limit.unit == "gpu-hours" and not setting.recipe.scaling.gpus_per_worker:
        raise UserError(f"--budget {setting.budget}: trainings of this recipe hold no GPU; take cpu-hours or seconds")


def _check_unbounded(setting: Setting) -> None:
    names = _unbounded(setting)
    if names and setting.sampler != LOCAL:
        raise UserError(
            f"--sampler {setting.sampler} needs the ends of every range; without any: {', '.join(names)} (type: "
            f"unbounded); take --sampler {LOCAL}, which looks around the front of quality and cost, or give low and "
            "high (type: float or integer, log: true)"
        )


def _unbounded(setting: Setting) -> list[str]:
    return [entry.name for entry in setting.space.entries() if isinstance(entry.parameter, Unbounded)]


def _check_several(setting: Setting) -> None:
    names = ", ".join([setting.metric, *(other.metric for other in setting.others)])
    if setting.sampler not in SEVERAL:
        raise UserError(f"--sampler {setting.sampler} takes one metric, and there are {names}; take {_any(SEVERAL)}")
    if setting.policy != "none":
        raise UserError(
            f"--policy {setting.policy} compares trials before their end by one metric, and there are {names}: what is "
            "cheap or small there need not be at the end; with several metrics take --policy none, which trains all "
            "trials whole, or make all but one of them a --constraint"
        )


def _check_population(setting: Setting) -> None:
    if setting.trials is None or setting.trials < 2:
        raise UserError("--policy pbt: --trials is the size of the population; give at least 2, better 8 or more")
    if not 2 <= setting.intervals <= TICKS:
        raise UserError(f"--intervals {setting.intervals}: between 2 and {TICKS}")


def _any(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + f" or {names[-1]}"
