"""The workers of a command: they stay from one of its searches to the next."""

from types import TracebackType

import ray
from ray.exceptions import RayError

from lowland.platform.failures import last_line
from lowland.platform.recipe import Recipe
from lowland.platform.resource_checks import shares
from lowland.platform.search.dispatcher import Look, create_dispatcher
from lowland.platform.search.jobs import Resources
from lowland.platform.search.pool import Pool
from lowland.platform.search.trial_runs import resources_of
from lowland.trainers.errors import LowlandError, RunError


class Workers:
    """A dispatcher and its groups of workers; a context manager, which ends them.

    Args:
        recipe: of searches: what each group holds, and how often a job whose workers died is given out again.
        files: folder for Ray's own files.
        parallel: trainings at a time; None is as many as the cluster holds.
        trials: how many there will be at most; None is not known.  As many groups as can be of use start at once.
    """

    def __init__(self, recipe: Recipe, files: str, parallel: int | None, trials: int | None = None) -> None:
        self.files = files
        self.most = parallel or room(resources_of(recipe))
        self.dispatcher = create_dispatcher(recipe.scaling.max_failures)
        self._pool = Pool(self.dispatcher, files, self.most, room)
        self._pool.begin(resources_of(recipe), min(self.most, trials or self.most))

    def tend(self) -> tuple[str, ...]:
        """Starts groups for jobs that wait; returns what happened to jobs since the last call, in lines.

        Raises:
            RunError: groups do not come up, or the dispatcher is gone.
        """
        try:
            look: Look = ray.get(self.dispatcher.look.remote())
        except RayError as error:
            raise RunError(f"the search lost its dispatcher, or its cluster: {last_line(error)}") from error
        self._pool.tend(look)
        return look.events

    def stop(self) -> None:
        """Lets jobs that train save and end after their step."""
        self.dispatcher.stop.remote()

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.stop()  # on a connection that stays, workers are to end by themselves
        self._pool.close()
        if kind is None or issubclass(kind, LowlandError):
            self._pool.join()


def room(resources: Resources) -> int:
    """How many trainings the cluster as it is now holds at once, at least one."""
    cluster = ray.cluster_resources()
    fits = [cluster.get("CPU", 0) // resources.cpus]
    if resources.gpus:
        fits.append(shares(cluster.get("GPU", 0), resources.gpus_per_worker) // resources.workers)
    return max(1, int(min(fits)))
