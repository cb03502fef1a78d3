"""Ray Train's controllers: the trainer that starts them, and what is left of one that was killed.

A controller is an actor that starts a group's workers in a placement group.  If it dies, its workers die with it, but
Ray keeps the placement group until the whole job has ended.  Ray's own answer is another actor beside each controller,
which outlives the job, asks the dashboard whether the controller lives, and without a dashboard neither frees anything
nor ever ends.  Here that actor is not started, and the driver frees what its controllers left; nor is the one that
hands out Ray's data sets, of which there are none, and for which every worker would import Ray's data library; nor the
one that shares nodes between trainings and data sets, for which every controller would wait, up to ten seconds where a
machine is busy, before it starts a worker.  An autoscaler sees the placement groups that wait.
"""

from collections.abc import Callable
from typing import Any

import ray
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.scaling_policy.fixed import FixedScalingPolicy

_WITHOUT = (PlacementGroupCleanerCallback, DatasetsCallback)


class Trainer(TorchTrainer):  # type: ignore[misc]
    """A TorchTrainer that leaves no actor behind; whoever calls `fit` frees what a killed controller left."""

    def _create_default_callbacks(self) -> list[Any]:
        return [made for made in super()._create_default_callbacks() if not isinstance(made, _WITHOUT)]

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        return super()._initialize_and_run_controller(**{**settings, "scaling_policy": _Alone(self.scaling_config)})


class _Alone(FixedScalingPolicy):  # type: ignore[misc]
    """As many workers as were asked for, of which nobody else is told."""

    def after_controller_start(self, train_run_context: Any) -> None:
        """Called by Ray."""

    def _maybe_send_resource_request(self) -> None:
        """Called by Ray."""


class Introduce(ControllerCallback):  # type: ignore[misc]
    """Hands out the controller's handle, by which it can be killed.

    Args:
        tell: called on the controller.
    """

    def __init__(self, tell: Callable[[Any], None]) -> None:
        self._tell = tell

    def after_controller_start(self, train_run_context: Any) -> None:
        """Called by Ray."""
        self._tell(ray.get_runtime_context().current_actor)


def release_orphans() -> int:
    """Removes the placement groups of this job whose controllers are dead; returns how many there were.

    The tables of placement groups that Ray documents do not say whose they are.
    """
    from ray._private.state import state
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    job = ray.get_runtime_context().get_job_id()
    found = 0
    for held in map(PlacementGroupTableData.FromString, state._connect_and_get_accessor().get_placement_group_table()):
        orphaned = held.creator_actor_dead and _given(held.creator_actor_id)
        if orphaned and held.creator_job_id.hex() == job and held.state != PlacementGroupTableData.REMOVED:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(held.placement_group_id)))
            found += 1
    return found


def _given(identifier: bytes) -> bool:
    """Whether an id is one: what the driver itself made has one of ones alone."""
    return identifier.strip(b"\xff") != b""
