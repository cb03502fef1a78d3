"""`tune`: a search on a cluster, from the first check to the best recipe."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console

from lowland.platform.cluster import connect, own_cpus
from lowland.platform.hub_data import fetch_data
from lowland.platform.recipe import Recipe
from lowland.platform.runs import RunFolder
from lowland.platform.search.setting import Setting, refuse_if_led
from lowland.platform.tracking.store import check_store, resolve_uri

if TYPE_CHECKING:
    from lowland.platform.search.driver import SearchOutcome

ENVIRONMENT = {
    # Tune writes three files a trial and a TensorBoard log otherwise; MLflow has all of it.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Its frame of text about the search algorithm.
    "RAY_AIR_NEW_OUTPUT": "0",
    # Its warnings are of trials that it would train itself.
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "1000000",
}


def tune(setting: Setting, *, address: str | None, console: Console) -> "SearchOutcome":
    """Searches, beginning or going on from storage.

    Args:
        setting: of `begin`, or as its folder keeps it.
        address: the Ray cluster to join; None takes RAY_ADDRESS, else starts one on this machine.
        console: where progress is shown.

    Raises:
        UserError: something can be corrected.
        RunError: the search failed.
    """
    refuse_if_led(setting)
    setting.bound()
    with ready([setting.recipe], address, setting.parallel, console) as (uri, experiment_id):
        from lowland.platform.search.workers import Workers

        with Workers(setting.recipe, str(setting.folder / "ray"), setting.parallel, setting.trials) as workers:
            from lowland.platform.search.driver import SearchDriver  # takes seconds, in which workers come up

            return SearchDriver(setting, uri, experiment_id, console, workers).run()


@contextmanager
def ready(
    recipes: Sequence[Recipe], address: str | None, parallel: int | None, console: Console
) -> Iterator[tuple[str, str]]:
    """A cluster that is checked for searches over these recipes.

    Args:
        recipes: of one tracking store and experiment.
        address: the Ray cluster to join; None takes RAY_ADDRESS, else starts one on this machine.
        parallel: trainings at a time, if that is fixed.
        console: where it is told that data are fetched.

    Returns:
        The URI of the MLflow store, and the experiment's id.

    Raises:
        UserError: something can be corrected; nothing was started.
    """
    tracking, scalings = recipes[0].tracking, [recipe.scaling for recipe in recipes]
    uri = resolve_uri(tracking, recipes[0].storage)
    os.environ |= {name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()}
    most = max(int(scaling.workers * scaling.cpus_per_worker * (parallel or 1)) for scaling in scalings)
    cpus = max(own_cpus(), most + 1)
    gpus = None if any(scaling.gpus_per_worker for scaling in scalings) else 0
    timeout = max(scaling.start_timeout for scaling in scalings)
    with ThreadPoolExecutor(1) as background:
        experiment = background.submit(check_store, uri, tracking.experiment)
        with connect(address, cpus=cpus, gpus=gpus, start_timeout=timeout) as cluster:
            from lowland.platform.preflight import preflight

            experiment_id = experiment.result()
            for recipe in recipes:
                preflight(recipe, cluster, RunFolder.open(recipe.storage, recipe.name), uri)
            for recipe in recipes:
                fetch_data(recipe, cluster, console)
            yield uri, experiment_id
