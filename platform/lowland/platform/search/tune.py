"""`tune`: a search on a cluster, from the first check to the best recipe."""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from rich.console import Console

from lowland.platform.cluster import connect
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
    recipe = setting.recipe
    setting.bound()
    uri = resolve_uri(recipe.tracking, recipe.storage)
    os.environ |= {name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()}
    scaling = recipe.scaling
    cpus = max(os.cpu_count() or 1, int(scaling.workers * scaling.cpus_per_worker * (setting.parallel or 1)) + 1)
    gpus = None if scaling.gpus_per_worker else 0
    with ThreadPoolExecutor(1) as background:
        experiment = background.submit(check_store, uri, recipe.tracking.experiment)
        with connect(address, cpus=cpus, gpus=gpus, start_timeout=scaling.start_timeout) as cluster:
            from lowland.platform.preflight import preflight
            from lowland.platform.search.driver import SearchDriver

            experiment_id = experiment.result()
            preflight(recipe, cluster, RunFolder.open(recipe.storage, recipe.name), uri)
            return SearchDriver(setting, uri, experiment_id, console).run()
